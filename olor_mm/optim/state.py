"""Anchors in the state of an optimizer: captured, hidden where they would mislead, saved and loaded."""

import math
import os
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from .anchors import NO_ANCHOR, AnchorFiles, local, make_anchor, new_elements, place_anchor

TINY = 0.01  # of the root mean square of the anchors beside it
NO_STATE: dict = {}
FREE = 'free'  # `rollback_decided` of a group that had no level when anchors were captured
# level of a group, should nothing be pre-trained after the backbone; in the group until that is known
OTHERWISE = 'rollback_otherwise'
STATISTICS = 'pretrained_statistics'  # in a saved state; 'upstream' until version 0.1
# options of optimizers that came with a version of torch, and that a state saved with an older one lacks
NEWER = {'foreach', 'fused', 'maximize', 'capturable', 'differentiable', 'decoupled_weight_decay'}
# as torch does for its own optimizers: torch.compiler.disable would import the compiler here, half a second of it
eager = torch._disable_dynamo


class AnchoredState(Optimizer):
    """The part of :class:`olor_mm.optim.Rollback` that keeps ``state[p]['anchor']``.

    It is a tensor, or None for a pre-trained parameter that is frozen and may be trained later. Elements of it that are
    NaN have no anchor and are free, see :func:`olor_mm.optim.anchors.mark_new`.
    """

    warn = staticmethod(warnings.warn)  # replaced where there is a log that people read
    param_groups: list[dict]
    _rollback_defaults: dict[str, Any]

    def _start_state(self) -> None:
        self._files = AnchorFiles()
        self.select_pretrained = None
        self.pretrained_statistics: dict[str, Tensor] = {}
        self._told_of_rise = False
        self.names: Mapping[Parameter, str] | None = None  # where the groups have none, or not all of the model
        self.anchored: Collection[Parameter] = ()  # also by the optimizers of other processes
        self.partial: set[Parameter] = set()  # with an anchor of which some elements are NaN
        self._norms: dict[Parameter, tuple[float, int]] = {}  # of anchors, and their numbers of elements
        self._scales: dict[Parameter, float] = {}  # what `norm_of` found

    def _complete(self, group: dict) -> None:
        for key, value in self._rollback_defaults.items():
            group.setdefault(key, value)
        # a group that starts from 0, under a schedule with a floor, has the level that is meant for the other groups
        group.setdefault('rollback_initial_lr', float(group['lr']) or float(self.defaults.get('lr', 0)))
        group.setdefault('rollback_decided', False)
        group.setdefault('rollback_full_lr', group['rollback_initial_lr'] if group['rollback_decided'] else None)
        for path in group['anchor_file'] or ():
            if os.path.isfile(path):  # adopting the anchors reports a file that a resumed state names and that is gone
                self._files.open(path)

    def anchor_of(self, p: Parameter) -> Tensor | None:
        """theta_0 of a parameter; None if it has none."""
        return self.state[p].get('anchor') if p in self.state else None

    @eager
    @torch.no_grad()
    def _capture_anchors(self) -> None:
        if not any(state.get('anchor', NO_STATE) is None for state in self.state.values()):
            return  # as in nearly every step, which is not to wait for what follows
        due = [
            (p, group)
            for group in self.param_groups
            for p in group['params']
            if p.requires_grad and p in self.state and self.state[p].get('anchor', NO_STATE) is None
        ]
        missing = []
        self._scales.clear()
        for p, group in due:
            self._norms.pop(p, None)
            anchor = self._files.find(p, group)
            if anchor is None and group['anchor_file'] and new_elements(p) is None:
                missing.append(group['anchor_file'])
            self.state[p]['anchor'] = make_anchor(p, group) if anchor is None else anchor
            if new_elements(p) is not None:  # else it is whole; to look would wait for the device, at every parameter
                self._note_partial(p)
        if missing:
            self.warn(
                f'anchor_file={sorted(set(chain(*missing)))}: {len(missing)} of {len(due)} pre-trained parameters have '
                'a value that is not in it, and their anchors are kept in memory: is it the checkpoint that was loaded?'
            )

    @eager
    def norm_of(self, p: Parameter) -> float:
        """||theta_0|| of a parameter, that a drift budget is a share of.

        A budget of nothing would hold a bias that was initialised to zeros, or a layer scale of 1e-6, where it is. So a
        tensor whose root mean square is less than a hundredth of that of the anchors beside it has theirs: those of its
        module, or of the module around that, by the ``names`` of the groups; without names, those of its group.
        """
        if p not in self._scales:
            norm, count = self._norm(p)
            beside = [self._norm(other) for other in self._beside(p)]
            size = sum(n for _, n in beside)
            usual = math.sqrt(sum(x * x for x, _ in beside) / size * count) if size else 0.0
            self._scales[p] = norm if norm >= TINY * usual else usual
        return self._scales[p]

    def _norm(self, p: Parameter) -> tuple[float, int]:
        """Norm of the anchor, and its number of elements; of the parameter itself, where another process has it."""
        if p not in self._norms:
            anchor = self.state[p].get('anchor') if p in self.state else None
            [value] = local([p.detach() if anchor is None else anchor])
            is_new = value.isnan() if p in self.partial else new_elements(p) if anchor is None else None
            value = value if is_new is None else value[~is_new.to(value.device)]
            self._norms[p] = float(torch.linalg.vector_norm(value, dtype=torch.float64)), value.numel()
        return self._norms[p]

    def _note_partial(self, p: Parameter) -> None:
        anchor = None if p in self._files.entries else self.anchor_of(p)  # what is in a file is whole
        is_partial = anchor is not None and bool(local([anchor])[0].isnan().any())
        (self.partial.add if is_partial else self.partial.discard)(p)

    def deviation(self, p: Parameter, anchor: Tensor) -> Tensor:
        """theta - theta_0, on the device and in the dtype of theta; 0 in elements without an anchor."""
        anchor = anchor.to(p.device, p.dtype, non_blocking=True)
        away = p - anchor
        return away.masked_fill_(anchor.isnan(), 0) if p in self.partial else away

    def _beside(self, p: Parameter) -> list[Parameter]:
        names = self.names
        if names is None:
            given = [(group['params'], group.get('names', group.get('param_names', ()))) for group in self.param_groups]
            names = {q: name for params, some in given for q, name in zip(params, some)}
        if p not in names:
            group = next(group for group in self.param_groups if any(p is q for q in group['params']))
            names = dict.fromkeys(group['params'], '')
        others = [
            q for q in names if q is not p and (q in self.anchored or q in self._norms or self.anchor_of(q) is not None)
        ]
        module = names[p]
        while module:
            module = module.rpartition('.')[0]
            if found := [q for q in others if names[q].startswith(f'{module}.' if module else '')]:
                return found
        return others

    @eager
    def _hide_bare_anchors(self, groups: list[dict]) -> dict[Parameter, Tensor | None]:
        """Take out anchors that are all of a state: base optimizers fill an empty one and expect theirs in others."""
        params = [p for group in groups for p in group['params']]
        return {p: self.state.pop(p)['anchor'] for p in params if self.state.get(p, NO_STATE).keys() == {'anchor'}}

    @eager
    def _show_anchors(self, bare: dict[Parameter, Tensor | None]) -> None:
        for p, anchor in bare.items():
            self.state[p]['anchor'] = anchor

    def adopt_anchors(self, anchors: dict[Parameter, Tensor | dict | None]) -> None:
        """Make these the anchors; an anchor in a file is given by its entry there."""
        for group in self.param_groups:
            for p in group['params']:
                if p not in anchors:
                    continue
                anchor = anchors[p]
                self._files.entries.pop(p, None)
                if isinstance(anchor, dict):
                    anchor = self._files.reopen(p, anchor, group)
                elif anchor is not None:
                    anchor = place_anchor(anchor, p, group)
                if anchor is not None and anchor.shape != p.shape:
                    name = dict(zip(group['params'], group.get('names', ()))).get(p, 'a parameter')
                    raise ValueError(
                        f'the optimizer state has an anchor of shape {tuple(anchor.shape)} for {name}, which has shape '
                        f'{tuple(p.shape)} here: it is of another model'
                    )
                self.state[p]['anchor'] = anchor
                self._note_partial(p)
        self._scales.clear()
        self._norms.clear()
        for p, anchor in anchors.items():
            if isinstance(anchor, Tensor):  # also where another process has the parameter
                value = local([anchor])[0].double()
                value = value[~value.isnan()]
                self._norms[p] = float(value.norm()), value.numel()

    def state_dict(self) -> dict:
        """The state of the base optimizer, with the anchors or their place in a file, and the kept statistics."""
        packed = super().state_dict()
        numbers = chain.from_iterable(group['params'] for group in packed['param_groups'])
        params = chain.from_iterable(group['params'] for group in self.param_groups)
        for p, number in zip(params, numbers):
            state = packed['state'].get(number, {})
            if p in self._files.entries:
                packed['state'][number] = {**state, 'anchor': self._files.entries[p]}
            elif state.get('anchor') is None and p.requires_grad and getattr(p, '_fsdp_flattened', False):
                # FSDP gathers a state that all parameters of a unit have, or none of them
                packed['state'][number] = {**state, 'anchor': torch.full_like(p, NO_ANCHOR)}
        return with_statistics(packed, self.pretrained_statistics)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a ``state_dict`` and go on with its anchors, in their dtype.

        Raises:
            ValueError: If rollback is on here and the loaded state is of a run without it, if its parameter groups
                differ from those here, or if a file it names for anchors is not there or has been changed.
        """
        with loading_anchors(self, self, state_dict) as bare:
            super().load_state_dict(bare)

    def __getstate__(self) -> dict:
        # a copy has its anchors in memory
        own = {key: self.__dict__[key] for key in ('_rollback_defaults', 'select_pretrained', STATISTICS)}
        fresh = {
            '_files': AnchorFiles(),
            '_told_of_rise': False,
            '_norms': {},
            '_scales': {},
            'partial': set(),
            'names': None,
            'anchored': (),
        }
        return {**super().__getstate__(), **own, **fresh}

    def __setstate__(self, state: dict) -> None:
        bare = {p: kept for p, kept in state['state'].items() if kept.keys() == {'anchor'}}
        for p in bare:
            del state['state'][p]
        super().__setstate__(state)
        self.state.update(bare)
        for p in self.state:
            self._note_partial(p)
        for group in self.param_groups:  # of a stock optimizer
            self._complete(group)


@contextmanager
def loading_anchors(optimizer, inner: AnchoredState, state_dict: dict) -> Iterator[dict]:
    """Load a saved state around what the base optimizer loads of it: the one way for plain optimizers, ZeRO and FSDP.

    ``optimizer`` has the parameter groups that the state numbers; ``inner`` has the anchors, and is the same, or the
    optimizer of this process within ZeRO. Yields the state without anchors, which torch would cast to the dtype of
    their parameters.
    """
    check_loadable(type(inner).__name__, state_dict, optimizer.param_groups, inner.defaults)
    before = [dict(group) for group in optimizer.param_groups]
    present = {p: state['anchor'] for p, state in inner.state.items() if 'anchor' in state}
    numbers = chain.from_iterable(group['params'] for group in state_dict['param_groups'])
    params = dict(zip(numbers, chain.from_iterable(group['params'] for group in optimizer.param_groups)))
    saved = {params[i]: state['anchor'] for i, state in state_dict['state'].items() if _has_anchor(state)}
    bare = {i: {k: v for k, v in state.items() if k != 'anchor'} for i, state in state_dict['state'].items()}
    yield {**state_dict, 'state': {i: state for i, state in bare.items() if state}}
    messages = [m for groups in (optimizer.param_groups, inner.param_groups) for m in settle_options(groups, before)]
    for message in dict.fromkeys(messages):
        inner.warn(message)
    inner.adopt_anchors(saved if state_dict['state'] else present)  # a reset: what was pre-trained stays so
    optimizer.pretrained_statistics = statistics_in(state_dict) or optimizer.pretrained_statistics


def _has_anchor(state: dict) -> bool:
    anchor = state.get('anchor', NO_ANCHOR)
    return anchor is None or isinstance(anchor, dict) or not torch.as_tensor(anchor).isnan().all()


def with_statistics(state_dict: dict, statistics: dict[str, Tensor]) -> dict:
    """A state to save, with the statistics of pre-trained norm layers if there are any."""
    return {**state_dict, STATISTICS: statistics} if statistics else state_dict


def statistics_in(state_dict: dict) -> dict[str, Tensor]:
    """The statistics of pre-trained norm layers in a saved state, also one of version 0.1; {} if there are none."""
    return state_dict.get(STATISTICS) or state_dict.get('upstream') or {}


def check_loadable(name: str, state_dict: dict, groups: list[dict], defaults: Iterable[str]) -> None:
    """Refuse a saved state without anchors though rollback is on, with other groups, or of another optimizer."""
    states = state_dict['state'].values()
    anchored = any('anchor' in state for state in states)
    # a state saved before the first step is empty and still ours; plain SGD keeps none at any time
    unstarted = not states and any('rollback' in group for group in state_dict['param_groups'])
    if any(group['rollback'] for group in groups) and not anchored and not unstarted:
        raise ValueError(
            f'this optimizer state has no anchors, so it is of a run without rollback, and {name} cannot resume from '
            'it. Start anew from the pre-trained weights (load_from, without resume), or resume without rollback'
        )
    expected = [key for key in defaults if key not in NEWER and not key.startswith(('rollback', 'anchor'))]
    lacking = {key for group in state_dict['param_groups'] for key in expected if key not in group}
    if anchored and lacking:
        raise ValueError(
            f'the optimizer state is not of {name}: its parameter groups have no {", ".join(sorted(lacking))}. Resume '
            'with the type of optimizer of that run'
        )
    theirs, ours = (
        [group.get('names', group.get('param_names', [None] * len(group['params']))) for group in side]
        for side in (state_dict['param_groups'], groups)
    )
    named = [(a, b) for a, b in zip(theirs, ours) if None not in (*a, *b)]
    if [*map(len, theirs)] != [*map(len, ours)] or any(list(a) != list(b) for a, b in named):
        raise ValueError(
            f'the optimizer state has {len(theirs)} parameter groups (sizes {[*map(len, theirs)]}), and here are '
            f'{len(ours)} ({[*map(len, ours)]}). {_difference(theirs, ours)}Resume with the model and the '
            'paramwise_cfg of that run'
        )


def _difference(theirs: list[list[str | None]], ours: list[list[str | None]]) -> str:
    """Which named parameters are in other groups of a saved state than here."""
    sides = [{name: i for i, group in enumerate(side) for name in group} for side in (theirs, ours)]
    if any(None in side for side in sides):
        return ''
    other = [name for name in {**sides[0], **sides[1]} if sides[0].get(name) != sides[1].get(name)]
    other.sort(key=lambda name: name in sides[0] and name in sides[1])  # first those of one side alone
    moves = [f'{name} (group {sides[0].get(name, "none")} there, {sides[1].get(name, "none")} here)' for name in other]
    return f'They differ in {", ".join(moves[:5])}{f" and {len(moves) - 5} more" if moves[5:] else ""}. ' * bool(moves)


def settle_options(groups: list[dict], before: list[dict]) -> list[str]:
    """Keep where anchors are, which is a matter of this machine; say which other options of before are not used."""
    for group, here in zip(groups, before):
        group.update(anchor_device=here['anchor_device'], anchor_file=here['anchor_file'])
    messages = []
    for key in ('rollback', 'rollback_coupling', 'rollback_rule', 'rollback_new', 'anchor_dtype'):
        pairs = [(group.get(key), here.get(key), here.get(OTHERWISE)) for group, here in zip(groups, before)]
        other = [pair for pair in pairs if pair[0] != pair[1] and not (key == 'rollback' and pair[0] == pair[2])]
        if other:
            theirs, ours = other[0][:2]
            messages.append(
                f'the resumed optimizer state has {key}={theirs!r} where the configuration has {key}={ours!r}, and '
                f'so on in {len(other)} of {len(groups)} groups: as with lr and weight_decay, the value of the state '
                'is used. For another one start anew'
            )
    return messages
