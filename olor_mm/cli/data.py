"""What a folder of images and annotations holds, and what is wrong with it: for ``python -m olor_mm init``."""

import hashlib
import json
import random
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

TASKS = ('classification', 'detection', 'instance_segmentation', 'semantic_segmentation')
SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # those that mmpretrain takes
VALIDATION_SHARE = 0.2  # of the images, where there are none for validation
IGNORED = 255  # value in masks that mmseg leaves out of the loss
DECODED = 1000  # images that are read as a whole; of others, the header
LAYOUTS = (  # where images of a split and their masks are
    ('{}', '{}_semantic'),
    ('{}', '{}_masks'),
    ('images/{}', 'masks/{}'),
    ('images/{}', 'annotations/{}'),
    ('images/{}', 'labels/{}'),
    ('img_dir/{}', 'ann_dir/{}'),
    ('{}/images', '{}/masks'),
    ('{}/images', '{}/labels'),
)
UNSPLIT = (('images', 'masks'), ('images', 'labels'), ('images', 'annotations'))
SPLITS = dict(train=('train', 'training', 'train2017'), val=('val', 'valid', 'validation', 'val2017', 'test'))


class DataError(ValueError):
    """The data cannot be used; the message says what is wrong and what would be right."""


@dataclass
class Data:
    """A data set as a config has it.

    Attributes:
        classes (list[str]): Names in the order of the labels.
        train (dict): Arguments of the data set of OpenMMLab, without ``data_root``, pipeline and classes.
        val (dict): The same for validation.
        images (int): Training images.
        written (dict[Path, str]): Files that have to be written: a split that the data does not have.
        problems (list[str]): What is probably not meant to be so; the config could be written all the same.
        notes (list[str]): What was chosen or looks odd.
    """

    classes: list[str]
    train: dict = field(default_factory=dict)
    val: dict = field(default_factory=dict)
    images: int = 0
    written: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def found(self, what: str, cases: Sequence) -> None:
        """Note a problem, with how often it was met and the first case."""
        if cases:
            self.problems.append(f'{what}: {len(cases)}, first {cases[0]}')


def examine(folder: Path, task: str, out: Path, classes: list[str] | None) -> Data:
    """Look at a data set.

    Args:
        folder (Path): The data.
        task (str): One of :data:`TASKS`.
        out (Path): Config that is to be written; lists of a split are written beside it.
        classes (list[str], optional): Names of the classes; for semantic segmentation of the values 0, 1, ... in masks,
            for boxes those to be used.

    Raises:
        DataError: If no config can be made for the data.
    """
    if not folder.is_dir():
        raise DataError(f'{str(folder)!r} is not a folder')
    if task == 'classification':
        return _classification(folder, out, classes)
    if task == 'semantic_segmentation':
        return _semantic(folder, out, classes)
    return _coco(folder, out, classes, with_masks=task == 'instance_segmentation')


def _images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob('*') if f.suffix.lower() in SUFFIXES and f.is_file())


def _split_folder(folder: Path, split: str) -> Path | None:
    return next((folder / name for name in SPLITS[split] if (folder / name).is_dir()), None)


def _validation(items: list) -> set[int]:
    """Numbers of those that are kept for validation, the same in every run."""
    return set(random.Random(0).sample(range(len(items)), max(1, round(VALIDATION_SHARE * len(items)))))


