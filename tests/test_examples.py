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
    budgets = {number: group['rollback'] for group in optimizer['param_groups'] for number in group['params']}
    assert {group['rollback_rule'] for group in optimizer['param_groups'] if group['rollback']} == {'drift'}
    anchors = {number: state['anchor'] for number, state in optimizer['state'].items() if 'anchor' in state}
    assert anchors.keys() == {number for number, budget in budgets.items() if budget}
    assert len(budgets) == 158 and len(anchors) == 158 - 2  # the new head
    given = {budget for budget in budgets.values() if budget}
    assert min(given) == 0.04 and 0.14 < max(given) <= 0.16 and len(given) >= 17
    for value in imagenet[: len(anchors)]:
        assert any(anchor.shape == value.shape and torch.equal(anchor, value) for anchor in anchors.values())


def assert_kept(found: dict, said: str) -> None:
    """What was kept is printed, and is more than chance keeps of 1,000 classes and less than all."""
    assert 0.001 < found['drift'] <= 0.16 and 0.05 < found['agreement'] < 1 and 0 <= found['accuracy'] <= 1
    assert all(f'{name} {found[name]:.3f}' in said.splitlines()[-1] for name in ('drift', 'agreement', 'accuracy'))


def test_plain_pytorch(folder, capsys):
    run_example('plain_pytorch.py', '--epochs=1')
    found = run_example('plain_pytorch.py', '--epochs=2', '--resume')
    assert_kept(found, capsys.readouterr().out)
    saved = load('work_dirs/plain_pytorch.pth')
    assert saved['epoch'] == 2
    assert_anchors_are_imagenet(saved['optimizer'], steps=4)


def test_timm_model(folder, capsys):
    _, optimizer, found = run_example('timm_model.py', '--epochs=1')
    assert_kept(found, capsys.readouterr().out)
    assert_anchors_are_imagenet(optimizer.state_dict(), steps=2)
    decays = {p.ndim > 1: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert decays == {True: 0.05, False: 0.0}


def test_huggingface_trainer(folder, capsys):
    pytest.importorskip('accelerate', reason='the Trainer of transformers needs it')
    run_example('huggingface_trainer.py', '--epochs=1')
    trainer, found = run_example('huggingface_trainer.py', '--epochs=2', '--resume')
    assert_kept(found, capsys.readouterr().out)
    assert trainer.state.global_step == 4
    optimizer = load('work_dirs/huggingface_trainer/checkpoint-4/optimizer.pt')
    assert_anchors_are_imagenet(optimizer, steps=4)


def test_lightning_module(folder, capsys):
    pytest.importorskip('lightning')
    run_example('lightning_module.py', '--epochs=1')
    trainer = run_example('lightning_module.py', '--epochs=2', '--resume')
    assert trainer.global_step == 4
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert_kept(found, capsys.readouterr().out)
    [optimizer] = load('work_dirs/lightning_module/last.ckpt')['optimizer_states']
    assert_anchors_are_imagenet(optimizer, steps=4)


@pytest.mark.parametrize('example', sorted((ROOT / 'examples').glob('*.py')), ids=lambda file: file.stem)
def test_an_example_has_less_than_80_lines(example):
    assert len(example.read_text().splitlines()) < 80
