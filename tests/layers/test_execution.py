"""The layer index of stock backbones, checked against their forward pass."""

import csv
import importlib
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

import timm
import torch
import transformers
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from execution import execution_order, order_violations, repeated_blocks
from olor_mm.layers import backbones, layer_index
from tools.analysis_tools.stock_configs import check_order, forget_weights, uninitialised

TABLE = Path(__file__).parents[2] / 'docs' / 'en' / 'coverage.csv'


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv2(self.conv1(x))


class Backbone(nn.Module):
    """Registers its parts in another order than it uses them in."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.stem = nn.Conv2d(3, 4, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in reversed(self.blocks):
            x = block(x)
        return x


def parts_in_order(executed):
    return list(dict.fromkeys(name.rsplit('.', 2 if 'blocks' in name else 1)[0] for name in executed))


def test_the_order_is_that_of_the_forward_pass():
    executed = execution_order(Backbone(), torch.rand(1, 3, 8, 8))
    assert parts_in_order(executed) == ['stem', 'blocks.2', 'blocks.1', 'blocks.0']
    assert len(executed) == 2 + 3 * 4
    assert repeated_blocks(Backbone()) == ['blocks.0', 'blocks.1', 'blocks.2']


@pytest.mark.parametrize(
    'layers, expected',
    [
        ((0, 3, 2, 1), []),
        ((0, 1, 2, 3), ['blocks.1', 'blocks.0']),
        ((0, 2, 2, 1), ['share layer 2']),
        ((2, 3, 2, 1), ['blocks.2']),
    ],
)
def test_a_wrong_index_is_found(layers, expected):
    model = Backbone()
    parts = dict(zip(['stem', 'blocks.0', 'blocks.1', 'blocks.2'], layers))
    index = {
        f'backbone.{name}': (layer, 4)
        for part, layer in parts.items()
        for name, _ in model.named_parameters()
        if name.startswith(f'{part}.')
    }
    found = order_violations(model, index, execution_order(model, torch.rand(1, 3, 8, 8)), 'backbone.')
    assert bool(found) == bool(expected)
    assert all(any(text in violation for violation in found) for text in expected)


def test_a_block_in_two_layers_is_found():
    model = Backbone()
    index = {name: (9 if name == 'blocks.0.conv2.weight' else 1, 9) for name, _ in model.named_parameters()}
    found = order_violations(model, index, execution_order(model, torch.rand(1, 3, 8, 8)))
    assert 'block blocks.0 has the layers [1, 9]' in found


@cache
def smallest_of_each_class() -> dict[str, dict]:
    with open(TABLE) as file:
        rows = [row for row in csv.DictReader(file) if 'in order' in row['order']]
    smallest = {}
    for row in sorted(rows, key=lambda row: int(row['parameters'])):
        smallest.setdefault(row['backbone'], row)
    return smallest


def test_sixty_classes_of_backbones_are_checked():
    assert len({name for classes in smallest_of_each_class() for name in classes.split(' + ')}) >= 60


@pytest.mark.parametrize('backbone', smallest_of_each_class())
def test_the_index_of_stock_backbones_follows_their_forward_pass(backbone):
    row = smallest_of_each_class()[backbone]
    root = Path(importlib.import_module(row['library']).__file__).parent / '.mim' / 'configs'
    cfg = Config.fromfile(root / row['config'])
    forget_weights(cfg.model)
    with uninitialised(), DefaultScope.overwrite_default_scope(cfg.get('default_scope') or row['library']):
        model = MODELS.build(cfg.model)
    index = layer_index(model)
    for prefix, part in backbones(model):
        assert check_order(part, index, prefix).endswith('parameters in order')


# of timm: numbered stages, blocks in sequences of sequences, a plain chain, lists side by side, a hybrid
TIMM = {
    'regnety_002': 13,
    'dla34': 12,
    'vgg11': 10,
    'davit_tiny': 9,
    'twins_svt_small': 18,
    'vit_small_r26_s32_224': 12,
    'maxvit_tiny_rw_224': 11,
}


@pytest.mark.parametrize('name', TIMM)
def test_models_of_timm_have_a_layer_for_each_block(name):
    with torch.device('meta'):
        model = timm.create_model(name).eval()
    index = layer_index(model)
    assert {n for _, n in index.values()} == {TIMM[name] + 1}
    size = model.default_cfg['input_size'][-1]
    deepest = 0
    for parameter in execution_order(model, torch.rand(1, 3, size, size, device='meta')):
        assert index[parameter][0] >= deepest, parameter
        deepest = index[parameter][0]
    assert deepest == TIMM[name] + 1 or name == 'vgg11'


@pytest.mark.parametrize('features_only', [False, True])
def test_a_wrapper_of_timm_counts_as_the_model_within(features_only):
    cfg = dict(type='mmpretrain.TIMMBackbone', model_name='regnety_002', features_only=features_only)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        index = layer_index(MODELS.build(cfg))
    assert len(set(index.values())) >= 14


@pytest.mark.parametrize('family, blocks', [('Segformer', 8), ('CLIPVision', 12), ('ConvNext', 18)])
def test_models_of_huggingface_have_a_layer_for_each_block(family, blocks):
    cfg = getattr(transformers, f'{family}Config')()
    model = nn.ModuleDict(dict(backbone=getattr(transformers, f'{family}Model')(cfg).eval())).to('meta')
    index = layer_index(model)
    assert {n for _, n in index.values()} == {blocks + 1}
    images = torch.rand(1, 3, 224, 224, device='meta')
    path = [index[f'backbone.{name}'][0] for name in execution_order(model['backbone'], images)]
    assert path == sorted(path) and set(path) >= set(range(1, blocks + 1))
