"""Running statistics of norm layers: no optimizer sees them, and the model's old task stands or falls with them."""

from collections import Counter
from collections.abc import Collection

import torch
from torch import nn


def statistics_states(model: nn.Module) -> dict[str, str]:
    """What happens to the running statistics of every norm layer in the mode that the model is in now.

    Args:
        model (nn.Module): A model; as in training after ``model.train()``, which is where ``norm_eval`` takes effect.

    Returns:
        dict[str, str]: Name of the layer to 'updated' (in every forward pass), 'frozen' (in eval mode: stock
        ``norm_eval``, ``frozen_stages``) or 'none' (it normalises each sample and has no running statistics).
    """
    states = {}
    for name, module in model.named_modules():
        if getattr(module, 'running_mean', None) is not None:
            states[name] = 'updated' if module.training else 'frozen'
        elif 'Norm' in type(module).__name__ and any(True for _ in module.parameters(recurse=False)):
            states[name] = 'none'
    return states


def summary(model: nn.Module, layers: Collection[str]) -> str:
    """One line that says in which of the states these norm layers are.

    Args:
        model (nn.Module): A model in training mode.
        layers (Collection[str]): Names of norm layers; others do not count.
    """
    counts = Counter(state for name, state in statistics_states(model).items() if name in layers)
    meaning = dict(
        updated='updated in training, the pre-trained ones are kept beside the anchors',
        frozen='frozen at their pre-trained values',
        none='without running statistics',
    )
    return '; '.join(f'{counts[state]} {what}' for state, what in meaning.items() if counts[state]) or 'none'


def running_statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """The running statistics of a norm layer.

    Args:
        module (nn.Module): A norm layer; another module has none.

    Returns:
        dict[str, Tensor]: 'running_mean' and 'running_var', both of shape (channels,), and 'num_batches_tracked', a
        number; only those that are there.
    """
    found = {kind: getattr(module, kind, None) for kind in ('running_mean', 'running_var', 'num_batches_tracked')}
    return {kind: value for kind, value in found.items() if value is not None}
