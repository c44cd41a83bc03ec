"""Evaluate a checkpoint with any config of mmdet, mmseg or mmpretrain: python tools/test.py CONFIG CHECKPOINT"""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from mmengine.hooks import Hook

from ..durable.loading import CheckpointError
from ..engine import PretrainedStatisticsHook
from ..layers import unwrapped
from .launch import base_parser, build_runner, existing, guarded, load_config


class RequireWeights(Hook):
    """Refuses a checkpoint with less than half of the model's weights: MMEngine would warn, and use random ones."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
        own = unwrapped(runner.model).state_dict()
        theirs = [name.removeprefix('module.') for name, value in weights.items() if isinstance(value, torch.Tensor)]
        missing = [name for name in own if name not in set(theirs)]
        if 2 * len(missing) > len(own):
            raise CheckpointError(
                f'{runner._load_from!r} lacks {len(missing)} of the {len(own)} weights of this model, like '
                f'{missing[0]!r}; its own have names like {theirs[:3]!r}; give a checkpoint of this model'
            )


def show_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turn on the library's own visualization hook."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise SystemExit('--show and --show-dir need default_hooks.visualization in the config: set it')
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
    parser.add_argument('--out', type=Path, help='dump predictions to this pickle file (.pkl)')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='save images with predictions drawn here (under the work directory)')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between two windows')
    how = 'test the old task: with the statistics of norm layers that the pre-trained model had'
    parser.add_argument('--pretrained-statistics', action='store_true', help=how)
    args = parser.parse_args()
    if args.out is not None and (args.out.suffix not in ('.pkl', '.pickle') or not args.out.parent.is_dir()):
        parser.error(f'--out {str(args.out)!r}: give a .pkl file in a directory that is there')
    folder = Path(args.show_dir or '.')
    if any(parent.is_file() for parent in (folder, *folder.parents)):
        parser.error(f'--show-dir {args.show_dir!r} is a file, or lies below one; give a directory')
    if not args.wait_time >= 0:
        parser.error(f'--wait-time {args.wait_time}: give 0 seconds or more')
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        show_predictions(cfg, args.show, args.show_dir, args.wait_time)
    with guarded(args):
        runner = build_runner(cfg)
        runner.register_hook(RequireWeights())
        if args.pretrained_statistics:
            runner.register_hook(PretrainedStatisticsHook())
        if args.out is not None:
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=str(args.out)))
        runner.test()
