"""Ways to train that MMEngine offers, each on its real parts."""

import pytest
import torch
from conftest import anchors, needs_cpu_scaler
from digits import LEVEL, assert_anchors_are_the_checkpoints, config, names_of, parameter_names, pretrained_state, train
from mmengine.hub import get_config
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

import olor_mm  # noqa: F401
from olor_mm.layers import layer_index
from olor_mm.optim import Rollback


def wrapper_for(model: nn.Module, **changes):
    rollback = dict(max_level=0.1, pretrained=['backbone'])
    cfg = dict(
        constructor='OLOROptimWrapperConstructor',
        optimizer=dict(type='AdamWOLOR', lr=1e-2),
        paramwise_cfg=dict(rollback=rollback),
    )
    return build_optim_wrapper(model, {**cfg, **changes})


def small_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)))
    model.head = nn.Linear(4, 2)
    return model


@needs_cpu_scaler
@pytest.mark.parametrize('clip', [None, dict(max_norm=1.0)])
@pytest.mark.parametrize('flags', [dict(fused=True), dict(foreach=False, fused=False)], ids=['fused', 'unfused'])
def test_amp_wrapper_skips_a_step_with_inf_whole(amp_on_cpu, flags, clip):
    model = small_model()
    optimizer = dict(type='AdamWOLOR', lr=1e-2, **flags)
    wrapper = wrapper_for(model, type='AmpOptimWrapper', optimizer=optimizer, clip_grad=clip)
    assert isinstance(wrapper, AmpOptimWrapper)

    def iterate(bad: bool) -> None:
        inputs = torch.ones(3, 4)
        loss = model.head(model.backbone(inputs)).square().sum()
        wrapper.update_params(loss * (float('inf') if bad else 1.0))

    def everything() -> list[torch.Tensor]:
        state = wrapper.optimizer.state_dict()['state']
        values = [*model.parameters(), *(v for i in sorted(state) for _, v in sorted(state[i].items()))]
        return [v.detach().clone() for v in values]

    for _ in range(3):
        iterate(bad=False)
    before, scale = everything(), wrapper.loss_scaler.get_scale()
    assert len(before) == 14 + 4 * 12 + 3 * 2
    iterate(bad=True)
    assert wrapper.loss_scaler.get_scale() == scale / 2
    assert all(torch.equal(a, b) for a, b in zip(everything(), before, strict=True))
    iterate(bad=False)
    assert not all(torch.equal(a, b) for a, b in zip(everything(), before))


@needs_cpu_scaler
def test_fused_and_unfused_amp_end_alike(amp_on_cpu):
    ends = []
    for flags in (dict(fused=True), dict(foreach=False, fused=False)):
        model = small_model()
        wrapper = wrapper_for(
            model, type='AmpOptimWrapper', optimizer=dict(type='AdamWOLOR', lr=1e-2, eps=1e-3, **flags)
        )
        for step in range(6):
            loss = model.head(model.backbone(torch.ones(3, 4))).square().sum()
            wrapper.update_params(loss * (float('inf') if step == 3 else 1.0))
        ends.append(list(model.parameters()))
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_run_in_bfloat16_autocast_keeps_float32_weights_and_anchors(data, tmp_path, amp_on_cpu):
    cfg = config(tmp_path, data)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
    runner, checkpoint = train(cfg)
    found = anchors(checkpoint, names_of(runner))
    assert_anchors_are_the_checkpoints(found, pretrained_state(data), parameter_names(runner, 'backbone.'))
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}


