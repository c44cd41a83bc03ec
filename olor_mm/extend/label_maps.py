"""Pixels that the old model knows in label maps, where the data has no class for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..classes.names import class_key
from .label import Choice, Source, joined_indices
from .predict import Unusable

IGNORED = 255  # in label maps of mmseg


class Maps:
    """Makes label maps with the classes of the data and of the old model.

    Pixels with a class of the data keep it. Those that are ignored (255) or of the class 'background' take the class of
    the old model where its probability is at least the threshold of that class. In between they are ignored; below,
    they stay as they are.

    Args:
        classes (Sequence[str]): Of the data: class i is value i in its masks.
        old (Sequence[str]): Of the old model.

    Raises:
        ValueError: If there are more classes than a label map of 8 bits holds.
    """

    def __init__(
        self, classes: Sequence[str], old: Sequence[str], choice: Choice, aliases: Mapping[str, str] | None = None
    ):
        indices = joined_indices(old, classes, aliases)
        if max([len(old) - 1, *indices]) >= IGNORED:
            raise ValueError(f'{len(old)} old and {len(classes)} new classes are more than the 255 of a label map')
        self.number, self.choice = len(classes), choice
        self.new_values: np.ndarray = np.full(IGNORED + 1, IGNORED, np.uint8)
        self.new_values[: len(classes)] = indices
        self.is_free: np.ndarray = np.zeros(IGNORED + 1, bool)
        self.is_free[[IGNORED, *(i for i, name in enumerate(classes) if class_key(name) == 'background')]] = True
        self.backgrounds = [i for i, name in enumerate(old) if class_key(name) == 'background']
        self.closed = [i for i in indices if i < len(old)] if choice.only_old else []

    def labelled(
        self, mask: np.ndarray, labels: np.ndarray, scores: np.ndarray, name: str = 'the mask'
    ) -> tuple[np.ndarray, dict[int, int], dict[int, int]]:
        """The label map (uint8); by class of the old model, how many pixels were added, and are ignored and were not.

        Args:
            mask (np.ndarray): Of the data, (height, width).
            labels (np.ndarray): The likeliest class of the old model, of that shape.
            scores (np.ndarray): Its probability, of that shape.
            name (str): Of the mask, for errors.

        Raises:
            ValueError: If the mask has a value that is no class.
        """
        strange = np.setdiff1d(mask, [*range(self.number), IGNORED])
        if len(strange):
            fault = f'has the values {strange.tolist()}, and there are {self.number} classes'
            raise ValueError(f'the mask of {name!r} {fault}; name all by --classes, from 0 on')
        before = self.new_values[mask]
        kept, between = self.choice.masks_of(labels, scores)
        usable = self.is_free[mask] & ~np.isin(labels, self.closed)
        kept &= usable
        between &= usable & ~np.isin(labels, self.backgrounds)
        found = np.where(kept, labels, np.where(between, IGNORED, before)).astype(np.uint8)
        return found, _counts(labels[kept & (found != before)]), _counts(labels[between & (before != IGNORED)])


def _counts(labels: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist()))


def read_mask(source: Source, size: tuple[int, ...], reduce_zero_label: bool = False) -> np.ndarray:
    """Class numbers of pixels (uint8), (height, width) as in ``size``.

    Raises:
        Unusable: If there is no such file, it is damaged, has colours or another size.
    """
    try:
        with Image.open(source.mask or '') as image:
            mask = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise Unusable(f'has no mask that can be read: {error}') from error
    if mask.ndim != 2 or mask.min(initial=0) < 0 or mask.max(initial=0) > IGNORED:
        raise Unusable('has a mask that is no label map of 8 bits')
    if mask.shape != size:
        raise Unusable(f'is {size[1]}x{size[0]}, and its mask {mask.shape[1]}x{mask.shape[0]}')
    mask = mask.astype(np.uint8)
    return np.where(mask % IGNORED == 0, IGNORED, mask - 1).astype(np.uint8) if reduce_zero_label else mask


def write_map(file: Path, values: np.ndarray) -> None:
    """Write a label map as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)
