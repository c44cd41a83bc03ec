"""Images in folders: one for each class, or one beside a folder of masks with class numbers."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ...progress import tracked
from .dataset import ORIENTATION, SPLITS, Data, DataError, Size, check_images, check_overlap, images_in, parted
from .reading import Reader

SAMPLE = 20  # images whose masks show how masks are named
IGNORED = 255  # value in masks that mmseg leaves out of the loss
LAYOUTS = {  # folder of the images of a split, and those its masks may be in
    '{}': ('{}_semantic', '{}_masks'),
    'images/{}': ('masks/{}', 'annotations/{}', 'labels/{}'),
    'img_dir/{}': ('ann_dir/{}',),
    '{}/images': ('{}/masks', '{}/labels'),
}
UNSPLIT = (('images', 'masks'), ('images', 'labels'), ('images', 'annotations'))


def read_class_folders(folder: Path, out: Path, classes: list[str] | None, reader: Reader) -> Data:
    """A data set for classification; see :func:`olor_mm.cli.data.examine`."""
    train, val = (
        next((folder / name for name in names if (folder / name).is_dir()), None) for names in SPLITS.values()
    )
    root = train or folder
    names = _folders(root)
    if len(names) < 2:
        raise DataError(f'{str(root)!r} has {len(names)} folders; give each class a folder of images, at least two')
    if classes is not None and sorted(classes) != names:
        raise DataError(f'--classes {classes} are not the folders in {str(root)!r}, which are {names}')
    data = Data(names)
    per_class = {name: images_in(root / name) for name in names}
    data.found('class folders without images', [root / name for name, files in per_class.items() if not files])
    files = [file for found in per_class.values() for file in found]
    check_images(data, reader, files)
    if train is not None and val is not None:
        others = sorted({*names} ^ {*_folders(val)})
        if others:
            raise DataError(f'{str(val)!r} has other class folders than {str(train)!r}: {others}')
        kept = images_in(val)
        data.note_test(val)
        data.train, data.val, data.images = dict(data_prefix=train.name), dict(data_prefix=val.name), len(files)
        check_images(data, reader, kept)
        check_overlap(data, files, kept)
        return data
    lists: dict[str, list[str]] = dict(train=[], val=[])
    for label, found in enumerate(per_class.values()):
        parts = parted(found) if len(found) > 1 else dict(train=found)
        for split, some in parts.items():
            lists[split] += [f'{file.relative_to(root)} {label}\n' for file in some]
    data.split_off(lists, ''.join, out, '.txt', data_prefix='' if root == folder else root.name)
    return data


def _folders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith('.'))


def read_masks(folder: Path, out: Path, classes: list[str] | None, reader: Reader) -> Data:
    """A data set for semantic segmentation; see :func:`olor_mm.cli.data.examine`."""
    data = Data(classes or [], loading=dict(reduce_zero_label=False))
    values: dict[int, Path] = {}  # to the first mask that has them
    images: dict[str, list[Path]] = {}
    for split, (where, masks) in folder_pairs(folder).items():
        suffix = mask_suffix(where, masks)
        found = [file for file in images_in(where) if where != masks or not file.name.endswith(suffix)]
        if not found:
            raise DataError(f'{str(where)!r} has no images')
        images[split] = found
        names = [file.relative_to(where).with_suffix('').as_posix() for file in found]
        pairs = {file: masks / f'{name}{suffix}' for file, name in zip(found, names)}
        data.found(f'images without a mask {suffix}', [file for file, mask in pairs.items() if not mask.is_file()])
        sizes = _read_masks(data, pairs, values, reader.annotations(reduce_zero_label=False))
        check_images(data, reader, found, sizes)
        kinds = sorted({file.suffix for file in found})
        if len(kinds) > 1:
            raise DataError(f'images of {str(where)!r} end with {kinds}; mmseg takes one of them in a data set')
        prefix = dict(img_path=str(where.relative_to(folder)), seg_map_path=str(masks.relative_to(folder)))
        fields = dict(data_prefix=prefix, img_suffix=kinds[0], seg_map_suffix=suffix, reduce_zero_label=False)
        setattr(data, 'train' if split == 'all' else split, fields)
        if where == masks and suffix.endswith(kinds[0]):  # mmseg would take masks for images
            file = out.with_name(f'{out.stem}_{split}.txt')
            data.written[file], fields['ann_file'] = ''.join(f'{name}\n' for name in names), str(file)
    _check_values(data, values)
    if 'val' in images:
        data.images = len(images['train'])
        data.note_test(folder / data.val['data_prefix']['img_path'])
        check_overlap(data, images['train'], images['val'])
    else:
        where = folder / data.train['data_prefix']['img_path']
        found = images.get('all') or images['train']
        lines = [f'{file.relative_to(where).with_suffix("").as_posix()}\n' for file in found]
        data.written.clear()
        data.split_off(parted(lines), ''.join, out, '.txt', **data.train)
    return data


def folder_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and masks by split; 'all' where there is no split."""
    layouts = [(images, masks) for images, folders in LAYOUTS.items() for masks in (*folders, images)]
    named = [(split, name, pair) for split, names in SPLITS.items() for name in names for pair in layouts]
    named += [('all', '', pair) for pair in (*UNSPLIT, ('', ''), ('images', 'images'))]
    found: dict[str, tuple[Path, Path]] = {}
    for split, name, pair in named:
        images, masks = (folder / part.format(name) for part in pair)
        if images.is_dir() and masks.is_dir() and (images != masks or mask_suffix(images, masks)):
            found.setdefault(split, (images, masks))
    if 'train' in found:
        found.pop('all', None)
        return found
    if 'all' in found:
        return dict(all=found['all'])
    pairs = [' + '.join(pair) for pair in (*layouts, *UNSPLIT) if pair[0] != pair[1]]
    known = ', '.join(pairs).replace('{}', 'train')
    known += ', and for x_mask.png beside x.jpg'
    raise DataError(f'{str(folder)!r} has no folder of images beside one of masks; looked for {known}')


