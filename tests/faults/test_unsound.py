"""Trainings that break: gradients that are no numbers, a loss scale that collapses, epochs of another length."""

from pathlib import Path

import pytest
import torch
from conftest import needs_cpu_scaler
from mmengine.hooks import Hook
from runs import SAFE, Iterations, Terminate, equal, logged, resumed, trained

from olor_mm.durable.loading import CheckpointError, load

KEEP_ONE = dict(SAFE, max_keep_ckpts=1)
BROKEN = 'backbone.conv1.conv.weight'


class Poison(Hook):
    """Makes a gradient NaN in some iterations."""

    def __init__(self, *iterations: int):
        self.iterations = iterations

    def before_train(self, runner):
        weight = dict(runner.model.named_parameters())[BROKEN]
        weight.register_hook(lambda g: g * float('nan') if runner.iter in self.iterations else g)


def anchors(file: Path) -> list[torch.Tensor]:
    return [state['anchor'] for state in load(file)['optimizer']['state'].values() if 'anchor' in state]


def parameters(file: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load(file)['state_dict'].items() if name.endswith(('weight', 'bias'))}


@pytest.mark.parametrize('iterations', [(2,), range(2, 100)], ids=['one step', 'for ever'])
def test_weights_that_are_no_numbers_are_not_saved_over_good_ones(data, tmp_path, run_dir, iterations):
    message = rf"epoch_2\.pth was not saved: .* no longer finite, like '{BROKEN}'.*epoch_1\.pth"
    with pytest.raises(CheckpointError, match=message):
        trained(tmp_path, data, Poison(*iterations), hook=KEEP_ONE)
    assert [file.name for file in tmp_path.glob('*.pth')] == ['epoch_1.pth']
    resumed(tmp_path, data, epochs=2, hook=KEEP_ONE)
    assert equal(tmp_path / 'epoch_2.pth', run_dir / 'epoch_2.pth')


@pytest.mark.parametrize('value', [float('nan'), float('-inf')])
def test_a_buffer_may_be_infinite_but_not_nan(data, tmp_path, value):
    class Mask(Hook):
        def before_train(self, runner):
            runner.model.register_buffer('mask', torch.tensor([0.0, value]))

    if value != value:
        with pytest.raises(CheckpointError, match=r"epoch_1\.pth was not saved: .*like 'mask'"):
            trained(tmp_path, data, Mask(), epochs=1)
    else:
        trained(tmp_path, data, Mask(), epochs=1)
    assert (tmp_path / 'epoch_1.pth').exists() == (value == value)


def scaled(init_scale: float) -> dict:
    return {
        'optim_wrapper.type': 'AmpOptimWrapper',
        'optim_wrapper.dtype': 'bfloat16',
        'optim_wrapper.loss_scale': dict(init_scale=init_scale),
    }


@needs_cpu_scaler
def test_a_step_that_the_loss_scaler_leaves_out_changes_nothing(data, tmp_path, amp_on_cpu, run_dir):
    runner = trained(tmp_path, data, Poison(2, 3), **scaled(2.0**10))
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**8
    before, after = (parameters(tmp_path / f'epoch_{epoch}.pth') for epoch in (1, 2))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    kept, pretrained = anchors(tmp_path / 'epoch_2.pth'), anchors(run_dir / 'epoch_1.pth')
    assert len(kept) == len(pretrained) and all(map(torch.equal, kept, pretrained))


@needs_cpu_scaler
def test_a_loss_scale_that_collapses_ends_the_run(data, tmp_path, amp_on_cpu):
    message = r'epoch_2\.pth was not saved: the loss scale has fallen to 6\.25e-05.*epoch_1\.pth'
    with pytest.raises(CheckpointError, match=message):
        trained(tmp_path, data, Poison(*range(100)), **scaled(1e-3))
    assert [file.name for file in tmp_path.glob('*.pth')] == ['epoch_1.pth']


def test_an_epoch_of_another_length_goes_on_at_the_same_share_of_it(data, tmp_path, own_sigterm):
    with pytest.raises(SystemExit):
        trained(tmp_path, data, Terminate(2))  # one of two iterations of the second epoch is done
    seen = Iterations()
    resumed(tmp_path, data, seen, epochs=2, log_level='WARNING', **{'train_dataloader.batch_size': 4})
    assert seen.seen == [(1, 2), (1, 3)]
    assert 'a run with 2 iterations an epoch, in 1 process(es), and here are 4, in 1' in logged(tmp_path)
    assert (tmp_path / 'epoch_2.pth').exists()
