"""Models of several networks: each is indexed from its own input, as it would be by itself."""

import importlib
import random
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

import timm
import torchvision
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import olor_mm  # noqa: F401
from olor_mm.layers import backbones, layer_index, networks
from tools.analysis_tools.stock_configs import forget_weights, uninitialised

STOCK = {  # backbones of OpenMMLab
    'ResNet-18': dict(type='mmpretrain.ResNet', depth=18),
    'MobileNetV2': dict(type='mmpretrain.MobileNetV2', out_indices=(7,)),
    'VGG-11': dict(type='mmpretrain.VGG', depth=11),
    'ViT': dict(type='mmpretrain.VisionTransformer', arch='deit-tiny'),
    'Swin': dict(type='mmdet.SwinTransformer', embed_dims=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 3, 4)),
    'MiT': dict(type='mmseg.MixVisionTransformer', num_layers=[2, 2, 2, 2]),
    'CSPDarknet, of cut images': dict(type='mmdet.CSPDarknet', deepen_factor=0.33, widen_factor=0.25),
}
OTHER = {  # models whose class says nothing, some with a head
    'torchvision ResNet-18': torchvision.models.resnet18,
    'torchvision VGG-11': torchvision.models.vgg11,
    'timm hybrid': lambda: timm.create_model('vit_tiny_r_s16_p8_224'),
    'timm ConvNeXt': lambda: timm.create_model('convnext_atto'),
}


def built(name: str) -> nn.Module:
    with uninitialised():
        return MODELS.build(STOCK[name]) if name in STOCK else OTHER[name]()


def named(**parts: nn.Module) -> nn.Module:
    """A model with these parts and a head."""
    return nn.ModuleDict(dict(**parts, head=nn.Linear(2, 2)))


def alone(name: str) -> dict[str, tuple[int, int]]:
    """The layers of a network that is all of a model, or its backbone."""
    if name in OTHER:
        return layer_index(built(name))
    index = layer_index(named(backbone=built(name)))
    return {key.removeprefix('backbone.'): layer for key, layer in index.items() if key.startswith('backbone.')}


def assert_each_is_indexed_as_alone(model: nn.Module, kinds: dict[str, str]) -> None:
    index = layer_index(model)
    for prefix, kind in kinds.items():
        found = {key.removeprefix(prefix): layer for key, layer in index.items() if key.startswith(prefix)}
        assert found == alone(kind), (prefix, kind)
    deepest = max(n for _, n in index.values())
    outside = {layer for key, layer in index.items() if not key.startswith(tuple(kinds))}
    assert outside == {(deepest, deepest)}


@pytest.mark.parametrize('kind', [*STOCK, *OTHER])
@pytest.mark.parametrize(
    'names',
    [('backbone', 'backbone_ir'), ('img_backbone', 'pts_backbone'), ('teacher', 'student'), ('left', 'right')],
    ids='+'.join,
)
def test_two_networks_are_indexed_alike(kind, names):
    model = named(**{name: built(kind) for name in names})
    index = layer_index(model)
    first, second = ([index[f'{name}.{key}'] for key, _ in model[name].named_parameters()] for name in names)
    assert first == second and len(set(first)) > 3


@pytest.mark.parametrize('seed', range(16))
def test_random_compositions_of_networks_give_each_the_layers_it_has_alone(seed):
    draw = random.Random(seed)
    kinds, model = {}, nn.ModuleDict()
    for kind in draw.sample([*STOCK, *OTHER], draw.choice([2, 3])):
        name = ''.join(draw.choices('abcdefghijklmnopqrstuvwxyz', k=draw.randint(1, 6)))
        depth = draw.choice([0, 1, 1, 2]) if kind in STOCK else 0
        net = built(kind)
        for i in range(depth):  # in a neck, a list, a wrapper
            net = nn.ModuleList([net]) if i else nn.ModuleDict(dict(proj=nn.Linear(2, 2), net=net))
        model[name] = net
        kinds[f'{name}.' + '0.' * max(depth - 1, 0) + 'net.' * (depth > 0)] = kind
    model['fuse'] = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    assert_each_is_indexed_as_alone(model, kinds)


def test_detectors_in_a_model_have_their_backbones_necks_and_heads():
    def detector():
        parts = dict(backbone=built('ResNet-18'), neck=nn.Conv2d(512, 8, 1), bbox_head=nn.Conv2d(8, 4, 1))
        return nn.ModuleDict(parts)

    model = nn.ModuleDict(dict(student=detector(), teacher=detector()))
    assert_each_is_indexed_as_alone(model, {'student.backbone.': 'ResNet-18', 'teacher.backbone.': 'ResNet-18'})


@pytest.mark.parametrize('name', ['backbone', 'backbones', 'net'])
def test_a_module_around_two_networks_stands_for_both(name):
    both = nn.ModuleDict(dict(rgb=built('MobileNetV2'), ir=built('ResNet-18'), gate=nn.Conv2d(512, 8, 1)))
    model = named(**{name: both})
    assert_each_is_indexed_as_alone(model, {f'{name}.rgb.': 'MobileNetV2', f'{name}.ir.': 'ResNet-18'})
    assert [prefix for prefix, _ in backbones(model)] == [f'{name}.rgb.', f'{name}.ir.']


