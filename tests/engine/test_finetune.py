"""The fragments of configs/_base_/finetune, each on a stock config, a real Runner and real files."""

import numpy as np
import pytest
import torch
from conftest import ROOT, anchors, optimizer_names
from digits import pretrained_state
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

import olor_mm  # noqa: F401
from olor_mm.layers import layer_index

FRAGMENTS = sorted(file.stem for file in (ROOT / 'configs/_base_/finetune').glob('*.py'))
STOCK = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
LR = 1e-2


def config(fragment, work_dir, data, stock=STOCK, iterations=2, **changes) -> Config:
    """A stock config with the two lines of the README, on a few digits; one epoch of two iterations."""
    file = work_dir / 'config.py'
    file.write_text(
        f"_base_ = ['{stock}', '{ROOT}/configs/_base_/finetune/{fragment}.py']\n"
        'optim_wrapper = dict(_delete_=True, **_base_.finetune_optim_wrapper)\n'
        "custom_hooks = [*_base_.get('custom_hooks', []), *_base_.finetune_hooks]\n"
    )
    cfg = Config.fromfile(file)
    cfg.work_dir = str(work_dir)
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
    cfg.train_dataloader = dict(
        batch_size=8,
        num_workers=0,
        drop_last=True,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='CustomDataset',
            data_root=str(data / 'digits/train'),
            pipeline=steps,
            indices=[7 * i for i in range(8 * iterations)],
        ),
    )
    weights = dict(type='Pretrained', checkpoint=str(data / 'weights/mobilenet_v2_mmpretrain.pth'), prefix='backbone.')
    cfg.model.backbone.init_cfg = weights
    cfg.model.head.num_classes = cfg.data_preprocessor.num_classes = 10
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.param_scheduler = None
    cfg.auto_scale_lr = None
    cfg.optim_wrapper.optimizer.lr = LR
    cfg.log_level = 'ERROR'
    cfg.randomness = dict(seed=0)
    cfg.experiment_name = str(work_dir).replace('/', '_')
    cfg.merge_from_dict(changes)
    return cfg


class Watch(Hook):
    """Keeps every parameter as it was before each step and after the last, and the gradients and rates of the steps."""

    def __init__(self):
        self.values, self.grads = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.values:
            self.keep(runner)
            runner.optim_wrapper.optimizer.register_step_pre_hook(
                lambda *_: self.grads.append(
                    {n: p.grad.double().clone() for n, p in runner.model.named_parameters() if p.grad is not None}
                )
            )

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.keep(runner)

    def keep(self, runner):
        self.values.append({n: p.detach().double().clone() for n, p in runner.model.named_parameters()})


def train(cfg) -> tuple[Runner, Watch]:
    runner, watch = Runner.from_cfg(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


def test_there_is_one_for_each_way():
    assert FRAGMENTS == ['full', 'l2sp', 'l2sp_decoupled', 'layer_decay', 'linear_probe', 'olor', 'spd']


@pytest.mark.parametrize('fragment', FRAGMENTS)
def test_fragment_trains_a_stock_config(fragment, data, tmp_path):
    runner, watch = train(config(fragment, tmp_path, data))
    start, end = watch.values[0], watch.values[-1]
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert 'head.fc.weight' in moved
    assert ('backbone.conv1.conv.weight' in moved) == (fragment != 'linear_probe')
    optimizer = runner.optim_wrapper.optimizer
    anchored = anchors(dict(optimizer=optimizer.state_dict()), optimizer_names(runner.model, optimizer))
    backbone = {name for name in start if name.startswith('backbone.')}
    assert set(anchored) == (backbone if fragment in ('l2sp', 'l2sp_decoupled', 'spd', 'olor') else set())
    source = pretrained_state(data)
    assert all(torch.equal(anchor, source[name]) for name, anchor in anchored.items())


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_l2sp_pulls_what_was_loaded_by_alpha_and_the_new_head_by_beta(momentum, data, tmp_path):
    """Every parameter of the real run, replayed in float64 from the gradients of the loss."""
    alpha, beta = 0.5, 0.2
    cfg = config('l2sp', tmp_path, data, iterations=4)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=LR, momentum=momentum)
    cfg.optim_wrapper.paramwise_cfg.rollback.update(max_level=alpha, new_level=beta)
    _, watch = train(cfg)
    source = pretrained_state(data)
    assert len(watch.grads) == 4
    for name, theta in watch.values[0].items():
        is_new = name.startswith('head.')
        m = torch.zeros_like(theta)
        for grads in watch.grads:
            g = grads[name] + (beta * theta if is_new else alpha * (theta - source[name].double()))
            m = momentum * m + g
            theta = theta - LR * m
        torch.testing.assert_close(watch.values[-1][name], theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('norm_eval', [None, False])
def test_linear_probing_leaves_the_backbone_to_the_bit(norm_eval, data, tmp_path):
    cfg = config('linear_probe', tmp_path, data, iterations=4)
    if norm_eval is not None:
        cfg.model.backbone.norm_eval = norm_eval
    cfg.train_cfg.max_epochs = 2
    runner, watch = train(cfg)
    source = pretrained_state(data)
    state = runner.model.state_dict()
    kept = [name for name in state if name.startswith('backbone.')]
    assert len([name for name in kept if 'running_' in name]) == 104
    for name in kept:
        assert torch.equal(state[name], source[name]), name
    assert all(set(grads) == {'head.fc.weight', 'head.fc.bias'} for grads in watch.grads)
    assert not torch.equal(watch.values[0]['head.fc.weight'], watch.values[-1]['head.fc.weight'])


def built(model: str, **options):
    from mmpretrain.registry import MODELS

    backbone = dict(type=model, **options)
    head = dict(type='LinearClsHead', num_classes=5, in_channels=96)
    return MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=backbone, head=head))


