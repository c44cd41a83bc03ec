"""What train.py and test.py share: options every OpenMMLab user knows, and the differences between the libraries."""

import argparse
import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from mmengine.config import Config, DictAction
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from olor_mm.compat import use_cpu_processes  # importing olor_mm also lets configs inherit from every library
from olor_mm.engine.loading import CheckpointError, guard_loading


class Settings(DictAction):
    """MMEngine's ``key=value`` pairs, with a message where there is no ``=``."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        wrong = [value for value in values if '=' not in value]
        if wrong:
            parser.error(f'{option_string} takes KEY=VALUE, and {wrong[0]!r} has no =')
        super().__call__(parser, namespace, values, option_string)


def config_parser(description: str, **kwargs) -> argparse.ArgumentParser:
    """A parser with what any tool needs that reads a config."""
    parser = argparse.ArgumentParser(description=description, **kwargs)
    parser.add_argument('config', help='config file path, or one of an installed library: mmdet::retinanet/NAME.py')
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


def base_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options of both tools."""
    parser = config_parser(description)
    parser.add_argument('--work-dir', help='directory for logs and checkpoints (default: work_dirs/NAME_OF_CONFIG)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    return parser


def config_file(name: str) -> str:
    """The file of a config; ``mmdet::PATH`` is one that an installed library brought along, as in ``_base_``.

    Raises:
        SystemExit: If there is no such file.
    """
    file = name
    library, is_stock, path = name.partition('::')
    if is_stock:
        spec = find_spec(library) if library.isidentifier() else None
        if spec is None or spec.origin is None:
            raise SystemExit(f'config {name!r}: {library!r} is not installed; it is mmdet::, mmseg:: or mmpretrain::')
        file = osp.join(osp.dirname(spec.origin), '.mim', 'configs', path)
    if not osp.isfile(file):
        raise SystemExit(f'config {name!r} is not a file' + f': there is no {file}' * (file != name))
    return file


def load_config(args: argparse.Namespace) -> Config:
    """The config with the command line's options, as the tools of mmdet, mmseg and mmpretrain would have it.

    Raises:
        SystemExit: If there is no such file.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(config_file(args.config))
    cfg.launcher = args.launcher
    if cfg.get('default_scope') == 'mmpretrain':
        # its stock configs leave these out and count on its own tools to add them
        for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            if cfg.get(name) is not None:
                for key, value in dict(collate_fn=dict(type='default_collate'), pin_memory=True).items():
                    cfg[name].setdefault(key, value)
    cfg.merge_from_dict(args.cfg_options)
    check_constructor(cfg.get('optim_wrapper') or {})
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def check_constructor(wrapper: dict) -> None:
    """Refuse a config that asks for rollback and would run without, or with new layers rolled back too.

    Raises:
        SystemExit: If ``constructor`` is missing.
    """
    asked = 'rollback' in (wrapper.get('paramwise_cfg') or {}) or 'rollback' in wrapper
    asked = asked or str((wrapper.get('optimizer') or {}).get('type')).endswith('OLOR')
    if asked and 'OLOROptimWrapperConstructor' not in str(wrapper.get('constructor')):
        raise SystemExit(
            f'optim_wrapper.constructor={wrapper.get("constructor")!r}: layer-wise rollback needs '
            "constructor='OLOROptimWrapperConstructor'; MMEngine's default one ignores paramwise_cfg.rollback"
        )


@contextmanager
def guarded(args: argparse.Namespace) -> Iterator[None]:
    """Checkpoints are opened as plain data, unless they are trusted; one that cannot be used ends the tool plainly.

    Raises:
        SystemExit: If a checkpoint cannot be used.
    """
    guard_loading(args.trust_checkpoints)
    try:
        yield
    except CheckpointError as error:
        raise SystemExit(str(error)) from error


def use_safe_checkpoints(cfg: Config) -> None:
    """Take the hook that loses no checkpoint in place of MMEngine's, with the same options."""
    hooks = dict(cfg.get('default_hooks') or {})
    checkpoint = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
    if isinstance(checkpoint, dict) and checkpoint.get('type') in ('CheckpointHook', CheckpointHook):
        cfg.default_hooks = {**hooks, 'checkpoint': {**checkpoint, 'type': 'olor_mm.SafeCheckpointHook'}}


def build_runner(cfg: Config) -> Runner:
    """A Runner, or what ``runner_type`` names."""
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise SystemExit('--launcher pytorch is for processes started by torchrun: use tools/dist_train.sh CONFIG GPUS')
    use_cpu_processes(cfg)
    use_safe_checkpoints(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
