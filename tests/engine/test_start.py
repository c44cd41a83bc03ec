"""What is done at the start of training is done under every loop, whichever calls a model leaves out."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from torch import nn

import olor_mm  # noqa: F401

WRAPPER = dict(
    constructor='olor_mm.OLOROptimWrapperConstructor',
    optimizer=dict(type='SGD', lr=0.01),
    paramwise_cfg=dict(rollback=dict(max_level=0.1)),
)
BATCHES, MEAN = 2, 'backbone.1.running_mean'


def network() -> nn.Module:
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    return nn.ModuleDict(dict(backbone=nn.Sequential(*parts), head=nn.Linear(4, 2)))


class Trained(BaseModel):
    """Two networks whose own ``train_step`` makes the steps as ``way`` says."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.batches = way, 0
        self.a, self.b = network(), network()

    def forward(self, x, mode='loss'):
        return sum(net['head'](net['backbone'](x).mean((2, 3))).square().mean() for net in (self.a, self.b))

    def train_step(self, data, optim_wrapper):
        self.batches += 1
        loss, is_second = self(torch.stack(data)), self.batches % 2 == 0
        if self.way in ('without optim_context', 'accumulative_counts', 'IterBasedTrainLoop'):
            optim_wrapper.update_params(loss)
            return dict(loss=loss)
        loss.backward()
        if isinstance(optim_wrapper, OptimWrapperDict):
            steps = [optim_wrapper['a']] + [optim_wrapper['b']] * (is_second or self.way != 'a wrapper that waits')
        elif self.way == 'accumulation by hand':
            steps = [optim_wrapper.optimizer] * is_second
        else:
            steps = [optim_wrapper.optimizer]
        for stepped in steps:
            stepped.step()
            stepped.zero_grad()
        return dict(loss=loss)


