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
    assert not any(m._load_state_dict_pre_hooks or m._load_state_dict_post_hooks for m in model.modules())


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


class Renaming(nn.Linear):
    """A layer whose weight had another name and another order once, and which converts it while loading."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f'{prefix}kernel' in state_dict:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}kernel').T
        super()._load_from_state_dict(state_dict, prefix, *args)


class Copying(nn.Linear):
    """A layer that takes what it needs by itself."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        with torch.no_grad():
            self.weight.copy_(state_dict[f'{prefix}kernel'].T)


class PassingOver(nn.Linear):
    """A layer that never loads, like the heads of mmdet that opt out."""

    def _load_from_state_dict(self, *args):
        pass


@every_loader
@pytest.mark.parametrize('layer', [Renaming, Copying])
def test_what_a_module_renames_while_it_loads_counts(loader, layer):
    model = nn.Sequential(layer(2, 3), layer(3, 2))
    record = LoadRecord(model)
    loader(model, {'0.kernel': torch.rand(2, 3), '1.kernel': torch.rand(3, 2), '1.bias': torch.rand(2)})
    assert names(model, record.unchanged(model.parameters())) == {'0.weight', '1.weight', '1.bias'}


@every_loader
def test_what_a_module_refuses_to_load_does_not_count(loader):
    model = nn.Sequential(PassingOver(2, 2), nn.Linear(2, 2))
    record = LoadRecord(model)
    loader(model, copy.deepcopy(model.state_dict()))
    assert names(model, record.unchanged(model.parameters())) == {'1.weight', '1.bias'}


@every_loader
def test_values_that_are_there_already_count_when_they_are_loaded(loader):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    record = LoadRecord(model)
    state = {name: value.clone() for name, value in model.state_dict().items() if name.startswith('0.')}
    loader(model, state)
    assert names(model, record.unchanged(model.parameters())) == {'0.weight', '0.bias'}
    assert record.unchanged_statistics(model) == ['0']


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_parameters_that_assign_puts_in_place_count(device):
    with torch.device(device):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    record = LoadRecord(model)
    model.load_state_dict(nn.Sequential(nn.Linear(2, 2)).state_dict(), strict=False, assign=True)
    assert names(model, record.unchanged(model.parameters())) == {'0.weight', '0.bias'}


@pytest.mark.filterwarnings('ignore:for 0.weight', 'ignore:for 0.bias')
def test_parameters_that_stay_without_values_do_not_count():
    model = nn.Sequential(nn.Linear(2, 2, device='meta'))
    record = LoadRecord(model)
    model.load_state_dict(nn.Sequential(nn.Linear(2, 2)).state_dict())
    assert not record.loaded(model.parameters())


def test_what_was_loaded_into_a_copy_can_be_adopted():
    model = torchvision.models.resnet18()
    record = LoadRecord(model)
    copied, watched = copy.deepcopy((model, record))
    state = torchvision.models.resnet18().state_dict()
    del state['bn1.weight'], state['bn1.running_mean']
    copied.load_state_dict(state, strict=False)
    assert len(watched) and not len(record)
    model.load_state_dict(state, strict=False)
    nn.init.normal_(model.conv1.weight)
    record._loaded.clear(), record._statistics.clear()
    record.adopt(watched, copied, model)
    new = {name for name, _ in model.named_parameters()} - names(model, record.unchanged(model.parameters()))
    assert new == {'conv1.weight', 'bn1.weight'}
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert layers - set(record.unchanged_statistics(model)) == {'bn1'}


def test_statistics_are_those_of_the_last_load_and_not_of_a_pass_before_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    record = LoadRecord(model)
    model(torch.randn(4, 2))
    model.load_state_dict({**model.state_dict(), '1.running_mean': torch.tensor([3.0, 4.0])})
    model(torch.randn(4, 2))
    assert record.unchanged_statistics(model) == ['1']
    assert record.copy_statistics(model, ['1'])['1.running_mean'].tolist() == [3.0, 4.0]
