"""What is done at the start of training is done under every loop, whichever calls a model leaves out."""

import pytest
import torch
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
        self.way = way
        self.a, self.b = network(), network()

    def forward(self, x, mode='loss'):
        return sum(net['head'](net['backbone'](x).mean((2, 3))).square().mean() for net in (self.a, self.b))

    def train_step(self, data, optim_wrapper):
        loss = self(torch.stack(data))
        if self.way == 'optimizer alone':
            optim_wrapper.optimizer.zero_grad()
            loss.backward()
            optim_wrapper.optimizer.step()
        elif self.way == 'without optim_context':
            optim_wrapper.update_params(loss)
        else:
            loss.backward()
            for wrapper in optim_wrapper.values():
                wrapper.step()
                wrapper.zero_grad()
        return dict(loss=loss)


class TwoWrappers:
    """A constructor that gives each network a wrapper of its own."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        return OptimWrapperDict(**{name: build_optim_wrapper(getattr(model, name), WRAPPER) for name in 'ab'})


WAYS = ('without optim_context', 'optimizer alone', 'OptimWrapperDict')


def runner(way: str, folder, weights, **options) -> Runner:
    if way == 'OptimWrapperDict':
        OPTIM_WRAPPER_CONSTRUCTORS.register_module(name='TwoWrappers', module=TwoWrappers, force=True)
    data = [torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(i)) for i in range(4 * BATCHES)]
    sampler = dict(type='DefaultSampler', shuffle=False)
    return Runner(
        Trained(way),
        str(folder),
        train_dataloader=dict(batch_size=4, dataset=data, sampler=sampler),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(WRAPPER, constructor='TwoWrappers') if way == 'OptimWrapperDict' else WRAPPER,
        load_from=str(weights),
        experiment_name=folder.name,
        **options,
    )


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


@pytest.mark.parametrize('way', WAYS[:2])
def test_levels_relate_to_the_scaled_rate(way, weights, tmp_path):
    run = runner(way, tmp_path / 'run', weights, auto_scale_lr=dict(enable=True, base_batch_size=1))
    run.train()
    [optimizer] = optimizers(run).values()
    assert {optimizer.rollback_weight(group) for group in optimizer.param_groups if group['rollback'] == 0.1} == {0.1}


@pytest.mark.parametrize('way', WAYS)
def test_a_resume_without_the_state_of_the_optimizer_is_refused(way, weights, tmp_path):
    runner(way, tmp_path / 'run', weights).train()
    checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    del checkpoint['optimizer']
    torch.save(checkpoint, tmp_path / 'without.pth')
    with pytest.raises(ValueError, match=f'resumed at iteration {BATCHES} .*without the state of the optimizer'):
        runner(way, tmp_path / 'again', tmp_path / 'without.pth', resume=True).train()
