import copy

import pytest
import torch
from conftest import stock_models
from torch import nn

import olor_mm  # noqa: F401
from olor_mm.pretrained import LoadRecord

torchvision = pytest.importorskip('torchvision')


def load_by_mmengine(model, state):
    pytest.importorskip('mmengine.runner.checkpoint').load_state_dict(model, state)


LOADERS = {
    'torch': lambda model, state: model.load_state_dict(state, strict=False),
    'mmengine': load_by_mmengine,
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
    load_by_mmengine(model, torchvision.models.resnet18().state_dict())
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
    copied.load_state_dict({key: value + 1 for key, value in inner.state_dict().items()})
    assert len(record) == 0
    nn.Sequential(inner).load_state_dict({f'0.{key}': value + 1 for key, value in inner.state_dict().items()})
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
    models = stock_models('mmpretrain')
    small = models.build(dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=32))
    large = models.build(dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', img_size=64))
    record = LoadRecord(large)
    load_by_mmengine(large, small.state_dict())
    assert large.pos_embed.shape != small.pos_embed.shape
    assert len(record.unchanged(large.parameters())) == len(list(large.parameters()))


def test_mask_rcnn_with_other_classes_leaves_its_class_layers_new():
    models = stock_models('mmdet')
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope

    cfg = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.pop('init_cfg')
    with DefaultScope.overwrite_default_scope('mmdet'):
        coco = models.build(copy.deepcopy(cfg))
        cfg.roi_head.bbox_head.num_classes = cfg.roi_head.mask_head.num_classes = 3
        model = models.build(cfg)
    record = LoadRecord(model)
    load_by_mmengine(model, coco.state_dict())
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
    loader(model, {name: value + 1 for name, value in model.state_dict().items()})
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
    record = LoadRecord(model)
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


# ways to hand a module its own values
OWN = {
    'shared': lambda state: state,
    'cloned': lambda state: {name: value.clone() for name, value in state.items()},
    'copied': copy.deepcopy,
    'on the way through half precision': lambda state: {name: value.bfloat16() for name, value in state.items()},
}


@every_loader
@pytest.mark.parametrize('own', OWN.values(), ids=OWN)
def test_what_a_module_copies_onto_itself_is_no_load(loader, own):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    record = LoadRecord(model)
    state = own(model.state_dict())
    loader(model, state)
    assert not record.loaded(model.parameters()) and 'was in the model already' in record.unfit
    state = own(model.state_dict())
    state.update({'0.weight': torch.rand(2, 2), '1.bias': torch.rand(2)})
    loader(model, state)
    assert names(model, record.unchanged(model.parameters())) == {'0.weight', '1.bias'}
    loader(model, own(model.float().state_dict()))
    assert names(model, record.unchanged(model.parameters())) == {'0.weight', '1.bias'}


def test_what_a_module_copies_from_another_is_as_pre_trained_as_that():
    model = nn.ModuleDict(dict(student=nn.Linear(2, 2), teacher=nn.Linear(2, 2)))
    record = LoadRecord(model)
    model.student.load_state_dict({'weight': torch.rand(2, 2)}, strict=False)
    model.teacher.load_state_dict({'bias': torch.rand(2)}, strict=False)
    model.teacher.load_state_dict(model.student.state_dict())
    assert names(model, record.unchanged(model.parameters())) == {'student.weight', 'teacher.weight'}


def test_the_same_file_twice_counts_as_once():
    source = {name: value.clone() for name, value in torchvision.models.resnet18().state_dict().items()}
    model = torchvision.models.resnet18()
    record = LoadRecord(model)
    for _ in range(2):
        model.load_state_dict(source)
        assert len(record.unchanged(model.parameters())) == len(list(model.parameters()))
        model.state_dict()


def test_what_was_loaded_before_the_record_counts_when_it_is_loaded_again():
    source = torchvision.models.resnet18().state_dict()
    model = torchvision.models.resnet18()
    model.load_state_dict(source)
    record = LoadRecord(model)
    model.load_state_dict(source)
    assert len(record.unchanged(model.parameters())) == len(list(model.parameters()))


class ThroughData(nn.Linear):
    """A layer that puts what it loads in the place of its tensor."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.weight.data = state_dict[f'{prefix}kernel'].T.contiguous()


def test_a_module_may_replace_the_memory_of_a_parameter():
    model = nn.Sequential(ThroughData(2, 3))
    record = LoadRecord(model)
    model.load_state_dict({'0.kernel': torch.rand(2, 3)}, strict=False)
    assert names(model, record.unchanged(model.parameters())) == {'0.weight'}


CASTS = {
    'bfloat16': lambda model: model.bfloat16(),
    'half': lambda model: model.half(),
    'double': lambda model: model.double(),
    'there and back': lambda model: model.half().float(),
    'channels last': lambda model: model.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize('cast', CASTS.values(), ids=CASTS)
def test_casting_and_moving_keep_the_mark_and_a_new_value_withdraws_it(cast):
    model = torchvision.models.resnet18()
    record = LoadRecord(model)
    state = torchvision.models.resnet18().state_dict()
    state.update({name: torch.randn(value.shape) for name, value in state.items() if 'running_mean' in name})
    model.load_state_dict(state)
    cast(model)
    assert len(record.unchanged(model.parameters())) == 62 and len(record.unchanged_statistics(model)) == 20
    nn.init.normal_(model.conv1.weight), model.bn1.reset_running_stats()
    assert len(record.unchanged(model.parameters())) == 61 and len(record.unchanged_statistics(model)) == 19


def rebuilt(module: nn.Module) -> nn.Module:
    new = nn.BatchNorm2d(module.num_features)
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
        setattr(new, name, getattr(module, name))
    return new


def renamed(module: nn.Module) -> nn.Module:
    return nn.Sequential(rebuilt(module))


REWRAPS = {'rebuilt': rebuilt, 'in another place': renamed, 'converted': nn.SyncBatchNorm.convert_sync_batchnorm}


@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('rewrap', REWRAPS.values(), ids=REWRAPS)
def test_norm_layers_that_are_made_anew_keep_parameters_and_statistics(rewrap, when):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    record = LoadRecord(model)
    state = {'0.weight': torch.rand(4, 3, 1, 1), '1.weight': torch.rand(4), '1.running_mean': torch.rand(4)}
    if when == 'before':
        model[1] = rewrap(model[1])
    inner = {
        name.replace('1.', '1.0.') if isinstance(model[1], nn.Sequential) else name: v for name, v in state.items()
    }
    model.load_state_dict(inner, strict=False)
    if when == 'after':
        model[1] = rewrap(model[1])
    norm = model[1][0] if isinstance(model[1], nn.Sequential) else model[1]
    assert set(record.unchanged(model.parameters())) == {model[0].weight, norm.weight}
    if not isinstance(norm, nn.SyncBatchNorm):  # which needs a GPU
        model(torch.randn(2, 3, 2, 2))
    [layer] = record.unchanged_statistics(model)
    assert torch.equal(record.copy_statistics(model, [layer])[f'{layer}.running_mean'], state['1.running_mean'])


UNFIT = {
    'another key': (dict(model={'0.weight': torch.ones(2, 2)}), "under 'model'"),
    'other names': ({'module.0.weight': torch.ones(2, 2)}, "like 'module.0.weight', and the model like '0.weight'"),
    'another width': ({'0.weight': torch.ones(3, 3)}, r'0.weight has shape (3, 3) there and (2, 2) here'),
}


def test_a_module_that_passes_over_what_it_is_given_is_told():
    model = nn.Sequential(PassingOver(2, 2))
    record = LoadRecord(model)
    model.load_state_dict({'0.weight': torch.ones(2, 2)}, strict=False)
    assert not record.loaded(model.parameters()) and 'wrote nothing' in record.unfit


@pytest.mark.parametrize('case', UNFIT)
def test_why_nothing_was_loaded_is_told(case):
    state, cause = UNFIT[case]
    model = nn.Sequential(nn.Linear(2, 2))
    record = LoadRecord(model)
    load_by_mmengine(model, state)
    assert cause in record.unfit
