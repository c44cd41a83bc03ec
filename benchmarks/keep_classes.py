"""New classes for a trained detector, from photos that show no old object: what keeps the old class, and its price.

    python benchmarks/keep_classes.py --data ../shared/data      # runs what has not been run yet, then writes the page
    python benchmarks/keep_classes.py --data ../shared/data --seeds 0 --ways plain exact
    python benchmarks/keep_classes.py --table                    # writes it from what there is

The photos of kangaroos and raccoons are no part of the repository: ``--data`` is a folder with ``kangaroo`` and
``raccoon``, each with ``train.json`` and ``test.json`` in COCO format. A detector learns one animal. From it each of
:data:`WAYS` learns the other one, by the config that ``init --keep-classes`` writes, with the changes that stand there.
A run that was killed goes on with the step that it was in.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / 'evidence'))
from add_classes import CONFIGS, FIELDS, PIPELINES, ROOT, Study
from rows import append, commit, machine, read

RESULTS = ROOT / 'docs/en/benchmarks/keep_classes.csv'
PAGE = RESULTS.with_suffix('.md')
TEXT = """# Adding a class without its old objects

A detector of one animal learns another one, from photos that show none of the first. AP of boxes on test photos of
both; `of before` is the share of what the old model had, `of plain` that of plain fine-tuning's new class. Faster R-CNN
on MobileNetV2, 160 pixels, about 300 iterations for the old class and 200 for the new one, learning rate 0.001, on 2
CPU cores.

{}

| way | what it is |
|---|---|
{}