def test_a_compiled_model_trains_as_the_eager_one(data, tmp_path):
    """On a model of few layers: each takes seconds to compile."""
    arch = dict(embed_dims=16, depth=1, patch_size=8, kernel_size=3)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        source = MODELS.build(dict(type='ConvMixer', arch=arch)).state_dict()
    torch.save(source, tmp_path / 'source.pth')
    source = {f'backbone.{name}': value for name, value in source.items()}
    ends = {}
    for compiled in (False, dict(backend='aot_eager')):
        torch._dynamo.reset()
        cfg = config(tmp_path / str(bool(compiled)), data, iterations=2, compile=compiled)
        init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'source.pth'))
        cfg.model.backbone = dict(type='ConvMixer', arch=arch, init_cfg=init_cfg)
        cfg.model.head.in_channels = 16
        cfg.optim_wrapper.optimizer.eps = 1e-2  # or Adam makes full steps of rounding
        runner, checkpoint = train(cfg)
        found = anchors(checkpoint, names_of(runner))
        assert_anchors_are_the_checkpoints(found, source, parameter_names(runner, 'backbone.'))
        assert checkpoint['optimizer']['pretrained_statistics']
        ends[bool(compiled)] = checkpoint['state_dict']
    assert not torch.equal(ends[True]['backbone.stem.0.weight'], source['backbone.stem.0.weight'])
    for name, value in ends[False].items():
        torch.testing.assert_close(ends[True][name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('counts', [1, 2])
def test_flexible_runner_ends_as_the_runner_does(data, tmp_path, counts):
    """It loads `init_cfg` before the constructor runs, which loads once more, and counts before it resumes."""
    ends = []
    for runner_class in (Runner, FlexibleRunner):
        cfg = config(tmp_path / runner_class.__name__, data, iterations=4)
        cfg.optim_wrapper.accumulative_counts = counts
        cfg.pop('launcher', None)
        if runner_class is FlexibleRunner:
            cfg.strategy = dict(type='SingleDeviceStrategy')
        runner = runner_class.from_cfg(cfg)
        runner.train()
        found = runner.optim_wrapper.optimizer
        source = pretrained_state(data)
        names = {p: name for name, p in runner.model.named_parameters()}
        kept = {names[p]: state['anchor'] for p, state in found.state.items() if 'anchor' in state}
        assert_anchors_are_the_checkpoints(kept, source, parameter_names(runner, 'backbone.'))
        assert torch.equal(
            found.pretrained_statistics['backbone.conv1.bn.running_mean'], source['backbone.conv1.bn.running_mean']
        )
        ends.append(runner.model.state_dict())
    for name in ends[0]:
        assert torch.equal(ends[0][name], ends[1][name]), name


def test_flexible_runner_sees_what_load_from_loads(data, tmp_path):
    cfg = config(tmp_path, data, load_from=str(data / 'weights/mobilenet_v2_mmpretrain.pth'))
    cfg.model.backbone.pop('init_cfg')
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.pop('launcher', None)
    cfg.strategy = dict(type='SingleDeviceStrategy')
    runner = FlexibleRunner.from_cfg(cfg)
    runner.train()
    names = {p: name for name, p in runner.model.named_parameters()}
    state = runner.optim_wrapper.optimizer.state
    kept = {names[p]: entry['anchor'] for p, entry in state.items() if 'anchor' in entry}
    assert_anchors_are_the_checkpoints(kept, pretrained_state(data), parameter_names(runner, 'backbone.'))


def test_any_optimizer_of_the_registry_through_the_olor_type(data, tmp_path):
    pytest.importorskip('lion_pytorch')
    cfg = config(tmp_path, data)
    cfg.optim_wrapper.optimizer = dict(type='OLOR', base=dict(type='Lion', lr=1e-4, weight_decay=0.1))
    runner, checkpoint = train(cfg)
    optimizer = runner.optim_wrapper.optimizer
    assert type(optimizer).__name__ == 'LionOLOR' and isinstance(optimizer, Rollback)
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, 0.1}
    assert max(group['rollback'] for group in optimizer.param_groups) == LEVEL
    found = anchors(checkpoint, names_of(runner))
    assert_anchors_are_the_checkpoints(found, pretrained_state(data), parameter_names(runner, 'backbone.'))


def test_the_olor_type_without_our_constructor():
    model = small_model()
    optimizer = dict(type='olor_mm.OLOR', base=dict(type='SGD', lr=0.1, momentum=0.9), rollback=0.2)
    wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=optimizer))
    assert type(wrapper.optimizer).__name__ == 'SGDOLOR'
    assert [group['rollback'] for group in wrapper.optimizer.param_groups] == [0.2]


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(optimizer=dict(type='OLOR')), r'optimizer\.base=None is not a dict'),
        (dict(optimizer=dict(type='OLOR', base='Lion')), r"optimizer\.base='Lion' is not a dict"),
        (dict(optimizer=dict(type='OLOR', base=dict(type='Lyon', lr=0.1))), "'Lyon'"),
        (
            dict(optimizer=dict(type='OLOR', lr=0.1, base=dict(type='SGD', lr=0.2))),
            r'optimizer\.lr=0\.1 and optimizer\.base\.lr=0\.2: keep one',
        ),
        (dict(optimizer=dict(type='OLOR', base=dict(type='LBFGS'))), 'LBFGS cannot be used with rollback'),
        (dict(type='DeepSpeedOptimWrapper'), r"type='DeepSpeedOptimWrapper' cannot be used.*FSDPStrategy"),
        (dict(type='ColossalAIOptimWrapper'), r"type='ColossalAIOptimWrapper' cannot be used"),
        (
            dict(paramwise_cfg=dict(rollback=dict(anchor_dtype='bfloat16'))),
            r"anchor_dtype='bfloat16' stands in the wrong place: it belongs into optimizer",
        ),
    ],
    ids=str,
)
def test_what_cannot_work_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        wrapper_for(small_model(), **changes)


STOCK = {
    'mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py': 12,
    'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py': 12,
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py': 18,
    'mmpretrain::resnet/resnet50_8xb32_in1k.py': 16,
    'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py': 17,
    'mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py': None,
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': 16,
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': 8,
}


@pytest.mark.parametrize('stock', STOCK)
def test_groups_are_merged(stock):
    """Norms without weight decay or with, at each depth: no more groups than that."""
    scope = stock.split('::')[0]
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(get_config(stock).model)
    wrapper = wrapper_for(
        model,
        optimizer=dict(type='AdamWOLOR', lr=1e-4, weight_decay=0.05),
        paramwise_cfg=dict(rollback=dict(max_level=0.01, pretrained=['backbone']), norm_decay_mult=0.0),
    )
    layers = STOCK[stock] or max(n for _, n in layer_index(model).values()) - 1
    groups = wrapper.optimizer.param_groups
    assert len({group['rollback'] for group in groups}) >= 8
    assert len(groups) <= 2 * layers + 4
    assert sum(len(group['params']) for group in groups) == sum(p.requires_grad for p in model.parameters())


def test_resuming_into_another_model_names_the_parameters():
    wrapper, other = (wrapper_for(small_model()) for _ in range(2))
    loss = sum(p.sum() for group in wrapper.optimizer.param_groups for p in group['params'])
    loss.backward()
    wrapper.optimizer.step()
    state = wrapper.state_dict()
    model = small_model()
    model.backbone.append(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    with pytest.raises(
        ValueError,
        match=r'backbone\.3\.0\.weight \(group none there, 6 here\).*head\.weight \(group 6 there, 8 here\)',
    ):
        wrapper_for(model).load_state_dict(state)
    renamed = small_model()
    renamed.tail = renamed.head
    del renamed.head
    with pytest.raises(
        ValueError, match=r'head\.weight \(group 6 there, none here\).*tail\.weight \(group none there, 6 here\)'
    ):
        wrapper_for(renamed).load_state_dict(state)
    other.load_state_dict(state)
