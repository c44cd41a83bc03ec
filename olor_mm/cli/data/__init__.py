"""What a folder of images and annotations holds, and what is wrong with it: one file for each kind of annotation."""

from pathlib import Path

from .coco import read_coco
from .dataset import Data, DataError
from .folders import read_class_folders, read_masks
from .reading import Reader

__all__ = ['TASKS', 'Data', 'DataError', 'Reader', 'examine']

TASKS = ('classification', 'detection', 'instance_segmentation', 'semantic_segmentation')


def examine(folder: Path, task: str, out: Path, classes: list[str] | None, reader: Reader) -> Data:
    """Read and check a data set for one of :data:`TASKS`.

    Args:
        folder (Path): The data.
        task (str): One of :data:`TASKS`.
        out (Path): The config to write. A split, and annotations that had to be changed, are written beside it.
        classes (list[str], optional): Names of the classes.
        reader (Reader): Reads images and annotations as training does.

    Raises:
        DataError: If the data cannot be used. What looks like a mistake is in ``problems`` of the result.
    """
    if not folder.is_dir():
        raise DataError(f'{str(folder)!r} is not a folder')
    if task == 'classification':
        return read_class_folders(folder, out, classes, reader)
    if task == 'semantic_segmentation':
        return read_masks(folder, out, classes, reader)
    return read_coco(folder, out, classes, task == 'instance_segmentation', reader)
