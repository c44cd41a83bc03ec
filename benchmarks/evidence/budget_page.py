"""The page of the study of the drift budget, out of benchmarks/evidence/budget.csv."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from budget import BUDGET, NETWORKS, SHAPES, TRADES
from budget_figures import (
    CHANGES,
    KEPT,
    LOOKS,
    curve,
    draw_invariance,
    draw_rates,
    draw_shapes,
    draw_trade,
    fixed,
    frame_of,
    metric_of,
    settings,
    trade_parts,
    whole,
)
from tables import markdown

DOCS = Path(__file__).resolve().parents[2] / 'docs/en'
FIGURES = DOCS / 'evidence'
PLAIN, ONE = 'plain fine-tuning', 'one number'
MOST_FACTOR, MOST_RANGE = 1.5, 15  # over learning rates x8: of drift, and points of agreement
TITLES = {
    'fashion': 'Fashion-MNIST',
    'digits': 'MNIST digits',
    'nuclei pixels': 'pixels of nuclei',
    'composite boxes': 'boxes of digits on photos',
}
HEAD = """# A drift budget in numbers

Printed by `make evidence` from [budget.csv](../../benchmarks/evidence/budget.csv), a row for every run with its
settings, seed, commit and machine. {done} of {planned} planned runs are included; a part of which no seed is complete
is left out. A run took {seconds:.0f} s (median) on one core of {machines}, beside other work.

- Classification: an ImageNet network learns Fashion-MNIST or MNIST, 50 images a class, 32 pixels, 100 steps of 32
  images (unless said otherwise), AdamW, warm-up and cosine. Top-1 on 2,000 test images (1,000 of MNIST).
- Pixels and boxes: the runs of [the other study](evidence.md), on its validation split.
- *Agreement*: the share of 124 crops of photos for which the old ImageNet classifier names the same class as before, on
  the new backbone with the pre-trained BatchNorm statistics restored.
- *Drift*: ||theta - theta_0|| / ||theta_0||, mean over layers.
- *Budget*: `max_drift`, one number for all layers. *Level*: `max_level` with `power=0`, one number for all layers;
  *falling to 0*: `power=1`, `min_level=0`, as in the paper.
- Bands and brackets are the range over seeds. The tables of what it costs choose the best setting of every method
  on the test images that they show."""
BAR = f"""The bar: drift within a factor of {MOST_FACTOR} and agreement within {MOST_RANGE} points, means over seeds."""
WHY = """Why drift still depends on the rate: a budget is a bound, not a target, and these runs end well below it.

- **Noise.** Where steps point the same way, drift comes near the budget, whatever the rate. Where they point anywhere,
  it settles at sqrt(x b / 2), with a budget of b and steps of the length x, both relative to the norm: a factor of 2.8
  for rates x8. With a level it grows like x, a factor of 8.
