import pytest
from conftest import stock_models
from torch import nn

import olor_mm  # noqa: F401
from olor_mm.layers import layer_index, names_under

torchvision = pytest.importorskip('torchvision')


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Linear(2, 2)
        self.bbox_head = nn.Linear(2, 2)


def hrnet_stage(modules, branches):
    return dict(
        num_modules=modules,
        num_branches=branches,
        block='BASIC',
        num_blocks=(2,) * branches,
        num_channels=tuple(8 * 2**i for i in range(branches)),
    )


# config, number of blocks, and for some parameters of the backbone the block it belongs to
BACKBONES = {
    'mmdet ResNet-50': (
        dict(type='mmdet.ResNet', depth=50),
        16,
        {
            'conv1.weight': 0,
            'bn1.bias': 0,
            'layer1.0.downsample.0.weight': 1,
            'layer1.2.bn3.weight': 3,
            'layer2.0.conv1.weight': 4,
            'layer4.2.conv3.weight': 16,
        },
    ),
    'mmdet ResNeXt-101': (
        dict(type='mmdet.ResNeXt', depth=101, groups=32, base_width=4),
        33,
        {'conv1.weight': 0, 'layer3.22.conv2.weight': 30, 'layer4.2.conv3.weight': 33},
    ),
    'mmdet RegNet': (dict(type='mmdet.RegNet', arch='regnetx_3.2gf'), 25, {'layer2.0.conv1.weight': 3}),
    'mmdet MobileNetV2': (
        dict(type='mmdet.MobileNetV2'),
        17,
        {
            'conv1.conv.weight': 0,
            'layer1.0.linear_conv.bn.bias': 1,
            'layer7.0.depthwise_conv.conv.weight': 17,
            'conv2.conv.weight': 17,
        },
    ),
    'mmdet EfficientNet-B0': (
        dict(type='mmdet.EfficientNet', arch='b0'),
        16,
        {'layers.0.conv.weight': 0, 'layers.1.0.se.conv1.conv.weight': 1},
    ),
    'mmdet Swin-T': (
        dict(type='mmdet.SwinTransformer'),
        12,
        {
            'patch_embed.projection.weight': 0,
            'stages.0.blocks.1.ffn.layers.1.weight': 2,
            'stages.0.downsample.reduction.weight': 3,
            'stages.2.blocks.5.attn.w_msa.qkv.weight': 10,
            'stages.3.blocks.1.norm2.weight': 12,
            'norm3.weight': 12,
        },
    ),
    'mmdet HRNet': (
        dict(
            type='mmdet.HRNet',
            extra=dict(
                stage1=dict(num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(2,), num_channels=(16,)),
                stage2=hrnet_stage(1, 2),
                stage3=hrnet_stage(2, 3),
                stage4=hrnet_stage(1, 4),
            ),
        ),
        2 + 4 + 12 + 8,
        {'conv2.weight': 0, 'stage2.0.branches.1.1.conv2.weight': 6, 'stage4.0.branches.3.1.conv2.weight': 26},
    ),
    'mmseg MiT-B0': (
        dict(type='mmseg.MixVisionTransformer', num_layers=[2, 2, 2, 2]),
        8,
        {
            'layers.0.0.projection.weight': 0,
            'layers.0.1.1.norm1.weight': 2,
            'layers.1.0.projection.weight': 3,
            'layers.3.2.weight': 8,
        },
    ),
    'mmseg ViT': (
        dict(type='mmseg.VisionTransformer', num_layers=3, embed_dims=32, num_heads=2),
        3,
        {'cls_token': 0, 'pos_embed': 0, 'patch_embed.projection.weight': 0, 'layers.2.ffn.layers.1.weight': 3},
    ),
    'mmpretrain ViT (its own get_layer_depth)': (
        dict(type='mmpretrain.VisionTransformer', arch='deit-tiny'),
        12,
        {'cls_token': 0, 'pos_embed': 0, 'layers.11.ln2.weight': 12, 'ln1.weight': 13},
    ),
    'mmpretrain ResNet-18 (get_layer_depth gives up)': (
        dict(type='mmpretrain.ResNet', depth=18),
        8,
        {'conv1.weight': 0, 'layer1.0.conv1.weight': 1, 'layer4.1.bn2.bias': 8},
    ),
    'mmpretrain VGG-11 (a plain chain)': (
        dict(type='mmpretrain.VGG', depth=11),
        7,
        {'features.0.conv.weight': 0, 'features.2.conv.weight': 1},
    ),
    'mmpretrain RepVGG (its stem is a block)': (
        dict(type='mmpretrain.RepVGG', arch='A0'),
        21,
        {'stem.branch_3x3.conv.weight': 0, 'stage_1.0.branch_3x3.conv.weight': 1},
    ),
}


