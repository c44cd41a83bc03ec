"""Finished runs as MMEngine left them in their work_dirs: logged scalars, settings and seed. Needs pandas."""

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from glob import glob
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

# which run it is and how it was started, not what was trained
APART = ('work_dir', 'randomness.seed', 'resume', 'launcher', 'experiment_name', 'log_level', 'visualizer')
# what a run reads of its config; all else in one are variables that these were made of
READ = {
    *inspect.signature(Runner).parameters,
    *inspect.signature(FlexibleRunner).parameters,
    *('custom_imports', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn'),
}


class RunError(ValueError):
    """Runs that cannot be read or compared; the message names the work_dir or option and what to do."""


@dataclass
class Run:
    """One training.

    Args:
        work_dir (Path): Its work_dir.
        cfg (Config): The config it was last started with.
        scalars (DataFrame): What was logged, a row a value: ``axis`` ('iteration', or 'epoch' where validations are
            counted in epochs), ``key``, ``step``, ``value``.
        method (str): What it is an example of. Defaults to ''.
    """

    work_dir: Path
    cfg: Config
    scalars: pd.DataFrame
    method: str = ''

    @property
    def seed(self) -> int | None:
        """``randomness.seed`` of its config."""
        return (self.cfg.get('randomness') or {}).get('seed')

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, also of a work_dir that was moved; None if there is none."""
        note = self.work_dir / 'last_checkpoint'
        if not note.is_file():
            return None
        named = Path(note.read_text().strip())
        # elsewhere it is that of another run, unless CheckpointHook was given an `out_dir`, which has one for each
        is_own = named.parent.name == self.work_dir.resolve().name
        return next((file for file in (self.work_dir / named.name, *[named] * is_own) if file.is_file()), None)

    def curve(self, key: str) -> pd.Series:
        """Values of a scalar by step; empty if it was not logged."""
        return self.scalars[self.scalars['key'] == key].set_index('step')['value']

    def axes_of(self, key: str) -> list[str]:
        """What a scalar was logged over, 'iteration' or 'epoch'."""
        return self.scalars[self.scalars['key'] == key]['axis'].unique().tolist()

    def settings(self) -> dict[str, object]:
        """What was trained and how, ``a.b.0.c`` to value, without what is :data:`APART`."""
        cfg = self.cfg.to_dict()
        flat = dict(_flat({key: value for key, value in cfg.items() if key in READ and key not in APART}))
        apart = [*APART, *(['load_from'] if cfg.get('resume') else [])]  # then it names what was gone on with
        return {key: value for key, value in flat.items() if key not in apart}


def _flat(value: Any, prefix: str = '') -> Iterable[tuple[str, object]]:
    nested = isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value)
    if (isinstance(value, dict) and value) or nested:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f'{prefix}{key}.')
    else:
        yield prefix[:-1], list(value) if isinstance(value, tuple) else value


def read_run(work_dir: str | Path) -> Run:
    """A run from its work_dir. Where it was resumed, what was logged again replaces what it had logged before.

    Raises:
        RunError: If nothing was logged, the log is damaged or there is no config.
    """
    work_dir = Path(work_dir)
    logs = [(file, log_rows(file)) for file in sorted(work_dir.glob('*/vis_data/scalars.json'))]
    logs = [(file, rows) for file, rows in logs if rows]
    if not logs:
        raise RunError(
            f'{work_dir} has no logged scalars (TIMESTAMP/vis_data/scalars.json): it is no work_dir of a training by '
            'MMEngine, or the training has not come to its first log line; name the directory given by --work-dir'
        )
    last = logs[-1][0].with_name('config.py')
    config = last if last.is_file() else next(iter(work_dir.glob('*.py')), None)
    if config is None:
        raise RunError(f'{work_dir} has no config, neither {last} nor a .py file: copy that of the training there')
    try:
        cfg = Config.fromfile(config)
    except Exception as error:  # a config is Python: it can fail in any way
        raise RunError(f'{config} cannot be read: {type(error).__name__}: {error}') from error
    by_epoch = ((cfg.get('default_hooks') or {}).get('logger') or {}).get('log_metric_by_epoch', True)
    scalars = pd.DataFrame()
    for _, rows in logs:
        scalars = _continued(scalars, _frame(rows, 'epoch' if by_epoch else 'iteration'))
    return Run(work_dir, cfg, scalars.drop_duplicates(['axis', 'key', 'step'], keep='last').reset_index(drop=True))


def log_rows(file: Path) -> list[dict]:
    """Rows of a ``scalars.json``; one that is just being written at its end is left out.

    Raises:
        RunError: If another is damaged.
    """
    lines = file.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):  # the last one may be cut off by a kill
                raise RunError(f'{file}, line {number} is damaged: {error}; mend or delete the line') from error
    return rows


def _frame(rows: list[dict], validation_axis: str) -> pd.DataFrame:
    values = []
    for row in rows:
        # hooks log by iteration, as training does; evaluators by what log_metric_by_epoch says
        by_hooks = all(key == 'step' or key.startswith(('drift/', 'upstream')) for key in row)
        axis = 'iteration' if 'loss' in row or by_hooks else validation_axis
        values += [
            (axis, key, row['step'], float(value))
            for key, value in row.items()
            if key != 'step' and isinstance(value, Real) and not isinstance(value, bool)
        ]
    return pd.DataFrame(values, columns=['axis', 'key', 'step', 'value'])


def _continued(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    if before.empty:
        return after
    first, again = (frame[frame['key'] == 'loss']['step'].min() for frame in (before, after))
    if again <= first:
        return after  # not resumed, but started anew
    starts = after.groupby('axis')['step'].min()
    kept = before['step'] < before['axis'].map(starts).fillna(float('inf'))
    return pd.concat([before[kept], after], ignore_index=True)


def find_runs(patterns: Iterable[str]) -> list[Run]:
    """Runs named by ``LABEL=GLOB``, or by ``GLOB``; those without a label go by settings that differ in the seed alone.

    Raises:
        RunError: If a pattern finds nothing, a run is found twice, or two of a method have one seed.
    """
    found: dict[Path, Run] = {}
    for pattern in patterns:
        label, equals, path = pattern.partition('=')
        if not equals or glob(pattern):  # a path may have = in it as well
            label, path = '', pattern
        elif not (label and path):
            raise RunError(f'{pattern!r}: it takes LABEL=GLOB, such as OLOR=work_dirs/olor_*')
        directories = [Path(name) for name in sorted(glob(path)) if Path(name).is_dir()]
        if not directories:
            raise RunError(f'{pattern!r}: there is no directory {path!r} in {Path.cwd()}; name work_dirs of trainings')
        for directory in directories:
            if directory.resolve() in found:
                raise RunError(f'{pattern!r}: {directory} was named before; a run can be of one method only')
            found[directory.resolve()] = read_run(directory)
            found[directory.resolve()].method = label
    runs = list(found.values())
    _name_methods([run for run in runs if not run.method], taken={run.method for run in runs})
    seen: dict[tuple, Run] = {}
    for run in runs:
        other = seen.setdefault((run.method, run.seed), run)
        if run.seed is not None and other is not run:
            raise RunError(
                f'{other.work_dir} and {run.work_dir} are both seed {run.seed} of {run.method!r}: name one of the two, '
                'or give them different labels'
            )
    order = list(dict.fromkeys(run.method for run in runs))
    return sorted(runs, key=lambda run: (order.index(run.method), run.seed is None, run.seed or 0))


def _name_methods(runs: list[Run], taken: set[str]) -> None:
    """Name each run by its config file, and by the settings that differ where one file was used for several methods."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings(), sort_keys=True, default=str), []).append(run)
    stems = [next((file.stem for file in group[0].work_dir.glob('*.py')), '') for group in groups.values()]
    for stem, group in zip(stems, groups.values()):
        name = stem or group[0].work_dir.name
        if stems.count(stem) > 1:
            rivals = [other[0] for other, theirs in zip(groups.values(), stems) if theirs == stem]
            differing = differing_settings([(run.work_dir.name, [run]) for run in rivals])[group[0].work_dir.name]
            named = ', '.join(f'{key.rpartition(".")[2]}={value}' for key, value in differing.items())
            name = f'{stem} ({named})' if len(differing) <= 3 else group[0].work_dir.name
        while name in taken:
            name += "'"
        taken.add(name)
        for run in group:
            run.method = name


def by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs of each method, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    return groups


def differing_settings(groups: Iterable[tuple[str, list[Run]]]) -> pd.DataFrame:
    """Settings that are not the same in all runs: config key (rows) by name of the group (columns), as text.

    Values that differ within a group are separated by `` | ``; a key that a config does not have is ``-``.
    """
    columns = {
        name: [{key: json.dumps(value, default=str) for key, value in run.settings().items()} for run in runs]
        for name, runs in groups
    }
    keys = dict.fromkeys(key for settings in columns.values() for setting in settings for key in setting)
    table = pd.DataFrame(
        {
            name: [' | '.join(dict.fromkeys(setting.get(key, '-') for setting in settings)) for key in keys]
            for name, settings in columns.items()
        },
        index=list(keys),
    )
    first = table.iloc[:, 0]
    return table[~table.eq(first, axis=0).all(axis=1) | first.str.contains(' | ', regex=False)]
