"""Every way by which weights get into a model of OpenMMLab: real models, files, runners; anchors are what was loaded.

Models are small, and their loss is that of their weights alone, so that one step reaches every parameter.
"""

import copy
import json
import re
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

import scipy.interpolate
import torch
import torchvision
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import FlexibleRunner, Runner, load_checkpoint
from mmengine.runner.checkpoint import get_external_models, get_mmcls_models, get_torchvision_models
from mmpretrain.models import ResNet
from torch import nn
from torch.utils.data import DataLoader

import olor_mm  # noqa: F401
from olor_mm.engine.selection import filled_in_constructor, repeat_loading
from olor_mm.pretrained import LoadRecord

both_runners = pytest.mark.parametrize('runner_class', [Runner, FlexibleRunner])
RESNET = dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8)
CLASSIFIER = dict(
    type='mmpretrain.ImageClassifier',
    backbone=RESNET,
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=64),
)
TRANSFORMER = dict(embed_dims=12, num_layers=2, num_heads=3, feedforward_channels=24)


def detector(classes=3, backbone=(), neck=(), head=()):
    return dict(
        type='mmdet.RetinaNet',
        backbone=dict(RESNET, out_indices=(0, 1, 2, 3), **dict(backbone)),
        neck=dict(type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=8, num_outs=5, **dict(neck)),
        bbox_head=dict(
            type='mmdet.RetinaHead',
            num_classes=classes,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            **dict(head),
        ),
    )


def segmentor(backbone):
    head = dict(type='mmseg.FCNHead', in_channels=12, channels=8, num_convs=1, num_classes=4)
    return dict(type='mmseg.EncoderDecoder', backbone=backbone, decode_head=head)


def pretrained(checkpoint, prefix=None):
    return dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint, **(dict(prefix=prefix) if prefix else {})))


def build(cfg) -> nn.Module:
    cfg = Config(dict(model=copy.deepcopy(cfg))).model
    with DefaultScope.overwrite_default_scope(cfg.type.split('.')[0]):
        return MODELS.build(cfg)


def weights(cfg, seed=0) -> dict[str, torch.Tensor]:
    """A state of such a model in which no value is one that an initialisation gives."""
    generator = torch.Generator().manual_seed(seed)
    state = build(cfg).state_dict()
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in state.items()
    }


def saved(content: dict, path) -> str:
    torch.save(content, path)
    return str(path)