def mask_suffix(images: Path, masks: Path) -> str:
    """What most masks have after the name of their image, as '.png' or '_mask.png'; '' if that is nothing known."""
    files = sorted(file.relative_to(masks).as_posix() for file in images_in(masks))
    names = [file.relative_to(images) for file in images_in(images)][:SAMPLE]
    counts: Counter[str] = Counter()
    for name in names:
        stem = name.with_suffix('').as_posix()
        for file in files[bisect_left(files, stem) :]:
            if not file.startswith(stem):
                break
            if file[len(stem)] in '.-_' and (images != masks or file != name.as_posix()):
                counts[file[len(stem) :]] += 1
    likely = [suffix for suffix, number in counts.items() if 4 * number >= len(names)]
    if images != masks:
        likely = likely or ['.png']
    return max(likely, key=lambda suffix: (counts[suffix], suffix.endswith('.png'), -len(suffix)), default='')


def _read_masks(data: Data, pairs: dict[Path, Path], values: dict[int, Path], load: Callable) -> list[Size | None]:
    """Read masks as training does, add their values to ``values``, and return their sizes (width, height)."""
    sizes: list[Size | None] = []
    unreadable, tagged = [], []
    for mask in tracked(pairs.values(), 'reading masks'):
        sizes.append(None)
        if not mask.is_file():
            continue
        try:
            seen = load(dict(seg_map_path=str(mask), seg_fields=[], label_map=None, reduce_zero_label=False))
            seen = seen['gt_seg_map']
            with Image.open(mask) as image:
                kind, mode, stored = image.format, image.mode, np.asarray(image)
                if image.getexif().get(ORIENTATION, 1) != 1:
                    tagged.append(mask)
        except Exception as error:  # a decoder raises anything for a damaged file
            unreadable.append(f'{mask} ({error})')
            continue
        if kind == 'JPEG':
            raise DataError(f'{mask} is a JPEG, which changes numbers when it is saved; write masks as PNG')
        if seen.ndim != 2:
            raise DataError(f'{mask} has colours ({mode}); a mask has one channel, of class numbers')
        if stored.max() > 255 or stored.min() < 0:
            raise DataError(f'{mask} has values up to {stored.max()}, and mmseg reads 8 bits; write classes from 0')
        sizes[-1] = seen.shape[::-1]
        for value in np.unique(seen):
            values.setdefault(int(value), mask)
    data.found('masks that cannot be read', unreadable)
    data.found('masks with an EXIF orientation; write them as they are shown, without it', tagged)
    return sizes


def _check_values(data: Data, values: dict[int, Path]) -> None:
    """Compare the values of masks with the classes; without classes, make names for the values."""
    used = sorted(values.keys() - {IGNORED})
    if used in ([], [0]):
        raise DataError(f'masks have only the values {sorted(values)}, and {IGNORED} is ignored: write a class as 1')
    if not data.classes:
        gaps = sorted({*range(used[-1])} - {*used})
        if len(gaps) > 1 or used[0] > 1:
            where = f'{used[-1]} is in {values[used[-1]]}'
            raise DataError(
                f'masks have the values {used}, {where}, and not {gaps}: write classes as 0, 1, 2, ..., or name all '
                f'{used[-1] + 1} by --classes'
            )
        data.classes = [f'class {value}' for value in range(max(2, used[-1] + 1))]
        data.notes.append(f'masks have values up to {used[-1]}: {len(data.classes)} classes; --classes names them')
    outside = [value for value in used if value >= len(data.classes)]
    if outside:
        classes = f'the {len(data.classes)} classes are 0 to {len(data.classes) - 1}, and {IGNORED} is ignored'
        remedy = '; name what 0 means as well' if outside == [len(data.classes)] and 0 in used else ''
        raise DataError(f'masks have the values {outside}, first in {values[outside[0]]}; {classes}{remedy}')
    unused = [name for i, name in enumerate(data.classes) if i not in values]
    if unused:
        data.notes.append(f'{len(unused)} classes that no mask has, first {unused[0]}')
