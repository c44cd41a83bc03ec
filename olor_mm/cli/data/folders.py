"""Images in folders: one for each class, or one beside a folder of masks with class numbers."""

from pathlib import Path

import numpy as np
from PIL import Image

from .dataset import SPLITS, Data, DataError, check_images, check_overlap, images_in, parted

IGNORED = 255  # value in masks that mmseg leaves out of the loss
LAYOUTS = {  # folder of the images of a split, and those its masks may be in
    '{}': ('{}_semantic', '{}_masks'),
    'images/{}': ('masks/{}', 'annotations/{}', 'labels/{}'),
    'img_dir/{}': ('ann_dir/{}',),
    '{}/images': ('{}/masks', '{}/labels'),
}
UNSPLIT = (('images', 'masks'), ('images', 'labels'), ('images', 'annotations'))


def read_class_folders(folder: Path, out: Path, classes: list[str] | None) -> Data:
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
    check_images(data, files)
    if train is not None and val is not None:
        others = sorted({*names} ^ {*_folders(val)})
        if others:
            raise DataError(f'{str(val)!r} has other class folders than {str(train)!r}: {others}')
        kept = images_in(val)
        data.note_test(val)
        data.train, data.val, data.images = dict(data_prefix=train.name), dict(data_prefix=val.name), len(files)
        check_images(data, kept)
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


def read_masks(folder: Path, out: Path, classes: list[str] | None) -> Data:
    """A data set for semantic segmentation; see :func:`olor_mm.cli.data.examine`."""
    data = Data(classes or [])
    values: dict[int, Path] = {}  # to the first mask that has them
    images: dict[str, dict[Path, Path]] = {}
    for split, (where, masks) in _folder_pairs(folder).items():
        found = {file.relative_to(where).with_suffix(''): file for file in images_in(where)}
        if not found:
            raise DataError(f'{str(where)!r} has no images')
        images[split] = found
        pairs = {file: (masks / name).with_suffix('.png') for name, file in found.items()}
        data.found('images without a mask', [file for file, mask in pairs.items() if not mask.is_file()])
        check_images(data, list(pairs))
        _read_values(data, pairs, values)
        prefix = dict(img_path=str(where.relative_to(folder)), seg_map_path=str(masks.relative_to(folder)))
        setattr(data, 'train' if split == 'all' else split, dict(data_prefix=prefix))
    suffixes = sorted({file.suffix for found in images.values() for file in found.values()})
    if len(suffixes) > 1:
        raise DataError(f'images end with {suffixes}; mmseg takes one of them in a data set')
    _check_values(data, values)
    if 'val' in images:
        data.images = len(images['train'])
        data.note_test(folder / data.val['data_prefix']['img_path'])
        check_overlap(data, images['train'].values(), list(images['val'].values()))
    else:
        names = [f'{name}\n' for name in images.get('all') or images['train']]
        data.split_off(parted(names), ''.join, out, '.txt', **data.train)
    for fields in (data.train, data.val):
        fields |= dict(img_suffix=suffixes[0], seg_map_suffix='.png', reduce_zero_label=False)
    return data


def _folder_pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of images and masks by split; 'all' where there is no split."""
    layouts = [(images, masks) for images, folders in LAYOUTS.items() for masks in folders]
    named = [(split, name, pair) for split, names in SPLITS.items() for name in names for pair in layouts]
    named += [('all', '', pair) for pair in UNSPLIT]
    found: dict[str, tuple[Path, Path]] = {}
    for split, name, pair in named:
        images, masks = (folder / part.format(name) for part in pair)
        if images.is_dir() and masks.is_dir():
            found.setdefault(split, (images, masks))
    if 'train' in found:
        found.pop('all', None)
        return found
    if 'all' in found:
        return dict(all=found['all'])
    known = ', '.join(' + '.join(pair).replace('{}', 'train') for pair in (*layouts, *UNSPLIT))
    raise DataError(f'{str(folder)!r} has no folder of images beside one of masks; looked for {known}')


def _read_values(data: Data, pairs: dict[Path, Path], values: dict[int, Path]) -> None:
    """Note masks that do not fit their image, and add the values of masks to ``values``."""
    unusual = []
    for file, mask in pairs.items():
        try:
            with Image.open(mask) as image, Image.open(file) as picture:
                if image.mode not in ('L', 'P', '1', 'I', 'I;16'):
                    raise DataError(f'{mask} has colours ({image.mode}); a mask has one channel, of class numbers')
                if image.size != picture.size:
                    unusual.append(f'{mask} of {image.size}, its image of {picture.size}')
                for value in np.unique(np.asarray(image)):
                    values.setdefault(int(value), mask)
        except OSError:  # of a missing mask or a damaged image as well, which are found before
            if mask.is_file() and file.is_file():
                unusual.append(f'{mask}, or its image, cannot be read')
    data.found('masks of another size than the image, or unreadable', unusual)


def _check_values(data: Data, values: dict[int, Path]) -> None:
    """Compare the values of masks with the classes; without classes, make names for the values."""
    used = sorted(values.keys() - {IGNORED})
    if not used or (used == [0] and IGNORED in values):
        raise DataError(f'masks have only the values {sorted(values)}, and {IGNORED} is ignored: write a class as 1')
    if not data.classes:
        data.classes = [f'class {value}' for value in range(max(2, used[-1] + 1))]
        data.notes.append(f'masks have values up to {used[-1]}: {len(data.classes)} classes; --classes names them')
    outside = [value for value in used if value >= len(data.classes)]
    if outside:
        classes = f'the {len(data.classes)} classes are 0 to {len(data.classes) - 1}, and {IGNORED} is ignored'
        raise DataError(f'masks have the values {outside}, first in {values[outside[0]]}; {classes}')
    data.found('classes that no mask has', [name for i, name in enumerate(data.classes) if i not in values])
