"""How far weights have moved from their pre-trained values."""

from collections.abc import Mapping

import torch


def layer_drift(
    weights: Mapping[str, torch.Tensor], pretrained: Mapping[str, torch.Tensor], index: Mapping[str, tuple[int, int]]
) -> dict[int, float]:
    """Relative drift ||theta - theta_0|| / ||theta_0|| of every layer, over all parameters of the layer together.

    Args:
        weights (Mapping[str, Tensor]): The fine-tuned state dict.
        pretrained (Mapping[str, Tensor]): The pre-trained one, under the same names. A parameter that is missing here
            is new and does not count, nor do elements that are NaN.
        index (Mapping[str, tuple[int, int]]): Parameter name to (i, n), from :func:`olor_mm.layers.layer_index`.

    Returns:
        dict[int, float]: Layer i to its drift, in the order of the layers.

    Raises:
        ValueError: If no parameter is in both state dicts.
    """
    moved: dict[int, float] = {}
    norm: dict[int, float] = {}
    for name, (layer, _) in index.items():
        if name in weights and name in pretrained:
            start = pretrained[name].double()
            away = (weights[name].double() - start).masked_fill(start.isnan(), 0)
            moved[layer] = moved.get(layer, 0.0) + away.square().sum().item()
            norm[layer] = norm.get(layer, 0.0) + start.square().nansum().item()
    if not norm:
        names = f'{next(iter(weights), None)!r} and {next(iter(pretrained), None)!r} are their first names'
        raise ValueError(f'no parameter is in both state dicts: {names}')
    return {layer: (moved[layer] / norm[layer]) ** 0.5 if norm[layer] else 0.0 for layer in sorted(norm)}
