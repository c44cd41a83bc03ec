"""docs/en/evidence.md out of natural.csv and the tables of other studies, and the tables behind it."""

from collections.abc import Iterator

import pandas as pd
from natural import BUDGET, LENGTHS, LONG_RATES, PLAIN, ROWS, TUNED_SHIFT, plan
from natural_questions import DOCS, MILD, NONE, chain, listed, long, near, shift, title_of
from natural_tables import (
    HELD_OUT,
    NEW,
    OLD,
    against,
    averaged,
    better_in_both,
    chosen,
    details,
    frame_of,
    interval,
    of_cell,
)
from rows import read
from study import RESULTS
from tables import NAMES, finals_of, in_short, markdown, numbers

HEAD = """# Does it help?

Does olor_mm keep what a model knew, does it help the new task, and what should you set? Each question has its answer
first, then a table, then what would change the answer. Behind this page: [all settings](evidence_tables.md), and [drift
budgets over learning rates](evidence_budget.md)."""

MEASURED = """## How it was measured

`make evidence` prints this page. Of the [study of natural images](../../benchmarks/evidence/natural.csv), {done} of
{planned} planned runs are in it{machines}, and a question uses what is complete.

- **Networks**: ImageNet's MobileNetV2 and EfficientNet-Lite0. **New tasks**: PACS, Caltech-101, Fashion-MNIST.
- **Old task**: 1,000 ImageNet photos with labels, one a class, for the old classifier on the new backbone with its
  BatchNorm statistics restored. They may be training photos: compare, do not quote.
- **Methods**: ten, six settings each, at the rate that is best for plain fine-tuning. The best on validation is tested.
- **Differences** are to plain fine-tuning at its best rate, paired by seed, with 95 % intervals. A star: significant at
  5 % after Holm's correction for all methods of a column. Bands are the range over seeds."""

SHORT = """## What to set?

The recommended setting is `max_drift=(0.04, 0.16)`, at the rate that is best for plain fine-tuning."""
SHORT_TEXT = """*Better in both*: settings of other methods that are, by more than their intervals. With one seed
there is no interval. The old task is ImageNet top-1. For Caltech-101 after PACS it is top-1 on PACS, for Fashion-MNIST
agreement.

What would change the answer: a better setting of another method. Questions below say how far each result reaches."""

SMALL = """Points of each task's metric, against full fine-tuning. Bold: the 95 % interval does not hold 0. Settings
are those that were best on validation. [Drift, agreement and all settings](evidence_tables.md#small-tasks).

What would change the answer: tasks nearer to the pre-trained one, larger networks, longer runs."""


def standings(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, str | None]]:
    """Name, new and old task of every setting and seed, and the best setting of plain fine-tuning, of what is there."""
    near, shift, chain, long = (frame[frame['part'] == part] for part in ('near', 'shift', 'chain', 'long'))
    for cell, of in near.groupby('cell', sort=False):
        yield title_of(cell), averaged(of), chosen(of).get(PLAIN)
    best = chosen(of_cell(shift, TUNED_SHIFT)).get(PLAIN)
    for size, of in shift.groupby('size'):
        yield f'PACS, held-out domain, {size} a class', averaged(of, HELD_OUT), best
    if len(chain):
        yield 'Caltech-101 after PACS', averaged(chain), chosen(chain).get(PLAIN)
    if len(of := long[(long['iters'] == max(LENGTHS)) & (long['rate'] == LONG_RATES[0])]):
        yield f'Fashion-MNIST, {max(LENGTHS):,} steps', averaged(of, old='agreement_restored'), of['setting'].iloc[0]


