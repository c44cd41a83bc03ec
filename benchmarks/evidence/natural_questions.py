"""The four questions of the study of natural images: each an answer, a figure, a table, and what would change it."""

from pathlib import Path

import pandas as pd
from natural import (
    BUDGET,
    CHAIN_FAMILIES,
    FAMILIES,
    LENGTHS,
    LEVEL,
    LITE0,
    LONG_LEVEL,
    LONG_RATES,
    PAPER,
    PLAIN,
    RECOMMENDED,
    SHIFT,
    TUNED_SHIFT,
)
from natural_figures import draw_differences, draw_lengths, draw_trades
from natural_tables import (
    HELD_OUT,
    NEW,
    OLD,
    SIGNIFICANT,
    by_seed,
    chosen,
    compared,
    interval,
    keepers,
    of_cell,
    of_settings,
    setting_of,
)
from rows import read
from tables import markdown, mean_sd

DOCS = Path(__file__).resolve().parents[2] / 'docs/en'
CSVS = DOCS / 'benchmarks'
MILD = setting_of(BUDGET, RECOMMENDED)
NONE = 'No runs yet.'
TITLES = {'caltech': 'Caltech-101, {} a class', 'pacs photo': 'PACS photos, {} a class'}
CHANGES = dict(
    near="""What would change the answer: a larger network (these have 3 to 5 million weights), more images a class, or
higher rates for the methods that hold weights back.""",
    shift="""What would change the answer: settings chosen anew at 100 images (they are those of 20), other shifts than
style, or a larger network. ImageNet pre-training helps little on sketches.""",
    chain="""What would change the answer: labels of the old model where old objects are in the new images, or a few old
images; see [adding classes](add_classes.md). Boxes, masks and pixels come from [that study](benchmarks/add_classes.md).
They begin with the rows of the old classes and pull back neck and heads too.""",
    long="""What would change the answer: batches of 128 and large natural images, as in the paper. This has 2,000 gray
images and batches of 32, and sees each image 282 times.""",
)


def drawn(figure, name: str, text: str) -> str:
    """Save a figure, and give the line that shows it."""
    (DOCS / 'evidence').mkdir(exist_ok=True)
    figure.savefig(DOCS / f'evidence/{name}.png', dpi=120, metadata=dict(Software=None))
    return f'![{text}](evidence/{name}.png)'


def title_of(cell: str) -> str:
    data, size, *second = cell.removesuffix(' lite0').rsplit(' ', 1) + (['lite0'] if cell.endswith(' lite0') else [])
    return TITLES[data].format(size) + (', EfficientNet-Lite0' if second else '')


