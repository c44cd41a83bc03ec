"""Checkpoints are found and loaded before training as training loads them."""

import re

import pytest
import torch
from classifiers import classifier
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner.checkpoint import get_torchvision_models
from mmpretrain.models import MobileNetV2
from mmpretrain.registry import MODELS

from olor_mm.inspect.rollback_table import examine


@pytest.mark.parametrize(
    'wrapped, message',
    [
        (lambda state: dict(model=state), "'model'"),
        (lambda state: dict(state_dict=dict(params=state)), "'params'"),
        (lambda state: dict(state_dict={f'net.{name}': value for name, value in state.items()}), r"'net\.backbone"),
    ],
)
def test_it_says_why_nothing_is_loaded(data, tmp_path, wrapped, message):
    state = torch.load(data / 'weights/mobilenet_v2_mmpretrain.pth', weights_only=True)['state_dict']
    torch.save(wrapped(state), tmp_path / 'other.pth')
    report = examine(
        classifier(**{'load_from': str(tmp_path / 'other.pth'), 'model.backbone.init_cfg': None}), images=8
    )
    assert any(re.search(f'other.pth.*{message}', warning) for warning in report.warnings), report.warnings


class Held(MobileNetV2):
    """Keeps its checkpoint in an attribute, as DetectoRS does."""

    def __init__(self, held: str, **options):
        super().__init__(init_cfg=None, **options)
        self.held = held

    def init_weights(self):
        load_checkpoint(self, self.held, strict=False)


class Converted(MobileNetV2):
    """Loads what it has in init_cfg in a way of its own, as Swin does."""

    def init_weights(self):
        self.load_state_dict(CheckpointLoader.load_checkpoint(self.init_cfg['checkpoint'])['state_dict'])


MODELS.register_module(module=Held)
MODELS.register_module(module=Converted)


@pytest.mark.parametrize('is_here', [True, False])
@pytest.mark.parametrize('kind', ['init_cfg', 'Held', 'Converted'])
def test_checkpoints_are_found_whatever_way_a_model_loads_them(data, tmp_path, kind, is_here):
    state = torch.load(data / 'weights/mobilenet_v2_mmpretrain.pth', weights_only=True)['state_dict']
    own = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}
    torch.save(dict(state_dict=own), tmp_path / 'own.pth')
    file = str(tmp_path / 'own.pth') if is_here else 'https://no.where/own.pth'
    cfg = classifier()
    backbone = dict(type=MobileNetV2 if kind == 'init_cfg' else kind, widen_factor=1.0)
    given = dict(held=file) if kind == 'Held' else dict(init_cfg=dict(type='Pretrained', checkpoint=file))
    cfg.model.backbone = {**backbone, **given}
    report = examine(cfg, images=640)
    assert list(report.sources) == [file] and (report.sources[file] == 'loaded') == is_here
    assert {row.name for row in report.parameters if row.source == file} == {
        f'backbone.{n}' for n in own if n.endswith(('weight', 'bias'))
    }
    assert len([row for row in report.parameters if any(row.w)]) == 156 and not report.warnings


@pytest.mark.slow
@pytest.mark.parametrize('is_here', [True, False])
@pytest.mark.parametrize(
    'stock, checkpoint',
    [
        ('detectors/detectors_cascade-rcnn_r50_1x_coco.py', 'torchvision://resnet50'),
        ('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', 'swin_tiny_patch4_window7_224.pth'),
    ],
)
def test_checkpoints_of_stock_models_are_found(stock, checkpoint, is_here, cache, weights_at_once):
    cfg = get_config(f'mmdet::{stock}')
    if is_here:
        with DefaultScope.overwrite_default_scope('mmdet'):
            backbone = MODELS.build(cfg.model).backbone
        name = checkpoint if '://' not in checkpoint else get_torchvision_models()[checkpoint[14:]]
        state = {key: value + 1 for key, value in backbone.state_dict().items()}
        torch.save(state, cache / name.rpartition('/')[2])
    report = examine(cfg, images=500)
    [source] = report.sources
    assert source.endswith(checkpoint) and (report.sources[source] == 'loaded') == is_here
    held = [row for row in report.parameters if row.source == source]
    assert held and all(row.name.startswith(('backbone', 'neck.rfp_modules')) for row in held)
    assert any(any(row.w) for row in held) and not any('stop' in warning for warning in report.warnings)


def test_a_checkpoint_that_hardly_fits_is_named(data, tmp_path):
    file = tmp_path / 'other.pth'
    state = torch.load(data / 'weights/mobilenet_v2_mmpretrain.pth', weights_only=True)['state_dict']
    torch.save(dict(state_dict=state), file)
    report = examine(classifier(load_from=str(file)), images=640)
    [warning] = report.warnings
    assert '2 parameters have another shape' in warning and 'head.fc.weight, head.fc.bias' in warning
    assert '(1000, 1280) there and (10, 1280) here' in warning
    assert {row.name: row.source for row in report.parameters}['backbone.conv1.conv.weight'] == str(file)

    few = {name: value for name, value in state.items() if 'layer1' in name}
    torch.save(dict(state_dict=few), file)
    report = examine(classifier(**{'load_from': str(file), 'model.backbone.init_cfg': None}), images=640)
    [warning] = report.warnings
    assert re.match('Only 0% of the backbone is pre-trained', warning)
    assert {row.name for row in report.parameters if any(row.w)} == {n for n in few if n.endswith(('weight', 'bias'))}
