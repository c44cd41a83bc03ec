"""Draw the figures of the page on the method, by the package's own functions.

python docs/draw_figures.py [--out docs/en/figures]
"""

import argparse
from pathlib import Path

import matplotlib
import torch

matplotlib.use('Agg')
from matplotlib import pyplot as plt

from olor_mm.optim import SGDOLOR, layer_penalty

STYLE = {'axes.spines.top': False, 'axes.spines.right': False, 'font.size': 10, 'legend.frameon': False}


def draw_levels(ax) -> None:
    """Level over depth, for several powers."""
    n = 18
    for power in (0.0, 0.5, 1.0, 2.0, 4.0):
        levels = [layer_penalty(i, n, max_level=1e-2, min_level=0.0, power=power) for i in range(n + 1)]
        ax.plot(range(n + 1), levels, marker='o', markersize=3, label=f'power {power:g}')
    ax.set_xticks(range(0, n + 1, 3))
    ax.set(xlabel='layer i of n = 18 (0: stem, 18: head)', ylabel='level of the layer', title='max_level = 0.01')
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'en/figures')
    args = parser.parse_args(argv)
    with plt.rc_context(STYLE):
        for name, draw in (('levels.png', draw_levels), ('decay.png', draw_decay)):
            figure, ax = plt.subplots(figsize=(6, 3.6), layout='constrained')
            draw(ax)
            figure.savefig(args.out / name, dpi=150, metadata=dict(Software=None))
            plt.close(figure)


if __name__ == '__main__':
    main()
