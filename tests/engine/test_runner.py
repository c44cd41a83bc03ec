"""The traps, each on a real Runner, a real model and real files."""

import pytest
import torch
from conftest import anchors
from digits import (
    LEVEL,
    LR,
    StopAfter,
    assert_anchors_are_the_checkpoints,
    config,
    names_of,
    parameter_names,
    pretrained_state,
    train,
)
from mmengine.hooks import Hook
from mmengine.runner import Runner

import olor_mm  # noqa: F401


def test_anchors_from_init_cfg_equal_the_file_and_the_new_head_has_none(data, tmp_path):
    runner, checkpoint = train(config(tmp_path, data))
    found = anchors(checkpoint, names_of(runner))
    assert_anchors_are_the_checkpoints(found, pretrained_state(data), parameter_names(runner, 'backbone.'))
    assert not torch.equal(checkpoint['state_dict']['backbone.conv1.conv.weight'], found['backbone.conv1.conv.weight'])


@pytest.mark.parametrize('classes', [10, 1000])
def test_anchors_from_load_from_equal_the_file_and_another_class_count_has_none(data, tmp_path, classes):
    cfg = config(tmp_path, data, load_from=str(data / 'weights/mobilenet_v2_mmpretrain.pth'))
    cfg.model.backbone.pop('init_cfg')
    cfg.model.head.num_classes = classes
    cfg.optim_wrapper.paramwise_cfg.rollback.min_level = (
        0.01  # so that a head would be rolled back, were it pre-trained
    )
    runner, checkpoint = train(cfg)
    expected = parameter_names(runner, '' if classes == 1000 else 'backbone.')
    assert_anchors_are_the_checkpoints(anchors(checkpoint, names_of(runner)), pretrained_state(data), expected)


def test_a_run_follows_the_rule_through_warmup_accumulation_clipping_and_frozen_stages(data, tmp_path):
    """One parameter of the real run, replayed in float64 from the gradients the optimizer saw."""
    cfg = config(tmp_path, data, iterations=8)
    cfg.model.backbone.frozen_stages = 1
    cfg.optim_wrapper.update(accumulative_counts=2, clip_grad=dict(max_norm=1.0))
    cfg.auto_scale_lr = dict(enable=True, base_batch_size=4)  # twice lr
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=4, end=8, T_max=4),
    ]
    runner = Runner.from_cfg(cfg)
    seen, name = [], 'backbone.layer3.1.conv.2.conv.weight'
    build = runner.build_optim_wrapper

    def build_and_watch(optim_wrapper):
        first = isinstance(optim_wrapper, dict)
        built = build(optim_wrapper)
        if first:
            p = dict(runner.model.named_parameters())[name]
            group = next(g for g in built.optimizer.param_groups if any(p is q for q in g['params']))
            built.optimizer.register_step_pre_hook(lambda *_: seen.append((p.grad.clone(), group['lr'])))
        return built

    runner.build_optim_wrapper = build_and_watch
    runner.train()
    assert len(seen) == 4  # eight iterations, two to a step
    assert len({lr for _, lr in seen}) == 4  # warm-up and cosine were at work
    theta_0 = pretrained_state(data)[name].double()
    theta, m, v = theta_0.clone(), torch.zeros_like(theta_0), torch.zeros_like(theta_0)
    layer, n = 1 + 2 + 2, 18  # stem, one block, two blocks, and the second of the next stage
    for t, (grad, lr) in enumerate(seen, 1):
        grad = grad.double()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        theta = theta * (1 - lr * 0.05) - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        w = LEVEL * (1 - layer / n) * lr / (2 * LR)
        theta = theta - w * (theta - theta_0)
    moved = (theta - theta_0).abs().max()
    assert ((runner.model.state_dict()[name].double() - theta).abs().max() / moved) < 1e-4
    frozen = [n for n, p in runner.model.named_parameters() if not p.requires_grad]
    assert frozen
    for frozen_name in frozen:
        assert torch.equal(runner.model.state_dict()[frozen_name], pretrained_state(data)[frozen_name])


@pytest.mark.parametrize('enabled', [True, False])
def test_auto_scale_lr_without_a_scheduler_leaves_the_level_as_it_is(data, tmp_path, enabled):
    cfg = config(tmp_path, data)
    cfg.param_scheduler = None
    cfg.auto_scale_lr = dict(enable=enabled, base_batch_size=64)
    runner, _ = train(cfg)
    optimizer = runner.optim_wrapper.optimizer
    assert optimizer.param_groups[0]['lr'] == pytest.approx(LR / 8 if enabled else LR)
    assert optimizer.rollback_weight(optimizer.param_groups[0]) == optimizer.param_groups[0]['rollback'] == LEVEL


def test_ema_neither_moves_anchors_nor_is_moved_by_them(data, tmp_path):
    cfg = config(tmp_path, data, iterations=4)
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    runner, checkpoint = train(cfg)
    found = anchors(checkpoint, names_of(runner))
    assert_anchors_are_the_checkpoints(found, pretrained_state(data), parameter_names(runner, 'backbone.'))
    averaged, trained = checkpoint['state_dict'], checkpoint['ema_state_dict']
    name = 'backbone.conv1.conv.weight'
    assert not torch.equal(averaged[name], trained[f'module.{name}'])


