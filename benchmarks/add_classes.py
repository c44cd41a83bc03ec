"""New classes for a trained model, by ``init --keep-classes`` and the commands that it prints.

    python benchmarks/add_classes.py                      # runs what has not been run yet, then writes the page
    python benchmarks/add_classes.py --tasks boxes --seeds 0
    python benchmarks/add_classes.py --table              # writes it from what there is

| task   | images                        | old classes, annotated in old data | new classes, annotated in new data |
|--------|-------------------------------|------------------------------------|------------------------------------|
| boxes  | synthetic, 4 digits in each   | digits 0 to 4                      | digits 5 to 9                      |
| masks  | nuclei under a microscope     | dark nuclei                        | bright nuclei                      |
| pixels | nuclei under a microscope     | background, dark nuclei            | background, bright nuclei          |

Old and new data have the same images, so that old objects are in the new images, without annotations. Beside
`keep_classes` stand plain fine-tuning with a new head (`plain`), and training from the same checkpoint with all
annotations of both (`joint`); all are as long. Every step is a command line, in a folder for the task and seed; a run
that was killed goes on with the step that it was in.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).parent / 'evidence'))
from rows import append, commit, machine, read

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / 'data'
RESULTS = ROOT / 'docs/en/benchmarks/add_classes.csv'
PAGE = RESULTS.with_suffix('.md')
TEXT = """# Adding classes

A trained model learns new classes by [`init --keep-classes` and the commands that it prints](../add_classes.md), with
their defaults. Old and new data have the same images: the new ones show old objects, without annotations. `plain`
is fine-tuning with a new head, on the annotations of the new data. `joint` trains from the same checkpoint with all
annotations of both. All three are as long. `of before` is the share of what the old model had, `of joint` that of
`joint`; means over the seeds. AP of boxes and of masks, mIoU of pixels (with the background among the old classes).

{}

Boxes: digits 0 to 4, then 5 to 9 (Faster R-CNN). Masks: dark nuclei, then bright ones (Mask R-CNN). Pixels: the same (a
Segformer head). All on MobileNetV2. `python benchmarks/add_classes.py` runs what is missing and writes this page from
[all values](add_classes.csv).
"""
FIELDS = ['task', 'seed', 'step', 'old', 'new', 'seconds', 'commit', 'machine', 'date']
WAYS = ('keep_classes', 'plain', 'joint')
PIPELINES = """
train_dataloader = dict(batch_size={batch}, num_workers=0, dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', {load}),
    dict(type='Resize', scale=({side}, {side}), keep_ratio=True), dict(type='PackDetInputs')]))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=({side}, {side}), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
