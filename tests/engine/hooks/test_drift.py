"""Drift as it is logged while a model trains, against checkpoints and the arithmetic of these tests."""

from types import SimpleNamespace

import pytest
import torch
from conftest import load
from copies import WAYS, Average, beside_a_copy
from digits import StopAfter, pretrained_state, train
from hook_runs import SHARDED, STOCK, config, process_group, scalars
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from olor_mm.engine import DriftHook
from olor_mm.layers import layer_index
from olor_mm.pretrained import mark_new


def drifts(work_dir) -> dict[int, dict]:
    return {row['step']: row for row in scalars(work_dir, 'drift/')}


def expected_drift(state: dict, source: dict, index: dict) -> dict[str, float]:
    """In float64; the head has another shape in the checkpoint and is new."""
    sums: dict[str, list[float]] = {}
    for name, (i, _) in index.items():
        if name in source and source[name].shape == state[name].shape:
            start = source[name].double()
            for key in (f'drift/layer_{i:02d}', 'drift/all'):
                pair = sums.setdefault(key, [0.0, 0.0])
                pair[0] += ((state[name].double() - start) ** 2).sum().item()
                pair[1] += (start**2).sum().item()
    return {key: (moved / norm) ** 0.5 for key, (moved, norm) in sums.items()}


def assert_drift(row, runner, checkpoint, source, tolerance=1e-4) -> None:
    expected = expected_drift(checkpoint['state_dict'], source, layer_index(runner.model))
    found = {key: value for key, value in row.items() if key.startswith('drift/')}
    assert found.keys() == expected.keys() and len(expected) > 18
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=tolerance), key
    assert found['drift/all'] > 1e-3