def under(prefix: str, state: dict, to: str = '') -> dict:
    return {to + name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def parameters_only(model: nn.Module, state: dict) -> dict:
    names = {name for name, _ in model.named_parameters()}
    return {name: value for name, value in state.items() if name in names}


def wrapper(**rollback) -> dict:
    return dict(
        type='OptimWrapper',
        constructor='OLOROptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=1e-3),
        # neck and head have a level too: nothing but provenance keeps them from having an anchor
        paramwise_cfg=dict(rollback=dict(max_level=0.1, min_level=0.01, **rollback)),
    )


def anchors(model: nn.Module, optimizer) -> dict[str, torch.Tensor]:
    found = {name: optimizer.state.get(p, {}).get('anchor') for name, p in model.named_parameters()}
    return {name: anchor for name, anchor in found.items() if anchor is not None}


def train_step(model, data, optim_wrapper) -> dict:
    with optim_wrapper.optim_context(model):
        loss = sum(p.square().sum() for p in model.parameters())
    optim_wrapper.update_params(loss)
    return dict(loss=loss.detach())


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Train a model for one step with a runner; its anchors by name."""
    monkeypatch.setattr(BaseModel, 'train_step', train_step)
    count = 0

    def fit_one(model, runner_class=Runner, load_from=None, **rollback) -> dict[str, torch.Tensor]:
        nonlocal count
        count += 1
        more = dict(strategy=dict(type='SingleDeviceStrategy')) if runner_class is FlexibleRunner else {}
        runner = runner_class(
            model=build(model) if isinstance(model, dict) else model,
            work_dir=str(tmp_path / f'run{count}'),
            train_dataloader=DataLoader([0]),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=wrapper(**rollback),
            default_hooks=dict(checkpoint=None, logger=None),
            load_from=load_from,
            experiment_name=f'{tmp_path.name}_{count}',
            log_level='WARNING',
            **more,
        )
        before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
        runner.train()
        assert all(not torch.equal(p, before[name]) for name, p in runner.model.named_parameters() if p.any())
        return anchors(runner.model, runner.optim_wrapper.optimizer)

    return fit_one


def assert_same(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


CONTAINERS = {
    'bare': lambda state: state,
    'state_dict': lambda state: dict(state_dict=state, meta={}),
    'module.': lambda state: dict(state_dict={f'module.{name}': value for name, value in state.items()}),
    'ema': lambda state: dict(state_dict=state, ema_state_dict={f'module.{name}': v + 1 for name, v in state.items()}),
}


@both_runners
@pytest.mark.parametrize('container', CONTAINERS)
def test_init_cfg_of_a_backbone(fit, tmp_path, runner_class, container):
    source = weights(RESNET)
    file = saved(CONTAINERS[container](source), tmp_path / 'backbone.pth')
    cfg = dict(CLASSIFIER, backbone=dict(RESNET, **pretrained(file)))
    assert_same(fit(cfg, runner_class), under('', parameters_only(build(RESNET), source), 'backbone.'))


@both_runners
@pytest.mark.parametrize('container', [name for name in CONTAINERS if name != 'bare'])
def test_load_from_with_another_class_count(fit, tmp_path, runner_class, container):
    source = weights(CLASSIFIER)
    file = saved(CONTAINERS[container](source), tmp_path / 'model.pth')
    cfg = copy.deepcopy(CLASSIFIER)
    cfg['head']['num_classes'] = 7
    expected = parameters_only(build(CLASSIFIER), source)
    del expected['head.fc.weight'], expected['head.fc.bias']
    assert_same(fit(cfg, runner_class, load_from=file), expected)


def test_weights_under_a_key_that_mmengine_does_not_read_are_not_loaded(fit, tmp_path):
    file = saved(dict(model=weights(CLASSIFIER)), tmp_path / 'model.pth')
    with pytest.raises(ValueError, match=r"pretrained='auto': no checkpoint was loaded into any parameter"):
        fit(CLASSIFIER, load_from=file)


@both_runners
def test_several_checkpoints_for_several_parts_on_backbone_neck_and_head(fit, tmp_path, runner_class):
    first, other, third = weights(CLASSIFIER, 1), weights(detector(), 2), weights(detector(), 3)
    cfg = detector(
        classes=4,
        backbone=pretrained(saved(dict(state_dict=first), tmp_path / 'source.pth'), 'backbone.'),
        neck=pretrained(saved(dict(state_dict=other), tmp_path / 'other.pth'), 'neck.'),
        head=pretrained(saved(dict(state_dict=third), tmp_path / 'third.pth'), 'bbox_head.'),
    )
    model = build(cfg)
    expected = {
        **under('backbone.', first, 'backbone.'),
        **under('neck.', other, 'neck.'),
        **under('bbox_head.', third, 'bbox_head.'),
    }
    expected = parameters_only(model, expected)
    for kind in ('weight', 'bias'):  # of 3 classes there
        del expected[f'bbox_head.retina_cls.{kind}']
    assert set(dict(model.named_parameters())) - set(expected) == {
        'bbox_head.retina_cls.weight',
        'bbox_head.retina_cls.bias',
    }
    assert_same(fit(model, runner_class), expected)


@both_runners
def test_load_from_goes_over_init_cfg(fit, tmp_path, runner_class):
    first, second = weights(CLASSIFIER, 1), weights(CLASSIFIER, 2)
    parts = under('backbone.layer4.', second, 'backbone.layer4.')
    backbone = dict(RESNET, **pretrained(saved(first, tmp_path / 'first.pth'), 'backbone.'))
    cfg = dict(CLASSIFIER, backbone=backbone)
    found = fit(cfg, runner_class, load_from=saved(dict(state_dict=parts), tmp_path / 'second.pth'))
    assert_same(found, parameters_only(build(cfg), {**under('backbone.', first, 'backbone.'), **parts}))


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches for weights; nothing is fetched."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path / 'mmengine'))
    (tmp_path / 'torch/hub/checkpoints').mkdir(parents=True)
    (tmp_path / 'mmengine').mkdir()
    return tmp_path


NAMED = {
    'torchvision://resnet18': lambda: get_torchvision_models()['resnet18'],
    'torchvision://resnet18.imagenet1k_v1': lambda: get_torchvision_models()['resnet18.imagenet1k_v1'],
    'mmcls://resnet18': lambda: get_mmcls_models()['resnet18'],
    'open-mmlab://contrib/mobilenet_v3_small': lambda: get_external_models()['contrib/mobilenet_v3_small'],
    'open-mmlab://ours': None,
}


@pytest.mark.parametrize('name', NAMED)
@both_runners
def test_names_that_are_resolved_from_a_cache(fit, caches, name, runner_class):
    if 'mobilenet' in name:
        backbone = dict(type='mmseg.MobileNetV3', arch='small', norm_cfg=dict(type='BN'))
        cfg = segmentor(backbone)
        cfg['decode_head'].update(in_channels=576)
    else:
        backbone = dict(type='mmdet.ResNet', depth=18)
        cfg = dict(CLASSIFIER, backbone=backbone, head=dict(CLASSIFIER['head'], in_channels=512))
    source = weights(backbone)
    if 'torchvision' in name:
        theirs = torchvision.models.resnet18().state_dict()
        assert theirs.keys() == source.keys() | {'fc.weight', 'fc.bias'}
        content = {**theirs, **source}
    else:
        content = dict(state_dict=under('', source, 'backbone.') if 'mmcls' in name else source)
    if NAMED[name] is None:
        (caches / 'mmengine/open_mmlab.json').write_text(json.dumps({'ours': 'ours.pth'}))
        file = caches / 'mmengine/ours.pth'
    else:
        file = caches / 'torch/hub/checkpoints' / NAMED[name]().rpartition('/')[2]
    saved(content, file)
    cfg['backbone'] = dict(backbone, **pretrained(name))
    assert_same(fit(cfg, runner_class), under('', parameters_only(build(backbone), source), 'backbone.'))


def loaded_without_us(cfg) -> dict[str, torch.Tensor]:
    """The parameters of the backbone as MMEngine alone initialises them from the checkpoint."""
    model = build(cfg)
    model.init_weights()
    return {name: p.detach() for name, p in model.named_parameters() if name.startswith('backbone.')}


@pytest.fixture
def interp2d(monkeypatch):
    """BEiT calls a function that SciPy took out in 1.14; this is what its documentation replaces it by."""

    def interpolator(x, y, z, kind):
        spline = scipy.interpolate.RectBivariateSpline(x, y, z.T)
        return lambda xnew, ynew: spline(xnew, ynew).T

    monkeypatch.setattr(scipy.interpolate, 'interp2d', interpolator, raising=False)


def original_swin(state: dict) -> dict:
    """The names that the weights of the Swin authors have."""
    renames = {
        'stages.': 'layers.',
        'attn.w_msa.': 'attn.',
        'ffn.layers.0.0.': 'mlp.fc1.',
        'ffn.layers.1.': 'mlp.fc2.',
        'patch_embed.projection.': 'patch_embed.proj.',
    }
    for ours, theirs in renames.items():
        state = {name.replace(ours, theirs): value for name, value in state.items()}
    return {name: value for name, value in state.items() if 'relative_position_index' not in name}


SWIN = dict(type='mmdet.SwinTransformer', embed_dims=12, depths=(1, 1), num_heads=(1, 2), strides=(4, 2))
SWIN.update(out_indices=(0, 1), pretrain_img_size=32, convert_weights=True)
PRETRAIN_SWIN = dict(type='mmpretrain.SwinTransformer', arch=dict(embed_dims=12, depths=[1, 1], num_heads=[1, 2]))
PRETRAIN_SWIN.update(img_size=32, out_indices=(1,))
VIT = dict(type='mmpretrain.VisionTransformer', arch=TRANSFORMER, patch_size=8, out_type='featmap')
MMSEG_VIT = dict(type='mmseg.VisionTransformer', patch_size=8, embed_dims=12, num_layers=2, num_heads=3, mlp_ratio=2)
BEIT = dict(type='mmpretrain.BEiTViT', arch=TRANSFORMER, patch_size=8, out_type='avg_featmap')
MMSEG_BEIT = dict(type='mmseg.BEiT', patch_size=8, embed_dims=12, num_layers=2, num_heads=3, mlp_ratio=2)
MMSEG_BEIT.update(qv_bias=True, init_values=0.1, out_indices=(1,))
TABLE = 'relative_position_bias_table'

# backbone, what is another there than here, what is converted on the way, how the file names things
CONVERTED = {
    'mmdet Swin': (SWIN, dict(window_size=4), dict(window_size=6), (TABLE, 'downsample'), original_swin),
    'mmpretrain Swin': (PRETRAIN_SWIN, dict(window_size=4), dict(window_size=6), (TABLE,), None),
    'mmpretrain ViT': (VIT, dict(img_size=32), dict(img_size=48), ('pos_embed',), None),
    'mmpretrain BEiT': (BEIT, dict(img_size=32), dict(img_size=48), (TABLE,), None),
    'mmseg ViT': (MMSEG_VIT, dict(img_size=32), dict(img_size=48), ('pos_embed',), None),
    'mmseg BEiT': (MMSEG_BEIT, dict(img_size=32), dict(img_size=48), (TABLE,), None),
}


@both_runners
@pytest.mark.parametrize('case', CONVERTED)
def test_backbones_that_convert_and_resize_their_weights(fit, tmp_path, interp2d, case, runner_class):
    backbone, there, here, converted, names_there = CONVERTED[case]
    source = weights(dict(backbone, **there))
    file = saved(names_there(source) if names_there else source, tmp_path / 'source.pth')
    cfg = segmentor(dict(backbone, **here, **pretrained(file)))
    expected = loaded_without_us(cfg)
    as_in_file = {name for name, value in expected.items() if torch.equal(value, source[name.partition('.')[2]])}
    assert set(expected) - as_in_file == {name for name in expected if any(part in name for part in converted)}
    assert as_in_file < set(expected)
    assert_same(fit(cfg, runner_class), expected)


@both_runners
def test_tables_of_another_number_of_heads_are_new(fit, tmp_path, runner_class):
    source = weights(dict(BEIT, img_size=32))
    file = saved(source, tmp_path / 'source.pth')
    cfg = segmentor(dict(BEIT, img_size=32, **pretrained(file)))
    cfg['backbone']['arch'] = dict(TRANSFORMER, num_heads=4)
    expected = parameters_only(build(cfg), under('', source, 'backbone.'))
    for i in range(2):
        del expected[f'backbone.layers.{i}.attn.{TABLE}']
    assert_same(fit(cfg, runner_class), expected)


@both_runners
@pytest.mark.parametrize('model', ['mmdet', 'mmseg'])
def test_checkpoints_of_mmpretrain_inside_models_of_the_others(fit, tmp_path, runner_class, model):
    source = weights(CLASSIFIER)
    part = pretrained(saved(dict(state_dict=source), tmp_path / 'source.pth'), 'backbone.')
    cfg = detector(backbone=part) if model == 'mmdet' else segmentor(dict(RESNET, **part))
    assert_same(fit(cfg, runner_class), parameters_only(build(CLASSIFIER), under('backbone.', source, 'backbone.')))


def test_an_old_checkpoint_whose_keys_the_head_renames(fit, tmp_path):
    head = dict(type='mmdet.FCOSHead', num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)
    cfg = dict(detector(), type='mmdet.FCOS', bbox_head=dict(head, norm_cfg=None))
    source = weights(cfg)
    old = {
        name.replace('.conv_cls.', '.fcos_cls.').replace('.conv_reg.', '.fcos_reg.'): v for name, v in source.items()
    }
    assert old.keys() != source.keys()
    found = fit(cfg, load_from=saved(dict(state_dict=old), tmp_path / 'old.pth'))
    assert_same(found, parameters_only(build(cfg), source))


class Respoiled(ResNet):
    """A backbone that initialises a layer of its own whatever was loaded into it."""

    def init_weights(self):
        super().init_weights()
        nn.init.normal_(self.conv1.weight)


@both_runners
def test_a_layer_that_is_initialised_again_is_new(fit, tmp_path, runner_class, log):
    MODELS.register_module(module=Respoiled, force=True)
    source = weights(RESNET)
    file = saved(source, tmp_path / 'backbone.pth')
    cfg = dict(CLASSIFIER, backbone=dict(RESNET, type='mmengine.Respoiled', **pretrained(file)))
    expected = under('', parameters_only(build(RESNET), source), 'backbone.')
    del expected['backbone.conv1.weight']
    assert_same(fit(cfg, runner_class), expected)
    assert any('1 parameters were initialised again after' in line and 'backbone.conv1.weight' in line for line in log)


def test_flexible_runner_with_all_initialised_again_is_refused(fit, tmp_path):
    file = saved({name: v for name, v in weights(RESNET).items() if name == 'conv1.weight'}, tmp_path / 'backbone.pth')
    MODELS.register_module(module=Respoiled, force=True)
    cfg = dict(CLASSIFIER, backbone=dict(RESNET, type='mmengine.Respoiled', **pretrained(file)))
    with pytest.raises(
        ValueError, match=r"'auto': all 1 parameters that a checkpoint was loaded into were initialised"
    ):
        fit(cfg, FlexibleRunner)


def test_repeated_loading_leaves_model_and_random_numbers_as_they_were(tmp_path):
    file = saved(weights(RESNET), tmp_path / 'backbone.pth')
    model = build(dict(CLASSIFIER, backbone=dict(RESNET, **pretrained(file))))
    model.init_weights()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    record = LoadRecord(model)
    repeat_loading(model, record)
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(model.state_dict(), before)
    assert set(record.unchanged(model.parameters())) == set(model.backbone.parameters())
    statistics = {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(record.unchanged_statistics(model)) == statistics
    Path(file).unlink()
    with pytest.raises(ValueError, match=r"pretrained='auto'.*initialising a copy.*backbone.pth.*pretrained=\['backb"):
        repeat_loading(model, record)


@both_runners
def test_model_in_distributed_data_parallel(tmp_path, runner_class):
    source = weights(CLASSIFIER)
    file = saved(dict(state_dict=source), tmp_path / 'source.pth')
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        cfg = dict(CLASSIFIER, backbone=dict(RESNET, **pretrained(file, 'backbone.')))
        model, head = build(cfg), under('head.', source, 'head.')
        if runner_class is FlexibleRunner:
            model.init_weights()
        model = MMDistributedDataParallel(model, device_ids=None)
        optim_wrapper = build_optim_wrapper(model, wrapper())
        if runner_class is Runner:
            model.module.init_weights()
        load_checkpoint(model, saved(dict(state_dict=head), tmp_path / 'head.pth'))
        train_step(model, None, optim_wrapper)
        found = anchors(model.module, optim_wrapper.optimizer)
    finally:
        torch.distributed.destroy_process_group()
    assert_same(found, parameters_only(build(cfg), source))


@pytest.fixture(scope='module')
def timm_file(tmp_path_factory):
    timm = pytest.importorskip('timm')
    torch.manual_seed(1)
    return saved(timm.create_model('resnet18').state_dict(), tmp_path_factory.mktemp('timm') / 'timm.pth')


def timm_classifier(scope, **backbone):
    backbone = dict(type=f'{scope}.TIMMBackbone', model_name='resnet18', **backbone)
    return dict(CLASSIFIER, backbone=backbone, head=dict(CLASSIFIER['head'], in_channels=512))


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
def test_timm_wrapper_that_loads_in_its_constructor(fit, timm_file, tmp_path, scope, log):
    source = torch.load(timm_file)
    cfg = timm_classifier(scope, checkpoint_path=timm_file)
    if scope == 'mmseg':  # it has no class layer
        source = {name: value for name, value in source.items() if not name.startswith('fc.')}
        cfg['backbone'].update(checkpoint_path=saved(source, tmp_path / 'timm.pth'), pretrained=False)
    with pytest.raises(ValueError, match=r"backbone\.timm_model\.\S+, are in .*Name what .*pretrained=\['backbone'\]$"):
        fit(cfg)
    found = fit(cfg, pretrained=['backbone'])
    assert_same(found, under('', parameters_only(build(cfg).backbone.timm_model, source), 'backbone.timm_model.'))
    assert not any('count as pre-trained because' in line for line in log)


def test_timm_wrapper_beside_a_head_that_is_loaded_is_refused_too(fit, timm_file, tmp_path):
    cfg = timm_classifier('mmpretrain', checkpoint_path=timm_file)
    head = {'fc.weight': torch.rand(5, 512), 'fc.bias': torch.rand(5)}
    cfg['head'] = dict(cfg['head'], **pretrained(saved(head, tmp_path / 'head.pth')))
    with pytest.raises(ValueError, match=r'in a module that loads weights in its constructor'):
        fit(cfg)


def test_timm_wrapper_under_flexible_runner_is_refused_or_warned_of(fit, timm_file, tmp_path, log):
    cfg = timm_classifier('mmpretrain', checkpoint_path=timm_file)
    with pytest.raises(ValueError, match='no checkpoint was loaded into any parameter'):
        fit(cfg, FlexibleRunner)
    head = {'fc.weight': torch.rand(5, 512), 'fc.bias': torch.rand(5)}
    cfg['head'] = dict(cfg['head'], **pretrained(saved(head, tmp_path / 'head.pth')))
    assert set(fit(cfg, FlexibleRunner)) == {'head.fc.weight', 'head.fc.bias'}
    assert any('60 parameters of the 60 of the backbone count as new' in line for line in log)


def test_timm_wrapper_that_is_loaded_over_needs_no_word(fit, timm_file, tmp_path):
    cfg = timm_classifier('mmpretrain', checkpoint_path=timm_file)
    source = weights(cfg)
    found = fit(cfg, load_from=saved(dict(state_dict=source), tmp_path / 'model.pth'))
    assert_same(found, parameters_only(build(cfg), source))


def test_classifier_of_timm_that_mmengine_initialises_again_is_warned_of(fit, timm_file, log):
    """MMEngine calls `init_weights` of TIMM's model, which draws new weights whatever was loaded."""
    cfg = dict(type='mmpretrain.TimmClassifier', model_name='resnet18', checkpoint_path=timm_file)
    with pytest.raises(ValueError, match=r"pretrained='auto': no checkpoint.*pretrained=\['backbone'\]"):
        fit(cfg)
    found = fit(cfg, pretrained='all')
    assert not torch.equal(found['model.conv1.weight'], torch.load(timm_file)['conv1.weight'])
    assert any("because of pretrained='all', though they were initialised" in line for line in log)


def test_classifier_of_timm_through_load_from(fit, timm_file):
    cfg = dict(type='mmpretrain.TimmClassifier', model_name='resnet18')
    source = under('', torch.load(timm_file), 'model.')
    assert_same(fit(cfg, load_from=timm_file), parameters_only(build(cfg), source))


def test_a_module_that_has_initialised_itself_is_not_taken_for_loaded():
    model = nn.Sequential(MultiScaleDeformableAttention(embed_dims=8, num_heads=2))
    assert model[0].is_init
    assert filled_in_constructor(model) == {}


def test_classifier_of_huggingface_that_loads_in_its_constructor(fit, tmp_path, log):
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=24)
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16, num_labels=3)
    source = transformers.ViTForImageClassification(config)
    for p in source.parameters():
        nn.init.uniform_(p)
    source.save_pretrained(tmp_path / 'vit')
    cfg = dict(type='mmpretrain.HuggingFaceClassifier', model_name=str(tmp_path / 'vit'), pretrained=True)
    with pytest.raises(ValueError, match=r"pretrained='auto': no checkpoint.*pretrained=\['backbone'\]"):
        fit(cfg)
    assert_same(fit(cfg, pretrained='all'), {f'model.{name}': p for name, p in source.named_parameters()})
    assert not any('count as pre-trained because' in line for line in log)


