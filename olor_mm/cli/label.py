"""Label new images with an old model, so that training on them keeps its classes."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_rank

from ..classes.names import class_key, joined_classes, match_classes
from ..extend.distill import decoded, save_probabilities
from ..extend.label import FAULT, Choice, Job, Labelled, Source, faults
from ..extend.label_boxes import ignoring, labelled
from ..extend.label_maps import Maps, read_mask, write_map
from ..extend.label_thresholds import histograms, of_boxes, of_pixels
from ..extend.predict import OldModel
from ..names import nearest
from .data.dataset import Data
from .data.training import Boxes, read_boxes, read_images, read_pairs
from .launch import config_parser, end_with_parent, existing, guarded, load_config
from .machine import use_cpu_batchnorm
from .parser import Parser, pair

THRESHOLD = 0.5  # where nothing says which one is best
SUFFIXES = dict(classification='.npz', semantic_segmentation='', detection='.json')
WRITTEN = dict(
    classification='the probabilities of the old classes, a .npz file',
    semantic_segmentation='label maps, a folder of PNG files',
    detection='an annotation file of COCO, .json',
)


def main() -> None:
    args = _arguments()
    cfg = load_config(args)
    use_cpu_batchnorm(cfg)
    with guarded(args), _processes() as device:
        model = OldModel(cfg, args.checkpoint, args.old_classes, device)
        _check(args, model)
        loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
        file = Path(args.checkpoint)
        state = file.stat().st_mtime_ns if file.is_file() else None
        settings = cfg.model.to_dict(), model.steps, args.checkpoint, state, model.classes
        job = Job(model, args.out, args.batch_size, loader.get('num_workers', 0), settings)
        label = dict(classification=_probabilities, semantic_segmentation=_maps).get(model.task, _boxes)
        label(args, job, cfg)
        if get_rank() == 0:
            job.finish()


def _arguments() -> argparse.Namespace:
    parser = config_parser(f'{__doc__} Run it again if it is killed: it goes on. torchrun shares the work.')
    parser.set_defaults(launcher='none', work_dir=None, local_rank=0)
    parser.add_argument('checkpoint', type=existing, help='weights of the old model')
    how = 'folder of new training data, in a layout that init reads, or an annotation file of COCO; it is not changed'
    parser.add_argument('data', type=Path, help=how)
    parser.add_argument('--out', type=Path, required=True, help='; '.join(WRITTEN.values()))
    parser.add_argument('--images', type=Path, help='folder of the images, if DATA is a file and they are elsewhere')
    parser.add_argument('--classes', nargs='+', help='names of the classes of DATA; those of masks by their numbers')
    how = "those of the old model, if the checkpoint does not name them; or a stock data set's, as 'coco'"
    parser.add_argument('--old-classes', nargs='+', help=how)
    how = 'classes of DATA that the old model calls something else'
    parser.add_argument('--aliases', nargs='+', default=[], metavar='NEW=OLD', help=how)
    how = 'scores from which on a prediction is a label (default: 0.5, or of --val)'
    parser.add_argument('--threshold', nargs='+', default=[], metavar='[CLASS=]NUMBER', help=how)
    how = 'old data with annotations: takes the threshold of best F1 (at IoU 0.5) of each class in its validation set'
    parser.add_argument('--val', type=Path, help=how)
    how = 'share of the threshold from which on a prediction is an ignored region (default: 0.6; 1: none are)'
    parser.add_argument('--ignore-from', type=float, default=0.6, metavar='SHARE', help=how)
    how = 'add no labels of classes that DATA annotates itself, since it has all their objects. Without it, objects of '
    how += 'these classes that the old model sees are added where DATA has no annotation. Its annotations always stay'
    parser.add_argument('--only-old', action='store_true', help=how)
    parser.add_argument('--batch-size', type=int, default=1, help='images of a batch (default: 1)')
    args = parser.parse_args()
    if not 0 <= args.ignore_from <= 1:
        parser.error(f'--ignore-from {args.ignore_from}: give a share from 0 to 1')
    if args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size}: give 1 or more')
    args.aliases = dict(pair(parser, '--aliases', word) for word in args.aliases)
    args.threshold = dict(_threshold(parser, word) for word in args.threshold)
    return args


def _threshold(parser: Parser, word: str) -> tuple[str | None, float]:
    name, text = pair(parser, '--threshold', word, 'CLASS=NUMBER') if '=' in word else (None, word)
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value <= 1:
        parser.error(f'--threshold {word!r}: give a number above 0 and up to 1, alone or as CLASS=NUMBER')
    return name and class_key(name), value


@contextmanager
def _processes() -> Iterator[str]:
    """The device of this process, one of those that torchrun has started, if it has."""
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        end_with_parent()
        # the processes wait for each other once; nothing is sent that a GPU would help with
        torch.distributed.init_process_group('gloo', timeout=timedelta(days=30))
    device = get_device()
    if device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)))
    try:
        yield device
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _check(args: argparse.Namespace, model: OldModel) -> None:
    """Refuse what would be found wrong after hours."""
    args.out = args.out.absolute()
    what = f'--out {str(args.out)!r}'
    if args.out.suffix != SUFFIXES[model.task] or not args.out.parent.is_dir():
        raise ValueError(f'{what}: give {WRITTEN[model.task]}, in a folder that is there')
    if args.out.exists():
        raise ValueError(f'{what} is there already; remove it, or give another --out')
    if args.data.is_dir() and args.out.resolve().is_relative_to(args.data.resolve()):
        raise ValueError(f'{what} lies in {str(args.data)!r}, where it would be taken for data; give another place')
    keys = {class_key(name): name for name in model.classes}
    for name in args.threshold:
        if name is not None and name not in keys:
            near = ' or '.join(map(repr, nearest(name, keys) or model.classes[:10]))
            raise ValueError(f'--threshold {name}={args.threshold[name]}: no class of the old model; give {near}')
    given = [f'--{option}' for option in ('threshold', 'val', 'aliases', 'only_old') if getattr(args, option)]
    if model.task == 'classification' and given:
        raise ValueError(f'{given[0].replace("_", "-")} means nothing for a classifier: all probabilities are kept')


def _choice(args: argparse.Namespace, model: OldModel, best: Sequence[float | None]) -> Choice:
    """The thresholds of the command line, or those of --val, or the default one."""
    default = args.threshold.get(None, THRESHOLD)
    found = [default if threshold is None else threshold for threshold in best]
    thresholds = [args.threshold.get(class_key(name), found[at]) for at, name in enumerate(model.classes)]
    unknown = [name for name, threshold in zip(model.classes, best) if threshold is None]
    if args.val is not None and unknown and get_rank() == 0:
        print(f'note: --val says nothing of {len(unknown)} classes, which take {default}: {", ".join(unknown[:10])}')
    return Choice(thresholds, args.ignore_from, args.only_old)


def _boxes(args: argparse.Namespace, job: Job, cfg: Config) -> None:
    """Write an annotation file of COCO."""
    model = job.model
    data = read_boxes(args.data, args.images, args.classes)
    joined_classes(model.classes, data.classes, args.aliases)  # names that collide are an error before all is done
    best: list[float | None] = [None] * len(model.classes)
    if args.val is not None:
        val = read_boxes(args.val, None, None, 'val')
        matched = dict(zip(val.classes, match_classes(model.classes, val.classes)))
        ids = {c['id']: at for c in val.content.categories if (at := matched[c['name']]) is not None}
        if not ids:
            raise ValueError(f'--val {str(args.val)!r} has no class of the old model, but {val.classes[:10]}')
        records = job.run('validation', _sources(val), lambda _, sample: model.boxes(sample, with_masks=False))
        _note_faults(records, 'of --val ')
        best = of_boxes(val.content.all, ids, records, len(model.classes))
    choice = _choice(args, model, best)
    floor = min(choice.thresholds) * choice.ignored_from
    records = job.run('images', _sources(data), lambda _, sample: model.boxes(sample, floor), floor)
    if get_rank():
        return
    content = data.content
    content.mend_sizes([records[image['file_name']].get('size') for image in content.images])
    problems = Data(data.classes)
    content.check(problems, with_masks=False)
    changes = [f'annotations were changed: {change}' for change in content.changes]
    for note in (*problems.problems, *problems.notes, *changes):
        print(f'note: {note}')
    written, found = labelled(content.all, data.classes, model.classes, records, choice, args.aliases)
    job.written.write_text(json.dumps(dict(written, olor_mm=_origin(args, model, choice, data.classes))))
    _report(args, model, choice, records, found, 'annotations')
    keys = ignoring(cfg.model)
    if found.ignored and keys:
        options = ' '.join(f'{key}=0.5' for key in keys)
        print(f'note: to ignore regions, training needs what `init --keep-classes` writes: --cfg-options {options}')
    elif found.ignored:
        print('note: this detector has no assigner that ignores regions: they are background; --ignore-from 1 for none')


def _sources(data: Boxes) -> list[Source]:
    return [Source(*image) for image in data.sizes()]


def _maps(args: argparse.Namespace, job: Job, _: Config) -> None:
    """Write a folder of label maps."""
    model = job.model
    if args.classes is None:
        raise ValueError('--classes is missing: masks have numbers alone; name them all, from 0 on')
    best: list[float | None] = [None] * len(model.classes)
    if args.val is not None:

        def counted(source: Source, sample) -> dict[str, Any]:
            labels, scores = model.pixels(sample)
            mask = read_mask(source, labels.shape, model.reduce_zero_label)
            return histograms(mask, labels, scores, 255)

        pairs = read_pairs(args.val, 'val')
        records = job.run('validation', [Source(name, file, mask=mask) for name, file, mask in pairs], counted)
        _note_faults(records, 'of --val ')
        best = of_pixels(records.values(), len(model.classes))
    choice = _choice(args, model, best)
    maps = Maps(args.classes, model.classes, choice, args.aliases)

    def drawn(source: Source, sample) -> dict[str, Any]:
        labels, scores = model.pixels(sample)
        found, added, ignored = maps.labelled(read_mask(source, labels.shape), labels, scores, source.name)
        write_map(job.written / f'{source.name}.png', found)
        return dict(added=added, ignored=ignored, best=float(scores.max()))

    pairs = read_pairs(args.data)
    sources = [Source(name, file, mask=mask) for name, file, mask in pairs]
    how = args.classes, choice.thresholds, choice.ignored_from, choice.only_old, args.aliases
    records = job.run('images', sources, drawn, *how)
    if get_rank():
        return
    found = Labelled(best=max(record.get('best', 0) for record in records.values()))
    for record in records.values():
        found.added.update({int(label): pixels for label, pixels in record.get('added', {}).items()})
        found.ignored.update({int(label): pixels for label, pixels in record.get('ignored', {}).items()})
    (job.written / 'labels.json').write_text(json.dumps(_origin(args, model, choice, args.classes)))
    _report(args, model, choice, records, found, 'pixels')


def _probabilities(args: argparse.Namespace, job: Job, _: Config) -> None:
    """Write the probabilities of old classes."""
    model = job.model
    root, images = read_images(args.data.resolve())
    sources = [Source(*image) for image in images]
    records = job.run('images', sources, lambda _, sample: dict(logs=model.log_probabilities(sample)))
    if get_rank() == 0:
        found = {name: decoded(record['logs']) for name, record in records.items() if FAULT not in record}
        save_probabilities(job.written, root, model.classes, found)
        _note_faults(records)
        print(f'{args.out}: probabilities of {len(model.classes)} classes for {len(found)} images')


def _origin(args: argparse.Namespace, model: OldModel, choice: Choice, classes: Sequence[str]) -> dict[str, Any]:
    """Where labels are from, to be written beside them."""
    thresholds = dict(zip(model.classes, choice.thresholds))
    joined = joined_classes(model.classes, classes, args.aliases)
    return dict(config=args.config, checkpoint=args.checkpoint, classes=joined, thresholds=thresholds)


def _report(
    args: argparse.Namespace, model: OldModel, choice: Choice, records: dict, found: Labelled, what: str
) -> None:
    """Print what was added, most first, and what was not."""
    _note_faults(records)
    if not found.added:
        print(f'note: nothing was added; the highest score was {found.best:.2f}')
    for label, number in found.added.most_common():
        threshold = f'threshold {choice.thresholds[label]:.2f}'
        print(f'  {model.classes[label]}: {number} {what}, {found.ignored[label]} ignored, {threshold}')
    added, ignored = sum(found.added.values()), sum(found.ignored.values())
    usable = sum(FAULT not in record for record in records.values())
    print(f'{args.out}: {usable} images, {added} {what} added, {ignored} ignored')
    if found.overlapping:
        print(f'  {found.overlapping} detections were left out: DATA has an annotation there')


def _note_faults(records: dict, which: str = '') -> None:
    wrong = faults(records)
    if wrong and get_rank() == 0:
        print(f'note: {len(wrong)} images {which}are left out:', *wrong, sep='\n  ', file=sys.stderr)