def short(frame: pd.DataFrame) -> list[str]:
    """The recommended setting in all questions: against tuned plain fine-tuning, and against everything."""
    lines, worse, front, cases = [], [], 0, 0
    for name, rows, best in standings(frame):
        known = set(zip(rows['family'], rows['setting']))
        if {(PLAIN, best), (BUDGET, MILD)} - known:
            continue
        found = against(rows, (BUDGET, MILD), (PLAIN, best))
        better = better_in_both(rows, BUDGET, MILD)
        has_interval = pd.notna(found.loc[NEW, 'low'])
        cases += has_interval
        front += has_interval and not better
        worse += [name] * bool(found.loc[NEW, 'high'] < 0)
        columns = zip(('new task, difference', 'old task, difference'), (NEW, OLD))
        line = {'': name, 'n': int(found.loc[NEW, 'n']), **{text: interval(found.loc[key]) for text, key in columns}}
        lines.append({**line, 'better in both': f'{len(better)} of {len(known)}'})
    if not lines:
        return [SHORT, NONE]
    said = (
        f'In {front} of {cases} cases with two or more seeds no other setting is better in both tasks by more than the '
        f'intervals. On the new task it is worse than tuned plain fine-tuning in {len(worse)}: {listed(worse)}.'
    )
    return [SHORT, said, markdown(pd.DataFrame(lines)), SHORT_TEXT]


def page(rows: list[dict]) -> str:
    frame = frame_of(rows)
    planned = list(plan(rows))
    done = len({trial['key'] for trial in planned if trial} & set(frame['key'])) if rows else 0
    machines = ', '.join(sorted(set(frame['machine'])))
    answers = [short(frame), *(question(frame) for question in (shift, near, chain, long))]
    told = [parts for parts in answers if NONE not in parts]
    open_ones = [f'- {parts[0].splitlines()[0].removeprefix("## ")}' for parts in answers if NONE in parts]
    made = [HEAD, *(part for parts in told for part in parts), *small_tasks(read(RESULTS))]
    if open_ones:
        made += ['## Not answered yet', f'{NONE} The rest of the plan answers:', '\n'.join(open_ones)]
    machines = f', on {machines}' if machines else ''
    made.append(MEASURED.format(done=done, planned=len(planned), machines=machines))
    return '\n\n'.join(made) + '\n'


def small_tasks(results: list[dict]) -> list[str]:
    """What the older study says of the new task alone."""
    finals = finals_of(numbers(results))
    verdicts = pd.DataFrame({task: frame.set_index('')['verdict'] for task, frame in finals.items()})
    counts = [
        f'{verdict.capitalize()}: ' + (', '.join(f'{name} in {count}' for name, count in of[of > 0].items()) or 'none')
        for verdict in ('better', 'worse')
        for of in [(verdicts.drop(index=NAMES['full']) == verdict).sum(axis=1)]
    ]
    said = f'Against tuned full fine-tuning in {len(finals)} small tasks. {". ".join(counts)}.'
    return ['## Small tasks: does it help the new task?', said, SMALL, markdown(in_short(finals))]


def sections(rows: list[dict]) -> list[str]:
    """The tables behind the page, for docs/en/evidence_tables.md: every setting."""
    frame = frame_of(rows)
    parts = {title_of(cell): of for cell, of in frame[frame['part'] == 'near'].groupby('cell', sort=False)}
    for size, of in frame[frame['part'] == 'shift'].groupby('size'):
        parts[f'PACS, mean over the held-out domains, {size} a class and domain'] = of
        parts.update({f'{data}, {size} a class and domain': one for data, one in of.groupby('data')})
    parts |= {name: frame[frame['part'] == 'chain'] for name in ('Caltech-101 after PACS',)}
    for (iters, rate), of in frame[frame['part'] == 'long'].groupby(['iters', 'rate']):
        parts[f'Fashion-MNIST, {iters:g} steps at a rate of {rate:g}'] = of
    return ['## Natural images', *(f'### {name}\n\n{details(of)}' for name, of in parts.items() if len(of))]


def show(console) -> None:
    """Print the page and write it to docs."""
    text = page(read(ROWS))
    console.print(text, markup=False)
    (DOCS / 'evidence.md').write_text(text)
