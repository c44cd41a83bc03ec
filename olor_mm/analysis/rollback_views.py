"""A rollback report as tables, as a CSV file and as a picture. Needs rich and matplotlib."""

import csv
import math
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from .rollback_table import CLAIMED, NEW, Parameter, RollbackReport

BLUE, ORANGE, GREY = '#0072B2', '#D55E00', '#BBBBBB'  # of Okabe and Ito: told apart by colour-blind readers as well
NONE = '-'


def by_layer(parameters: Iterable[Parameter]) -> list[list[Parameter]]:
    """The parameters of every layer, from the input on."""
    ordered = sorted(parameters, key=lambda row: (row.layer, row.layers))
    return [list(rows) for _, rows in groupby(ordered, key=lambda row: (row.layer, row.layers))]


def modules_of(layers: list[list[Parameter]]) -> list[list[str]]:
    """For each layer the outermost modules all of whose parameters are in it."""
    inside: dict[str, set[int]] = {}
    paths = [[_prefixes(row.name) for row in rows] for rows in layers]
    for number, names in enumerate(paths):
        for prefix in (prefix for name in names for prefix in name):
            inside.setdefault(prefix, set()).add(number)
    return [
        list(dict.fromkeys(next(prefix for prefix in name if len(inside[prefix]) == 1) for name in names))
        for names in paths
    ]


def _prefixes(name: str) -> list[str]:
    parts = name.split('.')
    return ['.'.join(parts[:end]) for end in range(1, len(parts) + 1)]


def _span(values: Iterable[float | None], form: Callable[[float], str] = '{:.3g}'.format) -> str:
    values = sorted({value for value in values if value is not None})
    shown = list(dict.fromkeys(form(value) for value in values))
    return f'{shown[0]} to {shown[-1]}' if len(shown) > 1 else ''.join(shown) or NONE


def _count(number: float) -> str:
    for unit, size in (('M', 1e6), ('k', 1e3)):
        if number >= size * 0.9995:
            return f'{number / size:.2f} {unit}'
    return f'{number:.0f}'


def _steps(number: float) -> str:
    return f'{number:,.0f}' if number >= 9.95 else f'{number:.1f}'


def _share(some: int, rows: list[Parameter], what: str) -> str:
    return NONE if not some else what if some == len(rows) else f'{some} of {len(rows)}' + f' {what}' * (what != 'yes')


def print_report(report: RollbackReport, console: Console, per_parameter: bool = False) -> None:
    """Print the tables; 100 columns hold them.

    Args:
        report (RollbackReport): What :func:`olor_mm.analysis.rollback_table.examine` found.
        console (Console): Where to.
        per_parameter (bool): Whether every parameter tensor has a line as well. Defaults to False.
    """
    if report.lines_to_add:
        console.print('[bold]This config has no rollback.[/] Shown is what it would be with these lines added:\n')
        console.print(report.lines_to_add + '\n', markup=False, highlight=False)
    layers = by_layer(report.parameters)
    numbers = {checkpoint: f'({i})' for i, checkpoint in enumerate(report.sources, 1)}
    marks = {NEW: NEW, CLAIMED: CLAIMED, **numbers}
    console.print(_what_table(layers, marks))
    for checkpoint, number in numbers.items():
        console.print(f'{number} {checkpoint}: {report.sources[checkpoint]}', markup=False, highlight=False)
    console.print(_how_table(layers, report))
    if per_parameter:
        console.print(_parameter_table(report, marks))
    _print_summary(report, console)


def _table(title: str, *columns: str, left: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify='left', title_style='bold', box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify='left' if column in left else 'right', overflow='fold')
    return table


def _what_table(layers: list[list[Parameter]], marks: dict[str, str]) -> Table:
    table = _table(
        '\nWhat is in each layer (0 is nearest the input)',
        *('layer', 'modules', 'parameters', 'pre-trained by', 'frozen', 'norm statistics', 'anchors'),
        left=('modules', 'pre-trained by', 'frozen', 'norm statistics'),
    )
    for rows, modules in zip(layers, modules_of(layers)):
        sources = {source: sum(row.source == source for row in rows) for source in marks}
        table.add_row(
            f'{rows[0].layer} of {rows[0].layers}',
            ', '.join(modules),
            _count(sum(row.number for row in rows)),
            ', '.join(_share(some, rows, marks[source]) for source, some in sources.items() if some),
            _share(sum(row.frozen for row in rows), rows, 'yes'),
            ', '.join(sorted({row.norm for row in rows if row.norm})) or NONE,
            f'{sum(row.anchor_bytes for row in rows) / 2**20:.2f} MiB',
        )
    return table


def _how_table(layers: list[list[Parameter]], report: RollbackReport) -> Table:
    table = _table(
        f'\nHow strongly each is pulled back: w is the share of the way that a step takes\nstart: iteration 0; '
        f'top: iteration {report.top_iteration:,}, the first at the highest rate, after any warm-up; end: the last '
        f'of {report.iterations:,}',
        *('layer', 'lr at top', 'weight decay', 'lambda', 'w at start', 'w at top', 'w at end'),
        *('half-life\nsteps', 'half-life\nepochs'),
    )
    for rows in layers:
        held = [row for row in rows if any(row.w)]
        halves = [row.half_life for row in held]
        table.add_row(
            f'{rows[0].layer}',
            _span(row.lr[1] for row in rows if row.lr),
            _span(row.weight_decay for row in rows),
            _span(row.level for row in rows),
            *(_span(row.w[i] for row in held) for i in range(3)),
            _span(halves, _steps),
            _span(_in_epochs(halves, report), '{:.2g}'.format),
        )
    return table


