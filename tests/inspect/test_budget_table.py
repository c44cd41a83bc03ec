"""print_rollback of configs with drift budgets, against real training and independent arithmetic."""

import csv
import io
import math
import re

import pytest
import torch
from classifiers import classifier
from digits import config
from mmengine.runner import Runner
from rich.console import Console

from olor_mm.inspect.rollback_table import examine
from olor_mm.inspect.rollback_views import by_layer, plot_levels, print_report, write_csv

KEYS = {'backbone.layer1': dict(rollback=0.03), 'layer7': dict(max_drift=0.0), 'head': dict(max_drift=0.4)}


def budgeted(cfg, max_drift=0.05, custom_keys=(), **rollback):
    cfg.optim_wrapper.paramwise_cfg.rollback = dict(max_drift=max_drift, **rollback)
    cfg.optim_wrapper.paramwise_cfg.custom_keys = dict(custom_keys)
    return cfg


def printed(report, **options) -> str:
    console = Console(width=100, file=io.StringIO())
    print_report(report, console, **options)
    return console.file.getvalue()


def rows_of(text: str, title: str) -> dict[int, list[str]]:
    """Cells of a table by layer."""
    after = re.split('How far|Every parameter', text.split(title)[1])[0].splitlines()
    cells = [line.split() for line in after[2:] if re.match(r' +\d+ ', line)]
    return {int(row[0]): row[1:] for row in cells}


@pytest.mark.parametrize('max_drift, power', [(0.05, 1.0), ((0.02, 0.1), 1.0), ((0.1, 0.01), 3.0)])
def test_budgets_and_bounds_are_those_that_training_then_holds(data, tmp_path, max_drift, power):
    cfg = budgeted(config(tmp_path, data, iterations=1), max_drift, KEYS, power=power)
    report = examine(cfg)
    runner = Runner.from_cfg(cfg)
    runner.train()
    optimizer = runner.optim_wrapper.optimizer
    groups = {name: group for group in optimizer.param_groups for name in group['names']}
    params, kinds = dict(runner.model.named_parameters()), set()
    for row in report.parameters:
        group, anchor = groups[row.name], optimizer.anchor_of(params[row.name])
        assert row.is_held == (anchor is not None)
        kinds.add((row.budget is None, row.is_held))
        if row.budget is None:
            assert row.level == group['rollback'] == (0.03 if '.layer1.' in row.name else 0.0)
            assert row.bound is None
        else:
            assert row.level is None and row.budget == group['rollback_drift'] and not any(row.w)
        if row.budget and row.is_held:
            assert row.bound == pytest.approx(row.budget * optimizer.norm_of(params[row.name]), rel=1e-6)
            assert row.size == pytest.approx(float(anchor.double().norm()), rel=1e-6)
            assert row.bound >= row.budget * row.size * (1 - 1e-6)
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


def test_the_bound_of_a_layer_is_that_of_its_tensors_together(data):
    report = examine(budgeted(classifier(), (0.02, 0.1)), images=640)
    rows = rows_of(printed(report), 'How far each layer may move')
    assert sorted(rows) == list(range(19))
    for layer in by_layer(report.parameters)[:-1]:
        bound = math.sqrt(sum(row.bound**2 for row in layer))
        size = math.sqrt(sum(row.size**2 for row in layer))
        budget = 0.02 + layer[0].layer / 18 * 0.08
        assert rows[layer[0].layer][-5:] == [
            str(len(layer)),
            *(f'{x:.3g}' for x in (budget, size, bound, bound / size)),
        ]
        assert bound >= budget * size * (1 - 1e-6)
    assert rows[18][-5:] == ['-', '0.1', '-', '-', '-']  # a new head


