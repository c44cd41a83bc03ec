"""How far each layer has moved from its pre-trained weights, logged during training."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, ZeroRedundancyOptimizer
from torch import Tensor, nn

from ...layers import clean_name, layer_index, names_under, unwrapped
from ...optim.anchors import fetched, make_anchor
from ...pretrained import LoadRecord
from ..fsdp import whole_parameters
from ..selection import PretrainedSelection, repeat_loading, was_initialised

KEY = 'olor_drift'  # in checkpoints


class DriftHook(Hook):
    """Logs the relative drift ||theta - theta_0|| / ||theta_0|| of every layer, with any optimizer.

    It goes to the visualizer of the run (``scalars.json``, TensorBoard, W&B) as ``drift/layer_00``, ... and
    ``drift/all``, over all pre-trained parameters of the layer together. theta is what the optimizer trains, not its
    average in ``EMAHook``. theta_0 is the anchor (rounded if ``anchor_dtype='bfloat16'``). Where there is none, it is a
    copy that the hook makes before the first step, keeps in host memory and saves in checkpoints, so that a resumed run
    measures against the same values. Under FSDP only parameters with an anchor are measured.

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
        self._layers: Any = None  # parameter to layer, from the first iteration on

    def before_run(self, runner) -> None:
        if not isinstance(runner.optim_wrapper, OptimWrapper):  # the run only tests
            return
        model = unwrapped(runner.model)
        self._optimizer: Any = getattr(runner.optim_wrapper, 'optimizer', None)  # an OptimWrapperDict has several
        self._inner: Any = getattr(self._optimizer, 'optim', self._optimizer)  # ZeRO wraps one
        selection = getattr(self._inner, 'select_pretrained', None)
        self._selection = selection if isinstance(selection, PretrainedSelection) else None
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
            names = [self._names[p] for p in self._layers]
            checkpoint[KEY] = dict(names=names, values={self._names[p]: value for p, value in self._own.items()})

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self._layers is not None:
            return
        # by now, weights are loaded, and stages that freeze in train mode are frozen
        found, self._own = self._from_checkpoint() if runner.iter else self._from_model()
        if self._selection is None:
            self._record.close()
        if not found:
            fault = f'nothing is pre-trained (pretrained={self.pretrained!r})'
            raise ValueError(f"DriftHook: {fault}; set load_from or init_cfg, or name it: pretrained=['backbone']")
        self._layers = {p: self._index[p] for p in found}
        self._norms: list[float] | None = None
        share = f'{len(found)} of {len(self._names)} parameter tensors are pre-trained'
        print_log(f'DriftHook: {share}; it keeps copies of {len(self._own)} without an anchor', logger='current')

    def _from_model(self) -> tuple[list[nn.Parameter], dict[nn.Parameter, Tensor]]:
        """Pre-trained parameters, and copies of those that get no anchor."""
        params = list(self._names)
        if self.pretrained == 'auto':
            params = self._record.unchanged(params)
        elif self.pretrained != 'all':
            names = self._names.values()
            under = {n for prefix in self.pretrained for n in names_under(prefix, names, 'DriftHook.pretrained')}
            params = [p for p in params if self._names[p] in under]
        anchored = set()
        if hasattr(self._inner, 'undecided'):
            undecided = self._optimizer.undecided()
            chosen = undecided if self._selection is None else self._selection.among(undecided)
            anchored = {p for p in chosen if p.requires_grad}
        if self._is_sharded:  # copies of shards cannot be saved
            return [p for p in params if p in anchored], {}
        if get_rank() and not self._is_spread:
            return params, {}
        in_host_memory = dict(anchor_dtype=None, anchor_device='cpu')
        return params, {p: make_anchor(p, in_host_memory) for p in params if p not in anchored}

    def _from_checkpoint(self) -> tuple[list[nn.Parameter], dict[nn.Parameter, Tensor]]:
        """As ``_from_model``, out of the checkpoint that was resumed."""
        kept = self._resumed or dict(names=[self._names[p] for p in self._anchors() if p in self._names], values={})
        if not kept['names']:
            raise ValueError('DriftHook: the resumed checkpoint was saved without it; remove it, or start anew')
        params = {name: p for p, name in self._names.items()}
        values = kept['values']
        for name in kept['names']:
            if name not in params or (name in values and values[name].shape != params[name].shape):
                raise ValueError(f'DriftHook: the resumed checkpoint is of another model: {name} differs or is missing')
        return [params[name] for name in kept['names']], {params[name]: value for name, value in values.items()}

    def _anchors(self) -> dict[nn.Parameter, Tensor]:
        """The anchors that this process has."""
        states = getattr(self._inner, 'state', {})
        return {p: state['anchor'] for p, state in states.items() if torch.is_tensor(state.get('anchor'))}

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        is_due = self.every_n_train_iters(runner, self.interval) or runner.iter + 1 == runner.max_iters
        if not is_due or (get_rank() and not self._is_spread):  # the first process has everything
            return
        moved = self._squares((layer, torch._foreach_sub(params, starts)) for layer, params, starts in self._pairs())
        if self._norms is None:
            self._norms = self._squares((layer, starts) for layer, _, starts in self._pairs())
        drift = [(square / norm) ** 0.5 if norm else 0.0 for square, norm in zip(moved, self._norms)]
        scalars = {f'drift/layer_{i:02d}': drift[i] for i in sorted({*self._layers.values()})}
        runner.visualizer.add_scalars({**scalars, 'drift/all': drift[-1]}, step=runner.iter + 1)

    def _pairs(self) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
        """Layer, parameters and their pre-trained values, for the share of this process."""
        anchors = self._anchors()
        here, anywhere = (
            {p for group in getattr(optimizer, 'param_groups', ()) for p in group['params']}
            for optimizer in (self._inner, self._optimizer)  # they differ with ZeRO
        )
        batches: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for p, layer in self._layers.items():
            if p in here or (p not in anywhere and get_rank() == 0):
                params, starts = batches.setdefault(layer, ([], []))
                params.append(p)
                starts.append(anchors.get(p, self._own.get(p, p)))  # itself until the first step captures anchors
        yield from fetched([(layer, *batch) for layer, batch in batches.items()])

    def _squares(self, batches: Iterable[tuple[int, list[Tensor]]]) -> list[float]:
        """The squared norm of each layer over all processes, and their sum; waits for the device once."""
        sums = torch.zeros(max(self._layers.values()) + 1, device=next(iter(self._layers)).device)
        for layer, tensors in batches:
            norms = torch._foreach_norm([t.float() for t in tensors])  # half precision would overflow
            sums[layer] += torch.stack([norm.to(sums.device) for norm in norms]).square().sum()
        if self._is_spread:
            all_reduce(sums)
        squares = sums.tolist()
        return [*squares, sum(squares)]
