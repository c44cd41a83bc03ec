"""The fastest implementation that torch has of an optimizer, where the user asks for none, and what it lacks."""

import inspect
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .state import eager


def listed(params: Iterable) -> Iterable:
    """The argument of an optimizer, with generators made lists, so that it can be read twice."""
    if not isinstance(params, (list, tuple, Iterator)):  # torch says what is wrong, as of a set
        return params

    def read(entry):
        is_group = isinstance(entry, dict) and isinstance(entry.get('params'), Iterator)
        return dict(entry, params=list(entry['params'])) if is_group else entry

    return [read(entry) for entry in params]


def portions(params: list[torch.nn.Parameter], size: int) -> Iterator[list[torch.nn.Parameter]]:
    """Parameters in their order, so many at a time as have at most this number of elements, or one that has more."""
    portion: list[torch.nn.Parameter] = []
    count = 0
    for p in params:
        if portion and count + p.numel() > size:
            yield portion
            portion, count = [], 0
        portion.append(p)
        count += p.numel()
    if portion:
        yield portion


def fastest_flags(cls: type, params: Iterable, is_on: bool, options: dict) -> dict:
    """``dict(fused=True)`` where torch has such a kernel for these parameters, else {}: torch then chooses by itself.

    ``foreach`` is not forced on CPU, where torch leaves it off: there it takes 1.1 to 1.5 times as long as the loop
    (``python benchmarks/optimizer_step.py``). Without any rollback, nothing is changed of the base optimizer.
    """
    groups = [entry for entry in params if isinstance(entry, dict)] if isinstance(params, (list, tuple)) else []
    if not is_on and not any(group.get('rollback') or group.get('rollback_drift') for group in groups):
        return {}
    inits = [base.__init__ for base in cls.__mro__]  # type: ignore[misc]  # of classes, not of instances
    takes_fused = any('fused' in inspect.signature(init).parameters for init in inits)
    asked = any(o.get(flag) is not None for o in (options, *groups) for flag in ('foreach', 'fused'))
    if not takes_fused or asked or any(o.get('differentiable') for o in (options, *groups)):
        return {}
    tensors = [t for group in groups or [dict(params=params)] for t in _tensors(group['params'])]
    devices = {'cpu'} if issubclass(cls, torch.optim.Adagrad) else set(_get_fused_kernels_supported_devices())
    # torch's fused SGD on CPU is wrong in 16 bits (torch 2.10: its steps with momentum are not those of the loop)
    wrong = {torch.float16, torch.bfloat16} if issubclass(cls, torch.optim.SGD) else set()
    fits = tensors and all(
        torch.is_floating_point(t) and t.device.type in devices and not (t.is_cpu and t.dtype in wrong) for t in tensors
    )
    return dict(fused=True) if fits else {}


def laid_out(groups: list[dict], closure: Callable | None) -> Callable | None:
    """Give gradients the strides of their parameters: torch's fused kernels read them as if they had those, or refuse.

    Done at once, or, where a closure makes the gradients, in the closure that is returned.
    """
    if closure is None:
        _lay_out(groups)
        return None

    def evaluate():
        loss = closure()
        _lay_out(groups)
        return loss

    return evaluate


@eager
@torch.no_grad()
def _lay_out(groups: list[dict]) -> None:
    for p in (p for group in groups if group.get('fused') for p in group['params']):
        if p.grad is not None and p.grad.layout == torch.strided and p.grad.stride() != p.stride():
            p.grad = torch.empty_like(p, dtype=p.grad.dtype).copy_(p.grad)


def _tensors(params) -> list[torch.Tensor]:
    entries = [params] if isinstance(params, torch.Tensor) else params
    pairs = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]  # of named parameters
    return [t for t in pairs if isinstance(t, torch.Tensor)]
