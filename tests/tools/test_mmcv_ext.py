"""The operators of torchvision that stand in for mmcv's compiled ones give what those give."""

import importlib.util
import sys
from functools import partial

import mmcv.ops
import numpy as np
import pytest
import torch
from conftest import ROOT
from with_openmmlab import needs_operators

sys.path.insert(0, str(ROOT))
from tools import mmcv_ext

BOXES = {
    'many that overlap': (200, 40.0),
    'few that overlap': (200, 600.0),
    'one': (1, 40.0),
    'none': (0, 40.0),
}
ROIS = {
    'within': [[0, 1.5, 2.25, 9.0, 12.5], [1, 0, 0, 15, 15], [0, 3, 3, 4, 4]],
    'over the edge': [[0, -4, -6, 9, 40], [1, 10, 12, 30, 30], [1, -9, -9, -2, -2]],
    'thin or empty': [[0, 3, 3, 3, 9], [1, 5, 5, 5, 5], [0, 2, 2, 2.01, 15]],
    'none': [],
}


def boxes_of(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count, spread = BOXES[kind]
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    boxes = torch.cat([corner, corner + 1 + 30 * torch.rand(count, 2, generator=generator)], dim=1)
    return boxes, torch.rand(count, generator=generator), torch.randint(3, (count,), generator=generator)


@pytest.fixture
def with_both(monkeypatch):
    """Runs a function with the compiled operators, then with those of torchvision."""

    def run(function) -> tuple:
        compiled = function()
        for name in ('nms', 'roi_align'):
            monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', mmcv_ext)
        ours = function()
        monkeypatch.undo()
        return compiled, ours

    return run


def assert_equal(results: tuple, **tolerance) -> None:
    for compiled, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, compiled, **(tolerance or dict(rtol=0, atol=0)))


@needs_operators
@pytest.mark.parametrize('kind', BOXES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('limits', [{}, dict(score_threshold=0.3), dict(score_threshold=2.0), dict(max_num=7)])
def test_nms_keeps_the_same_boxes_in_the_same_order(with_both, kind, offset, limits):
    boxes, scores, _ = boxes_of(kind)
    for threshold in (0.0, 0.3, 0.7, 1.0):
        assert_equal(with_both(partial(mmcv.ops.nms, boxes, scores, threshold, offset=offset, **limits)))


@needs_operators
@pytest.mark.parametrize('kind', [kind for kind in BOXES if kind != 'none'])  # mmcv takes the largest of no coordinates
@pytest.mark.parametrize('options', [{}, dict(split_thr=20), dict(class_agnostic=True), dict(split_thr=20, max_num=9)])
def test_nms_class_by_class_keeps_the_same(with_both, kind, options):
    cfg = dict(type='nms', iou_threshold=0.4, **options)
    assert_equal(with_both(lambda: mmcv.ops.batched_nms(*boxes_of(kind), cfg)))


@needs_operators
def test_nms_keeps_the_same_of_boxes_with_equal_scores(with_both):
    boxes, scores, _ = boxes_of('many that overlap')
    assert_equal(with_both(lambda: mmcv.ops.nms(boxes, torch.full((200,), 0.5), 0.5)))
    assert_equal(with_both(lambda: mmcv.ops.nms(boxes, scores.round(decimals=1), 0.5)))
    assert_equal(with_both(lambda: mmcv.ops.nms(boxes[:1].repeat(5, 1), torch.ones(5), 0.5)))


@needs_operators
def test_nms_takes_arrays(with_both):
    boxes, scores, _ = boxes_of('many that overlap')
    compiled, ours = with_both(lambda: mmcv.ops.nms(boxes.numpy(), scores.numpy(), 0.5))
    assert all(isinstance(result, np.ndarray) for result in ours)
    assert all(np.array_equal(a, b) for a, b in zip(compiled, ours))


@needs_operators
@pytest.mark.parametrize('rois', ROIS)
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize(
    'dtype, tolerance',
    [
        (torch.float32, dict(rtol=1e-5, atol=1e-5)),
        (torch.float64, dict(rtol=1e-6, atol=1e-6)),
        (torch.float16, dict(rtol=2e-2, atol=2e-2)),
    ],
)
def test_roi_align_and_its_gradient_are_the_same(with_both, rois, aligned, ratio, dtype, tolerance):
    features = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = mmcv.ops.RoIAlign((4, 3), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
    boxes = torch.tensor(ROIS[rois], dtype=dtype).view(-1, 5)

    def result():
        leaf = features.clone().requires_grad_()
        pooled = layer(leaf, boxes)
        (pooled * torch.arange(pooled.numel()).view_as(pooled) / 40).sum().backward()
        return pooled.detach(), leaf.grad

    assert_equal(with_both(result), **tolerance)


@needs_operators
def test_roi_align_takes_a_gradient_that_is_not_contiguous(with_both):
    features = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def result():
        leaf = features.clone().requires_grad_()
        pooled = mmcv.ops.roi_align(leaf, torch.tensor(ROIS['within']), 4, 1.0, 0, 'avg', True)
        pooled.transpose(2, 3)[..., 1:].sum().backward()
        return (leaf.grad,)

    assert_equal(with_both(result), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'name', ['softnms', 'modulated_deform_conv_forward', 'box_iou_rotated', 'ms_deform_attn_forward']
)
def test_any_other_operator_says_how_to_get_it(name):
    """mmcv asks for all names when it is imported; the error comes when one is called."""
    assert hasattr(mmcv_ext, name)
    with pytest.raises(NotImplementedError, match=rf'{name}.*make operators'):
        getattr(mmcv_ext, name)(torch.ones(1), option=2)


def test_largest_values_of_roi_align_are_not_had_of_torchvision(monkeypatch):
    monkeypatch.setattr(sys.modules['mmcv.ops.roi_align'], 'ext_module', mmcv_ext)
    with pytest.raises(NotImplementedError, match='max.*make operators'):
        mmcv.ops.roi_align(torch.ones(1, 1, 4, 4), torch.zeros(1, 5), 2, 1.0, 0, 'max', True)


def test_names_that_python_asks_of_a_module_are_not_operators():
    assert not hasattr(mmcv_ext, '__wrapped__') and not hasattr(mmcv_ext, '__path__')


def test_an_environment_without_operators_counts_as_one_with_them():
    """Stock code looks for mmcv._ext before it uses an operator."""
    assert importlib.util.find_spec('mmcv._ext') is not None
    assert mmcv.ops.get_compiler_version()