def test_model_that_the_hub_loaded_before_is_asked_for_by_name(fit, tmp_path):
    source = weights(CLASSIFIER)
    for rollback in ({}, dict(pretrained='all')):
        model = build(CLASSIFIER)
        load_checkpoint(model, saved(source, tmp_path / 'model.pth'))
        model._is_init = True  # what `mmengine.hub.get_model(pretrained=True)` does
        if rollback:
            assert_same(fit(model, **rollback), parameters_only(model, source))
        else:
            with pytest.raises(ValueError, match=r"in its constructor.*Name what .*pretrained='all'$"):
                fit(model)


@both_runners
def test_a_checkpoint_that_fits_little_of_the_backbone_is_warned_of(fit, tmp_path, runner_class, log):
    source = weights(RESNET)
    expected = {name: value for name, value in source.items() if name.startswith(('conv1.', 'layer1.0.conv1.'))}
    cfg = dict(CLASSIFIER, backbone=dict(RESNET, **pretrained(saved(expected, tmp_path / 'backbone.pth'))))
    assert_same(fit(cfg, runner_class), under('', expected, 'backbone.'))
    [line] = [line for line in log if 'of the backbone count as new' in line]
    assert '58 parameters of the 60' in line and 'backbone.bn1.weight' in line and 'pretrained=' not in line


