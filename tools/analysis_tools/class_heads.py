"""Give every stock model of mmdet, mmseg and mmpretrain other classes, and compare what it says of those it keeps.

python tools/analysis_tools/class_heads.py                    # all of them, on one process: about half an hour
python tools/analysis_tools/class_heads.py --match 'retina|ssd' --work-dir /tmp/classes --out /tmp/classes

For every distinct model, but for its backbone and neck: build it with 10 classes, with 13 in another order, and with
the 10 in another order; transfer the weights; check that every weight whose shape depends on the number of classes was
transferred, with the rows of each class at its place; and, once for heads of the same classes and weights, run the
heads of the first on an image and the others on the same input, and compare the outputs of the shared classes. Finished
rows are kept in the work directory and not computed again.
"""

import argparse
import copy
import csv
import hashlib
import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import stock_configs as stock
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from outputs_of_heads import COUPLED, TOLERANCE, calls_of, compare_outputs, difference, is_coupled
from rich.progress import track
from torch import nn

from olor_mm.classes import TransferReport, transfer_classes
from olor_mm.cli.parser import Parser

OLD, MORE, STUFF = 10, 3, 4
COLUMNS = ('library', 'model', 'heads', 'weights', 'compared', 'result', 'configs', 'config')
OTHERS = ('semantic_head', 'rpn_head', 'reid', 'teacher_config')  # of other classes, or none


def classes_of(cfg, key: str = '') -> Iterator[int]:
    """Numbers of classes in a model's config, its main head's first."""
    if isinstance(cfg, dict):
        yield from (cfg[key] for key in ('num_things_classes', 'num_classes') if isinstance(cfg.get(key), int))
        for name in sorted(cfg, key=lambda name: 'head' not in name):
            yield from () if name in OTHERS else classes_of(cfg[name])
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from classes_of(value)


def with_classes(cfg, old: int, new: int, stuff: int) -> None:
    """Change the number of classes wherever it is in a model's config; and that of the stuff of panoptic models."""
    for key, value in cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, list) else ():
        if key in ('num_classes', 'num_things_classes') and value == old:
            cfg[key] = new
        elif key == 'num_stuff_classes' and value:
            cfg[key] = stuff
        elif key == 'class_weight' and isinstance(value, (list, tuple)):
            cfg[key] = None  # their number depends on the classes
        elif key == 'max_per_img':
            cfg[key] = 4  # boxes that heads of regions run on
        elif key not in OTHERS:
            with_classes(value, old, new, stuff)


def weight_by_class(cfg, model_classes: int) -> None:
    """Losses of queries want a weight for every class, and one for none."""
    for key, value in cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, list) else ():
        if key == 'class_weight' and value is None:
            cfg[key] = [1.0] * model_classes + [0.1]
        else:
            weight_by_class(value, model_classes)


def build(cfg: dict, classes: int, stuff: int) -> nn.Module:
    """The model with so many classes and weights that are no constants."""
    cfg = ConfigDict(copy.deepcopy(cfg))
    before = next(classes_of(cfg), 80)
    with_classes(cfg, before, classes, stuff)
    weight_by_class(cfg, classes + stuff * ('num_stuff_classes' in str(cfg)))
    with stock.uninitialised():
        model = MODELS.build(cfg)
    model.eval()
    return model


