"""``python -m olor_mm init``: a short config that fine-tunes a stock config with rollback on a folder of data."""

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from yapf.yapflib.yapf_api import FormatCode

from ..engine.loading import CheckpointError, load
from .data import TASKS, Data, DataError, examine
from .packaged import config_file

EXAMPLES = dict(
    classification='mmpretrain::resnet/resnet50_8xb32_in1k.py',
    detection='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    instance_segmentation='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    semantic_segmentation='mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
)
BATCH = dict(classification=16, detection=2, instance_segmentation=2, semantic_segmentation=4)
BEST = dict(
    classification='accuracy/top1',
    detection='coco/bbox_mAP',
    instance_segmentation='coco/segm_mAP',
    semantic_segmentation='mIoU',
)
WARMUP = 500  # iterations at most
LEVEL = 0.01  # whatever the length of the run: docs/en/choosing_a_level.md
NEW_HEADS = ('classification', 'semantic_segmentation')  # heads are new, and are trained at ten times the rate


class Code(str):
    """An expression in the config, for what is taken from its base."""

    __repr__ = str.__str__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('data', nargs='?', type=Path, help='folder of the data')
    parser.add_argument('--task', choices=TASKS)
    parser.add_argument('--config', help='config to start from: mmdet::PATH, mmseg::PATH, mmpretrain::PATH or a file')
    parser.add_argument(
        '--checkpoint',
        help='weights to start from, of the whole model or of its backbone: a file or URL; without, those that the '
        'config names itself',
    )
    parser.add_argument('--out', type=Path, help='config to write (default: DATA_TASK.py, here)')
    parser.add_argument('--classes', nargs='+', help='names of the classes, where the data does not tell them')
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--batch-size', type=int, help='images of a batch (default: 2 to 16, by task)')
    parser.add_argument('--lr', type=float, default=1e-4, help='learning rate of AdamW')
    parser.add_argument('--force', action='store_true', help='write over a file, and in spite of problems of the data')


def main(args: argparse.Namespace) -> None:
    if args.out is not None and (args.out.suffix != '.py' or not args.out.absolute().parent.is_dir()):
        raise SystemExit(f'init: --out {str(args.out)!r} has to end with .py, in a folder that is there')
    _ask(args)
    for name in ('epochs', 'batch_size', 'lr'):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise SystemExit(f'init: --{name.replace("_", "-")} {value} is not above 0')
    data_root = args.data.expanduser().resolve()
    out = (args.out or Path(f'{data_root.name}_{args.task}.py')).resolve()
    try:
        data = examine(data_root, args.task, out, args.classes)
        base = _base(args.config, args.task)
        for note in data.notes:
            print(f'note: {note}')
        for problem in data.problems:
            print(f'problem: {problem}', file=sys.stderr)
        if data.problems and not args.force:
            raise DataError('nothing was written; mend the data, or use --force')
        weights = _weights(base, args.checkpoint)
    except (DataError, CheckpointError) as error:
        raise SystemExit(f'init: {args.data}: {error}') from error
    taken = [file for file in (out, *data.written) if file.exists()]
    if taken and not args.force:
        raise SystemExit(f'init: {str(taken[0])!r} is there already; take another --out, or --force')
    files = {**data.written, out: _config(args, base, data_root, data, weights)}
    for file, text in files.items():
        file.write_text(text)
    steps = math.ceil(data.images / _batch_size(args, data)) * args.epochs
    print(f'{out.name}: {len(data.classes)} classes, {data.images} training images, {steps} iterations. Go on with')
    shown = shlex.quote(f'{out}' if out.parent != Path.cwd() else out.name)
    print(f'    python -m olor_mm print_rollback {shown}\n    python -m olor_mm train {shown}')
    print(f'    python -m olor_mm test {shown} CHECKPOINT')


def _ask(args: argparse.Namespace) -> None:
    questions = dict(
        data=('Folder of the data', None),
        task=(f'Task ({", ".join(TASKS)})', None),
        config=('Config to start from', EXAMPLES),
        checkpoint=('Checkpoint, of the model or its backbone (empty: what the config names)', {}),
    )
    for name, (question, defaults) in questions.items():
        if getattr(args, name) is not None or (name == 'checkpoint' and not sys.stdin.isatty()):
            continue
        if not sys.stdin.isatty():
            raise SystemExit(f'init: {name if name == "data" else "--" + name} is missing')
        default = (defaults or {}).get(args.task)
        answer = input(question + (f' [{default}]' if default else '') + ': ').strip() or default
        if (name == 'task' and answer not in TASKS) or (answer is None and name != 'checkpoint'):
            raise SystemExit(f'init: {name}={answer!r} is not an answer')
        setattr(args, name, Path(answer or '') if name == 'data' else answer)


