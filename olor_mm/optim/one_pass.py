"""Adam, AdamW and SGD in one pass over memory: update and rollback of an element while it is in a register.

A step is bound by memory. Fused AdamW moves 28 bytes for a fp32 parameter and a rollback after it 12 more; together in
one pass it is 32. torch has no such kernel; numba makes one for CPU in two seconds, Triton one for GPUs. The two passes
of :mod:`olor_mm.optim.rollback` are the specification: what no kernel can do, with ``fused`` on, takes them.
"""

from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Parameter

from .rollback import Rollback
from .rules import RULES

Scalars = tuple[float | Tensor, ...]  # of a group; w is the last
Call = tuple[str, tuple[str, ...], Scalars]
Job = tuple[dict, str, tuple[str, ...], Scalars]  # a parameter group, and the call for it
OLD = tuple(map(int, torch.__version__.split('.')[:2])) < (2, 4)  # where `increment_version` takes one tensor alone
PLAIN = frozenset({Tensor, Parameter})  # no subclass, which may keep its elements elsewhere


class Plan:
    """Which launch of a kernel steps which parameter, for as long as its signature stays the same.

    Attributes:
        signature (tuple or None): Of what it was made for, see ``OnePass._planned``.
        stepped (list[Parameter]): What kernels step.
        launches (list[tuple]): A launch, and the places of its parameters among those of all groups.
        rest (list[list[Parameter]]): Of every group, what kernels do not step.
    """

    def __init__(self, optimizer: Rollback, signature: tuple | None, jobs: list[Job], needs_device: bool, kept: list):
        self.signature = signature
        self.stepped: list[Parameter] = []
        self.rest: list[list[Parameter]] = []
        rows: dict[tuple, list] = {}
        first = 0
        for number, (group, method, keys, _) in enumerate(jobs):
            self.rest.append([])
            for place, p in enumerate(group['params'], first):
                state = optimizer.state.get(p) or {}  # what is not there yet is made by the base optimizer
                row = [p, p.grad, *[state.get(key) for key in ('anchor', *keys)]]
                kernels = _kernels(p.device.type)
                is_plain = PLAIN.issuperset(map(type, row)) and all(t.device == p.device for t in row)
                is_plain = is_plain and p not in optimizer.partial
                fits = is_plain and kernels and (kernels.TAKES_TENSORS or not needs_device)
                kind = kernels.kind(row) if fits else None
                if kind is None:
                    self.rest[-1].append(p)
                else:
                    budget = _budget(group)
                    radius = budget and budget * optimizer.norm_of(p)
                    key = (kernels, method, kind, budget is None)
                    rows.setdefault(key, []).append((place, row, number, radius))
                    self.stepped.append(p)
            first += len(group['params'])
        # gradients are not held on to; what has the addresses in the signature is, so that nothing else can have them
        self._held = [[*row[:1], *row[2:]] for some in rows.values() for _, row, *_ in some]
        self.launches = []
        for (kernels, method, kind, has_level), some in rows.items():
            places, tensors, numbers, radii = zip(*some)
            launch = kernels.Launch(method, kind, tensors, numbers, None if has_level else radii, kept)
            self.launches.append((launch, places))


