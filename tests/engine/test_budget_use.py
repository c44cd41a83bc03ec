"""The line at the end of training: how much of their drift budgets layers used."""

import re

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.runner import Runner
from test_levels_of_heads import Detector, trained
from torch import nn

from olor_mm.engine import DriftHook
from olor_mm.engine.budgets import TellBudgetUse, use

BUDGET = 0.05


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    torch.save(dict(state_dict=Detector(classes=3).state_dict()), tmp_path / 'weights.pth')
    return str(tmp_path / 'weights.pth')


def lines(log) -> list[str]:
    return [line for line in log if 'drift budgets' in line]


def expected(run, weights, budgets: dict[int, float]) -> dict[int, float]:
    """The share of its budget that each layer used; no tensor here is tiny."""
    source = torch.load(weights, weights_only=True)['state_dict']
    sums: dict[int, list[float]] = {}
    for name, value in run.model.state_dict().items():
        layer = int(name.split('.')[1]) if name.startswith('backbone') else 3
        if layer in budgets and value.shape == source[name].shape:
            start = source[name].double()
            moved, bound = sums.setdefault(layer, [0.0, 0.0])
            radius = budgets[layer] * float(start.norm())
            sums[layer] = [moved + float((value.double() - start).norm()) ** 2, bound + radius**2]
    return {layer: (moved / bound) ** 0.5 for layer, (moved, bound) in sums.items()}


def assert_said(log, run, weights, budgets) -> None:
    shares = expected(run, weights, budgets)
    assert lines(log) == [f'OLOR: {use(dict(sorted(shares.items())))}']
    assert 0 < max(shares.values()) <= 1 + 1e-5


@pytest.mark.parametrize('lr', [1e-4, 0.01, 0.5])
def test_a_run_under_a_budget_says_once_how_much_of_it_each_layer_used(tmp_path, weights, log, lr):
    run = trained(tmp_path / 'run', weights, epochs=3, lr=lr, max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys(range(4), BUDGET))


def test_budgets_that_grow_with_depth_count_each_for_its_layer(tmp_path, weights, log):
    run = trained(tmp_path / 'run', weights, epochs=3, max_drift=(0.01, 0.04))
    assert_said(log, run, weights, {i: 0.01 * (i + 1) for i in range(4)})


def test_layers_under_a_level_are_not_in_the_line(tmp_path, weights, log):
    keys = {'backbone.0': dict(rollback=0.1), 'neck': dict(max_drift=0.0)}
    run = trained(tmp_path / 'run', weights, custom_keys=keys, max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys((1, 2), BUDGET))


def test_layers_under_a_budget_among_layers_with_levels_are_in_it(tmp_path, weights, log):
    keys = {'backbone.1': dict(max_drift=0.02)}
    run = trained(tmp_path / 'run', weights, custom_keys=keys, max_level=0.1)
    assert_said(log, run, weights, {1: 0.02})


@pytest.mark.parametrize('strength', [dict(max_level=0.3), dict(rule='spd'), dict(rule='l2sp')])
def test_a_run_without_a_budget_says_nothing(tmp_path, weights, log, strength):
    trained(tmp_path / 'run', weights, **strength)
    assert not lines(log)


def test_frozen_layers_are_not_in_the_line(tmp_path, weights, log):
    model = Detector()
    model.backbone[0].requires_grad_(False)
    run = trained(tmp_path / 'run', weights, model, max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys((1, 2, 3), BUDGET))


class Freeze(Hook):
    """Trains a part up to a step."""

    def __init__(self, name: str, step: int):
        self.name, self.step = name, step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.get_submodule(self.name).requires_grad_(runner.iter < self.step)


@pytest.mark.parametrize('step, counted', [(0, (0, 2, 3)), (2, (0, 1, 2, 3))])
def test_a_layer_counts_if_it_was_ever_trained(tmp_path, weights, log, step, counted):
    run = trained(tmp_path / 'run', weights, epochs=3, hooks=[Freeze('backbone.1', step)], max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys(counted, BUDGET))


def test_a_layer_with_a_learning_rate_of_0_does_not_count(tmp_path, weights, log):
    keys = {'backbone.2': dict(lr_mult=0.0)}
    run = trained(tmp_path / 'run', weights, custom_keys=keys, max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys((0, 1, 3), BUDGET))


def test_layers_whose_steps_are_longer_than_their_budget_used_none_of_it(tmp_path, weights, log):
    run = trained(tmp_path / 'run', weights, lr=1e3, max_drift=1e-6)
    assert set(expected(run, weights, dict.fromkeys(range(4), 1e-6)).values()) == {0.0}
    [line] = lines(log)
    assert '0 % of' in line and line.endswith('layer 0 to 3')


def test_a_resumed_run_says_it_at_its_end_and_a_finished_one_says_nothing(tmp_path, weights, log):
    trained(tmp_path / 'run', weights, epochs=1, max_drift=BUDGET)
    log.clear()
    run = trained(tmp_path / 'run', None, epochs=3, resume=True, max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys(range(4), BUDGET))
    log.clear()
    trained(tmp_path / 'run', None, epochs=3, resume=True, hooks=[DriftHook()], max_drift=BUDGET)
    assert not lines(log)


