"""A record of what was loaded into a model: by what happened, not by what a module is called."""

import hashlib
from collections.abc import Iterable

import torch
from torch import nn


class LoadRecord:
    """Watches a model and remembers every parameter and buffer that a ``state_dict`` was loaded into.

    Both ``nn.Module.load_state_dict`` and MMEngine's loader run the pre-hooks registered here on every sub-module, last
    of all pre-hooks, so that keys and shapes are seen as the module itself will read them: renamed, resized, converted.
    A fingerprint of the loaded value is kept, so that a parameter which is initialised again later is not taken for
    pre-trained.

    Args:
        model (nn.Module): The model, before its weights are loaded.
    """

    def __init__(self, model: nn.Module):
        self._loaded: dict[nn.Parameter, bytes] = {}
        self._statistics: dict[nn.Module, bytes] = {}
        self._handles = [
            module._register_load_state_dict_pre_hook(self._before_load, with_module=True) for module in model.modules()
        ]

    def __len__(self) -> int:
        """Number of parameters something was loaded into."""
        return len(self._loaded)

    def loaded(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that something was loaded into, whatever became of it since."""
        return [p for p in parameters if p in self._loaded]

    def unchanged(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that still hold, bit for bit, the value that was last loaded into them."""
        return [p for p in self.loaded(parameters) if self._loaded[p] == _fingerprint(p)]

    def unchanged_statistics(self, model: nn.Module) -> list[str]:
        """Names of the norm layers whose running mean still is the one that was last loaded."""
        layers = [(name, module) for name, module in model.named_modules() if module in self._statistics]
        return [name for name, module in layers if self._statistics[module] == _fingerprint(module.running_mean)]

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _before_load(self, module, state_dict, prefix, *_) -> None:
        for name, p in module.named_parameters(recurse=False):
            value = state_dict.get(prefix + name)
            # torch also loads one number from a tensor of shape (1,), as old checkpoints have it
            if torch.is_tensor(value) and (value.shape == p.shape or (value.shape == (1,) and p.ndim == 0)):
                self._loaded[p] = _fingerprint(value.detach().to(p.dtype))
        mean, value = getattr(module, 'running_mean', None), state_dict.get(f'{prefix}running_mean')
        if mean is not None and torch.is_tensor(value) and value.shape == mean.shape:
            self._statistics[module] = _fingerprint(value.to(mean.dtype))


def _fingerprint(value: torch.Tensor) -> bytes:
    value = value.detach()
    value = value.full_tensor() if hasattr(value, 'full_tensor') else value  # sharded, as by FSDP2
    data = value.cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(data.numpy(), digest_size=16).digest()
