"""Evaluate a checkpoint with any config of mmdet, mmseg or mmpretrain: python tools/test.py CONFIG CHECKPOINT"""

from mmengine.config import Config
from mmengine.evaluator import DumpResults

from launch import base_parser, build_runner, guarded, load_config


def show_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turn on the library's own visualization hook.

    Raises:
        SystemExit: If the config has none.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise SystemExit('--show and --show-dir need default_hooks.visualization in the config')
    hook.update(show=show, wait_time=wait_time, interval=1)  # stock configs draw every 50th image
    folder = dict(mmpretrain='out_dir', mmdet='test_out_dir').get(cfg.default_scope)
    hook['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True
    if show_dir is not None and folder is not None:
        hook[folder] = show_dir
    elif show_dir is not None:
        cfg.visualizer.update(save_dir=show_dir)


def main() -> None:
    parser = base_parser('Evaluate a checkpoint')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='dump predictions to this pickle file (.pkl)')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='save images with predictions drawn here (under the work directory)')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between two windows')
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out}: the file must end with .pkl or .pickle')
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        show_predictions(cfg, args.show, args.show_dir, args.wait_time)
    with guarded(args):
        runner = build_runner(cfg)
        if args.out is not None:
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        runner.test()


if __name__ == '__main__':
    main()
