"""Restores the pre-trained state of a fine-tuned model, for the task it was pre-trained on."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]


@torch.no_grad()
def restore_statistics(model: nn.Module, statistics: State) -> None:
    """Restore the pre-trained running statistics of norm layers, in place.

    Args:
        model (nn.Module): The fine-tuned model.
        statistics (Mapping[str, Tensor]): Name of a buffer to its value: ``optimizer.pretrained_statistics``, or
            ``checkpoint['optimizer']['pretrained_statistics']`` ('upstream' in checkpoints of 0.1).

    Raises:
        ValueError: If the model has no such buffer.
    """
    buffers = dict(model.named_buffers())
    for name, value in statistics.items():
        if name not in buffers or buffers[name].shape != value.shape:
            raise ValueError(f'the model has no buffer {name!r} of shape {tuple(value.shape)}: take its own statistics')
        buffers[name].copy_(value)


def pretrained_state(
    finetuned: State, pretrained: State, statistics: State, prefix: str = ''
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict of the pre-trained model with fine-tuned weights in it.

    A tensor that the fine-tuned model has under the same name and in the same shape is taken from there. Running
    statistics are those of before fine-tuning. All other tensors, such as the old head, are the pre-trained ones.

    Args:
        finetuned (Mapping[str, Tensor]): State dict of the fine-tuned model.
        pretrained (Mapping[str, Tensor]): State dict of the pre-trained model.
        statistics (Mapping[str, Tensor]): The kept statistics, named as in ``finetuned``.
        prefix (str): What the fine-tuned model puts before the names of the pre-trained one, e.g. ``'backbone.'``.

    Returns:
        tuple[dict, dict]: The state dict, named as ``pretrained``; and name to the source of its value: 'fine-tuned',
        'kept statistics' or 'pre-trained'.

    Raises:
        ValueError: If less than half of the pre-trained model's tensors are in the fine-tuned one.
    """
    state, sources = dict(pretrained), dict.fromkeys(pretrained, 'pre-trained')
    for name, value in pretrained.items():
        theirs = finetuned.get(prefix + name)
        if prefix + name in statistics:
            state[name], sources[name] = statistics[prefix + name], 'kept statistics'
        elif theirs is not None and theirs.shape == value.shape:
            state[name], sources[name] = theirs, 'fine-tuned'
    has_weights = 'fine-tuned' in sources.values()  # statistics alone do not make it the same model
    shared = sum(has_weights and source != 'pre-trained' for source in sources.values())
    check_shared(shared, pretrained, finetuned, prefix)
    return state, sources


def check_shared(shared: int, pretrained: Collection[str], finetuned: Collection[str], prefix: str) -> None:
    """Refuse a fine-tuned model that shares less than half of the pre-trained tensors; name a prefix that fits."""
    if not shared or 2 * shared < len(pretrained):
        counts = {other: sum(other + name in finetuned for name in pretrained) for other in ('', 'backbone.')}
        fits = [other for other, count in counts.items() if other != prefix and 2 * count >= len(pretrained)]
        remedy = f'give prefix={fits[0]!r}' if fits else 'give its own pre-trained weights, as its library names them'
        raise ValueError(
            f'prefix={prefix!r}: only {shared} of the {len(pretrained)} tensors of the pre-trained model, like '
            f'{prefix + next(iter(pretrained), "")!r}, are in the fine-tuned one, like {next(iter(finetuned), "")!r}; '
            f'{remedy}'
        )