test_dataloader = val_dataloader
"""
PIXELS = """
model = dict(
    backbone=dict(strides=(1, 2, 2, 2, 1, 2, 1), dilations=(1,) * 7),
    decode_head=dict(
        _delete_=True, type='SegformerHead', in_channels=[24, 32, 96, 320], in_index=[0, 1, 2, 3], channels=64,
        dropout_ratio=0.1, num_classes=2, norm_cfg=dict(type='BN', requires_grad=True), align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=None)
"""
CONFIGS = ROOT / 'configs'
TASKS = dict(
    boxes=dict(
        task='detection',
        base=CONFIGS / 'detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py',
        changes=PIPELINES.format(batch=4, load='with_bbox=True', side=160),
        weights='mobilenet_v2_mmdet.pth',
        metric='coco/bbox_mAP',
        epochs=(8, 5),
    ),
    masks=dict(
        task='instance_segmentation',
        base=CONFIGS / 'instance_segmentation/olor/mask-rcnn_mobilenet-v2-fpn_olor_1xb4-6e_composite-160px.py',
        changes=PIPELINES.format(batch=4, load='with_bbox=True, with_mask=True', side=192),
        weights='mobilenet_v2_mmdet.pth',
        metric='coco/segm_mAP',
        epochs=(20, 10),
    ),
    pixels=dict(
        task='semantic_segmentation',
        base=CONFIGS / 'semantic_segmentation/olor/mobilenet-v2-d8_fcn_olor_1xb8-80iter_nuclei-128px.py',
        changes=PIXELS,
        weights='mobilenet_v2_mmseg.pth',
        metric='mIoU',
        epochs=(60, 36),
    ),
)


def parts(task: str, split: str) -> tuple[dict, Callable[[dict], bool], list[str]]:
    """A COCO file of all, whether an annotation is of an old class, and the names of the old classes."""
    source = DATA / ('composite' if task == 'boxes' else 'nuclei')
    content = json.loads((source / f'{split}.json').read_text())
    for image in content['images']:
        image['file_name'] = str(source / image['file_name'])
    if task == 'boxes':
        return content, lambda annotation: annotation['category_id'] <= 5, [f'digit {i}' for i in range(5)]
    training = content if split == 'train' else parts(task, 'train')[0]
    middle = np.median([brightness(training, annotation) for annotation in training['annotations']])
    for annotation in content['annotations']:
        annotation['category_id'] = 1 + int(brightness(content, annotation) > middle)
    content['categories'] = [dict(id=1, name='dark nucleus'), dict(id=2, name='bright nucleus')]
    return content, lambda annotation: annotation['category_id'] == 1, ['dark nucleus']


def brightness(content: dict, annotation: dict) -> float:
    """Mean grey of the pixels of an object."""
    [image] = [image for image in content['images'] if image['id'] == annotation['image_id']]
    with Image.open(image['file_name']) as opened:
        return float(np.asarray(opened.convert('L'))[pixels_of(annotation, image)].mean())


def pixels_of(annotation: dict, image: dict) -> np.ndarray:
    """Bool (height, width)."""
    rle = annotation['segmentation']
    if isinstance(rle, list) or isinstance(rle['counts'], list):
        rle = coco_mask.frPyObjects(rle, image['height'], image['width'])
    return coco_mask.decode(coco_mask.merge(rle) if isinstance(rle, list) else rle) > 0


def write_data(task: str, folder: Path) -> None:
    """Write data with the annotations of the old classes, of the new ones, and of both."""
    for split in ('train', 'test'):
        content, is_old, old = parts(task, split)
        for name, groups in dict(old=[True], new=[False], joint=[True, False]).items():
            annotations = [annotation for annotation in content['annotations'] if is_old(annotation) in groups]
            categories = [c for c in content['categories'] if (c['name'] in old) in groups]
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            if task == 'pixels':
                write_maps(place, split, content['images'], annotations, categories)
            else:
                (place / f'{split}.json').write_text(
                    json.dumps(dict(content, annotations=annotations, categories=categories))
                )
            if name == 'new':  # with the categories of both, for plain fine-tuning
                (folder / f'plain_{split}.json').write_text(json.dumps(dict(content, annotations=annotations)))


def write_maps(place: Path, split: str, images: list[dict], annotations: list[dict], categories: list[dict]) -> None:
    """Write images and maps of their pixels: 0 is background, then come the categories."""
    numbers = {category['id']: 1 + i for i, category in enumerate(categories)}
    for folder in ('img_dir', 'ann_dir'):
        (place / folder / split).mkdir(parents=True, exist_ok=True)
    for image in images:
        found = np.zeros((image['height'], image['width']), np.uint8)
        for annotation in (a for a in annotations if a['image_id'] == image['id']):
            found[pixels_of(annotation, image)] = numbers[annotation['category_id']]
        file = Path(image['file_name'])
        Image.fromarray(found).save(place / 'ann_dir' / split / f'{file.stem}.png')
        link = place / 'img_dir' / split / file.name
        if not link.exists():
            link.symlink_to(file)


class Study:
    """The steps of one task and seed, each a row of the table."""

    def __init__(self, task: str, seed: int, done: set[tuple]):
        self.task, self.seed, self.done, self.of = task, seed, done, TASKS[task]
        self.folder = ROOT / f'work_dirs/add_classes/{task}_{seed}'

    def command(self, *words: str) -> str:
        """Run a command of olor_mm in the folder; its output is also in ``log.txt``."""
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        options = dict(cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        done = subprocess.run([sys.executable, '-m', 'olor_mm', *words], **options)
        with open(self.folder / 'log.txt', 'a') as log:
            log.write(f'$ python -m olor_mm {shlex.join(words)}\n{done.stdout}\n')
        if done.returncode:
            raise SystemExit(f'{self.folder}: {shlex.join(words)} failed:\n{done.stdout[-3000:]}')
        return done.stdout

    def rows(self) -> Iterator[dict]:
        """Do what has not been done, and yield its results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        old, new = self.of['epochs']
        steps = dict(before=lambda: self.train_old(old), keep_classes=lambda: self.keep(old, new))
        steps |= dict(plain=self.train_plainly, joint=self.train_jointly)
        for step, do in steps.items():
            if (self.task, str(self.seed), step) not in self.done:
                start = time.monotonic()
                yield dict(task=self.task, seed=self.seed, step=step, **do(), seconds=round(time.monotonic() - start))

    def train_old(self, epochs: int) -> dict:
        shutil.rmtree(self.folder)  # labels of an older model
        self.folder.mkdir()
        write_data(self.task, self.folder)
        self.write_small()
        self.init('old', 'small.py', str(DATA / 'weights' / self.of['weights']), epochs, self.names('dark'), 'old.py')
        self.command('train', 'old.py')
        return dict(old=self.last('old', ''))

    def write_small(self) -> None:
        """Write the config that both trainings start from: the stock one at a smaller size."""
        base = f'_base_ = {str(self.of["base"])!r}\n{self.of["changes"]}\nrandomness = dict(seed={self.seed})\n'
        (self.folder / 'small.py').write_text(base)

    def names(self, which: str) -> list[str]:
        return ['--classes', 'background', f'{which} nucleus'] if self.task == 'pixels' else []

    def init(self, data: str, config: str, checkpoint: str, epochs: int, options: list[str], out: str) -> str:
        words = ['init', data, '--task', self.of['task'], '--config', config, '--checkpoint', checkpoint]
        words += ['--epochs', str(epochs), '--lr', '1e-3', '--batch-size', '8' if self.task == 'pixels' else '4']
        return self.command(*words, '--out', out, '--force', *options)

    def keep(self, epochs: int, more: int) -> dict:
        """The commands that init prints, and nothing else."""
        options = ['--keep-classes', '--replay', 'old', '--replay-images', '0', *self.names('bright')]
        said = self.init('new', 'old.py', f'work_dirs/old/epoch_{epochs}.pth', more, options, 'both.py')
        for line in said.splitlines():
            if line.startswith('    python -m olor_mm '):
                words = shlex.split(line)[3:]
                if words[0] == 'label' and Path(self.folder, words[words.index('--out') + 1]).exists():
                    continue
                self.command(*words)
        return self.groups('both')

    def train_plainly(self) -> dict:
        """A new head, free weights, and the annotations of the new data alone."""
        free = 'custom_hooks = _base_.custom_hooks[:-1]\n'
        free += 'optim_wrapper = dict(paramwise_cfg=dict(rollback=dict(max_level=0.0, min_level=0.0)))\n'
        return self.variant('plain', free, 'new')

    def train_jointly(self) -> dict:
        return self.variant('joint', '', 'joint')

    def variant(self, name: str, changes: str, data: str) -> dict:
        """Train with the config of `keep_classes`, but for some changes and its annotations."""
        if self.task == 'pixels':
            self.write_joined_maps(data)
            fields = f'data_prefix=dict(seg_map_path={str(self.folder / f"{name}_maps")!r})'
        else:
            file = self.folder / ('plain_train.json' if data == 'new' else 'joint/train.json')
            fields = f'ann_file={str(file)!r}'
        data_set = f'train_dataloader = dict(dataset=dict({fields}))\n'
        (self.folder / f'{name}.py').write_text(f"_base_ = 'both.py'\n{data_set}{changes}")
        self.command('train', f'{name}.py')
        return self.groups(name)

    def write_joined_maps(self, data: str) -> None:
        """Maps of the training images with the numbers of old and new classes together."""
        target = self.folder / ('plain_maps' if data == 'new' else 'joint_maps')
        target.mkdir(exist_ok=True)
        table = np.array([0, 2] if data == 'new' else [0, 1, 2], np.uint8)
        for file in (self.folder / data / 'ann_dir/train').glob('*.png'):
            Image.fromarray(table[np.asarray(Image.open(file))]).save(target / file.name)

    def groups(self, run: str) -> dict:
        return dict(old=self.last(run, '_old'), new=self.last(run, '_new'))

    def last(self, run: str, suffix: str) -> float:
        """The last value of the metric that a training logged."""
        logs = sorted((self.folder / 'work_dirs' / run).glob('*/vis_data/scalars.json'))
        rows = [json.loads(line) for file in logs for line in file.read_text().splitlines()]
        return [row[key] for row in rows if (key := self.of['metric'] + suffix) in row][-1]


def run(tasks: list[str], seeds: list[int]) -> None:
    for seed in seeds:
        for task in tasks:
            done = {(row['task'], row['seed'], row['step']) for row in read(RESULTS)}
            for row in Study(task, seed, done).rows():
                known = dict(commit=commit(), machine=machine(), date=date.today().isoformat())
                append(RESULTS, FIELDS, [row | known])
                PAGE.write_text(TEXT.format(table(read(RESULTS))))
                print(row, flush=True)


def table(rows: list[dict]) -> str:
    """The table of the page, of all seeds that have every way."""
    lines = [
        '| task | seeds | way | old classes | of before | new classes | of joint |',
        '|---|---|---|---|---|---|---|',
    ]
    values = {(row['task'], row['seed'], row['step']): row for row in rows}
    for task in TASKS:
        seeds = sorted({seed for of, seed, _ in values if of == task})
        seeds = [seed for seed in seeds if all((task, seed, step) in values for step in ('before', *WAYS))]
        for step in ('before', *WAYS) if seeds else ():
            old, new = ([float(values[task, seed, step][key] or 'nan') for seed in seeds] for key in ('old', 'new'))
            before = [float(values[task, seed, 'before']['old']) for seed in seeds]
            joint = [float(values[task, seed, 'joint']['new']) for seed in seeds]
            shares = (100 * np.mean(np.divide(a, b)) for a, b in ((old, before), (new, joint)))
            cells = [f'{np.mean(old):.3f}', f'{next(shares):.0f} %', f'{np.mean(new):.3f}', f'{next(shares):.0f} %']
            cells = cells[:2] + ['-', '-'] if step == 'before' else cells
            lines.append(f'| {task} | {len(seeds)} | `{step}` | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--table', action='store_true', help='write the page from what there is, run nothing')
    args = parser.parse_args()
    if not args.table:
        run(args.tasks, args.seeds)
    PAGE.write_text(TEXT.format(table(read(RESULTS))))
    print(PAGE.read_text())


if __name__ == '__main__':
    main()
