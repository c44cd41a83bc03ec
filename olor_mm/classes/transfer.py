"""The rows of a trained head that a model of other classes keeps, by class name."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .layouts import Layout, is_free_of_classes, is_of_classes, layouts, patterns_of, why_unknown
from .names import match_classes


@dataclass
class HeadClasses:
    """What became of the classes of one head.

    Attributes:
        name (str): Of the head in the model.
        kept (list[str]): New classes whose rows came out of the checkpoint.
        new (list[str]): New classes whose rows stay at their start.
        reason (str): Why the head, or a part of it, stays new although classes are shared; '' if none does.
    """

    name: str
    kept: list[str]
    new: list[str]
    reason: str = ''

    def __str__(self) -> str:
        total = len(self.kept) + len(self.new)
        text = f'{len(self.kept)} of {total} classes of {self.name} from the checkpoint'
        names = self.new[:10] + [f'and {len(self.new) - 10} more'] * (len(self.new) > 10)
        text += f'; new: {", ".join(names)}' if names else ''
        return text + (f'; not kept: {self.reason}' if self.reason else '')


@dataclass
class TransferReport:
    """What :func:`transfer_classes` did.

    Attributes:
        heads (list[HeadClasses]): One for every head with classes, in the order of the model.
        rows (dict[str, Tensor]): By the names of parameters in the model, bool masks of their shapes: True where the
            value comes out of the checkpoint. Parameters of classes that came, in part or all of them.
        unknown (list[str]): What else of the checkpoint has another shape than in the model, and stays new.
    """

    heads: list[HeadClasses] = field(default_factory=list)
    rows: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def transfer_classes(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    old: Sequence[str],
    new: Sequence[str],
    aliases: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], TransferReport]:
    """Put the rows of shared classes where the model has them, and its own values where classes are new.

    Channels that read the scores of a new class, as in PointRend, become 0, so that old classes score as before.
    Nothing is written to the model; load the result into it, with ``strict=False`` if something stays new.

    Args:
        model (nn.Module): A model of mmdet, mmseg or mmpretrain with the new classes.
        state_dict (Mapping): Of a model with the old classes, which may be in DataParallel.
        old (Sequence[str]): Its classes, in their order. In panoptic models things come before stuff, here as in
            ``new``.
        new (Sequence[str]): The model's classes, in their order.
        aliases (Mapping, optional): ``{name in new: name in old}``.

    Returns:
        tuple: The state dict, of the given one's tensors but for those of classes; a :class:`TransferReport`.

    Raises:
        ValueError: As :func:`match_classes`, if no class is shared, or if a head has another number of old classes.
    """
    matches = match_classes(old, new, aliases)
    if not any(match is not None for match in matches):
        raise ValueError(f'no class of {[*new][:5]} is one of {[*old][:5]}; give aliases={{new: old}} if names differ')
    result: dict[str, Any] = OrderedDict(state_dict)
    if hasattr(state_dict, '_metadata'):
        result._metadata = state_dict._metadata  # type: ignore[attr-defined]  # versions of modules, for conversions
    return result, _Transfer(model, result, [*old], [*new], matches).run()


class _Transfer:
    """One transfer, into ``state``."""

    def __init__(self, model: nn.Module, state: dict, old: list[str], new: list[str], matches: list[int | None]):
        self.state, self.old, self.new, self.matches = state, old, new, matches
        self.given, self.own, self.modules = dict(state), dict(_tensors(model)), dict(model.named_modules())
        self.report = TransferReport()
        self.done: set[str] = set()  # weights that a head has answered for
        panoptic = [part for part in model.modules() if getattr(part, 'num_stuff_classes', 0)]
        sizes = [(part.num_things_classes, part.num_stuff_classes) for part in panoptic]
        self.things = next((things for things, stuff in sizes if things + stuff == len(new)), 0)

    def run(self) -> TransferReport:
        for path, head in self.modules.items():
            is_alike = getattr(head, 'num_classes', None) == len(self.new)
            if not (is_alike or patterns_of(type(head))):
                continue
            prefix = f'{path}.' if path else ''
            names = {f'{prefix}{name}': name for name, _ in _tensors(head) if f'{prefix}{name}' not in self.done}
            known = {name: relative for name, relative in names.items() if is_of_classes(head, relative)}
            if known:
                self.transfer_head(path, head, known)
            elif is_alike and not self.has_heads(path):
                self.leave_head(path, self.new, names, f'{type(head).__name__} is not a known head')
        for name, key in self.keys(sorted(self.own.keys() - self.done)):
            if _is_like_classes(self.given[key].shape, self.own[name].shape, len(self.old), len(self.new)):
                self.report.unknown.append(f'{name} has {self.shapes(name, key)}, and is in no known head')
        params = dict(self.modules[''].named_parameters(remove_duplicate=False))
        self.report.rows = {name: rows for name, rows in self.report.rows.items() if name in params}
        return self.report

    def transfer_head(self, path: str, head: nn.Module, names: dict[str, str]) -> None:
        """Transfer what is of classes in one head: weights by their names in the model, with those in the head."""
        span = self.span(head)
        reason = why_unknown(head) or ('it is one of several tasks' if self.is_task(path) else '')
        if reason:
            self.leave_head(path, self.new[span], names, reason)
            return
        found, moved, reasons = dict(self.keys(names)), [], {}
        self.done.update(names)
        for name in names:
            fitting = layouts(head, names[name], self.own[name].shape, len(self.new[span]))
            if name in found:
                reasons[name] = self.move(name, found[name], fitting, span)
                moved += [name] if name in self.report.rows else []
            elif fitting:
                reasons[name] = f'{name} is not in the checkpoint'
        unfit = {name.rpartition('.')[0] for name, reason in reasons.items() if reason}
        for name in [name for name in moved if name.rpartition('.')[0] in unfit]:  # a bias without its weight
            moved.remove(name)
            self.state.pop(found[name], None)
            del self.report.rows[name]
        if moved or unfit:
            kept = [bool(moved) and match is not None for match in self.matches[span]]
            came = [name for name, is_old in zip(self.new[span], kept, strict=True) if is_old]
            new = [name for name, is_old in zip(self.new[span], kept, strict=True) if not is_old]
            self.report.heads.append(HeadClasses(path, came, new, '; '.join(filter(None, reasons.values()))))

    def move(self, name: str, key: str, fitting: list[Layout], span: slice) -> str:
        """Transfer one weight, if it is of these classes; why that cannot be done, or ''."""
        given, own = self.given[key], _whole(self.own[name])
        places: dict[int, Tensor] = {}
        start, mask = own.clone(), torch.ones(own.shape, dtype=torch.bool)
        for layout in fitting:
            old, matches = self.old_span(layout, given, span)
            if given.ndim != own.ndim or layout.size(old) != given.shape[layout.dim]:
                self.check_number(name, layout, given, own)
                break
            places[layout.dim] = source = layout.sources(old, matches)
            mask.index_fill_(layout.dim, (source < 0).nonzero().flatten(), False)
            if layout.is_input:
                start.index_fill_(layout.dim, (source < 0).nonzero().flatten(), 0)
        rest = [dim for dim in range(own.ndim) if dim not in places]
        if given.ndim != own.ndim or any(given.shape[dim] != own.shape[dim] for dim in rest):
            self.state.pop(key, None)
            return f'{name} has {self.shapes(name, key)}'
        if not places:
            return ''
        for dim, source in places.items():
            given = given.index_select(dim, source.clamp(min=0).to(given.device))
        self.state[key] = torch.where(mask, given.to(own), start)
        self.report.rows[name] = mask
        return ''

    def leave_head(self, path: str, classes: list[str], names: Iterable[str], reason: str) -> None:
        """Take what may be of classes out of the state dict, unless the classes are the same."""
        self.done.update(names)
        found = dict(self.keys(names))
        is_reordered = len(self.old) == len(self.new) and self.matches != [*range(len(self.old))]
        for name, key in found.items():
            if is_reordered or self.given[key].shape != self.own[name].shape:
                self.state.pop(key, None)
                found[name] = ''
        if '' in found.values():
            self.report.heads.append(HeadClasses(path, [], classes, reason))

    def span(self, head: nn.Module) -> slice:
        """Which of the new classes a head has: all of them, or only the things or the stuff of a panoptic model."""
        if self.things and 'PanopticFPNHead' in (kind.__name__ for kind in type(head).__mro__):
            return slice(self.things, None)
        return slice(self.things if self.things and getattr(head, 'num_classes', 0) == self.things else None)

    def old_span(self, layout: Layout, given: Tensor, span: slice) -> tuple[int, list[int | None]]:
        """How many of the old classes a weight has, and for each of the new ones its index among those."""
        number, first = len(self.old), 0
        if span != slice(None) and given.ndim > layout.dim:
            number = layout.classes(given.shape[layout.dim]) or number
            first = len(self.old) - number if span.start else 0
        shifted = [-1 if match is None else match - first for match in self.matches[span]]
        return number, [match if 0 <= match < number else None for match in shifted]

    def check_number(self, name: str, layout: Layout, given: Tensor, own: Tensor) -> None:
        """Refuse old classes that are not as many as the weight has, if they alone do not fit."""
        others = [value.shape[: layout.dim] + value.shape[layout.dim + 1 :] for value in (given, own)]
        if given.shape == own.shape or others[0] != others[1]:
            return
        sizes = [replace(layout, after=after).size(len(self.old)) for after in range(3)]
        number = layout.classes(given.shape[layout.dim])
        if number and given.shape[layout.dim] not in sizes:
            names = f'{len(self.old)} old classes were given, and {name} in the checkpoint has {number}'
            raise ValueError(f'{names}; give the names of all its classes, in its order')

    def has_heads(self, path: str) -> bool:
        """Whether a module has heads in it, as a whole model has, or is one without weights of classes."""
        inner = [part for part in self.modules[path].modules() if part is not self.modules[path]]
        return is_free_of_classes(type(self.modules[path])) or any(
            any(is_of_classes(part, name) for name, _ in part.named_parameters())
            if patterns_of(type(part)) or is_free_of_classes(type(part))
            else getattr(part, 'num_classes', None) == len(self.new) and [*part.parameters()]
            for part in inner
        )

    def is_task(self, path: str) -> bool:
        return any(
            len(getattr(module, 'task_heads', ())) > 1 and _is_within(path, name)
            for name, module in self.modules.items()
        )

    def keys(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Names in the model with those in the checkpoint, for what is in both."""
        for name in names:
            plain = name.removeprefix('module.')
            # models of semi-supervised learning load a plain detector into both of theirs
            same = [name, plain, f'module.{plain}', re.sub(r'^(student|teacher)\.', '', plain)]
            older = re.sub(r'\.conv_cls\.(\w+)$', r'.fcos_cls.\1', plain)  # FCOS renames it when it is loaded
            key = next((key for key in (*same, older) if torch.is_tensor(self.given.get(key))), None)
            if key is not None:
                yield name, key

    def shapes(self, name: str, key: str) -> str:
        return f'shape {tuple(self.given[key].shape)} in the checkpoint and {tuple(self.own[name].shape)} here'


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _whole(value: Tensor) -> Tensor:
    """A tensor on the CPU, gathered if it is sharded."""
    value = value.detach()
    return (value.full_tensor() if hasattr(value, 'full_tensor') else value).cpu()


def _is_within(path: str, other: str) -> bool:
    return path.startswith(f'{other}.') or (other == '' and path != '')


def _is_like_classes(given: torch.Size, own: torch.Size, old: int, new: int) -> bool:
    """Whether two shapes differ as those of a weight do that has classes along one dimension."""
    differing = [(a, b) for a, b in zip(given, own) if a != b] if len(given) == len(own) else []
    if len(differing) != 1 or old == new:
        return False
    (a, b), step = differing[0], new - old
    each, rest = divmod(b - a, step)
    return not rest and each >= 1 and a >= each * old
