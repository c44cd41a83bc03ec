"""Entries of a COCO file: those that mmdet or COCOeval stop at, or read otherwise than they are meant."""

import json
import math
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from .dataset import Data, DataError


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


FIELDS: dict[str, dict[str, Callable]] = dict(  # without which an entry means nothing
    images=dict(id=_is_name, file_name=lambda value: isinstance(value, str)),
    categories=dict(id=_is_name, name=_is_name),
    annotations=dict(image_id=_is_name, category_id=_is_name, bbox=_is_box),
)
POLYGON = 6  # numbers of the smallest one


class Content:
    """What an annotation file says, made readable for mmdet and COCOeval where it can mean one thing only.

    Args:
        file (Path): The file.

    Raises:
        DataError: If it is no annotation file of COCO, or an entry lacks what cannot be made up for.
    """

    def __init__(self, file: Path):
        self.file, self.changes = file, list[str]()
        try:
            text = file.read_text('utf-8')
            content = json.loads(text.removeprefix('\ufeff'))
        except ValueError as error:
            raise DataError(f'{str(file)!r} is not JSON: {error}') from error
        if text.startswith('\ufeff'):  # pycocotools refuses it
            self.changes.append('no byte order mark')
        for key, fields in FIELDS.items():
            if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
                raise DataError(f'{str(file)!r} has no {key}: it is not an annotation file of COCO, or an empty one')
            for number, entry in enumerate(content[key]):
                self._check_fields(f'{key}[{number}]', entry, fields)
        self.all: dict[str, Any] = content
        self.images, self.categories, self.annotations = (content[key] for key in FIELDS)
        ids = [annotation.get('id') for annotation in self.annotations]
        self._is_numbered = all(type(i) is int for i in ids) and len({*ids}) == len(ids)
        self._names = {  # of annotations, by the identity of the entry
            id(annotation): f'annotation {i}' if self._is_numbered else f'annotations[{number}]'
            for number, (annotation, i) in enumerate(zip(self.annotations, ids))
        }

    def _check_fields(self, where: str, entry: Any, fields: dict[str, Callable]) -> None:
        for field, is_right in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if not is_right(value):
                where += f' (id {entry["id"]!r})' if isinstance(entry, dict) and 'id' in entry else ''
                raise DataError(
                    f'{str(self.file)!r}: {where} has {field}={value!r}; give ids as numbers, file_name and name as '
                    'text, and bbox as [x, y, width, height] in pixels'
                )

    def changed(self, what: str, cases: list) -> None:
        """Remember a change, with the number of its cases and the first one; no cases are no change."""
        if cases:
            self.changes.append(f'{what} ({len(cases)}, first {cases[0]})')

    def mend(self, with_masks: bool) -> None:
        """Write what mmdet and COCOeval count on, where it is missing or written in another way."""
        self._mend_names()
        numbers = [category for category in self.categories if not isinstance(category['name'], str)]
        for category in numbers:
            category['name'] = str(category['name'])  # mmdet takes a number for no name
        self.changed('numbers of categories as names', [category['name'] for category in numbers])
        crowds, areas = [], []
        for annotation in self.annotations:
            if annotation.get('iscrowd') not in (0, 1):
                crowds.append(self._names[id(annotation)])
                annotation['iscrowd'] = int(str(annotation.get('iscrowd')).lower() in ('1', 'true'))
            if not _is_number(annotation.get('area')) or annotation['area'] <= 0:  # mmdet leaves these out
                areas.append(self._names[id(annotation)])
                annotation['area'] = annotation['bbox'][2] * annotation['bbox'][3]
        self.changed('iscrowd', crowds)
        self.changed('area, that of the box', areas)
        if with_masks:
            self._mend_polygons()
        self._drop_empty()

    def number(self) -> None:
        """Give annotations numbers from 1, if they have others: COCOeval takes a match with number 0 for none."""
        if self._is_numbered and all(annotation['id'] > 0 for annotation in self.annotations):
            return
        self.changes.append('ids of annotations from 1, each once')
        for number, annotation in enumerate(self.annotations):
            annotation['id'] = number + 1

    def _mend_polygons(self) -> None:
        flat, parts = [], []
        for annotation in self.annotations:
            polygons = annotation.get('segmentation')
            if not isinstance(polygons, list):
                continue
            if polygons and all(map(_is_number, polygons)):
                flat.append(self._names[id(annotation)])
                annotation['segmentation'] = polygons = [polygons]
            whole = [polygon for polygon in polygons if _is_polygon(polygon)]
            if whole and len(whole) < len(polygons):
                parts.append(self._names[id(annotation)])
                annotation['segmentation'] = whole
        self.changed('polygons as lists within a list', flat)
        self.changed('no polygons of fewer than three points', parts)

    def _drop_empty(self) -> None:
        """Leave out boxes without a width or height, as mmdet does in training, and COCOeval does not."""
        empty = [a for a in self.annotations if min(a['bbox'][2:]) <= 0]
        if 2 * len(empty) < len(self.annotations):
            self.changed('no annotations with an empty box', [f'{self._names[id(a)]}, bbox {a["bbox"]}' for a in empty])
            self.annotations[:] = [a for a in self.annotations if min(a['bbox'][2:]) > 0]

    def _mend_names(self) -> None:
        """Write file names of Windows as those of other systems, where there is no file of that name."""
        cases = [image for image in self.images if '\\' in image['file_name']]
        cases = [image for image in cases if not (self.file.parent / image['file_name']).is_file()]
        self.changed('/ in file names', [image['file_name'] for image in cases])
        for image in cases:
            image['file_name'] = PureWindowsPath(image['file_name']).as_posix()

    def mend_sizes(self, shown: list[tuple[int, int] | None]) -> None:
        """Write width and height of images that lack them; ``shown`` are those of the images that could be read."""
        cases = []
        for image, size in zip(self.images, shown, strict=True):
            size = annotated_size(image) or size
            if size is not None and not all(type(image.get(side)) is int for side in ('width', 'height')):
                cases.append(image['file_name'])
                image['width'], image['height'] = size
        self.changed('width and height of the image', cases)
        self._cut_boxes()

    def _cut_boxes(self) -> None:
        """Cut boxes that overhang an edge, as training does and COCOeval does not, but for those mostly outside."""
        sizes = {image['id']: annotated_size(image) for image in self.images}
        cases = []
        for annotation in self.annotations:
            (x, y, width, height), size = annotation['bbox'], sizes.get(annotation['image_id'])
            left, top = max(x, 0), max(y, 0)
            right, bottom = (min(x + width, size[0]), min(y + height, size[1])) if size else (x + width, y + height)
            seen, whole = max(right - left, 0) * max(bottom - top, 0), width * height
            if whole / 2 <= seen < whole * 0.99:  # by less than 1 %, as rounding does, the score hardly changes
                cases.append(f'{self._names[id(annotation)]}, bbox {annotation["bbox"]}')
                annotation['bbox'] = [left, top, right - left, bottom - top]
        self.changed('boxes cut at the edge of the image', cases)

    def check(self, data: Data, with_masks: bool) -> None:
        """Note annotations that mmdet leaves out, and those that look like a mistake."""
        images = {image['id']: image for image in self.images}
        twice = [
            f'id {image["id"]!r} of {image["file_name"]}' for image in self.images if images[image['id']] is not image
        ]
        data.found(f'{self.file.name}: images with the id of another image', twice)
        names = [image['file_name'] for image in self.images]
        if len({*names}) < len(names):
            data.notes.append(f'{self.file.name} has {len(names) - len({*names})} images twice, by their file_name')
        categories = {category['id']: category for category in self.categories}
        twice = [f'id {c["id"]!r} of {c["name"]}' for c in self.categories if categories[c['id']] is not c]
        data.found(f'{self.file.name}: categories with the id of another category', twice)
        own = [annotation for annotation in self.annotations if annotation['image_id'] in images]
        foreign = self._those('image_id', images)
        if not own:
            data.found(f'{self.file.name}: no annotation is of an image in the file; unknown image_id', foreign)
        elif foreign:
            what = f'{len(foreign)} annotations of images that are not in it are left out, first {foreign[0]}'
            data.notes.append(f'{self.file.name}: {what}')
        data.found(f'{self.file.name}: annotations of an unknown category_id', self._those('category_id', categories))
        self._check_boxes(data, own, images)
        if with_masks:
            self._check_masks(data, own, images)

    def _those(self, field: str, known: dict) -> list[str]:
        """The annotations with an id of something else that is not known."""
        strange = [a for a in self.annotations if a[field] not in known]
        return [f'{self._names[id(a)]}, {field} {a[field]!r}' for a in strange]

    def _check_boxes(self, data: Data, own: list[dict], images: dict[Any, dict]) -> None:
        outside, small = [], []
        for annotation in own:
            x, y, width, height = annotation['bbox']
            across, down = annotated_size(images[annotation['image_id']]) or (math.inf, math.inf)
            is_inside = min(x, y) >= -1 and x + width <= across + 1 and y + height <= down + 1
            if min(width, height) <= 0 or not is_inside:
                outside.append(f'{self._names[id(annotation)]}, bbox {annotation["bbox"]} in {across}x{down}')
            elif max(width, height) <= 1:  # in pixels, mmdet leaves such boxes out
                small.append(f'{self._names[id(annotation)]}, bbox {annotation["bbox"]}')
        if 2 * len(small) > len(own):
            what = 'boxes of less than a pixel, as if relative to the image; COCO has pixels'
            data.found(f'{self.file.name}: {what}', small)
        what = 'boxes that are empty or outside the image; COCO has [x, y, width, height]'
        data.found(f'{self.file.name}: {what}', outside)

    def _check_masks(self, data: Data, own: list[dict], images: dict[Any, dict]) -> None:
        without, broken = [], []
        for annotation in own:
            mask, image = annotation.get('segmentation'), images[annotation['image_id']]
            if not mask:
                without.append(self._names[id(annotation)])
            elif isinstance(mask, dict):
                data.loading['poly2mask'] = True  # which reads RLE as well as polygons
                size, counts = mask.get('size'), mask.get('counts')
                if size != [image.get('height'), image.get('width')] or not isinstance(counts, (str, list)):
                    broken.append(f'{self._names[id(annotation)]}, RLE of size {size}, its image {image["file_name"]}')
            elif not all(map(_is_polygon, mask)):
                broken.append(f'{self._names[id(annotation)]}, {str(mask)[:80]}')
        if len(without) == len(own):
            raise DataError(f'{str(self.file)!r} has boxes and no masks (segmentation): its task is detection')
        data.found(f'{self.file.name}: annotations without a mask (segmentation)', without)
        what = (
            'masks that are neither polygons of three points or more, [[x, y, x, y, x, y, ...]], nor RLE of the image'
        )
        data.found(f"{self.file.name}: {what}'s [height, width]; draw or leave out these", broken)


def annotated_size(image: dict) -> tuple[int, int] | None:
    """Width and height of an image of COCO, if it has whole numbers for them."""
    sides = [image.get('width'), image.get('height')]
    whole = [int(side) for side in sides if _is_number(side) and side == int(side) > 0]
    return (whole[0], whole[1]) if len(whole) == len(sides) else None


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= POLYGON and len(value) % 2 == 0 and all(map(_is_number, value))
