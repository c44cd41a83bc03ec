"""What a folder of images and annotations holds, and what is wrong with it: one file for each kind of annotation."""

from pathlib import Path

from .coco import read_coco
from .dataset import Data, DataError
from .folders import read_class_folders, read_masks

__all__ = ['TASKS', 'Data', 'DataError', 'examine']

TASKS = ('classification', 'detection', 'instance_segmentation', 'semantic_segmentation')


def examine(folder: Path, task: str, out: Path, classes: list[str] | None) -> Data:
    """Read and check a data set for one of :data:`TASKS`; ``out`` is the config, with a split written beside it."""
    if not folder.is_dir():
        raise DataError(f'{str(folder)!r} is not a folder')
    if task == 'classification':
        return read_class_folders(folder, out, classes)
    if task == 'semantic_segmentation':
        return read_masks(folder, out, classes)
    return read_coco(folder, out, classes, with_masks=task == 'instance_segmentation')
