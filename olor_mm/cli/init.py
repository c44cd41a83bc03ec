"""Write a short config that fine-tunes a stock config with rollback on a folder of data."""

import argparse
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..durable.loading import CheckpointError, guard_loading
from ..inspect.weights import loaded_share
from ..progress import waiting
from .config_text import config_text, innermost, steps_of, with_classes
from .data import TASKS, Data, DataError, Reader, examine
from .data.joined import Source
from .keep_classes import Keep, label_command, old_classes, plan
from .packaged import config_file
from .parser import Parser, add_trust, pair

EXAMPLES = dict(
    classification='mmpretrain::resnet/resnet50_8xb32_in1k.py',
    detection='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    instance_segmentation='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    semantic_segmentation='mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
)
BATCH = dict(classification=16, detection=2, instance_segmentation=2, semantic_segmentation=4)


def main() -> None:
    args = _arguments()
    guard_loading(args.trust_checkpoints)
    data_root = args.data.expanduser().resolve()
    out = (args.out or Path(f'{data_root.name}_{args.task}.py')).resolve()
    try:
        base = _base(args.config, args.task)
        data = _examined(args, data_root, out, args.classes, base)
        keep = _keep(args, base, Source(data, data_root), out) if args.keep_classes else None
        used = keep.applied(data, args.task) if keep else data
        name = args.config if '::' in args.config else str(Path(config_file(args.config)).resolve())
        batch = min(args.batch_size or BATCH[args.task], data.images)
        given = base, name, args.task, used, data_root
        ways = _weights(base, args.checkpoint)[: 1 if keep else None]  # the whole model is kept, not its backbone
        change = keep.change if keep else None
        texts = [config_text(*given, weights, batch, args.epochs, args.lr, change) for weights in ways]
        with waiting('loading the checkpoint into the model'):
            text = _best(texts, args.checkpoint)
            if keep:
                keep.refuse_unknown_heads(text)
    except (DataError, CheckpointError) as error:
        raise SystemExit(f'init: {args.data}: {error}') from error
    written = {**data.written, **(keep.joined.written if keep else {})}
    taken = [file for file in (out, *written) if file.exists()]
    if taken and not args.force:
        raise SystemExit(f'init: {str(taken[0])!r} is there already; give another --out, or --force')
    for file, content in {**written, out: text}.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    steps = math.ceil(used.images / batch) * args.epochs
    classes = f'{len(used.classes)} {"class" if len(used.classes) == 1 else "classes"}'
    print(f'{out.name}: {classes}, {used.images} training images, {steps} iterations. Go on with')
    shown = shlex.quote(str(out) if out.parent != Path.cwd() else out.name)
    if keep:
        labels = args.task, args.config, args.checkpoint, args.old_classes, Source(data, data_root), keep.joined.labels
        print(f'    {label_command(*labels, args.aliases)}')
    if not (keep and keep.is_exact):
        print(f'    python -m olor_mm print_rollback {shown}')
    print(f'    python -m olor_mm train {shown}')
    last = f'work_dirs/{out.stem}/epoch_{args.epochs}.pth' if keep else 'CHECKPOINT'
    print(f'    python -m olor_mm test {shown} {last}')


def _examined(args: argparse.Namespace, root: Path, out: Path, classes: list[str] | None, base: Config) -> Data:
    """A data set, if it can be used; what is found is printed."""
    data = examine(root, args.task, out, classes, _reader(base))
    for note in data.notes:
        if root == args.data.expanduser().resolve() or '--classes' not in note:  # which is not of old data
            print(f'note: {note}')
    for problem in data.problems:
        print(f'problem: {problem}', file=sys.stderr)
    if data.problems and not args.force:
        raise DataError('nothing was written; correct the data, or use --force')
    return data