Levels and budgets are those of all layers. In ways with `rows`, the row of the old class is kept
([`ClassTransferHook`](../add_classes.md#what-is-in-the-config)). `joint` has as many epochs as give it the iterations
of the others, about. No way but `labels` uses labels of the old model.

Two more were tried, and are not part of olor_mm, since `exact` keeps so much more of the old class:

- `features_heads_held`: distillation from the anchors. The distance of the neck's outputs from those of the old model
  on the same photo was a loss (its relative square, times 10). All weights of heads but new rows were held.
- `background_level`: old classes and background as one in the loss of the head, as MiB (Cermelli et al. 2020) has it,
  with scores of old classes that do not depend on new ones, level 0.03, and old rows of the head held.

Both had frozen BatchNorm statistics (`norm_eval`).

`python benchmarks/keep_classes.py --data FOLDER` runs what is missing and writes this page from [all
values](keep_classes.csv). The photos are copies of two public data sets, Kangaroo and Raccoon; the repository does not
have them.
"""
OF = dict(
    task='detection',
    base=CONFIGS / 'detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py',
    changes=PIPELINES.format(batch=4, load='with_bbox=True', side=160),
    weights='mobilenet_v2_mmdet.pth',
    metric='coco/bbox_mAP',
)
TASKS = dict(  # old, new, and epochs of each
    kangaroo_raccoon=('kangaroo', 'raccoon', 10, 6),
    raccoon_kangaroo=('raccoon', 'kangaroo', 9, 7),
)


def rollback(**options) -> str:
    return f'optim_wrapper = dict(paramwise_cfg=dict(rollback=dict(_delete_=True, **{options})))\n'


FREE, LEVEL = rollback(max_level=0.0, min_level=0.0), rollback(max_level=0.03, min_level=0.03)
HELD_ROWS = "optim_wrapper['paramwise_cfg']['custom_keys'] = {'bbox_head.fc_': dict(rollback=1.0)}\n"  # not new ones
NORM_EVAL = 'model = dict(backbone=dict(norm_eval=True))\n'
FROZEN = "custom_hooks = [*_base_.custom_hooks, dict(type='olor_mm.FreezeBackboneHook')]\n"
LABELS = "train_dataloader['dataset'] = dict(ann_file='{folder}/labels.json')\n"
RESTORED = '_restored'  # another test of what a step has trained
# name: what it is, the config it starts from, and what is changed; in the order of what decides most
WAYS = dict(
    plain=('a new head, no rollback', 'rows', FREE + 'custom_hooks = _base_.custom_hooks[:-1]\n'),
    exact=('[exact mode](../exact.md): the old model is frozen, with a branch for the new class', 'exact', ''),
    rows_level=('rows, level 0.03', 'rows', LEVEL),
    rows_level_restored=('the same model, tested with `--pretrained-statistics`', '', ''),
    replay_level=('rows, level 0.03, 10 % old photos', 'replay', LEVEL),
    replay_level_restored=('the same model, tested with `--pretrained-statistics`', '', ''),
    joint=('rows, and all old photos', 'joint', FREE),
    rows=('rows, no rollback', 'rows', FREE),
    replay=('rows, no rollback, 10 % old photos', 'replay', FREE),
    rows_frozen_level=('rows, held at their values, level 0.03', 'rows', LEVEL + HELD_ROWS),
    rows_level_norm_eval=('rows, level 0.03, BatchNorm statistics frozen', 'rows', LEVEL + NORM_EVAL),
    rows_frozen=('rows, held at their values', 'rows', FREE + HELD_ROWS),
    frozen_backbone=('rows, the backbone is frozen', 'rows', FREE + FROZEN),
    frozen_all=(
        'all that is pre-trained is frozen, but new rows of the head learn',
        'rows',
        rollback(max_level=1.0, min_level=1.0, coupling='constant') + NORM_EVAL,
    ),
    rows_budget=('rows, a drift budget of 0.03', 'rows', rollback(max_drift=0.03)),
    rows_spd=('rows, SPD', 'rows', rollback(rule='spd', max_level=1.0)),
    rows_slow=('rows, learning rate 0.0003', 'rows', FREE + "optim_wrapper['optimizer'] = dict(lr=3e-4)\n"),
    labels=('rows, and labels of the old model', 'rows', FREE + LABELS),
)


class Photos(Study):
    """The steps of one pair of animals and one seed."""

    def __init__(self, task: str, seed: int, data: Path, done: set[tuple]):
        self.task, self.seed, self.done, self.of, self.data = task, seed, done, OF, data
        self.old, self.new, self.first, self.more = TASKS[task]
        self.folder = ROOT / f'work_dirs/keep_classes/{task}_{seed}'

    def rows(self, ways: list[str]) -> Iterator[dict]:
        """Do what has not been done, and yield its results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [way for way in ways if (self.task, str(self.seed), way) not in self.done]
        if missing and not (self.folder / f'work_dirs/old/epoch_{self.first}.pth').exists():
            self.done.discard((self.task, str(self.seed), 'before'))  # of another checkout
        for step in ('before', *ways):
            if (self.task, str(self.seed), step) not in self.done:
                start = time.monotonic()
                do = self.restore if step.endswith(RESTORED) else self.teach
                found = self.train_old() if step == 'before' else do(step)
                yield dict(task=self.task, seed=self.seed, step=step, **found, seconds=round(time.monotonic() - start))

    def train_old(self) -> dict:
        self.write_data()
        self.write_small()
        self.init('old', 'small.py', str(ROOT / 'data/weights' / self.of['weights']), self.first, [], 'first.py')
        (self.folder / 'old.py').write_text(f"_base_ = 'first.py'\n{self.quick(self.first)}")
        self.command('train', 'old.py')
        return dict(old=self.last('old', ''))

    def quick(self, epochs: int) -> str:
        """Validation after the last epoch alone."""
        return f'train_cfg = dict(val_interval={epochs})\ntrain_dataloader = dict(num_workers=0)\n'

    def write_data(self) -> None:
        """Write both data sets, and the new one with the categories of both."""
        categories = [dict(id=1 + i, name=name) for i, name in enumerate((self.old, self.new))]
        for place, name in dict(old=self.old, new=self.new).items():
            (self.folder / place).mkdir(exist_ok=True)
            for split in ('train', 'test'):
                content = json.loads((self.data / name / f'{split}.json').read_text())
                for image in content['images']:
                    image['file_name'] = str(self.data / name / image['file_name'])
                (self.folder / place / f'{split}.json').write_text(json.dumps(content))
                if (place, split) == ('new', 'train'):
                    both = [dict(annotation, category_id=2) for annotation in content['annotations']]
                    text = json.dumps(dict(content, categories=categories, annotations=both))
                    (self.folder / 'plain.json').write_text(text)

    def base_config(self, name: str) -> int:
        """Write the config that `init` gives, once, and return its epochs.

        Labels of the old model are replaced by the annotations alone.
        """
        images = {
            place: len(json.loads((self.folder / place / 'train.json').read_text())['images'])
            for place in ('old', 'new')
        }
        number, share, epochs = round(0.1 * images['old']) if name == 'replay' else 0, 0.1, self.more
        if name == 'joint':
            number, share = images['old'], images['old'] / sum(images.values())
            epochs = round(self.more * (1 - share))
        if not (self.folder / f'{name}.py').exists():
            keep = ['--keep-classes', *(['exact'] if name == 'exact' else []), '--replay', 'old']
            options = [*keep, '--replay-images', str(number), '--replay-share', f'{share:.2f}']
            said = self.init('new', 'old.py', f'work_dirs/old/epoch_{self.first}.pth', epochs, options, f'{name}.py')
            (self.folder / f'{name}_labels.json').write_text((self.folder / 'plain.json').read_text())
            if name == 'rows':
                words = next(shlex.split(line)[3:] for line in said.splitlines() if ' olor_mm label ' in line)
                words[words.index('--out') + 1] = 'labels.json'
                self.command(*words)
        return epochs

    def teach(self, way: str) -> dict:
        _, name, _ = WAYS[way]
        (self.folder / f'way_{way}.py').write_text(self.config(way, name, self.base_config(name)))
        self.command('train', f'way_{way}.py')
        return self.groups(f'way_{way}')

    def config(self, way: str, name: str, epochs: int) -> str:
        return f"_base_ = '{name}.py'\n{self.quick(epochs)}{WAYS[way][2].replace('{folder}', str(self.folder))}"

    def restore(self, way: str) -> dict:
        """Test what another step has trained."""
        run = f'way_{way.removesuffix(RESTORED)}'
        last = self.folder / 'work_dirs' / run / 'last_checkpoint'
        if not last.exists():  # of another checkout
            self.teach(way.removesuffix(RESTORED))
        words = [f'{run}.py', last.read_text().strip(), '--pretrained-statistics', '--work-dir', f'work_dirs/way_{way}']
        self.command('test', *words)
        found = json.loads(max((self.folder / f'work_dirs/way_{way}').glob('*/*.json')).read_text())
        return {group: found[f'{self.of["metric"]}_{group}'] for group in ('old', 'new')}


def run(tasks: list[str], seeds: list[int], ways: list[str], data: Path) -> None:
    for seed in seeds:
        for task in tasks:
            done = {(row['task'], row['seed'], row['step']) for row in read(RESULTS)}
            for row in Photos(task, seed, data, done).rows(ways):
                known = dict(commit=commit(), machine=machine(), date=date.today().isoformat())
                append(RESULTS, FIELDS, [row | known])
                PAGE.write_text(page())
                print(row, flush=True)


def page() -> str:
    rows = read(RESULTS)
    run = [way for way in WAYS if any(row['step'] == way for row in rows)]
    return TEXT.format(table(rows), '\n'.join(f'| `{way}` | {WAYS[way][0]} |' for way in run))


def table(rows: list[dict]) -> str:
    """The table of the page: means over the seeds that a way has, and the range where there are several."""
    values = {(row['task'], row['seed'], row['step']): row for row in rows}
    others = [way for way in dict.fromkeys(row['step'] for row in rows) if way != 'before' and way not in WAYS]
    parts = []
    for task, (old, new, *_) in TASKS.items():
        lines = [
            f'## {old.capitalize()}s, then {new}s\n',
            '| way | seeds | old class | of before | new class | of plain |',
        ]
        lines.append('|---|---|---|---|---|---|')
        for step in ('before', *WAYS, *others):
            seeds = sorted(seed for of, seed, way in values if (of, way) == (task, step))
            found = [values[task, seed, step] for seed in seeds]
            before, plain = (
                [values.get((task, seed, way), {}).get(key) for seed in seeds]
                for way, key in (('before', 'old'), ('plain', 'new'))
            )
            cells = [*pair([row['old'] for row in found], before), *pair([row['new'] for row in found], plain)]
            if found:
                lines.append(f'| `{step}` | {len(seeds)} | {" | ".join(cells)} |')
        parts += ['\n'.join(lines)] if len(lines) > 3 else []
    return '\n\n'.join(parts)


def pair(found: list[str], whole: list[str | None]) -> list[str]:
    """A mean with its range, and the mean share of what stands beside it."""
    numbers = [float(value) for value in found if value]
    if not numbers:
        return ['-', '-']
    spread = f' ({min(numbers):.3f} to {max(numbers):.3f})' if len(numbers) > 1 else ''
    shares = [float(a) / float(b) for a, b in zip(found, whole) if a and b]
    return [f'{np.mean(numbers):.3f}{spread}', f'{100 * np.mean(shares):.0f} %' if shares else '-']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--data', type=Path, help='folder with kangaroo and raccoon, each with train.json and test.json'
    )
    parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=list(TASKS))
    parser.add_argument('--ways', nargs='+', default=list(WAYS), choices=list(WAYS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--table', action='store_true', help='write the page from what there is, run nothing')
    args = parser.parse_args()
    if not args.table:
        if args.data is None or not (args.data / 'kangaroo').is_dir():
            parser.error(f'--data {args.data} has no photos: give a folder with kangaroo and raccoon, or --table')
        run(args.tasks, args.seeds, args.ways, args.data.resolve())
    PAGE.write_text(page())
    print(PAGE.read_text())


if __name__ == '__main__':
    main()
