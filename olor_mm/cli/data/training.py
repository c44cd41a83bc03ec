"""The images of a data set to train on, whole, in every layout that :func:`olor_mm.cli.data.examine` reads."""

from dataclasses import dataclass
from pathlib import Path

from .annotations import Content, annotated_size
from .coco import annotation_files, check_names, image_root
from .dataset import SPLITS, DataError, images_in
from .folders import folder_pairs, mask_suffix


@dataclass
class Boxes:
    """An annotation file of COCO, and where its images are."""

    content: Content
    root: Path
    classes: list[str]  # those of its categories that count

    def sizes(self) -> list[tuple[str, Path, tuple[int, int] | None]]:
        """Name, file, and annotated width and height of every image."""
        images = {image['file_name']: annotated_size(image) for image in self.content.images}
        return [(name, self.root / name, size) for name, size in images.items()]


def read_boxes(place: Path, images: Path | None, classes: list[str] | None, split: str = 'train') -> Boxes:
    """Annotations of a folder, or of one file, mended as for training.

    Args:
        place (Path): The folder of the data, or an annotation file.
        images (Path, optional): Folder of the images. Defaults to the one that has them, in or beside ``place``.
        classes (list[str], optional): Those that count. Defaults to all.
        split (str): Which annotations to take, where there are several; those of training if there are no such.
    """
    if place.is_file():
        file, folders = place, [place.parent, place.parent.parent]
    else:
        found = annotation_files(_folder(place))
        file, folders = found.get(split, found['train']), [place]
    content = Content(file)
    content.mend(with_masks=True)
    content.number()
    names = [category['name'] for category in content.categories]
    check_names(file, names, classes or names)
    files = [image['file_name'] for image in content.images]
    for number, folder in enumerate(folders if images is None else []):
        try:
            images = image_root(folder, file, split, files)
            break
        except DataError:
            if number + 1 == len(folders):
                raise
    return Boxes(content, _folder(images or place), [name for name in names if not classes or name in classes])


def read_pairs(folder: Path, split: str = 'train') -> list[tuple[str, Path, Path]]:
    """Name without suffix, file and mask of each image for semantic segmentation."""
    pairs = folder_pairs(_folder(folder))
    images, masks = pairs.get(split) or pairs.get('train') or pairs['all']
    suffix = mask_suffix(images, masks)
    found = [file for file in images_in(images) if images != masks or not file.name.endswith(suffix)]
    names = [file.relative_to(images).with_suffix('').as_posix() for file in found]
    if not found or len({*names}) < len(names):
        what = 'two images of one name' if found else 'no images'
        raise DataError(f'{str(images)!r} has {what}; give each mask an image')
    return [(name, file, masks / f'{name}{suffix}') for name, file in zip(names, found)]


def read_images(folder: Path) -> tuple[Path, list[tuple[str, Path]]]:
    """Where images for classification are; and name and file of each."""
    root = next((folder / name for name in SPLITS['train'] if (folder / name).is_dir()), _folder(folder))
    found = [(file.relative_to(root).as_posix(), file) for file in images_in(root)]
    if not found:
        raise DataError(f'{str(root)!r} has no images')
    return root, found


def _folder(place: Path) -> Path:
    if not place.is_dir():
        raise DataError(f'{str(place)!r} is not a folder')
    return place
