"""Reports what each of several methods learned and what it forgot."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from .figures import draw_curves, draw_drift, draw_trade_off
from .gallery import Gallery, draw_predictions
from .report import Report
from .runs import Run, by_method, differing_settings, fill_restored
from .statistics import Measure, choose_metrics, choose_retention, last_values, measures_of, summarize, verdict

NONE = '-'
STAGE = re.compile(r'/cka_(?=stage\d+$)')
Groups = Mapping[str, Sequence[Run]]
Summaries = Mapping[Measure, pd.DataFrame]


def compare(
    runs: Sequence[Run],
    metrics: Sequence[str] = (),
    retention: str | None = None,
    images: int = 4,
    score_thr: float = 0.3,
) -> tuple[Report, dict[str, pd.DataFrame]]:
    """The report of runs of one task, with the first method as the reference; and its tables by name."""
    groups = by_method(runs)
    unchanged = fill_restored(runs)
    chosen, kept = choose_metrics(runs, metrics), choose_retention(runs, retention)
    measures = measures_of(runs, chosen, kept)
    values = last_values(runs, measures)
    summaries = {measure: summarize(values, measure) for measure in measures}
    report = Report('Fine-tuning methods compared: what was learned, what was forgotten')
    report.text(
        f'The methods are {", ".join(f"{name} (n = {len(group)})" for name, group in groups.items())}. Every figure is '
        'the last one that a run logged, not the best. sd is the sample standard deviation over n runs. Differences '
        f'are to the first method, {next(iter(groups))}, over pairs of runs with the same seed. Their 95 % confidence '
        "intervals are by Student's t, without correction for several comparisons."
    )
    report.notes(_cautions(groups, values, measures))
    if unchanged:
        where = ', '.join(unchanged)
        report.text(f'Norm statistics did not change in {where}: pretrained_restored is the same as pretrained there.')
    _add_results(report, summaries)
    _add_trade_off(report, values, summaries, chosen[0], kept)
    report.heading('Learning curves')
    report.text('Lines are means over the runs of a method, bands one standard deviation.')
    curves = [Measure('loss'), *chosen, *([kept] if kept else [])]
    alt = f'Over training: {", ".join(map(str, curves))}. The last values are in the tables.'
    report.figure('curves', draw_curves(groups, curves), alt)
    _add_drift(report, groups)
    _add_predictions(report, groups, images, score_thr)
    settings = differing_settings(groups.items())
    report.heading('Settings that differed')
    if settings.empty:
        report.text('None, apart from seed and directory.')
    else:
        report.text('Apart from seed, directory and the like. - stands for a key that a config does not have.')
        report.table(settings.rename_axis('config key'), tuple(settings.columns))
    report.heading('Runs')
    listed = values.set_index('method')[['seed', 'iterations', 'work_dir']]
    report.table(listed.assign(seed=[NONE if pd.isna(seed) else seed for seed in listed['seed']]), ('work_dir',))
    summary = pd.concat({(m.key, m.unit): t for m, t in summaries.items()}, names=['measure', 'unit', 'method'])
    return report, dict(runs=values, summary=summary.reset_index(), settings=settings.rename_axis('key').reset_index())


def _cautions(groups: Groups, values: pd.DataFrame, measures: Sequence[Measure]) -> list[str]:
    """What limits the comparison of these runs."""
    notes = []
    for method, runs in groups.items():
        if len(runs) == 1:
            notes.append(f'{method}: n = 1, so there is no spread and no confidence interval.')
        if any(run.seed is None for run in runs):
            notes.append(f'{method}: without randomness.seed in the config, runs cannot be paired.')
        differing = differing_settings((str(run.work_dir), [run]) for run in runs)
        if not differing.empty:
            notes.append(f'{method}: its runs differ in more than the seed: {", ".join(differing.index)}.')
    by_methods = values.groupby('method', sort=False)['iterations']
    for method, lengths in by_methods:
        if lengths.nunique() > 1:
            counts = ', '.join(map(str, sorted(lengths)))
            notes.append(f'{method}: its runs have different lengths, {counts} iterations. Were all of them finished?')
    longest = by_methods.max()
    if longest.nunique() > 1:
        notes.append(f'Methods trained for {", ".join(f"{n} ({method})" for method, n in longest.items())} iterations.')
    missing: dict[tuple[str, ...], list[str]] = {}
    for name in map(str, measures):
        missing.setdefault(tuple(values[values[name].isna()]['work_dir']), []).append(name)
    return notes + [f'{", ".join(names)}: not logged by {", ".join(by)}.' for by, names in missing.items() if by]


def _add_results(report: Report, summaries: Summaries) -> None:
    """A table for each measure, and one for each state in which the features of the stages were measured."""
    report.heading('Results')
    states: dict[str, dict[str, pd.Series]] = {}
    for measure, table in summaries.items():
        if STAGE.search(measure.key):
            state, stage = STAGE.split(measure.key)
            spread = table['sd'].map(lambda sd: '' if pd.isna(sd) else f' ± {sd:.3f}')
            states.setdefault(state, {})[stage] = table['mean'].map('{:.3f}'.format) + spread
        else:
            report.heading(f'{measure}, {measure.direction}', 3)
            report.table(_summary_table(measure, table), ('against the first',))
    for state, stages in states.items():
        report.heading(f'{state}/cka, 0 to 1, similarity of the features of each stage: mean ± sd, higher is better', 3)
        report.table(pd.DataFrame(stages).rename_axis('method'))


def _summary_table(measure: Measure, table: pd.DataFrame) -> pd.DataFrame:
    def numbers(column: str, sign: str = '') -> list[str]:
        return [NONE if pd.isna(value) else f'{value:{sign}.{measure.digits}f}' for value in table[column]]

    ends = zip(numbers('low', '+'), numbers('high', '+'))
    shown = {
        'mean': numbers('mean'),
        'sd': numbers('sd'),
        'n': table['n'].tolist(),
        'difference': numbers('difference', '+'),
        '95 % interval': [NONE if low == NONE else f'{low} to {high}' for low, high in ends],
        'pairs': [NONE if pd.isna(pairs) else pairs for pairs in table['pairs']],
        'against the first': [verdict(row, measure) for _, row in table.iterrows()],
    }
    return pd.DataFrame(shown, index=table.index.rename('method'))


def _add_trade_off(
    report: Report, values: pd.DataFrame, summaries: Summaries, metric: Measure, kept: Measure | None
) -> None:
    report.heading('Learned against retained')
    if kept is None:
        remedy = 'PretrainedEvalHook in custom_hooks logs pretrained/agreement and others'
        report.text(f'Not drawn: no measure of retention was logged by all of these runs. {remedy}.')
        return
    report.text('Faint points are runs, large ones the mean of a method. Bars are one standard deviation.')
    means = zip(summaries[metric].index, summaries[metric]['mean'], summaries[kept]['mean'])
    alt = f'{metric} against {kept}. Means: ' + '; '.join(f'{name}: {y:.4g} at {x:.4g}' for name, y, x in means)
    report.figure('trade_off', draw_trade_off(values, metric, kept), alt)


def _add_drift(report: Report, groups: Groups) -> None:
    report.heading('Drift of every layer over training')
    logged = {m: runs for m, runs in groups.items() if any(run.curve('drift/layer_00').size for run in runs)}
    missing = [method for method in groups if method not in logged]
    if missing:
        report.text(f'Not logged by {", ".join(missing)}: DriftHook in custom_hooks logs it.')
    if logged:
        report.text('Mean over the runs of a method, on one colour scale, spaced by the square root.')
        final = {m: pd.concat([r.curve('drift/all').tail(1) for r in runs]).mean() for m, runs in logged.items()}
        alt = '; '.join(f'{method} {100 * value:.2f} %' for method, value in final.items())
        report.figure('drift', draw_drift(logged), f'Drift by layer and iteration. All layers at the end: {alt}')


def _add_predictions(report: Report, groups: Groups, images: int, score_thr: float) -> None:
    report.heading('Predictions on the same images')
    if not images:
        report.text('Not drawn: the number of images is 0.')
        return
    try:
        gallery = Gallery(next(iter(groups.values()))[0].cfg, images, score_thr)
        drawings = {'annotated': gallery.annotated()}
    except Exception as error:  # the data may be elsewhere, and data sets raise errors of any kind
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
        except Exception as error:  # of another model, unsafe, or with other data
            notes.append(f'{method}: not drawn, {run.checkpoint}: {type(error).__name__}: {error}')
    report.text(
        f'Number of images: {len(gallery.indices)}, spread evenly over the validation data. Of each method, the run '
        'with the lowest seed that has a checkpoint.'
        + (f' Objects with a score above {score_thr}.' if gallery.scope == 'mmdet' else '')
    )
    captions = {name: [caption for _, caption in drawn] for name, drawn in drawings.items()}
    if gallery.scope == 'mmpretrain':  # predictions are a table, not drawn into the images
        drawings = {'annotated': drawings['annotated']}
    spoken = '; '.join(f'{name}: {", ".join(captions[name])}' for name in drawings)
    report.figure('predictions', draw_predictions(gallery, drawings), f'One row per method. {spoken}')
    if gallery.scope == 'mmpretrain':
        columns = captions.pop('annotated')
        report.table(pd.DataFrame(captions, index=columns).T.rename_axis('method'), tuple(columns))
    report.notes(notes)


def write(report: Report, tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write the report, and its tables as CSV files."""
    report.write(folder)
    for name, table in tables.items():
        table.to_csv(folder / f'{name}.csv', index=False)
