"""Statistics over runs: means, spreads and paired differences of methods. Needs pandas and scipy."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from .runs import RESTORED, Run, RunError, current_key

# headline metrics of the libraries' evaluators; the first that all runs have is compared with retention
HEADLINES = ('accuracy/top1', 'coco/segm_mAP', 'coco/bbox_mAP', 'pascal_voc/mAP', 'mIoU', 'mDice')
METRICS = (*(f'{key}_new' for key in HEADLINES), *HEADLINES)  # of added classes alone, where a model learned some
# first with the pre-trained norm statistics: without them, BatchNorm alone can destroy agreement
RETENTION = (
    *(f'{state}/{key}' for key in ('agreement', *HEADLINES) for state in (RESTORED, 'pretrained')),
    *(f'{key}_old' for key in HEADLINES),  # of the classes that the model had before
)
TRAINING = {'loss', 'lr', 'base_lr', 'epoch', 'iter', 'time', 'data_time', 'memory', 'grad_norm'}
# key without pretrained/, unit, factor from the logged value, whether more is better
KINDS = (
    (r'agreement|accuracy/|single-label/|multi-label/|(m?(IoU|Acc|Dice|Fscore)|aAcc)(_old|_new|_all)?$', '%', 1, True),
    (r'kl$', 'nats', 1, False),
    (r'cka|.*mAP|.*AP\d*$|.*AR@', '0 to 1', 1, True),
    (r'drift/', '%', 100, False),
    (r'loss|.*(error|mae|rmse)$', '', 1, False),
)


@dataclass(unsafe_hash=True)
class Measure:
    """A logged scalar by its key, and how to show it."""

    key: str

    def __post_init__(self):
        key = re.sub(r'^pretrained\w*/', '', self.key)
        kinds = (kind for kind in KINDS if re.match(kind[0], key))
        _, self.unit, self.factor, self.higher_is_better = next(kinds, ('', '', 1, True))
        self.direction = 'higher is better' if self.higher_is_better else 'lower is better'
        self.digits = 2 if self.unit == '%' else 4

    def __str__(self) -> str:
        return f'{self.key} ({self.unit})' if self.unit else self.key

    def of(self, run: Run) -> pd.Series:
        """Values by step, in its unit."""
        return run.curve(self.key) * self.factor


def _keys(run: Run) -> set[str]:
    return set(run.scalars['key'])


def _require_logged(runs: Iterable[Run], key: str, option: str) -> None:
    """Refuse a measure that a run did not log."""
    if current_key(key) != key:
        raise RunError(f'{option} {key!r} is called {current_key(key)!r} now, in old runs too: write that')
    for run in runs:
        if key not in _keys(run):
            logged = sorted(name for name in _keys(run) - TRAINING if not name.startswith('drift/layer'))
            raise RunError(f'{option} {key!r} was not logged by {run.work_dir}: leave it out, or choose among {logged}')


def choose_metrics(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[Measure]:
    """The wanted metrics of the new task, or those of :data:`METRICS` that all runs logged."""
    for key in wanted:
        _require_logged(runs, key, '--metric')
    chosen = list(wanted) or [key for key in METRICS if all(key in _keys(run) for run in runs)]
    if not chosen:
        logged = '; '.join(f'{run.work_dir} has {[key for key in METRICS if key in _keys(run)]}' for run in runs)
        remedy = 'compare runs of one task that were validated, or name a metric by --metric'
        raise RunError(f'the runs have no headline metric in common: {remedy}. {logged}')
    return [Measure(key) for key in chosen]


def choose_retention(runs: Sequence[Run], wanted: str | None = None) -> Measure | None:
    """The measure of what a model kept of the pre-trained task; None if no measure was logged by all runs."""
    if wanted is not None:
        _require_logged(runs, wanted, '--retention')
        return Measure(wanted)
    return next((Measure(key) for key in RETENTION if all(key in _keys(run) for run in runs)), None)


def measures_of(runs: Sequence[Run], metrics: Iterable[Measure], retention: Measure | None) -> list[Measure]:
    """The measures of the tables: the metrics, the retention measure, then all others about forgetting."""
    keys = {key for run in runs for key in _keys(run) if key.startswith('pretrained') or key == 'drift/all'}
    first = [*metrics, *([retention] if retention else [])]
    return list(dict.fromkeys([*first, *map(Measure, sorted(keys, key=lambda key: (key == 'drift/all', key)))]))


def last_values(runs: Iterable[Run], measures: Iterable[Measure]) -> pd.DataFrame:
    """One row a run: method, seed, work_dir, iterations, and the last value of each measure (NaN: not logged)."""
    rows = []
    for run in runs:
        steps = run.scalars[run.scalars['axis'] == 'iteration']['step']
        row = dict(method=run.method, seed=run.seed, work_dir=str(run.work_dir), iterations=int(steps.max()))
        values = {str(m): m.of(run) for m in measures}
        rows.append({**row, **{name: float('nan') if v.empty else v.iloc[-1] for name, v in values.items()}})
    return pd.DataFrame(rows).astype({'seed': 'Int64'})


def summarize(values: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """Mean, sample sd and n by method, and the mean difference to the first one over pairs of runs with equal seeds.

    ``low`` and ``high`` are the 95 % confidence interval by Student's t, NaN for less than two pairs.
    """
    data = values[['method', 'seed', str(measure)]].set_axis(['method', 'seed', 'value'], axis=1).dropna(subset='value')
    table = data.groupby('method', sort=False)['value'].agg(mean='mean', sd='std', n='count')
    table = table.reindex(values['method'].unique()).astype({'n': 'Int64'}).fillna({'n': 0})
    seeded = data.dropna(subset='seed').pivot(index='seed', columns='method', values='value')
    seeded = seeded.reindex(columns=table.index)
    differences = seeded.iloc[:, 1:].sub(seeded.iloc[:, 0], axis=0)
    pairs = differences.count()
    error = differences.std() / pairs**0.5
    half = error * stats.t.ppf(0.975, (pairs - 1).where(pairs > 1))
    mean = differences.mean()
    return table.assign(difference=mean, low=mean - half, high=mean + half, pairs=pairs.astype('Int64'))


def verdict(row: pd.Series, measure: Measure) -> str:
    """The result of a row of :func:`summarize`, method against first method, in words."""
    if pd.isna(row['pairs']):
        return 'reference'
    if row['pairs'] < 2:
        return f'n = {int(row["pairs"])}, no interval'
    if row['low'] <= 0 <= row['high']:
        return 'no difference shown'
    return 'better' if (row['difference'] > 0) == measure.higher_is_better else 'worse'


def mean_curve(runs: Iterable[Run], measure: Measure) -> pd.DataFrame:
    """Mean, sample standard deviation and number of runs by step."""
    curves = pd.concat([measure.of(run) for run in runs], axis=1)
    return pd.DataFrame(dict(mean=curves.mean(axis=1), sd=curves.std(axis=1), n=curves.count(axis=1))).sort_index()


def drift_map(runs: Iterable[Run]) -> pd.DataFrame:
    """Relative drift in percent, mean over the runs: layer (rows) by iteration (columns); empty if not logged."""
    logged = pd.concat([run.scalars for run in runs])
    logged = logged[logged['key'].str.fullmatch(r'drift/layer_\d+')]
    layer = logged['key'].str.extract(r'(\d+)$', expand=False).astype(int)
    return 100 * logged.assign(layer=layer).pivot_table(index='layer', columns='step', values='value')
