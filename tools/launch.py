"""What train.py and test.py share: options every OpenMMLab user knows, and the differences between the libraries."""

import argparse
import ctypes
import inspect
import math
import os
import os.path as osp
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError

from mmengine.config import Config, DictAction
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS, Registry
from mmengine.runner import FlexibleRunner, Runner, loops
from mmengine.utils import import_modules_from_strings

from olor_mm.cli.packaged import config_file

# importing olor_mm also lets configs inherit from every library
from olor_mm.compat import use_cpu_batchnorm, use_cpu_processes
from olor_mm.engine import OLOROptimWrapperConstructor
from olor_mm.engine.loading import CheckpointError, guard_loading
from olor_mm.engine.optimizers import is_named
from olor_mm.engine.options import is_ours
from olor_mm.engine.settings import as_dict
from olor_mm.names import Parser, nearest

# what is read from a config beside the arguments of a runner
READ_FROM_CONFIG = (
    'runner_type',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'sync_bn',
    'custom_imports',
    'compile',
)
VARIABLES = dict(  # of configs/_base_, and what they become
    rollback='optim_wrapper.paramwise_cfg.rollback',
    olor_optim_wrapper='optim_wrapper',
    finetune_optim_wrapper='optim_wrapper',
    finetune_hooks='custom_hooks',
)

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class Settings(DictAction):
    """MMEngine's ``key=value`` pairs, with a message where there is no ``=``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'{option_string} takes KEY=VALUE, and {wrong[0]!r} has no =')
        for value in values:
            if not all(value.partition('=')[0].split('.')):
                parser.error(
                    f'{option_string} {value!r}: the key has an empty part; give names with one dot in between'
                )
            try:
                super().__call__(parser, namespace, [value], option_string)
            except AssertionError as error:
                parser.error(f'{option_string} {value!r}: {error}; give lists as key=[a,b], without white space')


def config_parser(description: str, **kwargs) -> Parser:
    """A parser with what any tool needs that reads a config."""
    parser = Parser(description=description, **kwargs)
    parser.add_argument(
        'config',
        help='config file path, or one of an installed library: mmdet::retinanet/NAME.py; its Python code is run',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        default={},
        help='override settings of the config, e.g. optim_wrapper.paramwise_cfg.rollback.max_level=0.02; lists as '
        'key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]", without white space',
    )
    parser.add_argument(
        '--trust-checkpoints',
        action='store_true',
        help='open checkpoints even if they could run code; by default only plain data is read from them',
    )
    return parser


def base_parser(description: str) -> Parser:
    """A parser with the options of both tools."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='directory for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    return parser