class TwoWrappers:
    """A constructor that gives each network a wrapper of its own."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        return OptimWrapperDict(**{name: build_optim_wrapper(getattr(model, name), WRAPPER) for name in 'ab'})


OF_TWO = ('OptimWrapperDict', 'a wrapper that waits')
WAYS = (
    'without optim_context',
    'optimizer alone',
    'accumulation by hand',
    'accumulative_counts',
    'IterBasedTrainLoop',
    *OF_TWO,
)


def runner(way: str, folder, weights, hooks=(), **options) -> Runner:
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='TwoWrappers', module=TwoWrappers, force=True)
    data = [torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(i)) for i in range(4 * BATCHES)]
    sampler = dict(type='DefaultSampler', shuffle=False)
    loop, by_epoch = dict(by_epoch=True, max_epochs=2), True
    if way == 'IterBasedTrainLoop':
        loop, by_epoch = dict(by_epoch=False, max_iters=2 * BATCHES), False
    wrapper = dict(WRAPPER, **options.pop('wrapper', {}))
    if way in OF_TWO:
        wrapper['constructor'] = 'TwoWrappers'
    if way == 'accumulative_counts':
        wrapper['accumulative_counts'] = 2
    run = Runner(
        Trained(way),
        str(folder),
        train_dataloader=dict(batch_size=4, dataset=data, sampler=sampler),
        train_cfg=loop,
        optim_wrapper=wrapper,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else BATCHES, by_epoch=by_epoch)
        ),
        load_from=str(weights),
        experiment_name=folder.name,
        **options,
    )
    for hook in hooks:
        run.register_hook(hook)
    return run


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    state = Trained('').state_dict()
    for name, value in state.items():
        if name.endswith('running_mean'):
            value.normal_()
    torch.save(dict(state_dict={n: v for n, v in state.items() if '.head.' not in n}), tmp_path / 'weights.pth')
    return tmp_path / 'weights.pth'


def optimizers(run: Runner) -> dict[str, torch.optim.Optimizer]:
    """Prefix of the parameters to their optimizer."""
    wrapper = run.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return {f'{name}.': inner.optimizer for name, inner in wrapper.items()}
    return {'': wrapper.optimizer}


def highest_weights(run: Runner) -> list[float]:
    """w of the group with the highest level, in each optimizer."""
    found = [
        (optimizer, max(optimizer.param_groups, key=lambda g: g['rollback'])) for optimizer in optimizers(run).values()
    ]
    return [optimizer.rollback_weight(group) for optimizer, group in found]


@pytest.mark.parametrize('way', WAYS)
def test_anchors_and_statistics_are_those_of_the_file(way, weights, tmp_path):
    run = runner(way, tmp_path / 'run', weights)
    run.train()
    source = torch.load(weights)['state_dict']
    for prefix, optimizer in optimizers(run).items():
        for net in (prefix,) if prefix else ('a.', 'b.'):
            kept = optimizer.pretrained_statistics[f'{net.removeprefix(prefix)}{MEAN}']
            assert torch.equal(kept, source[f'{net}{MEAN}'])
            assert not torch.equal(run.model.state_dict()[f'{net}{MEAN}'], kept)
            weight = run.model.get_parameter(f'{net}backbone.0.weight')
            assert torch.equal(optimizer.state[weight]['anchor'], source[f'{net}backbone.0.weight'])
            assert 'anchor' not in optimizer.state[run.model.get_parameter(f'{net}head.weight')]


@pytest.mark.parametrize('way', WAYS)
def test_levels_relate_to_the_scaled_rate(way, weights, tmp_path):
    for batch_size in (1, 16):
        run = runner(
            way, tmp_path / f'{batch_size}', weights, auto_scale_lr=dict(enable=True, base_batch_size=batch_size)
        )
        run.train()
        assert highest_weights(run) == [pytest.approx(0.1)] * len(optimizers(run))


@pytest.mark.parametrize('base_batch_size', [1, 4, 16])
def test_a_part_with_a_rate_of_0_is_pulled_in_proportion_once_a_floor_raises_it(base_batch_size, weights, tmp_path):
    """`lr_mult=0`, meant to freeze, under `eta_min`: it learns little, and returns little."""
    still = dict(rollback=dict(max_level=0.1), custom_keys={'backbone.0': dict(lr_mult=0.0)})
    run = runner(
        'without optim_context',
        tmp_path / 'run',
        weights,
        wrapper=dict(paramwise_cfg=still),
        auto_scale_lr=dict(enable=True, base_batch_size=base_batch_size),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=2, eta_min=1e-3, by_epoch=True),
    )
    run.train()
    optimizer = run.optim_wrapper.optimizer
    [group] = [group for group in optimizer.param_groups if group['initial_lr'] == 0]
    assert 0 < group['lr'] <= 1e-3 and group['rollback'] == 0.1
    scaled_lr = 0.01 * 4 / base_batch_size
    assert optimizer.rollback_weight(group) == pytest.approx(0.1 * group['lr'] / scaled_lr)


class WarmUp(Hook):
    """As many write it: the rate itself, without a scheduler."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for optimizer in optimizers(runner).values():
            for group in optimizer.param_groups:
                group['lr'] = 0.01 * (runner.iter + 1) / (2 * BATCHES)


@pytest.mark.parametrize('way', WAYS)
def test_levels_relate_to_the_rate_at_the_end_of_a_warm_up_by_hand(way, weights, tmp_path):
    run = runner(way, tmp_path / 'run', weights, hooks=[WarmUp()])
    run.train()
    assert highest_weights(run) == [pytest.approx(0.1)] * len(optimizers(run))


@pytest.mark.parametrize('way', WAYS)
def test_a_resume_without_the_state_of_the_optimizer_is_refused(way, weights, tmp_path):
    runner(way, tmp_path / 'run', weights).train()
    name = f'iter_{BATCHES}.pth' if way == 'IterBasedTrainLoop' else 'epoch_1.pth'
    checkpoint = torch.load(tmp_path / 'run' / name, weights_only=False)
    del checkpoint['optimizer']
    torch.save(checkpoint, tmp_path / 'without.pth')
    with pytest.raises(ValueError, match=f'resumed at iteration {BATCHES} .*without the state of the optimizer'):
        runner(way, tmp_path / 'again', tmp_path / 'without.pth', resume=True).train()


@pytest.mark.parametrize('way', WAYS)
def test_a_run_in_which_nothing_with_a_level_is_trained_is_refused(way, weights, tmp_path):
    run = runner(way, tmp_path / 'run', weights)
    for net in (run.model.a, run.model.b):
        net['backbone'].requires_grad_(False)
    with pytest.raises(ValueError, match=r'rollback\.max_level=0\.1'):
        run.train()
