"""What training puts around a model: DDP, FSDP, activation checkpointing, torch.compile."""

import re

from torch import nn

WRAPPERS = re.compile(r'(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.')


def clean_name(name: str) -> str:
    """The name of a parameter without what FSDP, activation checkpointing and torch.compile put into it.

    >>> clean_name('_orig_mod.backbone._fsdp_wrapped_module.conv1.weight')
    'backbone.conv1.weight'
    """
    return WRAPPERS.sub('', name)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within DistributedDataParallel, FullyShardedDataParallel or torch.compile."""
    while True:
        inner = getattr(model, '_orig_mod', None) or getattr(model, 'module', None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
