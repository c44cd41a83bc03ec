"""Reports of runs as MMEngine writes them: reading, statistics, and the page."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from olor_mm.compare.page import compare, write
from olor_mm.compare.report import Report
from olor_mm.compare.runs import RunError, differing_settings, fill_restored, find_runs, read_run
from olor_mm.compare.statistics import (
    Measure,
    choose_metrics,
    choose_retention,
    drift_map,
    last_values,
    mean_curve,
    summarize,
    verdict,
)

CONFIG = """default_scope = 'mmdet'
optim_wrapper = dict(optimizer=dict(type='AdamW', lr={lr}), paramwise_cfg=dict(custom_keys=dict()))
param_scheduler = [dict(type='LinearLR', end=10), dict(type='PolyLR', power={power})]
randomness = dict(seed={seed})
default_hooks = dict(logger=dict(type='LoggerHook'{by}))
custom_hooks = [dict(type='{hook}')]
work_dir = 'somewhere/{seed}'
a_variable = dict(lr={lr})
"""
DEFAULTS = dict(seed=0, lr=1e-3, power=1, by='', hook='PretrainedEvalHook')


def rows(metrics: dict[int, dict], losses: dict[int, float], layers: int = 0) -> list[dict]:
    """A log: validations by their step, losses by iteration with the drift of layers."""
    found = []
    for step, loss in losses.items():
        found.append(dict(loss=loss, lr=1e-3, epoch=1, iter=step, step=step))
        if layers:
            drift = {f'drift/layer_{i:02d}': step * (i + 1) / 1000 for i in range(layers)}
            found.append({**drift, 'drift/all': step / 1000, 'step': step})
    return found + [dict(**values, time=0.1, step=step) for step, values in metrics.items()]


def make_run(folder: Path, log: list[dict], stamp='20260101_000000', **values):
    data = folder / stamp / 'vis_data'
    data.mkdir(parents=True)
    (data / 'config.py').write_text(CONFIG.format(**{**DEFAULTS, **values}))
    (data / 'scalars.json').write_text(''.join(json.dumps(row) + '\n' for row in log))
    return folder


def study(folder: Path, values: dict[str, list[float]], **extra: list[float]) -> list[str]:
    """A run a value, seeds 0, 1, ...; returns the patterns that name them."""
    for number, (method, results) in enumerate(values.items()):
        for seed, value in enumerate(results):
            metrics = {2: {'coco/bbox_mAP': value / 2}, 4: {'coco/bbox_mAP': value}}
            for key, more in extra.items():
                metrics[4][key.replace('__', '/')] = more[number] + seed
            log = rows(metrics, {10: 2.0, 20: 1.0 + value}, layers=3)
            make_run(folder / f'{method}_{seed}', log, seed=seed, lr=1e-3 * (number + 1))
    return [f'{method}={folder}/{method}_*' for method in values]


def test_a_resumed_run_has_each_step_once_and_the_later_row(tmp_path):
    first = rows({1: dict(mIoU=10.0), 2: dict(mIoU=20.0)}, {5: 5.0, 10: 4.0, 15: 3.0, 20: 2.0})
    second = rows({2: dict(mIoU=25.0), 3: dict(mIoU=30.0)}, {15: 3.5, 25: 1.0})
    make_run(tmp_path, first)
    make_run(tmp_path, second, stamp='20260102_000000', lr=5e-3)
    (tmp_path / '20260103_000000/vis_data').mkdir(parents=True)  # of tools/test.py: nothing logged
    run = read_run(tmp_path)
    # what the first had logged after the point of resuming was lost with it
    assert run.curve('loss').to_dict() == {5: 5.0, 10: 4.0, 15: 3.5, 25: 1.0}
    assert run.curve('mIoU').to_dict() == {1: 10.0, 2: 25.0, 3: 30.0}
    assert run.axes_of('mIoU') == ['epoch'] and run.axes_of('loss') == ['iteration']
    assert run.cfg.optim_wrapper.optimizer.lr == 5e-3


def test_a_run_that_was_started_anew_has_nothing_of_the_old_one(tmp_path):
    make_run(tmp_path, rows({1: dict(mIoU=10.0), 2: dict(mIoU=20.0)}, {5: 5.0, 10: 4.0}))
    make_run(tmp_path, rows({}, {5: 5.5}), stamp='20260102_000000', by=', log_metric_by_epoch=False')
    run = read_run(tmp_path)
    assert run.curve('loss').to_dict() == {5: 5.5} and run.curve('mIoU').empty


def test_validations_of_iteration_based_runs_are_by_iteration(tmp_path):
    run = read_run(make_run(tmp_path, rows({40: dict(mIoU=1.0)}, {40: 1.0}), by=', log_metric_by_epoch=False'))
    assert run.axes_of('mIoU') == ['iteration']


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(tmp_path):
    file = make_run(tmp_path, rows({}, {5: 5.0, 10: 4.0})) / '20260101_000000/vis_data/scalars.json'
    text = file.read_text()
    file.write_text(text + '{"loss": 3.')
    assert read_run(tmp_path).curve('loss').to_dict() == {5: 5.0, 10: 4.0}
    file.write_text('{"loss": 3.\n' + text)
    with pytest.raises(RunError, match=r'scalars\.json, line 1 is damaged'):
        read_run(tmp_path)


def test_the_checkpoint_of_a_moved_work_dir_is_found(tmp_path):
    run = read_run(make_run(tmp_path, rows({}, {5: 5.0})))
    assert run.checkpoint is None
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    assert run.checkpoint is None
    (tmp_path / 'epoch_3.pth').touch()
    assert run.checkpoint == tmp_path / 'epoch_3.pth'


def test_the_checkpoint_of_another_work_dir_is_not_taken_but_that_of_out_dir(tmp_path):
    run = read_run(make_run(tmp_path / 'copied', rows({}, {5: 5.0})))
    for folder, is_own in (('work_dirs/original', False), ('out_dir/copied', True)):
        file = tmp_path / folder / 'epoch_3.pth'
        file.parent.mkdir(parents=True)
        file.touch()
        (run.work_dir / 'last_checkpoint').write_text(str(file))
        assert run.checkpoint == (file if is_own else None)


def test_runs_that_differ_in_the_seed_alone_are_one_method(tmp_path):
    for name, seed, lr in (('a', 1, 1e-3), ('b', 0, 1e-3), ('c', 0, 1e-2)):
        make_run(tmp_path / name, rows({}, {5: 5.0}), seed=seed, lr=lr)
        (tmp_path / name / 'my_config.py').touch()
    runs = find_runs([f'{tmp_path}/*'])
    assert [(run.method, run.seed, run.work_dir.name) for run in runs] == [
        ('my_config (lr=0.001)', 0, 'b'),
        ('my_config (lr=0.001)', 1, 'a'),
        ('my_config (lr=0.01)', 0, 'c'),
    ]
    assert [run.method for run in find_runs([f'OLOR={tmp_path}/a', f'{tmp_path}/c'])] == ['OLOR', 'my_config']


def test_settings_that_differ_are_found_and_those_of_one_run_alone_are_not(tmp_path):
    runs = [
        read_run(make_run(tmp_path / f'{seed}_{lr}', rows({}, {5: 5.0}), seed=seed, lr=lr, power=power))
        for seed, lr, power in ((0, 1, 1), (1, 1, 1), (0, 2, 1), (1, 2, 3))
    ]
    table = differing_settings([('A', runs[:2]), ('B', runs[2:])])
    assert table.to_dict('index') == {
        'optim_wrapper.optimizer.lr': {'A': '1', 'B': '2'},
        'param_scheduler.1.power': {'A': '1', 'B': '1 | 3'},
    }
    assert differing_settings([('A', runs[:1]), ('B', runs[1:2])]).empty


@pytest.mark.parametrize(
    'patterns, message',
    [
        (['X={0}/none_*'], r"'X=.*none_\*': there is no directory .*none_\*"),
        (['={0}/full_0'], r"'=.*full_0' is not LABEL=GLOB"),
        (['A={0}/full_*', 'B={0}/full_1'], r'full_1 was named before'),
        (['A={0}/*_0'], r'full_0 and .*olor_0 are both seed 0 of .A.'),
        (['A={0}'], r'no logged scalars'),
    ],
)
def test_runs_that_cannot_be_taken_are_named(patterns, message, tmp_path):
    study(tmp_path, dict(full=[0.1, 0.2], olor=[0.2]))
    with pytest.raises(RunError, match=message):
        find_runs([pattern.format(tmp_path) for pattern in patterns])


def test_a_run_without_a_config_or_with_a_broken_one_is_named(tmp_path):
    file = make_run(tmp_path, rows({}, {5: 5.0})) / '20260101_000000/vis_data/config.py'
    file.write_text('a = 1 / 0')
    with pytest.raises(RunError, match=r'config\.py cannot be read: ZeroDivisionError'):
        read_run(tmp_path)
    file.unlink()
    with pytest.raises(RunError, match='has no config'):
        read_run(tmp_path)
    (tmp_path / 'own.py').write_text(CONFIG.format(**{**DEFAULTS, 'seed': 3}))
    assert read_run(tmp_path).seed == 3


def test_metrics_and_retention_are_chosen_or_what_there_is_is_named(tmp_path):
    a = read_run(make_run(tmp_path / 'a', rows({1: {'mIoU': 1.0, 'aAcc': 2.0, 'pretrained/agreement': 3.0}}, {5: 5.0})))
    b = read_run(make_run(tmp_path / 'b', rows({1: {'coco/bbox_mAP': 1.0}}, {5: 5.0})))
    assert choose_metrics([a]) == [Measure('mIoU')]
    assert choose_metrics([a], ['aAcc', 'mIoU']) == [Measure('aAcc'), Measure('mIoU')]
    found = r"no headline metric in common.*a has \['mIoU'\]; .*b has \['coco/bbox_mAP'\]"
    with pytest.raises(RunError, match=found):
        choose_metrics([a, b])
    never = read_run(make_run(tmp_path / 'never', rows({}, {5: 5.0})))
    for runs in ([a, never], [never]):
        with pytest.raises(RunError, match=r'no headline metric.*never has \[\]'):
            choose_metrics(runs)
    with pytest.raises(RunError, match=r"--metric 'mIoU' was not logged by .*b: .*\['coco/bbox_mAP'\]"):
        choose_metrics([a, b], ['mIoU'])
    assert choose_retention([a]) == Measure('pretrained/agreement') and choose_retention([a, b]) is None
    with pytest.raises(RunError, match=r"--retention 'pretrained/kl' was not logged by .*'pretrained/agreement'"):
        choose_retention([a], 'pretrained/kl')


def test_runs_of_0_1_are_read_with_the_names_of_today(tmp_path):
    """They logged upstream/... by a hook of another name; one that was resumed since then has both."""
    old, new = (
        {f'{name}/agreement': 3.0, f'{name}_restored/kl': 5.0, 'step': step}
        for name, step in (('upstream', 5), ('pretrained', 10))
    )
    before = [*rows({1: {'upstream_camera/mIoU': 1.0}}, {5: 5.0}), old]
    make_run(tmp_path / 'a', before, hook='UpstreamEvalHook')
    make_run(tmp_path / 'a', [*rows({}, {10: 4.0}), new], stamp='20260102_000000')
    make_run(tmp_path / 'b', before, hook='UpstreamEvalHook', seed=1)
    runs = find_runs([f'{tmp_path}/*'])
    assert runs[0].curve('pretrained/agreement').to_dict() == {5: 3.0, 10: 3.0}
    for run in runs:
        assert run.axes_of('pretrained_restored/kl') == ['iteration']
        assert not any(key.startswith(('upstream/', 'upstream_restored/')) for key in run.scalars['key'])
        assert run.curve('upstream_camera/mIoU').tolist() == [1.0]
    assert differing_settings([('a', runs[:1]), ('b', runs[1:])]).empty
    for choose, option in ((choose_metrics, '--metric'), (choose_retention, '--retention')):
        wanted = 'upstream/kl' if option == '--retention' else ['upstream/kl']
        with pytest.raises(RunError, match=f"{option} 'upstream/kl'.*'pretrained/kl'"):
            choose(runs, wanted)


@pytest.mark.parametrize(
    'key, unit, factor, higher',
    [
        ('accuracy/top1', '%', 1, True),
        ('pretrained_restored/agreement', '%', 1, True),
        ('pretrained/coco/bbox_mAP', '0 to 1', 1, True),
        ('pretrained/kl', 'nats', 1, False),
        ('drift/all', '%', 100, False),
        ('my_score', '', 1, True),
    ],
)
def test_units_and_directions(key, unit, factor, higher):
    measure = Measure(key)
    assert (measure.unit, measure.factor, measure.higher_is_better) == (unit, factor, higher)


def test_means_spreads_and_paired_intervals_equal_those_of_scipy(tmp_path):
    full, olor, other = [0.50, 0.62, 0.55, 0.58], [0.54, 0.63, 0.61, 0.57], [0.4, 0.7]
    runs = find_runs(study(tmp_path, dict(full=full, olor=olor, other=other, one=[0.9])))
    measure = Measure('coco/bbox_mAP')
    table = summarize(last_values(runs, [measure]), measure)
    for name, values in dict(full=full, olor=olor, other=other).items():
        assert table.loc[name, 'mean'] == pytest.approx(np.mean(values))
        assert table.loc[name, 'sd'] == pytest.approx(np.std(values, ddof=1))
        assert table.loc[name, 'n'] == len(values)
    for name, values in dict(olor=olor, other=other).items():
        expected = stats.ttest_rel(values, full[: len(values)]).confidence_interval(0.95)
        assert table.loc[name, ['low', 'high']].tolist() == pytest.approx([expected.low, expected.high])
        assert table.loc[name, 'pairs'] == len(values)
    assert table.loc['one', 'difference'] == pytest.approx(0.9 - 0.5)
    assert table.loc['one', ['sd', 'low', 'high']].isna().all() and table.loc['one', 'pairs'] == 1
    assert table.loc['full', ['difference', 'low', 'pairs']].isna().all()
    assert [verdict(row, measure) for _, row in table.iterrows()] == [
        'reference',
        'no difference shown',
        'no difference shown',
        'n = 1, no interval',
    ]


@pytest.mark.parametrize('key, higher', [('mIoU', 'better'), ('pretrained/kl', 'worse')])
def test_an_interval_without_zero_is_a_difference_whichever_way_is_better(key, higher):
    row = dict(pairs=3, difference=0.2, low=0.1, high=0.3)
    assert verdict(pd.Series(row), Measure(key)) == higher
    row = dict(pairs=3, difference=-0.2, low=-0.3, high=-0.1)
    assert verdict(pd.Series(row), Measure(key)) != higher


def test_runs_without_a_seed_are_counted_and_not_paired(tmp_path):
    for name, value in (('a', 0.1), ('b', 0.3)):
        make_run(tmp_path / name, rows({1: dict(mIoU=value)}, {5: 1.0}), seed=None)
    make_run(tmp_path / 'c', rows({1: dict(mIoU=0.5)}, {5: 1.0}), seed=0, lr=9)
    runs = find_runs([f'A={tmp_path}/[ab]', f'B={tmp_path}/c'])
    table = summarize(last_values(runs, [Measure('mIoU')]), Measure('mIoU'))
    assert table['n'].tolist() == [2, 1] and table.loc['A', 'mean'] == pytest.approx(0.2)
    assert table.loc['B', 'pairs'] == 0 and verdict(table.loc['B'], Measure('mIoU')) == 'n = 0, no interval'


def test_curves_and_drift_are_means_over_runs(tmp_path):
    runs = find_runs(study(tmp_path, dict(full=[0.2, 0.4])))
    curve = mean_curve(runs, Measure('loss'))
    assert curve.loc[20].tolist() == pytest.approx([1.3, np.std([1.2, 1.4], ddof=1), 2])
    drift = drift_map(runs)
    assert drift.index.tolist() == [0, 1, 2] and drift.columns.tolist() == [10, 20]
    assert drift.loc[2, 20] == pytest.approx(6.0)  # percent


def test_where_statistics_did_not_change_restored_is_as_it_is(tmp_path):
    both = {'mIoU': 1.0, 'pretrained/agreement': 3.0, 'pretrained_restored/agreement': 5.0}
    changed = read_run(make_run(tmp_path / 'a', rows({1: both}, {5: 5.0})))
    kept = read_run(make_run(tmp_path / 'b', rows({1: {'mIoU': 1.0, 'pretrained/agreement': 4.0}}, {5: 5.0})))
    assert fill_restored([kept]) == [] and choose_retention([kept]) == Measure('pretrained/agreement')
    assert fill_restored([changed, kept]) == [str(tmp_path / 'b')]
    assert kept.curve('pretrained_restored/agreement').tolist() == [4.0]
    assert choose_retention([changed, kept]) == Measure('pretrained_restored/agreement')


def images(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<img src="([^"]*)" alt="([^"]*)"', page)


def test_the_report_is_one_file_with_what_was_measured(tmp_path):
    patterns = study(
        tmp_path,
        {'full': [0.5, 0.6], '<b>|x': [0.7, 0.9]},
        pretrained__agreement=[10.0, 40.0],
        pretrained__cka_stage0=[0.9, 0.95],
    )
    report, tables = compare(find_runs(patterns), images=0)
    write(report, tables, tmp_path / 'out')
    page = (tmp_path / 'out/report.html').read_text()
    assert not re.search(r'(?:src|href)="(?!data:)|https?://|url\(|<script|<link', page)
    assert len(images(page)) == 3 and all(src.startswith('data:image/png;base64,') for src, _ in images(page))
    assert 'full: 0.55 at 10.5' in images(page)[0][1] and all(len(alt) > 30 for _, alt in images(page))
    assert '<b>' not in page and '&lt;b&gt;|x (n = 2)' in page
    text = (tmp_path / 'out/report.md').read_text()
    assert '| full | 0.5500 | 0.0707 | 2 | - | - | - | reference |' in text
    interval = stats.ttest_rel([0.7, 0.9], [0.5, 0.6]).confidence_interval(0.95)
    assert f'| 2 | +0.2500 | {interval.low:+.4f} to {interval.high:+.4f} | 2 | no difference shown |' in text
    assert '| stage0 |' in text and '| full | 1.400 ± 0.707 |' in text
    for _, file in re.findall(r'!\[(.*)\]\((.*)\)', text):
        assert (tmp_path / 'out' / file).is_file()
    runs = pd.read_csv(tmp_path / 'out/runs.csv')
    assert runs['coco/bbox_mAP (0 to 1)'].tolist() == [0.5, 0.6, 0.7, 0.9] and runs['seed'].tolist() == [0, 1, 0, 1]
    summary = pd.read_csv(tmp_path / 'out/summary.csv').set_index(['measure', 'method'])
    assert summary.loc[('drift/all', 'full'), 'mean'] == pytest.approx(2.0)
    assert pd.read_csv(tmp_path / 'out/settings.csv')['key'].tolist() == ['optim_wrapper.optimizer.lr']


def test_what_is_missing_is_said_and_not_drawn(tmp_path):
    make_run(tmp_path / 'a', rows({1: dict(mIoU=1.0)}, {5: 5.0}))
    make_run(tmp_path / 'b', rows({1: {'mIoU': 2.0, 'pretrained/agreement': 3.0}}, {5: 5.0, 9: 4.0}, layers=2), lr=2)
    make_run(tmp_path / 'c', rows({1: dict(mIoU=1.0)}, {5: 5.0}), seed=1, power=2)
    report, _ = compare(find_runs([f'A={tmp_path}/[ac]', f'B={tmp_path}/b']))
    text = report.markdown()
    assert 'Not drawn: no measure of retention was logged by all of these runs' in text
    assert f'pretrained/agreement (%), drift/all (%): not logged by {tmp_path}/a, {tmp_path}/c.' in text
    assert 'B: n = 1, so' in text
    assert 'A: its runs differ in more than the seed: param_scheduler.1.power.' in text
    assert 'Methods trained for 5 (A), 9 (B) iterations' in text
    assert 'Not logged by A: DriftHook' in text
    assert 'Not drawn, as the validation data cannot be read' in text
    assert list(report.figures) == ['curves.png', 'drift.png']


def test_cells_and_paragraphs_say_what_they_were_given():
    report = Report('a_b *c* <d>')
    report.text('no | table, & `code` [x](y) _z_ 1~2~ \\')
    report.table(pd.DataFrame({'v': ['a|b'], 'n': ['-1']}, index=pd.Index(['<i>'], name='k')), ('v',))
    page = report.html()
    assert '<h1>a_b *c* &lt;d&gt;</h1>' in page and '<title>a_b *c* &lt;d&gt;</title>' in page
    assert '<p>no | table, &amp; `code` [x](y) _z_ 1~2~ \\</p>' in page
    assert '<td>&lt;i&gt;</td>' in page and '<td>a|b</td>' in page and '<td style="text-align:right">-1</td>' in page
