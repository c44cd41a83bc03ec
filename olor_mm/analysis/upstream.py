"""A fine-tuned model put back into its upstream state, for the task it was pre-trained on."""

from collections.abc import Collection, Mapping

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
        ValueError: If less than half of the pre-trained model's tensors are in the fine-tuned one.
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
    is_theirs = 'fine-tuned' in sources.values()  # statistics alone do not make it so
    shared = sum(is_theirs and source != 'pre-trained' for source in sources.values())
    check_shared(shared, pretrained, finetuned, prefix)
    return state, sources


def check_shared(shared: int, pretrained: Collection[str], finetuned: Collection[str], prefix: str) -> None:
    """Refuse to take a model for one that was fine-tuned from another if it has less than half of that one's tensors.

    Args:
        shared (int): How many of the pre-trained model's tensors were found in the fine-tuned one.
        pretrained (Collection[str]): All of their names.
        finetuned (Collection[str]): All names of the fine-tuned one.
        prefix (str): What was looked for before the names.

    Raises:
        ValueError: If there are less than half; it names a prefix with which there are more.
    """
    if shared and 2 * shared >= len(pretrained):
        return
    counts = {other: sum(other + name in finetuned for name in pretrained) for other in ('', 'backbone.')}
    best = max(counts, key=lambda other: counts[other])
    remedy = (
        f'give prefix={best!r}, with which they are {counts[best]}'
        if best != prefix and 2 * counts[best] >= len(pretrained)
        else 'give another prefix, or the pre-trained weights as that library names them'
    )
    raise ValueError(
        f'only {shared} of the {len(pretrained)} tensors of the pre-trained model, looked for under names like '
        f'{prefix + next(iter(pretrained), "")!r} (prefix={prefix!r}), are in the fine-tuned one in the same shape; '
        f'its names are like {next(iter(finetuned), "")!r}: it was fine-tuned from another, or by a library with other '
        f'names; {remedy}'
    )
