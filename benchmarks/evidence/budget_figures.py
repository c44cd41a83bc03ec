"""The figures of the study of the drift budget, and the frame of its runs that they and the tables are made from."""

import json

import numpy as np
import pandas as pd
from budget import BUDGET, LEVEL, MEASURED, MOBILENET, NETWORKS, SMALL, TRADES
from matplotlib.figure import Figure
from plan import POINT, TASKS

KEPT = 'agreement_restored'
LOOKS = {  # colours of Okabe and Ito; marker and line too, for print
    'budget': ('#0072B2', 'o', '-'),
    'level': ('#D55E00', 's', '-'),
    'level, falling to 0': ('#E69F00', '^', '--'),
    'decoupled L2-SP': ('#009E73', 'D', '-.'),
    'SPD': ('#CC79A7', 'v', ':'),
    'plain fine-tuning': ('#000000', 'x', '--'),
}
FIXED = {  # the numbers that are kept while all else changes
    f'budget {BUDGET}': LOOKS['budget'],
    f'budget {SMALL}': ('#56B4E9', 'D', '--'),
    f'level {LEVEL}': LOOKS['level'],
    'plain fine-tuning': LOOKS['plain fine-tuning'],
}
SHAPE_LOOKS = dict(growing=('#009E73', '^'), steep=('#000000', '*'), falling=('#CC79A7', 'v'))
CHANGES = dict(rates='learning rate x8', lengths='length x4', batches='batch x4', optimizers='four optimizers')


def family(method: str, options: dict) -> str:
    if method != 'olor':
        return {'l2sp_decoupled': 'decoupled L2-SP', 'spd': 'SPD', 'full': 'plain fine-tuning'}[method]
    if 'max_drift' in options:
        return 'budget'
    return 'level' if options.get('power') == 0 else 'level, falling to 0'


def frame_of(planned: list[dict], results: dict[str, dict]) -> pd.DataFrame:
    """A row for every planned run; what was measured is NaN in those that are missing."""
    rows = []
    for one in planned:
        options, found = one['options'], results.get(one['key'], {})
        strength = json.dumps(options.get('max_drift', options.get('max_level', options['lr'])))
        if one['part'] == 'rates' and one['method'] == 'full':
            strength = ''  # the rate is what is changed
        rows.append(
            {
                **{key: one.get(key) for key in ('part', 'task', 'seed', 'iters', 'batch')},
                'network': one.get('network', MOBILENET),
                'family': family(one['method'], options),
                'strength': strength,
                'lr': options['lr'],
                'optimizer': options.get('optimizer', 'AdamW'),
                'machine': found.get('machine', ''),
                **{key: float(found.get(key) or 'nan') for key in (*MEASURED, 'seconds')},
            }
        )
    return pd.DataFrame(rows)


def whole(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of those seeds that have all of them."""
    return rows.groupby('seed').filter(lambda of_seed: of_seed['value'].notna().all())


def fixed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the name, as in FIXED, of what is kept while all else changes."""
    return rows.assign(fixed=(rows['family'] + ' ' + rows['strength']).str.strip())


def settings(rows: pd.DataFrame, part: str) -> pd.Series:
    """What is changed in a part, as the figures and tables name it."""
    if part == 'optimizers':
        return rows['optimizer']
    return rows[dict(rates='lr', lengths='iters', batches='batch')[part]].map('{:g}'.format)


def draw_invariance(frame: pd.DataFrame, network: str) -> Figure | None:
    """Drift and agreement at one budget and one level, over whatever was changed."""
    rows = frame[(frame['network'] == network) & frame['part'].isin(CHANGES)]
    rows = fixed(rows)
    parts = [part for part in CHANGES if len(whole(rows[rows['part'] == part]))]
    if not parts:
        return None
    figure = Figure(figsize=(2.4 * len(parts) + 1.2, 4.6), layout='constrained')
    axes = figure.subplots(2, len(parts), sharex='col', sharey='row', squeeze=False)
    for column, part in zip(axes.T, parts):
        for name, (colour, marker, line) in FIXED.items():
            of = whole(rows[(rows['part'] == part) & (rows['fixed'] == name)])
            if not len(of):
                continue
            shown = of.assign(setting=settings(of, part), drift=100 * of['drift_mean'])
            for axis, key in zip(column, ('drift', KEPT)):
                stats = shown.groupby('setting', sort=False)[key].agg(['mean', 'min', 'max'])
                style = dict(
                    color=colour, marker=marker, label=name, linestyle='none' if part == 'optimizers' else line
                )
                if part == 'optimizers':
                    errors = (stats['mean'] - stats['min'], stats['max'] - stats['mean'])
                    axis.errorbar(stats.index, stats['mean'], errors, capsize=3, **style)
                else:
                    axis.plot(stats.index, stats['mean'], **style)
                    axis.fill_between(stats.index, stats['min'], stats['max'], color=colour, alpha=0.2, linewidth=0)
        column[-1].set_xlabel(CHANGES[part])
    axes[0, 0].set_ylabel('drift, %')
    axes[1, 0].set_ylabel('agreement, %')
    axes[1, 0].set_ylim(0, 100)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].legend(frameon=False)
    figure.suptitle(NETWORKS[network])
    return finish(figure, axes)


def finish(figure: Figure, axes) -> Figure:
    for axis in np.ravel(axes):
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    return figure