def existing(path: str) -> str:
    """A checkpoint of a command line: a path that is there, or the address of one.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    if '://' not in path and not osp.exists(path):
        raise argparse.ArgumentTypeError(f'{path!r} is not there; give the path of a checkpoint')
    return path


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's options, as the tools of mmdet, mmseg and mmpretrain would have it.

    Raises:
        SystemExit: If there is no such file.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    file = config_file(args.config)
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # a config is Python: it can fail in any way
        raise SystemExit(
            f'config {args.config!r} cannot be read: {summary(error)}. Give a file of Python settings'
        ) from error
    cfg.launcher = args.launcher
    if cfg.get('default_scope') == 'mmpretrain':
        # its stock configs leave these out and count on its own tools to add them
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name) is not None:
                for key, value in dict(collate_fn=dict(type='default_collate'), pin_memory=True).items():
                    cfg[name].setdefault(key, value)
    check_options(cfg, args.cfg_options)
    args.hints = [hint for key in args.cfg_options for hint in _near_settings(cfg, key)]
    try:
        cfg.merge_from_dict(args.cfg_options)
    except Exception as error:  # of a key that leads through a value that is no dict
        options = ' '.join(f'{key}={value!r}' for key, value in args.cfg_options.items())
        raise SystemExit(
            f'--cfg-options {options} does not fit into this config: {summary(error)}. Set keys within dicts, or '
            'entries of lists by their number'
        ) from error
    if any(key.startswith('custom_imports') for key in args.cfg_options):
        try:
            import_modules_from_strings(**cfg.custom_imports)
        except Exception as error:
            raise SystemExit(
                f'--cfg-options custom_imports={dict(cfg.custom_imports)!r} cannot be imported: {summary(error)}. Give '
                'names of installed modules'
            ) from error
    for key in not_numbers(cfg):
        raise SystemExit(f'{key}=nan is not a number; give one')
    if not isinstance(cfg.get('resume', False), bool):
        raise SystemExit(f'resume={cfg.resume!r} is not True or False; give one of them')
    check_constructor(cfg.get('optim_wrapper') or {})
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def not_numbers(section, key: str = '') -> Iterator[str]:
    """Places of a config where there is nan, which spoils weights at some later step; inf is a limit in many."""
    if isinstance(section, float) and math.isnan(section):
        yield key
    items = section.items() if isinstance(section, (dict, Config)) else ()
    if isinstance(section, (list, tuple)):
        items = enumerate(section)
    for name, value in items:
        yield from not_numbers(value, f'{key}.{name}'.lstrip('.'))


def check_options(cfg: Config, options: dict) -> None:
    """Refuse options of the command line that nothing would read.

    Raises:
        SystemExit: If one is no setting of a run and not in the config, or only a variable of our fragments.
    """
    known = {name for runner in (Runner, FlexibleRunner) for name in inspect.signature(runner).parameters}
    known |= set(READ_FROM_CONFIG)
    for key, value in options.items():
        root, _, rest = key.partition('.')
        if root in VARIABLES and root in cfg:
            right = f'{VARIABLES[root]}.{rest}'.rstrip('.')
            raise SystemExit(
                f'--cfg-options {key}={value!r}: {root!r} is a variable that the config has used when it was read, so '
                f'nothing would change; set {right}={value!r}'
            )
        if root not in known and root not in cfg:
            near = nearest(root, sorted(known))
            near = f'did you mean {near[0]!r}?' if near else f'take one of {", ".join(sorted(known & set(cfg)))}'
            raise SystemExit(f'--cfg-options {key}={value!r}: there is no setting {root!r}; {near}')
        if root not in known:
            message = (
                f'--cfg-options {key}={value!r}: {root!r} is no setting of a run; unless something reads it from the '
            )
            print(f'{message}config later, nothing changes: set where the config uses it', file=sys.stderr)


def _near_settings(cfg: Config, key: str) -> Iterator[str]:
    """What the config has in the place of a key that it does not have."""
    section = cfg
    for part in key.split('.'):
        if not isinstance(section, (dict, Config)):
            return
        if part not in section:
            yield from (f'Did you mean {near!r} instead of {part!r}?' for near in nearest(part, list(section)))
            return
        section = section[part]


def check_constructor(wrapper: dict) -> None:
    """Refuse a config that asks for rollback and would run without, or with new layers rolled back too.

    Raises:
        SystemExit: If ``constructor`` is missing.
    """
    example = "dict(optimizer=dict(type='AdamW', lr=1e-4))"
    wrapper = _section(wrapper, 'optim_wrapper', example)
    parts = [
        _section(wrapper.get(key) or {}, f'optim_wrapper.{key}', example) for key in ('paramwise_cfg', 'optimizer')
    ]
    asked = 'rollback' in parts[0] or 'rollback' in wrapper or str(parts[1].get('type')).endswith('OLOR')
    if asked and not is_named(wrapper.get('constructor'), OLOROptimWrapperConstructor):
        given, right = wrapper.get('constructor'), OLOROptimWrapperConstructor.__name__
        near = f'did you mean {right!r}?' if nearest(str(given), [right]) else f'set constructor={right!r}'
        raise SystemExit(
            f'optim_wrapper.constructor={given!r} takes no rollback, and ignores paramwise_cfg.rollback: layer-wise '
            f'rollback needs constructor={right!r}; {near}'
        )


def _section(value: dict, where: str, example: str) -> dict:
    try:
        return as_dict(value, where, example)
    except ValueError as error:
        raise SystemExit(str(error)) from error


@contextmanager
def guarded(args: argparse.Namespace) -> Iterator[None]:
    """Checkpoints are opened as plain data, unless they are trusted; what keeps a run from starting is said plainly.

    Raises:
        SystemExit: If the run cannot start, because of a checkpoint or a setting. What fails in the loop of a run is
            raised as it is.
    """
    guard_loading(args.trust_checkpoints)
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        in_loop = any(frame.filename == loops.__file__ and frame.name == 'run' for frame in frames)
        # settings all the same: what a hook does first, and what becomes of a learning rate
        in_loop = in_loop and not any(frame.name == 'before_train' for frame in frames)
        in_loop = in_loop and 'ParamSchedulerHook' not in str(error)
        if isinstance(error, CheckpointError) or (isinstance(error, ValueError) and is_ours(error)):
            raise SystemExit(str(error)) from error
        if in_loop:
            raise
        raise SystemExit(
            f'{shlex.join(sys.argv)} cannot be run: {summary(error)}. {remedy(error, args.hints)}'
        ) from error


def summary(error: Exception) -> str:
    """An error on one line, with the place it was raised at."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = ' '.join(str(error).split()).rstrip('.')
    return f'{type(error).__name__}: {said} ({osp.basename(place.filename)}:{place.lineno})'


