"""What a config needs so that a model learns new classes and keeps the old ones."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..classes.names import joined_classes
from ..classes.transfer import transfer_classes
from ..durable.loading import load_weights
from ..extend.exact import class_counts
from ..extend.label_boxes import ignoring
from ..extend.predict import old_names
from ..extend.replay import repeats
from ..inspect.libraries import quiet
from .config_text import Code, innermost, merge, merged
from .data import Data, DataError
from .data.joined import Joined, Joiner, Source
from .keep_exactly import keep_exactly

# Measured at a learning rate of 0.001 (docs/en/add_classes.md): where old objects are in the new images, labels of the
# old model alone keep the old classes, and a level costs new ones. Where they are not, some old images and 0.03 in all
# layers, heads as well, keep most. Levels that grow with the rate let weights drift about as far at every rate.
LEVELS = dict(labels=1, alone=30)  # times the learning rate
IGNORED_FROM = 0.5  # share of a candidate box in an ignored region from which on it is no background
METRICS = dict(classification='ClassGroupsAccuracy', semantic_segmentation='ClassGroupsIoUMetric')


@dataclass(frozen=True)
class Keep:
    """A plan to add classes to a trained model.

    Args:
        old (list[str]): Its classes.
        classes (list[str]): These, and the new ones.
        joined (Joined): The data.
        times (int): How often an epoch shows each old image.
        checkpoint (Path): The trained model.
        is_exact (bool): Whether it is frozen, and new classes get a branch of their own.
    """

    old: list[str]
    classes: list[str]
    joined: Joined
    times: int
    checkpoint: Path
    is_exact: bool = False

    def applied(self, data: Data, task: str) -> Data:
        """The data as :func:`~olor_mm.cli.config_text.config_text` takes it."""
        images = data.images + self.times * self.joined.replayed
        loading = dict(data.loading)
        if task == 'instance_segmentation':
            loading['poly2mask'] = True  # masks of the old model are RLE
        return Data(self.classes, self.joined.train, self.joined.val[0], images, loading)

    def change(self, settings: dict[str, Any], base: Config, task: str) -> str:
        """Change the settings of a config that fine-tunes; return a comment about its levels."""
        names = ', '.join(map(repr, self.classes[len(self.old) :]))
        settings['classes'] = Code(f'(*old_classes, {names})')
        others = dict(settings)
        settings.clear()
        settings.update(old_classes=tuple(self.old), **others)  # a name stands before what uses it
        self._change_data(settings, base, task)
        for name in ('val_evaluator', 'test_evaluator'):
            settings[name] |= dict(
                type=f'olor_mm.{METRICS.get(task, "ClassGroupsCocoMetric")}', old=Code('old_classes')
            )
            if self.joined.annotated:
                settings[name]['annotated'] = self.joined.annotated
        if self.is_exact:
            return keep_exactly(settings, base, self.old, self.classes)
        hooks = settings.get('custom_hooks') or ([Code('*_base_.custom_hooks')] if base.get('custom_hooks') else [])
        settings['custom_hooks'] = [*hooks, dict(type='olor_mm.ClassTransferHook', old_classes=Code('old_classes'))]
        merge(settings['model'], _ignoring(base.model))
        if task == 'classification':
            self._distill(settings, base)
        paramwise = settings['optim_wrapper']['paramwise_cfg']
        alone = task == 'classification' or self.joined.replayed  # new images without old objects
        level = LEVELS['alone' if alone else 'labels'] * settings['optim_wrapper']['optimizer']['lr']
        level = min(float(f'{level:.2g}'), 0.1)
        paramwise['rollback'] = dict(max_level=level, min_level=level, pretrained='auto')
        if task == 'classification':  # whose new classes learn at once; those of pixels need ten times the rate
            paramwise.get('custom_keys', {}).pop('head', None)
        return (
            '# A trained model learns new classes: rows of its head are kept, and its own labels are trained on.\n'
            '# Level: where old objects are in the new images, the labels keep old classes, and rollback costs new\n'
            '# ones; where not, old images and 30 times the learning rate in all layers keep most (docs: Add classes)\n'
        )

    def _change_data(self, settings: dict[str, Any], base: Config, task: str) -> None:
        holder = settings['train_dataloader']
        if innermost(base.train_dataloader, '')[2]:  # images are mixed
            holder = holder['dataset']
        if self.joined.replay is not None:
            old = _dataset_of(holder['dataset'], self.joined.train, self.joined.replay)
            holder['dataset'] = _concatenated(
                holder['dataset'], dict(type='RepeatDataset', times=self.times, dataset=old)
            )
        if len(self.joined.val) > 1:
            for split in ('val', 'test'):
                loader = settings[f'{split}_dataloader']
                others = [_dataset_of(loader['dataset'], self.joined.val[0], fields) for fields in self.joined.val[1:]]
                loader['dataset'] = _concatenated(loader['dataset'], *others)

    def _distill(self, settings: dict[str, Any], base: Config) -> None:
        """Train on the old model's probabilities beside the labels."""
        head = settings['model'].setdefault('head', {})
        loss, own = head.pop('loss', {}), base.model.head.get('loss')
        loss = Code(merged('_base_.model.head.loss', loss)) if own else dict(type='CrossEntropyLoss')
        head['loss'] = dict(_delete_=True, type='olor_mm.DistillationLoss', loss=loss)
        stock, path, _ = innermost(base.train_dataloader, '_base_.train_dataloader')
        at = [step['type'] for step in stock['pipeline']].index('PackInputs')
        options = f'file={str(self.joined.labels)!r}, num_classes=len(classes)'
        options += ', missing_ok=True' if self.joined.replayed else ''
        step = f"dict(type='olor_mm.OldProbabilities', {options})"
        pipeline = Code(f'[*{path}.pipeline[:{at}], {step}, *{path}.pipeline[{at}:]]')
        dataset = settings['train_dataloader']['dataset']
        for part in dataset.get('datasets', [dataset]):
            part.get('dataset', part)['pipeline'] = pipeline

    def refuse_unknown_heads(self, text: str) -> None:
        """Raise for a head whose rows cannot be kept.

        Args:
            text (str): Of the config.

        Raises:
            DataError: With what the head is and why.
        """
        if self.is_exact:
            return
        cfg = Config.fromstring(text, '.py')
        with quiet(), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            model_cfg = cfg.model.copy()
            if cfg.get('data_preprocessor'):
                model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
            model = MODELS.build(model_cfg)
        _, report = transfer_classes(model, load_weights(self.checkpoint)[0], self.old, self.classes)
        for head in report.heads:
            if head.reason:
                what = f'the head {head.name!r} has classes in an unknown layout: {head.reason}'
                raise DataError(f'{what}; take a stock config with another head, or leave out --keep-classes')
        if not report.heads:
            raise DataError('the model has no head with classes; leave out --keep-classes')


