"""What runs of several methods came to: means, spreads, and paired differences. Needs pandas and scipy."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from .runs import Run, RunError

# headline metrics of the libraries' evaluators; the first that all runs have is held against retention
METRICS = ('accuracy/top1', 'coco/segm_mAP', 'coco/bbox_mAP', 'pascal_voc/mAP', 'mIoU', 'mDice')
# with the norm statistics put back first: without that, BatchNorm alone can take agreement to nothing
RETENTION = tuple(f'{state}/{key}' for key in ('agreement', *METRICS) for state in ('upstream_restored', 'upstream'))
TRAINING = {'loss', 'lr', 'base_lr', 'epoch', 'iter', 'time', 'data_time', 'memory', 'grad_norm'}
RESTORED = 'upstream_restored/'
# key without upstream/, unit, factor from the logged value, whether more of it is better
KINDS = (
    (r'agreement|accuracy/|single-label/|multi-label/|m?(IoU|Acc|Dice|Fscore)$|aAcc$', '%', 1, True),
    (r'kl$', 'nats', 1, False),
    (r'cka|.*mAP|.*AP\d*$|.*AR@', '0 to 1', 1, True),
    (r'drift/', '%', 100, False),
    (r'loss|.*(error|mae|rmse)$', '', 1, False),
)


@dataclass(frozen=True)
class Measure:
    """A logged scalar, and how it is read.

    Args:
        key (str): Its name in the log.
    """

    key: str

    @property
    def _kind(self) -> tuple[str, str, int, bool]:
        key = re.sub(r'^upstream\w*/', '', self.key)
        return next((kind for kind in KINDS if re.match(kind[0], key)), ('', '', 1, True))

    @property
    def unit(self) -> str:
        """'%', 'nats', '0 to 1', or '' if not known."""
        return self._kind[1]

    @property
    def factor(self) -> int:
        """From the logged value to one in this unit."""
        return self._kind[2]

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better; assumed of what is not known."""
        return self._kind[3]

    @property
    def digits(self) -> int:
        """Digits after the point to show."""
        return 2 if self.unit == '%' else 4

    def __str__(self) -> str:
        return f'{self.key} ({self.unit})' if self.unit else self.key

    def of(self, run: Run) -> pd.Series:
        """Values by step, in its unit."""
        return run.curve(self.key) * self.factor


def _keys(run: Run) -> set[str]:
    return set(run.scalars['key'])


def fill_restored(runs: Sequence[Run]) -> list[str]:
    """Where norm statistics did not change, put what was measured as it is in the place of what was not measured.

    ``UpstreamEvalHook`` logs ``upstream_restored`` only for runs that changed the running statistics of norm layers.
    Nothing is done where no run did.

    Returns:
        list[str]: work_dirs of the runs that were completed.
    """
    lacking = [run for run in runs if not run.scalars['key'].str.startswith(RESTORED).any()]
    lacking = lacking if len(lacking) < len(runs) else []
    filled = []
    for run in lacking:
        same = run.scalars[run.scalars['key'].str.startswith('upstream/')]
        if len(same):
            same = same.assign(key=same['key'].str.replace('upstream/', RESTORED))
            run.scalars = pd.concat([run.scalars, same], ignore_index=True)
            filled.append(str(run.work_dir))
    return filled


def choose_metrics(runs: Sequence[Run], wanted: Sequence[str] = ()) -> list[Measure]:
    """The downstream metrics to report, the first of them against retention.

    Args:
        runs (Sequence[Run]): All runs.
        wanted (Sequence[str]): Keys to take; by default those of :data:`METRICS` that were logged.

    Raises:
        RunError: If a run did not log them, such as one of another task or one without a validation.
    """
    keys_of = {run.work_dir: _keys(run) for run in runs}
    headlines = {work_dir: [key for key in METRICS if key in keys] for work_dir, keys in keys_of.items()}
    in_all = set.intersection(*keys_of.values())
    chosen = list(wanted) or [key for key in METRICS if key in in_all]
    for run in runs:
        keys = keys_of[run.work_dir]
        lacking = next((key for key in chosen if key not in keys), None)
        if lacking or not (chosen or headlines[run.work_dir]):
            logged = sorted(key for key in keys - TRAINING if not key.startswith(('drift/', 'upstream')))
            reason = (
                f'did not log {lacking!r}: leave it out, or choose another by --metric'
                if lacking
                else f'logged no headline metric, such as {METRICS[0]!r}: was it validated? Leave it out, or name a '
                'metric by --metric'
            )
            scope = run.cfg.get('default_scope')
            raise RunError(f'{run.work_dir} {reason}. {run.work_dir} (default_scope {scope!r}) has {logged}')
    if not chosen:
        raise RunError(
            'the runs have no headline metric in common: compare runs of one task, or name a metric by --metric. '
            + '; '.join(f'{work_dir} has {keys}' for work_dir, keys in headlines.items())
        )
    return [Measure(key) for key in chosen]


def choose_retention(runs: Sequence[Run], wanted: str | None = None) -> Measure | None:
    """The measure of what was kept of the upstream task; None if none was logged by all runs.

    Raises:
        RunError: If the wanted one was not logged by a run.
    """
    for run in runs:
        if wanted is not None and wanted not in _keys(run):
            logged = sorted(key for key in _keys(run) if key.startswith(('drift/all', 'upstream')))
            raise RunError(
                f'--retention {wanted!r} was not logged by {run.work_dir}, which has {logged}: choose one of these, or '
                'train with UpstreamEvalHook in custom_hooks'
            )
    in_all = set.intersection(*map(_keys, runs))
    return next((Measure(key) for key in ([wanted] if wanted else RETENTION) if key in in_all), None)


def measures_of(runs: Sequence[Run], metrics: Iterable[Measure], retention: Measure | None) -> list[Measure]:
    """What the tables are of: the metrics, the retention measure, then all else that was logged about forgetting."""
    keys = sorted({key for run in runs for key in _keys(run) if key.startswith('upstream') or key == 'drift/all'})
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
    """Mean, spread, and difference to the first method, of one measure.

    Args:
        values (DataFrame): From :func:`last_values`.
        measure (Measure): One of its columns.

    Returns:
        DataFrame: A row a method, with ``mean``; ``sd``, the sample standard deviation (NaN for one run); ``n`` runs;
        ``difference``, the mean over ``pairs`` of runs with equal seeds, method minus first method; ``low`` and
        ``high``, its 95 % confidence interval by Student's t, NaN for less than two pairs.
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
    """What a row of :func:`summarize` says about a method and the first one, in words."""
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
