"""Reads finished runs from MMEngine's work_dirs: logged scalars, settings and seed. Needs pandas."""

import inspect
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from glob import glob
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:  # reading a config needs MMEngine, comparing runs does not
    from mmengine.config import Config

# which run it is and how it was started, not what was trained
APART = ('work_dir', 'randomness.seed', 'resume', 'launcher', 'experiment_name', 'log_level', 'visualizer')
RESTORED = 'pretrained_restored'  # measured with the pre-trained norm statistics


class RunError(ValueError):
    """A run that cannot be read or compared; the message names the work_dir or option and the remedy."""


def current_key(key: str) -> str:
    """The key of a scalar, with ``pretrained`` where olor_mm 0.1 logged ``upstream``."""
    return re.sub(r'^upstream(?=/|_restored/)', 'pretrained', key)


@dataclass
class Run:
    """One training."""

    work_dir: Path
    cfg: 'Config'  # of its last start
    scalars: pd.DataFrame  # columns axis ('iteration', or 'epoch' of validations counted in epochs), key, step, value
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
        # another directory belongs to another run, unless CheckpointHook has an `out_dir`, with a folder for each run
        is_own = named.parent.name == self.work_dir.resolve().name
        return next((file for file in (self.work_dir / named.name, *[named] * is_own) if file.is_file()), None)

    def curve(self, key: str) -> pd.Series:
        """Values of a scalar by step; empty if it was not logged."""
        return self.scalars[self.scalars['key'] == key].set_index('step')['value']

    def axes_of(self, key: str) -> list[str]:
        """The axis of a scalar, 'iteration' or 'epoch'."""
        return self.scalars[self.scalars['key'] == key]['axis'].unique().tolist()

    def settings(self) -> dict[str, object]:
        """The settings of the training, ``a.b.0.c`` to value, without those in :data:`APART`."""
        cfg = self.cfg.to_dict()
        read = _keys_of_runners()
        flat = _flat({key: value for key, value in cfg.items() if key in read and key not in APART})
        apart = (*APART, 'load_from') if cfg.get('resume') else APART  # then it names the resumed checkpoint
        return {key: value for key, value in flat if key not in apart}


@cache
def _keys_of_runners() -> set[str]:
    """The keys of a config that a run reads. All others are variables that these were made of."""
    from mmengine.runner import FlexibleRunner, Runner

    parameters = {*inspect.signature(Runner).parameters, *inspect.signature(FlexibleRunner).parameters}
    return parameters | {'custom_imports', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn'}


def _flat(value: Any, prefix: str = '') -> Iterable[tuple[str, object]]:
    if isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f'{prefix}{key}.')
    else:
        yield prefix[:-1], 'PretrainedEvalHook' if value == 'UpstreamEvalHook' else value  # renamed after 0.1


def read_run(work_dir: str | Path) -> Run:
    """The run in a work_dir. After a resume, values that were logged again replace the earlier ones."""
    from mmengine.config import Config

    work_dir = Path(work_dir)
    logs = [(file, rows) for file in sorted(work_dir.glob('*/vis_data/scalars.json')) if (rows := log_rows(file))]
    if not logs:
        needed = 'TIMESTAMP/vis_data/scalars.json'
        raise RunError(f'{work_dir} has no logged scalars ({needed}); give the --work-dir of a training')
    last = logs[-1][0].with_name('config.py')
    config = last if last.is_file() else next(iter(work_dir.glob('*.py')), None)
    if not config:
        raise RunError(f'{work_dir} has no config, neither {last} nor a .py file: copy the config of the training')
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
    """Rows of a ``scalars.json``, without an incomplete last one; a damaged row is a RunError."""
    lines = file.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):  # the last one is incomplete after a kill, or while the run writes it
                raise RunError(f'{file}, line {number} is damaged: {error}; mend or delete the line') from error
    return rows


def _frame(rows: list[dict], validation_axis: str) -> pd.DataFrame:
    values = []
    for row in rows:
        row = {current_key(key): value for key, value in row.items()}
        # hooks log by iteration, as training does; evaluators by what log_metric_by_epoch says
        by_hooks = all(key == 'step' or key.startswith(('drift/', 'pretrained')) for key in row)
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
    """Runs named by ``LABEL=GLOB``, or ``GLOB``: then those whose settings differ in the seed alone are one method."""
    found: dict[Path, Run] = {}
    for pattern in patterns:
        label, equals, path = pattern.partition('=')
        if not equals or glob(pattern):  # a path may have = in it as well
            label, path = '', pattern
        elif not (label and path):
            raise RunError(f'{pattern!r} is not LABEL=GLOB, such as OLOR=work_dirs/olor_*')
        directories = [Path(name) for name in sorted(glob(path)) if Path(name).is_dir()]
        if not directories:
            raise RunError(f'{pattern!r}: there is no directory {path!r} in {Path.cwd()}; name work_dirs of trainings')
        for directory in directories:
            if directory.resolve() in found:
                raise RunError(f'{pattern!r}: {directory} was named before; name each run once')
            found[directory.resolve()] = replace(read_run(directory), method=label)
    runs = list(found.values())
    _name_methods([run for run in runs if not run.method], taken={run.method for run in runs})
    in_order = [sorted(group, key=lambda run: (run.seed is None, run.seed)) for group in by_method(runs).values()]
    for first, second in (pair for group in in_order for pair in pairwise(group)):
        if first.seed is not None and first.seed == second.seed:
            both = f'{first.work_dir} and {second.work_dir} are both seed {first.seed} of {first.method!r}'
            raise RunError(f'{both}: name one of the two, or give them different labels')
    return [run for group in in_order for run in group]


def _name_methods(runs: list[Run], taken: set[str]) -> None:
    """Name each run by its config file, and where several methods share one, also by the settings that differ."""
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
    """Runs of each method, in the order of the runs."""
    runs = list(runs)
    return {method: [run for run in runs if run.method == method] for method in dict.fromkeys(r.method for r in runs)}


def fill_restored(runs: Sequence[Run]) -> list[str]:
    """Copy ``pretrained`` to ``pretrained_restored`` in runs that lack it, if others have it; return their folders."""
    # PretrainedEvalHook logs it only where running statistics of norm layers changed
    lacking = [run for run in runs if not run.scalars['key'].str.startswith(f'{RESTORED}/').any()]
    filled = []
    for run in lacking if len(lacking) < len(runs) else []:
        same = run.scalars[run.scalars['key'].str.startswith('pretrained/')]
        if len(same):
            same = same.assign(key=same['key'].str.replace('pretrained/', f'{RESTORED}/'))
            run.scalars = pd.concat([run.scalars, same], ignore_index=True)
            filled.append(str(run.work_dir))
    return filled


def differing_settings(groups: Iterable[tuple[str, list[Run]]]) -> pd.DataFrame:
    """Settings that differ: config key by group, as text; `` | `` separates values of a group, ``-`` is none."""
    columns = {
        name: [{key: json.dumps(value, default=str) for key, value in run.settings().items()} for run in runs]
        for name, runs in groups
    }
    rows = {}
    for key in dict.fromkeys(key for settings in columns.values() for setting in settings for key in setting):
        found = [list(dict.fromkeys(setting.get(key, '-') for setting in settings)) for settings in columns.values()]
        if found[0][1:] or any(values != found[0] for values in found):
            rows[key] = [' | '.join(values) for values in found]
    return pd.DataFrame(rows.values(), index=list(rows), columns=list(columns))
