import sys

import pytest
import torch
import torchvision
from conftest import load

import olor_mm  # noqa: F401
from tools.model_converters.torchvision_mobilenet_v2 import convert, main


@pytest.fixture(scope='module')
def torchvision_model(data):
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(data / 'weights/mobilenet_v2_torchvision.pth', weights_only=True))
    return model.eval()


@pytest.fixture(scope='module')
def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('library, last', [('mmdet', 18), ('mmseg', 17), ('mmpretrain', 18)])
def test_backbone_gives_the_same_features(torchvision_model, images, data, library, last):
    models = pytest.importorskip(f'{library}.models.backbones')
    backbone = models.MobileNetV2(out_indices=(7 if last == 18 else 6,))
    backbone.eval()
    state = load(data / f'weights/mobilenet_v2_{library}.pth')['state_dict']
    if library == 'mmpretrain':
        state = {name.removeprefix('backbone.'): value for name, value in state.items() if name.startswith('backbone.')}
    backbone.load_state_dict(state, strict=True)
    with torch.no_grad():
        ours, theirs = backbone(images), torchvision_model.features[: last + 1](images)
    ours = ours[0] if isinstance(ours, tuple) else ours
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() == 0


def test_classifier_gives_the_same_scores(torchvision_model, images, data):
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(get_config('mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py').model)
    model.eval()
    model.load_state_dict(load(data / 'weights/mobilenet_v2_mmpretrain.pth')['state_dict'], strict=True)
    with torch.no_grad():
        assert (model(images, mode='tensor') - torchvision_model(images)).abs().max() == 0


def test_command_line_writes_what_the_function_gives(data, tmp_path, monkeypatch):
    source = data / 'weights/mobilenet_v2_torchvision.pth'
    monkeypatch.setattr(sys, 'argv', ['torchvision_mobilenet_v2.py', str(source), str(tmp_path)])
    main()
    for library in ('mmdet', 'mmseg', 'mmpretrain'):
        written = load(tmp_path / f'mobilenet_v2_{library}.pth')['state_dict']
        expected = convert(load(source), library)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[name], expected[name]) for name in expected)
