"""Stock heads of different layouts, what they read, and where each has its classes, as its own code reads them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn


@dataclass
class Case:
    """A head by config, and how to read its outputs.

    Args:
        read (Callable): Outputs and the number of classes to the tensors of classes, which are last, and the others.
        scores_at (int, optional): Which of the inputs has scores of classes, along dimension 1.
    """

    scope: str
    cfg: dict
    inputs: Callable[[int], tuple]
    read: Callable[[Any, int], tuple[list[Tensor], list[Tensor]]]
    scores_at: int | None = None
    others: dict = field(default_factory=dict)  # options that depend on the number of classes

    def build(self, classes: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        others = {name: value(classes) for name, value in self.others.items()}
        with DefaultScope.overwrite_default_scope(self.scope):
            head = MODELS.build(dict(self.cfg, num_classes=classes, **others))
        for p in head.parameters():
            nn.init.uniform_(p, -0.5, 0.5)
        return nn.ModuleDict({'head': head}).eval()


def features(channels=8, levels=1, size=4) -> tuple:
    return ([torch.rand(2, channels, size, size) for _ in range(levels)],)


def rows(output, classes):
    """Scores along dimension 1, a background last."""
    output = [output] if torch.is_tensor(output) else output
    scores = [value.movedim(1, -1) for value in output]
    return [value[..., :classes] for value in scores], [value[..., classes:] for value in scores]


def anchors(output, classes):
    """``cls_score.permute(0, 2, 3, 1).reshape(batch, -1, width)`` and boxes."""
    scores, boxes = output[:2]
    width = {9: classes, 2: classes + 1}[boxes[0].shape[1] // 4]
    scores = [value.permute(0, 2, 3, 1).reshape(len(value), -1, width) for value in scores]
    return [value[..., :classes] for value in scores], [*boxes, *(value[..., classes:] for value in scores)]


def yolo(output, classes):
    found = [value.permute(0, 2, 3, 1).reshape(len(value), -1, 5 + classes) for value in output[0]]
    return [value[..., 5:] for value in found], [value[..., :5] for value in found]


def rois(output, classes):
    scores, boxes = output
    return [scores[:, :classes]], [scores[:, classes:], boxes]


def rois_with_boxes(output, classes):
    """``bbox_pred.reshape(-1, classes, 4)``."""
    scores, boxes = output
    return [scores[:, :classes], boxes.reshape(len(boxes), classes, 4).movedim(1, -1)], [scores[:, classes:]]


def dense(output, classes):
    """A score for every class, and boxes of none."""
    found, _ = rows(output[0], classes)
    return found, [value for part in output[1:] if part is not None for value in part if torch.is_tensor(value)]


def classified(output, classes):
    found = output if isinstance(output, (list, tuple)) else [output]
    return [*found], []


def roi_inputs(classes):
    return (torch.rand(3, 8, 7, 7),)


def anchor_generator(scales=3, ratios=(0.5, 1.0, 2.0)):
    return dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=scales, ratios=ratios, strides=[8])


SIGMOID = dict(type='FocalLoss', use_sigmoid=True)
SEG = dict(channels=8, in_channels=8)
CLS = dict(in_channels=8)
CASES = {
    'an anchor after another': Case(
        'mmdet',
        dict(type='RetinaHead', in_channels=8, feat_channels=8, stacked_convs=1, anchor_generator=anchor_generator()),
        lambda _: features(),
        anchors,
    ),
    'with a background, an anchor after another': Case(
        'mmdet',
        dict(
            type='SSDHead',
            in_channels=[8],
            anchor_generator=dict(
                type='SSDAnchorGenerator',
                scale_major=False,
                input_size=32,
                strides=[8],
                ratios=[[]],
                min_sizes=[8],
                max_sizes=[16],
                basesize_ratio_range=None,
            ),
        ),
        lambda _: features(),
        anchors,
    ),
    'after box and objectness': Case(
        'mmdet',
        dict(
            type='YOLOV3Head',
            in_channels=[8],
            out_channels=[8],
            featmap_strides=[8],
            anchor_generator=dict(type='YOLOAnchorGenerator', base_sizes=[[(4, 4), (8, 8), (8, 4)]], strides=[8]),
        ),
        lambda _: features(),
        yolo,
    ),
    'without anchors': Case(
        'mmdet',
        dict(
            type='FCOSHead', in_channels=8, feat_channels=32, stacked_convs=1, strides=[8], regress_ranges=((-1, 1e8),)
        ),
        lambda _: features(),
        dense,
    ),
    'shared by levels': Case(
        'mmdet',
        dict(
            type='RTMDetSepBNHead',
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            share_conv=True,
            anchor_generator=dict(type='MlvlPointGenerator', strides=[8, 16]),
            norm_cfg=dict(type='BN'),
        ),
        lambda _: features(levels=2),
        dense,
    ),
    'of several levels': Case(
        'mmdet',
        dict(type='YOLOXHead', in_channels=8, feat_channels=8, stacked_convs=1, strides=[8, 16]),
        lambda _: features(levels=2),
        dense,
    ),
    'heatmaps': Case(
        'mmdet',
        dict(type='CenterNetHead', in_channels=8, feat_channels=7),
        lambda _: features(),
        dense,
    ),
    'boxes class by class': Case(
        'mmdet', dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=7), roi_inputs, rois_with_boxes
    ),
    'boxes of no class': Case(
        'mmdet',
        dict(type='Shared2FCBBoxHead', in_channels=8, fc_out_channels=7, reg_class_agnostic=True),
        roi_inputs,
        rois,
    ),
    'masks class by class': Case(
        'mmdet',
        dict(type='FCNMaskHead', num_convs=1, in_channels=8, conv_out_channels=7),
        roi_inputs,
        rows,
    ),
    'coarse masks class by class': Case(
        'mmdet',
        dict(type='CoarseMaskHead', num_fcs=1, in_channels=8, conv_out_channels=7, fc_out_channels=7),
        lambda _: (torch.rand(3, 8, 14, 14),),
        rows,
    ),
    'points that read the classes of a coarse mask': Case(
        'mmdet',
        dict(type='MaskPointHead', num_fcs=2, in_channels=8, fc_channels=7),
        lambda classes: (torch.rand(3, 8, 5), torch.rand(3, classes, 5)),
        rows,
        scores_at=1,
    ),
    'queries with a background': Case(
        'mmdet',
        dict(type='DETRHead', embed_dims=8, loss_cls=dict(type='CrossEntropyLoss')),
        lambda _: (torch.rand(2, 3, 5, 8),),
        lambda output, classes: ([output[0][..., :classes]], [output[0][..., classes:], output[1]]),
    ),
    'pixels': Case('mmseg', dict(type='FCNHead', num_convs=1, **SEG), lambda _: features(), rows),
    'pixels and what is in the image': Case(
        'mmseg',
        dict(
            type='EncHead',
            num_codes=2,
            in_index=[0],
            channels=8,
            in_channels=[8],
        ),
        lambda _: features(),
        lambda output, classes: ([output[0].movedim(1, -1), output[1]], []),
    ),
    'points that read the classes of pixels': Case(
        'mmseg',
        dict(
            type='PointHead',
            num_fcs=2,
            in_channels=[8],
            in_index=[0],
            channels=7,
            loss_decode=[dict(type='CrossEntropyLoss', loss_name='loss_point')],
        ),
        lambda classes: (torch.rand(2, 8, 5), torch.rand(2, classes, 5)),
        rows,
        scores_at=1,
    ),
    'an image': Case('mmpretrain', dict(type='LinearClsHead', **CLS), lambda _: ((torch.rand(3, 8),),), classified),
    'an image by a hidden layer': Case(
        'mmpretrain',
        dict(type='StackedLinearClsHead', mid_channels=[7], in_channels=8),
        lambda _: ((torch.rand(3, 8),),),
        classified,
    ),
    'an image by a token': Case(
        'mmpretrain',
        dict(type='VisionTransformerClsHead', hidden_dim=7, in_channels=8),
        lambda _: ((torch.rand(3, 8),),),
        classified,
    ),
    'an image twice': Case(
        'mmpretrain',
        dict(type='ConformerHead', in_channels=[8, 8]),
        lambda _: (([torch.rand(3, 8), torch.rand(3, 8)],),),
        classified,
    ),
    'an image with a distilled half': Case(
        'mmpretrain',
        dict(type='LeViTClsHead', distillation=True, in_channels=8, deploy=False),
        lambda _: ((torch.rand(3, 8),),),
        classified,
    ),
    'an image by several centers a class': Case(
        'mmpretrain',
        dict(type='ArcFaceClsHead', in_channels=8, num_subcenters=3),
        lambda _: ((torch.rand(3, 8),),),
        classified,
    ),
    'several classes an image': Case(
        'mmpretrain',
        dict(type='CSRAClsHead', in_channels=8, num_heads=2, lam=0.1),
        lambda _: features(),
        classified,
    ),
}