def _keep(args: argparse.Namespace, base: Config, new: Source, out: Path) -> Keep:
    """The plan that keeps the classes of the checkpoint, with old data if there is some."""
    if args.task == 'semantic_segmentation' and args.classes is None:
        raise DataError('masks have numbers alone: name their classes by --classes, old ones as the checkpoint does')
    is_exact = args.keep_classes == 'exact'
    if is_exact and args.task == 'classification':
        raise DataError('--keep-classes exact works for detectors and segmenters; leave out exact')
    known = old_classes(base, args.checkpoint, args.old_classes)
    old = None
    if args.replay is not None:
        root, place = args.replay.expanduser().resolve(), out.with_name(f'{out.stem}_old.py')
        steps = steps_of(innermost(base.train_dataloader, '')[0], 'LoadAnnotations')
        shift = any(step.get('reduce_zero_label') for step in steps)  # in old masks, 0 is then no class
        names = ['ignored'] * shift + known if args.task == 'semantic_segmentation' else None
        old = Source(_examined(args, root, place, names, base), root)
    else:
        print('note: without --replay OLD_DATA, nothing measures the old classes')
        if args.task == 'classification':
            print('note: without it, the classifier can take old images for new classes')
    images = 0 if is_exact else args.replay_images  # nothing is forgotten
    keep = plan(known, args.checkpoint, new, old, out, images, args.replay_share, args.task, args.aliases)
    for note in dict.fromkeys(keep.joined.notes):
        print(f'note: {note}')
    return replace(keep, is_exact=is_exact)


def _arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument('data', nargs='?', type=Path, help='folder of the data')
    parser.add_argument('--task', choices=TASKS)
    parser.add_argument('--config', help='config to start from: mmdet::PATH, mmseg::PATH, mmpretrain::PATH or a file')
    parser.add_argument('--checkpoint', help='weights of the model or its backbone (default: those of the config)')
    parser.add_argument('--out', type=Path, help='config to write (default: DATA_TASK.py, here)')
    parser.add_argument('--classes', nargs='+', help='names of the classes, if the data does not have them')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--batch-size', type=int, help='images of a batch (default: 2 to 16, by task)')
    parser.add_argument('--lr', type=float, default=1e-4, help='learning rate of AdamW')
    how = 'keep the classes of --checkpoint, a trained model of --config, and add those of the data'
    how += '; exact: the trained model stays as it is, and a branch of its own learns the new ones'
    parser.add_argument('--keep-classes', nargs='?', const='trained', choices=('trained', 'exact'), help=how)
    how = 'classes of the checkpoint in their order, if it does not name them'
    parser.add_argument('--old-classes', nargs='+', help=how)
    how = 'classes of the data that the old model calls something else'
    parser.add_argument('--aliases', nargs='+', default=[], metavar='NEW=OLD', help=how)
    parser.add_argument('--replay', type=Path, metavar='OLD_DATA', help='data of the old classes, to train and test on')
    how = 'old images to train on (default: 100), so that every class is in them; 0: OLD_DATA is for tests alone'
    parser.add_argument('--replay-images', type=int, default=100, help=how)
    how = 'their share of an epoch (default: 0.1), in which each is shown once or more'
    parser.add_argument('--replay-share', type=float, default=0.1, help=how)
    parser.add_argument('--force', action='store_true', help='overwrite files, and ignore problems of the data')
    add_trust(parser)
    args = parser.parse_args()
    if args.out is not None and (args.out.suffix != '.py' or not args.out.absolute().parent.is_dir()):
        raise SystemExit(f'init: --out {str(args.out)!r}: give a file that ends with .py, in a folder that is there')
    _ask(args)
    for name in ('epochs', 'batch_size', 'lr'):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise SystemExit(f'init: --{name.replace("_", "-")} {value} is not above 0')
    for name in ('replay', 'old_classes', 'aliases'):
        if getattr(args, name) and not args.keep_classes:
            raise SystemExit(f'init: --{name.replace("_", "-")} needs --keep-classes: give that too')
    args.aliases = dict(pair(parser, '--aliases', word) for word in args.aliases)
    if args.replay_images < 0 or not 0 < args.replay_share < 1:
        what = f'--replay-images {args.replay_images}, --replay-share {args.replay_share}'
        raise SystemExit(f'init: {what}: give 0 or more images, and a share between 0 and 1')
    return args


def _ask(args: argparse.Namespace) -> None:
    """Ask on a terminal for what the command line lacks."""
    questions = dict(
        data='Folder of the data',
        task=f'Task ({", ".join(TASKS)})',
        config='Config to start from',
        checkpoint='Checkpoint, of the model or its backbone (empty: what the config names)',
    )
    for name, question in questions.items():
        if getattr(args, name) is not None or (name == 'checkpoint' and not sys.stdin.isatty()):
            continue
        if not sys.stdin.isatty():
            raise SystemExit(f'init: {name if name == "data" else "--" + name} is missing')
        default = EXAMPLES.get(args.task) if name == 'config' else None
        answer = input(question + (f' [{default}]' if default else '') + ': ').strip() or default
        if (name == 'task' and answer not in TASKS) or (answer is None and name != 'checkpoint'):
            raise SystemExit(f'init: {name}={answer!r} is not an answer')
        setattr(args, name, Path(answer or '') if name == 'data' else answer)