def test_a_backbone_whose_loaded_layer_is_initialised_again_treats_that_layer_as_new(data, tmp_path):
    cfg = config(tmp_path, data)
    runner = Runner.from_cfg(cfg)
    init_weights = runner.model.init_weights

    def init_and_spoil():
        init_weights()
        torch.nn.init.normal_(runner.model.backbone.conv1.conv.weight)

    runner.model.init_weights = init_and_spoil
    runner.train()
    state = runner.optim_wrapper.optimizer.state
    assert 'anchor' not in state[runner.model.backbone.conv1.conv.weight]
    assert 'anchor' in state[runner.model.backbone.conv1.bn.weight]


def test_nothing_loaded_stops_before_the_first_iteration(data, tmp_path):
    cfg = config(tmp_path, data)
    cfg.model.backbone.pop('init_cfg')
    with pytest.raises(
        ValueError, match=r"pretrained='auto': no checkpoint was loaded .*load_from.*pretrained=\['backbone'\]"
    ):
        train(cfg)
    assert not list(tmp_path.glob('*.pth'))
    cfg = config(tmp_path / 'off', data)
    cfg.model.backbone.pop('init_cfg')
    cfg.optim_wrapper.paramwise_cfg.rollback.max_level = 0.0
    _, checkpoint = train(cfg)
    assert not any('anchor' in entry for entry in checkpoint['optimizer']['state'].values())


@pytest.mark.parametrize(
    'pretrained, expected',
    [
        (['backbone.layer1', 'backbone.layer2'], ('backbone.layer1.', 'backbone.layer2.')),
        ('all', ('backbone.', 'head.')),
    ],
)
def test_pretrained_given_by_hand(data, tmp_path, pretrained, expected):
    cfg = config(tmp_path, data)
    cfg.optim_wrapper.paramwise_cfg.rollback.pretrained = pretrained
    runner, checkpoint = train(cfg)
    assert set(anchors(checkpoint, names_of(runner))) == {n for n in parameter_names(runner) if n.startswith(expected)}


def test_resuming_without_optimizer_state_or_from_stock_is_refused(data, tmp_path):
    cfg = config(tmp_path, data)
    cfg.default_hooks.checkpoint.save_optimizer = False
    train(cfg)
    cfg = config(tmp_path, data, epochs=2, resume=True)
    with pytest.raises(
        ValueError,
        match=r'resumed at iteration 3 from a checkpoint without the state of the optimizer.*save_optimizer=True',
    ):
        train(cfg)

    stock = config(tmp_path / 'stock', data)
    stock.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=LR))
    train(stock)
    cfg = config(tmp_path / 'stock', data, epochs=2, resume=True)
    with pytest.raises(ValueError, match='no anchors.*load_from'):
        train(cfg)


def test_resume_in_process_keeps_anchors_and_ends_as_the_uninterrupted_run(data, tmp_path):
    _, straight = train(config(tmp_path / 'straight', data, epochs=4))
    runner = Runner.from_cfg(config(tmp_path / 'resumed', data, epochs=4))
    runner.register_hook(StopAfter(2))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    runner, resumed = train(config(tmp_path / 'resumed', data, epochs=4, resume=True))
    assert resumed['meta']['epoch'] == 4
    assert_same(resumed['state_dict'], straight['state_dict'])
    assert_same(resumed['optimizer']['state'], straight['optimizer']['state'])
    assert_anchors_are_the_checkpoints(
        anchors(resumed, names_of(runner)), pretrained_state(data), parameter_names(runner, 'backbone.')
    )


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(pretrained=['head']), r"pretrained=\['head'\]: every parameter under it has level 0 or is frozen"),
        (dict(frozen=True), 'no parameter that is trained has a level above 0: the backbone is frozen'),
    ],
)
def test_a_run_in_which_nothing_would_be_rolled_back_is_refused(data, tmp_path, change, message):
    cfg = config(tmp_path, data)
    if 'pretrained' in change:
        cfg.optim_wrapper.paramwise_cfg.rollback.pretrained = change['pretrained']
    runner = Runner.from_cfg(cfg)
    if 'frozen' in change:
        runner.model.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        runner.train()


def test_one_cycle_schedule_never_exceeds_the_level(data, tmp_path):
    cfg = config(tmp_path, data, iterations=6)
    cfg.param_scheduler = [dict(type='OneCycleLR', eta_max=LR, total_steps=6, by_epoch=False)]
    runner = Runner.from_cfg(cfg)
    runner.register_hook(WatchWeights())
    runner.train()
    assert len(WatchWeights.seen) == 6
    assert max(WatchWeights.seen) == pytest.approx(LEVEL, rel=0.2)
    assert all(weight <= LEVEL * (1 + 1e-9) for weight in WatchWeights.seen)


class WatchWeights(Hook):
    """Notes w of the first group in every iteration."""

    seen = []  # noqa: RUF012

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        optimizer = runner.optim_wrapper.optimizer
        self.seen.append(optimizer.rollback_weight(optimizer.param_groups[0]))