@torch.no_grad()
def fill(model: nn.Module, names: Collection[str] | None = None) -> None:
    """Weights of a size that keeps signals alive, the same in every model where shapes are the same."""
    noise = torch.rand(1_000_003, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for at, (name, p) in enumerate(model.named_parameters()):
        if names is not None and name not in names:
            continue
        scale = (3 / max(p[0].numel(), 1)) ** 0.5 if p.ndim > 1 else 0.1
        shift = 1.0 if p.ndim == 1 and name.endswith('weight') else 0.0
        p.copy_(stock.tiled(noise.roll(1009 * at), p) * scale + shift)


def key_of(cfg: dict, library: str) -> str:
    """The same for models that have the same heads."""
    kept = stock.without(cfg, (*stock.IGNORED, 'backbone', 'neck'))
    return hashlib.sha256(json.dumps([library, kept], sort_keys=True, default=str).encode()).hexdigest()[:16]


def names_of(count: int, stuff: int) -> list[str]:
    return [f'thing {i}' for i in range(count)] + [f'stuff {i}' for i in range(stuff)]


def reordered(names: list[str], things: int) -> list[str]:
    """Another order of the things; stuff, of which there is as much in every model, comes after them as it was."""
    order = torch.randperm(things, generator=torch.Generator().manual_seed(1)).tolist()
    return [names[at] for at in order] + names[things:]


def signature_of(model: nn.Module, report: TransferReport, shapes: dict[str, tuple]) -> str:
    """The same for heads of the same classes with the same weights: their outputs are compared once."""
    kinds = [(head.name, type(model.get_submodule(head.name)).__name__) for head in report.heads]
    found = [(name, [(a - b, a if a != b else 0) for a, b in zip(*pair)]) for name, pair in sorted(shapes.items())]
    return hashlib.sha256(repr((kinds, found)).encode()).hexdigest()[:16]


def examine(task: tuple[str, str, str], compared: dict[str, tuple[str, str]]) -> dict:
    """One row of the table. ``compared`` has what the comparison of outputs gave by signature, and gets it."""
    path, key, library = task
    row = dict.fromkeys(COLUMNS, '') | dict(key=key, library=library)
    return stock.in_time(path, row, lambda: _examine(path, row, compared))


def _examine(path: str, row: dict, compared: dict[str, tuple[str, str]]) -> None:
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope') or row['library'])
    stock.forget_weights(cfg.model)
    row['model'] = stock.name_of(cfg.model.get('type'))
    is_panoptic = any(count for count in numbers_of(cfg.model, 'num_stuff_classes'))
    stuff = STUFF if is_panoptic else 0
    try:
        before, after = build(cfg.model, OLD, stuff), build(cfg.model, OLD + MORE, stuff)
    except Exception as error:
        row['result'] = f'not built: {stock.shortened(error)}'
        return
    sizes = {name: value.shape for name, value in before.state_dict().items()}
    dependent = {name for name, value in after.state_dict().items() if sizes.get(name) != value.shape}
    row['weights'] = len(dependent)
    if not dependent:
        row['result'] = 'has no weights of classes'
        return
    old, new = names_of(OLD, stuff), reordered(names_of(OLD + MORE, stuff), OLD + MORE)
    shapes = {name: (sizes[name], value.shape) for name, value in after.state_dict().items() if name in dependent}
    report = check_weights(before, after, shapes, old, new)
    why = [f'{head.name}: {head.reason}' for head in report.heads if head.reason] + report.unknown
    lost = sorted(dependent - report.rows.keys() - {name for name, _ in after.named_buffers()})
    row['heads'] = ', '.join(sorted({type(after.get_submodule(head.name)).__name__ for head in report.heads}))
    if why or lost:
        row['result'] = f'not known: {"; ".join(why) or lost[0]}'
        return
    if report.rows.keys() - dependent and not stuff:
        raise RuntimeError(f'{min(report.rows.keys() - dependent)} was transferred, and does not depend on the classes')
    check_weights(before, before, shapes, old, reordered(old, OLD))
    row['signature'] = signature_of(after, report, shapes)
    if row['signature'] not in compared:
        compared[row['signature']] = check_outputs(before, after, report, old, new)
    row['compared'], row['result'] = compared[row['signature']]


def numbers_of(cfg, key: str) -> Iterator[int]:
    pairs = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else ()
    for name, value in pairs:
        yield from [value] if name == key else numbers_of(value, key)


def check_outputs(before, after, report: TransferReport, old, new) -> tuple[str, str]:
    """Run both models with the same weights, and the old one with its classes in another order; what was compared.

    Raises:
        RuntimeError: If outputs of shared classes differ.
    """
    prefixes = tuple(f'{head.name}.' for head in report.heads)
    heads = [name for name in before.state_dict() if name.startswith(prefixes)]
    fill(before), fill(after, heads)
    given = {name: value.clone() if name in heads else value for name, value in before.state_dict().items()}
    calls, sizes = calls_of(before, report), {}
    for model, order in ((after, new), (before, reordered(old, OLD))):
        state = transfer_classes(model, given, old, order)[0]
        model.load_state_dict({name: state[name] for name in heads}, strict=False)
        compare_outputs(calls, model, sizes, MORE, old, order)
    coupled = [COUPLED[type(part).__name__] for part in after.modules() if is_coupled(part)]
    return f'{len(calls)} of {len(report.heads)}', f'not equal: {coupled[0]}' if coupled else 'ok'


def check_weights(before, after, shapes: dict[str, tuple], old, new) -> TransferReport:
    """Transfer weights that depend on the classes, and compare their rows.

    Raises:
        RuntimeError: If those of shared classes differ.
    """
    fill(before, shapes), fill(after, shapes)
    given = {name: value.clone() if name in shapes else value for name, value in before.state_dict().items()}
    state, report = transfer_classes(after, given, old, new)
    owners = sorted((head.name for head in report.heads), key=len, reverse=True)
    for name in report.rows:
        head = after.get_submodule(next(owner for owner in owners if name.startswith(owner)))
        if name in shapes and difference(given[name], state[name], shapes[name], MORE, head, old, new):
            raise RuntimeError(f'{name}: rows of shared classes differ')
    return report


def read(path: str, library: str) -> str:
    """The key of the heads of a config's model, '' if it has none or cannot be read."""
    try:
        model = Config.fromfile(path).to_dict().get('model')
    except Exception:  # stock_configs.py lists these
        return ''
    return '' if model is None else key_of(model, library)


def write(rows: list[dict], counts: Counter, out: Path) -> None:
    """``class_heads.csv`` with every distinct model, and ``class_heads.md`` with a line for each kind of heads."""
    for row in rows:
        row['configs'] = counts[row['key']]
    rows = sorted(
        rows, key=lambda row: (stock.LIBRARIES.index(row['library']), row['heads'], row['model'], row['config'])
    )
    out.mkdir(parents=True, exist_ok=True)
    with open(out / 'class_heads.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction='ignore')
        writer.writeheader()
        writer.writerows(rows)
    without = [row for row in rows if row['result'].startswith('has no') or row['result'].startswith('not built')]
    heads = [row for row in rows if row not in without]
    groups: dict[tuple, list[dict]] = {}
    for row in heads:
        groups.setdefault((row['library'], row['heads'], row['result']), []).append(row)
    known = sum(row['configs'] for row in heads if row['result'] == 'ok')
    total = sum(row['configs'] for row in heads)
    lines = [
        '# Heads with classes',
        '',
        'Does the head of your model keep its classes when it [learns more](add_classes.md)? Search this page for it.',
        '',
        'Written by `python tools/analysis_tools/class_heads.py`; every distinct model, but for its backbone and neck, '
        'is a row of [class_heads.csv](class_heads.csv). With '
        + ', '.join(f'{name} {importlib.import_module(name).__version__}' for name in (*stock.LIBRARIES, 'torch'))
        + '.',
        '',
        'When a model gets other classes, `ClassTransferHook` keeps the rows of these heads for classes that stay. Any '
        'other head stays new, and the log says why. A class of your own counts as the head it inherits from, unless '
        'it overrides what computes or reads the outputs. Where classes see each other, new ones change what the head '
        'says of all: it keeps its rows too, but the outputs are equal only after a change of order.',
        '',
        f'- {len(rows)} of {len(counts)} distinct models were looked at; the others are not in the table',
        f'- {total} configs with weights of classes, {len(heads)} distinct models',
        f'- **{known} configs ({100 * known / max(total, 1):.1f} %) known**: outputs of shared classes are those of '
        f'the old model to {TOLERANCE:g}. {OLD} classes were transferred to {OLD + MORE} in another order, and to the '
        f'same {OLD} in another order',
        f'- {sum(row["configs"] for row in without)} configs without weights of classes, or not built here',
        '',
    ]
    columns = ('library', 'heads', 'models', 'configs', 'result', 'e.g.')
    cells = [
        (library, heads, len(some), sum(row['configs'] for row in some), result, some[0]['config'])
        for (library, heads, result), some in groups.items()
    ]
    lines += stock.table('## Known', columns, [cell for cell in cells if cell[4] == 'ok'])
    lines += stock.table('## Not known', columns, [cell for cell in cells if cell[4] != 'ok'])
    reasons = Counter()
    for row in without:
        reasons[row['library'], row['model'], row['result']] += row['configs']
    lines += stock.table(
        '## Without weights of classes, or not built here',
        ('configs', 'library', 'model', 'reason'),
        [(n, *key) for key, n in reasons.items()],
    )
    (out / 'class_heads.md').write_text('\n'.join(lines))


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--match', default='', help='only configs whose path has this regular expression')
    parser.add_argument('--work-dir', default='work_dirs/class_heads', help='where rows are kept that are done')
    parser.add_argument('--out', default='docs/en', help='folder for class_heads.md and class_heads.csv')
    args = parser.parse_args()
    work_dir = Path(args.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1')
    done = (work_dir / 'rows.jsonl').resolve()
    out = Path(args.out).resolve()
    counts, first = Counter(), {}
    for library in stock.LIBRARIES:
        for path in (str(path) for path in stock.stock_configs(library) if re.search(args.match, str(path))):
            key = read(path, library)
            counts[key] += bool(key)
            first.setdefault(key, (path, key, library))
    first.pop('', None)
    if not first:
        raise SystemExit(f'--match {args.match!r}: no stock config has this in its path; give a part of one, e.g. swin')
    known = {row['key']: row for row in stock.results(done) if not row['result'].startswith('FAILED')}
    compared = {row['signature']: (row['compared'], row['result']) for row in known.values() if row.get('compared')}
    stock.prepare()
    with open(done, 'a') as file:
        for task in track([task for key, task in first.items() if key not in known], 'Models'):
            file.write(json.dumps(examine(task, compared)) + '\n')
            file.flush()
    rows = [row for row in {row['key']: row for row in stock.results(done)}.values() if row['key'] in first]
    write(rows, counts, out)


if __name__ == '__main__':
    main()