def test_a_whole_backbone_raises_no_warning(fit, tmp_path, log):
    cfg = dict(CLASSIFIER, backbone=dict(RESNET, **pretrained(saved(weights(RESNET), tmp_path / 'backbone.pth'))))
    fit(cfg)
    assert not any('count as' in line for line in log)


def test_all_takes_what_was_not_loaded_too_and_says_so(fit, tmp_path, log):
    assert set(fit(CLASSIFIER, pretrained='all')) == {name for name, _ in build(CLASSIFIER).named_parameters()}
    [line] = [line for line in log if 'though they were initialised since the model was built' in line]
    assert "pretrained='all'" in line
    log.clear()
    head = under('head.', weights(CLASSIFIER), 'head.')
    fit(CLASSIFIER, pretrained='all', load_from=saved(dict(state_dict=head), tmp_path / 'head.pth'))
    [line] = [line for line in log if 'though no checkpoint was loaded into them' in line]
    assert 'head.fc' not in line


@pytest.mark.parametrize('given', [['backbone'], ['backbone.layer1', 'head']])
def test_prefixes_do_not_make_a_random_start_pre_trained(fit, tmp_path, given, log):
    with pytest.raises(ValueError, match=re.escape(f'pretrained={given!r}: no checkpoint was loaded')):
        fit(CLASSIFIER, pretrained=given)
    loaded = under('backbone.layer1.', weights(CLASSIFIER), 'backbone.layer1.')
    del loaded['backbone.layer1.0.conv1.weight']
    found = fit(CLASSIFIER, pretrained=given, load_from=saved(dict(state_dict=loaded), tmp_path / 'part.pth'))
    assert_same(found, parameters_only(build(CLASSIFIER), loaded))
    [line] = [line for line in log if f'under pretrained={given!r} count as new' in line]
    assert 'backbone.layer1.0.conv1.weight' in line or given == ['backbone']