def _batch_size(args: argparse.Namespace, data: Data) -> int:
    return min(args.batch_size or BATCH[args.task], data.images)


def _innermost(loader: dict, path: str) -> tuple[dict, str, bool]:
    """The data set within wrappers of a data loader, where it stands in ``_base_``, and whether images are mixed."""
    dataset, path, mixed = loader['dataset'], f'{path}.dataset', False
    while 'dataset' in dataset or 'datasets' in dataset:
        if dataset['type'] == 'MultiImageMixDataset':
            return dataset, path, True
        if 'datasets' in dataset:
            dataset, path = dataset['datasets'][0], f'{path}.datasets[0]'
        else:
            dataset, path = dataset['dataset'], f'{path}.dataset'
    return dataset, path, mixed


def _steps(dataset: dict, name: str) -> list[dict]:
    steps = [*dataset.get('pipeline', ()), *dataset.get('dataset', {}).get('pipeline', ())]
    return [step for step in steps if step['type'] == name]


def _base(name: str, task: str) -> Config:
    """The config to start from.

    Raises:
        DataError: If it cannot be read or is of another task.
    """
    try:
        cfg = Config.fromfile(config_file(name))
    except SystemExit as error:
        raise DataError(str(error)) from error
    except Exception as error:  # a config is Python: it can fail in any way
        raise DataError(f'--config {name} cannot be read: {type(error).__name__}: {error}') from error
    found = dict(mmpretrain='classification', mmseg='semantic_segmentation').get(cfg.get('default_scope'))
    if cfg.get('default_scope') == 'mmdet' and cfg.get('train_dataloader'):
        steps = _steps(_innermost(cfg.train_dataloader, '')[0], 'LoadAnnotations')
        if steps:
            found = 'instance_segmentation' if steps[0].get('with_mask') else 'detection'
    if found != task:
        raise DataError(
            f'--config {name} is of the task {found or "of none of " + ", ".join(TASKS)}, and --task is {task}; '
            f'one of its task is {EXAMPLES[task]}'
        )
    if not any(True for _ in _heads(cfg.model)):
        raise DataError(f'--config {name} has no head with a number of classes; one that has is {EXAMPLES[task]}')
    return cfg


def _heads(node: Any, path: tuple = ()):
    """Paths to all dicts in a model that have a number of classes; that of an RPN is none of the data."""
    if isinstance(node, dict):
        if {'num_classes', 'num_things_classes'} & node.keys() and node.get('num_classes', -1) is not None:
            yield path
        for key, value in node.items():
            if key not in ('rpn_head', 'train_cfg', 'test_cfg'):
                yield from _heads(value, (*path, key))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _heads(value, (*path, i))


def _with_classes(node: Any, number: int, path: str = '_base_.model') -> Any:
    """What of a model has to change for a number of classes; lists, which are not merged, as code."""
    if isinstance(node, (list, tuple)):
        items = [_with_classes(value, number, f'{path}[{i}]') for i, value in enumerate(node)]
        if not any(items):
            return None
        same = all(item == items[0] for item in items)
        each = Code(f'dict(part, {_arguments(items[0])})') if same and '_base_' not in repr(items[0]) else None
        if each:
            return Code(f'[{each} for part in {path}]')
        return Code(f'[{", ".join(_merged(f"{path}[{i}]", item) for i, item in enumerate(items))}]')
    if not isinstance(node, dict):
        return None
    changes: dict[str, Any] = {}
    for key, value in node.items():
        if key in ('rpn_head', 'train_cfg', 'test_cfg'):
            continue
        if key in ('num_classes', 'num_things_classes', 'num_stuff_classes') and isinstance(value, int):
            changes[key] = 0 if key == 'num_stuff_classes' else number
        elif key == 'class_weight' and isinstance(value, (list, tuple)):
            # the last one of a Mask2Former or DETR is for no object; others are of the classes of the stock data set
            changes[key] = [1.0] * number + [value[-1]] if value[-1] < 1 else None
        elif key == 'topk':
            changes[key] = (1,)
        else:
            changed = _with_classes(value, number, f'{path}.{key}')
            if changed:
                changes[key] = changed
    return changes


def _arguments(changes: dict) -> str:
    return ', '.join(f'{key}={_code(value)}' for key, value in changes.items())