def _base(name: str, task: str) -> Config:
    """The config to start from."""
    try:
        cfg = Config.fromfile(config_file(name))
    except SystemExit as error:
        raise DataError(str(error)) from error
    except Exception as error:  # a config is Python and can raise anything
        raise DataError(f'--config {name} cannot be read: {type(error).__name__}: {error}') from error
    found = dict(mmpretrain='classification', mmseg='semantic_segmentation').get(cfg.get('default_scope'))
    if cfg.get('default_scope') == 'mmdet' and cfg.get('train_dataloader'):
        steps = steps_of(innermost(cfg.train_dataloader, '')[0], 'LoadAnnotations')
        if steps:
            found = 'instance_segmentation' if steps[0].get('with_mask') else 'detection'
    if found != task:
        raise DataError(f'--config {name} is of the task {found}, and --task is {task}; try {EXAMPLES[task]}')
    missing = [key for key in ('train_dataloader', 'val_dataloader') if not cfg.get(key)]
    if missing:  # as in what a run without validation has dumped
        raise DataError(
            f'--config {name} has {missing[0]}={cfg.get(missing[0])}; give the config with its data loaders'
        )
    if 'num_' not in repr(with_classes(cfg.model, 1)):
        raise DataError(f'--config {name} has no head with a number of classes; one that has is {EXAMPLES[task]}')
    return cfg


def _reader(base: Config) -> Reader:
    """Reads files with the loading steps of the config's training pipeline."""
    dataset = innermost(base.train_dataloader, '')[0]
    images, annotations = (steps_of(dataset, f'Load{what}') for what in ('ImageFromFile', 'Annotations'))
    image = images[0] if images else dict(type='LoadImageFromFile')
    return Reader(base.default_scope, image, annotations[0] if annotations else None)


def _weights(base: Config, checkpoint: str | None) -> list[dict]:
    """Settings of the config that load the weights; of a file, those for a whole model and those for a backbone."""
    backbone = base.model.get('backbone') or {}
    init_cfg = backbone.get('init_cfg')
    own = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    if checkpoint is None:
        named = own or backbone.get('pretrained') or base.model.get('pretrained') or base.get('load_from')
        if not named:
            how = '`mim download mmpretrain --config NAME --dest .` fetches those of a stock config'
            raise DataError(f'the config names no pre-trained weights, which rollback needs: give --checkpoint; {how}')
        if isinstance(named, str) and '://' not in named and not Path(named).is_file():
            raise DataError(f'the config names the weights {named!r}, which are not there; give --checkpoint')
        return [{}]
    model: dict[str, Any] = dict(pretrained=None) if base.model.get('pretrained') else {}  # load no others before
    if '://' in checkpoint:
        print('note: a checkpoint on the network is not checked; it is loaded into the whole model')
        return [dict(load_from=checkpoint, model=model)]
    file = Path(checkpoint).expanduser().resolve()
    if not file.is_file():
        raise DataError(f'--checkpoint {checkpoint} is not a file')
    key = 'pretrained' if backbone.get('pretrained') else 'init_cfg'
    whole = dict(load_from=str(file), model=dict(model, backbone={key: None}) if backbone.get(key) else model)
    given = dict(_delete_=True, type='Pretrained', checkpoint=str(file)) if key == 'init_cfg' else str(file)
    return [whole, dict(model=dict(model, backbone={key: given}))] if backbone else [whole]


def _best(texts: list[str], checkpoint: str | None) -> str:
    """The config, of several, with which training loads most of a checkpoint."""
    file = Path(checkpoint or '').expanduser()
    if checkpoint is None or not file.is_file():
        return texts[0]
    try:
        found = [loaded_share(Config.fromstring(text, '.py')) for text in texts]
    except CheckpointError:
        raise
    except Exception as error:  # of MMEngine's loader, or of a model that cannot be built
        raise DataError(f'--checkpoint {checkpoint} cannot be loaded: {type(error).__name__}: {error}') from error
    best = max(range(len(texts)), key=lambda number: found[number][0])
    share, why = found[best]
    if share < 0.5:
        what = f'training would load {share:.0%} of the weights of its backbone{f": {why}" if why else ""}'
        raise DataError(f'--checkpoint {checkpoint} does not fit the model: {what}')
    return texts[best]
