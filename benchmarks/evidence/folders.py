"""Photos in folders of classes, in memory: PACS, Caltech-101, and a photo of each ImageNet class.

| data                  | training                          | validation | test              | held out              |
|-----------------------|-----------------------------------|------------|-------------------|-----------------------|
| ``pacs``              | n a class and domain              | 10 others  | 30 others         |                       |
| ``pacs but sketch``   | n a class of three domains        | 10 others  | 30 others         | 100 of the fourth     |
| ``pacs photo``        | n a class of that domain          | 30 others  | 100 others        |                       |
| ``caltech``           | n a class                         | 5 others   | 10 of its test    |                       |

All counts are at most, and a class. Which images are for validation and test does not depend on the seed. Where the
originals are to be had: PACS, https://dali-dl.github.io/project_iccv2017.html; Caltech-101,
https://data.caltech.edu/records/mzrjq-6wc02; ImageNet, https://www.image-net.org (one photo of each class, ``0000.jpg``
to ``0999.jpg`` in the order of its class indices).
"""

import functools
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

DOMAINS = ('art_painting', 'cartoon', 'photo', 'sketch')
CENTRE = 0.875  # of the short side, as ImageNet classifiers are tested
Split = tuple[Tensor, Tensor]


def read_photo(file: Path, side: int, share: float = 1.0) -> np.ndarray:
    """The square in the middle, (3, side, side) uint8 RGB."""
    image = cv2.imread(str(file))
    cut = round(share * min(image.shape[:2]))
    top, left = ((length - cut) // 2 for length in image.shape[:2])
    image = cv2.resize(image[top : top + cut, left : left + cut], (side, side), interpolation=cv2.INTER_AREA)
    return image[..., ::-1].transpose(2, 0, 1).copy()


def classes_of(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if not found:
        raise SystemExit(f'{folder} has no folders of classes')
    return found


def shuffled(folder: Path) -> list[Path]:
    """The images of a class, in the same order for every seed."""
    files = sorted(folder.glob('*.jpg'))
    return [files[i] for i in np.random.default_rng(0).permutation(len(files))]


def pool(files: list[Path], val: int, test: int) -> dict[str, list[Path]]:
    return dict(val=files[:val], test=files[val : val + test], train=files[val + test :])


def parts_of(root: Path, data: str) -> list[dict[str, list[Path]]]:
    """Files by split, for every class (and domain)."""
    if data == 'caltech':
        return [
            dict(pool(shuffled(folder), 5, 0), test=shuffled(root / 'test' / folder.name)[:10])
            for folder in classes_of(root / 'train')
        ]
    _, _, which = data.partition(' ')
    out = which.removeprefix('but ') if which.startswith('but ') else None
    domains = [which] if which in DOMAINS else [domain for domain in DOMAINS if domain != out]
    counts = (30, 100) if which in DOMAINS else (10, 30)
    parts = [pool(shuffled(folder), *counts) for domain in domains for folder in classes_of(root / domain)]
    if out:
        parts += [dict(held_out=shuffled(folder)[:100]) for folder in classes_of(root / out)]
    return parts


@functools.lru_cache(4)
def photos_of(root: str, data: str, size: int, seed: int, side: int) -> dict[str, Split]:
    """Split to images (n, 3, side, side), uint8, and labels (n,)."""
    parts = parts_of(Path(root), data)
    names = sorted({files[0].parent.name for part in parts for files in part.values() if files})
    rng = np.random.default_rng(seed)
    found: dict[str, tuple[list, list]] = {}
    for part in parts:
        for split, files in part.items():
            if split == 'train':
                files = [files[i] for i in rng.permutation(len(files))[:size]]
            images, labels = found.setdefault(split, ([], []))
            images += [read_photo(file, side) for file in files]
            labels += [names.index(file.parent.name) for file in files]
    return {
        split: (torch.from_numpy(np.stack(images)), torch.tensor(labels)) for split, (images, labels) in found.items()
    }


@functools.cache
def imagenet_of(root: str, side: int) -> Split:
    """A photo of each class (n, 3, side, side), uint8, and their class indices."""
    files = sorted(Path(root).glob('*.jpg'))
    if not files:
        raise SystemExit(f'{root} has no *.jpg')
    photos = np.stack([read_photo(file, side, CENTRE) for file in files])
    return torch.from_numpy(photos), torch.tensor([int(file.stem) for file in files])
