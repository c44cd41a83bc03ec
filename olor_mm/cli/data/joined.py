"""The data of a model that learns new classes and keeps old ones: all classes in one order, in files of our own."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ...classes.names import class_key, match_classes
from ...extend.merged import CocoPart, merged_coco, used_categories
from ...extend.replay import TooFewImages, sample_of_every_class
from ...progress import tracked
from .dataset import Data, DataError, images_in

IGNORED = 255  # value in masks that mmseg leaves out of the loss
LABELS = dict(classification='.npz', semantic_segmentation='')  # suffix of what `label` writes; of others, .json


@dataclass(frozen=True)
class Source:
    """A data set in its folder."""

    data: Data
    root: Path

    def text(self, split: str) -> str:
        """What the annotation file of a split has in it, or will have."""
        file = self.root / getattr(self.data, split)['ann_file']
        return str(self.data.written[file]) if file in self.data.written else file.read_text('utf-8-sig')


@dataclass
class Joined:
    """Arguments of OpenMMLab's data sets, without pipeline and classes, and the files that they name."""

    labels: Path  # what `label` is to write
    train: dict
    val: list[dict]
    replay: dict | None = None  # None: no old images
    replayed: int = 0  # their number
    annotated: dict[str, list[str]] = field(default_factory=dict)  # folder of masks to the classes in them
    written: dict[Path, str | bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Joiner:
    """Joins data of new classes with data of old ones.

    Args:
        classes (Sequence[str]): All, old and new, in the order of their labels.
        known (int): How many of them are old; these come first.
        new (Source): Data of the new classes.
        old (Source, optional): Data of the old classes, for evaluation and training.
        out (Path): The config; files are written beside it.
        number (int): Old images for training; 0 for none.
        aliases (Mapping): Names of classes in the new data to theirs in ``classes``.
        seed (int): Of the choice of old images.
    """

    classes: Sequence[str]
    known: int
    new: Source
    old: Source | None
    out: Path
    number: int
    aliases: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def join(self, task: str) -> Joined:
        """The data for one of :data:`olor_mm.cli.data.TASKS`.

        Raises:
            DataError: If the old data has none of the classes, or if so few images cannot show all of them.
        """
        kind = dict(classification=self._images, semantic_segmentation=self._pixels).get(task, self._boxes)
        joined = Joined(self._beside('labels', LABELS.get(task, '.json')), dict(self.new.data.train), [])
        try:
            kind(joined)
        except TooFewImages as error:
            raise DataError(f'--replay-images {self.number}: {error}; give --replay-images {error.needed}') from error
        return joined

    def _beside(self, what: str, suffix: str) -> Path:
        return self.out.with_name(f'{self.out.stem}_{what}{suffix}')

    def _sample(self, shown: Sequence[set]) -> list[int]:
        """Indices of the old images for training, of those that show a class."""
        some = [index for index, labels in enumerate(shown) if labels]
        return [
            some[index] for index in sample_of_every_class([shown[index] for index in some], self.number, self.seed)
        ]

    def _numbers(self, source: Source, joined: Joined, names: Sequence[str]) -> list[int | None]:
        """For each name in the data its label; None for classes that the model will not have."""
        found = match_classes(self.classes, [self._known_as(source, name) for name in names])
        if source is self.old and not any(label is not None and label < self.known for label in found):
            known = list(self.classes[: min(5, self.known)])
            raise DataError(f'--replay {source.root} has the classes {list(names[:5])}, the checkpoint others: {known}')
        if source is self.old and (
            lacking := [n for at, n in enumerate(self.classes[: self.known]) if at not in found]
        ):
            joined.notes.append(f'{source.root}: {len(lacking)} old classes are not in it, first {lacking[0]}')
        strange = [name for name, label in zip(names, found, strict=True) if label is None]
        if strange:
            joined.notes.append(f'{source.root}: {len(strange)} classes are not used, first {strange[0]}')
        return found

    def _known_as(self, source: Source, name: str) -> str:
        """The name among ``classes`` of a class in the data."""
        aliases = {class_key(alias): known for alias, known in self.aliases.items()} if source is self.new else {}
        return aliases.get(class_key(name), name)

    def _boxes(self, joined: Joined) -> None:
        joined.train['ann_file'] = str(joined.labels)
        parts: dict[str, list[CocoPart]] = dict(train=[], val=[])
        for source in filter(None, (self.new, self.old)):
            contents = {split: json.loads(source.text(split)) for split in parts}
            for category in (category for content in contents.values() for category in content['categories']):
                category['name'] = self._known_as(source, category['name'])
            used = sorted(used_categories(contents.values()))  # others are named, and not annotated
            self._numbers(source, joined, used)
            for split, content in contents.items():
                root = source.root / getattr(source.data, split)['data_prefix']['img']
                parts[split].append(CocoPart(content, root, used))
        joined.val = [self._coco(joined, 'val', parts['val'])]
        if self.old is None or not self.number:
            return
        old = parts['train'][1]
        known = {c['id'] for c in old.content['categories'] if match_classes(self.classes, [c['name']])[0] is not None}
        shown: dict = {image['id']: set() for image in old.content['images']}
        for annotation in old.content['annotations']:
            if annotation['image_id'] in shown and annotation['category_id'] in known:
                shown[annotation['image_id']].add(annotation['category_id'])
        ids = [*shown]
        chosen = {ids[index] for index in self._sample([*shown.values()])}
        joined.replay = self._coco(joined, 'replay', [CocoPart(old.content, old.root, old.annotated, chosen)])
        joined.replayed = len(chosen)

    def _coco(self, joined: Joined, what: str, parts: list[CocoPart]) -> dict:
        file = self._beside(what, '.json')
        joined.written[file] = json.dumps(merged_coco(parts, self.classes))
        return dict(ann_file=str(file), data_prefix=dict(img=''))

    def _images(self, joined: Joined) -> None:
        rows = {
            (source is self.old, split): self._rows(source, split, joined)
            for source in filter(None, (self.new, self.old))
            for split in ('train', 'val')
        }
        joined.train = self._list(joined, 'train', rows[False, 'train'])
        joined.val = [self._list(joined, 'val', rows[False, 'val'] + rows.get((True, 'val'), []))]
        if self.old is not None and self.number:
            old = rows[True, 'train']
            chosen = self._sample([{label} for _, label in old])
            joined.replay, joined.replayed = self._list(joined, 'replay', [old[i] for i in chosen]), len(chosen)

    def _rows(self, source: Source, split: str, joined: Joined) -> list[tuple[Path, int]]:
        """Images of a split with their labels among all classes."""
        data, fields = source.data, getattr(source.data, split)
        folder = source.root / fields['data_prefix']
        if source is self.old and len(data.classes) == self.known and not _any_shared(self.classes, data.classes):
            joined.notes.append(f'{source.root}: its folders are taken for the old classes, in their order')
            labels = [*range(self.known)]
        else:
            labels = self._numbers(source, joined, data.classes)
        if 'ann_file' in fields:
            entries = [line.rsplit(' ', 1) for line in source.text(split).splitlines()]
            found = [(folder / name, labels[int(number)]) for name, number in entries]
        else:
            found = [(file, label) for name, label in zip(data.classes, labels) for file in images_in(folder / name)]
        return [(file, label) for file, label in found if label is not None]

    def _list(self, joined: Joined, what: str, rows: list[tuple[Path, int]]) -> dict:
        file = self._beside(what, '.txt')
        joined.written[file] = ''.join(f'{image} {label}\n' for image, label in rows)
        return dict(ann_file=str(file), data_prefix='')

    def _pixels(self, joined: Joined) -> None:
        prefix = dict(joined.train['data_prefix'], seg_map_path=str(joined.labels))
        joined.train |= dict(data_prefix=prefix, seg_map_suffix='.png')
        joined.val.append(self._masks(joined, self.new, 'val', 'val'))
        if self.old is None:
            return
        joined.val.append(self._masks(joined, self.old, 'val', 'val_old'))
        if self.number:
            names = _names(self.old, 'train')
            numbers = self._table(self.old, joined)
            masks = (_mask(self.old, 'train', name) for name in tracked(names, 'reading old masks'))
            shown = [{*np.unique(numbers[mask]).tolist()} - {IGNORED} for mask in masks]
            chosen = [names[index] for index in self._sample(shown)]
            joined.replay, joined.replayed = self._masks(joined, self.old, 'train', 'replay', chosen), len(chosen)

    def _table(self, source: Source, joined: Joined) -> np.ndarray:
        """Label among all classes for each value of a mask, uint8 (256,)."""
        numbers = self._numbers(source, joined, source.data.classes)
        table: np.ndarray = np.full(IGNORED + 1, IGNORED, np.uint8)
        table[: len(numbers)] = [IGNORED if label is None else label for label in numbers]
        return table

    def _masks(self, joined: Joined, source: Source, split: str, what: str, names: list[str] | None = None) -> dict:
        """Arguments of a data set of images and their masks, which are written anew if they have other numbers."""
        fields, table = dict(getattr(source.data, split)), self._table(source, joined)
        prefix = {kind: str(source.root / folder) for kind, folder in fields['data_prefix'].items()}
        written = _names(source, split) if names is None else names
        if (table[: len(source.data.classes)] != np.arange(len(source.data.classes))).any():
            folder = self._beside(what, '')
            for name in tracked(written, 'renumbering masks'):
                file = io.BytesIO()
                Image.fromarray(table[_mask(source, split, name)]).save(file, 'PNG')
                joined.written[folder / f'{name}.png'] = file.getvalue()
            prefix['seg_map_path'], fields['seg_map_suffix'] = str(folder), '.png'
        known = [self.classes[label] for label in np.unique(table) if label != IGNORED]
        if len(known) < len(self.classes):
            joined.annotated[prefix['seg_map_path']] = known
        if names is not None or 'ann_file' in fields:
            list_file = self._beside(what, '.txt')
            joined.written[list_file] = ''.join(f'{name}\n' for name in written)
            fields['ann_file'] = str(list_file)
        return dict(fields, data_prefix=prefix)


def _any_shared(classes: Sequence[str], names: Sequence[str]) -> bool:
    return any(label is not None for label in match_classes(classes, names))


def _names(source: Source, split: str) -> list[str]:
    """Names of the images of a split without suffix, from their folder."""
    fields = getattr(source.data, split)
    if 'ann_file' in fields:
        return source.text(split).splitlines()
    folder = source.root / fields['data_prefix']['img_path']
    return [file.relative_to(folder).with_suffix('').as_posix() for file in images_in(folder)]


def _mask(source: Source, split: str, name: str) -> np.ndarray:
    """Class numbers of an image, uint8 (height, width)."""
    fields = getattr(source.data, split)
    with Image.open(source.root / fields['data_prefix']['seg_map_path'] / f'{name}{fields["seg_map_suffix"]}') as image:
        return np.asarray(image)