- **Short runs at low rates.** Where plain fine-tuning itself moves weights by less than the budget, there is little to
  hold back. So the smaller budget carries over better."""
OTHERS = """One number carries over to another length or batch, then, and not to another optimizer. Its steps are of
another length, and turn more or less often, so they come to rest elsewhere within the budget."""


def spread(rows: pd.DataFrame, part: str) -> dict[str, str]:
    """How far drift and agreement, means over seeds, go apart over the settings; in brackets, seed by seed."""
    rows = rows.assign(setting=settings(rows, part))
    of_seed = rows.groupby('seed')
    factors = of_seed['drift_mean'].max() / of_seed['drift_mean'].min()
    ranges = of_seed[KEPT].max() - of_seed[KEPT].min()
    means = rows.groupby('setting', sort=False)[['drift_mean', KEPT, 'value']].mean()
    drift, kept, value = means['drift_mean'], means[KEPT], means['value']
    return dict(
        factor=drift.max() / drift.min(),
        range=kept.max() - kept.min(),
        drift=f'{100 * drift.min():.1f} to {100 * drift.max():.1f}',
        agreement=f'{kept.min():.0f} to {kept.max():.0f}',
        value=f'{value.min():.1f} to {value.max():.1f}',
        factors=f'{drift.max() / drift.min():.1f} ({factors.min():.1f} to {factors.max():.1f})',
        ranges=f'{kept.max() - kept.min():.0f} ({ranges.min():.0f} to {ranges.max():.0f})',
        n=len(of_seed),
    )


def invariance(frame: pd.DataFrame) -> list[dict]:
    """A row for every change, network and strength that has been measured."""
    made = []
    for part, what in CHANGES.items():
        for network, name in NETWORKS.items():
            rows = frame[(frame['part'] == part) & (frame['network'] == network)]
            for number, of in fixed(rows).groupby('fixed', sort=False):
                if len(of := whole(of)):
                    made.append(dict(what=what, network=name, name=number, rows=of, **spread(of, part)))
    return made


def invariance_table(found: list[dict]) -> str:
    """One line for every change and network: the fixed level against the fixed budgets."""
    frame = pd.DataFrame(found)
    columns = dict(factors='drift, factor', ranges='agreement, points')
    lines = []
    for (what, network), of in frame.groupby(['what', 'network'], sort=False):
        line = {'over': what, 'network': network, 'n': of['n'].min()}
        for key, title in columns.items():
            line.update({f'{title}: {row["name"]}': row[key] for _, row in of.iterrows()})
        lines.append(line)
    table = pd.DataFrame(lines).fillna('')
    order = [c for title in columns.values() for c in table.columns if c.startswith(title)]
    return markdown(table[['over', 'network', 'n', *order]])


def trade_table(parts: dict[float, pd.DataFrame], task: str) -> tuple[str, dict[str, dict[int, float]]]:
    """The most that each method kept at a cost of at most one, and of three, points; and those figures by method."""
    name, factor, point = metric_of(task)
    points, seeds = {}, {}
    for part in parts.values():
        for kind, of_kind in part.groupby('family', sort=False):
            points.setdefault(kind, []).append(curve(of_kind, factor))
            seeds[kind] = min(seeds.get(kind, np.inf), of_kind['seed'].nunique())
    points = {kind: pd.concat(tables).reset_index() for kind, tables in points.items()}
    best = points[PLAIN]['value'].max()
    lines, kept = [], {}
    for kind in [kind for kind in LOOKS if kind in points]:
        line = {'': kind, 'n': seeds[kind]}
        kept[kind] = {}
        for cost in (1, 3):
            good = points[kind][points[kind]['value'] >= best - cost * point]
            if not len(good):
                line[f'at most {cost} lost'], kept[kind][cost] = 'none', np.nan
                continue
            top = good.loc[good['kept'].idxmax()]
            kept[kind][cost] = top['kept']
            rate = '' if kind == PLAIN else f' at rate {top["rate"]:g}'
            line[f'at most {cost} lost'] = (
                f'**{top["kept"]:.0f}** ({top["kept_low"]:.0f} to {top["kept_high"]:.0f}), {name.split(",")[0]} '
                f'{top["value"]:.1f}; {top["strength"]}{rate}'
            )
        line['above plain at the same agreement'] = '' if kind == PLAIN else above(points[kind], points[PLAIN])
        lines.append(line)
    head = f'Best of plain fine-tuning: {best:.1f}. Agreement, %, as mean (range) over n seeds.\n\n'
    return head + markdown(pd.DataFrame(lines)), kept


def shape_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs of budgets that change with depth, and of one number, with their shape and mean."""
    named = {
        json.dumps(list(pair)): (shape, mean) for mean, pairs in SHAPES.items() for shape, pair in pairs.items()
    } | {json.dumps(mean): (ONE, mean) for mean in SHAPES}
    rows = frame[frame['part'] == 'shapes']
    if len(rows):
        rows = rows.assign(shape=[named[key][0] for key in rows['strength']])
        rows = rows.assign(mean=[named[key][1] for key in rows['strength']])
        rows = pd.concat(whole(of) for _, of in rows.groupby(['network', 'mean'], sort=False))
    return rows


