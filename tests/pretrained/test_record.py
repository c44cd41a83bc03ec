import copy

import mmengine.runner.checkpoint as checkpoint
import pytest
import torch
import torchvision
from mmdet.registry import MODELS as DET
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as PRETRAIN
from torch import nn

import olor_mm  # noqa: F401
from olor_mm.pretrained import LoadRecord

LOADERS = {
    'torch': lambda model, state: model.load_state_dict(state, strict=False),
    'mmengine': lambda model, state: checkpoint.load_state_dict(model, state),
}
every_loader = pytest.mark.parametrize('loader', LOADERS.values(), ids=LOADERS)


def names(model, parameters):
    lookup = {p: name for name, p in model.named_parameters()}
    return {lookup[p] for p in parameters}


@every_loader
def test_what_was_loaded_decides(loader):
    model = torchvision.models.resnet18()
    record = LoadRecord(model)
    state = torchvision.models.resnet18().state_dict()
    del state['layer1.0.conv1.weight'], state['bn1.bias']
    loader(model, state)
    everything = {name for name, _ in model.named_parameters()}
    assert names(model, record.unchanged(model.parameters())) == everything - {'layer1.0.conv1.weight', 'bn1.bias'}


def test_another_shape_is_not_loaded():
    model = torchvision.models.resnet18(num_classes=3)
    record = LoadRecord(model)
    checkpoint.load_state_dict(model, torchvision.models.resnet18().state_dict())
    new = {name for name, _ in model.named_parameters()} - names(model, record.unchanged(model.parameters()))
    assert new == {'fc.weight', 'fc.bias'}


@pytest.mark.parametrize('spoil', [nn.init.normal_, lambda p: p.data.zero_(), lambda p: p.data.view(-1)[-1:].add_(1)])
def test_initialising_again_withdraws_the_mark(spoil):
    model = torchvision.models.resnet18()
    record = LoadRecord(model)
    model.load_state_dict(torchvision.models.resnet18().state_dict())
    spoil(model.layer1[0].conv1.weight)
    kept = names(model, record.unchanged(model.parameters()))
    assert {name for name, _ in model.named_parameters()} - kept == {'layer1.0.conv1.weight'}
    assert len(record.loaded(model.parameters())) == len(kept) + 1
    model.load_state_dict(torchvision.models.resnet18().state_dict())
    assert len(record.unchanged(model.parameters())) == len(kept) + 1


def test_nothing_is_marked_before_loading_or_after_close():
    model = torchvision.models.resnet18()
    record = LoadRecord(model)
    assert not record.unchanged(model.parameters())
    record.close()
    model.load_state_dict(torchvision.models.resnet18().state_dict())
    assert len(record) == 0
    assert not any(module._load_state_dict_pre_hooks for module in model.modules())


def test_shared_parameter_and_wrapper_and_copy():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    inner[1].weight = inner[0].weight
    record = LoadRecord(inner)
    copied = copy.deepcopy(inner)  # as EMAHook makes one; its loading is not ours
    copied.load_state_dict(inner.state_dict())
    assert len(record) == 0
    nn.Sequential(inner).load_state_dict({f'0.{key}': value for key, value in inner.state_dict().items()})
    assert len(record.unchanged(inner.parameters())) == 3


def test_half_precision_checkpoint_counts():
    model = torchvision.models.resnet18()
    record = LoadRecord(model)
    model.load_state_dict(
        {
            key: value.half() if value.is_floating_point() else value
            for key, value in torchvision.models.resnet18().state_dict().items()
        }
    )
    assert len(record.unchanged(model.parameters())) == len(list(model.parameters()))


def test_position_embedding_that_the_module_resizes_counts():
    small = PRETRAIN.build(dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=32))
    large = PRETRAIN.build(dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=64))
    record = LoadRecord(large)
    checkpoint.load_state_dict(large, small.state_dict())
    assert large.pos_embed.shape != small.pos_embed.shape
    assert len(record.unchanged(large.parameters())) == len(list(large.parameters()))


def test_mask_rcnn_with_other_classes_leaves_its_class_layers_new():
    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.pop('init_cfg')
    with DefaultScope.overwrite_default_scope('mmdet'):
        coco = DET.build(copy.deepcopy(cfg))
        cfg.roi_head.bbox_head.num_classes = cfg.roi_head.mask_head.num_classes = 3
        model = DET.build(cfg)
    record = LoadRecord(model)
    checkpoint.load_state_dict(model, coco.state_dict())
    new = {name for name, _ in model.named_parameters()} - names(model, record.unchanged(model.parameters()))
    assert new == {
        f'roi_head.{layer}.{kind}'
        for kind in ('weight', 'bias')
        for layer in ('bbox_head.fc_cls', 'bbox_head.fc_reg', 'mask_head.conv_logits')
    }


def test_a_number_loaded_from_a_tensor_of_one_element_counts():
    model = nn.Module()
    model.scale = nn.Parameter(torch.tensor(1.0))
    record = LoadRecord(model)
    model.load_state_dict({'scale': torch.tensor([3.0])})
    assert record.unchanged([model.scale]) == [model.scale]
