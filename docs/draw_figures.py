"""Draw the figures of the page on the method, by the package's own functions.

python docs/draw_figures.py [--out docs/en/figures]
"""

import argparse
from pathlib import Path

import matplotlib
import torch

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from olor_mm.optim import SGDOLOR, AdamWOLOR, layer_penalty

STYLE = {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 10, 'legend.frameon': False}


def draw_levels(ax) -> None:
    """Level over depth, for several powers."""
    n = 18
    for power in (0.0, 0.5, 1.0, 2.0, 4.0):
        levels = [layer_penalty(i, n, max_level=1e-2, min_level=0.0, power=power) for i in range(n + 1)]
        ax.plot(range(n + 1), levels, marker='o', markersize=3, label=f'power {power:g}')
    ax.set_xticks(range(0, n + 1, 3))
    title = 'max_level = 0.01, min_level = 0'
    ax.set(xlabel='layer i of n = 18 (0: stem, 18: head)', ylabel='level of the layer', title=title)
    ax.legend()


def deviations(level: float, coupling: str, steps: int) -> list[float]:
    """What is left, after each step, of a deviation of 1 that no gradient feeds; the rate falls along a cosine."""
    weight = torch.zeros(1, requires_grad=True)
    optimizer = SGDOLOR([weight], lr=1e-4, rollback=level, rollback_coupling=coupling)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    weight.grad = torch.zeros(1)
    left = []
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        if not left:  # the anchor, 0, was captured in the first step
            weight.data.fill_(1.0)
        left.append(weight.item())
    return left


def draw_decay(ax) -> None:
    """A deviation over the steps of a run, for several levels."""
    steps = 500
    for level in (0.05, 0.01, 0.003):
        [line] = ax.plot(deviations(level, 'constant', steps), linestyle='--')
        ax.plot(deviations(level, 'lr', steps), color=line.get_color(), label=f'level {level:g}')
    ax.plot([], [], color='gray', label="coupling 'lr', cosine to 0")
    ax.plot([], [], color='gray', linestyle='--', label="coupling 'constant'")
    ax.set(xlabel='step', ylabel='share of a deviation that is left', title='500 steps without a gradient')
    ax.legend()


def drifts(rate: float, steps: int, **options: float) -> list[float]:
    """||theta - theta_0|| / ||theta_0|| in %, after each step, of a tensor whose noisy gradients lead one way."""
    generator = torch.Generator().manual_seed(0)
    start, away = 0.1 * torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
    weight = start.clone().requires_grad_()
    optimizer = AdamWOLOR([weight], lr=rate, weight_decay=0, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    found = []
    for _ in range(steps):
        weight.grad = away + 2 * torch.randn(1000, generator=generator)
        optimizer.step()
        schedule.step()
        found.append(100 * float((weight.detach() - start).norm() / start.norm()))
    return found


def draw_budget(ax) -> None:
    """Drift over the steps of a run at several learning rates: with a level, and with a drift budget."""
    steps = 300
    for rate in (5e-4, 1e-3, 2e-3):
        [line] = ax.plot(drifts(rate, steps, rollback=0.03), linestyle='--')
        ax.plot(drifts(rate, steps, rollback_drift=0.05), color=line.get_color(), label=f'learning rate {rate:g}')
    ax.plot([], [], color='gray', linestyle='--', label='level 0.03')
    ax.plot([], [], color='gray', label='budget 0.05')
    ax.axhline(5, color='black', linewidth=0.8, linestyle=':')
    ax.set_yscale('log')
    ax.set_yticks((1, 2, 5, 10, 20), labels=('1', '2', '5', '10', '20'))
    ax.set(xlabel='step', ylabel='drift, %', title='1,000 weights, noisy gradients that lead one way, AdamW')
    ax.legend(loc='lower right', ncols=2)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'en/figures')
    args = parser.parse_args(argv)
    with plt.rc_context(STYLE):
        for name, draw in (('levels.png', draw_levels), ('decay.png', draw_decay), ('budget.png', draw_budget)):
            figure, ax = plt.subplots(figsize=(6, 3.6), layout='constrained')
            draw(ax)
            figure.savefig(args.out / name, dpi=150, metadata=dict(Software=None))
            plt.close(figure)


if __name__ == '__main__':
    main()
