"""The text of a config that fine-tunes a stock config on other data, with rollback."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from yapf.yapflib.yapf_api import FormatCode

from ..extend.exact import COUNTS, NO_CLASSES
from .data import Data

BEST = dict(
    classification='accuracy/top1',
    detection='coco/bbox_mAP',
    instance_segmentation='coco/segm_mAP',
    semantic_segmentation='mIoU',
)
KINDS = dict(classification='CustomDataset', semantic_segmentation='BaseSegDataset')  # of others, CocoDataset
WARMUP = 500  # iterations at most
MAX_DRIFT = (0.04, 0.16)  # at any learning rate: docs/en/choosing_how_strong.md
NEW_HEADS = ('classification', 'semantic_segmentation')  # whose heads are new, and train at ten times the rate


class Code(str):
    """An expression in the config, for what is taken from its base."""

    __repr__ = str.__str__


def config_text(
    base: Config,
    name: str,
    task: str,
    data: Data,
    data_root: Path,
    weights: dict,
    batch: int,
    epochs: int,
    lr: float,
    change: Callable[[dict, Config, str], str] | None = None,
) -> str:
    """The text of the config; ``name`` is what to write for the base, ``weights`` are settings that load them.

    ``change`` changes the settings for a base and a task, and returns what to say of the rollback in a comment.
    """
    number = len(data.classes)
    settings: dict[str, Any] = dict(
        model=merge(with_classes(base.model, number), weights.get('model', {})),
        **{key: value for key, value in weights.items() if key != 'model'},
        classes=tuple(data.classes),
        data_root=f'{data_root}/',
    )
    # the config that a run has dumped names that run's folder, and may say that it was resumed
    settings |= {key: value for key, value in dict(work_dir=None, resume=False).items() if base.get(key)}
    if base.get('data_preprocessor', {}).get('num_classes'):
        settings['data_preprocessor'] = dict(num_classes=number)
    settings |= dict(
        train_dataloader=dict(batch_size=batch, **_dataloader(base, task, 'train', data.train, data.loading)),
        val_dataloader=_dataloader(base, task, 'val', data.val, data.loading),
        test_dataloader=_dataloader(base, task, 'val', data.val, data.loading),
        val_evaluator=_evaluator(task, data),
        test_evaluator=_evaluator(task, data),
        optim_wrapper=_optim_wrapper(base, task, lr),
        **_schedule(base, task, math.ceil(data.images / batch), epochs),
    )
    note = (
        '# max_drift: how far weights that come from the checkpoint may move, as a share of their norm, in the layer\n'
        '# nearest the input and in neck and heads; half of both keeps more (docs: How strongly to pull)\n'
    )
    if change is not None:
        note = change(settings, base, task)
    settings = _without_needless_deletes(settings, base.to_dict())
    for part in ('dataloader', 'evaluator'):
        if settings[f'test_{part}'] == settings[f'val_{part}']:
            settings[f'test_{part}'] = Code(f'val_{part}')
    lines = [f'_base_ = {name!r}', *(f'{key} = {_code(value)}' for key, value in settings.items())]
    style = dict(based_on_style='facebook', column_limit=100)
    written = (
        '# Written by `python -m olor_mm init`: the stock config with other data, classes, schedule and rollback.\n'
    )
    return written + note + FormatCode('\n'.join(lines), style_config=style)[0]


def innermost(loader: dict, path: str) -> tuple[dict, str, bool]:
    """The data set within the wrappers of a data loader, its place in ``_base_``, and whether images are mixed."""
    dataset, path = loader['dataset'], f'{path}.dataset'
    while 'dataset' in dataset or 'datasets' in dataset:
        if dataset['type'] == 'MultiImageMixDataset':
            return dataset, path, True
        if 'datasets' in dataset:
            dataset, path = dataset['datasets'][0], f'{path}.datasets[0]'
        else:
            dataset, path = dataset['dataset'], f'{path}.dataset'
    return dataset, path, False


def steps_of(dataset: dict, name: str) -> list[dict]:
    """All steps of one type in the pipeline of a data set or of the one within."""
    steps = [*dataset.get('pipeline', ()), *dataset.get('dataset', {}).get('pipeline', ())]
    return [step for step in steps if step['type'] == name]


def with_classes(node: Any, number: int, path: str = '_base_.model') -> Any:
    """What changes in a model's config with the number of classes; as code in lists, which MMEngine does not merge."""
    if isinstance(node, (list, tuple)):
        items = [with_classes(value, number, f'{path}[{i}]') for i, value in enumerate(node)]
        if not any(items):
            return None
        if all(item == items[0] for item in items) and '_base_' not in repr(items[0]):
            return Code(f'[dict(part, {_arguments(items[0])}) for part in {path}]')
        return Code(f'[{", ".join(merged(f"{path}[{i}]", item or {}) for i, item in enumerate(items))}]')
    if not isinstance(node, dict):
        return None
    changes: dict[str, Any] = {}
    for key, value in node.items():
        if key in COUNTS and isinstance(value, int):
            changes[key] = number
        elif key == 'num_stuff_classes':
            changes[key] = 0
        elif key == 'class_weight' and isinstance(value, (list, tuple)):
            # the last weight of a Mask2Former or DETR is of no object; others are of the classes of the stock data set
            changes[key] = [1.0] * number + [value[-1]] if value[-1] < 1 else None
        elif key == 'topk':
            changes[key] = (1,)
        elif key not in NO_CLASSES and (changed := with_classes(value, number, f'{path}.{key}')):
            changes[key] = changed
    return changes


