import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

import olor_mm  # noqa: F401
from olor_mm.optim import SGDOLOR, AdamOLOR, AdamWOLOR

WRAPPER = dict(type='OptimWrapper', constructor='OLOROptimWrapperConstructor')


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)) for _ in 'ab')
        )
        self.head = nn.Linear(3, 2)


def build(model=None, optimizer=None, wrapper=(), **paramwise):
    cfg = dict(
        WRAPPER,
        **dict(wrapper),
        optimizer=optimizer or dict(type='AdamWOLOR', lr=1e-3, weight_decay=0.05),
        paramwise_cfg=paramwise,
    )
    return build_optim_wrapper(model if model is not None else Toy(), cfg)


@pytest.fixture(scope='module')
def swin_detector():
    cfg = get_config('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py').model
    cfg.backbone.pop('init_cfg')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg)


def options(optimizer, model):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: (group['lr'], group['weight_decay']) for group in optimizer.param_groups for p in group['params']}


@pytest.mark.parametrize(
    'paramwise',
    [
        dict(),
        dict(norm_decay_mult=0.0),
        dict(bias_lr_mult=2.0, bias_decay_mult=0.0, norm_decay_mult=0.1, flat_decay_mult=0.3, dwconv_decay_mult=0.5),
        dict(
            custom_keys={
                'absolute_pos_embed': dict(decay_mult=0.0),
                'relative_position_bias_table': dict(decay_mult=0.0),
                'norm': dict(decay_mult=0.0),
                'backbone': dict(lr_mult=0.1),
                'rpn_head': dict(lr_mult=2.0),
            }
        ),
    ],
    ids=str,
)
def test_stock_options_keep_their_meaning_and_groups_are_few(swin_detector, paramwise):
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    default = DefaultOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=optimizer), dict(copy.deepcopy(paramwise), bypass_duplicate=True)
    )
    stock = default(swin_detector).optimizer
    ours = build(swin_detector, optimizer, **paramwise).optimizer
    assert options(ours, swin_detector) == options(stock, swin_detector)
    layers = 12 + 2
    assert len(ours.param_groups) <= layers * (2 if len(paramwise) < 2 and 'custom_keys' not in paramwise else 5)
    if paramwise == dict(norm_decay_mult=0.0):
        assert len(ours.param_groups) <= 2 * layers + 4
        assert len(stock.param_groups) > 150


def test_lambda_follows_depth_and_spares_neck_and_head(swin_detector):
    optimizer = build(swin_detector, rollback=dict(max_level=0.13, min_level=0.01, power=2.0)).optimizer
    names = {p: name for name, p in swin_detector.named_parameters()}
    levels = {names[p]: group['rollback'] for group in optimizer.param_groups for p in group['params']}
    for name, layer in {
        'backbone.patch_embed.projection.weight': 0,
        'backbone.stages.1.blocks.0.norm1.weight': 3,
        'backbone.stages.3.blocks.1.norm1.weight': 12,
        'neck.lateral_convs.0.conv.weight': 13,
        'roi_head.bbox_head.fc_cls.weight': 13,
    }.items():
        assert levels[name] == pytest.approx(0.01 + ((13 - layer) / 13) ** 2 * 0.12, rel=1e-12), name
    assert set(levels) == set(names.values())


def test_group_order_is_stable():
    def signature():
        optimizer = build(norm_decay_mult=0.0, rollback=dict(max_level=0.1)).optimizer
        return [[len(g['params']), g['rollback'], g['weight_decay']] for g in optimizer.param_groups]

    assert signature() == signature()


def test_shared_parameter_is_taken_once():
    model = Toy()
    model.second_head = nn.Linear(3, 2)
    model.second_head.weight = model.head.weight
    params = [p for group in build(model).optimizer.param_groups for p in group['params']]
    assert len(params) == len(set(params)) == len(list(model.parameters()))


def test_frozen_parameter_is_left_out_as_stock_does():
    model = Toy()
    model.backbone[0].requires_grad_(False)
    params = {p for group in build(model).optimizer.param_groups for p in group['params']}
    assert params == {p for p in model.parameters() if p.requires_grad}


def test_a_level_can_be_set_by_hand():
    model = Toy()
    optimizer = build(
        model, rollback=dict(max_level=0.1), custom_keys={'head': dict(rollback=0.5, lr_mult=2.0)}
    ).optimizer
    [group] = [group for group in optimizer.param_groups if group['rollback'] == 0.5]
    assert set(group['params']) == set(model.head.parameters())
    assert group['lr'] == 2e-3