@pytest.mark.parametrize(
    'max_drift, keys, has_budgets, has_levels',
    [
        (0.05, {}, True, False),
        (0.05, KEYS, True, True),
        (None, {}, False, True),
        (None, {'layer1': dict(max_drift=0.1)}, True, True),
    ],
)
def test_a_table_is_there_for_levels_and_for_budgets_where_there_are_any(
    data, max_drift, keys, has_budgets, has_levels
):
    text = printed(examine(budgeted(classifier(), max_drift, keys), images=640), per_parameter=True)
    assert ('How far each layer may move' in text) == has_budgets
    assert ('How strongly each layer is pulled back' in text) == has_levels
    assert max(map(len, text.splitlines())) <= 100
    if has_budgets and has_levels:
        levels, budgets = rows_of(text, 'How strongly each'), rows_of(text, 'How far each layer')
        assert (1 in levels) == (keys is KEYS) or max_drift is None
        assert (1 in budgets) == (max_drift is None) and set(levels) | set(budgets) >= set(range(18))


def test_where_the_weights_are_not_here_a_bound_is_a_share_alone(cache):
    cfg = classifier(**{'model.backbone.init_cfg.checkpoint': 'https://no.where/mobilenet.pth'})
    report = examine(budgeted(cfg), images=640)
    held = [row for row in report.parameters if row.is_held]
    assert len(held) == 156 and {row.budget for row in held} == {0.05} and {row.bound for row in held} == {None}
    assert rows_of(printed(report), 'How far each layer')[3][-5:] == ['9', '0.05', '-', '-', '-']


def test_a_bias_of_zeros_has_the_bound_of_the_tensors_beside_it(data, tmp_path):
    state = torch.load(data / 'weights/mobilenet_v2_mmpretrain.pth', weights_only=True)['state_dict']
    names = [f'backbone.layer{i}.0.conv.0.bn.bias' for i in (2, 4, 6)]
    for name in names:
        state[name].zero_()
    torch.save(dict(state_dict=state), tmp_path / 'zeros.pth')
    cfg = classifier(**{'model.backbone.init_cfg.checkpoint': str(tmp_path / 'zeros.pth')})
    rows = {row.name: row for row in examine(budgeted(cfg), images=640).parameters}
    for name in names:
        beside = rows[name.replace('bias', 'weight')]
        assert rows[name].size == 0 and rows[name].bound == pytest.approx(beside.bound, rel=1e-6)


def test_files_have_budgets_and_bounds(data, tmp_path):
    report = examine(budgeted(classifier(), 0.05, KEYS), images=640)
    write_csv(report, tmp_path / 'rows.csv')
    rows = {row['parameter']: row for row in csv.DictReader((tmp_path / 'rows.csv').open())}
    held, level, new = (
        rows[f'{name}.weight'] for name in ('backbone.conv2.conv', 'backbone.layer1.0.conv.0.conv', 'head.fc')
    )
    assert held['budget'] == '0.05' and held['lambda'] == ''
    assert float(held['bound']) == pytest.approx(0.05 * float(held['anchor_norm']))
    assert level['lambda'] == '0.03' and level['budget'] == level['bound'] == ''
    assert new['budget'] == '0.4' and new['bound'] == ''
    for name in ('both', 'budgets', 'levels'):
        picture = tmp_path / f'{name}.png'
        keep = {'both': report, 'budgets': examine(budgeted(classifier()), 640), 'levels': examine(classifier(), 640)}
        plot_levels(keep[name], picture, name)
        assert picture.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'max_drift, keys, changes, said',
    [
        (5, {}, {}, 'budget of 5'),
        ((0.05, 1.0), {}, {}, 'budget of 1'),
        (0.05, {'layer1': dict(max_drift=2.0)}, {}, 'budget of 2'),
        (0.05, {}, {}, None),
        ((0.02, 0.1), {}, {'param_scheduler': None}, None),
        (0.05, {'layer1': dict(rollback=0.1)}, {'param_scheduler': None}, "coupling='lr' without"),
        (0.05, {'backbone': dict(max_drift=0.0), 'head': dict(max_drift=0.0)}, {}, 'lambda is 0 everywhere'),
    ],
)
def test_warnings_say_what_looks_wrong_with_budgets(data, max_drift, keys, changes, said):
    found = examine(budgeted(classifier(**changes), max_drift, keys), images=640).warnings
    if said is None:
        assert not found
    else:
        assert any(said in warning for warning in found), found
