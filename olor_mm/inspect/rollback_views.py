"""Shows a rollback report as tables, as a CSV file and as a figure. Needs rich and matplotlib."""

import csv
import math
from collections.abc import Callable, Iterable
from itertools import accumulate, chain, groupby
from operator import attrgetter
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from ..optim.penalty import half_life_of
from .report import CLAIMED, NEW, Parameter, RollbackReport

# of the palette of Okabe and Ito, for colour-blind readers
BLUE, ORANGE, YELLOW, GREY = '#0072B2', '#D55E00', '#F0E442', '#999999'
NONE = '-'


def by_layer(parameters: Iterable[Parameter]) -> list[list[Parameter]]:
    """The parameters of every layer, from the input to the head."""
    place = attrgetter('layer', 'layers')
    return [list(rows) for _, rows in groupby(sorted(parameters, key=place), key=place)]


def modules_of(layers: list[list[Parameter]]) -> list[list[str]]:
    """The outermost modules that lie in one layer, for each layer; siblings as ``parent.{a, b}``."""
    inside: dict[str, set[int]] = {}
    paths = [[list(accumulate(row.name.split('.'), '{}.{}'.format)) for row in rows] for rows in layers]
    for number, names in enumerate(paths):
        for prefix in chain(*names):
            inside.setdefault(prefix, set()).add(number)
    found = []
    for names in paths:
        outermost = dict.fromkeys(next(prefix for prefix in name if len(inside[prefix]) == 1) for name in names)
        siblings: dict[str, list[str]] = {}
        for prefix in outermost:
            parent, dot, name = prefix.rpartition('.')
            siblings.setdefault(parent + dot, []).append(name)
        found.append(
            [p + (', '.join(n) if not p else f'{{{", ".join(n)}}}' if n[1:] else n[0]) for p, n in siblings.items()]
        )
    return found


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


def _epochs(number: float) -> str:
    return _steps(number) if number >= 9.95 else f'{number:.2g}'


def _share(some: int, rows: list[Parameter], what: str) -> str:
    return NONE if not some else what if some == len(rows) else f'{some} of {len(rows)}' + f' {what}' * (what != 'yes')


def print_report(report: RollbackReport, console: Console, per_parameter: bool = False) -> None:
    """Print the tables, in 100 columns, and on demand a list of every parameter tensor."""
    if report.lines_to_add:
        console.print('[bold]This config has no rollback.[/] The tables show it with these lines added:\n')
        console.print(report.lines_to_add + '\n', markup=False, highlight=False, soft_wrap=True)  # to be copied
    layers = by_layer(report.parameters)
    numbers = {checkpoint: f'({i})' for i, checkpoint in enumerate(report.sources, 1)}
    marks = {NEW: NEW, CLAIMED: CLAIMED, **numbers}
    console.print(_what_table(layers, marks))
    for checkpoint, number in numbers.items():
        console.print(f'{number} {checkpoint}', markup=False, highlight=False, soft_wrap=True)
        console.print(f'    {report.sources[checkpoint]}', markup=False, highlight=False)
    by_level, by_budget = (_with(key, layers) for key in ('level', 'budget'))
    if by_level or not by_budget:
        console.print(_how_table(by_level if by_budget else layers, report))
    if by_budget:
        console.print(_budget_table(by_budget if by_level else layers))
    if per_parameter:
        for line in _parameter_lines(report, marks):
            console.print(line, markup=False, highlight=False)
        console.print()
    _print_summary(report, console)


def _with(key: str, layers: list[list[Parameter]]) -> list[list[Parameter]]:
    """The layers that have a 'level' or 'budget' above 0."""
    return [rows for rows in layers if any(getattr(row, key) for row in rows)]


def _table(title: str, *columns: str, left: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify='left', title_style='bold', box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify='left' if column in left else 'right', overflow='fold')
    return table


def _what_table(layers: list[list[Parameter]], marks: dict[str, str]) -> Table:
    table = _table(
        'What is in each layer (0 is nearest the input)',
        *('layer', 'modules', 'parameters', 'source', 'frozen', 'norm\nstatistics', 'anchors\n(MiB)'),
        left=('modules', 'source', 'frozen', 'norm\nstatistics'),
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
            f'{sum(row.anchor_bytes for row in rows) / 2**20:.2f}',
        )
    return table


def _how_table(layers: list[list[Parameter]], report: RollbackReport) -> Table:
    top = f'iteration {report.top_iteration:,}, of the highest rate' if report.top_iteration else 'the same'
    table = _table(
        '\nHow strongly each layer is pulled back: w is the share of the way that a step takes\n'
        f'start: iteration 0; top: {top}; end: the last of {report.iterations:,}',
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
            _span(_in_epochs(halves, report), _epochs),
        )
    return table


