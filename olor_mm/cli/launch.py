"""What train and test share: the command line, reading a config, and a Runner for all libraries and machines."""

import argparse
import ctypes
import inspect
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from mmengine.config import Config, DictAction
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner, loops
from mmengine.utils import import_modules_from_strings

from ..durable.loading import CheckpointError, guard_loading
from ..engine import OLOROptimWrapperConstructor
from ..engine.budgets import TellBudgetUse
from ..engine.optimizers import is_named
from ..names import nearest
from .machine import use_cpu_batchnorm, use_cpu_processes
from .packaged import PACKAGE, config_file
from .parser import Parser, add_trust

# what is read from a config beside the arguments of a Runner
ALSO_READ = {'runner_type', 'find_unused_parameters', 'model_wrapper_cfg', 'sync_bn', 'custom_imports', 'compile'}
VARIABLES = dict(  # of configs/_base_, and the settings made of them
    rollback='optim_wrapper.paramwise_cfg.rollback',
    olor_optim_wrapper='optim_wrapper',
    finetune_optim_wrapper='optim_wrapper',
    finetune_hooks='custom_hooks',
)


class Settings(DictAction):
    """MMEngine's ``KEY=VALUE`` pairs; those that cannot be read are errors of the command line."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            try:
                super().__call__(parser, namespace, [value], option_string)
            except (ValueError, AssertionError) as error:
                parser.error(f'{option_string} {value!r}: {error}; give KEY=VALUE, lists as KEY=[a,b] without spaces')


def config_parser(description: str, **kwargs) -> Parser:
    """A parser with the options of all commands that read a config."""
    parser = Parser(description=description, **kwargs)
    parser.add_argument('config', help='config file, or mmdet::PATH of an installed library; its Python code is run')
    key = 'optim_wrapper.paramwise_cfg.rollback.max_level'
    how = f'override settings of the config, e.g. {key}=0.02; lists as key=[a,b], without white space'
    parser.add_argument('--cfg-options', nargs='+', action=Settings, default={}, help=how)
    add_trust(parser)
    return parser


def base_parser(description: str) -> Parser:
    """A parser with the options that train and test share."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='directory for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    return parser


def existing(path: str) -> str:
    """A checkpoint of a command line: a path or a URL."""
    if '://' not in path and not os.path.exists(path):
        raise argparse.ArgumentTypeError(f'{path!r} is not there; give the path of a checkpoint')
    return path


