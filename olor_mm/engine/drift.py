"""How far each layer has moved from its pre-trained weights, logged while a model trains."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, ZeroRedundancyOptimizer
from torch import Tensor, nn

from ..compat import unwrapped, whole_parameters
from ..layers import clean_name, layer_index, names_under
from ..optim.anchors import AnchorFiles, fetched, make_anchor
from ..pretrained import LoadRecord
from .earlier import repeat_loading, was_initialised
from .selection import PretrainedSelection

KEY = 'olor_drift'  # in checkpoints
IN_HOST_MEMORY = dict(anchor_dtype=None, anchor_device='cpu')


class DriftHook(Hook):
    """Logs the relative drift ||theta - theta_0|| / ||theta_0|| of every layer, whatever the optimizer.

    It goes to the visualizer of the run, so to ``scalars.json``, TensorBoard or W&B, as ``drift/layer_00``,
    ``drift/layer_01``, ... and ``drift/all``, over all pre-trained parameters of the layer together. theta is what the
    optimizer trains, not its average in ``EMAHook``. theta_0 is the anchor where there is one, which is rounded with
    ``anchor_dtype='bfloat16'``; of all else a copy in host memory, made before the first step and saved with every
    checkpoint, so that a resumed run measures against the same values. Under FSDP only what has an anchor is measured.

    Args:
        interval (int): Iterations between two measurements; the last iteration is always measured. Defaults to 20.
        pretrained (str or list[str], optional): As in ``paramwise_cfg.rollback``: 'auto' (what was loaded), 'all', or
            prefixes. Defaults to that of an optimizer with rollback, else to 'auto'.

    Raises:
        ValueError: When training starts, if nothing is pre-trained, if it cannot be seen what is, if a resumed
            checkpoint does not have the values, or if FSDP has sharded them and the optimizer has no anchors.

    Example:
        >>> custom_hooks = [dict(type='DriftHook')]
    """

    def __init__(self, interval: int = 20, pretrained: str | list[str] | None = None):
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'DriftHook.interval={interval!r} is not a number of iterations of 1 or more')
        words = pretrained in (None, 'auto', 'all')
        if not words and not (isinstance(pretrained, (list, tuple)) and all(isinstance(p, str) for p in pretrained)):
            raise ValueError(
                f"DriftHook.pretrained={pretrained!r} is unknown; take 'auto' (what was loaded), 'all', or a list of "
                "prefixes of parameter names, e.g. ['backbone']"
            )
        self.interval = interval
        self.pretrained: Any = pretrained
        self._resumed: dict | None = None
        self._layers: Any = None  # parameter to layer, from the first iteration on

    def before_run(self, runner) -> None:
        if not isinstance(runner.optim_wrapper, OptimWrapper):  # of a run that does not train
            return
        model = unwrapped(runner.model)
        # there are several in an OptimWrapperDict
        self._optimizer: Any = getattr(runner.optim_wrapper, 'optimizer', None)
        self._inner: Any = getattr(self._optimizer, 'optim', self._optimizer)
        self._selection = getattr(self._inner, 'select_pretrained', None)
        if not isinstance(self._selection, PretrainedSelection):
            self._selection = None
        with whole_parameters(runner.model) as is_sharded:
            index = layer_index(model)
            self._index = {p: index[name][0] for name, p in model.named_parameters()}
        self._names = {p: clean_name(name) for name, p in model.named_parameters()}
        self._is_sharded = is_sharded or any(hasattr(p, 'to_local') for p in self._names)
        self._is_spread = self._is_sharded or isinstance(self._optimizer, ZeroRedundancyOptimizer)
        if self._is_sharded and self._selection is None:
            raise ValueError(
                'DriftHook: the model is sharded by FSDP, where it measures against the anchors of an optimizer with '
                'rollback alone, and there is none; take DistributedDataParallel, or leave the hook out'
            )
        if self.pretrained is None:
            self.pretrained = 'auto' if self._selection is None else self._selection.pretrained
        self._record = self._watch(runner, model)

    def _watch(self, runner, model: nn.Module) -> LoadRecord:
        if self._selection is not None:
            return self._selection.record
        record = LoadRecord(model)
        if self.pretrained == 'auto' and was_initialised(model):  # FlexibleRunner has loaded everything by now
            if getattr(runner, '_load_from', None):
                raise ValueError(
                    f'DriftHook: load_from={runner._load_from!r} was loaded before hooks run, as FlexibleRunner does, '
                    'so that it cannot be seen what came out of it; name what is pre-trained, e.g. '
                    "pretrained=['backbone']"
                )
            repeat_loading(model, record)
        return record

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._resumed = checkpoint.get(KEY)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._layers is not None:
            names = [self._names[p] for p in self._layers]
            checkpoint[KEY] = dict(names=names, values={self._names[p]: value for p, value in self._own.items()})

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self._layers is None:  # weights are loaded, and stages that freeze in train mode are frozen
            found, self._own = self._from_checkpoint(runner) if runner.iter else self._from_model()
            if self._selection is None:
                self._record.close()
            if not found:
                raise ValueError(
                    f'DriftHook: nothing is pre-trained (pretrained={self.pretrained!r}), so there is nothing to '
                    "measure from. Set load_from or init_cfg=dict(type='Pretrained', ...), name it by pretrained=[...] "
                    'if it is loaded where this cannot be seen, or leave the hook out'
                )
            self._layers = {p: self._index[p] for p in found}
            self._norms: list[float] | None = None
            print_log(
                f'DriftHook: {len(found)} of {len(self._names)} parameter tensors are pre-trained, and the values of '
                f'{len(self._own)} are kept here, as the optimizer has no anchors of them',
                logger='current',
            )

    def _from_model(self) -> tuple[list[nn.Parameter], dict[nn.Parameter, Tensor]]:
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
        if self._is_sharded:  # what has no anchor cannot be saved
            return [p for p in params if p in anchored], {}
        if get_rank() and not self._is_spread:
            return params, {}
        return params, {p: make_anchor(p, IN_HOST_MEMORY) for p in params if p not in anchored}

    def _from_checkpoint(self, runner) -> tuple[list[nn.Parameter], dict[nn.Parameter, Tensor]]:
        kept = self._resumed or dict(names=[self._names[p] for p in self._anchors() if p in self._names], values={})
        if not kept['names']:
            raise ValueError(
                f'DriftHook: training was resumed at iteration {runner.iter} from a checkpoint that was saved without '
                'this hook, so the pre-trained values are not known any more. Leave the hook out, or start anew'
            )
        params = {name: p for p, name in self._names.items()}
        lost = [name for name in kept['names'] if name not in params]
        lost += [n for n, v in kept['values'].items() if n not in lost and v.shape != params[n].shape]
        if lost:
            raise ValueError(
                f'DriftHook: the resumed checkpoint has pre-trained values of {lost[0]}, and the model has no such '
                'parameter in this shape: it is of another model'
            )
        return [params[n] for n in kept['names']], {params[n]: value for n, value in kept['values'].items()}

    def _anchors(self) -> dict[nn.Parameter, Tensor]:
        """Those that this process has."""
        states = getattr(self._inner, 'state', {})
        return {p: state['anchor'] for p, state in states.items() if torch.is_tensor(state.get('anchor'))}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval) or runner.iter + 1 == runner.max_iters:
            self._log(runner)

    @torch.no_grad()
    def _log(self, runner) -> None:
        if get_rank() and not self._is_spread:  # the first process has it all
            return
        moved = self._squares((layer, torch._foreach_sub(params, starts)) for layer, params, starts in self._pairs())
        if self._norms is None:
            self._norms = self._squares((layer, starts) for layer, _, starts in self._pairs())
        scalars = {f'drift/layer_{i:02d}': _ratio(moved[i], self._norms[i]) for i in sorted({*self._layers.values()})}
        scalars['drift/all'] = _ratio(sum(moved), sum(self._norms))
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def _pairs(self) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
        """Layer, parameters and their pre-trained values, of what falls to this process."""
        anchors = self._anchors()
        batches: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        for p in self._share():
            start = anchors.get(p, self._own.get(p, p))  # itself until the first step, which captures anchors
            params, starts = batches.setdefault(self._layers[p], ([], []))
            params.append(p)
            starts.append(start)
        files = getattr(self._inner, '_files', None) or AnchorFiles()
        yield from fetched([(layer, *batch) for layer, batch in batches.items()], files)

    def _share(self) -> list[nn.Parameter]:
        if not isinstance(self._optimizer, ZeroRedundancyOptimizer):
            return list(self._layers)
        here, anywhere = (
            {p for group in optimizer.param_groups for p in group['params']}
            for optimizer in (self._inner, self._optimizer)
        )
        return [p for p in self._layers if p in here or (p not in anywhere and get_rank() == 0)]

    def _squares(self, batches: Iterable[tuple[int, list[Tensor]]]) -> list[float]:
        """The squared norm of each layer over all processes; what reads it waits for the device once."""
        sums = torch.zeros(max(self._layers.values()) + 1, device=next(iter(self._layers)).device)
        for layer, tensors in batches:
            norms = torch._foreach_norm([t.float() for t in tensors])  # half precision would overflow
            sums[layer] += torch.stack([norm.to(sums.device) for norm in norms]).square().sum()
        if self._is_spread:
            all_reduce(sums)
        return sums.tolist()


def _ratio(moved: float, norm: float) -> float:
    return (moved / norm) ** 0.5 if norm else 0.0