def _budget_table(layers: list[list[Parameter]]) -> Table:
    table = _table(
        '\nHow far each layer may move: after every step, ||theta - theta_0|| is at most the bound',
        *('layer', 'lr at top', 'weight decay', 'tensors\nheld'),
        *('budget', '||theta_0||', 'bound', 'bound /\n||theta_0||'),
    )
    for rows in layers:
        held = [row for row in rows if row.is_held and row.budget]
        size, bound = _norm_of([row.size for row in held]), _norm_of([row.bound for row in held])
        table.add_row(
            f'{rows[0].layer}',
            _span(row.lr[1] for row in rows if row.lr),
            _span(row.weight_decay for row in rows),
            f'{len(held) or NONE}',
            _span(row.budget for row in rows),
            _span([size]),
            _span([bound]),
            _span([bound / size if size and bound else None]),
        )
    return table


def _norm_of(norms: list[float | None]) -> float | None:
    """The norm of tensors of these norms together; None if one is not known, or there is none."""
    return math.hypot(*norms) if norms and None not in norms else None  # type: ignore[arg-type]


def _in_epochs(half_lives: Iterable[float | None], report: RollbackReport) -> list[float]:
    return [half / report.steps_per_epoch for half in half_lives if half and report.steps_per_epoch]


def _parameter_lines(report: RollbackReport, marks: dict[str, str]) -> Iterable[str]:
    """Two lines per parameter, since a name can fill a line."""
    line = '{:>6}{:>9}{:>8}{:>7}{:>8}{:>10}{:>8}{:>9}{:>9}{:>10}{:>8}{:>8}'.format
    heads = ('lr at top', 'decay', 'lambda', 'w at top', 'half-life', 'budget', 'bound')
    yield 'Every parameter'
    yield line('layer', 'number', 'source', 'frozen', 'norm', *heads)
    for row in report.parameters:
        yield row.name
        kind = (_count(row.number), marks[row.source], 'yes' if row.frozen else NONE, row.norm or NONE)
        figures = (row.lr[1:2], [row.weight_decay], [row.level], row.w[1:2] if any(row.w) else ())
        budget = map(_span, ([row.budget], [row.bound]))
        yield line(row.layer, *kind, *map(_span, figures), _span([row.half_life], _steps), *budget)


def _print_summary(report: RollbackReport, console: Console) -> None:
    rows, held = report.parameters, [row for row in report.parameters if row.is_held]
    frozen = sum(row.frozen for row in rows)
    lines = [
        f'Rolled back: {len(held)} of {len(rows)} parameter tensors, {_count(sum(row.number for row in held))} of '
        f'{_count(sum(row.number for row in rows))} parameters'
        + (f'; frozen: {frozen} tensors, which get an anchor once they are trained' if frozen else ''),
        f'Anchors: {sum(row.anchor_bytes for row in rows) / 2**20:.1f} MiB of memory',
        f'Pre-trained norm layers: {report.norms}',
        f'One process; {report.data}',
    ]
    if any(any(row.w) for row in rows):
        lines += ['Half-life: -ln 2 / ln(1 - w) at top, the time that halves a deviation without gradients']
    if any(row.budget for row in rows):
        lines += [
            'Bound: of a tensor, budget times ||theta_0||; of a layer, the root of the sum of their squares. A tensor '
            'whose theta_0 is 0 or tiny has the budget of those beside it, so a layer may exceed budget times its norm'
        ]
    if report.max_level:
        steps = half_life_of(report.max_level)
        epochs = ''.join(f'{_epochs(half)} epochs, ' for half in _in_epochs([steps], report))
        lines.append(
            f'max_level {report.max_level:.4g} is a half-life of {_steps(steps)} steps, {epochs}'
            f'{100 * steps / report.steps:.3g} % of the run, at the first learning rate'
        )
    if any(state != 'loaded' for state in report.sources.values()):
        lines += ['Declared checkpoints are not on this machine, and are assumed to hold all weights of their module']
    for line in lines:
        console.print(f'- {line}.', highlight=False, markup=False)
    for warning in report.warnings:
        console.print(f'WARNING: {warning}', style='bold red', highlight=False, markup=False)