def _in_epochs(half_lives: Iterable[float | None], report: RollbackReport) -> list[float]:
    return [half / report.steps_per_epoch for half in half_lives if half and report.steps_per_epoch]


def _parameter_table(report: RollbackReport, marks: dict[str, str]) -> Table:
    table = _table(
        '\nEvery parameter',
        *('parameter', 'layer', 'number', 'by', 'norm', 'lr at top', 'decay', 'lambda', 'w at top', 'half-life'),
        left=('parameter', 'by', 'norm'),
    )
    for row in report.parameters:
        table.add_row(
            row.name,
            f'{row.layer}',
            _count(row.number),
            marks[row.source] + ' frozen' * row.frozen,
            row.norm or NONE,
            _span(row.lr[1:2]),
            _span([row.weight_decay]),
            _span([row.level]),
            _span([row.w[1]]) if any(row.w) else NONE,
            _span([row.half_life], _steps),
        )
    return table


def _print_summary(report: RollbackReport, console: Console) -> None:
    rows = report.parameters
    held = [row for row in rows if any(row.w)]
    frozen = [row for row in rows if row.frozen]
    lines = [
        f'Rolled back: {len(held)} of {len(rows)} parameter tensors, {_count(sum(row.number for row in held))} of '
        f'{_count(sum(row.number for row in rows))} parameters; frozen: {len(frozen)} tensors, which get an anchor '
        'once they are trained',
        f'Anchors: {sum(row.anchor_bytes for row in rows) / 2**20:.1f} MiB of memory',
        f'Norm layers that were pre-trained: {report.norms}',
        f'One process; {report.data}',
        'Half-life: ln 2 / w at top, in which a deviation that no gradient feeds is halved',
    ]
    if any(state != 'loaded' for state in report.sources.values()):
        lines.append(
            'Declared checkpoints are not here and were not looked at: they are taken to hold every weight of the '
            'module that names them. Put them into the cache, or train once, to see what really is in them'
        )
    console.print()
    for line in lines:
        console.print(f'- {line}.', highlight=False, markup=False)
    for warning in report.warnings:
        console.print(f'WARNING: {warning}', style='bold red', highlight=False, markup=False)


def write_csv(report: RollbackReport, file: Path) -> None:
    """Write one row per parameter tensor, plain numbers; empty where there is none.

    Raises:
        OSError: If the file cannot be written.
    """
    with open(file, 'w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(
            'parameter,layer,layers,number,source,source_status,frozen,norm_statistics,lr_start,lr_top,lr_end,'
            'weight_decay,lambda,w_start,w_top,w_end,half_life_steps,half_life_epochs,anchor_bytes'.split(',')
        )
        for row in report.parameters:
            writer.writerow(
                [row.name, row.layer, row.layers, row.number, row.source, report.sources.get(row.source, '')]
                + [int(row.frozen), row.norm, *(row.lr or ('', '', '')), row.weight_decay, row.level, *row.w]
                + [row.half_life, next(iter(_in_epochs([row.half_life], report)), ''), row.anchor_bytes]
            )


def plot_levels(report: RollbackReport, file: Path, title: str) -> None:
    """Draw lambda over depth, and w at the start, the top and the end of the schedule.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If matplotlib knows no such kind of file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = by_layer(report.parameters)
    places = range(len(layers))
    held = [[row for row in rows if any(row.w)] for rows in layers]
    figure = Figure(figsize=(max(7, min(14, 3 + 0.34 * len(layers))), 5.4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    levels = [max((row.level or 0.0 for row in rows), default=0.0) for rows in layers]
    for label, colour, hatch, wanted in (
        ('lambda of layers that are rolled back', BLUE, None, True),
        ('lambda of layers that are new or frozen: without effect', GREY, '///', False),
    ):
        chosen = [i for i in places if bool(held[i]) == wanted and levels[i]]
        if chosen:
            style = dict(color=colour) if hatch is None else dict(color='white', edgecolor=colour, hatch=hatch)
            axes.bar(chosen, [levels[i] for i in chosen], width=0.8, label=label, **style)
    for point, label, marker, colour in (
        (0, 'w at the first step', 'o', 'white'),
        (1, f'w at the highest rate (iteration {report.top_iteration:,})', 'D', '#F0E442'),
        (2, 'w at the last step', 'v', ORANGE),
    ):
        shown = [i for i in places if held[i]]
        heights = [max(row.w[point] for row in held[i]) for i in shown]
        axes.plot(shown, heights, marker, color=colour, markeredgecolor='black', label=label, clip_on=False, zorder=3)
    names = [names[0] for names in modules_of(layers)] if len(layers) <= 40 else []
    if names:
        labels = [f'{name.removeprefix("backbone.")}  {rows[0].layer}' for name, rows in zip(names, layers)]
        axes.set_xticks(places, labels, rotation=60, ha='right', rotation_mode='anchor', fontsize=8)
    axes.set(title=title, ylim=(0, max(levels) * 1.05 or 1), xlim=(-0.7, len(layers) - 0.3))
    axes.set_xlabel('layer i, from the input (left) to neck and head (right)')
    axes.set_ylabel('share of the way back to the pre-trained weights per step')
    halves = axes.secondary_yaxis('right')
    ticks = [tick for tick in axes.get_yticks() if 0 < tick <= axes.get_ylim()[1]]
    halves.set_yticks(ticks, [_steps(math.log(2) / tick) for tick in ticks])
    halves.set_ylabel('half-life of a deviation (steps)')
    axes.spines[['top']].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)
