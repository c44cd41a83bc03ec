"""Figures of a comparison. Each method has its colour, marker and line style. Needs matplotlib and pandas."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .runs import Run
from .statistics import Measure, drift_map, mean_curve

# the palette of Okabe and Ito, without its yellow, which is faint on white
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#000000', '#56B4E9', '#E69F00', '#777777')
LOOKS: dict[str, Sequence[str]] = dict(color=COLOURS, marker='osD^vPX<>', linestyle=('-', '--', '-.', ':'))
WIDTH = 11.0
NAME_WIDTH = 34  # characters in a line of a method's name


def style(number: int) -> dict:
    """Colour, marker and line style of a method by its number; the first 72 methods differ in colour or marker."""
    return {name: values[number % len(values)] for name, values in LOOKS.items()}


def _tidy(axes) -> None:
    axes.grid(color='#dddddd', linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def _label(method: str, runs: Sequence) -> str:
    return fill(f'{method} (n = {len(runs)})', NAME_WIDTH)


def draw_trade_off(values: pd.DataFrame, metric: Measure, retention: Measure) -> Figure:
    """Plot the metric against retention: runs, means with bars of one sd, and a line of means not exceeded in both."""
    figure = Figure(figsize=(WIDTH * 0.8, 5), layout='constrained')
    axes = figure.subplots()
    for number, (method, rows) in enumerate(values.groupby('method', sort=False)):
        x, y = rows[str(retention)], rows[str(metric)]
        look = {**style(number), 'linestyle': 'none'}
        axes.plot(x, y, markersize=5, alpha=0.4, **look)
        spread = dict(xerr=x.std(), yerr=y.std()) if len(rows) > 1 else {}
        axes.errorbar(x.mean(), y.mean(), **spread, **look, label=_label(method, rows), markersize=11, capsize=4)
    means = values.groupby('method', sort=False)[[str(retention), str(metric)]].mean()
    best = means.sort_values(list(means), ascending=[not retention.higher_is_better, not metric.higher_is_better])
    heights = best[str(metric)] * (1 if metric.higher_is_better else -1)
    front = best[heights > heights.cummax().shift(fill_value=-np.inf)]
    axes.plot(front.iloc[:, 0], front.iloc[:, 1], color='#bbbbbb', zorder=0, label='not exceeded in both')
    axes.set(xlabel=f'{retention}\n({retention.direction})', ylabel=f'{metric}\n({metric.direction})')
    axes.margins(0.1)
    _tidy(axes)
    figure.legend(loc='outside right upper', frameon=False)
    return figure


def draw_curves(groups: Mapping[str, Sequence[Run]], measures: Sequence[Measure]) -> Figure:
    """Plot a panel per measure: its mean over the runs of a method, and a band of one standard deviation."""
    columns = 2 if len(measures) == 4 else min(len(measures), 3)
    rows = -(-len(measures) // columns)
    # a long name of a measure stays clear of the panel to its left
    figure = Figure(figsize=(WIDTH, 0.6 + 3.4 * rows), layout=ConstrainedLayoutEngine(wspace=0.08))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, measure in zip(panels[: len(measures)], measures):
        units: dict = {}
        for number, (method, runs) in enumerate(groups.items()):
            curve = mean_curve(runs, measure)
            look = style(number)
            look.update(markersize=4, markevery=-(-len(curve) // 12), label=_label(method, runs))
            axes.plot(curve.index, curve['mean'], **look)
            low, high = curve['mean'] - curve['sd'], curve['mean'] + curve['sd']
            axes.fill_between(curve.index, low, high, color=look['color'], alpha=0.15, linewidth=0)
            units.update((unit, None) for run in runs for unit in run.axes_of(measure.key))
        axes.set(xlabel=' or '.join(units), ylabel=fill(str(measure), 40))
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _tidy(axes)
    for axes in panels[len(measures) :]:
        axes.axis('off')
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside upper left', ncols=3, frameon=False)
    return figure


def draw_drift(groups: Mapping[str, Sequence[Run]]) -> Figure:
    """Plot relative drift per layer over training: a panel per method that logged it, on one colour scale."""
    maps = {method: values for method, runs in groups.items() if not (values := drift_map(runs)).empty}
    columns = min(len(maps), 3)
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(WIDTH, 0.4 + 3 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    # by the square root, so that small drifts can be told apart beside large ones
    scale = PowerNorm(0.5, 0, max(values.to_numpy().max() for values in maps.values()))
    axes: Any
    for axes, (method, values) in zip(panels.flat, maps.items()):
        steps = values.columns.to_numpy(dtype=float)
        before = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)
        layers = np.append(values.index, values.index[-1] + 1) - 0.5
        # a column spans the time from the previous logged step to its own
        mesh = axes.pcolormesh([max(before, 0), *steps], layers, values, cmap='cividis', norm=scale)
        axes.set(title=_label(method, groups[method]), xlabel='iteration')
        # without the last tick, which would touch the 0 of the next panel
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5, prune='upper')
        axes.yaxis.get_major_locator().set_params(integer=True)
    for axes in panels[:, 0]:
        axes.set_ylabel('layer (0 is nearest the input)')
    for axes in panels.flat[len(maps) :]:
        axes.axis('off')
    figure.colorbar(mesh, ax=panels, label='relative drift ||θ - θ₀|| / ||θ₀|| (%)')
    return figure
