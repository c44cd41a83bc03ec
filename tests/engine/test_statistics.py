"""Running statistics of pre-trained norm layers: kept before the first forward pass, carried along, put back."""

import pytest
import torch
from conftest import ROOT, load, tool
from digits import StopAfter, config, pretrained_state, train

from olor_mm.measure import restore_statistics
from olor_mm.pretrained import statistics_states

MEAN = 'backbone.conv1.bn.running_mean'


def test_statistics_of_the_checkpoint_are_kept_through_training_and_resume_and_put_back(data, tmp_path):
    source = pretrained_state(data)
    runner = train_until(config(tmp_path, data, epochs=2), epochs=1)
    assert not torch.equal(runner.model.state_dict()[MEAN], source[MEAN])
    runner, checkpoint = train(config(tmp_path, data, epochs=2, resume=True))
    kept = checkpoint['optimizer']['pretrained_statistics']
    expected = {n for n in source if n.startswith('backbone.') and ('running_' in n or 'num_batches' in n)}
    assert set(kept) == expected and len(expected) == 3 * 52
    for name in expected:
        assert torch.equal(kept[name], source[name]), name
    assert not torch.equal(checkpoint['state_dict'][MEAN], source[MEAN])
    restore_statistics(runner.model, runner.optim_wrapper.optimizer.pretrained_statistics)
    assert torch.equal(runner.model.state_dict()[MEAN], source[MEAN])
    with pytest.raises(ValueError, match="no buffer 'backbone.conv1.bn.running_mean'"):
        restore_statistics(torch.nn.Linear(2, 2), kept)


def train_until(cfg, epochs):
    from mmengine.runner import Runner

    runner = Runner.from_cfg(cfg)
    runner.register_hook(StopAfter(epochs))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    return runner


def test_the_tool_writes_the_pretrained_model_with_its_old_head(data, tmp_path):
    source = pretrained_state(data)
    _, checkpoint = train(config(tmp_path / 'run', data))
    written = tmp_path / 'out/source.pth'
    pretrained = data / 'weights/mobilenet_v2_mmpretrain.pth'
    script = 'tools/model_converters/restore_pretrained.py'
    done = tool(script, ROOT / (tmp_path / 'run/last_checkpoint').read_text(), pretrained, written)
    assert '156 tensors kept statistics, ' in done.stdout.replace('156 tensors fine-tuned, ', '')
    state = load(written)['state_dict']
    assert state.keys() == source.keys()
    for name, value in state.items():
        is_head, is_statistic = name.startswith('head.'), 'running_' in name or 'num_batches' in name
        expected = source[name] if is_head or is_statistic else checkpoint['state_dict'][name]
        assert torch.equal(value, expected), name
    assert state['head.fc.weight'].shape == (1000, 1280)

    stock = tmp_path / 'stock.pth'
    torch.save(dict(state_dict=checkpoint['state_dict']), stock)
    done = tool(script, stock, pretrained, written, check=False)
    assert done.returncode and 'does not have the pre-trained running statistics of 104 buffers' in done.stdout
    done = tool(script, stock, pretrained, written, '--prefix', 'back.', check=False)
    assert done.returncode and "prefix='back.'" in done.stdout


@pytest.mark.parametrize('norm_eval', [True, False])
def test_the_log_says_what_becomes_of_the_statistics(data, tmp_path, capfd, norm_eval):
    cfg = config(tmp_path, data, log_level='INFO')
    cfg.model.backbone.norm_eval = norm_eval
    runner, _ = train(cfg)
    printed = ''.join(capfd.readouterr())
    assert ('Pre-trained norm layers: 52 frozen at their pre-trained values' in printed) == norm_eval
    assert ('Pre-trained norm layers: 52 updated in training' in printed) == (not norm_eval)
    runner.model.train()
    assert set(statistics_states(runner.model).values()) == {'frozen' if norm_eval else 'updated'}


def test_layers_that_normalise_each_sample_have_none():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.BatchNorm1d(3))
    assert statistics_states(model) == {'1': 'none', '2': 'updated'}
