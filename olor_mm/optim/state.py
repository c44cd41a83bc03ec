"""Anchors in the state of an optimizer: captured, hidden where they would mislead, saved and loaded."""

import ctypes
import hashlib
import warnings
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor
from torch.nn import Parameter

from .anchors import AnchorFiles, make_anchor, missing_message, place_anchor

NO_ANCHOR = float('nan')
NO_STATE: dict = {}
# options of optimizers that came with a version of torch, and that a state saved with an older one lacks
NEWER = {'foreach', 'fused', 'maximize', 'capturable', 'differentiable', 'decoupled_weight_decay'}
SEAL = 'anchor_sha256'
# as torch does for its own optimizers: torch.compiler.disable would import the compiler here, half a second of it
eager = torch._disable_dynamo


class AnchoredState:
    """The part of :class:`olor_mm.optim.Rollback` that keeps ``state[p]['anchor']``.

    It is a tensor; or None for a pre-trained parameter that is frozen and may be trained later.
    """

    warn = staticmethod(warnings.warn)  # replaced where there is a log that people read

    def _start_state(self) -> None:
        self._files = AnchorFiles()
        self.select_pretrained = None
        self.upstream: dict[str, torch.Tensor] = {}
        self._told_of_rise = False

    def _complete(self, group: dict) -> None:
        for key, value in self._rollback_defaults.items():
            group.setdefault(key, value)
        # not `initial_lr`: cyclic schedules set it to their lowest rate, and hand-written warm-ups to none
        group.setdefault('rollback_initial_lr', float(group['lr']))
        group.setdefault('rollback_decided', False)
        self._files.open_all(group['anchor_file'] or ())

    def _anchor(self, p: Parameter) -> Tensor | None:
        return self.state[p].get('anchor') if p in self.state else None

    @eager
    @torch.no_grad()
    def _capture_anchors(self) -> None:
        due = [
            (p, group)
            for group in self.param_groups
            for p in group['params']
            if p.requires_grad and p in self.state and self.state[p].get('anchor', NO_STATE) is None
        ]
        missing = []
        for p, group in due:
            anchor = self._files.find(p, group)
            if anchor is None and group['anchor_file']:
                missing.append(group['anchor_file'])
            self.state[p]['anchor'] = make_anchor(p, group) if anchor is None else anchor
        if missing:
            self.warn(missing_message(len(missing), len(due), sorted(set(chain(*missing)))))
        if due:
            self._files.release(self.state[p]['anchor'] for p, _ in due)

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
        """Make these the anchors; one of a file is given by its entry there.

        Raises:
            ValueError: If a file is not there or is another one.
        """
        for group in self.param_groups:
            for p in group['params']:
                if p in anchors:
                    anchor = anchors[p]
                    self._files.entries.pop(p, None)
                    if isinstance(anchor, dict):
                        anchor = self._files.reopen(p, anchor, group)
                    elif anchor is not None:
                        anchor = place_anchor(anchor, p, group)
                    if anchor is not None and anchor.shape != p.shape:
                        name = dict(zip(group['params'], group.get('names', ()))).get(p, 'a parameter')
                        raise ValueError(
                            f'the optimizer state has an anchor of shape {tuple(anchor.shape)} for {name}, which has '
                            f'shape {tuple(p.shape)} here: it is of another model'
                        )
                    self.state[p]['anchor'] = anchor

    def state_dict(self) -> dict:
        """The state of the base optimizer, with the anchors or where in a file they stand, and ``upstream``."""
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
        return sealed({**packed, 'upstream': self.upstream} if self.upstream else packed)

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a ``state_dict`` and go on with its anchors, in their dtype.

        Raises:
            ValueError: If rollback is on here and the loaded state is of a run without it, if its parameter groups are
                others than here, if its anchors are not those it was saved with, or if a file it names for anchors is
                not there or is another one.
        """
        check_loadable(type(self).__name__, state_dict, self.param_groups, self.defaults)
        here = [dict(group) for group in self.param_groups]
        present = {p: state['anchor'] for p, state in self.state.items() if 'anchor' in state}
        numbers = chain.from_iterable(group['params'] for group in state_dict['param_groups'])
        params = dict(zip(numbers, chain.from_iterable(group['params'] for group in self.param_groups)))
        saved = {params[i]: s['anchor'] for i, s in state_dict['state'].items() if _has_anchor(s)}
        # torch would cast anchors to the dtype of their parameters, and take an anchor for a state of its own
        bare = {i: {k: v for k, v in s.items() if k != 'anchor'} for i, s in state_dict['state'].items()}
        super().load_state_dict({**state_dict, 'state': {i: state for i, state in bare.items() if state}})
        for message in settle_options(self.param_groups, here):
            self.warn(message)
        self.adopt_anchors(saved if state_dict['state'] else present)  # a reset: what was pre-trained stays so
        self.upstream = state_dict.get('upstream', self.upstream)

    def __getstate__(self) -> dict:
        # a copy has its anchors in memory
        own = {key: self.__dict__[key] for key in ('_rollback_defaults', 'select_pretrained', 'upstream')}
        return {**super().__getstate__(), **own, '_files': AnchorFiles(), '_told_of_rise': False}

    def __setstate__(self, state: dict) -> None:
        bare = {p: kept for p, kept in state['state'].items() if kept.keys() == {'anchor'}}
        for p in bare:
            del state['state'][p]
        super().__setstate__(state)
        self.state.update(bare)
        for group in self.param_groups:  # of a stock optimizer
            self._complete(group)


def _has_anchor(state: dict) -> bool:
    anchor = state.get('anchor', NO_ANCHOR)
    return anchor is None or isinstance(anchor, dict) or not torch.as_tensor(anchor).isnan().all()


def sealed(state_dict: dict) -> dict:
    """The state with a SHA-256 of what it remembers of the pre-trained model, if it does."""
    seal = _seal(state_dict)
    return state_dict if seal is None else {**state_dict, SEAL: seal}


def check_seal(state_dict: dict) -> None:
    """Refuse a state whose anchors are not those it was saved with.

    States without a seal are taken as they are: those that PyTorch's own tools for sharded optimizers hand on.

    Raises:
        ValueError: If any anchor is missing or has been changed.
    """
    if state_dict.get(SEAL, seal := _seal(state_dict)) != seal:
        raise ValueError(
            'the anchors of this optimizer state, or the statistics beside them, are not those it was saved with: '
            'their SHA-256 is another. Weights would return to wrong values; resume from another checkpoint'
        )


def _seal(state_dict: dict) -> str | None:
    kept = {i: state['anchor'] for i, state in state_dict['state'].items() if 'anchor' in state}
    kept.update(state_dict.get('upstream', {}))
    digest = hashlib.sha256()
    for name, value in sorted(kept.items(), key=lambda item: str(item[0])):
        if not isinstance(value, Tensor):  # None, or the place in a file
            digest.update(f'{name} {value}'.encode())
            continue
        digest.update(f'{name} {tuple(value.shape)}'.encode())
        for part in _local_parts(value):
            part = part.detach().cpu().contiguous()
            digest.update(f' {part.dtype} {tuple(part.shape)}'.encode())
            digest.update((ctypes.c_char * part.nbytes).from_address(part.data_ptr()))  # needs no numpy
    return digest.hexdigest() if kept else None


def _local_parts(tensor: Tensor) -> list[Tensor]:
    """The tensor, or what this process has of it."""
    if hasattr(tensor, 'local_shards'):
        return [shard.tensor for shard in tensor.local_shards()]
    return [tensor.to_local() if hasattr(tensor, 'to_local') else tensor]


def check_loadable(name: str, state_dict: dict, groups: list[dict], defaults: Iterable[str]) -> None:
    """Refuse a state that an optimizer with these groups cannot go on from.

    Args:
        name (str): Of the optimizer, for the message.
        state_dict (dict): What would be loaded.
        groups (list[dict]): ``param_groups`` of the optimizer.
        defaults (Iterable[str]): Names of its options.

    Raises:
        ValueError: If rollback is on and the state has no anchors or others than it was saved with, the groups have
            other parameters, or the state is of an optimizer without these options.
    """
    states = state_dict['state'].values()
    anchored = any('anchor' in state for state in states)
    # a state saved before the first step is empty and still ours; plain SGD keeps none at any time
    unstarted = not states and any('rollback' in group for group in state_dict['param_groups'])
    if any(group['rollback'] for group in groups) and not anchored and not unstarted:
        raise ValueError(
            f'this optimizer state has no anchors, so it is not of a run with rollback, and {name} cannot resume from '
            'it: the weights at hand are no longer the pre-trained ones. Either start anew with the pre-trained '
            'weights (load_from, without resume), or go on without rollback, with the optimizer and constructor of '
            'that run.'
        )
    expected = [key for key in defaults if key not in NEWER and not key.startswith(('rollback', 'anchor'))]
    lacking = {key for group in state_dict['param_groups'] for key in expected if key not in group}
    if anchored and lacking:
        raise ValueError(
            f'the optimizer state is not of {name}: its parameter groups have no {", ".join(sorted(lacking))}. Resume '
            'with the type of optimizer of that run.'
        )
    check_seal(state_dict)
    theirs, ours = (
        [group.get('names', group.get('param_names', [None] * len(group['params']))) for group in side]
        for side in (state_dict['param_groups'], groups)
    )
    sizes = [[len(group) for group in side] for side in (theirs, ours)]
    named = [(a, b) for a, b in zip(theirs, ours) if None not in (*a, *b)]
    if sizes[0] != sizes[1] or any(list(a) != list(b) for a, b in named):
        raise ValueError(
            f'the optimizer state has {len(theirs)} parameter groups (sizes {sizes[0]}), and here are {len(ours)} '
            f'({sizes[1]}). {_difference(theirs, ours)}Groups follow from the model and from paramwise_cfg: resume '
            'with the same model, max_level, min_level, power, layer_index and other options as that run.'
        )


def _difference(theirs: list[list[str | None]], ours: list[list[str | None]]) -> str:
    places = [{name: (i, j) for i, g in enumerate(side) for j, name in enumerate(g)} for side in (theirs, ours)]
    if any(None in side for side in places):
        return ''
    differences: dict[str, list] = {
        'only in the state': [name for name in places[0] if name not in places[1]],
        'only here': [name for name in places[1] if name not in places[0]],
        'elsewhere': [
            f'{name} (group {i} of the state, group {places[1][name][0]} here)'
            for name, (i, _) in places[0].items()
            if name in places[1] and places[1][name] != places[0][name]
        ],
    }
    return ''.join(
        f'{what.capitalize()}: {", ".join(names[:5])}{f" and {len(names) - 5} more" if len(names) > 5 else ""}. '
        for what, names in differences.items()
        if names
    )


def settle_options(groups: list[dict], before: list[dict]) -> list[str]:
    """After loading a state: where anchors lie is a matter of this machine, all else is as the state has it.

    Args:
        groups (list[dict]): ``param_groups``, now with the options of the state.
        before (list[dict]): Their options until then.

    Returns:
        list[str]: For each option of the configuration that is not used, a sentence that says so.
    """
    for group, here in zip(groups, before):
        group.update(anchor_device=here['anchor_device'], anchor_file=here['anchor_file'])
    # a half-life becomes a level when training starts, and a resumed run goes on with that level
    level = 'rollback_half_life' if any('rollback_half_life' in g for g in (*groups, *before)) else 'rollback'
    changed = [
        key
        for key in (level, 'rollback_coupling', 'rollback_rule', 'rollback_new', 'anchor_dtype')
        if any(group.get(key) != here.get(key) for group, here in zip(groups, before))
    ]
    sides = [[f'{key}={[group.get(key) for group in side]!r}' for key in changed] for side in (groups, before)]
    return [
        f'the resumed optimizer state has, in its groups, {loaded} where the configuration has {configured}; as with '
        'lr and weight_decay, what the state has is used. For another max_level, min_level or coupling start anew.'
        for loaded, configured in zip(*sides)
    ]
