"""Small parameters, and steps on gradients that are the same in every test."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

SHAPES = ((5, 3), (7,), (2, 3, 2, 2))


def drawn(seed: int, dtype: torch.dtype, shapes: Iterable[tuple]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def parameters(dtype=torch.float32, seed=0, shapes=SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(value) for value in drawn(seed, dtype, shapes)]


def gradients(step: int, dtype=torch.float32, shapes=SHAPES, period=1) -> list[Tensor]:
    """Gradients of a step; those of ``period`` steps are the same, so that momentum and gradient disagree after them."""
    return drawn(1000 + step // period, dtype, shapes)


def take_steps(optimizer, params: list[nn.Parameter], steps: Iterable[int], period=1) -> None:
    for step in steps:
        for p, g in zip(params, gradients(step, params[0].dtype, [p.shape for p in params], period)):
            p.grad = g.to(p.device)
        optimizer.step()