def _check_images(data: Data, files: Sequence[Path], sizes: Sequence[tuple[int, int]] = ()) -> None:
    missing, unreadable, resized, deep = [], [], [], []
    stride = -(-len(files) // DECODED) if files else 1
    for number, (file, size) in enumerate(zip_longest(files, sizes)):
        if not file.is_file():
            missing.append(file)
            continue
        try:
            with Image.open(file) as image:
                if size is not None and image.size != size:
                    resized.append(f'{file} of {image.size[0]}x{image.size[1]}, annotated as {size[0]}x{size[1]}')
                if number % stride == 0:
                    image.load()
                if image.mode.startswith(('I', 'F')):
                    deep.append(file)
        except Exception as error:  # whatever a decoder makes of a damaged file
            unreadable.append(f'{file} ({error})')
    if deep:
        data.notes.append(
            f'{len(deep)} images have more than 8 bits a channel, first {deep[0]}; mmcv reads the upper 8 of 16 bits, '
            'so values that do not fill them come out dark: write them as 8 bits'
        )
    data.found('images that are not there', missing)
    data.found('images that cannot be read', unreadable)
    data.found('images (width x height) of another size than annotated', resized)


def _check_overlap(data: Data, train: Iterable[Path], val: Sequence[Path]) -> None:
    def digest(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else str(file)

    sizes = {file.stat().st_size for file in val if file.is_file()}
    known = {digest(file) for file in train if file.is_file() and file.stat().st_size in sizes}
    same = [file for file in val if digest(file) in known]
    if same and len(same) == len(val):
        data.problems.append(f'all {len(val)} images of validation are training images too: results would mean nothing')
    elif same:
        data.notes.append(f'{len(same)} of {len(val)} images of validation are training images too, first {same[0]}')


def _classification(folder: Path, out: Path, classes: list[str] | None) -> Data:
    train, val = _split_folder(folder, 'train'), _split_folder(folder, 'val')
    root = train or folder
    names = sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith('.'))
    if len(names) < 2:
        raise DataError(
            f'{str(root)!r} has {len(names)} folders, and it takes one of images for every class, at least two'
        )
    if classes is not None and sorted(classes) != names:
        raise DataError(f'--classes {classes} are not the folders in {str(root)!r}, which are {names}')
    data = Data(names)
    per_class = {name: _images(root / name) for name in names}
    data.found('class folders without images', [root / name for name, files in per_class.items() if not files])
    files = [file for found in per_class.values() for file in found]
    _check_images(data, files)
    data.images = len(files)
    if train is not None and val is not None:
        _note_test(data, val)
        others = sorted(f.name for f in val.iterdir() if f.is_dir() and not f.name.startswith('.'))
        if others != names:
            raise DataError(f'{str(val)!r} has other class folders than {str(train)!r}: {sorted({*names} ^ {*others})}')
        data.train, data.val = dict(data_prefix=train.name), dict(data_prefix=val.name)
        kept = _images(val)
        _check_images(data, kept)
        _check_overlap(data, files, kept)
        return data
    lists: dict[str, list[str]] = dict(train=[], val=[])
    for label, found in enumerate(per_class.values()):
        held_out = _validation(found) if len(found) > 1 else set()
        for number, file in enumerate(found):
            lists['val' if number in held_out else 'train'].append(f'{file.relative_to(root)} {label}\n')
    prefix = '' if root == folder else root.name
    _write_split(data, lists, out, dict(data_prefix=prefix), '.txt')
    return data


def _note_test(data: Data, val: Path) -> None:
    if 'test' in val.name:
        data.notes.append(f'{val} is used for validation, since there is no other; the best checkpoint is chosen by it')


def _write_split(data: Data, lists: dict[str, list[str]], out: Path, fields: dict, suffix: str) -> None:
    if not all(lists.values()):
        raise DataError('there is no validation set, and there are too few images to split some off; add some')
    for split, lines in lists.items():
        file = out.with_name(f'{out.stem}_{split}{suffix}')
        data.written[file] = ''.join(lines)
        setattr(data, split, dict(fields, ann_file=str(file)))
    data.images = len(lists['train'])
    data.notes.append(
        f'there is no validation set: {len(lists["val"])} of {data.images + len(lists["val"])} images were split off'
    )


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and masks by split; 'all' where there is no split."""
    found: dict[str, tuple[Path, Path]] = {}
    for split, names in SPLITS.items():
        for images, masks in ((i.format(n), m.format(n)) for n in names for i, m in LAYOUTS):
            if (folder / images).is_dir() and (folder / masks).is_dir():
                found.setdefault(split, (folder / images, folder / masks))
    if 'train' not in found:
        for images, masks in UNSPLIT:
            if (folder / images).is_dir() and (folder / masks).is_dir():
                return dict(all=(folder / images, folder / masks))
        known = ', '.join(' + '.join(pair).format('train', 'train') for pair in LAYOUTS)
        raise DataError(
            f'{str(folder)!r} has no folder of images beside one of masks; looked for {known}, '
            + ', '.join(' + '.join(pair) for pair in UNSPLIT)
        )
    return found


def _semantic(folder: Path, out: Path, classes: list[str] | None) -> Data:
    data, unusual = Data(classes or []), []
    values: dict[int, Path] = {}  # to the first mask that has them
    lists: dict[str, list[str]] = {}
    images: dict[str, list[Path]] = {}
    suffixes: set[str] = set()
    for split, (where, masks) in _pairs(folder).items():
        found = {file.relative_to(where).with_suffix(''): file for file in _images(where)}
        if not found:
            raise DataError(f'{str(where)!r} has no images')
        data.found(
            'images without a mask', [f for n, f in found.items() if not (masks / n).with_suffix('.png').is_file()]
        )
        suffixes |= {file.suffix for file in found.values()}
        images[split] = list(found.values())
        lists[split] = [f'{name}\n' for name in found]
        _check_images(data, images[split])
        for name, file in found.items():
            mask = (masks / name).with_suffix('.png')
            try:
                with Image.open(mask) as image, Image.open(file) as picture:
                    if image.mode not in ('L', 'P', '1', 'I', 'I;16'):
                        raise DataError(f'{mask} has colours ({image.mode}); a mask has one channel, of class numbers')
                    if image.size != picture.size:
                        unusual.append(f'{mask} of {image.size}, its image of {picture.size}')
                    for value in np.unique(np.asarray(image)):
                        values.setdefault(int(value), mask)
            except OSError:  # a mask that is not there, or an image that cannot be read: told already
                if mask.is_file() and file.is_file():
                    unusual.append(f'{mask}, or its image, cannot be read')
        prefix = dict(img_path=str(where.relative_to(folder)), seg_map_path=str(masks.relative_to(folder)))
        setattr(data, 'train' if split == 'all' else split, dict(data_prefix=prefix))
    data.found('masks of another size than the image, or unreadable', unusual)
    if len(suffixes) > 1:
        raise DataError(f'images end with {sorted(suffixes)}; mmseg takes one of them in a data set')
    _check_values(data, values)
    if 'val' in lists:
        data.images = len(lists['train'])
        _note_test(data, folder / data.val['data_prefix']['img_path'])
        _check_overlap(data, images['train'], images['val'])
    else:
        every = lists.get('all') or lists['train']
        kept = _validation(every)
        parts = dict(train=[x for i, x in enumerate(every) if i not in kept], val=[every[i] for i in sorted(kept)])
        _write_split(data, parts, out, data.train, '.txt')
    for fields in (data.train, data.val):
        fields |= dict(img_suffix=suffixes.copy().pop(), seg_map_suffix='.png', reduce_zero_label=False)
    return data


def _check_values(data: Data, values: dict[int, Path]) -> None:
    """Hold the values of masks against the classes."""
    used = sorted(values.keys() - {IGNORED})
    if used == [0] and IGNORED in values:
        raise DataError(
            f'masks have the values 0 and {IGNORED} alone, and {IGNORED} is left out of the loss: write the '
            'second class as 1'
        )
    if not used:
        raise DataError(f'masks have no value but {IGNORED}, which is left out of the loss')
    if not data.classes:
        data.classes = [f'class {value}' for value in range(max(2, used[-1] + 1))]
        data.notes.append(
            f'masks have values up to {used[-1]}: {len(data.classes)} classes; --classes gives them names'
        )
    outside = [value for value in used if value >= len(data.classes)]
    if outside:
        raise DataError(
            f'masks have the values {outside}, first in {values[outside[0]]}, and the {len(data.classes)} classes are '
            f'0 to {len(data.classes) - 1}; {IGNORED} is left out of the loss'
        )
    data.found('classes that no mask has', [name for i, name in enumerate(data.classes) if i not in values])


def _annotation_files(folder: Path) -> dict[str, Path]:
    """COCO files by split, told by the names of file and folder."""
    files = sorted([*folder.glob('*.json'), *folder.glob('*/*.json')])
    if not files:
        raise DataError(f'{str(folder)!r} has no annotation file: no *.json in it or in the folders in it')
    if any(file.name.startswith('instances_') for file in files):
        files = [file for file in files if file.name.startswith('instances_')]  # others are captions, key points
    named: dict[str, list[Path]] = {}
    for file in files:
        where = str(file.relative_to(folder)).lower()
        named.setdefault(next((part for part in ('train', 'val', 'test') if part in where), 'train'), []).append(file)
    for found in named.values():
        if len(found) > 1:
            names = [str(file.relative_to(folder)) for file in found]
            raise DataError(f'{str(folder)!r} has several annotation files for one split: {names}; leave one of them')
    val = named.get('val') or named.get('test')
    if 'train' not in named:
        raise DataError(f'{str(folder)!r} has annotations of no training set, only {[str(f) for f in files]}')
    return dict(train=named['train'][0], **(dict(val=val[0]) if val else {}))


def _read_coco(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f'{str(file)!r} is not JSON: {error}') from error
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
            raise DataError(f'{str(file)!r} has no {key}: it is not an annotation file of COCO, or an empty one')
    return content


def _image_root(folder: Path, file: Path, names: list[str]) -> Path:
    parts = [folder, file.parent, *(p for p in sorted(folder.rglob('*')) if p.is_dir())]
    counts = {part: sum((part / name).is_file() for name in islice(names, 20)) for part in dict.fromkeys(parts)}
    best = max(counts, key=lambda part: counts[part])
    if not counts[best]:
        raise DataError(f'images of {str(file)!r} are nowhere in {str(folder)!r}, e.g. {names[0]!r}')
    return best


def _coco(folder: Path, out: Path, classes: list[str] | None, with_masks: bool) -> Data:
    data, files, read = Data(classes or []), {}, {}
    for split, file in _annotation_files(folder).items():
        content = read[split] = _read_coco(file)
        names = [category['name'] for category in content['categories']]
        if split == 'train':
            # mmdet numbers classes as they come in the file, whatever the order in a config
            data.classes = [name for name in names if not classes or name in classes]
            data.classes += [name for name in classes or () if name not in names]
        absent = [name for name in data.classes if name not in names]
        if absent or len(set(names)) < len(names):
            what = f'{absent} of the classes are not there' if absent else 'some are there twice; rename them'
            raise DataError(f'{str(file)!r} has the categories {names}: {what}')
        root = _image_root(folder, file, [image['file_name'] for image in content['images']])
        files[split] = [root / image['file_name'] for image in content['images']]
        _check_images(data, files[split], [(image['width'], image['height']) for image in content['images']])
        _check_annotations(data, content, file, with_masks, is_train=split == 'train')
        prefix = '' if root == folder else f'{root.relative_to(folder)}/'
        setattr(data, split, dict(ann_file=str(file.relative_to(folder)), data_prefix=dict(img=prefix)))
        if [name for name in names if name in data.classes] != data.classes:
            ordered = sorted(content['categories'], key=lambda c: (data.classes + names).index(c['name']))
            written = out.with_name(f'{out.stem}_{split}.json')
            data.written[written] = json.dumps(dict(content, categories=ordered))
            data.val['ann_file'] = str(written)
            data.notes.append(
                f'{file.name} has the categories in another order, and so another number for each class; '
                f'{written.name} has them in the order of training'
            )
    data.images = len(files['train'])
    if 'val' in read:
        _note_test(data, folder / data.val['ann_file'])
        _check_overlap(data, files['train'], files['val'])
        return data
    content = read['train']
    if data.images < 2:
        raise DataError('there is no validation set, and a single image cannot be split; add some')
    kept = _validation(content['images'])
    parts = {}
    for split in ('train', 'val'):
        images = [image for i, image in enumerate(content['images']) if (i in kept) == (split == 'val')]
        ids = {image['id'] for image in images}
        own = [annotation for annotation in content['annotations'] if annotation['image_id'] in ids]
        parts[split] = [json.dumps(dict(content, images=images, annotations=own))]
    _write_split(data, parts, out, data.train, '.json')
    data.images = len(content['images']) - len(kept)
    data.notes[-1] = f'there is no validation set: {len(kept)} of {len(content["images"])} images were split off'
    return data


def _check_annotations(data: Data, content: dict, file: Path, with_masks: bool, is_train: bool) -> None:
    images = {image['id']: image for image in content['images']}
    names = {category['id']: category['name'] for category in content['categories']}
    outside, strange, without_mask, used = [], [], [], set()
    for key in ('id', 'image_id', 'category_id', 'area', 'bbox'):
        lack = [f'number {i}' for i, annotation in enumerate(content['annotations']) if annotation.get(key) is None]
        if lack:
            hint = '; area is that of the mask, or width * height of the box' if key == 'area' else ''
            data.found(f'{file.name}: annotations without {key!r}, which mmdet reads{hint}', lack)
            return
    for annotation in content['annotations']:
        where = f'annotation {annotation["id"]}'
        image = images.get(annotation['image_id'])
        if image is None or annotation['category_id'] not in names:
            strange.append(f'{where}, image_id {annotation["image_id"]}, category_id {annotation["category_id"]}')
            continue
        used.add(names[annotation['category_id']])
        x, y, width, height = annotation['bbox'] or (0, 0, 0, 0)
        if (
            width <= 0
            or height <= 0
            or min(x, y) < -1
            or x + width > image['width'] + 1
            or y + height > image['height'] + 1
        ):
            outside.append(f'{where}, bbox {annotation["bbox"]} in {image["width"]}x{image["height"]}')
        if not annotation.get('segmentation'):
            without_mask.append(where)
    data.found(f'{file.name}: annotations of an unknown image_id or category_id', strange)
    boxes = [annotation['bbox'] for annotation in content['annotations'] if annotation['bbox']]
    small = [box for box in boxes if max(box[2:]) <= 1]  # in pixels, mmdet leaves such out
    if 2 * len(small) > len(boxes):
        data.found(f'{file.name}: boxes of less than a pixel, as if in shares of the image; COCO has pixels', small)
    data.found(f'{file.name}: boxes that are empty or outside the image; COCO has [x, y, width, height]', outside)
    if with_masks:
        if len(without_mask) == len(content['annotations']):
            raise DataError(f'{str(file)!r} has boxes and no masks (segmentation): its task is detection')
        data.found(f'{file.name}: annotations without a mask (segmentation)', without_mask)
    if is_train:
        unused = [name for name in data.classes if name not in used]
        rest = ' '.join(shlex.quote(name) for name in data.classes if name in used)
        data.found(f'{file.name}: classes without an annotation; leave them out by --classes {rest}', unused)
