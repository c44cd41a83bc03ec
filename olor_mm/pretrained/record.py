"""A record of what was loaded into a model: by what happened, not by what a module is called."""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import clean_name
from .statistics import running_statistics
from .values import fingerprints, holds, is_constant, is_same, storage_of


class Own(NamedTuple):
    """A parameter or running mean of the model, and the keys under which its mark is kept."""

    name: str  # as the module that loads calls it
    tensor: Tensor
    keys: tuple[Hashable, ...]


@dataclass
class Before:
    """A tensor before a module is loaded, and what it is about to get."""

    tensor: Tensor
    storage: int
    version: int
    gets_itself: bool = False
    gets_new: bool = False  # what is in another tensor of the model, and came out of no checkpoint


@dataclass
class Call:
    """One call of a loader: what it was given, and what the model had."""

    module: nn.Module
    given: Mapping[str, Any]
    own: dict[int, list[Own]]  # by the memory they are in
    is_clone: bool = False  # of the model's own state dict, perhaps with something replaced
    loads: int = 0

    def why_nothing(self) -> str:
        """Why nothing of what was given was loaded, and what to do."""
        parts = [key for key, value in self.given.items() if isinstance(value, Mapping) and _has_tensors(value)]
        own, buffers = dict(self.module.named_parameters()), dict(self.module.named_buffers())
        tensors = {k: v for k, v in self.given.items() if torch.is_tensor(v) and k not in buffers}
        new = {k: v for k, v in tensors.items() if storage_of(v) not in self.own}
        if self.is_clone or not (new or parts):
            return "every value was in the model already. Compare the file's names and shapes with the model's"
        if not new:
            return f"the weights in the file are under {parts[0]!r}, which is not read. Save them under 'state_dict'"
        other = [name for name in new if name in own and new[name].shape != own[name].shape]
        unknown = [name for name in new if name not in own]
        if len(unknown) < len(other):
            shapes = f'{tuple(new[other[0]].shape)} there and {tuple(own[other[0]].shape)} here'
            return f'{other[0]} has shape {shapes}. Take weights of this architecture and width'
        if not unknown:
            return 'the module loads weights by code of its own, which wrote nothing. Check its _load_from_state_dict'
        names = f'the file has names like {unknown[0]!r}, and the model like {next(iter(own), None)!r}'
        return f'{names}. Rename them, or load the file by init_cfg of the part that it belongs to, with prefix=...'


