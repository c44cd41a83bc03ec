"""A few images of an old data set, of every class one or more."""

import random
from collections.abc import Collection, Hashable, Sequence


class TooFewImages(ValueError):
    """The sample is too small for every class; ``needed`` images are enough."""

    def __init__(self, number: int, needed: int, classes: int):
        super().__init__(f'{number} images do not have all {classes} classes of the old data; {needed} do')
        self.needed = needed


def sample_of_every_class(classes_of: Sequence[Collection[Hashable]], number: int, seed: int = 0) -> list[int]:
    """Sorted indices of images that together have every class that any image has.

    Greedy: the image with most classes that are still missing, until none is; then others at random.

    Args:
        classes_of (Sequence): The classes that each image shows.
        number (int): Images in the sample; all there are if it is larger.
        seed (int): Of the order of equals, and of the others.

    Raises:
        TooFewImages: If that many images do not have every class.
    """
    order = random.Random(seed).sample(range(len(classes_of)), len(classes_of))
    missing = {name for classes in classes_of for name in classes}
    every, chosen = len(missing), list[int]()
    while missing:
        best = max(order, key=lambda index: len(missing.intersection(classes_of[index])))
        missing.difference_update(classes_of[best])
        chosen.append(best)
    if len(chosen) > number:
        raise TooFewImages(number, len(chosen), every)
    taken = set(chosen)
    others = [index for index in order if index not in taken]
    return sorted([*chosen, *others[: number - len(chosen)]])


def repeats(new: int, old: int, share: float) -> int:
    """How often to repeat ``old`` images beside ``new`` ones, so that they are about that share of an epoch; 1 or more.

    >>> repeats(180, 20, 0.1), repeats(180, 20, 0.5), repeats(10, 20, 0.1)
    (1, 9, 1)
    """
    return max(1, round(share / (1 - share) * new / old))
