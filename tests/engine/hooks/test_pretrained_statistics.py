"""Two sets of BatchNorm statistics in one checkpoint, and which one a test takes."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load, tool
from digits import pretrained_state, train
from hook_runs import STOCK, config, with_validation
from mmengine.hooks import Hook
from mmengine.runner import Runner

EMA = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.5, update_buffers=True)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory) -> Path:
    """A run with rollback, with a moving average of its weights and statistics."""
    folder = tmp_path_factory.mktemp('trained')
    train(config(folder, data, EMA))
    return folder


def state_at_test(trained: Path, data, file: Path, *hooks) -> dict[str, torch.Tensor]:
    """What the model of a test has; with ``EMAHook`` that is the average."""
    cfg = with_validation(config(trained / 'test', data, EMA, *hooks))
    for name in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'test_{name}'] = cfg[f'val_{name}']
    cfg.load_from = str(file)
    runner, kept = Runner.from_cfg(cfg), {}
    forward = runner.model.register_forward_hook(lambda model, *_: kept.update(copy.deepcopy(model.state_dict())))
    runner.test()
    forward.remove()
    return kept


def checkpoint_of(trained: Path) -> Path:
    return ROOT / (trained / 'last_checkpoint').read_text().strip()


@pytest.mark.parametrize('how', ['as it was saved', 'without the optimizer, and the statistics beside the weights'])
def test_a_test_takes_the_statistics_of_before_and_the_trained_weights(trained, data, tmp_path, how):
    file, source = checkpoint_of(trained), pretrained_state(data)
    content = load(file)
    if how != 'as it was saved':
        file, statistics = tmp_path / 'published.pth', content.pop('optimizer')['pretrained_statistics']
        torch.save(dict(state_dict=content['state_dict'], pretrained_statistics=statistics), file)
    stock = state_at_test(trained, data, file)
    found = state_at_test(trained, data, file, dict(type='olor_mm.PretrainedStatisticsHook'))
    are_statistics = {name for name in source if name.startswith('backbone.') and name in dict(statistics_of(found))}
    assert len(are_statistics) == 3 * 52
    for name, value in found.items():
        assert torch.equal(value, source[name] if name in are_statistics else content['state_dict'][name]), name
        assert torch.equal(stock[name], content['state_dict'][name]), name
    assert not torch.equal(stock['backbone.conv1.bn.running_mean'], source['backbone.conv1.bn.running_mean'])


def statistics_of(state: dict) -> list[tuple]:
    return [(name, value) for name, value in state.items() if 'running_' in name or 'num_batches' in name]


def test_a_run_that_trains_on_from_the_checkpoint_takes_its_own_statistics(trained, data, tmp_path):
    file = checkpoint_of(trained)
    runner = Runner.from_cfg(config(tmp_path, data, dict(type='olor_mm.PretrainedStatisticsHook'), load_from=str(file)))
    start = KeepStart()
    runner.register_hook(start)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    for name, value in statistics_of(start.state):
        assert torch.equal(value, load(file)['state_dict'][name]), name


class KeepStart(Hook):
    """Keeps what training would start from."""

    def before_train(self, runner):
        self.state = copy.deepcopy(runner.model.state_dict())
        raise KeyboardInterrupt


@pytest.mark.parametrize('option', ['--pretrained-statistics', None])
def test_the_command_line_has_a_switch(trained, option):
    file = checkpoint_of(trained)
    options = ['--cfg-options', 'test_dataloader.dataset.indices=[0,400]', 'test_dataloader.num_workers=0']
    options += ['test_dataloader.persistent_workers=False', '--work-dir', trained / 'cli']
    config_file = 'configs/classification/olor/mobilenet-v2_olor_1xb32-10e_digits-64px.py'
    said = tool('tools/test.py', config_file, file, *([option] if option else []), *options).stdout
    assert ('put back 156 statistics' in said) == bool(option)


def test_a_checkpoint_without_them_is_refused(data, tmp_path):
    train(config(tmp_path, data, optim_wrapper=STOCK))
    with pytest.raises(ValueError, match=f'{checkpoint_of(tmp_path).name}.* has no pretrained_statistics'):
        state_at_test(tmp_path, data, checkpoint_of(tmp_path), dict(type='olor_mm.PretrainedStatisticsHook'))
    other = tmp_path / 'other.pth'
    state = load(checkpoint_of(tmp_path))['state_dict']
    torch.save(dict(state_dict=state, pretrained_statistics={'neck.bn.running_mean': torch.zeros(1)}), other)
    with pytest.raises(ValueError, match="pretrained_statistics of 'neck.bn.running_mean'"):
        state_at_test(tmp_path, data, other, dict(type='olor_mm.PretrainedStatisticsHook'))