def plan(
    known: list[str],
    checkpoint: str,
    new: Source,
    old: Source | None,
    out: Path,
    number: int,
    share: float,
    task: str,
    aliases: Mapping[str, str],
) -> Keep:
    """The plan for a model with the classes ``known``; see :class:`~olor_mm.cli.data.joined.Joiner`.

    Raises:
        DataError: If no class is new, names collide, or the old data has none of the classes.
    """
    try:
        classes = joined_classes(known, new.data.classes, aliases)
        if len(classes) == len(known):
            raise DataError(f'no class of {new.data.classes} is new to the checkpoint; leave out --keep-classes')
        joined = Joiner(classes, len(known), new, old, out, number, aliases).join(task)
    except ValueError as error:
        raise DataError(str(error)) from error
    times = repeats(new.data.images, joined.replayed, share) if joined.replayed else 0
    return Keep(known, classes, joined, times, Path(checkpoint).expanduser().resolve())


def old_classes(base: Config, checkpoint: str | None, names: Sequence[str] | None) -> list[str]:
    """The classes of the trained model, from the command line or its checkpoint.

    Raises:
        DataError: If there are none, or the config is of another number of classes.
    """
    file = Path(checkpoint or '').expanduser()
    if not checkpoint or not file.is_file():
        raise DataError(f'--keep-classes: --checkpoint {checkpoint} is not a file; give that of the trained model')
    content = load_weights(file)[1]
    try:
        with DefaultScope.overwrite_default_scope(base.get('default_scope')):
            return old_names(class_counts(base.model), names, content, checkpoint)
    except ValueError as error:
        raise DataError(str(error)) from error


def label_command(
    task: str,
    config: str,
    checkpoint: str,
    names: Sequence[str] | None,
    new: Source,
    labels: Path,
    aliases: Mapping[str, str],
) -> str:
    """The command that has the old model label the new images."""
    data, options = str(new.root), ['--out', _shown(labels)]
    file = Path(new.data.train.get('ann_file', ''))
    has_all = task == 'classification'
    if task in ('detection', 'instance_segmentation'):
        has_all = [category['name'] for category in json.loads(new.text('train'))['categories']] == new.data.classes
        if file.is_absolute():  # a part, or mended
            data = _shown(file)
            options += ['--images', str(new.root / new.data.train['data_prefix']['img'])]
    if not has_all:
        options += ['--classes', *new.data.classes]
    if names:
        options += ['--old-classes', *names]
    if aliases and task != 'classification':  # where all probabilities are kept, whatever the new classes
        options += ['--aliases', *(f'{new}={old}' for new, old in aliases.items())]
    return shlex.join(['python', '-m', 'olor_mm', 'label', config, checkpoint, data, *options])


def _shown(file: Path) -> str:
    return file.name if file.parent == Path.cwd() else str(file)


def _dataset_of(like: dict, fields: dict, others: dict) -> dict:
    """A data set with other arguments than ``fields``, and the rest of one."""
    return {key: value for key, value in like.items() if key not in fields and key != '_delete_'} | others


def _concatenated(first: dict, *others: dict) -> dict:
    first = {key: value for key, value in first.items() if key != '_delete_'}
    return dict(_delete_=True, type='ConcatDataset', datasets=[first, *others])


def _ignoring(model: dict) -> dict:
    """Settings with which a detector ignores the regions that `label` marks as doubtful."""
    tree: dict[str, Any] = {}
    for name in ignoring(model):
        *places, last = name.split('.')[1:]
        node = tree
        for place in places:
            node = node.setdefault(place, {})
        node[last] = IGNORED_FROM
    return _as_settings(tree, model, '_base_.model')


def _as_settings(tree: dict, node: Any, path: str) -> Any:
    """A tree of changes as settings; lists as code, since MMEngine does not merge them."""
    if isinstance(node, (list, tuple)):
        parts = [merged(f'{path}[{i}]', tree.get(str(i), {})) for i in range(len(node))]
        return Code(f'[{", ".join(parts)}]')
    return {
        key: _as_settings(value, node[key], f'{path}.{key}') if isinstance(value, dict) else value
        for key, value in tree.items()
    }
