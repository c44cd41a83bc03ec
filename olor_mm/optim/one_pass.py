"""Adam, AdamW and SGD on CPU in one pass over memory: update and rollback of an element while it is in a register.

A step is bound by memory. Fused AdamW moves 28 bytes for a fp32 parameter and a rollback after it 12 more; together in
one pass it is 32. torch has no such kernel, and numba makes one in two seconds. The two passes of
:mod:`olor_mm.optim.rollback` are the specification: what is not plain fp32 on CPU, with ``fused`` on, takes them.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from .rollback import Rollback
from .rules import RULES

Call = tuple[str, tuple[str, ...], tuple[float, ...]]


class OnePass(Rollback):
    """Rollback for a base optimizer whose update ``_kernel_call`` can give to a kernel."""

    def _kernel_call(self, group: dict, weight: float) -> Call | None:
        """Name of the kernel, keys of the state it needs, its scalars; None if it cannot do what the group asks."""
        raise NotImplementedError

    def _two_pass_groups(self, closure) -> list[dict]:
        is_scaled = getattr(self, 'grad_scale', None) is not None or getattr(self, 'found_inf', None) is not None
        if closure is not None or is_scaled or is_compiling() or _kernels() is None:
            return self.param_groups
        remaining = []
        work: dict[str, list] = {}
        for group in self.param_groups:
            weight, call = self.rollback_weight(group), None
            if not isinstance(weight, Tensor) and weight > 0 and group.get('fused') and not group['maximize']:
                call = self._kernel_call(group, weight) if RULES[group['rollback_rule']].is_review else None
            if call is None:
                remaining.append(group)
                continue
            kernel, keys, scalars = call
            rows, rest = self._rows(group['params'], keys)
            for row in rows:
                work.setdefault(kernel, []).append((row, scalars))
            if rest:
                remaining.append({**group, 'params': rest})
        for kernel, calls in work.items():
            addresses = [[t.data_ptr() for t in row] for row, _ in calls]
            sizes, scalars = [row[0].numel() for row, _ in calls], [scalars for _, scalars in calls]
            _kernels().run(kernel, addresses, sizes, scalars)  # type: ignore[union-attr]  # checked above
            increment_version([row[0] for row, _ in calls])
        return remaining

    def _rows(self, params: list[Parameter], keys: tuple[str, ...]) -> tuple[list[list[Tensor]], list[Parameter]]:
        """The tensors a kernel takes for each parameter, and the parameters it cannot take."""
        rows, rest = [], []
        for p in params:
            state = self.state.get(p, {})  # one that lacks something is initialised by the base optimizer
            row = [p, p.grad, *(state.get(key) for key in ('anchor', *keys))]
            if all(map(_is_plain, row)):
                rows.append(row)
            else:
                rest.append(p)
        return rows, rest


class OnePassAdam(OnePass):
    """For ``torch.optim.Adam`` and ``torch.optim.AdamW``."""

    def _kernel_call(self, group: dict, weight: float) -> Call | None:
        lr, decay = group['lr'], group['weight_decay']
        if group['amsgrad'] or any(isinstance(value, Tensor) for value in (lr, *group['betas'])):
            return None
        is_decoupled = isinstance(self, torch.optim.AdamW) or group.get('decoupled_weight_decay', False)
        l2, kept = (0.0, 1 - lr * decay) if is_decoupled else (decay, 1.0)
        return 'adam', ('exp_avg', 'exp_avg_sq', 'step'), (lr, l2, kept, *group['betas'], group['eps'], weight)


class OnePassSGD(OnePass):
    """For ``torch.optim.SGD``."""

    def _kernel_call(self, group: dict, weight: float) -> Call | None:
        scalars = (group['lr'], group['weight_decay'])
        if any(isinstance(value, Tensor) for value in scalars):
            return None
        if not group['momentum']:
            return 'sgd', (), (*scalars, weight)
        momentum = (group['momentum'], group['dampening'], group['nesterov'])
        return 'momentum_sgd', ('momentum_buffer',), (*scalars, *momentum, weight)

    def _two_pass_groups(self, closure) -> list[dict]:
        # torch's fused kernel wants either all momentum buffers of a call or none, and a late parameter has none yet
        groups = []
        for group in super()._two_pass_groups(closure):
            if group.get('fused') and group['momentum']:
                known = [p for p in group['params'] if self.state.get(p, {}).get('momentum_buffer') is not None]
                late = [p for p in group['params'] if self.state.get(p, {}).get('momentum_buffer') is None]
                groups += [{**group, 'params': params} for params in (known, late) if params]
            else:
                groups.append(group)
        return groups


def _is_plain(t: Tensor | None) -> bool:
    return (
        t is not None and type(t) in (Tensor, Parameter) and t.dtype == torch.float32 and t.is_cpu and t.is_contiguous()
    )


def is_compiling() -> bool:
    """Whether torch.compile traces this."""
    return torch.compiler.is_compiling() if hasattr(torch.compiler, 'is_compiling') else torch._dynamo.is_compiling()


@cache
def _kernels() -> ModuleType | None:
    try:
        from . import kernels
    except ImportError:  # two passes do without numba
        return None
    return kernels