def rates(optimizer) -> dict[nn.Parameter, float]:
    return {p: group['lr'] for group in optimizer.param_groups for p in group['params']}


@pytest.mark.parametrize(
    'model, options, many',
    [
        ('VisionTransformer', dict(arch='deit-tiny', img_size=64), 10),
        ('SwinTransformer', dict(arch='tiny', img_size=64), 10),
        ('BEiTViT', dict(arch='base', img_size=64), 10),
        # in these it lumps blocks, or goes back along the way
        ('ConvNeXt', dict(arch='tiny'), 7),
        ('ResNet', dict(depth=50), 7),
        ('SwinTransformer', dict(arch='tiny', img_size=64, use_abs_pos_embed=True, out_indices=(1, 2, 3)), 10),
        ('DistilledVisionTransformer', dict(arch='deit-tiny', img_size=64), 10),
    ],
)
def test_layer_decay_gives_the_rates_of_mmpretrain(model, options, many):
    model = built(model, **options)
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    stock_cfg = dict(norm_decay_mult=0.0, layer_decay_rate=0.65)
    stock = build_optim_wrapper(
        model,
        dict(
            optimizer=optimizer,
            constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=stock_cfg,
        ),
    )
    ours = build_optim_wrapper(
        model,
        dict(
            optimizer=optimizer,
            constructor='OLOROptimWrapperConstructor',
            paramwise_cfg=dict(rollback=dict(max_level=0.0), **stock_cfg),
        ),
    )
    theirs, names = rates(stock.optimizer), {p: name for name, p in model.named_parameters()}
    assert len(set(theirs.values())) > many
    for p, lr in rates(ours.optimizer).items():
        assert lr == pytest.approx(theirs[p], rel=1e-12), names[p]
    assert rates(ours.optimizer).keys() == theirs.keys()
    assert len(ours.optimizer.param_groups) <= 2 * len(set(theirs.values()))


def test_layer_decay_of_any_backbone_multiplies_with_the_rates_of_custom_keys():
    model = built('MobileNetV2')
    wrapper = dict(
        constructor='OLOROptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1e-3),
        paramwise_cfg=dict(
            layer_decay_rate=0.8, rollback=dict(max_level=0.1), custom_keys={'layer3': dict(lr_mult=3.0)}
        ),
    )
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    found, index = rates(optimizer), layer_index(model)
    for name, p in model.named_parameters():
        i, n = index[name]
        assert found[p] == pytest.approx(1e-3 * 0.8 ** (n - i) * (3 if 'layer3' in name else 1))
    levels = {p: group['rollback'] for group in optimizer.param_groups for p in group['params']}
    assert levels[model.backbone.conv1.conv.weight] == pytest.approx(0.1)
    for group in optimizer.param_groups:  # w of each group is that of its level, whatever its rate
        assert optimizer.rollback_weight(group) == pytest.approx(group['rollback'])


def small_model() -> nn.Module:
    model = nn.Module()
    model.backbone = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)))
    model.head = nn.Linear(4, 2)
    return model


def wrapper_for(**paramwise):
    cfg = dict(type='SGD', lr=0.1)
    return build_optim_wrapper(
        small_model(), dict(constructor='OLOROptimWrapperConstructor', optimizer=cfg, paramwise_cfg=paramwise)
    )