def shape_table(rows: pd.DataFrame) -> str:
    """A line for every network and mean; of every shape top-1 and agreement."""
    lines = []
    for (network, mean), of in rows.groupby(['network', 'mean'], sort=False):
        line = {'network': NETWORKS[network], 'mean budget': f'{mean:g}', 'n': of['seed'].nunique()}
        for shape, of_shape in of.groupby('shape', sort=False):
            pair = '' if shape == ONE else f' {tuple(json.loads(of_shape["strength"].iloc[0]))}'
            line[shape] = f'{of_shape["value"].mean():.1f}, {of_shape[KEPT].mean():.0f}{pair}'
        lines.append(line)
    return 'Top-1, agreement (both in %), and `max_drift`.\n\n' + markdown(pd.DataFrame(lines).fillna(''))


def rates_table(found: list[dict], frame: pd.DataFrame) -> str:
    """Over learning rates: how far runs go apart, whether the bar holds, and how they compare to plain fine-tuning."""
    rates = [row for row in found if row['what'] == CHANGES['rates']]
    free = frame[(frame['family'] == PLAIN) & (frame['task'] == 'fashion') & frame['value'].notna()]
    free = free.drop_duplicates(['network', 'seed', 'lr'])
    plain = {NETWORKS[network]: curve(of, 1.0, 'lr') for network, of in free.groupby('network')}
    seeds = {NETWORKS[network]: set(of['seed']) for network, of in free.groupby('network')}
    lines = []
    for row in rates:
        passed = row['factor'] <= MOST_FACTOR and row['range'] <= MOST_RANGE
        line = {'network': row['network'], 'fixed': row['name'], 'n': row['n'], 'drift, %': row['drift']}
        line['largest / smallest'] = row['factors']
        line.update({'agreement, %': row['agreement'], 'range, points': row['ranges'], 'top-1, %': row['value']})
        line['above plain'] = ''
        if row['name'] != PLAIN:
            line['bar'] = 'holds' if passed else 'does not hold'
            if row['network'] in plain:
                same = row['rows'][row['rows']['seed'].isin(seeds[row['network']])]
                line['above plain'] = above(curve(same, 1.0, 'lr'), plain[row['network']])
        lines.append(line)
    note = '*Above plain*: top-1 above plain fine-tuning at the same agreement, of the seeds that both have.\n\n'
    return note + markdown(pd.DataFrame(lines).fillna(''))


def above(points: pd.DataFrame, plain: pd.DataFrame) -> str:
    """Points of the metric above plain fine-tuning (below: -) at the same agreement: mean, and range over settings.

    Plain fine-tuning is taken at its best for an agreement, between its rates on the straight line; settings that keep
    more than it does at any of its rates have no such value, and are left out.
    """
    best = plain.sort_values('kept', ascending=False)
    best = best[best['value'] > best['value'].cummax().shift(fill_value=-np.inf)][::-1]
    within = points[points['kept'] <= best['kept'].max()]
    if not len(within):
        return ''
    gap = within['value'] - np.interp(within['kept'], best['kept'], best['value'])
    return f'{gap.mean():+.1f} ({gap.min():+.1f} to {gap.max():+.1f})'


