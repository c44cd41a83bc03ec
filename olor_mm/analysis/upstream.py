"""A fine-tuned model put back into its upstream state, for the task it was pre-trained on."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def restore_statistics(model: nn.Module, upstream: Mapping[str, Tensor]) -> None:
    """Put the pre-trained running statistics of norm layers back into a model, in place.

    Args:
        model (nn.Module): The fine-tuned model.
        upstream (Mapping[str, Tensor]): ``optimizer.upstream``, or ``checkpoint['optimizer']['upstream']``: name of a
            buffer to its value.

    Raises:
        ValueError: If the model has no such buffer.
    """
    buffers = dict(model.named_buffers())
    for name, value in upstream.items():
        if name not in buffers or buffers[name].shape != value.shape:
            raise ValueError(f'the model has no buffer {name!r} of shape {tuple(value.shape)}, so these are not of it')
        buffers[name].copy_(value)


def upstream_state(
    finetuned: Mapping[str, Tensor], pretrained: Mapping[str, Tensor], upstream: Mapping[str, Tensor], prefix: str = ''
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict of the pre-trained model with the weights that fine-tuning left in it.

    What fine-tuning has under the same name and in the same shape is taken from there, running statistics as they were
    before it; all else, the old head first of all, is as it was pre-trained.

    Args:
        finetuned (Mapping[str, Tensor]): State dict of the fine-tuned model.
        pretrained (Mapping[str, Tensor]): State dict of the pre-trained one.
        upstream (Mapping[str, Tensor]): The kept statistics, named as in ``finetuned``.
        prefix (str): What the fine-tuned model puts before the names of the pre-trained one, e.g. ``'backbone.'``.

    Returns:
        tuple[dict, dict]: The state dict, named as ``pretrained``; and name to where its value is from: 'fine-tuned',
        'kept statistics' or 'pre-trained'.

    Raises:
        ValueError: If not one name of the pre-trained model is in the fine-tuned one, or less than half of its tensors.
    """
    state, sources = {}, {}
    for name, value in pretrained.items():
        theirs = finetuned.get(prefix + name)
        if prefix + name in upstream:
            state[name], sources[name] = upstream[prefix + name], 'kept statistics'
        elif theirs is not None and theirs.shape == value.shape:
            state[name], sources[name] = theirs, 'fine-tuned'
        else:
            state[name], sources[name] = value, 'pre-trained'
    if 'fine-tuned' not in sources.values():
        raise ValueError(
            f'prefix={prefix!r}: the fine-tuned model, with names like {next(iter(finetuned), "")!r}, has none of the '
            f'names that the pre-trained one would have there, like {prefix + next(iter(pretrained), "")!r}; give '
            'another prefix'
        )
    shared = sum(source != 'pre-trained' for source in sources.values())
    if shared < len(sources) / 2:
        raise ValueError(
            f'only {shared} of the {len(sources)} tensors of the pre-trained model are in the fine-tuned one, under '
            'the same name and in the same shape: it was fine-tuned from another'
        )
    return state, sources
