"""Evaluate a checkpoint with any config of mmdet, mmseg or mmpretrain: python tools/test.py CONFIG CHECKPOINT"""

import os.path as osp
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook

from launch import base_parser, build_runner, existing, guarded, load_config
from olor_mm.compat import unwrapped
from olor_mm.engine.loading import CheckpointError


class RequireWeights(Hook):
    """Ends an evaluation of weights that the checkpoint does not have: MMEngine warns, and evaluates random ones."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
        own = unwrapped(runner.model).state_dict()
        theirs = [name.removeprefix('module.') for name, value in weights.items() if isinstance(value, torch.Tensor)]
        found = own.keys() & set(theirs)
        if 2 * len(found) < len(own):
            raise CheckpointError(
                f'{runner._load_from!r} has {len(found)} of the {len(own)} weights of this model, and not '
                f'{next(name for name in own if name not in found)!r}: those in it are like {theirs[:3]!r}; give a '
                'checkpoint of this model'
            )


def show_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turn on the library's own visualization hook.

    Raises:
        SystemExit: If the config has none.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise SystemExit(
            '--show and --show-dir need default_hooks.visualization in the config: set it, or leave them out'
        )
    hook.update(show=show, wait_time=wait_time, interval=1)  # stock configs draw every 50th image
    folder = dict(mmpretrain='out_dir', mmdet='test_out_dir').get(cfg.default_scope)
    hook['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True
    if show_dir is not None and folder is not None:
        hook[folder] = show_dir
    elif show_dir is not None:
        cfg.visualizer.update(save_dir=show_dir)


def main() -> None:
    parser = base_parser('Evaluate a checkpoint')
    parser.add_argument('checkpoint', type=existing, help='checkpoint file')
    parser.add_argument('--out', help='dump predictions to this pickle file (.pkl)')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='save images with predictions drawn here (under the work directory)')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between two windows')
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out!r}: give a file that ends with .pkl or .pickle')
    if args.out is not None and not osp.isdir(osp.dirname(args.out) or '.'):  # before the evaluation, not after it
        parser.error(f'--out {args.out!r} cannot be written: its directory is not there; make it, or give another')
    folder = Path(args.show_dir or '.')
    if not next(parent for parent in (folder, *folder.parents) if parent.exists()).is_dir():
        parser.error(f'--show-dir {args.show_dir!r} lies below a file; give another directory')
    if not args.wait_time >= 0:
        parser.error(f'--wait-time {args.wait_time!r} is no number of seconds; give 0 or more')
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        show_predictions(cfg, args.show, args.show_dir, args.wait_time)
    with guarded(args):
        runner = build_runner(cfg)
        runner.register_hook(RequireWeights())
        if args.out is not None:
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        runner.test()


if __name__ == '__main__':
    main()
