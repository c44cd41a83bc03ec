"""Detections of the old model as annotations of COCO, beside those of the data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..classes.names import joined_classes
from .label import FAULT, Choice, Labelled, Record, joined_indices

OVERLAP = 0.5  # with an annotation, above which a detection is taken for the same object
SOURCE = 'olor_mm'  # of what is added
IGNORING = ('MaxIoUAssigner', 'ApproxMaxIoUAssigner', 'ATSSAssigner')


def labelled(
    content: dict[str, Any],
    classes: Sequence[str],
    old: Sequence[str],
    records: Mapping[str, Record],
    choice: Choice,
    aliases: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], Labelled]:
    """A COCO file with the annotations of the data and the old model's, of old and new classes.

    Categories are :func:`~olor_mm.classes.names.joined_classes` with ids from 1. A detection whose IoU with an
    annotation is above 0.5 is left out; of a crowd or an ignored region, that much of the detection in it. So is an
    ignored region that covers more than half of a label: training would lose the label there.

    Args:
        content (dict): What is in the data's own file; it stays as it is.
        classes (Sequence[str]): Those of its categories that count.
        old (Sequence[str]): Classes of the old model.
        records (Mapping): Name of a file to what :meth:`~olor_mm.extend.predict.OldModel.boxes` gives; images that
            have a fault instead are left out.
    """
    joined = joined_classes(old, classes, aliases)
    news = dict(zip(classes, joined_indices(old, classes, aliases)))
    ids = {c['id']: 1 + news[c['name']] for c in content['categories'] if c['name'] in news}
    images = [image for image in content['images'] if FAULT not in records[image['file_name']]]
    kept = {image['id'] for image in images}
    own = [a for a in content['annotations'] if a['category_id'] in ids and a['image_id'] in kept]
    annotations = [dict(annotation, category_id=ids[annotation['category_id']]) for annotation in own]
    by_image: dict[Any, list[dict]] = {image['id']: [] for image in images}
    for annotation in annotations:
        by_image[annotation['image_id']].append(annotation)
    closed = {a['category_id'] - 1 for a in annotations} if choice.only_old else set()
    found, number = Labelled(), max((a['id'] for a in annotations), default=0)
    for image in images:
        for entry in _additions(records[image['file_name']], by_image[image['id']], closed, choice, found):
            number += 1
            annotations.append(dict(id=number, image_id=image['id'], **entry))
    categories = [dict(id=at + 1, name=name) for at, name in enumerate(joined)]
    return dict(content, images=images, annotations=annotations, categories=categories), found


def _additions(
    record: Record, annotations: list[dict], closed: set[int], choice: Choice, found: Labelled
) -> list[dict[str, Any]]:
    """Annotations to add to those of an image, without ids."""
    boxes = np.asarray(record['boxes']).reshape(-1, 4)
    labels, scores = np.asarray(record['labels'], int), np.asarray(record['scores'])
    found.best = max(found.best, record['best'])
    kept, between = choice.masks_of(labels, scores)
    usable = (boxes[:, 2:] >= 1).all(1) & ~np.isin(labels, [*closed])  # mmdet leaves smaller boxes out
    kept, between = kept & usable, between & usable
    crowds = [bool(a.get('iscrowd') or a.get('ignore')) for a in annotations]
    covered = overlaps(boxes, [a['bbox'] for a in annotations], crowds).max(1, initial=0) > OVERLAP
    found.overlapping += int((kept & covered).sum())
    kept, between = kept & ~covered, between & ~covered
    counted = [a['bbox'] for a, crowd in zip(annotations, crowds) if not crowd] + boxes[kept].tolist()
    hidden = overlaps(np.asarray(counted).reshape(-1, 4), boxes, [True] * len(boxes)).max(0, initial=0) > OVERLAP
    between &= ~hidden
    found.added.update(labels[kept].tolist())
    found.ignored.update(labels[between].tolist())
    return [_entry(record, at, bool(between[at])) for at in np.flatnonzero(kept | between)]


def _entry(record: Record, at: int, is_ignored: bool) -> dict[str, Any]:
    box = record['boxes'][at]
    entry = dict(category_id=record['labels'][at] + 1, bbox=box, area=round(box[2] * box[3], 2))
    if 'masks' in record:
        entry['segmentation'] = record['masks'][at]
        entry['area'] = _area(record['masks'][at]) or entry['area']
    return dict(entry, iscrowd=int(is_ignored), source=SOURCE, score=record['scores'][at])


def _area(rle: dict) -> int:
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(rle))


def overlaps(boxes: Sequence | np.ndarray, others: Sequence | np.ndarray, crowds: Sequence[bool]) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) as x, y, width, height with others (m, 4); of a crowd, the share of the box in it."""
    boxes, others = (np.asarray(b, float).reshape(-1, 4) for b in (boxes, others))
    start = np.maximum(boxes[:, None, :2], others[None, :, :2])
    end = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (others[:, :2] + others[:, 2:])[None])
    both = (end - start).clip(min=0).prod(2)
    area, other_area = boxes[:, 2:].prod(1)[:, None], others[:, 2:].prod(1)[None]
    whole = np.where(np.asarray(crowds, bool)[None], area, area + other_area - both)
    return both / np.maximum(whole, 1e-9)


def ignoring(model: Any, path: str = 'model') -> list[str]:
    """Settings of a model's config that make it ignore regions, and do not, by their names.

    mmdet passes annotations with ``iscrowd=1`` to assigners, most of which use them only with ``ignore_iof_thr`` above
    0. Its stock configs have -1: what is in such a region is background then.
    """
    if isinstance(model, (list, tuple)):
        return [name for at, part in enumerate(model) for name in ignoring(part, f'{path}.{at}')]
    if not isinstance(model, dict):
        return []
    found = [name for key, part in model.items() for name in ignoring(part, f'{path}.{key}')]
    if str(model.get('type')).rpartition('.')[2] in IGNORING and model.get('ignore_iof_thr', -1) <= 0:
        found.append(f'{path}.ignore_iof_thr')
    return found
