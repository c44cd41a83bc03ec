"""Write a short config that fine-tunes a stock config with rollback on a folder of data."""

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..durable.loading import CheckpointError, guard_loading
from ..inspect.weights import loaded_share
from .config_text import config_text, innermost, steps_of, with_classes
from .data import TASKS, DataError, Reader, examine
from .packaged import config_file
from .parser import Parser, add_trust

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
        data = examine(data_root, args.task, out, args.classes, _reader(base))
        for note in data.notes:
            print(f'note: {note}')
        for problem in data.problems:
            print(f'problem: {problem}', file=sys.stderr)
        if data.problems and not args.force:
            raise DataError('nothing was written; correct the data, or use --force')
        name = args.config if '::' in args.config else str(Path(config_file(args.config)).resolve())
        batch = min(args.batch_size or BATCH[args.task], data.images)
        given = base, name, args.task, data, data_root
        ways = _weights(base, args.checkpoint)
        text = _best([config_text(*given, weights, batch, args.epochs, args.lr) for weights in ways], args.checkpoint)
    except (DataError, CheckpointError) as error:
        raise SystemExit(f'init: {args.data}: {error}') from error
    taken = [file for file in (out, *data.written) if file.exists()]
    if taken and not args.force:
        raise SystemExit(f'init: {str(taken[0])!r} is there already; give another --out, or --force')
    for file, content in {**data.written, out: text}.items():
        file.write_text(content)
    steps = math.ceil(data.images / batch) * args.epochs
    print(f'{out.name}: {len(data.classes)} classes, {data.images} training images, {steps} iterations. Go on with')
    shown = shlex.quote(str(out) if out.parent != Path.cwd() else out.name)
    print(f'    python -m olor_mm print_rollback {shown}\n    python -m olor_mm train {shown}')
    print(f'    python -m olor_mm test {shown} CHECKPOINT')


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
