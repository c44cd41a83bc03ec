"""A data set as a config describes it, and the checks that all kinds of annotations share."""

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from ...progress import tracked
from .reading import Reader

SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # those that mmpretrain reads
SPLITS = dict(train=('train', 'training', 'train2017'), val=('val', 'valid', 'validation', 'val2017', 'test'))
VALIDATION_SHARE = 0.2  # of the images, where there are none for validation
DECODED = 1000  # images that are decoded; of the others, only the header is read
ORIENTATION = 0x0112  # EXIF
MISSING, UNREADABLE = 'images that are not there', 'images that cannot be read'
RESIZED = 'images (width x height) of another size than annotated'
TURNED = (
    'images with an EXIF orientation that are annotated as they are stored, while training turns them as they are '
    'shown; remove the tag (`exiftool -Orientation= FILES`)'
)
DEEP = 'images with more than 8 bits a channel, of which training keeps the upper 8; write 8 bits'
AMBIGUOUS = 'images with an EXIF orientation, which training turns; annotations have to be of the images as shown'
PROBLEMS, NOTES = (MISSING, UNREADABLE, TURNED, RESIZED), (DEEP, AMBIGUOUS)
Size = tuple[int, int]


class DataError(ValueError):
    """The data cannot be used; the message says what is wrong and what would be right."""


@dataclass
class Data:
    """A data set as a config describes it."""

    classes: list[str]  # in the order of the labels
    train: dict = field(default_factory=dict)  # arguments of OpenMMLab's data set, but data_root, pipeline and classes
    val: dict = field(default_factory=dict)
    images: int = 0  # of training
    loading: dict = field(default_factory=dict)  # options that the step that loads annotations needs
    written: dict[Path, str] = field(default_factory=dict)  # files to write: a split that the data does not have
    problems: list[str] = field(default_factory=list)  # probable mistakes; a config can be written in spite of them
    notes: list[str] = field(default_factory=list)

    def found(self, what: str, cases: Sequence) -> None:
        """Add a problem with the number of its cases and the first one; no cases are no problem."""
        if cases:
            self.problems.append(f'{what}: {len(cases)}, first {cases[0]}')

    def split_off(self, parts: dict[str, list], text: Callable[[list], str], out: Path, suffix: str, **fields) -> None:
        """Have files of 'train' and 'val' written beside the config; ``text`` makes one of its entries."""
        if not all(parts.values()):
            raise DataError('there is no validation set, and there are too few images to split some off; add some')
        for split, entries in parts.items():
            file = out.with_name(f'{out.stem}_{split}{suffix}')
            self.written[file] = text(entries)
            setattr(self, split, dict(fields, ann_file=str(file)))
        self.images = len(parts['train'])
        number = len(parts['val'])
        self.notes.append(f'there is no validation set: {number} of {self.images + number} images were split off')

    def note_test(self, val: Path) -> None:
        """Note that the test set is used for validation, if it is."""
        if 'test' in val.name:
            self.notes.append(f'{val} is used for validation: no other set is, and it chooses the best checkpoint')


def images_in(folder: Path) -> list[Path]:
    """All images in a folder and its sub-folders, those that are links too, sorted."""
    files = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(f for f in files if f.suffix.lower() in SUFFIXES and f.is_file())


def parted(*groups: list) -> dict[str, list]:
    """The entries of each group split into 'train' and 'val' at random, in their order, the same way in every run.

    A group of one entry stays in 'train', unless it is the only one.
    """
    parts: dict[str, list] = dict(train=[], val=[])
    for entries in filter(None, groups):
        number = max(len(entries) > 1 or len(groups) == 1, round(VALIDATION_SHARE * len(entries)))
        kept = set(random.Random(0).sample(range(len(entries)), number))
        for i, entry in enumerate(entries):
            parts['val' if i in kept else 'train'].append(entry)
    return parts


def check_images(
    data: Data, reader: Reader, files: Sequence[Path], sizes: Sequence[Size | None] = ()
) -> list[Size | None]:
    """Note images that are missing, damaged or of another (width, height) than annotated; return the sizes as shown."""
    found: dict[str, list] = {what: [] for what in (*PROBLEMS, *NOTES)}
    shown: list[Size | None] = []
    stride = -(-len(files) // DECODED)
    for number, (file, size) in enumerate(tracked(zip_longest(files, sizes), 'reading images', len(files))):
        shown.append(None)
        if not file.is_file():
            found[MISSING].append(file)
            continue
        stored, orientation, deep = _header(file)
        try:
            if number % stride == 0 or stored is None:
                here = reader.size(file)
            else:
                here = (stored[1], stored[0]) if orientation > 4 else stored
        except Exception as error:  # a decoder raises anything for a damaged file
            found[UNREADABLE].append(f'{file} ({error})')
            continue
        shown[-1] = here
        if deep:
            found[DEEP].append(file)
        if size is not None and size != here:
            is_turned = orientation > 1 and size == stored
            what = f'{file} of {here[0]}x{here[1]}, annotated as {size[0]}x{size[1]}'
            found[TURNED if is_turned else RESIZED].append(what)
        elif orientation > 1 and sizes and (size is None or size == stored):
            found[AMBIGUOUS].append(file)
    for what in PROBLEMS:
        data.found(what, found[what])
    data.notes += [f'{what}: {len(found[what])}, first {found[what][0]}' for what in NOTES if found[what]]
    return shown


def _header(file: Path) -> tuple[Size | None, int, bool]:
    """What the header says: size as stored, EXIF orientation, and whether a channel has more than 8 bits."""
    try:
        with Image.open(file) as image:
            # of a PNG without EXIF where it should be, Pillow decodes all to search for it
            tag = image.getexif().get(ORIENTATION) if image.format != 'PNG' or 'exif' in image.info else None
            return image.size, tag if isinstance(tag, int) and 1 < tag < 9 else 1, image.mode.startswith(('I', 'F'))
    except Exception:  # of what Pillow does not read; what counts is whether training reads it
        return None, 1, False


def check_overlap(data: Data, train: Iterable[Path], val: Sequence[Path]) -> None:
    """Note validation images that are training images as well; all of them are a problem."""

    def digest(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else str(file)

    sizes = {file.stat().st_size for file in val if file.is_file()}
    known = {digest(file) for file in train if file.is_file() and file.stat().st_size in sizes}
    same = [file for file in tracked(val, 'comparing images of training and validation') if digest(file) in known]
    if same and len(same) == len(val):
        data.problems.append(f'all {len(val)} validation images are training images too: results would mean nothing')
    elif same:
        data.notes.append(f'{len(same)} of {len(val)} validation images are training images too, first {same[0]}')
