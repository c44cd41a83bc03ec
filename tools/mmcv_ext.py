"""nms and RoIAlign of torchvision in the place of ``mmcv._ext``, the compiled operators of mmcv.

``tools/setup_env.sh`` copies this file to ``mmcv/_ext.py`` in the environment of this repository where it finds no
wheel of mmcv. olor_mm never does that: mmcv of your own environment stays as it is. All other operators raise an error
when they are called. ``make operators`` puts the compiled ones in the place of this file.
"""

import torch
import torchvision

IS_FROM_TORCHVISION = True


def nms(boxes, scores, iou_threshold: float, offset: int):
    """Indices of the kept boxes by falling score; a box is ``x2 - x1 + offset`` wide. Boxes are (N, 4), scores (N,)."""
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    order = scores.argsort(descending=True)  # mmcv's order of equal scores, which torchvision's sort would not change
    return order[torchvision.ops.nms(boxes[order], scores[order], iou_threshold)]


def roi_align_forward(
    features, rois, output, argmax_y, argmax_x, *,
    aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned,
):  # fmt: skip
    """Write RoIAlign of (N, C, H, W) at (K, 5) boxes into ``output`` (K, C, height, width)."""
    if pool_mode == 0:
        __getattr__('roi_align with pool_mode="max"')()
    size = (aligned_height, aligned_width)
    output.copy_(torchvision.ops.roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    gradient, rois, argmax_y, argmax_x, features_gradient, *,
    aligned_height, aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned,
):  # fmt: skip
    """Write the gradient of the features into ``features_gradient`` (N, C, H, W)."""
    size, shape = (aligned_height, aligned_width), features_gradient.shape
    backward = torch.ops.torchvision._roi_align_backward
    features_gradient.copy_(backward(gradient, rois, spatial_scale, *size, *shape, sampling_ratio, aligned))


def get_compiler_version() -> str:
    return 'none: operators of torchvision'


get_compiling_cuda_version = get_compiler_version


def __getattr__(name: str):
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*_, **__):
        raise NotImplementedError(
            f'mmcv was set up without its compiled operators, and {name} is one of them: `make operators` compiles them'
        )

    return missing