class Stop(Hook):
    """Ends training after the first epoch, as EarlyStoppingHook does."""

    def after_train_epoch(self, runner):
        runner.train_loop.stop_training = True


@pytest.mark.parametrize(
    'hooks, times',
    [([], 0), ([DriftHook], 1), ([TellBudgetUse], 1), ([TellBudgetUse, DriftHook], 1)],
    ids=['alone', 'with DriftHook', 'as train does', 'as train does with DriftHook'],
)
def test_an_end_that_comes_early_is_seen_by_a_hook(tmp_path, weights, log, hooks, times):
    run = trained(tmp_path / 'run', weights, epochs=5, hooks=[Stop(), *(hook() for hook in hooks)], max_drift=BUDGET)
    assert run.epoch == 1 and len(lines(log)) == times


def test_an_error_in_training_is_no_end(tmp_path, weights, log):
    class Broken(Hook):
        def after_train_epoch(self, runner):
            raise RuntimeError('mine')

    with pytest.raises(RuntimeError, match='mine'):
        trained(tmp_path / 'run', weights, epochs=5, hooks=[Broken(), TellBudgetUse()], max_drift=BUDGET)
    assert not lines(log)


def test_with_the_drift_hook_it_is_said_once_all_the_same(tmp_path, weights, log):
    run = trained(tmp_path / 'run', weights, hooks=[DriftHook(interval=1)], max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys(range(4), BUDGET))


@pytest.mark.parametrize('counts', [1, 2, 3])
@pytest.mark.parametrize('loop', [dict(by_epoch=True, max_epochs=2), dict(by_epoch=False, max_iters=5)], ids=str)
def test_it_comes_after_the_last_step_of_any_loop_and_accumulation(tmp_path, weights, log, loop, counts):
    rollback = dict(max_drift=BUDGET)
    run = Runner(
        Detector(),
        str(tmp_path / 'run'),
        train_dataloader=dict(
            batch_size=2, dataset=[torch.ones(4)] * 8, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=loop,
        optim_wrapper=dict(
            constructor='olor_mm.OLOROptimWrapperConstructor',
            accumulative_counts=counts,
            optimizer=dict(type='AdamW', lr=1e-3),
            paramwise_cfg=dict(rollback=rollback),
        ),
        load_from=weights,
        experiment_name=str(tmp_path).replace('/', '_'),
    )
    run.train()
    assert_said(log, run, weights, dict.fromkeys(range(4), BUDGET))


class Pair(nn.Module):
    """Two networks, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Detector(), Detector()

    def train_step(self, data, optim_wrapper):
        for name in 'ab':
            optim_wrapper[name].update_params(getattr(self, name)(*data)['loss'])
        return {}


def test_of_two_optimizers_each_says_it_once(tmp_path, log):
    model, cfg = (
        Pair(),
        dict(
            constructor='olor_mm.OLOROptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=0.01),
            paramwise_cfg=dict(rollback=dict(max_drift=BUDGET, pretrained='all')),
        ),
    )
    run = Runner(
        model,
        str(tmp_path),
        train_dataloader=dict(
            batch_size=2, dataset=[torch.ones(4)] * 4, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=OptimWrapperDict(**{name: build_optim_wrapper(getattr(model, name), cfg) for name in 'ab'}),
        experiment_name=str(tmp_path).replace('/', '_'),
    )
    run.train()
    assert len(lines(log)) == 2


@pytest.mark.parametrize(
    'shares, much, little',
    [
        ({0: 0.2, 1: 0.39}, None, None),
        ({0: 0.4, 1: 0.45, 2: 0.9, 5: 0.41}, '0 to 2, 5', None),
        ({0: 0.0, 1: 0.0999, 2: 0.1, 7: 0.05}, None, '0 to 1, 7'),
        ({3: 0.05, 4: 0.5}, '4', '3'),
    ],
)
def test_it_names_layers_that_used_much_and_little(shares, much, little):
    found = [re.search(pattern, use(shares)) for pattern in (r'40 % or more: layer ([^(]*) \(', r'10 %: layer (.*)$')]
    assert [match and match[1] for match in found] == [much, little]


class Twice(Detector):
    """Updates its weights twice an iteration."""

    def train_step(self, data, optim_wrapper):
        for _ in range(2):
            optim_wrapper.update_params(self(*data)['loss'])
        return {}


def test_with_several_updates_an_iteration_it_is_not_said_halfway(tmp_path, weights, log):
    class Watch(Hook):
        said = ()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.said = (*self.said, len(lines(log)))

    watch = Watch()
    trained(tmp_path / 'run', weights, Twice(), epochs=3, hooks=[watch], max_drift=BUDGET)
    assert watch.said == (0, 0, 0, 0, 0, 1)


def test_a_run_after_another_runner_was_built_and_run_says_it_at_its_end(tmp_path, weights, log):
    trained(tmp_path / 'first', weights, epochs=1, max_drift=BUDGET)
    log.clear()
    run = trained(tmp_path / 'second', weights, epochs=3, max_drift=BUDGET)
    assert_said(log, run, weights, dict.fromkeys(range(4), BUDGET))