def stop_after_one_epoch(cfg) -> None:
    runner = Runner.from_cfg(cfg)
    runner.register_hook(StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()


@pytest.mark.parametrize('where', ['anchors', 'own', 'whole', pytest.param('file', marks=pytest.mark.slow)])
def test_drift_is_that_of_the_checkpoint_from_the_pretrained_file(data, tmp_path, where):
    weights = data / 'weights/mobilenet_v2_mmpretrain.pth'
    cfg = config(tmp_path, data, dict(type='DriftHook', interval=2), optim_wrapper=STOCK if where == 'own' else None)
    if where == 'file':
        cfg.optim_wrapper.optimizer.anchor_file = str(weights)
    if where == 'whole':  # the head is pre-trained too, and has no anchor
        cfg.optim_wrapper.paramwise_cfg.rollback.min_level = 0.0
        cfg.load_from, cfg.model.head.num_classes = str(weights), 1000
    runner, checkpoint = train(cfg)
    rows = drifts(tmp_path)
    assert list(rows) == [2, 3]  # every second, and the last
    assert_drift(rows[3], runner, checkpoint, pretrained_state(data))
    kept = checkpoint['olor_drift']['values']
    backbone = {name for name, _ in runner.model.named_parameters() if name.startswith('backbone.')}
    if where in ('own', 'whole'):
        assert set(kept) == (backbone if where == 'own' else {'head.fc.weight', 'head.fc.bias'})
    if where in ('anchors', 'file'):
        assert not kept


@pytest.mark.parametrize('way, optim_wrapper', zip(WAYS, [STOCK, None, STOCK, None, STOCK]), ids=WAYS)
def test_a_copy_that_is_not_trained_is_never_measured(data, tmp_path, way, optim_wrapper):
    cfg = beside_a_copy(config(tmp_path, data, dict(type='DriftHook', interval=1), optim_wrapper=optim_wrapper), way)
    runner = Runner.from_cfg(cfg)
    if way == 'average':
        runner.register_hook(Average())
    runner.train()
    source = {f'student.{name.removeprefix("backbone.")}': value for name, value in pretrained_state(data).items()}
    expected = expected_drift(runner.model.state_dict(), source, layer_index(runner.model))
    found = {key: value for key, value in drifts(tmp_path)[3].items() if key.startswith('drift/')}
    assert found == pytest.approx(expected, rel=1e-4) and expected['drift/layer_00'] > 0
    kept = load(tmp_path / 'epoch_1.pth')['olor_drift']
    assert not any(name.startswith('teacher.') for name in [*kept['values'], *kept['trained']])


class Unfreeze(Hook):
    """Trains the first layers from the third iteration on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.backbone.conv1.requires_grad_(runner.iter >= 2)


@pytest.mark.parametrize('optim_wrapper', [STOCK, None], ids=['stock', 'olor'])
def test_a_layer_counts_from_the_iteration_in_which_it_is_trained(data, tmp_path, optim_wrapper):
    runner = Runner.from_cfg(config(tmp_path, data, dict(type='DriftHook', interval=1), optim_wrapper=optim_wrapper))
    runner.register_hook(Unfreeze(), priority='HIGH')
    runner.train()
    rows = drifts(tmp_path)
    assert 'drift/layer_00' not in rows[1].keys() | rows[2].keys() and rows[2]['drift/layer_01'] > 0
    assert_drift(rows[3], runner, load(tmp_path / 'epoch_1.pth'), pretrained_state(data))


def test_where_nothing_pretrained_is_trained_there_is_no_drift(data, tmp_path):
    hooks = [dict(type='DriftHook', interval=1), dict(type='FreezeBackboneHook')]
    cfg = config(tmp_path, data, *hooks, optim_wrapper=STOCK, iterations=1, log_level='WARNING')
    train(cfg)
    assert not drifts(tmp_path)
    [log] = tmp_path.rglob('*.log')
    assert 'none of the 156 pre-trained parameter tensors is trained' in log.read_text()


def test_drift_from_rounded_anchors_is_within_their_rounding(data, tmp_path):
    cfg = config(tmp_path, data, dict(type='DriftHook', interval=1))
    cfg.optim_wrapper.optimizer.anchor_dtype = 'bfloat16'
    runner, checkpoint = train(cfg)
    expected = expected_drift(checkpoint['state_dict'], pretrained_state(data), layer_index(runner.model))
    row = drifts(tmp_path)[3]
    for key, value in expected.items():
        assert abs(row[key] - value) < 2**-8, key


@pytest.mark.parametrize('optim_wrapper', [STOCK, None], ids=['stock', 'olor'])
def test_a_resumed_run_measures_from_the_same_values(data, tmp_path, optim_wrapper):
    options = dict(optim_wrapper=optim_wrapper, epochs=2)
    stop_after_one_epoch(config(tmp_path, data, dict(type='DriftHook', interval=1), **options))
    runner, checkpoint = train(config(tmp_path, data, dict(type='DriftHook', interval=1), **options, resume=True))
    rows = drifts(tmp_path)
    assert list(rows) == [1, 2, 3, 4, 5, 6]
    assert_drift(rows[6], runner, checkpoint, pretrained_state(data))


@pytest.mark.slow
@pytest.mark.parametrize('optim_wrapper', [STOCK, None], ids=['stock', 'olor'])
def test_a_resume_without_the_values_is_refused_and_with_anchors_it_is_not(data, tmp_path, optim_wrapper):
    options = dict(optim_wrapper=optim_wrapper, epochs=2)
    stop_after_one_epoch(config(tmp_path, data, **options))
    cfg = config(tmp_path, data, dict(type='DriftHook', interval=1), **options, resume=True)
    if optim_wrapper:
        with pytest.raises(ValueError, match='DriftHook: the resumed checkpoint was saved without it'):
            Runner.from_cfg(cfg).train()
    else:
        runner, checkpoint = train(cfg)
        assert_drift(drifts(tmp_path)[6], runner, checkpoint, pretrained_state(data))


@pytest.fixture
def loaded(data, tmp_path) -> Runner:
    """A runner whose model is initialised and whose optimizer is built, as FlexibleRunner has them before hooks."""
    runner = Runner.from_cfg(config(tmp_path, data, optim_wrapper=STOCK))
    runner.model.init_weights()
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def test_a_checkpoint_of_another_model_is_refused(loaded):
    """Of a head of 1,000 classes, resumed with ten."""
    hook = DriftHook()
    hook.before_run(loaded)
    values = {'head.fc.weight': torch.ones(1000, 1280)}
    hook.after_load_checkpoint(loaded, dict(olor_drift=dict(names=list(values), values=values)))
    loaded.train_loop._iter = 3
    with pytest.raises(ValueError, match=r'of another model: head\.fc\.weight'):
        hook.before_train_iter(loaded, 0)


def test_a_load_that_the_hook_cannot_see_is_refused_unless_what_is_pretrained_is_named(loaded):
    loaded._load_from = 'weights.pth'
    with pytest.raises(ValueError, match=r"load_from='weights\.pth' .*pretrained=\['backbone'\]"):
        DriftHook().before_run(loaded)
    DriftHook(pretrained=['backbone']).before_run(loaded)


def test_nothing_pretrained_is_refused(data, tmp_path):
    cfg = config(tmp_path, data, dict(type='DriftHook'), optim_wrapper=STOCK)
    cfg.model.backbone.pop('init_cfg')
    with pytest.raises(ValueError, match="nothing is pre-trained .pretrained='auto'.*set load_from"):
        Runner.from_cfg(cfg).train()


@pytest.mark.skipif(torch.__version__ < '2.4', reason='FSDP on CPU came with torch 2.4')
@pytest.mark.parametrize('way', SHARDED)
def test_sharded_weights_need_an_optimizer_with_rollback(tmp_path, way):
    with process_group(tmp_path):
        model = SHARDED[way]()
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(ValueError, match='DriftHook: under FSDP it needs an optimizer with rollback'):
            DriftHook().before_run(SimpleNamespace(model=model, optim_wrapper=wrapper))


def test_prefixes_choose_what_is_measured(data, tmp_path):
    hook = dict(type='DriftHook', pretrained=['backbone.layer7'])
    train(config(tmp_path, data, hook, optim_wrapper=STOCK, iterations=1))
    [row] = drifts(tmp_path).values()
    assert set(row) == {'drift/layer_17', 'drift/all', 'step'}


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(interval=0), r'DriftHook\.interval=0 is not a number'),
        (dict(pretrained='backbone'), r"DriftHook\.pretrained='backbone': give 'auto', 'all' or a list"),
        (dict(pretrained=[3]), r"DriftHook\.pretrained=\[3\]: give 'auto'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DriftHook(**options)


BUDGET = 0.05


def of_budget(work_dir, step: int) -> dict[str, float]:
    found = drifts(work_dir)[step].items()
    return {key.removeprefix('drift/'): value for key, value in found if key.endswith('_of_budget')}


def expected_use(runner, budgets: dict[str, float] | float) -> dict[str, float]:
    """In float64, of parameters with an anchor; ``budgets`` by prefix of their name."""
    optimizer, index = runner.optim_wrapper.optimizer, layer_index(runner.model)
    sums: dict[str, list[float]] = {}
    for name, p in runner.model.named_parameters():
        budget = budgets if isinstance(budgets, float) else next((b for n, b in budgets.items() if n in name), 0)
        if budget and optimizer.anchor_of(p) is not None:
            moved = (p.detach().double() - optimizer.anchor_of(p).double()).square().sum().item()
            for key in (f'layer_{index[name][0]:02d}_of_budget', 'all_of_budget'):
                pair = sums.setdefault(key, [0.0, 0.0])
                pair[0] += moved
                pair[1] += (budget * optimizer.norm_of(p)) ** 2
    return {key: (moved / bound) ** 0.5 for key, (moved, bound) in sums.items()}


def under_budget(cfg, custom_keys=(), **rollback):
    cfg.optim_wrapper.paramwise_cfg.rollback = dict(max_drift=BUDGET, **rollback)
    cfg.optim_wrapper.paramwise_cfg.custom_keys = dict(custom_keys)
    return cfg


def test_drift_under_a_budget_is_logged_as_a_share_of_it_too(data, tmp_path):
    cfg = under_budget(config(tmp_path, data, dict(type='DriftHook', interval=1)))
    runner, checkpoint = train(cfg)
    row = drifts(tmp_path)[3]
    assert of_budget(tmp_path, 3) == pytest.approx(expected_use(runner, BUDGET), rel=1e-4)
    assert len(of_budget(tmp_path, 3)) == 19 and 0 < max(of_budget(tmp_path, 3).values()) <= 1
    plain = {key: value for key, value in row.items() if not key.endswith('_of_budget')}
    assert_drift(plain, runner, checkpoint, pretrained_state(data))


def test_beside_levels_the_share_is_of_layers_and_tensors_under_a_budget_alone(data, tmp_path):
    keys = {'layer1': dict(rollback=0.1), 'layer7.0.conv.0': dict(max_drift=0.0), 'conv2': dict(max_drift=0.2)}
    runner, checkpoint = train(under_budget(config(tmp_path, data, dict(type='DriftHook', interval=1)), keys))
    budgets = {'layer1': 0.0, 'layer7.0.conv.0': 0.0, 'backbone.conv2': 0.2, '': BUDGET}
    found = of_budget(tmp_path, 3)
    assert found == pytest.approx(expected_use(runner, budgets), rel=1e-4)
    assert 'layer_01_of_budget' not in found and 'layer_17_of_budget' in found
    plain = {key: value for key, value in drifts(tmp_path)[3].items() if not key.endswith('_of_budget')}
    assert_drift(plain, runner, checkpoint, pretrained_state(data))  # of all, also of what is free


@pytest.mark.parametrize('options', [dict(optim_wrapper=STOCK), {}], ids=['stock', 'levels'])
def test_without_a_budget_there_is_no_share_of_one(data, tmp_path, options):
    train(config(tmp_path, data, dict(type='DriftHook', interval=1), iterations=1, **options))
    assert drifts(tmp_path) and not of_budget(tmp_path, 1)


def test_a_frozen_layer_has_a_share_from_the_iteration_in_which_it_is_trained(data, tmp_path):
    runner = Runner.from_cfg(under_budget(config(tmp_path, data, dict(type='DriftHook', interval=1))))
    runner.register_hook(Unfreeze(), priority='HIGH')
    runner.train()
    assert 'layer_00_of_budget' not in of_budget(tmp_path, 2)
    assert of_budget(tmp_path, 3) == pytest.approx(expected_use(runner, BUDGET), rel=1e-4)


@pytest.mark.parametrize('way', WAYS)
def test_of_several_networks_the_trained_ones_have_a_share(data, tmp_path, way):
    cfg = under_budget(config(tmp_path, data, dict(type='DriftHook', interval=1), iterations=2))
    runner = Runner.from_cfg(beside_a_copy(cfg, way))
    if way == 'average':
        runner.register_hook(Average())
    runner.train()
    trained = {f'{name}.': BUDGET for name in ('student', 'backbone')}
    assert of_budget(tmp_path, 2) == pytest.approx(expected_use(runner, trained), rel=1e-4)


class Mark(Hook):
    """Says that every second filter of the last convolution is new."""

    def before_train(self, runner):
        weight = runner.model.backbone.conv2.conv.weight
        is_new = torch.zeros_like(weight, dtype=torch.bool)
        is_new[::2] = True
        mark_new(weight, is_new)


@pytest.mark.parametrize('kind', ['stock', 'levels', 'budget'])
def test_elements_without_a_pretrained_value_are_no_part_of_drift(data, tmp_path, kind):
    cfg = config(
        tmp_path, data, dict(type='DriftHook', interval=1), optim_wrapper=STOCK if kind == 'stock' else None, epochs=2
    )
    runner = Runner.from_cfg(under_budget(cfg) if kind == 'budget' else cfg)
    runner.register_hook(Mark())
    runner.register_hook(StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner, _ = train(Config({**cfg, 'resume': True}))
    row, name = drifts(tmp_path)[6], 'backbone.conv2.conv.weight'
    source, state = pretrained_state(data), runner.model.state_dict()
    for part in (source, state):
        part[name] = part[name][1::2]
    expected = expected_drift(state, source, layer_index(runner.model))
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    if kind == 'budget':
        assert 0 < row['drift/layer_17_of_budget'] <= 1