def ready(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The cells in which most methods have been tuned, each with the setting of each that is best on validation."""
    picks = {cell: chosen(of) for cell, of in rows.groupby('cell', sort=False)}
    picks = {cell: of for cell, of in picks.items() if PLAIN in of}
    most = max((len(of) for of in picks.values()), default=0)
    return {cell: of for cell, of in picks.items() if len(of) == most}


def listed(families) -> str:
    return ', '.join(families) or 'none'


def significant(table: pd.DataFrame) -> str:
    """The methods that are better, and those that are worse, than plain fine-tuning, in words."""
    if table['p'].isna().all():
        return 'one seed tells no differences'
    found = table[table['p'] < SIGNIFICANT]
    return (
        f'better than plain fine-tuning: {listed(found.index[found["difference"] > 0])}; '
        f'worse: {listed(found.index[found["difference"] < 0])}'
    )


def near(frame: pd.DataFrame) -> list[str]:
    rows = frame[frame['part'] == 'near']
    first = rows[rows['network'] != LITE0]
    picks = ready(first)
    made = ['## Near the old task: does it learn better, and what does it keep?']
    if not picks:
        return [*made, NONE]
    new, old, agree = (by_seed(first, picks, key) for key in (NEW, OLD, 'agreement_restored'))
    kept = {cell: keepers(first[first['cell'] == cell]) for cell in picks}
    kept_new, kept_old = (by_seed(first, kept, key).mean() for key in (NEW, OLD))
    of_new, of_old = compared(new), compared(old)
    lines = [
        {
            '': family,
            'n': int(of_new.loc[family, 'n']),
            'new top-1, %': f'{of_new.loc[family, "mean"]:.1f}',
            'difference': interval(of_new.loc[family]),
            'ImageNet top-1, %': f'{of_old.loc[family, "mean"]:.1f}',
            'difference ': interval(of_old.loc[family]),
            'agreement, %': f'{agree[family].mean():.0f}',
            'a point given: ImageNet': f'{kept_old[family]:.1f}' if family in kept_old else 'none',
            'new': f'{kept_new[family]:.1f}' if family in kept_new else '',
        }
        for family in FAMILIES
        if family in of_new.index
    ]
    ranks = kept_old.drop(index='linear probing', errors='ignore').sort_values(ascending=False)
    made.append(
        f'On the new task, {significant(of_new)}. ImageNet top-1 was {first["before"].mean():.1f} % before and is '
        f'{of_old.loc[PLAIN, "mean"]:.1f} % after plain fine-tuning. For at most a point of validation, most is '
        'kept by ' + ', '.join(f'{family} ({value:.1f} %)' for family, value in ranks.iloc[:3].items()) + '.'
    )
    parts = {title_of(cell): of for cell, of in rows.groupby('cell', sort=False) if PLAIN in chosen(of)}
    figure = draw_trades(parts, 'ImageNet top-1 of the old classifier, %', 'new task: top-1, %', MILD)
    made.append(drawn(figure, 'near', 'New task against ImageNet top-1, over strengths'))
    made.append(f'The ring is `max_drift=(0.04, 0.16)`. Means over {"; ".join(map(title_of, picks))}:')
    return [*made, markdown(pd.DataFrame(lines)), CHANGES['near']]


def shift(frame: pd.DataFrame) -> list[str]:
    made = ['## A shift of domain: does it help there?']
    rows = frame[frame['part'] == 'shift']
    best = chosen(of_cell(rows, TUNED_SHIFT))
    if PLAIN not in best:
        return [*made, NONE]
    tables, lines, said = {}, {family: {'': family} for family in FAMILIES if family in best}, []
    seeds = []
    for size, cells in SHIFT.items():
        picks = {f'{cell.data} {size}': best for cell in cells}
        of_size = rows[rows['size'] == size]
        if of_size['cell'].nunique() < len(cells):
            continue
        of = {name: compared(by_seed(of_size, picks, key)) for name, key in (('within', NEW), ('held out', HELD_OUT))}
        tables[f'{size} a class and domain'] = of
        said.append(f'At {size} images, in the held-out domain, {significant(of["held out"])}')
        kept = by_seed(of_size, picks, OLD).mean()
        counts = sorted({int(n) for n in of['within']['n']})
        seeds.append(f'{" to ".join(map(str, counts))} seeds at {size}')
        for family, line in lines.items():
            if family not in of['within'].index:
                continue
            for name, table in of.items():
                line[f'{size}: {name}, %'] = f'{table.loc[family, "mean"]:.1f}'
                line[f'{size}: {name}, difference'] = interval(table.loc[family])
            line[f'{size}: ImageNet, %'] = f'{kept[family]:.1f}'
    if not said:
        return [*made, NONE]
    made.append('. '.join(said) + '.')
    made.append(drawn(draw_differences(tables), 'shift', 'Differences within three domains and in the fourth'))
    made.append(f'PACS, mean over the four held-out domains; {" and ".join(seeds)} a class and domain:')
    return [*made, markdown(pd.DataFrame(lines.values()).fillna('')), CHANGES['shift']]


def of_dense() -> list[dict]:
    """Old and new classes of detectors and of segmentation, as :mod:`add_classes` measured them, a row a way."""
    rows = pd.DataFrame(read(CSVS / 'add_classes.csv'))
    lines = []
    for task, of in rows.groupby('task', sort=False) if len(rows) else ():
        table = of.assign(old=pd.to_numeric(of['old']), new=pd.to_numeric(of['new'])).pivot(
            index='seed', columns='step'
        )
        if not {'before', 'plain', 'keep_classes'} <= set(table['old']):
            continue
        table = table.dropna(subset=[('old', 'before'), ('old', 'plain'), ('old', 'keep_classes')])
        factor = 100.0 if table['old'].max(axis=None) <= 1 else 1.0
        for way, name in dict(plain='plain, new head', keep_classes='`init --keep-classes`').items():
            lines.append(
                chain_line(
                    task, name, *(factor * table[key] for key in (('old', 'before'), ('old', way), ('new', way)))
                )
            )
    return lines


def chain_line(task: str, way: str, before: pd.Series, after: pd.Series, new: pd.Series) -> dict:
    return {
        'task': task,
        'way': way,
        'n': len(after),
        'old, before': mean_sd(before),
        'old, after': mean_sd(after),
        'of before, %': f'{100 * (after / before).mean():.0f}',
        'new': mean_sd(new),
    }


def chain(frame: pd.DataFrame) -> list[str]:
    made = ['## A second task: what is left of the first?']
    rows = frame[frame['part'] == 'chain']
    best = keepers(rows) if len(rows) else {}
    lines, figure = [], []
    for family in CHAIN_FAMILIES if best else ():
        if family in best:
            of = of_settings(rows, {family: best[family]})
            lines.append(
                chain_line('PACS, then Caltech-101', f'{family} ({best[family]})', of['before'], of[OLD], of[NEW])
            )
    if lines:
        parts = {'Caltech-101 after PACS': rows}
        drawing = draw_trades(parts, 'PACS: top-1 afterwards, %', 'Caltech-101: top-1, %', MILD)
        figure = [drawn(drawing, 'chain', 'Second task against the first, over strengths')]
    lines += of_dense()
    if not lines:
        return [*made, NONE]
    said = []
    for task, of in pd.DataFrame(lines).groupby('task', sort=False):
        said.append(f'{task} ' + ', '.join(f'{share} % ({way})' for way, share in zip(of['way'], of['of before, %'])))
    made.append(f'Of the first task is left: {"; ".join(said)}.')
    text = 'Top-1, AP or mIoU, in %.'
    if figure:
        text += ' The first rows have settings at most a point below plain on validation, and of these what keeps most.'
    return [*made, *figure, text, markdown(pd.DataFrame(lines)), CHANGES['chain']]


def pull(iters: int) -> float:
    """The sum of w over a run, in the layer nearest the input: warm-up for a tenth of it, then cosine."""
    warm = iters // 10
    return LONG_LEVEL * (warm * (0.1 + 0.9 * (warm - 1) / 2 / warm) + (iters - warm) / 2)


def long(frame: pd.DataFrame) -> list[str]:
    made = ['## Long runs: is a level of 0.01 a strong pull then?']
    rows = frame[frame['part'] == 'long']
    rows = rows.assign(family=rows['family'].replace({LEVEL: PAPER}))
    slow = rows[rows['rate'] == LONG_RATES[0]] if len(rows) else rows
    lines, said = [], []
    for iters in LENGTHS:
        of = slow[slow['iters'] == iters]
        if PLAIN not in set(of['family']):
            continue
        values = {
            key: of.pivot(index='seed', columns='family', values=key)
            for key in (NEW, 'agreement_restored', 'drift_mean')
        }
        new = compared(values[NEW])
        kept = values['agreement_restored'].mean()
        for family in new.index.intersection([PLAIN, PAPER, BUDGET]):
            lines.append(
                {
                    'steps': iters,
                    '': {PAPER: f'level {LONG_LEVEL}, falling with depth', BUDGET: 'budget (0.04, 0.16)'}.get(
                        family, family
                    ),
                    'sum of w': f'{pull(iters):.1f}' if family == PAPER else '',
                    'n': int(new.loc[family, 'n']),
                    'top-1, %': f'{new.loc[family, "mean"]:.1f}',
                    'difference': interval(new.loc[family]),
                    'agreement, %': f'{kept[family]:.1f}',
                    'drift, %': f'{100 * values["drift_mean"][family].mean():.1f}',
                }
            )
        if PAPER in kept:
            said.append(
                f'after {iters:,} steps a level of {LONG_LEVEL} keeps {kept[PAPER]:.0f} % agreement, plain fine-tuning '
                f'{kept[PLAIN]:.0f} %, and top-1 differs by {interval(new.loc[PAPER]) or "an unknown amount"}'
            )
    if not said:
        return [*made, NONE]
    made.append(f'At a rate of {LONG_RATES[0]:g}, {"; ".join(said)}.')
    made.append(drawn(draw_lengths(rows), 'long', 'New task and agreement over the length of the run'))
    return [*made, markdown(pd.DataFrame(lines)), CHANGES['long']]