@pytest.mark.parametrize(
    'name, cls', [('Adam', AdamOLOR), ('AdamW', AdamWOLOR), ('SGD', SGDOLOR), (torch.optim.SGD, SGDOLOR)]
)
def test_stock_types_are_replaced_and_the_log_says_so(name, cls, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        assert type(build(optimizer=dict(type=name, lr=0.1)).optimizer) is cls
    finally:
        logger.removeHandler(caplog.handler)
    assert f'replaced by {cls.__name__}' in caplog.text


def test_custom_keys_hand_on_what_is_read_from_groups():
    """As stock does: LARS of mmpretrain has no such argument and looks for it in the group."""
    lars = dict(type='mmpretrain.LARS', lr=0.1)
    optimizer = build(optimizer=lars, custom_keys={'head': dict(lars_exclude=True)}).optimizer
    assert {g['names'][0].split('.')[0] for g in optimizer.param_groups if g.get('lars_exclude')} == {'head'}


def test_a_level_by_hand_leaves_stock_options_as_they_are():
    """MMEngine gives a parameter the first entry that fits, so an entry with a level alone would hide another's."""
    stock = dict(norm_decay_mult=0.0, custom_keys={'backbone': dict(lr_mult=0.1)})
    levels = {'backbone.0': dict(rollback=0.05), 'head': dict(rollback=0.2, lr_mult=10.0)}
    both = {**stock, 'custom_keys': {**stock['custom_keys'], 'head': dict(lr_mult=10.0)}}

    def options(**paramwise):
        groups = build(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1), **paramwise).optimizer.param_groups
        return {
            name: (group['lr'], group['weight_decay'], group['rollback']) for group in groups for name in group['names']
        }

    without, ours = options(**both), options(**{**both, 'custom_keys': {**both['custom_keys'], **levels}})
    assert {name: found[:2] for name, found in ours.items()} == {name: found[:2] for name, found in without.items()}
    assert {found[2] for name, found in ours.items() if name.startswith('backbone.0')} == {0.05}
    assert {found[2] for name, found in ours.items() if name.startswith('head')} == {0.2}


def test_any_other_optimizer_works_too():
    optimizer = build(optimizer=dict(type='NAdam', lr=0.1)).optimizer
    assert type(optimizer).__name__ == 'NAdamOLOR'