def test_words_are_an_input_too():
    layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3))
    bert = nn.ModuleDict(dict(words=nn.Embedding(3000, 8), layers=layers))
    index = layer_index(named(bert=bert, backbone=built('ResNet-18')))
    assert index['bert.words.weight'] == (0, 4)
    assert index['bert.layers.2.linear1.weight'] == (3, 4)


def points() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32))


def bands() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(13, 8, 3), *blocks(8), nn.Conv2d(8, 32, 1))


def sound() -> nn.Module:
    return nn.ModuleDict(dict(stem=nn.Conv1d(80, 8, 3), layers=nn.ModuleList(blocks(8, 3)), last=nn.Linear(8, 32)))


@pytest.mark.parametrize('twin', [points, bands, sound])
def test_twins_are_two_networks_whatever_they_take(twin):
    model = named(student=twin(), teacher=twin())
    index, single = layer_index(model), layer_index(twin())
    for name, layer in single.items():
        assert index[f'student.{name}'] == index[f'teacher.{name}'] == layer


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)


def blocks(width: int, count: int = 2) -> nn.Sequential:
    return nn.Sequential(*(Block(width) for _ in range(count)))


# what begins with an image, or is called after a backbone, and is no network of its own
PARTS = {
    'a mask encoder': lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 16, 3), nn.Conv2d(16, 8, 1)),
    'blocks of a neck': lambda: blocks(8),
    'a decoder with queries': lambda: nn.Sequential(nn.Embedding(900, 8), nn.Linear(8, 8), blocks(8)),
}


@pytest.mark.parametrize('name', ['backbone_neck', 'x'])
@pytest.mark.parametrize('part', PARTS.values(), ids=PARTS)
def test_necks_and_heads_are_no_networks(part, name):
    model = named(backbone=built('ResNet-18'), **{name: part()})
    assert_each_is_indexed_as_alone(model, {'backbone.': 'ResNet-18'})


ONE_INPUT = {
    'equal stages, one after the other': nn.ModuleDict(
        dict(stem=nn.Conv2d(9, 8, 3), down=blocks(8, 3), up=blocks(8, 3), fc=nn.Linear(8, 2))
    ),
    'stages of a toy, as wide as an image': nn.ModuleDict(
        dict(stem=nn.Conv2d(3, 4, 3), stage1=blocks(4), stage2=blocks(4), fc=nn.Linear(4, 2))
    ),
    'encoder and decoder': nn.ModuleDict(
        dict(encoder=nn.Sequential(nn.Conv2d(3, 8, 3), *blocks(8)), decoder=blocks(8), out=nn.Conv2d(8, 1, 1))
    ),
    'two stems of one network': nn.ModuleDict(
        dict(
            rgb=nn.Sequential(nn.Conv2d(3, 8, 3), *blocks(8, 1)),
            depth=nn.Sequential(nn.Conv2d(1, 8, 3), *blocks(8, 1)),
            trunk=blocks(32, 4),
            out=nn.Conv2d(8, 1, 1),
        )
    ),
}


@pytest.mark.parametrize('model', ONE_INPUT.values(), ids=ONE_INPUT)
def test_a_model_with_one_network_is_indexed_as_a_whole(model):
    assert [network.prefix for network in networks(model)] == ['']
    assert len({i for i, _ in layer_index(model).values()}) >= 6


def test_only_what_is_declared_counts_as_a_backbone_for_linear_probing():
    model = named(backbone=built('ResNet-18'), sketch=built('torchvision ResNet-18'))
    assert [prefix for prefix, _ in backbones(model)] == ['backbone.']
    assert [network.prefix for network in networks(model)] == ['backbone.', 'sketch.']


# library and stock config to the networks in it
CONFIGS = {
    'mmdet/detectors/detectors_htc-r50_1x_coco.py': ['backbone.', 'neck.rfp_modules.0.'],
    'mmdet/soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': [
        'student.backbone.',
        'teacher.backbone.',
    ],
    'mmpretrain/mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k.py': [
        'backbone.',
        'momentum_encoder.module.0.',
    ],
    'mmseg/san/san-vit-b16_coco-stuff164k-640x640.py': ['image_encoder.', 'text_encoder.', 'decode_head.'],
    'mmseg/bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py': ['backbone.'],  # of two branches
}


@pytest.mark.parametrize('config', CONFIGS)
def test_networks_of_stock_models(config):
    library, _, path = config.partition('/')
    cfg = Config.fromfile(Path(importlib.import_module(library).__file__).parent / '.mim/configs' / path)
    forget_weights(cfg.model)
    with uninitialised(), DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(cfg.model)
    assert [network.prefix for network in networks(model)] == CONFIGS[config]
    index = layer_index(model)
    for prefix in CONFIGS[config]:
        layers = [index[name][0] for name, _ in model.named_parameters() if name.startswith(prefix)]
        assert min(layers) == 0 and len(set(layers)) > 8