def load_config(args: argparse.Namespace) -> Config:
    """The config with the options of the command line, as the tools of mmdet, mmseg and mmpretrain read it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    file = config_file(args.config)
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # a config is Python and can raise anything
        raise SystemExit(f'config {args.config!r} cannot be read: {summary(error)}. Give a file of settings') from error
    cfg.launcher = args.launcher
    if cfg.get('default_scope') == 'mmpretrain':
        # its stock configs leave these out and count on its own tools to add them
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name) is not None:
                cfg[name].setdefault('collate_fn', dict(type='default_collate'))
                cfg[name].setdefault('pin_memory', True)
    check_options(cfg, args.cfg_options)
    args.hints = [hint for key in args.cfg_options for hint in _near_settings(cfg, key)]
    try:
        cfg.merge_from_dict(args.cfg_options)
        if any(key.startswith('custom_imports') for key in args.cfg_options):
            import_modules_from_strings(**cfg.custom_imports)
    except Exception as error:  # of a key within a value that is no dict, or of an imported module
        options = ' '.join(f'{key}={value!r}' for key, value in args.cfg_options.items())
        raise SystemExit(
            f'--cfg-options {options} cannot be used: {summary(error)}. Give keys within dicts, numbers within lists, '
            'and names of installed modules'
        ) from error
    check_constructor(cfg.get('optim_wrapper'))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(args.config).stem)
    return cfg


def check_options(cfg: Config, options: dict) -> None:
    """Refuse options of the command line that nothing would read."""
    known = {name for runner in (Runner, FlexibleRunner) for name in inspect.signature(runner).parameters}
    known |= ALSO_READ
    for key, value in options.items():
        option, (root, _, rest) = f'--cfg-options {key}={value!r}', key.partition('.')
        if root in VARIABLES and root in cfg:
            right = f'{VARIABLES[root]}.{rest}'.rstrip('.')
            raise SystemExit(f'{option}: {root!r} has been used when the config was read; set {right}={value!r}')
        if root not in known and root not in cfg:
            near = nearest(root, known)
            hint = f'did you mean {near[0]!r}?' if near else f'take one of {", ".join(sorted(known & set(cfg)))}'
            raise SystemExit(f'{option}: there is no setting {root!r}; {hint}')
        if root not in known:
            print(f'{option}: {root!r} is no setting of a run; set it where the config uses it', file=sys.stderr)


def _near_settings(cfg: Config, key: str) -> Iterator[str]:
    """A hint at the name in the config that a key of the command line resembles, if it is not there itself."""
    section = cfg
    for part in key.split('.'):
        if not isinstance(section, (dict, Config)):
            return
        if part not in section:
            yield from (f'Did you mean {near!r} instead of {part!r}?' for near in nearest(part, list(section)))
            return
        section = section[part]


def check_constructor(wrapper: dict | None) -> None:
    """Refuse a config that asks for rollback, and would run without it or roll back new layers too."""
    wrapper = wrapper if isinstance(wrapper, dict) else {}
    sections = [wrapper, wrapper.get('paramwise_cfg'), wrapper.get('optimizer')]
    sections = [section for section in sections if isinstance(section, dict)]
    names = [getattr(section.get('type'), '__name__', section.get('type')) for section in sections]
    asked = any('rollback' in section for section in sections) or any(str(name).endswith('OLOR') for name in names)
    if asked and not is_named(wrapper.get('constructor'), OLOROptimWrapperConstructor):
        right = OLOROptimWrapperConstructor.__name__
        given = f'optim_wrapper.constructor={wrapper.get("constructor")!r}'
        raise SystemExit(f'{given} ignores paramwise_cfg.rollback: set constructor={right!r}')


@contextmanager
def guarded(args: argparse.Namespace) -> Iterator[None]:
    """Open checkpoints as plain data, unless they are trusted, and print what keeps a run from starting."""
    guard_loading(args.trust_checkpoints)
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        is_ours = frames[-1].filename.startswith(f'{PACKAGE}{os.sep}')
        if isinstance(error, CheckpointError) or (isinstance(error, ValueError) and is_ours):
            raise SystemExit(' '.join([str(error), *(args.hints if error.__cause__ is not None else ())])) from error
        in_loop = any(frame.filename == loops.__file__ and frame.name == 'run' for frame in frames)
        if in_loop and not any(frame.name == 'before_train' for frame in frames):  # hooks look at their settings there
            raise
        remedy = 'Set something else there in the config or on the command line, or leave it out'
        if isinstance(error, (URLError, ConnectionError)):
            remedy = 'Without a network, give the path of the file in load_from or init_cfg.checkpoint'
        command = f'{sys.argv[0]} {shlex.join(sys.argv[1:])}'
        raise SystemExit(f'{command} cannot be run: {summary(error)}. {" ".join(args.hints) or remedy}') from error


def summary(error: Exception) -> str:
    """An error on one line, with the place it was raised at."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = ' '.join(str(error).split()).rstrip('.')
    return f'{type(error).__name__}: {said} ({os.path.basename(place.filename)}:{place.lineno})'


def use_safe_checkpoints(cfg: Config) -> None:
    """Replace MMEngine's checkpoint hook by the one that loses no checkpoint, with the same options."""
    hooks = dict(cfg.get('default_hooks') or {})
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if isinstance(checkpoint, dict) and checkpoint.get('type') in ('CheckpointHook', CheckpointHook):
        cfg.default_hooks = {**hooks, 'checkpoint': {**checkpoint, 'type': 'olor_mm.SafeCheckpointHook'}}


def end_with_parent() -> None:
    """End this process when torchrun is killed, which would leave it to go on unattended."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


def build_runner(cfg: Config) -> Runner:
    """A Runner, or what ``runner_type`` names."""
    for launcher, variable, tool in (
        ('pytorch', 'RANK', 'torchrun: use tools/dist_train.sh CONFIG GPUS'),
        ('slurm', 'SLURM_PROCID', 'srun: use tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR'),
    ):
        if cfg.launcher == launcher and variable not in os.environ:
            raise SystemExit(f'--launcher {launcher} is for processes started by {tool}')
    if cfg.launcher == 'pytorch':
        end_with_parent()
    use_cpu_processes(cfg)
    use_cpu_batchnorm(cfg)
    use_safe_checkpoints(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(TellBudgetUse())
    return runner