@pytest.mark.parametrize(
    'rollback, message',
    [
        (dict(max_level=1.5), r'paramwise_cfg\.rollback\.max_level=1\.5 is not a number in \[0, 1\]'),
        (dict(max_level=-1), r'max_level=-1 is not a number in'),
        (dict(max_level='high'), r"max_level='high' is not a number"),
        (
            dict(max_level=0.01, min_level=0.02),
            r'paramwise_cfg\.rollback\.min_level=0\.02 is above paramwise_cfg\.rollback\.max_level=0\.01',
        ),
        (dict(min_level=''), r"paramwise_cfg\.rollback\.min_level='' is not a number"),
        (dict(power=-1), r'paramwise_cfg\.rollback\.power=-1 is not a number'),
        (dict(power=None), r'power=None is not a number'),
        (dict(maxlevel=0.1), r"paramwise_cfg\.rollback: unknown key 'maxlevel' \(=0\.1\); did you mean 'max_level'\?"),
        (dict(pretrained='backbone'), r"pretrained='backbone' is unknown; take 'auto'"),
        (dict(max_level=10**400), r'max_level=1000'),
        (dict(layer_index={0: 1}), r'layer_index=\{0: 1\} is unknown'),
        (dict(coupling=['lr']), r"coupling=\['lr'\] is unknown"),
        (dict(pretrained=[]), r'pretrained=\[\] is unknown'),
        (
            dict(pretrained=['backbon']),
            r"pretrained: the model has no parameter under 'backbon'; did you mean 'backbone'\?",
        ),
        (
            dict(layer_index='depth'),
            r"paramwise_cfg\.rollback\.layer_index='depth' is unknown; take 'block', 'tensor'",
        ),
        (
            dict(layer_index={'hed': 0}),
            r"paramwise_cfg\.rollback: layer_index: the model has no parameter under 'hed'; did you mean 'head'\?",
        ),
        (dict(layer_index={'head': 99}), r"layer_index\['head'\]=99 is not an integer from 0"),
        (
            dict(coupling='cosine'),
            r"paramwise_cfg\.rollback\.coupling='cosine' is unknown; take 'lr' or 'constant'",
        ),
        (0.01, r'paramwise_cfg\.rollback=0\.01 is not a dict'),
    ],
    ids=str,
)
def test_wrong_settings_name_key_value_and_remedy(rollback, message):
    with pytest.raises(ValueError, match=message):
        build(rollback=rollback)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(paramwise=dict(rolback=dict(max_level=0.1))),
            r"paramwise_cfg: unknown key 'rolback' .*did you mean 'rollback'\?",
        ),
        (dict(paramwise=dict(decay_rate=0.7)), "paramwise_cfg: unknown key 'decay_rate'"),
        (
            dict(paramwise=dict(custom_keys={'head': dict(rollback=2)})),
            r"custom_keys\['head'\]\.rollback=2 is not a number in \[0, 1\]",
        ),
        (
            dict(optimizer=dict(type='AdamWOLOR', rollback=0.1)),
            r'optimizer\.rollback=0\.1: .*paramwise_cfg\.rollback',
        ),
        (dict(optimizer=dict(type='LBFGS', lr=1.0)), r"optimizer\.type='LBFGS': LBFGS cannot be used with rollback"),
        (
            dict(optimizer=dict(type='ZeroRedundancyOptimizer', optimizer_type='AdamW', lr=1.0)),
            'shards over processes, and there is one.*dist_train.sh',
        ),
        (
            dict(paramwise=dict(custom_keys={'hed': dict(rollback=0.1)})),
            "custom_keys\\['hed'\\].rollback=0.1: 'hed' is part of no .*did you mean 'head'",
        ),
        (
            dict(paramwise=dict(custom_keys={'head': dict(rolback=0.1)})),
            "custom_keys\\['head'\\]: unknown key 'rolback'.*did you mean 'rollback'",
        ),
        (
            dict(paramwise=dict(custom_keys={'head': dict(max_level=0.1)})),
            "custom_keys\\['head'\\].max_level=0.1 stands in the wrong place",
        ),
        (dict(paramwise=dict(rollback=dict(half_life='3 epochs'))), "half_life='3 epochs' is gone: give max_level"),
        (dict(paramwise=dict(custom_keys={'head': None})), "custom_keys\\['head'\\]=None is not a dict"),
        (dict(paramwise=dict(custom_keys=['head'])), 'custom_keys=.* is not a dict'),
        (dict(optimizer='AdamW'), "optimizer='AdamW' is not a dict"),
        (
            dict(wrapper=dict(rollback=dict(max_level=0.1))),
            'optim_wrapper.rollback=.*belongs into optim_wrapper.paramwise_cfg',
        ),
        (dict(optimizer=dict(type='NoSuch', lr=1.0)), "optimizer.type='NoSuch'"),
        (dict(optimizer=dict(type='Linear')), r"optimizer\.type='Linear'"),
        (dict(optimizer=dict(type='AdamOLORW', lr=1.0)), r"optimizer\.type='AdamOLORW': .*'AdamOLOR'"),
        (dict(optimizer=dict(type='LBFGSOLOR', lr=1.0)), 'LBFGS cannot be used with rollback'),
        (dict(optimizer=dict(lr=1.0)), r'optimizer\.type=None'),
        (dict(optimizer=dict(type='AdamW', lr=0.0)), r'optimizer\.lr=0\.0'),
    ],
    ids=str,
)
def test_wrong_configs_name_key_value_and_remedy(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(optimizer=changes.get('optimizer'), wrapper=changes.get('wrapper', {}), **changes.get('paramwise', {}))


def test_groups_added_by_hand_in_the_middle_of_training():
    model = Toy()
    optimizer = build(model, rollback=dict(max_level=0.1, pretrained=['backbone'])).optimizer
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    added = nn.Parameter(torch.ones(2))
    added.grad = torch.ones(2)
    optimizer.add_param_group(dict(params=[added], rollback=0.1))
    optimizer.step()
    assert 'anchor' not in optimizer.state[added]  # it is not under 'backbone'
    assert all('anchor' in optimizer.state[p] for p in model.backbone.parameters())
