"""The study of methods: what it plans, how it chooses, and what its tables say."""

import json
import sys

import pytest
import torch
from conftest import ROOT
from scipy import stats

sys.path.insert(0, str(ROOT / 'benchmarks/evidence'))
import plan
import tables
import trial as runs


def row(trial: dict, value: float, **more) -> dict:
    """A row of results.csv, whose values are texts."""
    empty = dict.fromkeys([*tables.NUMBERS.split(), 'variant', 'machine'], '')
    kept = dict.fromkeys(('agreement', 'kl', 'agreement_restored', 'kl_restored', 'drift_mean'), '0.5')
    known = {**trial, 'options': json.dumps(trial['options']), 'seed': str(trial['seed'])}
    return {**empty, **kept, **known, 'value': str(value), **more}


def tuned(task: str) -> list[dict]:
    """Results of tuning in which the second setting of every method is the best."""
    return [
        row(trial, 10.0 + (i == 1)) for method in plan.SEVEN for i, trial in enumerate(plan.tuning(task, method))
    ] + [
        row(trial, 5.0 + (alpha == 0.6), method='wise_ft', alpha=str(alpha), options='{}')
        for trial in plan.tuning(task, 'full')
        for alpha in plan.WISE_FT
    ]


@pytest.mark.parametrize('task', plan.TASKS)
def test_every_method_has_the_same_budget(task):
    assert len({len(plan.tuning(task, method)) for method in plan.SEVEN}) == 1


def test_final_runs_take_what_was_best_on_validation_and_wait_for_it():
    task = 'composite boxes'
    before = [trial for trial in plan.plan([], [task]) if trial]
    assert {trial['part'] for trial in before} == {'tuning'} and {trial['split'] for trial in before} == {'val'}
    assert {trial['seed'] for trial in before} == {plan.TUNING_SEED}
    after = [trial for trial in plan.plan(tuned(task), [task]) if trial]
    final = [trial for trial in after if trial['part'] == 'final']
    assert len(final) == 3 * len(plan.SEVEN) and {trial['split'] for trial in final} == {'test'}
    assert plan.TUNING_SEED not in {trial['seed'] for trial in final}
    for trial in final:
        assert trial['options'] == plan.tuning(task, trial['method'])[1]['options']
    assert {tuple(trial['wise_ft']) for trial in final if trial['method'] == 'full'} == {(0.6,)}


def test_what_keeps_most_for_a_point_is_run_on_the_test_split():
    task = 'fashion-50'
    values = dict(
        full=[(80.0, 5), (84.0, 9), (83.5, 7), (83.1, 8), (70.0, 1), (60.0, 1)],  # value on validation, and KL
        olor=[(83.1, 3), (82.9, 1), (84.5, 6), (83.0, 2), (50.0, 0), (83.0, 4)],
        linear_probe=[(82.9, 0)] * 6,
    )
    results = [row(t, v, kl_restored=str(kl)) for m in values for t, (v, kl) in zip(plan.tuning(task, m), values[m])]
    results += [row(t, 10.0) for m in plan.SEVEN if m not in values for t in plan.tuning(task, m)]
    wise = {1: {0.9: (83.8, 6), 0.8: (83.2, 4)}, 2: {0.9: (83.4, 3)}, 4: {0.8: (20.0, 0)}}
    results += [
        row(plan.tuning(task, 'full')[i], v, method='wise_ft', alpha=str(alpha), options='{}', kl_restored=str(kl))
        for i, of_run in wise.items()
        for alpha, (v, kl) in of_run.items()
    ]
    trials = [trial for trial in plan.plan(results, [task]) if trial]
    kept = [trial for trial in trials if trial['part'] == 'trade']
    assert {t['variant'] for t in kept} == {'full', 'olor', 'wise_ft'}  # nothing else is within a point of 84
    assert len(kept) == 3 * 5 and {t['split'] for t in kept} == {'test'}
    by = {t['variant']: t for t in kept}
    assert by['full']['options'] == plan.tuning(task, 'full')[2]['options'] and 'wise_ft' not in by['full']
    assert by['olor']['options'] == plan.tuning(task, 'olor')[3]['options']
    assert by['wise_ft']['method'] == 'full' and by['wise_ft']['wise_ft'] == [0.9]
    assert by['wise_ft']['options'] == plan.tuning(task, 'full')[2]['options']
    others = [trial for trial in trials if trial['part'] == 'photos']
    assert [(t['method'], t['seed']) for t in others] == [(m, seed) for m in ('full', 'olor') for seed in range(5)]
    for trial in others:
        assert trial['options'] == by[trial['method']]['options'] and trial['photos'] == 'opencv'


def test_trials_have_keys_of_their_own():
    trials = [trial for trial in plan.plan(tuned('fashion-50'), ['fashion-50']) if trial]
    assert len({trial['key'] for trial in trials}) == len(trials)


def test_the_table_has_paired_differences_with_students_interval():
    task = 'composite boxes'
    values = dict(full=(0.10, 0.20, 0.40), olor=(0.12, 0.21, 0.45), spd=(0.05, 0.11, 0.30))
    final = [trial for trial in plan.plan(tuned(task), [task]) if trial and trial['part'] == 'final']
    results = tuned(task) + [row(t, values[t['method']][t['seed']]) for t in final if t['method'] in values]
    page = '\n\n'.join(tables.sections(results))
    differences = [2.0, 1.0, 5.0]
    half = stats.t.ppf(0.975, 2) * stats.tstd(differences) / 3**0.5
    mean = sum(differences) / 3
    assert (
        f'| OLOR | 26.0 ± 17.1 | 3 | {mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] | no difference shown' in page
    )
    assert '| SPD | 15.3 ± 13.1 | 3 | -8.0 [-14.6, -1.4] | worse' in page  # by hand: -5, -9, -10


def test_what_was_kept_is_shown_by_both_sets_of_photos():
    task = 'fashion-50'
    agreement = dict(trade=10.0, photos=40.0)
    made = [
        row(t, 80.0, agreement_restored=str(agreement[t['part']] + t['seed']), kl_restored='1')
        for t in plan.plan(tuned(task), [task])
        if t and t['part'] in agreement and t['method'] == 'olor'
    ]
    page = '\n\n'.join(tables.sections(tuned(task) + made))
    assert '| OLOR | 5 | 12.0 ± 1.6 | 42.0 ± 1.6 | 1.0 ± 0.0 | 1.0 ± 0.0 |' in page


def test_heads_of_detectors_read_what_the_backbone_computes():
    cfg = runs.base_config(dict(plan.TASKS['nuclei masks'], split='val', seed=0))
    model = runs.build(cfg.model, cfg.default_scope).eval()
    images = torch.randn(2, 3, 128, 128)
    rois = torch.tensor([[0, 8.0, 8, 60, 50], [1, 30, 20, 110, 100]])

    @torch.no_grad()
    def of_rois():
        features = model.extract_feat(images)
        return model.roi_head.bbox_roi_extractor(features[:4], rois)

    before = of_rois()
    runs.ChannelsLastHook().before_run(type('Runner', (), dict(model=model)))
    assert any(p.is_contiguous(memory_format=torch.channels_last) for p in model.backbone.parameters() if p.ndim == 4)
    torch.testing.assert_close(of_rois(), before, atol=1e-3, rtol=1e-3)