@pytest.mark.parametrize('config, blocks, expected', BACKBONES.values(), ids=BACKBONES)
def test_stock_backbones(config, blocks, expected):
    model = Detector(stock_models(config['type'].partition('.')[0]).build(config))
    index = layer_index(model)
    assert list(index) == [name for name, _ in model.named_parameters()]
    n = blocks + 1
    assert {name: index[f'backbone.{name}'] for name in expected} == {name: (i, n) for name, i in expected.items()}
    for name in ('neck.weight', 'bbox_head.bias'):
        assert index[name] == (n, n)
    within = [i for name, (i, _) in index.items() if name.startswith('backbone.')]
    assert set(range(blocks + 1)) <= set(within) <= set(range(n + 1))


def test_a_get_layer_depth_that_does_not_know_its_own_names_is_not_believed():
    model = Detector(stock_models('mmpretrain').build(dict(type='mmpretrain.HiViT', arch='tiny')))
    index = layer_index(model)
    layers = [i for name, (i, _) in index.items() if name.startswith('backbone.')]
    assert len(set(layers)) > 10
    assert max(layers.count(layer) for layer in set(layers)) < len(layers) / 4


def test_a_backbone_without_layers_leaves_the_head_beyond_it():
    model = Detector(nn.Identity())
    assert set(layer_index(model).values()) == {(1, 1)}


def test_model_without_a_backbone_is_one():
    index = layer_index(torchvision.models.resnet18())
    assert index['conv1.weight'] == (0, 9)
    assert index['layer1.0.conv1.weight'] == (1, 9)
    assert index['layer4.1.bn2.bias'] == (8, 9)
    assert index['fc.weight'] == (9, 9)


def test_tensor_method_counts_as_the_reference_does():
    model = Detector(torchvision.models.resnet18())
    index = layer_index(model, 'tensor')
    tensors = len(list(model.backbone.parameters()))
    assert [i for i, _ in index.values()][:tensors] == list(range(tensors))
    assert index['backbone.fc.bias'] == index['neck.weight'] == (tensors - 1, tensors - 1)


def test_overrides_take_the_longest_prefix_of_whole_parts():
    model = Detector(torchvision.models.resnet18())
    index = layer_index(model, overrides={'backbone.layer1': 7, 'backbone.layer1.0': 5, 'neck': 0})
    assert index['backbone.layer1.0.conv1.weight'][0] == 5
    assert index['backbone.layer1.1.conv1.weight'][0] == 7
    assert index['neck.weight'][0] == 0
    assert index['backbone.layer2.0.conv1.weight'][0] == 3
    with pytest.raises(ValueError, match=r"no parameter under 'backbone.layer'; did you mean 'backbone.layer\d'"):
        layer_index(model, overrides={'backbone.layer': 1})
    for bad in (99, -1, 1.5, True):
        with pytest.raises(ValueError, match=r"layer_index\['neck'\]=.* is not an integer from 0"):
            layer_index(model, overrides={'neck': bad})


def test_unknown_method_and_prefix_name_what_exists():
    model = Detector(torchvision.models.resnet18())
    with pytest.raises(ValueError, match="layer_index='depth' is unknown; take one of 'block', 'tensor'"):
        layer_index(model, 'depth')
    with pytest.raises(ValueError, match='its parts are backbone, bbox_head, neck'):
        names_under('zzz', layer_index(model), 'here')
