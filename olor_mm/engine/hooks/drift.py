"""How far each layer has moved from its pre-trained weights, logged during training."""

import logging
from collections.abc import Collection, Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict, ZeroRedundancyOptimizer
from torch import Tensor, nn

from ...layers import clean_name, layer_index, names_under, unwrapped
from ...optim.anchors import fetched, local, make_anchor
from ...pretrained import LoadRecord
from ..budgets import TellBudgetUse, differences, radii, sums_of_squares
from ..fsdp import whole_parameters
from ..selection import PretrainedSelection, repeat_loading, was_initialised
from .training import TrainedParameters

KEY = 'olor_drift'  # in checkpoints


class DriftHook(TellBudgetUse):
    """Logs the relative drift ||theta - theta_0|| / ||theta_0|| of every layer, with any optimizer.

    It goes to the visualizer of the run (``scalars.json``, TensorBoard, W&B) as ``drift/layer_00``, ... and
    ``drift/all``, over all pre-trained parameters of the layer together that have been trained: a frozen teacher, the
    moving average of a student and a layer that is still frozen do not count, and of a model in ``EMAHook`` it is not
    the average. theta_0 is the anchor (rounded if ``anchor_dtype='bfloat16'``). Where there is none, it is a copy that
    the hook makes before a parameter's first step, keeps in host memory and saves in checkpoints, so that a resumed run
    measures against the same values. Under FSDP only parameters with an anchor are measured.

    Where parameters of a layer have a drift budget, ``drift/layer_00_of_budget``, ... and ``drift/all_of_budget`` are
    the share of it that they used: the root of the sum of ||theta - theta_0||^2, divided by that of their bounds, each
    the budget times :meth:`olor_mm.optim.Rollback.norm_of`. It is at most 1, up to rounding.

    Args:
        interval (int): Iterations between two measurements; the last iteration is always measured. Defaults to 20.
        pretrained (str or list[str], optional): As in ``paramwise_cfg.rollback``: 'auto' (what was loaded), 'all', or
            prefixes. Defaults to the setting of an optimizer with rollback, else to 'auto'.

    Raises:
        ValueError: If an argument is out of range; when training starts, if nothing is pre-trained or it cannot be seen
            what is, if a resumed checkpoint lacks the values, or if FSDP shards a model without anchors.

    Example:
        >>> custom_hooks = [dict(type='DriftHook')]
    """

    def __init__(self, interval: int = 20, pretrained: str | list[str] | None = None):
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'DriftHook.interval={interval!r} is not a number of iterations of 1 or more')
        is_list = isinstance(pretrained, (list, tuple)) and all(isinstance(prefix, str) for prefix in pretrained)
        if not is_list and pretrained not in (None, 'auto', 'all'):
            raise ValueError(f"DriftHook.pretrained={pretrained!r}: give 'auto', 'all' or a list like ['backbone']")
        self.interval = interval
        self.pretrained: Any = pretrained
        self._resumed: dict | None = None
        self._layers: Any = None  # pre-trained parameter to layer, from the first iteration on
        self._own: dict[nn.Parameter, Tensor] = {}
        self._norms: tuple[int, Tensor] | None = None  # of so many trained parameters
        self._partial: set[nn.Parameter] = set()  # some elements of their pre-trained values are NaN: these are free
        self._is_told = False

    def before_run(self, runner) -> None:
        if not isinstance(runner.optim_wrapper, OptimWrapper):  # the run only tests
            return
        model = unwrapped(runner.model)
        several = isinstance(runner.optim_wrapper, OptimWrapperDict)
        self._wrappers = [*runner.optim_wrapper.values()] if several else [runner.optim_wrapper]
        self._optimizer: Any = None if several else runner.optim_wrapper.optimizer
        self._inner: Any = getattr(self._optimizer, 'optim', self._optimizer)  # ZeRO wraps one
        selection = getattr(self._inner, 'select_pretrained', None)
        self._selection = selection if isinstance(selection, PretrainedSelection) else None
        self._trained = TrainedParameters(runner.optim_wrapper, self._before_first_step)
        with whole_parameters(runner.model) as is_sharded:
            index = layer_index(model)
            self._index = {p: index[name][0] for name, p in model.named_parameters()}
        self._names = {p: clean_name(name) for name, p in model.named_parameters()}
        self._is_sharded = is_sharded or any(hasattr(p, 'to_local') for p in self._names)
        self._is_spread = self._is_sharded or isinstance(self._optimizer, ZeroRedundancyOptimizer)
        if self._is_sharded and self._selection is None:
            raise ValueError('DriftHook: under FSDP it needs an optimizer with rollback; use one, or DDP')
        if self.pretrained is None:
            self.pretrained = 'auto' if self._selection is None else self._selection.pretrained
        self._record = LoadRecord(model) if self._selection is None else self._selection.record
        if self._selection is None and self.pretrained == 'auto' and was_initialised(model):
            # FlexibleRunner has loaded everything by now
            if getattr(runner, '_load_from', None):
                fault = f'load_from={runner._load_from!r} is loaded where the hook cannot see it'
                raise ValueError(f"DriftHook: {fault}; name what is pre-trained, e.g. pretrained=['backbone']")
            repeat_loading(model, self._record)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._resumed = checkpoint.get(KEY)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._layers is not None:
            trained = [self._names[p] for p in self._layers if p in self._trained.found]
            values = {self._names[p]: value for p, value in self._own.items()}
            checkpoint[KEY] = dict(names=[self._names[p] for p in self._layers], trained=trained, values=values)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self._layers is not None:
            return
        found = self._from_checkpoint() if runner.iter else self._from_model()  # by now, weights are loaded
        if self._selection is None:
            self._record.close()
        if not found:
            fault = f'nothing is pre-trained (pretrained={self.pretrained!r})'
            raise ValueError(f"DriftHook: {fault}; set load_from or init_cfg, or name it: pretrained=['backbone']")
        self._layers = {p: self._index[p] for p in found}
        share = f'{len(found)} of {len(self._names)} parameter tensors are pre-trained'
        print_log(f'DriftHook: {share}; it measures those of them that are trained', logger='current')

    def _from_model(self) -> list[nn.Parameter]:
        """The pre-trained parameters."""
        params = list(self._names)
        if self.pretrained == 'auto':
            params = self._record.unchanged(params)
        elif self.pretrained != 'all':
            names = self._names.values()
            under = {n for prefix in self.pretrained for n in names_under(prefix, names, 'DriftHook.pretrained')}
            params = [p for p in params if self._names[p] in under]
        return params

    def _before_first_step(self, params: set[nn.Parameter]) -> None:
        """Of the parameters that are trained from now on, copy the pre-trained ones that get no anchor."""
        new = params.intersection(self._layers or ()).difference(self._anchored(), self._own)
        if self._is_sharded:  # copies of shards cannot be saved
            self._layers = {p: layer for p, layer in self._layers.items() if p not in new}
        elif get_rank() == 0 or self._is_spread:
            in_host_memory = dict(anchor_dtype=None, anchor_device='cpu')
            self._own.update({p: make_anchor(p, in_host_memory) for p in self._layers or () if p in new})

    def _anchored(self) -> set[nn.Parameter]:
        """Parameters that have an anchor after the coming step."""
        kept = {p for p, state in getattr(self._inner, 'state', {}).items() if 'anchor' in state}
        if not hasattr(self._inner, 'undecided'):
            return kept
        undecided = self._optimizer.undecided()
        return kept.union(undecided if self._selection is None else self._selection.among(undecided))

    def _from_checkpoint(self) -> list[nn.Parameter]:
        """As ``_from_model``, out of the checkpoint that was resumed."""
        kept = self._resumed or dict(names=[self._names[p] for p in self._anchors() if p in self._names], values={})
        if not kept['names']:
            raise ValueError('DriftHook: the resumed checkpoint was saved without it; remove it, or start anew')
        params = {name: p for p, name in self._names.items()}
        values = kept['values']
        for name in kept['names']:
            if name not in params or (name in values and values[name].shape != params[name].shape):
                raise ValueError(f'DriftHook: the resumed checkpoint is of another model: {name} differs or is missing')
        self._own = {params[name]: value for name, value in values.items()}
        self._trained.found.update(params[name] for name in kept.get('trained', kept['names']))
        return [params[name] for name in kept['names']]

    def _anchors(self) -> dict[nn.Parameter, Tensor]:
        """The anchors that this process has."""
        states = getattr(self._inner, 'state', {})
        return {p: state['anchor'] for p, state in states.items() if torch.is_tensor(state.get('anchor'))}

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        is_due = self.every_n_train_iters(runner, self.interval) or runner.iter + 1 == runner.max_iters
        if not is_due or (get_rank() and not self._is_spread):  # the first process has everything
            return
        count = len(self._trained.found)
        allowed = self._allowed()
        if self._norms is None or self._norms[0] != count:  # unfreezing adds to them
            known = {**self._own, **self._anchors()}
            self._partial = {p for p, start in known.items() if local([start])[0].isnan().any()}
            sizes = (
                (i, [torch.where(t.isnan(), 0, t) if are_partial else t for t in starts])
                for (i, are_partial), _, starts in self._pairs(allowed)
            )
            self._norms = count, sums_of_squares(sizes, self._zeros())
        moved = ((i, differences(params, starts, part)) for (i, part), params, starts in self._pairs(allowed))
        bounds = self._zeros('cpu')
        for p, radius in allowed.items():
            bounds[self._number(p, allowed)] += radius**2
        squares = torch.stack([sums_of_squares(moved, self._zeros()), self._norms[1], bounds.to(self._norms[1])])
        if self._is_spread:
            all_reduce(squares)
        squares = squares.view(3, 2, -1)  # of layers, without a budget and under one
        drifts, used = shares(*squares[:2].sum(1).tolist()), shares(*squares[::2, 1].tolist())
        if drifts:
            scalars = {f'drift/{name}': share for name, share in drifts.items()}
            scalars |= {f'drift/{name}_of_budget': share for name, share in used.items()}
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        elif count and not self._is_told:
            self._is_told = True
            fault = f'none of the {len(self._layers)} pre-trained parameter tensors is trained, so there is no drift'
            print_log(f'DriftHook: {fault}', logger='current', level=logging.WARNING)
        elif not count and runner.iter + 1 == runner.max_iters:
            fault = 'no step of the optimizer was seen; torch before 2.2 runs no hooks of it after torch.compile'
            print_log(f'DriftHook: {fault}', logger='current', level=logging.WARNING)

    def _allowed(self) -> dict[nn.Parameter, float]:
        """How far each measured parameter under a drift budget may move, for the share of this process."""
        inner = [getattr(wrapper.optimizer, 'optim', wrapper.optimizer) for wrapper in self._wrappers]
        found = {p: radius for optimizer in inner for p, radius in radii(optimizer).items()}
        return {p: radius for p, radius in found.items() if p in self._layers and p in self._trained.found}

    def _zeros(self, device=None) -> Tensor:
        return torch.zeros(2 * max(self._index.values()) + 2, device=device or next(iter(self._index)).device)

    def _number(self, p: nn.Parameter, allowed: Collection[nn.Parameter]) -> int:
        """The place of a parameter in sums over layers: first those without a budget, then those under one."""
        return self._layers[p] + (p in allowed) * (max(self._index.values()) + 1)

    def _pairs(self, allowed: Collection[nn.Parameter]) -> Iterator[tuple[Any, list[Tensor], list[Tensor]]]:
        """Place in the sums and whether values are partial, parameters, and these values; for this process' share."""
        anchors = self._anchors()
        here, anywhere = (
            {p for group in getattr(optimizer, 'param_groups', ()) for p in group['params']}
            for optimizer in (self._inner, self._optimizer)  # they differ with ZeRO
        )
        batches: dict[tuple[int, bool], tuple[list[Tensor], list[Tensor]]] = {}
        for p in self._layers:
            if p in self._trained.found and (p in here or (p not in anywhere and get_rank() == 0)):
                params, starts = batches.setdefault((self._number(p, allowed), p in self._partial), ([], []))
                params.append(p)
                starts.append(anchors.get(p, self._own.get(p, p)))  # itself if an inf has skipped the first step
        yield from fetched([(key, *batch) for key, batch in batches.items()])


def shares(moved: list[float], size: list[float]) -> dict[str, float]:
    """Of squares by layer, the ratio of their roots, by the name of the layer and in all; of no size there is none."""
    squares = {f'layer_{i:02d}': pair for i, pair in enumerate(zip(moved, size)) if pair[1]}
    if squares:
        squares['all'] = (sum(pair[0] for pair in squares.values()), sum(pair[1] for pair in squares.values()))
    return {name: (square / whole) ** 0.5 for name, (square, whole) in squares.items()}
