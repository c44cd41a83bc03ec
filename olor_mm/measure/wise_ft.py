"""WiSE-FT: interpolation between the weights of the pre-trained and the fine-tuned model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .restoring import check_shared


def interpolate(
    pretrained: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], alpha: float, prefix: str = ''
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """theta = (1 - alpha) theta_0 + alpha theta_1, the weight-space ensemble of WiSE-FT, arXiv 2109.01903.

    Running statistics of norm layers are interpolated like weights, which needs no data. They are exact at alpha = 0
    and 1 and an approximation between. Integers, such as ``num_batches_tracked``, are those of the fine-tuned model. So
    are tensors that the pre-trained model does not have in the same shape, such as a new head.

    Args:
        pretrained (Mapping[str, Tensor]): State dict theta_0.
        finetuned (Mapping[str, Tensor]): State dict theta_1.
        alpha (float): From 0, the pre-trained weights, to 1, the fine-tuned ones.
        prefix (str): What the fine-tuned model puts before the names of the pre-trained one, e.g. ``'backbone.'``.

    Returns:
        tuple[dict, dict]: The state dict, with the names, shapes and dtypes of ``finetuned``; and the floating tensors
        that were not interpolated, name to reason.

    Raises:
        ValueError: If alpha is not in [0, 1], or less than half of the pre-trained model's floating tensors are in the
            fine-tuned one.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha={alpha!r} is not in [0, 1]: 0 is the pre-trained model, 1 the fine-tuned one')
    state, kept = dict(finetuned), {}
    for name, value in finetuned.items():
        start = pretrained.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if not _is_weight(value):
            continue
        if not isinstance(start, Tensor):
            kept[name] = 'not in the pre-trained model'
        elif start.shape != value.shape:
            kept[name] = f'of shape {tuple(start.shape)} in the pre-trained model and {tuple(value.shape)} here'
        else:
            state[name] = torch.lerp(start.double(), value.double(), alpha).to(value.dtype)
    weights = [name for name, value in pretrained.items() if _is_weight(value)]
    shared = sum(_is_weight(state.get(prefix + name)) and prefix + name not in kept for name in weights)
    check_shared(shared, weights, finetuned, prefix)
    return state, kept


def _is_weight(value) -> bool:
    return isinstance(value, Tensor) and torch.is_floating_point(value)
