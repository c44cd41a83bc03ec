"""Runs of several methods as one report: what each learned, and what it forgot."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from .comparison import (
    Measure,
    choose_metrics,
    choose_retention,
    fill_restored,
    last_values,
    measures_of,
    summarize,
    verdict,
)
from .comparison_views import draw_curves, draw_drift, draw_trade_off
from .predictions import Gallery, draw_predictions
from .report import Report
from .runs import Run, by_method, differing_settings

NONE = '-'
STAGE = re.compile(r'/cka_(?=stage\d+$)')


def compare(
    runs: Sequence[Run],
    metrics: Sequence[str] = (),
    retention: str | None = None,
    images: int = 4,
    score_thr: float = 0.3,
) -> tuple[Report, dict[str, pd.DataFrame]]:
    """Make the report of runs of one task.

    Args:
        runs (Sequence[Run]): From :func:`olor_mm.analysis.runs.find_runs`; the first method is the reference.
        metrics (Sequence[str]): Downstream metrics; by default what the libraries' evaluators log.
        retention (str, optional): Measure of what was kept; by default one of the ``upstream`` scalars.
        images (int): Images to draw predictions on. Defaults to 4.
        score_thr (float): Score above which objects are drawn. Defaults to 0.3.

    Returns:
        tuple[Report, dict[str, DataFrame]]: The report; and the tables under it, named 'runs', 'summary', 'settings'.

    Raises:
        RunError: If the runs do not go together.
    """
    groups = by_method(runs)
    unchanged = fill_restored(runs)
    chosen = choose_metrics(runs, metrics)
    kept = choose_retention(runs, retention)
    measures = measures_of(runs, chosen, kept)
    values = last_values(runs, measures)
    report = Report('Fine-tuning methods compared: what was learned, what was forgotten')
    report.text(
        f'The methods are {", ".join(f"{name} (n = {len(group)})" for name, group in groups.items())}. '
        'Every figure is that of the last time it was logged in a run, at the end of training; none is the best of '
        'several. sd is the sample standard deviation over n runs. Differences are to the first method, '
        f"{next(iter(groups))}, over pairs of runs with the same seed; their 95 % confidence interval is by Student's "
        't, each comparison by itself.'
    )
    report.notes(_cautions(groups, values, measures))
    if unchanged:
        report.text(
            f'Norm statistics did not change in {", ".join(unchanged)}: upstream_restored, with the statistics put '
            'back, is the same as upstream there.'
        )
    summaries = {measure: summarize(values, measure) for measure in measures}
    report.heading('Results')
    for measure, table in summaries.items():
        if not STAGE.search(measure.key):
            _add_summary(report, measure, table)
    _add_stages(report, {m: table for m, table in summaries.items() if STAGE.search(m.key)})
    report.heading('Learned against retained')
    if kept is None:
        report.text(
            'Not drawn: no measure of retention was logged by all of these runs. UpstreamEvalHook in custom_hooks logs '
            'upstream/agreement and others at every validation.'
        )
    else:
        report.text('Faint points are runs, large ones the mean of a method; bars are one standard deviation.')
        means = zip(groups, summaries[chosen[0]]['mean'], summaries[kept]['mean'])
        alt = f'{chosen[0]} against {kept}. Means: ' + '; '.join(f'{name}: {y:.4g} at {x:.4g}' for name, y, x in means)
        report.figure('trade_off', draw_trade_off(values, chosen[0], kept), alt)
    report.heading('Learning curves')
    report.text('Lines are means over the runs of a method, bands one standard deviation.')
    curves = [Measure('loss'), *chosen, *([kept] if kept else [])]
    names = ', '.join(map(str, curves))
    report.figure('curves', draw_curves(groups, curves), f'Over training: {names}. The last values are in the tables.')
    _add_drift(report, groups)
    report.heading('Predictions on the same images')
    _add_predictions(report, groups, images, score_thr)
    settings = differing_settings(groups.items())
    report.heading('Settings that differed')
    if settings.empty:
        report.text('None, apart from seed and directory.')
    else:
        report.text('Apart from seed, directory and the like. A key that a config does not have is -.')
        report.table(settings.rename_axis('config key'), tuple(settings.columns))
    report.heading('Runs')
    listed = values.set_index('method')[['seed', 'iterations', 'work_dir']]
    report.table(listed.assign(seed=[NONE if pd.isna(seed) else seed for seed in listed['seed']]), ('work_dir',))
    summary = pd.concat(
        [t.rename_axis('method').reset_index().assign(measure=m.key, unit=m.unit) for m, t in summaries.items()]
    )
    columns = ['measure', 'unit', *[name for name in summary.columns if name not in ('measure', 'unit')]]
    return report, dict(runs=values, summary=summary[columns], settings=settings.rename_axis('key').reset_index())


def _cautions(groups: dict[str, list[Run]], values: pd.DataFrame, measures: list[Measure]) -> list[str]:
    """What a reader has to know of these runs before the figures."""
    notes = []
    for method, runs in groups.items():
        if len(runs) == 1:
            notes.append(f'{method}: n = 1, so there is no spread and no confidence interval.')
        if any(run.seed is None for run in runs):
            notes.append(f'{method}: without randomness.seed in the config, runs cannot be paired.')
        differing = differing_settings((str(run.work_dir), [run]) for run in runs)
        if not differing.empty:
            notes.append(f'{method}: its runs differ in more than the seed: {", ".join(differing.index)}.')
    for method, rows in values.groupby('method', sort=False):
        if rows['iterations'].nunique() > 1:
            counts = ', '.join(map(str, sorted(rows['iterations'])))
            notes.append(f'{method}: its runs are of different length, {counts} iterations; were all of them finished?')
    lengths = values.groupby('method', sort=False)['iterations'].max()
    if lengths.nunique() > 1:
        notes.append(f'Methods trained for {", ".join(f"{n} ({method})" for method, n in lengths.items())} iterations.')
    missing = values.set_index('work_dir')[list(map(str, measures))].isna()
    for directories, names in missing.T.groupby(missing.T.apply(tuple, axis=1)).groups.items():
        if any(directories):
            absent = ', '.join(missing.index[list(directories)])
            notes.append(f'{", ".join(names)}: not logged by {absent}.')
    return notes


def _add_summary(report: Report, measure: Measure, table: pd.DataFrame) -> None:
    def number(value: float, sign: str = '') -> str:
        return NONE if pd.isna(value) else f'{value:{sign}.{measure.digits}f}'

    rows = [
        {
            'mean': number(row['mean']),
            'sd': number(row['sd']),
            'n': row['n'],
            'difference': number(row['difference'], '+'),
            '95 % interval': NONE
            if pd.isna(row['low'])
            else f'{number(row["low"], "+")} to {number(row["high"], "+")}',
            'pairs': NONE if pd.isna(row['pairs']) else row['pairs'],
            'against the first': verdict(row, measure),
        }
        for _, row in table.iterrows()
    ]
    report.heading(f'{measure}, {"higher" if measure.higher_is_better else "lower"} is better', 3)
    report.table(pd.DataFrame(rows, index=pd.Index(table.index, name='method')), ('against the first',))


def _add_stages(report: Report, summaries: Mapping[Measure, pd.DataFrame]) -> None:
    """Similarity of features stage by stage, a table for each state that it was measured in."""
    states: dict[str, dict[str, pd.Series]] = {}
    for measure, table in summaries.items():
        state, stage = STAGE.split(measure.key)
        spread = table['sd'].map(lambda sd: '' if pd.isna(sd) else f' ± {sd:.3f}')
        states.setdefault(state, {})[stage] = table['mean'].map('{:.3f}'.format) + spread
    for state, stages in states.items():
        report.heading(f'{state}/cka, 0 to 1, similarity of the features of each stage: mean ± sd, higher is better', 3)
        report.table(pd.DataFrame(stages).rename_axis('method'))


def _add_drift(report: Report, groups: dict[str, list[Run]]) -> None:
    report.heading('Drift of every layer over training')
    logged = {m: runs for m, runs in groups.items() if any(run.curve('drift/layer_00').size for run in runs)}
    missing = [method for method in groups if method not in logged]
    if missing:
        report.text(f'Not logged by {", ".join(missing)}: DriftHook in custom_hooks logs it.')
    if logged:
        report.text('Mean over the runs of a method; one colour scale for all, spaced by the square root.')
        final = {m: pd.concat([r.curve('drift/all').tail(1) for r in runs]).mean() for m, runs in logged.items()}
        alt = '; '.join(f'{method} {100 * value:.2f} %' for method, value in final.items())
        alt = f'Heat maps of drift, layer by iteration. All layers together at the end: {alt}'
        report.figure('drift', draw_drift(logged), alt)


def _add_predictions(report: Report, groups: dict[str, list[Run]], images: int, score_thr: float) -> None:
    if not images:
        report.text('Not asked for.')
        return
    try:
        gallery = Gallery(next(iter(groups.values()))[0].cfg, images, score_thr)
        drawings = {'annotated': gallery.annotated()}
    except Exception as error:  # data that are elsewhere, datasets of any kind
        report.text(f'Not drawn, as the validation data cannot be read: {type(error).__name__}: {error}')
        return
    notes = []
    for method, runs in groups.items():
        run = next((run for run in runs if run.checkpoint), None)
        if run is None:
            notes.append(f'{method}: not drawn, there is no checkpoint in {", ".join(str(r.work_dir) for r in runs)}.')
            continue
        try:
            drawings[method] = gallery.predicted(run.cfg, run.checkpoint)
            notes.append(f'{method}: {run.checkpoint}')
        except Exception as error:  # a checkpoint of another model or that is refused, data that are not the same
            notes.append(f'{method}: not drawn, {run.checkpoint}: {type(error).__name__}: {error}')
    report.text(
        f'Number of images: {len(gallery.indices)}, spread evenly over the validation data. Of each method, the run '
        'with the lowest seed that has a checkpoint.'
        + (f' Objects with a score above {score_thr}.' if gallery.scope == 'mmdet' else '')
    )
    captions = {name: [caption for _, caption in drawn] for name, drawn in drawings.items()}
    if gallery.scope == 'mmpretrain':  # there is nothing to draw into an image
        drawings = {'annotated': drawings['annotated']}
    spoken = '; '.join(f'{name}: {", ".join(captions[name])}' for name in drawings)
    report.figure('predictions', draw_predictions(gallery, drawings), f'A row a method. {spoken}')
    if gallery.scope == 'mmpretrain':
        columns = captions.pop('annotated')
        report.table(pd.DataFrame(captions, index=columns).T.rename_axis('method'), tuple(columns))
    report.notes(notes)


def write(report: Report, tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write the report and its tables as CSV files."""
    report.write(folder)
    for name, table in tables.items():
        table.to_csv(folder / f'{name}.csv', index=False)
