"""Drift as it is logged while a model trains, against checkpoints and the arithmetic of these tests."""

from types import SimpleNamespace

import pytest
import torch
from conftest import load
from copies import WAYS, Average, beside_a_copy
from digits import StopAfter, pretrained_state, train
from hook_runs import SHARDED, STOCK, config, process_group, scalars
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from olor_mm.engine import DriftHook
from olor_mm.layers import layer_index


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