class OnePass(Rollback):
    """Rollback for a base optimizer whose update ``_kernel_call`` can give to a kernel."""

    def _start_state(self) -> None:
        super()._start_state()
        self._forget_plan()

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._forget_plan()

    def _forget_plan(self) -> None:
        self._plan: Plan | None = None
        self._kept: list = []  # what CUDA graphs go on to read

    def _kernel_call(self, group: dict, weight: float | Tensor) -> Call | None:
        """Name of the kernel, keys of the state it needs, its scalars; None if it cannot do what the group asks."""
        raise NotImplementedError

    def _two_pass_groups(self, closure) -> list[dict]:
        if closure is not None or is_compiling():
            return self.param_groups
        remaining, jobs = [], []
        for group in self.param_groups:
            rule, weight, call = RULES[group['rollback_rule']], self.rollback_weight(group), None
            pulls = isinstance(weight, Tensor) or weight > 0 if rule.is_review else rule.is_drift and group['rollback']
            if pulls and group.get('fused') and not group['maximize']:
                call = self._kernel_call(group, weight)
            if call is None:
                remaining.append(group)
            else:
                jobs.append((group, *call))
        if not jobs:
            return remaining
        scalars = [numbers for *_, numbers in jobs]
        on_device = [getattr(self, key, None) for key in ('grad_scale', 'found_inf')]  # set by a GradScaler
        grads = [p.grad for group, *_ in jobs for p in group['params']]
        plan = self._planned(jobs, grads, any(isinstance(x, Tensor) for x in chain(on_device, *scalars)))
        for launch, places in plan.launches:
            launch([grads[place].data_ptr() for place in places], scalars, *on_device)
        for p in plan.stepped if OLD else [plan.stepped]:
            increment_version(p)
        return remaining + [{**group, 'params': rest} for (group, *_), rest in zip(jobs, plan.rest) if rest]

    def _planned(self, jobs: list[Job], grads: list[Tensor | None], needs_device: bool) -> Plan:
        """The plan of the last step where it still holds; else a new one.

        That it holds is found out anew in every step, in little time: who moves a model or its states, casts them or
        loads others, tells no one. The same memory with the same kind of gradient is the same work.
        """
        params = [p for group, *_ in jobs for p in group['params']]
        states = chain.from_iterable(map(dict.values, filter(None, map(self.state.get, params))))
        try:
            signature = (
                needs_device,
                [(method, len(group['params']), _budget(group)) for group, method, *_ in jobs],
                [*map(Tensor.data_ptr, params)],
                [None if value is None else value.data_ptr() for value in states],
                [None if g is None else (g.dtype, g.stride(), g.layout) for g in grads],
            )
        except (AttributeError, RuntimeError):  # a number in a state; what has no memory of its own; sparse
            signature = None
        plan = self._plan
        if plan is None or signature is None or plan.signature != signature:
            plan = self._plan = Plan(self, signature, jobs, needs_device, self._kept)
        return plan


class OnePassAdam(OnePass):
    """For ``torch.optim.Adam`` and ``torch.optim.AdamW``."""

    def _kernel_call(self, group: dict, weight: float | Tensor) -> Call | None:
        lr, decay = group['lr'], group['weight_decay']
        if group['amsgrad'] or any(isinstance(beta, Tensor) for beta in group['betas']):
            return None
        is_decoupled = isinstance(self, torch.optim.AdamW) or group.get('decoupled_weight_decay', False)
        l2, kept = (0.0, 1 - lr * decay) if is_decoupled else (decay, 1.0)
        return 'adam', ('exp_avg', 'exp_avg_sq', 'step'), (lr, l2, kept, *group['betas'], group['eps'], weight)


class OnePassSGD(OnePass):
    """For ``torch.optim.SGD``."""

    def _kernel_call(self, group: dict, weight: float | Tensor) -> Call | None:
        scalars = (group['lr'], group['weight_decay'])
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


def is_compiling() -> bool:
    """Whether torch.compile traces this."""
    return torch.compiler.is_compiling() if hasattr(torch.compiler, 'is_compiling') else torch._dynamo.is_compiling()


def _budget(group: dict) -> float | None:
    """Of a parameter group; None if it has a level."""
    return group['rollback'] if RULES[group['rollback_rule']].is_drift else None


@cache
def _kernels(device: str) -> Any:
    """The module of kernels for a type of device, None if there is none.

    Its ``kind(tensors)`` is what the tensors of one launch have in common, None if no kernel takes them, and a
    ``Launch`` of it steps them.
    """
    try:
        if device == 'cpu':
            from . import kernels

            return kernels
        if device == 'cuda':
            from . import triton_kernels

            return triton_kernels
    except ImportError:  # two passes do without numba and Triton
        pass
    return None


def chunks_of(sizes: list[int], chunk: int) -> Tensor:
    """Tensor and number within the tensor, int64 of shape (chunks, 2), of every chunk of tensors of these sizes."""
    counts = -(-torch.tensor(sizes) // chunk)
    tensors = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    return torch.stack([tensors, torch.arange(len(tensors)) - (counts.cumsum(0) - counts)[tensors]], 1)