def _merged(path: str, changes: dict) -> str:
    """Code for a part of the base with some settings changed, in places where MMEngine would not merge."""
    changed = {
        key: Code(_merged(f'{path}.{key}', value)) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return f'dict({path}, {_arguments(changed)})'


def _code(value: Any) -> str:
    if isinstance(value, dict):
        if all(str(key).isidentifier() for key in value):
            return f'dict({_arguments(value)})'
        return '{' + ', '.join(f'{key!r}: {_code(item)}' for key, item in value.items()) + '}'
    if isinstance(value, (list, tuple)) and not isinstance(value, Code):
        items = ', '.join(map(_code, value))
        return f'[{items}]' if isinstance(value, list) else f'({items}{"," * (len(value) == 1)})'
    return repr(value)


def _weights(base: Config, checkpoint: str | None) -> dict:
    """Settings of the config that load the checkpoint: into the whole model, or into its backbone.

    Raises:
        DataError: If there is none, or it does not fit.
    """
    backbone = base.model.get('backbone') or {}
    init_cfg = backbone.get('init_cfg')
    own = init_cfg.get('checkpoint') if isinstance(init_cfg, dict) else None
    declared = own or backbone.get('pretrained') or base.model.get('pretrained') or base.get('load_from')
    if checkpoint is None:
        if not declared:
            raise DataError(
                'the config names no pre-trained weights, and rollback needs some: give --checkpoint; '
                'those of a stock config are fetched by `mim download mmpretrain --config NAME --dest .`'
            )
        if isinstance(declared, str) and '://' not in declared and not Path(declared).is_file():
            raise DataError(f'the config names the weights {declared!r}, which are not there; give --checkpoint')
        return {}
    quiet: dict[str, Any] = dict(pretrained=None) if base.model.get('pretrained') else {}  # load no others before
    if '://' in checkpoint:
        print(
            'note: that the checkpoint fits is not checked, since it is not here; it is taken to be of the whole model'
        )
        return dict(load_from=checkpoint, model=quiet)
    file = Path(checkpoint).expanduser().resolve()
    if not file.is_file():
        raise DataError(f'--checkpoint {checkpoint} is not a file')
    state = load(file, map_location='cpu')
    state = next((state[key] for key in ('state_dict', 'model') if isinstance(state, dict) and key in state), state)
    if not isinstance(state, dict):
        raise DataError(f'--checkpoint {checkpoint} has no weights by name in it, but a {type(state).__name__}')
    with DefaultScope.overwrite_default_scope(base.default_scope):
        model = _build(base)
    names = {name for name in model.state_dict() if name.startswith('backbone.')} or set(model.state_dict())
    whole = len(names & state.keys()) / len(names)
    inner = len(names & {f'backbone.{name}' for name in state}) / len(names)
    if max(whole, inner) < 0.5 and not (backbone.get('convert_weights') and state):
        raise DataError(
            f'--checkpoint {checkpoint} does not fit the model: of {len(names)} weights of its backbone, e.g. '
            f'{min(names)!r}, it has {max(whole, inner):.0%}; its own are called {[*state][:2]}'
        )
    if whole >= 0.5:
        if own:
            quiet['backbone'] = dict(init_cfg=None)
        return dict(load_from=str(file), model=quiet)
    own_weights = dict(_delete_=True, type='Pretrained', checkpoint=str(file))
    return dict(model=dict(quiet, backbone=dict(init_cfg=own_weights)))


def _build(cfg: Config) -> nn.Module:
    from mmengine.registry import MODELS

    model = cfg.model.copy()
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in model:
        model['data_preprocessor'] = cfg.data_preprocessor
    model.pop('pretrained', None)
    return MODELS.build(model)


def _merge(into: dict, other: dict) -> dict:
    for key, value in other.items():
        into[key] = _merge(into[key], value) if isinstance(into.get(key), dict) and isinstance(value, dict) else value
    return into


def _config(args: argparse.Namespace, base: Config, data_root: Path, data: Data, weights: dict) -> str:
    """The text of the config."""
    task, number, epochs = args.task, len(data.classes), args.epochs
    batch = _batch_size(args, data)
    iterations = math.ceil(data.images / batch)
    settings: dict[str, Any] = dict(
        model=_merge(_with_classes(base.model, number), weights.get('model', {})),
        **{key: value for key, value in weights.items() if key != 'model'},
        classes=tuple(data.classes),
        data_root=f'{data_root}/',
    )
    if base.get('data_preprocessor', {}).get('num_classes'):
        settings['data_preprocessor'] = dict(num_classes=number)
    for split in ('train', 'val'):
        settings[f'{split}_dataloader'] = _dataloader(base, task, split, getattr(data, split), batch)
    settings |= dict(test_dataloader=Code('val_dataloader'), val_evaluator=_evaluator(task, data))
    settings |= dict(test_evaluator=Code('val_evaluator'))
    keys = base.get('optim_wrapper', {}).get('paramwise_cfg', {}).get('custom_keys', {})
    keys = {key: {k: v for k, v in options.items() if k != 'lr_mult'} for key, options in keys.items()}
    keys = {key: options for key, options in keys.items() if options}
    if task in NEW_HEADS:
        keys['head'] = dict(lr_mult=10.0)
    paramwise = dict(rollback=dict(max_level=LEVEL, pretrained='auto'), norm_decay_mult=0.0)
    settings['optim_wrapper'] = dict(
        _delete_=True,
        type='OptimWrapper',
        constructor='olor_mm.OLOROptimWrapperConstructor',
        optimizer=dict(type='olor_mm.AdamWOLOR', lr=args.lr, weight_decay=0.05),
        paramwise_cfg=dict(paramwise, custom_keys=keys) if keys else paramwise,
        clip_grad=dict(max_norm=10.0),
    )
    warmup = min(WARMUP, iterations * epochs // 10)
    cosine = dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, end=epochs, convert_to_iter_based=True)
    linear = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=warmup)
    settings |= dict(
        train_cfg=dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1),
        param_scheduler=[linear, cosine] if warmup > 1 else [cosine],  # of one iteration it would never end
        default_hooks=dict(
            logger=dict(_delete_=True, type='LoggerHook', interval=min(50, iterations)),
            checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best=BEST[task]),
        ),
        log_processor=dict(by_epoch=True),
    )
    hooks = base.get('custom_hooks') or []
    if any(hook['type'] == 'PipelineSwitchHook' for hook in hooks):  # of RTMDet: the last epochs without mosaic
        settings['custom_hooks'] = [
            Code(
                f'dict(_base_.custom_hooks[{i}], switch_epoch={epochs // 2})'
                if 'switch_epoch' in hook
                else f'_base_.custom_hooks[{i}]'
            )
            for i, hook in enumerate(hooks)
        ]
    name = args.config if '::' in args.config else str(Path(config_file(args.config)).resolve())
    lines = [f'_base_ = {name!r}', *(f'{key} = {_code(value)}' for key, value in settings.items())]
    style = dict(based_on_style='facebook', column_limit=100)
    note = '# Written by `python -m olor_mm init`: stock settings but for data, classes, schedule and rollback.\n'
    return note + FormatCode('\n'.join(lines), style_config=style)[0]