def remedy(error: Exception, hints: list[str]) -> str:
    """What to do about an error of a library: the nearest right name, where it is about one; ``hints`` first."""
    if hints:
        return ' '.join(hints)
    if isinstance(error, (URLError, ConnectionError)):
        return 'Without a network, fetch the file elsewhere and give its path in load_from or init_cfg.checkpoint'
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    built = [f.f_locals for f in frames if re.fullmatch('build_.*from_cfg', f.f_code.co_name)]
    wrong, known = '', []
    if option := re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error)):
        wrong = option[2]
        cls = frames[-1].f_globals.get(option[1]) or (built and built[-1].get('obj_cls'))
        known = list(inspect.signature(cls).parameters) if cls else []
    elif (name := re.search(r'([\w.]+) is not in the .* registry', str(error))) and built:
        wrong = name[1].rpartition('.')[2]
        known = [name for registry in _family(built[-1]['registry']) for name in registry.module_dict]
    for near in nearest(wrong, known):
        return f'Did you mean {near!r} instead of {wrong!r}?'
    return 'Set something else there in the config or on the command line, or leave it out'


def _family(registry: Registry) -> Iterator[Registry]:
    while registry is not None:
        yield registry
        registry = registry.parent


def use_safe_checkpoints(cfg: Config) -> None:
    """Take the hook that loses no checkpoint in place of MMEngine's, with the same options."""
    hooks = dict(cfg.get('default_hooks') or {})
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if isinstance(checkpoint, dict) and checkpoint.get('type') in ('CheckpointHook', CheckpointHook):
        cfg.default_hooks = {**hooks, 'checkpoint': {**checkpoint, 'type': 'olor_mm.SafeCheckpointHook'}}


def end_with_launcher() -> None:
    """Have SIGTERM sent to this process if torchrun, which started it, is killed: it would train on unattended."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def build_runner(cfg: Config) -> Runner:
    """A Runner, or what ``runner_type`` names."""
    for launcher, variable, tool in (
        ('pytorch', 'RANK', 'torchrun: use tools/dist_train.sh CONFIG GPUS'),
        ('slurm', 'SLURM_PROCID', 'srun: use tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR'),
    ):
        if cfg.launcher == launcher and variable not in os.environ:
            raise SystemExit(f'--launcher {launcher} is for processes started by {tool}')
    if cfg.launcher == 'pytorch':
        end_with_launcher()
    use_cpu_processes(cfg)
    use_cpu_batchnorm(cfg)
    use_safe_checkpoints(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
