"""The figures of the study of natural images."""

import numpy as np
import pandas as pd
from budget_figures import LOOKS as OF_BUDGETS
from budget_figures import draw_curve, finish
from matplotlib.figure import Figure
from natural import BUDGET, DECOUPLED, LEVEL, PAPER, PLAIN, PROBE, WISE_FT
from natural_tables import NEW, OLD, ORDER, complete

LOOKS = {  # colours of Okabe and Ito; marker and line too, for print
    PLAIN: OF_BUDGETS['plain fine-tuning'],
    WISE_FT: ('#56B4E9', 'P', '-.'),
    PROBE: ('#999999', '*', ''),
    LEVEL: OF_BUDGETS['level'],
    BUDGET: OF_BUDGETS['budget'],
    PAPER: OF_BUDGETS['level, falling to 0'],
    DECOUPLED: OF_BUDGETS['decoupled L2-SP'],
    'SPD': OF_BUDGETS['SPD'],
    'L2-SP': ('#56B4E9', '<', ''),
    'layer-wise lr decay': ('#999999', '>', ''),
}
CURVES = (PLAIN, WISE_FT, LEVEL, BUDGET, DECOUPLED, 'SPD')


def curve(of: pd.DataFrame, family: str) -> pd.DataFrame:
    """Mean and range over the seeds of new and old task, a row a setting, from weak to strong."""
    table = (
        complete(of)
        .groupby('setting')
        .agg(value=(NEW, 'mean'), low=(NEW, 'min'), high=(NEW, 'max'), kept=(OLD, 'mean'), seeds=('seed', 'nunique'))
    )
    return table.reindex([one for one in ORDER[family] if one in table.index])


def draw_trades(parts: dict[str, pd.DataFrame], old: str, new: str, recommended: str) -> Figure:
    """The new task against the old one, every method over its strengths, a panel for each of the parts' titles."""
    columns = min(3, len(parts))
    lines = -(-len(parts) // columns)
    figure = Figure(figsize=(max(3.6 * columns, 6.5), 3.4 * lines + 0.7), layout='constrained')
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (title, rows) in zip(axes, parts.items()):
        for family in CURVES:
            points = curve(rows[rows['family'] == family], family)
            if len(points):
                draw_curve(axis, points.sort_values('kept') if family == WISE_FT else points, LOOKS[family], family)
            if family == BUDGET and recommended in points.index:
                at = points.loc[recommended]
                axis.plot(at['kept'], at['value'], 'o', color='none', markeredgecolor='black', markersize=12)
        probes = rows[rows['family'] == PROBE].groupby('setting')[[OLD, NEW]].mean()
        if len(probes):
            at = probes.loc[probes[NEW].idxmax()]
            axis.plot(at[OLD], at[NEW], '*', color=LOOKS[PROBE][0], markersize=11, label=PROBE)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(old)
        best = max((line.get_ydata().max() for line in axis.lines), default=100)
        axis.set_ylim(best - 15, best + 2)
    for axis in axes[len(parts) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(new)
    of_first = axes[0].get_legend_handles_labels()
    figure.legend(*of_first, loc='outside upper center', ncols=2 * min(columns, 2), frameon=False)
    return finish(figure, axes)


def draw_differences(tables: dict[str, dict[str, pd.DataFrame]]) -> Figure:
    """Differences to plain fine-tuning with 95 % intervals: a panel a title, in it a marker for each measure."""
    figure = Figure(figsize=(4.6 * len(tables) + 1.5, 4.2), layout='constrained')
    axes = figure.subplots(1, len(tables), sharey=True, sharex=True, squeeze=False)[0]
    looks = (('#0072B2', 'o'), ('#D55E00', 's'))
    for axis, (title, of_measure) in zip(axes, tables.items()):
        for (name, table), (colour, marker), shift in zip(of_measure.items(), looks, (-0.15, 0.15)):
            table = table.drop(index=PLAIN)
            at = np.arange(len(table)) + shift
            errors = [(table['difference'] - table['low']).fillna(0), (table['high'] - table['difference']).fillna(0)]
            axis.errorbar(
                table['difference'], at, xerr=errors, fmt=marker, color=colour, capsize=3, markersize=5, label=name
            )
            axis.set_yticks(np.arange(len(table)), table.index)
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('difference to plain fine-tuning, points')
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=2, frameon=False)
    return finish(figure, axes)


def draw_lengths(rows: pd.DataFrame) -> Figure:
    """New task and agreement over the length of the run, a column a learning rate."""
    rates = sorted(rows['rate'].unique())
    figure = Figure(figsize=(3.9 * len(rates) + 2.6, 5.4), layout='constrained')
    axes = figure.subplots(2, len(rates), sharex=True, sharey='row', squeeze=False)
    for column, rate in zip(axes.T, rates):
        for family, of in rows[rows['rate'] == rate].groupby('family', sort=False):
            colour, marker, line = LOOKS[family]
            for axis, key in zip(column, (NEW, 'agreement_restored')):
                points = of.groupby('iters')[key].agg(['mean', 'min', 'max'])
                axis.plot(points.index, points['mean'], line, color=colour, marker=marker, label=family)
                axis.fill_between(points.index, points['min'], points['max'], color=colour, alpha=0.15, linewidth=0)
        column[0].set_title(f'learning rate {rate:g}', fontsize=10)
        column[1].set(xscale='log', xlabel='steps')
    axes[0, 0].set_ylabel('new task: top-1, %')
    axes[1, 0].set_ylabel('agreement with the old classifier, %')
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside right center', frameon=False)
    return finish(figure, axes)