class LoadRecord:
    """Watches a model and remembers every parameter and running mean that a ``state_dict`` was loaded into.

    Both ``nn.Module.load_state_dict`` and MMEngine's loader run the hooks registered here on every sub-module. What
    counts is that a tensor was written to, or replaced (``assign=True``), while the module was loading, and not which
    keys there were: modules rename, resize and convert them. Fingerprints of the value tell whether a parameter was
    initialised again since. The running statistics from before the first forward pass in training are kept too.

    A tensor copied onto itself is no load, as in ``own = self.state_dict(); own.update(fits);
    self.load_state_dict(own)``: it is in the memory of the parameter. One in the memory of another tensor of the model
    is as pre-trained as that. Of a state dict that was cloned, what equals the present value is no load, and it counts
    as cloned if the model was asked for its state dict before, and a value equals that cannot by chance: one that is
    not constant. So a bias of zeros that a file has too counts as loaded, but for within such a clone.

    What is written to a parameter by other code than a loader's is not seen.

    Args:
        model (nn.Module): The model, before its weights are loaded. Parameters and buffers may be of any shape and
            dtype, on any device, and sharded by ``fully_shard``; those on the meta device never count.

    Attributes:
        unfit (str): Why nothing was loaded of the last state dict of which nothing was, and what to do; '' if none.
    """

    def __init__(self, model: nn.Module):
        self.unfit = ''
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._marks: dict[Hashable, dict[torch.dtype, bytes]] = {}
        self._kept: dict[Hashable, dict[str, Tensor]] = {}
        self._before: dict[nn.Module, dict[str, Before]] = {}
        self._call: Call | None = None
        self._gave: set[nn.Module] = set()  # modules whose state dict somebody asked for
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        for module in self._names:
            self._handles += (
                module._register_load_state_dict_pre_hook(self._before_load, with_module=True),
                module.register_load_state_dict_post_hook(self._after_load),
                module._register_state_dict_hook(self._give),
                module.register_forward_pre_hook(self._before_forward),
            )

    def __len__(self) -> int:
        """Number of parameters something was loaded into."""
        return sum(isinstance(key, nn.Parameter) for key in self._marks)

    def loaded(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that something was loaded into, whatever became of it since."""
        return [p for p in parameters if p in self._marks]

    def unchanged(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that still hold the value that was last loaded into them, as it was or cast."""
        return [p for p in self.loaded(parameters) if is_same(p, self._marks[p])]

    def unchanged_statistics(self, model: nn.Module) -> list[str]:
        """Names of the norm layers whose running mean still is the one that was last loaded.

        They may be new modules by now, with the name or the weight of the one that it was loaded into.
        """
        found = []
        for name, module in model.named_modules():
            mean = self._statistics_of(name, module).get('running_mean')
            if mean is not None and self._is_marked(Own(name, mean, _keys_of(name, module))):
                found.append(name)
        return found

    def copy_statistics(self, model: nn.Module, layers: Collection[str]) -> dict[str, Tensor]:
        """Running statistics of these norm layers, from before training, by their names in ``model.state_dict()``."""
        return {
            f'{layer}.{kind}': value.detach().cpu().clone()
            for layer in layers
            for kind, value in self._statistics_of(layer, model.get_submodule(layer)).items()
        }

    def adopt(self, other: 'LoadRecord', copied: nn.Module, model: nn.Module) -> None:
        """Take over what another record saw of a copy of the model that this record watches.

        Args:
            other (LoadRecord): The record of the copy.
            copied (nn.Module): The copy.
            model (nn.Module): The model that this record watches.

        Raises:
            ValueError: If the two have other numbers of parameters or modules.
        """
        twins: dict[Hashable, Hashable] = {
            **dict(zip(copied.parameters(), model.parameters(), strict=True)),
            **dict(zip(copied.modules(), model.modules(), strict=True)),
            **{name: name for name in other._marks if isinstance(name, str)},
        }
        self._marks.update({twins[key]: mark for key, mark in other._marks.items() if key in twins})

    def close(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._before.clear()
        self._call = None

    def _statistics_of(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        kept = [self._kept[key] for key in _keys_of(name, module) if key in self._kept]
        return kept[0] if kept else running_statistics(module)

    def _is_marked(self, own: Own) -> bool:
        """Whether a tensor still has the value that was loaded into it."""
        marks = [self._marks[key] for key in own.keys if key in self._marks]
        return bool(marks) and is_same(own.tensor, marks[0])

    def _parts(self, module: nn.Module, path: str = '') -> Iterator[tuple[str, nn.Module]]:
        """A module, and those below it that came into the model later and have no hooks, by their paths from it."""
        yield path, module
        for name, child in module.named_children():
            if child not in self._names:
                yield from self._parts(child, f'{path}{name}.')

    def _owned(self, module: nn.Module) -> Iterator[Own]:
        base = f'{self._names[module]}.' if self._names[module] else ''
        return _tensors(self._parts(module), base)

    def _before_forward(self, module: nn.Module, _) -> None:
        for own in self._owned(module) if module.training else ():
            norm = own.keys[0]
            if isinstance(norm, nn.Module) and norm.training and not any(key in self._kept for key in own.keys):
                values = {name: value.detach().clone() for name, value in running_statistics(norm).items()}
                self._kept.update(dict.fromkeys(own.keys, values))

    def _give(self, module: nn.Module, *_) -> None:
        if self._call is None:  # many ask for it while they load, to look at shapes
            self._gave.add(module)

    def _before_load(self, module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
        if self._call is None or not prefix or module is self._model:
            self._call = self._begin(module, state_dict, prefix)
        call, found = self._call, {}
        for own in self._owned(module):
            before = found[own.name] = Before(own.tensor, storage_of(own.tensor), own.tensor._version)
            given = state_dict.get(f'{prefix}{own.name}')
            if torch.is_tensor(given):
                sources = call.own.get(storage_of(given), [])
                is_clone = call.is_clone and holds(given, own.tensor)
                before.gets_itself = is_clone or any(source.tensor is own.tensor for source in sources)
                before.gets_new = not before.gets_itself and not all(self._is_marked(source) for source in sources)
        self._before[module] = found

    def _begin(self, module: nn.Module, state_dict: dict, prefix: str) -> Call:
        call = Call(module, {name.removeprefix(prefix): value for name, value in state_dict.items()}, {})
        everything = [(f'{name}.' if name else '', part) for name, part in self._model.named_modules()]
        for own in _tensors(everything, ''):
            if storage := storage_of(own.tensor):
                call.own.setdefault(storage, []).append(own)
        if self._gave.isdisjoint(module.modules()):
            return call
        pairs = [(p, state_dict.get(f'{prefix}{name}')) for name, p in module.named_parameters()]
        pairs = [(p, given) for p, given in pairs if torch.is_tensor(given)]
        if not any(storage_of(given) in call.own for _, given in pairs):
            call.is_clone = any(holds(given, p) and not is_constant(given) for p, given in pairs)
        return call

    def _after_load(self, module: nn.Module, _) -> None:
        before = self._before.pop(module, {})  # nothing where a module has a way of its own that loads nothing
        call = self._call
        for own in self._owned(module):
            was, value = before.get(own.name), own.tensor
            if was is None or value.is_meta:
                continue
            # torch counts every write to a tensor in `_version`; comparing values would miss what is loaded onto equals
            is_other, writes = value is not was.tensor, value._version - was.version
            if not is_other and not writes and storage_of(value) == was.storage:
                continue
            if was.gets_itself and (is_other or writes < 2):  # a module may write more than that by itself
                if is_other and was.tensor in self._marks:
                    self._marks[value] = self._marks[was.tensor]
                continue
            for key in own.keys:
                self._marks.pop(key, None)
                self._kept.pop(key, None)  # of a forward pass before the load
            if not was.gets_new:
                self._marks.update(dict.fromkeys(own.keys, fingerprints(value)))
                if call is not None:
                    call.loads += 1
        if call is not None and call.module is module:
            self._call = None
            self.unfit = self.unfit if call.loads else call.why_nothing()


def _keys_of(name: str, norm: nn.Module) -> tuple[Hashable, ...]:
    """What a norm layer may be recognised by: itself, its name, and its weight, which converters hand on."""
    weight = getattr(norm, 'weight', None)
    name = clean_name(f'{name}.')
    return (norm, name) if weight is None else (norm, name, (weight, 'statistics'))


def _tensors(parts: Iterable[tuple[str, nn.Module]], base: str) -> Iterator[Own]:
    for path, module in parts:
        for name, p in module.named_parameters(recurse=False):
            yield Own(f'{path}{name}', p, (p,))
        if torch.is_tensor(getattr(module, 'running_mean', None)):
            yield Own(f'{path}running_mean', module.running_mean, _keys_of(f'{base}{path}'.rstrip('.'), module))


def _has_tensors(values: Mapping) -> bool:
    return any(torch.is_tensor(value) for value in values.values())