def _dataloader(base: Config, task: str, split: str, fields: dict, batch: int) -> dict:
    dataset, path, mixed = _innermost(base[f'{split}_dataloader'], f'_base_.{split}_dataloader')
    inner = dataset['dataset'] if mixed else dataset
    path = f'{path}.dataset' if mixed else path
    kind = dict(classification='CustomDataset', semantic_segmentation='BaseSegDataset').get(task, 'CocoDataset')
    pipeline = f'{path}.pipeline'
    if any(step.get('reduce_zero_label') for step in _steps(inner, 'LoadAnnotations')):
        pipeline = (
            "[dict(step, reduce_zero_label=False) if step['type'] == 'LoadAnnotations' else step "
            f'for step in {pipeline}]'
        )
    own = dict(
        type=kind,
        data_root=Code('data_root'),
        **fields,
        metainfo=dict(classes=Code('classes')),
        pipeline=Code(pipeline),
    )
    if kind == 'CocoDataset':
        own |= dict(filter_cfg=dict(filter_empty_gt=True, min_size=0)) if split == 'train' else dict(test_mode=True)
    elif split == 'val':
        own |= dict(test_mode=True)
    workers = dict(num_workers=2, persistent_workers=False)
    return dict(
        **(dict(batch_size=batch) if split == 'train' else {}),
        **workers,
        sampler=dict(_delete_=True, type='DefaultSampler', shuffle=split == 'train'),
        dataset=dict(dataset=dict(_delete_=True, **own)) if mixed else dict(_delete_=True, **own),
    )


def _evaluator(task: str, data: Data) -> dict:
    if task == 'classification':
        return dict(_delete_=True, type='Accuracy', topk=(1,))
    if task == 'semantic_segmentation':
        return dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
    file = data.val['ann_file']
    metric = ['bbox', 'segm'] if task == 'instance_segmentation' else 'bbox'
    absolute = Path(file).is_absolute()
    return dict(
        _delete_=True, type='CocoMetric', ann_file=file if absolute else Code(f'data_root + {file!r}'), metric=metric
    )
