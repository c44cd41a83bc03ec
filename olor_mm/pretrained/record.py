"""A record of what was loaded into a model: by what happened, not by what a module is called."""

import hashlib
from collections.abc import Collection, Iterable, Iterator

import torch
from torch import nn

from .statistics import running_statistics


class LoadRecord:
    """Watches a model and remembers every parameter and running mean that a ``state_dict`` was loaded into.

    Both ``nn.Module.load_state_dict`` and MMEngine's loader run the hooks registered here on every sub-module. What
    counts is that a tensor was written to, or replaced (``assign=True``), while the module was loading, and not which
    keys there were: modules rename, resize and convert them. A fingerprint of the value tells whether a parameter was
    initialised again since. The running statistics from before the first forward pass in training are kept too.

    Args:
        model (nn.Module): The model, before its weights are loaded. Parameters and buffers may be of any shape and
            dtype, on any device, and sharded by ``fully_shard``; those on the meta device never count.
    """

    def __init__(self, model: nn.Module):
        self._loaded: dict[nn.Parameter, bytes] = {}
        self._statistics: dict[nn.Module, bytes] = {}
        self._kept: dict[nn.Module, dict[str, torch.Tensor]] = {}
        self._before: dict[nn.Module, dict[str, tuple[torch.Tensor, int]]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        for module in model.modules():
            self._handles += (
                module._register_load_state_dict_pre_hook(self._before_load, with_module=True),
                module.register_load_state_dict_post_hook(self._after_load),
            )
            if torch.is_tensor(getattr(module, 'running_mean', None)):
                self._handles.append(module.register_forward_pre_hook(self._before_forward))

    def __len__(self) -> int:
        """Number of parameters something was loaded into."""
        return len(self._loaded)

    def loaded(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that something was loaded into, whatever became of it since."""
        return [p for p in parameters if p in self._loaded]

    def unchanged(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that still hold, bit for bit, the value that was last loaded into them."""
        return [p for p in self.loaded(parameters) if self._loaded[p] == fingerprint(p)]

    def unchanged_statistics(self, model: nn.Module) -> list[str]:
        """Names of the norm layers whose running mean still is the one that was last loaded."""
        layers = [(name, module) for name, module in model.named_modules() if module in self._statistics]
        means = {module: self._statistics_of(module)['running_mean'] for _, module in layers}
        return [name for name, module in layers if self._statistics[module] == fingerprint(means[module])]

    def copy_statistics(self, model: nn.Module, layers: Collection[str]) -> dict[str, torch.Tensor]:
        """Running statistics of these norm layers, from before training, by their names in ``model.state_dict()``."""
        return {
            f'{layer}.{kind}': value.detach().cpu().clone()
            for layer in layers
            for kind, value in self._statistics_of(model.get_submodule(layer)).items()
        }

    def _statistics_of(self, module: nn.Module) -> dict[str, torch.Tensor]:
        return self._kept.get(module) or running_statistics(module)

    def _before_forward(self, module: nn.Module, _) -> None:
        if module.training and module not in self._kept:
            self._kept[module] = {name: value.detach().clone() for name, value in running_statistics(module).items()}

    def adopt(self, other: 'LoadRecord', copied: nn.Module, model: nn.Module) -> None:
        """Take over what another record saw of a copy of the model that this record watches."""
        for p, twin in zip(model.parameters(), copied.parameters(), strict=True):
            if twin in other._loaded:
                self._loaded[p] = other._loaded[twin]
        for module, twin in zip(model.modules(), copied.modules(), strict=True):
            if twin in other._statistics:
                self._statistics[module] = other._statistics[twin]

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _before_load(self, module: nn.Module, *_) -> None:
        self._before[module] = {name: (value, value._version) for name, value in _own_tensors(module)}

    def _after_load(self, module: nn.Module, _) -> None:
        before = self._before.pop(module, {})  # nothing where a module has a way of its own that loads nothing
        for name, value in _own_tensors(module):
            old, version = before.get(name, (value, value._version))
            # torch counts every write to a tensor in `_version`; comparing values would miss what is loaded onto equals
            if value.is_meta or (value is old and value._version == version):
                continue
            if name in module._parameters:
                self._loaded[value] = fingerprint(value)
            else:
                self._statistics[module] = fingerprint(value)
                self._kept.pop(module, None)  # of a forward pass before the load


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters(recurse=False)
    if torch.is_tensor(getattr(module, 'running_mean', None)):
        yield 'running_mean', module.running_mean


def fingerprint(value: torch.Tensor) -> bytes:
    """16 bytes that are the same for tensors whose elements are the same bit for bit.

    Args:
        value (torch.Tensor): Of any shape and dtype; one that ``fully_shard`` has sharded is gathered first.
    """
    value = value.detach()
    value = value.full_tensor() if hasattr(value, 'full_tensor') else value  # sharded, as by FSDP2
    data = value.cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(data.numpy(), digest_size=16).digest()