def write_csv(report: RollbackReport, file: Path) -> None:
    """Write one row of plain numbers per parameter tensor."""
    with open(file, 'w', newline='') as stream:
        writer = csv.writer(stream)
        names = (
            'parameter,layer,layers,number,source,source_status,frozen,norm_statistics,lr_start,lr_top,lr_end,'
            'weight_decay,lambda,w_start,w_top,w_end,half_life_steps,half_life_epochs,anchor_bytes,budget,bound,'
            'anchor_norm'
        )
        writer.writerow(names.split(','))
        for row in report.parameters:
            writer.writerow(
                [row.name, row.layer, row.layers, row.number, row.source, report.sources.get(row.source, '')]
                + [int(row.frozen), row.norm, *(row.lr or ('', '', '')), row.weight_decay, row.level, *row.w]
                + [row.half_life, next(iter(_in_epochs([row.half_life], report)), ''), row.anchor_bytes]
                + [row.budget, row.bound, row.size]
            )


def plot_levels(report: RollbackReport, file: Path, title: str) -> None:
    """Plot lambda over depth, and w at the start, the top and the end of the schedule; drift budgets over depth."""
    layers = by_layer(report.parameters)
    has_budgets = bool(_with('budget', layers))
    kinds = [_draw_levels] * bool(_with('level', layers) or not has_budgets) + [_draw_budgets] * has_budgets
    size = (max(7, min(14, 3 + 0.34 * len(layers))), 5.4 * len(kinds))
    figure = Figure(figsize=size, layout='constrained')
    for axes, draw in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds):
        highest = draw(axes, layers, report)
        if len(layers) <= 40:
            names = [', '.join(names).removeprefix('backbone.') for names in modules_of(layers)]
            names = [name if len(name) <= 24 else f'{name[:22]} ...' for name in names]
            labels = [f'{name}: {rows[0].layer}' for name, rows in zip(names, layers)]
            axes.set_xticks(range(len(layers)), labels, rotation=60, ha='right', rotation_mode='anchor', fontsize=8)
        axes.set(ylim=(0, highest * 1.05 or 1), xlim=(-0.7, len(layers) - 0.3))
        axes.set(xlabel='layer i, from the input to neck and head')
        axes.spines['top'].set_visible(False)
        axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)


def _draw_bars(axes: Axes, layers: list[list[Parameter]], key: str, what: str) -> list[float]:
    """Bars of the strength of each layer, other ones where it holds nothing, and why; returns the heights."""
    heights = [max((getattr(row, key) or 0.0 for row in rows), default=0.0) for rows in layers]
    is_held = [any(row.is_held and getattr(row, key) for row in rows) for rows in layers]
    shown, idle = ([i for i, held in enumerate(is_held) if held == wanted] for wanted in (True, False))
    axes.bar(shown, [heights[i] for i in shown], color=BLUE, label=f'{what} of layers that are rolled back')
    if any(heights[i] for i in idle):
        label = f'{what} of layers that are not'
        axes.bar(idle, [heights[i] for i in idle], color='white', edgecolor=GREY, hatch='///', label=label)
    for i in idle:
        states = {'frozen' if row.frozen else 'new' if row.source == NEW else f'no {what}' for row in layers[i]}
        label, frame = ', '.join(sorted(states)), dict(facecolor='white', edgecolor='none', pad=1)
        axes.annotate(label, (i, 0), (0, 4), textcoords='offset points', rotation=90, ha='center', bbox=frame)
    return heights


def _draw_levels(axes: Axes, layers: list[list[Parameter]], report: RollbackReport) -> float:
    """Returns the highest value in it."""
    highest = max([*_draw_bars(axes, layers, 'level', 'lambda'), *(w for row in report.parameters for w in row.w)])
    held = [[row for row in rows if any(row.w)] for rows in layers]
    points = [
        (0, 'w at the first step', 'o', 'white'),
        (1, f'w at the highest rate (iteration {report.top_iteration:,})', 'D', YELLOW),
        (2, 'w at the last step', 'v', ORANGE),
    ]
    for point, label, marker, colour in points if report.top_iteration else points[1:]:
        heights = {i: max(row.w[point] for row in rows) for i, rows in enumerate(held) if rows}
        (line,) = axes.plot([*heights], [*heights.values()], marker, color=colour, markeredgecolor='black', label=label)
        line.set(clip_on=False, zorder=3)
    axes.set(ylabel='lambda, w (share of the way back per step)', ylim=(0, highest * 1.05 or 1))
    halves = axes.secondary_yaxis('right')
    ticks = [tick for tick in axes.get_yticks() if 0 < tick <= axes.get_ylim()[1]]
    halves.set_yticks(ticks, [_steps(math.log(2) / tick) for tick in ticks])
    halves.set_ylabel('half-life of a deviation (steps)')
    return highest


def _draw_budgets(axes: Axes, layers: list[list[Parameter]], report: RollbackReport) -> float:
    """Returns the highest value in it."""
    axes.set(ylabel='drift budget (highest ||theta - theta_0|| / ||theta_0||)')
    return max(_draw_bars(axes, layers, 'budget', 'budget'))