def curve(rows: pd.DataFrame, factor: float, by: str = 'strength') -> pd.DataFrame:
    """Mean and range over seeds of metric and agreement, a row for every strength (or rate) as in the plan."""
    shown = rows.assign(value=factor * rows['value'])
    return shown.groupby(by, sort=False).agg(
        value=('value', 'mean'),
        low=('value', 'min'),
        high=('value', 'max'),
        kept=(KEPT, 'mean'),
        kept_low=(KEPT, 'min'),
        kept_high=(KEPT, 'max'),
        drift=('drift_mean', 'mean'),
        rate=('lr', 'first'),
    )


def metric_of(task: str) -> tuple[str, float, float]:
    """The metric's name, the factor to what is printed, and what a point is after it."""
    if task not in TASKS:
        return 'top-1, %', 1.0, 1.0
    kind = TASKS[task]['kind']
    factor = 100.0 if POINT[kind] < 1 else 1.0
    return dict(semantic='mIoU, %', detection='box AP x 100', instance='mask AP x 100')[kind], factor, 1.0


def draw_curve(axis, points: pd.DataFrame, look: tuple[str, str, str], name: str) -> None:
    """Metric over agreement, with the range over seeds as a band."""
    colour, marker, line = look
    axis.plot(points['kept'], points['value'], line, color=colour, marker=marker, label=name, markersize=5)
    points = points.sort_values('kept')
    axis.fill_between(points['kept'], points['low'], points['high'], color=colour, alpha=0.13, linewidth=0)


def draw_rates(frame: pd.DataFrame) -> Figure | None:
    """New metric against agreement at numbers that are kept while the learning rate changes, a panel a network."""
    rows = fixed(frame[frame['part'] == 'rates'])
    figure = Figure(figsize=(10.4, 4.2), layout='constrained')
    axes = figure.subplots(1, len(NETWORKS), sharey=True)
    for axis, (network, title) in zip(axes, NETWORKS.items()):
        for name, look in FIXED.items():
            of = whole(rows[(rows['network'] == network) & (rows['fixed'] == name)])
            if len(of):
                draw_curve(axis, curve(of, 1.0, 'lr'), look, name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('agreement with the old classifier, %')
    axes[0].set_ylabel('new task: top-1, %')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)
    return finish(figure, axes) if axes[0].lines else None


def trade_parts(frame: pd.DataFrame, task: str, network: str) -> dict[float, pd.DataFrame]:
    """Learning rate to the rows of a trade-off, of those seeds that have all of a method."""
    rows = frame[(frame['task'] == task) & (frame['network'] == network)]
    parts = {}
    for lr in (lr for *of, lr in TRADES if of == [task, network]):
        methods = [whole(of) for _, of in rows[rows['part'] == f'trade-off at {lr:g}'].groupby('family', sort=False)]
        part = pd.concat(methods)
        if len(part):
            parts[lr] = part
    return parts


def draw_trade(parts: dict[float, pd.DataFrame], task: str) -> Figure:
    """New metric against agreement, a panel for every learning rate."""
    name, factor, _ = metric_of(task)
    figure = Figure(figsize=(4.9 * len(parts) + (0.6 if len(parts) > 1 else 2.6), 4.4), layout='constrained')
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    best = 0.0
    for axis, (lr, rows) in zip(axes, parts.items()):
        for kind, of_kind in rows.groupby('family', sort=False):
            points = curve(of_kind, factor)
            best = max(best, points['value'].max())
            draw_curve(axis, points, LOOKS[kind], kind)
        axis.set_title(f'learning rate {lr:g}', fontsize=10)
        axis.set_xlabel('agreement with the old classifier, %')
    bottom = min(axis.get_ylim()[0] for axis in axes)
    axes[0].set_ylim(bottom=max(bottom, best - (25 if name.startswith('top') else best)))
    axes[0].set_ylabel(f'new task: {name}')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)
    return finish(figure, axes)


def draw_shapes(frame: pd.DataFrame, rows: pd.DataFrame) -> Figure:
    """The shapes beside the curves of budgets and levels that are the same in all layers, a panel a network."""
    figure = Figure(figsize=(10.4, 4.2), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (task, network, lr) in zip(axes, TRADES):
        trade = trade_parts(frame, task, network).get(lr)
        for kind in ('budget', 'level') if trade is not None else ():
            draw_curve(axis, curve(trade[trade['family'] == kind], 1.0), LOOKS[kind], f'{kind}, one number')
        for shape, (colour, marker) in SHAPE_LOOKS.items():
            of = rows[(rows['shape'] == shape) & (rows['network'] == network)]
            points = curve(of, 1.0)
            x, y = points['kept'], points['value']
            errors = dict(
                xerr=(x - points['kept_low'], points['kept_high'] - x), yerr=(y - points['low'], points['high'] - y)
            )
            axis.errorbar(x, y, **errors, fmt=marker, color=colour, capsize=3, markersize=9, label=f'budget, {shape}')
        axis.set_title(f'{NETWORKS[network]}, learning rate {lr:g}', fontsize=10)
        axis.set_xlabel('agreement with the old classifier, %')
    axes[0].set_ylabel('new task: top-1, %')
    axes[0].set_ylim(bottom=58)
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)
    return finish(figure, axes)
