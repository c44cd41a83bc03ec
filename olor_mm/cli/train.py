"""Train any config of mmdet, mmseg or mmpretrain: python tools/train.py CONFIG [options]"""

import os

from mmengine.device import get_device

from .launch import base_parser, build_runner, existing, guarded, load_config


def main() -> None:
    parser = base_parser('Train a model of mmdet, mmseg or mmpretrain')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale lr with the batch size')
    how = 'resume from this checkpoint; without a path, from the latest one in the work directory'
    parser.add_argument(
        '--resume', nargs='?', const='auto', type=lambda path: path if path == 'auto' else existing(path), help=how
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    args = parser.parse_args()
    cfg = load_config(args)
    if args.amp:
        if get_device() == 'cpu':
            raise SystemExit('--amp needs an accelerator: MMEngine has no AmpOptimWrapper on the CPU; leave it out')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise SystemExit('--auto-scale-lr: set auto_scale_lr.base_batch_size, the batch size that lr is meant for')
        cfg.auto_scale_lr.enable = True
    if int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) and args.resume != 'auto':
        raise SystemExit('MAX_RESTARTS needs --resume without a path: a restart would overwrite the checkpoints')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.no_validate:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    with guarded(args):
        build_runner(cfg).train()
