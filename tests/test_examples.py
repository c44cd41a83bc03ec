"""The examples outside of OpenMMLab, run as they are on part of the data."""

import runpy
import shutil

import pytest
import torch
from conftest import ROOT, load


@pytest.fixture
def folder(data, tmp_path, monkeypatch):
    """A folder to run an example in: the weights, and a few images of each class."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/weights').symlink_to(data / 'weights')
    for split in ('train', 'test'):
        for image in (image for label in (data / 'digits' / split).iterdir() for image in sorted(label.iterdir())[:6]):
            copy = tmp_path / 'data/digits' / image.relative_to(data / 'digits')
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, copy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(name: str, *arguments: str):
    return runpy.run_path(str(ROOT / 'examples' / name))['main'](list(arguments))


def assert_anchors_are_imagenet(optimizer: dict, steps: int) -> None:
    """What has a level is anchored to torchvision's weights, in whose order the other libraries have theirs."""
    assert {int(state['step']) for state in optimizer['state'].values()} == {steps}
    weights = torch.load('data/weights/mobilenet_v2_torchvision.pth', weights_only=True)
    imagenet = [value for name, value in weights.items() if 'running' not in name and 'num_batches' not in name]
    levels = {number: group['rollback'] for group in optimizer['param_groups'] for number in group['params']}
    anchors = {number: state['anchor'] for number, state in optimizer['state'].items() if 'anchor' in state}
    assert anchors.keys() == {number for number, level in levels.items() if level}
    assert len(levels) == 158 and len(anchors) == 158 - 2  # the new head
    assert max(levels.values()) == 1e-2 and len(set(levels.values())) >= 17
    for value in imagenet[: len(anchors)]:
        assert any(anchor.shape == value.shape and torch.equal(anchor, value) for anchor in anchors.values())


def test_plain_pytorch(folder):
    run_example('plain_pytorch.py', '--epochs=1')
    run_example('plain_pytorch.py', '--epochs=2', '--resume')
    saved = load('work_dirs/plain_pytorch.pth')
    assert saved['epoch'] == 2
    assert_anchors_are_imagenet(saved['optimizer'], steps=4)


def test_timm_model(folder):
    model, optimizer = run_example('timm_model.py', '--epochs=1')
    assert_anchors_are_imagenet(optimizer.state_dict(), steps=2)
    decays = {p.ndim > 1: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert decays == {True: 0.05, False: 0.0}


def test_huggingface_trainer(folder):
    pytest.importorskip('accelerate', reason='the Trainer of transformers needs it')
    run_example('huggingface_trainer.py', '--epochs=1')
    trainer = run_example('huggingface_trainer.py', '--epochs=2', '--resume')
    assert trainer.state.global_step == 4 and 'eval_accuracy' in trainer.state.log_history[-2]
    optimizer = load('work_dirs/huggingface_trainer/checkpoint-4/optimizer.pt')
    assert_anchors_are_imagenet(optimizer, steps=4)


def test_lightning_module(folder):
    pytest.importorskip('lightning')
    run_example('lightning_module.py', '--epochs=1')
    trainer = run_example('lightning_module.py', '--epochs=2', '--resume')
    assert trainer.global_step == 4
    [optimizer] = load('work_dirs/lightning_module/last.ckpt')['optimizer_states']
    assert_anchors_are_imagenet(optimizer, steps=4)
