"""Annotation files of several data sets in one, with all classes in one order."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..classes.names import match_classes


@dataclass(frozen=True)
class CocoPart:
    """Images to merge.

    Args:
        content (dict): What is in their COCO file.
        root (Path): The folder that ``file_name`` starts from.
        annotated (Collection): Names of the categories that are annotated in these images.
        chosen (Collection, optional): Ids of the images that are wanted. Default: all.
    """

    content: dict[str, Any]
    root: Path
    annotated: Collection[str]
    chosen: Collection | None = None


def merged_coco(parts: Iterable[CocoPart], classes: Sequence[str]) -> dict[str, Any]:
    """A COCO file with the images of all parts and the annotations of ``classes``, as ids of categories from 1.

    mmdet numbers classes by the order of categories in a file, so that all files of a training must have the same one.
    File names are absolute. An image of a part that annotates some of the classes lists their ids as ``annotated``.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    for part in parts:
        categories = [c for c in part.content['categories'] if c['name'] in part.annotated]
        indices = match_classes(classes, [c['name'] for c in categories])
        ids = {c['id']: index + 1 for c, index in zip(categories, indices, strict=True) if index is not None}
        known = dict(annotated=sorted(ids.values())) if len(ids) < len(classes) else {}
        own: dict[Any, int] = {}
        for image in part.content['images']:
            if part.chosen is None or image['id'] in part.chosen:
                own[image['id']] = len(images) + 1
                name = str(part.root / image['file_name'])
                images.append({**image, 'id': len(images) + 1, 'file_name': name, **known})
        for annotation in part.content['annotations']:
            if annotation['image_id'] in own and annotation['category_id'] in ids:
                place = dict(image_id=own[annotation['image_id']], category_id=ids[annotation['category_id']])
                annotations.append({**annotation, **place, 'id': len(annotations) + 1})
    named = [dict(id=index + 1, name=name) for index, name in enumerate(classes)]
    return dict(images=images, annotations=annotations, categories=named)


def used_categories(contents: Iterable[dict[str, Any]]) -> set[str]:
    """Names of the categories that any annotation of COCO files has."""
    used: set[str] = set()
    for content in contents:
        ids = {annotation['category_id'] for annotation in content['annotations']}
        used |= {category['name'] for category in content['categories'] if category['id'] in ids}
    return used
