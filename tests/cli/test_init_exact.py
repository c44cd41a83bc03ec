"""`init --keep-classes exact`: from a trained model and a folder with new classes to a run that changes nothing old."""

import re

import pytest
import torch
from conftest import tool
from exactness import build, read
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from test_init_keep_classes import EXPECTED, OLD, TASKS, commands, keep, trained


@pytest.mark.parametrize('task', ['detection', *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[2:])])
def test_the_commands_train_a_branch_and_leave_the_old_weights_as_they_are(
    task,
    new,
    old,
    data,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = trained(task, tmp_path, data)
    keep(task, new, config, checkpoint, 'both.py', '--keep-classes', 'exact', '--replay', old[task])
    label, *others = commands(capsys.readouterr().out)
    assert [command[3] for command in others] == ['train', 'test']
    cfg = Config.fromfile('both.py')
    assert list(cfg.classes) == EXPECTED[task] and cfg.model.branches == [len(OLD[task]), 1]
    assert 'rollback' not in str(cfg.optim_wrapper) and 'ClassTransferHook' not in str(cfg.custom_hooks)
    tool('olor_mm', *label[3:], folder=tmp_path)
    quick = ['train_dataloader.num_workers=0', 'val_dataloader.num_workers=0', 'test_dataloader.num_workers=0']
    tool('olor_mm', *others[0][3:], '--cfg-options', *quick, folder=tmp_path)
    said = tool('olor_mm', *others[1][3:], '--cfg-options', *quick, folder=tmp_path).stdout
    assert re.search('mIoU_old|mAP_old', said)
    before = torch.load(checkpoint, weights_only=False)['state_dict']
    after = torch.load('work_dirs/both/epoch_1.pth', weights_only=False)['state_dict']
    assert all(torch.equal(after[key], value) for key, value in before.items())
    build(cfg).load_state_dict(after)


def test_a_second_step_adds_a_branch_to_the_config_of_the_first(new, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = trained('detection', tmp_path, data)
    keep('detection', new, config, checkpoint, 'first.py', '--keep-classes', 'exact')
    model = build(Config.fromfile('first.py'))
    model.init_weights()
    load_checkpoint(model, str(checkpoint), map_location='cpu', logger='silent')
    meta = dict(dataset_meta=dict(classes=tuple(EXPECTED['detection'])))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), 'first.pth')
    for file in new['detection'].rglob('*.json'):
        file.write_text(file.read_text().replace('"name": "a"', '"name": "c"'))
    capsys.readouterr()
    keep('detection', new, 'first.py', 'first.pth', 'second.py', '--keep-classes', 'exact')
    label, train, _ = commands(capsys.readouterr().out)
    cfg = Config.fromfile('second.py')
    assert cfg.model.branches == [len(OLD['detection']), 1, 1] and list(cfg.classes) == [*EXPECTED['detection'], 'c']
    for command in (label, [*train, '--cfg-options', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0']):
        tool('olor_mm', *command[3:], folder=tmp_path)
    after = torch.load('work_dirs/second/epoch_1.pth', weights_only=False)['state_dict']
    assert all(torch.equal(after[key], value) for key, value in model.state_dict().items())


def test_stock_hooks_are_kept_as_they_suit(new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
    cfg = read(name)
    cfg.model.backbone.pop('init_cfg')
    torch.save(dict(state_dict=build(cfg).state_dict()), 'old.pth')
    keep('detection', new, name, 'old.pth', 'both.py', '--old-classes', 'coco', '--keep-classes', 'exact')
    both = Config.fromfile('both.py')
    assert both.model.branches == [80, 2] and both.model.old_type == 'RTMDet'
    averaging, switching = both.custom_hooks
    assert averaging.ema_type == 'MomentumAnnealingEMA' and averaging.momentum == cfg.custom_hooks[0].momentum
    assert switching.type == 'PipelineSwitchHook' and switching.switch_epoch < cfg.custom_hooks[1].switch_epoch


def test_a_classifier_is_refused(new, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='--keep-classes exact'):
        keep('classification', new, *trained('classification', tmp_path, data), 'both.py', '--keep-classes', 'exact')
    assert not (tmp_path / 'both.py').exists()