def test_rules_give_all_layers_one_level_unless_asked_otherwise():
    def levels(**rollback):
        groups = wrapper_for(rollback=rollback).optimizer.param_groups
        return [(group['rollback_rule'], group['rollback'], group['rollback_new']) for group in groups]

    assert levels(rule='l2sp', max_level=2.0, new_level=0.3) == [('l2sp', 2.0, 0.3)]
    assert levels(rule='spd') == [('spd', 1.0, 0.0)]
    assert levels(rule='l2sp_decoupled') == [('l2sp_decoupled', 0.01, 0.0)]
    shares = [level for _, level, _ in levels(rule='l2sp', max_level=2.0, min_level=1.0, power=1.0, new_level=0.3)]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 1.0 and len(shares) > 2


def test_a_level_of_zero_by_hand_leaves_a_parameter_to_the_optimizer():
    optimizer = wrapper_for(
        rollback=dict(rule='l2sp', new_level=0.3), custom_keys={'head.bias': dict(rollback=0.0)}
    ).optimizer
    found = {name: group for group in optimizer.param_groups for name in group['names']}
    assert (found['head.bias']['rollback'], found['head.bias']['rollback_new']) == (0.0, 0.0)
    assert (found['head.weight']['rollback'], found['head.weight']['rollback_new']) == (0.01, 0.3)


@pytest.mark.parametrize(
    'paramwise, message',
    [
        (dict(rollback=dict(rule='L2SP')), r"rollback\.rule='L2SP' is unknown; take one of 'olor', 'l2sp'"),
        (dict(rollback=dict(rule=['spd'])), r"rollback\.rule=\['spd'\] is unknown"),
        (dict(rollback=dict(rule='l2sp', max_level=-0.1)), r'rollback\.max_level=-0\.1 is not a number in \[0, '),
        (dict(rollback=dict(rule='spd', new_level=0.1)), r"new_level=0\.1 .*'l2sp'.*'spd'"),
        (dict(rollback=dict(new_level=0.1)), r"new_level=0\.1 .*'l2sp'.*'olor'"),
        (dict(rollback=dict(rule='l2sp', new_level=True)), 'new_level=True is not a number'),
        (
            dict(rollback=dict(rule='l2sp', new_level=0.1, power=1.0)),
            r'new_level=0\.1 .*raise min_level.*power=1\.0',
        ),
        (dict(rollback=dict(rule='l2sp', new_level=0.1, max_level=0)), r'new_level=0\.1 .*max_level=0'),
        (dict(rollback=dict(rule='l2sp', coupling='constant')), "coupling='constant' is an option of rule='olor'"),
        (dict(rollback=dict(max_level=2.0)), r'max_level=2\.0 is not a number in \[0, 1\]'),
        (dict(layer_decay_rate=0), r'layer_decay_rate=0 is not a number in \(0, 1\]'),
        (dict(layer_decay_rate='0.75'), r"layer_decay_rate='0\.75'"),
        (dict(rollback=dict(rule='spd'), custom_keys={'head': dict(rollback=-1.0)}), r'rollback=-1\.0 is not a number'),
    ],
)
def test_wrong_settings_name_key_value_and_remedy(paramwise, message):
    with pytest.raises(ValueError, match=message):
        wrapper_for(**paramwise)


@pytest.mark.parametrize('key', ['rollback_rule', 'rollback_new'])
def test_a_rule_in_the_wrong_place_is_told_where_it_belongs(key):
    cfg = dict(constructor='OLOROptimWrapperConstructor', optimizer={'type': 'SGD', 'lr': 0.1, key: 'l2sp'})
    with pytest.raises(ValueError, match=rf"optimizer\.{key}='l2sp'.*paramwise_cfg\.rollback"):
        build_optim_wrapper(small_model(), cfg)


def test_layer_decay_rates_are_written_out():
    """A chain of six linear layers is layers 0 to 5, and the head is n = 6."""
    optimizer = wrapper_for(layer_decay_rate=0.5, rollback=dict(max_level=0.0)).optimizer
    found = {name: group['lr'] for group in optimizer.param_groups for name in group['names']}
    chain = [found[f'backbone.{i // 2}.{i % 2}.weight'] for i in range(6)]
    np.testing.assert_allclose([*chain, found['head.weight']], [0.1 / 64, 0.1 / 32, 0.1 / 16, 0.0125, 0.025, 0.05, 0.1])