def budgets_and_levels(found: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    is_budget, is_level = (found['name'].str.startswith(kind) for kind in ('budget', 'level'))
    return found[is_budget], found[is_level]


def invariance_answer(found: list[dict]) -> str:
    """The answer in a sentence: over learning rates, budgets against levels."""
    rates = pd.DataFrame(found)
    rates = rates[rates['what'] == CHANGES['rates']]
    said = [
        f'by a factor of {of["factor"].min():.1f} to {of["factor"].max():.1f} in drift and '
        f'{of["range"].min():.0f} to {of["range"].max():.0f} points in agreement'
        for of in budgets_and_levels(rates)
    ]
    return f'Over learning rates x8, runs with one budget differ {said[0]}. With one level they differ {said[1]}.'


def others_answer(found: list[dict]) -> str:
    """The same over all that is not the learning rate."""
    said = []
    for what, of in pd.DataFrame(found).groupby('what', sort=False):
        factors = (f'{rows["factor"].min():.1f} to {rows["factor"].max():.1f}' for rows in budgets_and_levels(of))
        said.append(f'over {what} {" and ".join(factors)}')
    return f'Drift differs by these factors with one budget, and with one level: {"; ".join(said)}.'


def shape_answer(rows: pd.DataFrame) -> str:
    """The answer in a sentence: what a shape changes against one number of the same mean."""
    at = ['network', 'mean', 'seed']
    one = rows[rows['shape'] == ONE].set_index(at)[['value', KEPT]]
    said = []
    for shape in SHAPES[BUDGET]:
        changes = (rows[rows['shape'] == shape].set_index(at)[['value', KEPT]] - one).dropna().groupby(at[:2]).mean()
        parts = [f'{changes[key].min():+.1f} to {changes[key].max():+.1f}' for key in ('value', KEPT)]
        said.append(f'{shape}, top-1 {parts[0]} and agreement {parts[1]}')
    return f'Against one number of the same mean, in points: {"; ".join(said)}.'


def trade_answer(kept: dict[str, dict[int, float]]) -> str:
    """The answer in a sentence, by the figures of :func:`trade_table`."""
    said = []
    for cost in (1, 3):
        order = sorted((-of[cost], kind) for kind, of in kept.items() if round(np.nan_to_num(of[cost])))
        ranks = [f'{kind} ({-value:.0f} %)' for value, kind in order] or ['nothing']
        said.append(f'at a cost of at most {cost} {"point" if cost == 1 else "points"}: {", ".join(ranks)}')
    return f'Most kept, {"; ".join(said)}.'


def sections(frame: pd.DataFrame) -> list[str]:
    """The page, part by part; a part without whole seeds is left out. Writes the figures."""
    done = frame['value'].notna()
    runs = frame[[*['part', 'task', 'network', 'seed', 'family', 'strength', 'lr', 'optimizer', 'iters', 'batch']]]
    measured = frame[done]
    made = [
        HEAD.format(
            done=len(runs[done].drop(columns='part').drop_duplicates()),
            planned=len(runs.drop(columns='part').drop_duplicates()),
            machines=', '.join(sorted(set(measured['machine']))),
            seconds=measured['seconds'].median(),
        )
    ]
    found = invariance(frame)
    if found:
        made += ['## Does one number mean the same everywhere?', invariance_answer(found), BAR]
        made += [*drawn(draw_rates(frame), 'budget_rates', 'New metric against agreement, over learning rates')]
        made += [rates_table(found, frame), WHY]
        for network in NETWORKS:
            made += drawn(draw_invariance(frame, network), f'budget_{network}', f'Drift and agreement, {network}')
        if others := [row for row in found if row['what'] != CHANGES['rates']]:
            made += [others_answer(others), OTHERS, invariance_table(others)]
    for task, network in dict.fromkeys(of[:2] for of in TRADES):
        parts = trade_parts(frame, task, network)
        if not any(PLAIN in set(part['family']) for part in parts.values()):
            continue
        table, kept = trade_table(parts, task)
        made.append(f'## What does it cost? {TITLES[task]}, {NETWORKS[network]}\n\n{trade_answer(kept)}')
        name = f'budget_{task.replace(" ", "_")}_{network}'
        text = f'New metric against agreement, {task}, {network}'
        made += [*drawn(draw_trade(parts, task), name, text), table]
    rows = shape_rows(frame)
    if len(rows):
        made.append(f'## One number, growing with depth, or falling?\n\n{shape_answer(rows)}')
        made += [*drawn(draw_shapes(frame, rows), 'budget_shapes', 'Shapes on the curve of budgets'), shape_table(rows)]
    return made


def drawn(figure, name: str, text: str) -> list[str]:
    """Save a figure, and give the line that shows it."""
    if figure is None:
        return []
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f'{name}.png', dpi=120, metadata=dict(Software=None))
    return [f'![{text}](evidence/{name}.png)']


def show(planned: list[dict], results: dict[str, dict], console) -> None:
    """Print the page and write it to docs."""
    page = '\n\n'.join(part for part in sections(frame_of(planned, results)) if part) + '\n'
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    (DOCS / 'evidence_budget.md').write_text(page)
