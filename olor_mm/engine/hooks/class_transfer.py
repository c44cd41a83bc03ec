"""Rows of a trained head for the classes that a new task shares with the old one."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import BaseLoop
from torch import nn

from ...classes import TransferReport, checkpoint_classes, class_key, transfer_classes
from ...layers import unwrapped
from ...pretrained import mark_new

LIBRARIES = ('mmdet', 'mmseg', 'mmpretrain')


class ClassTransferHook(Hook):
    """Loads the rows of a head by class name, where ``load_from`` is a model of other classes, or of another order.

    Rows of classes that the checkpoint has come out of it, and count as pre-trained: rollback pulls them. Those of new
    classes stay as they were initialised, and are free. The log has a line for every head. Heads that are not known to
    :mod:`olor_mm.classes` stay new, and the line says why. Names are compared without case, ``-``, ``_`` and spaces.
    The new ones are those of the training data set. Nothing is done when a run is resumed, validated or tested.

    Args:
        old_classes (list[str] or str, optional): Of the checkpoint, in its order: their names, or a stock data set that
            they are of, e.g. 'coco', 'ade20k', 'cityscapes', 'voc', 'imagenet'. Defaults to what the checkpoint says.
        aliases (dict, optional): Old names of classes that are called something else now, ``{new: old}``.

    Raises:
        ValueError: If an option does not fit; when the checkpoint is loaded, if it says no classes, none is shared, or
            as :func:`olor_mm.classes.match_classes`.

    Example:
        >>> load_from = 'mask-rcnn_r50_fpn_1x_coco.pth'
        >>> custom_hooks = [dict(type='ClassTransferHook', aliases={'pedestrian': 'person'})]
    """

    priority = 'VERY_HIGH'  # before EMAHook loads the same weights into its copy

    def __init__(self, old_classes: Sequence[str] | str | None = None, aliases: Mapping[str, str] | None = None):
        is_list = isinstance(old_classes, (list, tuple)) and all(isinstance(name, str) for name in old_classes)
        if old_classes is not None and not (old_classes and (is_list or isinstance(old_classes, str))):
            raise ValueError(f"ClassTransferHook.old_classes={old_classes!r}: give a list of names, or e.g. 'coco'")
        if aliases is not None and not (
            isinstance(aliases, Mapping) and all(isinstance(name, str) for pair in aliases.items() for name in pair)
        ):
            raise ValueError(f"ClassTransferHook.aliases={aliases!r}: give a dict such as {{'pedestrian': 'person'}}")
        self.old_classes = stock_classes(old_classes) if isinstance(old_classes, str) else old_classes
        self.aliases = aliases
        self.report: TransferReport | None = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume and isinstance(runner._train_loop, BaseLoop):
            self.transfer(unwrapped(runner.model), checkpoint, training_classes(runner))

    def before_train(self, runner) -> None:
        self.mark(unwrapped(runner.model))

    def transfer(self, model: nn.Module, checkpoint: dict, new: Sequence[str]) -> None:
        """Give a checkpoint, in place, the rows of a model with the classes ``new``, before it is loaded."""
        old = self.old_classes or checkpoint_classes(checkpoint)
        if not old:
            raise ValueError(
                "ClassTransferHook: the checkpoint says no classes; give old_classes=[...], or e.g. 'coco'"
            )
        state = checkpoint.get('state_dict', checkpoint)
        state, self.report = transfer_classes(model, state, old, new, self.aliases)
        if 'state_dict' in checkpoint:
            checkpoint['state_dict'] = state
        else:
            checkpoint.clear()
            checkpoint.update(state)
        for line in [*self.report.heads, *self.report.unknown]:
            level = logging.WARNING if getattr(line, 'reason', line) else logging.INFO
            print_log(f'ClassTransferHook: {line}', logger='current', level=level)
        if not self.report.heads:
            kind = type(model).__name__
            print_log(f'ClassTransferHook: {kind} has no head of {len(new)} classes', 'current', logging.WARNING)

    def mark(self, model: nn.Module) -> None:
        """Say which rows are new, once the checkpoint is loaded."""
        params = dict(model.named_parameters(remove_duplicate=False))
        for name, is_old in self.report.rows.items() if self.report is not None else ():
            if name in params and not is_old.all():
                mark_new(params[name], ~is_old)


def training_classes(runner) -> list[str]:
    """Names of the classes of the data set that a runner trains on, whatever it is wrapped in.

    Raises:
        ValueError: If it has none.
    """
    loader: Any = runner.train_dataloader
    queue = [part.dataset for part in (loader.values() if isinstance(loader, Mapping) else [loader])]
    for dataset in queue:
        found = getattr(dataset, 'metainfo', None)
        for meta in found if isinstance(found, (list, tuple)) else [found]:
            if isinstance(meta, Mapping) and meta.get('classes'):
                return [str(name) for name in meta['classes']]
        inner = getattr(dataset, 'dataset', None)
        queue += getattr(dataset, 'datasets', [] if inner is None else [inner])
    kind = type(queue[0]).__name__
    raise ValueError(
        f'ClassTransferHook: {kind}, the training data set, says no classes; give it metainfo=dict(classes=...)'
    )


def stock_classes(name: str) -> list[str]:
    """Names of the classes of a stock data set: of the library that is the default scope, or else of another.

    Args:
        name (str): Of its class with or without ``Dataset``, e.g. 'coco', 'LVISV1Dataset', 'voc'.

    Raises:
        ValueError: If no library has it.
    """
    current = getattr(DefaultScope.get_current_instance(), 'scope_name', '')
    wanted, known = class_key(name.rpartition('.')[2]).removesuffix('dataset'), []
    for library in sorted(LIBRARIES, key=lambda library: library != current):
        with DATASETS.switch_scope_and_registry(library) as registry:
            if registry.scope != library:
                continue  # not installed
            registry.import_from_location()
            metas = {kind: getattr(dataset, 'METAINFO', {}) for kind, dataset in registry.module_dict.items()}
            classes = {kind: [*meta['classes']] for kind, meta in metas.items() if meta.get('classes')}
            found = {class_key(kind).removesuffix('dataset'): names for kind, names in classes.items()}
        for key in (wanted, f'pascal{wanted}'):  # PascalVOCDataset of mmseg
            if key in found:
                return found[key]
        known += [key for key in found if key not in known]
    raise ValueError(
        f'ClassTransferHook.old_classes={name!r} is no stock data set; give a list of names, or one of {sorted(known)}'
    )