def merged(path: str, changes: dict) -> str:
    """Code for a part of the base with some settings changed, in places where MMEngine does not merge."""
    changed = {k: Code(merged(f'{path}.{k}', v)) if isinstance(v, dict) else v for k, v in changes.items()}
    return f'dict({path}, {_arguments(changed)})'


def _arguments(changes: dict) -> str:
    return ', '.join(f'{key}={_code(value)}' for key, value in changes.items())


def _code(value: Any) -> str:
    if isinstance(value, dict):
        if all(str(key).isidentifier() for key in value):
            return f'dict({_arguments(value)})'
        return '{' + ', '.join(f'{key!r}: {_code(item)}' for key, item in value.items()) + '}'
    if isinstance(value, (list, tuple)):
        items = ', '.join(map(_code, value))
        return f'[{items}]' if isinstance(value, list) else f'({items}{"," * (len(value) == 1)})'
    return repr(value)


def merge(into: dict, other: dict) -> dict:
    for key, value in other.items():
        into[key] = merge(into[key], value) if isinstance(into.get(key), dict) and isinstance(value, dict) else value
    return into


def _without_needless_deletes(settings: dict, base: Any) -> dict:
    """The settings without ``_delete_`` where the base has nothing, since MMEngine takes it for a setting there."""
    kept = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            is_there = isinstance(base, dict) and key in base
            within = base[key] if is_there and '_delete_' not in value else None
            value = _without_needless_deletes(value, within)
            if not is_there:
                value.pop('_delete_', None)
        kept[key] = value
    return kept


def _optim_wrapper(base: Config, task: str, lr: float) -> dict:
    """AdamW with rollback, and the stock config's own ``custom_keys`` without their learning rates."""
    stock = base.get('optim_wrapper', {}).get('paramwise_cfg', {}).get('custom_keys', {})
    keys = {key: {k: v for k, v in options.items() if k != 'lr_mult'} for key, options in stock.items()}
    keys = {key: options for key, options in keys.items() if options}
    if task in NEW_HEADS:
        keys['head'] = dict(lr_mult=10.0)
    paramwise = dict(rollback=dict(max_drift=MAX_DRIFT, pretrained='auto'), norm_decay_mult=0.0)
    return dict(
        _delete_=True,
        type='OptimWrapper',
        constructor='olor_mm.OLOROptimWrapperConstructor',
        optimizer=dict(type='olor_mm.AdamWOLOR', lr=lr, weight_decay=0.05),
        paramwise_cfg=dict(paramwise, custom_keys=keys) if keys else paramwise,
        clip_grad=dict(max_norm=10.0),
    )


def _schedule(base: Config, task: str, iterations: int, epochs: int) -> dict[str, Any]:
    """Settings of the run's length, learning rate, log, checkpoints and custom hooks; ``iterations`` an epoch."""
    warmup = min(WARMUP, iterations * epochs // 10)
    cosine = dict(type='CosineAnnealingLR', by_epoch=True, T_max=epochs, end=epochs, convert_to_iter_based=True)
    linear = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=warmup)
    settings = dict(
        train_cfg=dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1),
        param_scheduler=[linear, cosine] if warmup > 1 else [cosine],  # a warm-up of one iteration would never end
        default_hooks=dict(
            logger=dict(_delete_=True, type='LoggerHook', interval=min(50, iterations)),
            checkpoint=dict(_delete_=True, type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best=BEST[task]),
        ),
        log_processor=dict(by_epoch=True),
    )
    hooks = base.get('custom_hooks') or []
    if any('switch_epoch' in hook for hook in hooks):  # of RTMDet: the last epochs have no mosaic
        codes = [f'_base_.custom_hooks[{i}]' for i in range(len(hooks))]
        settings['custom_hooks'] = [
            Code(f'dict({code}, switch_epoch={epochs // 2})' if 'switch_epoch' in hook else code)
            for code, hook in zip(codes, hooks)
        ]
    return settings


def _dataloader(base: Config, task: str, split: str, fields: dict, loading: dict) -> dict:
    dataset, path, mixed = innermost(base[f'{split}_dataloader'], f'_base_.{split}_dataloader')
    inner, path = (dataset['dataset'], f'{path}.dataset') if mixed else (dataset, path)
    pipeline = f'{path}.pipeline'
    steps = steps_of(inner, 'LoadAnnotations')
    options = {key: value for key, value in loading.items() if {s.get(key) for s in steps} - {value, None}}
    if options:
        change = f"dict(step, {_arguments(options)}) if step['type'] == 'LoadAnnotations' else step"
        pipeline = f'[{change} for step in {pipeline}]'
    own = dict(
        _delete_=True,
        type=KINDS.get(task, 'CocoDataset'),
        data_root=Code('data_root'),
        **fields,
        metainfo=dict(classes=Code('classes')),
        pipeline=Code(pipeline),
    )
    if split == 'val':
        own['test_mode'] = True
    elif task not in KINDS:
        own['filter_cfg'] = dict(filter_empty_gt=True, min_size=0)
    return dict(
        num_workers=2,
        persistent_workers=False,
        sampler=dict(_delete_=True, type='DefaultSampler', shuffle=split == 'train'),
        dataset=dict(dataset=own) if mixed else own,
    )


def _evaluator(task: str, data: Data) -> dict:
    if task == 'classification':
        return dict(_delete_=True, type='Accuracy', topk=(1,))
    if task == 'semantic_segmentation':
        return dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
    file = data.val['ann_file']
    ann_file = file if Path(file).is_absolute() else Code(f'data_root + {file!r}')
    metric = ['bbox', 'segm'] if task == 'instance_segmentation' else 'bbox'
    return dict(_delete_=True, type='CocoMetric', ann_file=ann_file, metric=metric)
