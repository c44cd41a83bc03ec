"""The tables of the study, in markdown, out of benchmarks/evidence/results.csv."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from plan import METHODS, SEVEN, TASKS, USED_ON, Choices, grid, plan

from olor_mm.compare.statistics import Measure, summarize, verdict

PAGE = Path(__file__).resolve().parents[2] / 'docs/en/evidence_tables.md'
NAMES = dict(
    full='full fine-tuning',
    linear_probe='linear probing',
    layer_decay='layer-wise lr decay',
    l2sp='L2-SP',
    l2sp_decoupled='decoupled L2-SP',
    spd='SPD',
    olor='OLOR',
    wise_ft='WiSE-FT',
)
NUMBERS = (
    'value before old old_restored agreement kl agreement_restored kl_restored drift_shallow drift_middle drift_deep '
    'drift_mean alpha half_life iters batch size seed'
)
KEPT = dict(
    agreement_restored='agreement %, statistics restored',
    kl_restored='KL, nats, restored',
    agreement='agreement %, as it is',
    drift_mean='drift %',
)
TITLE = """# Tables of the evidence

Printed by `make evidence`. [Does it help?](evidence.md) has the answers. First all settings on natural
images, then [the study of small tasks](#small-tasks)."""
HEAD = """## Small tasks

Printed from [results.csv](../../benchmarks/evidence/results.csv), a row for every run with its settings, seed, commit
and machine. `python benchmarks/evidence/study.py --again 3` runs three random rows again.
{done} of the {planned} runs that are planned are in it{open}.
All runs start from torchvision's ImageNet MobileNetV2 and have {shortest:g} to {longest:g} steps, on {machines}.
Learning rate and strength of every method are those that were best on the validation split, with one seed that is not
among the others. Every method has {budget} settings in classification and {dense} elsewhere. The test split was looked
at once, with the final runs.
The drift budget has [a study of its own](evidence_budget.md).
In *fashion-50* (Fashion-MNIST) and *digits-50* (MNIST) the number is that of training images a class. *Trees* are
trained on one site and tested on another.

The old ImageNet classifier is put on the fine-tuned backbone and asked about 124 crops of photos. *Agreement* is the
share for which it names the same class as before, and *KL* the divergence from its original outputs. *Restored*: with
the pre-trained norm statistics. *Drift* is ||w - w_0|| / ||w_0||, mean over the layers of the backbone. ± is the
standard deviation over seeds. Differences to full fine-tuning are paired by seed, with a 95 % confidence interval
(Student's t).
"""


def markdown(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ['---'] + ['---:'] * (len(frame.columns) - 1), *frame.astype(str).values.tolist()]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def measure_of(task: str) -> tuple[Measure, float, int]:
    """The metric of a task, the factor to what is printed, and digits: AP in points of 100."""
    kind = next(of for tuned in TASKS for name, of in USED_ON.get(tuned, {tuned: TASKS[tuned]}).items() if name == task)
    key = dict(classification='accuracy/top1', semantic='mIoU', detection='coco/bbox_mAP', instance='coco/segm_mAP')
    factor = 100.0 if kind['kind'] in ('detection', 'instance') else 1.0
    return Measure(key[kind['kind']]), factor, 1


def mean_sd(values: pd.Series, digits: int = 1) -> str:
    sd = f' ± {values.std():.{digits}f}' if values.count() > 1 else ''
    return f'{values.mean():.{digits}f}{sd}'


def final_table(rows: pd.DataFrame, task: str, reference: str = 'full', by: str = 'method') -> pd.DataFrame:
    """Mean, spread, n, paired difference, and what was kept, a row a method (or variant)."""
    measure, factor, digits = measure_of(task)
    values = pd.DataFrame(
        {'method': rows[by], 'seed': rows['seed'].astype('Int64'), str(measure): rows['value'] * factor}
    )
    order = [name for name in dict.fromkeys([reference, *METHODS, *rows[by]]) if name in set(rows[by])]
    values = pd.concat([values[values['method'] == name] for name in order])
    printed = []
    for name, row in summarize(values, measure).iterrows():
        of_method = rows[rows[by] == name]
        is_known = name != reference and not np.isnan(row['low'])  # of one seed there is no interval
        interval = f'{row["difference"]:+.1f} [{row["low"]:+.1f}, {row["high"]:+.1f}]' if is_known else ''
        kept = {KEPT[key]: mean_sd(of_method[key] * (100 if 'drift' in key else 1)) for key in KEPT}
        printed.append(
            {
                '': NAMES.get(name, name),
                measure.key: mean_sd(of_method['value'] * factor, digits),
                'n': int(row['n']),
                'difference': interval,
                'verdict': verdict(row, measure),
                **kept,
            }
        )
    return pd.DataFrame(printed)


def kept_table(choices: Choices, task: str) -> pd.DataFrame:
    """Of every method's settings within a point of the best of full fine-tuning, the one that kept most."""
    empty = dict.fromkeys([KEPT['agreement_restored'], 'drift %', 'settings'], '')
    printed = []
    for method in METHODS:
        best = choices.keeper(task, method)
        found = {measure_of(task)[0].key: 'none', **empty} if best is None else tuned_run(task, best)
        printed.append({'': NAMES[method], **found})
    return pd.DataFrame(printed)


def tuned_run(task: str, row: dict) -> dict:
    """What a table shows of a run on validation."""
    measure, factor, digits = measure_of(task)
    options = dict(alpha=float(row['alpha'])) if row['method'] == 'wise_ft' else json.loads(row['options'])
    return {
        measure.key: f'{factor * float(row["value"]):.{digits}f}',
        KEPT['agreement_restored']: f'{float(row["agreement_restored"]):.1f}',
        'drift %': f'{100 * float(row["drift_mean"]):.1f}',
        'settings': settings(options),
    }


def in_short(finals: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Differences of all methods in all tasks."""
    columns = {}
    for task, frame in finals.items():
        differences = frame['difference'].str.split(' ').str[0]
        shown = differences.where(~frame['verdict'].isin(('better', 'worse')), '**' + differences + '**')
        columns[task] = pd.Series(shown.to_list(), index=frame[''])
    return pd.DataFrame(columns).drop(index=NAMES['full']).fillna('').reset_index(names='')


def chosen(choices: Choices, tasks: list[str]) -> pd.DataFrame:
    """The settings that were best on validation, a row a method."""
    rows = [{'': NAMES[method]} for method in METHODS]
    for task in tasks:
        for method, row in zip(METHODS, rows):
            best = dict(alpha=choices.alpha(task)) if method == 'wise_ft' else choices.best(task, method)
            row[task] = '' if best is None else settings(best) + at_edge(method, task, best)
    return pd.DataFrame(rows)


def tried(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Every setting, method by method."""
    frame = pd.DataFrame(
        {'': NAMES[method], **tuned_run(task, row)}
        for method in METHODS
        if method != 'wise_ft'
        for row in rows[rows['method'] == method].to_dict('records')
    )
    frame.insert(1, 'settings', frame.pop('settings'))  # they tell the rows of a method apart
    return frame


def at_edge(method: str, task: str, best: dict) -> str:
    if method == 'wise_ft':
        return ''
    rates = [options['lr'] for options in grid(method, TASKS[task]['kind'])]
    return ' \\*' if best['lr'] in (min(rates), max(rates)) else ''


def settings(options: dict) -> str:
    return ', '.join(f'{key} {options[key]:g}' for key in sorted(options))


def pivot(rows: pd.DataFrame, index: str, columns: str, value: str, factor: float = 1.0) -> pd.DataFrame:
    cells = (rows.assign(shown=rows[value] * factor)).groupby([index, columns])['shown'].mean().unstack(columns)
    frame = cells.map(lambda cell: '' if np.isnan(cell) else f'{cell:.1f}').reset_index()
    frame.columns = [str(index), *(f'{column:g}' for column in cells.columns)]
    return frame


def numbers(results: list[dict]) -> pd.DataFrame:
    """The rows of results.csv, with numbers where they are."""
    table = pd.DataFrame(results)
    for column in NUMBERS.split():
        table[column] = pd.to_numeric(table[column])
    return table


def finals_of(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The table of the final runs of each task."""
    of_task = dict(list(table[table['part'] == 'final'].groupby('task')))
    order = [name for tuned in TASKS for name in USED_ON.get(tuned, [tuned])]
    return {task: final_table(of_task[task], task) for task in order if task in of_task}


def sections(results: list[dict]) -> list[str]:
    """The page, part by part; a part without results is left out."""
    table = numbers(results)
    machines = ', '.join(sorted(set(table['machine'])))
    planned = list(plan(results, list(TASKS)))
    done = len({trial['key'] for trial in planned if trial} & set(table['key']))
    rest = '; what is missing is not yet known, and tables of it are left out' if done < len(planned) else ''
    counts = dict(done=done, planned=len(planned), shortest=table['iters'].min(), longest=table['iters'].max())
    made = [HEAD.format(machines=machines, budget=6, dense=4, open=rest, **counts)]
    choices = Choices(results)
    finals = finals_of(table)
    if finals:
        made.append(f'## In short\n\n{SHORT}\n\n{markdown(in_short(finals))}')
    made += [f'## {task}\n\n{markdown(frame)}' for task, frame in finals.items()]
    tuned = [task for task in TASKS if all(choices.best(task, method) for method in SEVEN)]
    if tuned:
        made.append(f'## What can be kept for a point\n\n{KEPT_HEAD}')
    for task in tuned:
        made.append(f'### {task}, on validation\n\n{markdown(kept_table(choices, task))}')
        rows = table[(table['part'] == 'trade') & (table['task'] == task) & (table['method'] == table['variant'])]
        if len(rows):
            made.append(f'### {task}, these settings on the test split\n\n{markdown(final_table(rows, task))}')
        others = table[(table['part'] == 'photos') & (table['task'] == task)]
        if len(others):
            made.append(f'### {task}, the same on other photos\n\n{PHOTOS}\n\n{markdown(on_photos(rows, others))}')
    made += studies(table)
    if tuned:
        made.append(f'## What was best on validation\n\n{CHOSEN}\n\n{markdown(chosen(choices, tuned))}')
    for task in tuned:
        rows = table[(table['part'] == 'tuning') & (table['task'] == task)]
        made.append(f'## All that was tuned on validation, {task}, one seed\n\n{markdown(tried(rows, task))}')
    return made


def studies(table: pd.DataFrame) -> list[str]:
    """The sections on what was asked of OLOR alone, and on chains of tasks."""
    made = []
    for task, rows in table[table['part'] == 'chain'].groupby('task', sort=False):
        made.append(f'## Forgetting a task: {task}\n\n{CHAIN}\n\n{markdown(chain(rows))}')
    for task, rows in table[table['part'] == 'levels'].groupby('task'):
        made.append(f'## Levels of OLOR, {task}, one seed, on validation\n\n{markdown(levels(rows))}')
    rows = table[table['part'] == 'transfer']
    if len(rows):
        made.append(f'## Does a level carry over?\n\n{TRANSFER}')
        runs = rows.assign(
            run=[f'{r.iters:g} steps of {r.batch:g}, {r.size:g} a class' for r in rows.itertuples()],
            share=rows['half_life'] / rows['iters'],
        )
        for name, value, factor in (
            ('Top-1 on validation, %', 'value', 1),
            ('Drift, %', 'drift_mean', 100),
            ('Agreement, %, statistics restored', 'agreement_restored', 1),
        ):
            for columns, what in (('half_life', 'half-life in steps'), ('share', 'half-life as a share of the run')):
                made.append(f'### {name}, by {what}\n\n{markdown(pivot(runs, "run", columns, value, factor))}')
    for task, rows in table[table['part'] == 'ablation'].groupby('task'):
        made.append(f'## Ablations, {task}\n\n{ABLATIONS}\n\n{markdown(final_table(rows, task, "olor", "variant"))}')
        made.append(f'### What provenance is worth\n\n{PROVENANCE}')
        for name in ('uniform', 'uniform_strong'):
            pair = rows[rows['variant'].isin((name, f'{name}_new'))]
            if name in set(pair['variant']):
                made.append(markdown(final_table(pair, task, name, 'variant')))
    for task, frozen in table[table['part'] == 'statistics'].groupby('task'):
        updated = table[(table['part'] == 'final') & (table['task'] == task) & table['method'].isin(frozen['method'])]
        both = pd.concat(
            [
                updated.assign(variant=updated['method'] + ', updated'),
                frozen.assign(variant=frozen['method'] + ', frozen'),
            ]
        )
        made.append(f'## Norm statistics, {task}\n\n{STATISTICS}')
        made.append(markdown(final_table(both, task, 'full, updated', 'variant')))
    return made


SHORT = """Difference to full fine-tuning, in points of each task's metric: top-1 for fashion and digits, box AP for
boxes, mask AP for masks, mIoU for pixels. Bold: the 95 % confidence interval does not hold 0."""
KEPT_HEAD = """The best metric is one question, the best trade another. Here are settings that are at most one point
below the best of full fine-tuning, on validation with one seed. Of these it is the one of every method that changed the
outputs of the old classifier least (KL, statistics restored)."""
TRANSFER = """Each level was chosen by its half-life, of the layer nearest the input, at the start of the schedule: in
steps, or as a share of the run. Where a level means the same in all runs, a column reads alike from top to bottom.
Mean of 3 seeds."""
CHOSEN = """\\* marks a learning rate at the edge of those that were tried: better ones may lie beyond. The settings of
fashion-50 and digits-50 are those of 10 and 200 images a class too."""
ABLATIONS = """All at the learning rate that is best without rollback, and `max_level` 0.1 unless said. Differences are
to the first. *uniform*: the same level in all layers (`power=0`); *inverted*: the deepest block is pulled back most;
*tensor*: layers counted as the reference code does; *constant*: the level does not follow the learning rate;
*new*: provenance off, the new head is anchored to its random start as well; *strong*: level 0.3."""
PROVENANCE = """The same runs, with differences to those that are alike but for the head: what no checkpoint held is
left to the optimizer, or (*new*) pulled back to its random start."""
PHOTOS = """The runs above once more, with statistics restored. The old classifier was asked about the 124 crops of 13
photos of scikit-image, and (*others*) about 204 crops of 35 photos among the examples of OpenCV."""
STATISTICS = """Each at the settings that were best with updated statistics. *Frozen*: `norm_eval=True`. Updated and
restored are the columns of that name."""
CHAIN = """*Before* is the metric on the first task before the second was learned. *After* has the first head on
what the second left of the rest, *restored* the norm statistics of the first task too. First come those that were best
on validation, then some that are pulled back more."""


def on_photos(rows: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """What was kept, by either set of photos, a row a method."""
    shown = []
    for method, of in others.groupby('method', sort=False):
        row = {'': NAMES[method], 'n': len(of)}
        for key, name in dict(agreement_restored='agreement %', kl_restored='KL, nats').items():
            row[name] = mean_sd(rows.loc[rows['method'] == method, key])
            row[f'{name}, others'] = mean_sd(of[key])
        shown.append(row)
    return pd.DataFrame(shown)


def levels(rows: pd.DataFrame) -> pd.DataFrame:
    options = [json.loads(text) for text in rows['options']]
    shown = [
        {
            'optimizer': o.get('optimizer', {}).get('type', 'AdamW').split('.')[-1].removesuffix('OLOR'),
            'lr': f'{o["lr"]:g}',
            'max_level': f'{o["max_level"]:g}',
            'power': f'{o.get("power", 1):g}',
            'coupling': o.get('coupling', 'lr'),
            'top-1': f'{row.value:.1f}',
            'agreement %, restored': f'{row.agreement_restored:.1f}',
            'drift %': f'{100 * row.drift_mean:.1f}',
        }
        for o, row in zip(options, rows.itertuples())
    ]
    return pd.DataFrame(shown)


def chain(rows: pd.DataFrame) -> pd.DataFrame:
    factor = 100 if rows['before'].max() <= 1 else 1
    shown = []
    for (method, options), of in rows.groupby(['method', 'options'], sort=False):
        row = {'': NAMES[method], 'settings': settings(json.loads(options)), 'n': len(of)}
        row['second task'] = mean_sd(of['value'] * factor)
        row['first task, before'] = mean_sd(of['before'] * factor)
        row['after'] = mean_sd(of['old'] * factor)
        row['after, statistics restored'] = mean_sd(of['old_restored'] * factor)
        row['forgotten'] = mean_sd((of['before'] - of['old_restored']) * factor)
        shown.append(row)
    return pd.DataFrame(shown)


def show(results: list[dict], natural: list[dict], console) -> None:
    """Write the page of all tables to docs."""
    import natural_page  # which takes the functions above

    made = [TITLE, *natural_page.sections(natural), *(sections(results) if results else ())]
    PAGE.write_text('\n\n'.join(made) + '\n')
    console.print(f'{PAGE} is written')
