"""Images for detection and instance segmentation, with annotation files of COCO."""

import json
import shlex
from itertools import islice
from pathlib import Path

from .dataset import Data, DataError, check_images, check_overlap, parted


def read_coco(folder: Path, out: Path, classes: list[str] | None, with_masks: bool) -> Data:
    """A data set for detection or, with masks, instance segmentation; see :func:`olor_mm.cli.data.examine`."""
    data, images = Data(classes or []), {}
    train: dict = {}
    for split, file in _annotation_files(folder).items():
        content = _read(file)
        train = train or content
        names = [category['name'] for category in content['categories']]
        if split == 'train':
            # mmdet numbers classes as they come in the file, whatever the order in a config
            data.classes = [name for name in names if not classes or name in classes]
            data.classes += [name for name in classes or () if name not in names]
        absent = [name for name in data.classes if name not in names]
        if absent or len(set(names)) < len(names):
            what = f'{absent} of the classes are not there' if absent else 'some are there twice; rename them'
            raise DataError(f'{str(file)!r} has the categories {names}: {what}')
        root = _image_root(folder, file, [image['file_name'] for image in content['images']])
        images[split] = [root / image['file_name'] for image in content['images']]
        check_images(data, images[split], [(image['width'], image['height']) for image in content['images']])
        _check_annotations(data, content, file, with_masks)
        if split == 'train':
            _check_classes(data, content, file)
        prefix = '' if root == folder else f'{root.relative_to(folder)}/'
        setattr(data, split, dict(ann_file=str(file.relative_to(folder)), data_prefix=dict(img=prefix)))
        if [name for name in names if name in data.classes] != data.classes:
            data.val['ann_file'] = _reordered(data, content, file, out.with_name(f'{out.stem}_{split}.json'))
    if 'val' in images:
        data.images = len(images['train'])
        data.note_test(folder / data.val['ann_file'])
        check_overlap(data, images['train'], images['val'])
    else:
        data.split_off(parted(train['images']), lambda some: _part(train, some), out, '.json', **data.train)
    return data


def _annotation_files(folder: Path) -> dict[str, Path]:
    """Annotation files of 'train' and, if there is one, of 'val', by the names of file and folder."""
    files = sorted([*folder.glob('*.json'), *folder.glob('*/*.json')])
    if not files:
        raise DataError(f'{str(folder)!r} has no annotation file: no *.json in it or in the folders in it')
    if any(file.name.startswith('instances_') for file in files):
        files = [file for file in files if file.name.startswith('instances_')]  # others are captions, key points
    named: dict[str, list[Path]] = {}
    for file in files:
        where = str(file.relative_to(folder)).lower()
        named.setdefault(next((part for part in ('train', 'val', 'test') if part in where), 'train'), []).append(file)
    for found in named.values():
        if len(found) > 1:
            names = [str(file.relative_to(folder)) for file in found]
            raise DataError(f'{str(folder)!r} has several annotation files for one split: {names}; leave one of them')
    if 'train' not in named:
        raise DataError(f'{str(folder)!r} has annotations of no training set, only {[str(f) for f in files]}')
    val = named.get('val') or named.get('test') or []
    return dict(zip(('train', 'val'), [*named['train'], *val]))


def _read(file: Path) -> dict:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f'{str(file)!r} is not JSON: {error}') from error
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
            raise DataError(f'{str(file)!r} has no {key}: it is not an annotation file of COCO, or an empty one')
    return content


def _image_root(folder: Path, file: Path, names: list[str]) -> Path:
    parts = [folder, file.parent, *(p for p in sorted(folder.rglob('*')) if p.is_dir())]
    counts = {part: sum((part / name).is_file() for name in islice(names, 20)) for part in dict.fromkeys(parts)}
    best = max(counts, key=lambda part: counts[part])
    if not counts[best]:
        raise DataError(f'images of {str(file)!r} are nowhere in {str(folder)!r}, e.g. {names[0]!r}')
    return best


def _reordered(data: Data, content: dict, file: Path, written: Path) -> str:
    """Have an annotation file written whose categories are in the order of training; its path."""
    names = [category['name'] for category in content['categories']]
    ordered = sorted(content['categories'], key=lambda category: (data.classes + names).index(category['name']))
    data.written[written] = json.dumps(dict(content, categories=ordered))
    what = 'has the categories in another order, which would number the classes differently'
    data.notes.append(f'{file.name} {what}; {written.name} has them in the order of training')
    return str(written)


def _part(content: dict, images: list[dict]) -> str:
    ids = {image['id'] for image in images}
    own = [annotation for annotation in content['annotations'] if annotation['image_id'] in ids]
    return json.dumps(dict(content, images=images, annotations=own))


def _check_annotations(data: Data, content: dict, file: Path, with_masks: bool) -> None:
    annotations = content['annotations']
    for key in ('id', 'image_id', 'category_id', 'area', 'bbox'):
        lack = [f'number {i}' for i, annotation in enumerate(annotations) if annotation.get(key) is None]
        if lack:
            hint = '; area is that of the mask, or width * height of the box' if key == 'area' else ''
            data.found(f'{file.name}: annotations without {key!r}, which mmdet reads{hint}', lack)
            return
    images = {image['id']: image for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    strange, outside, small, without_mask = [], [], [], []
    for annotation in annotations:
        where, image = f'annotation {annotation["id"]}', images.get(annotation['image_id'])
        if image is None or annotation['category_id'] not in categories:
            strange.append(f'{where}, image_id {annotation["image_id"]}, category_id {annotation["category_id"]}')
            continue
        x, y, width, height = annotation['bbox'] or (0, 0, 0, 0)
        is_inside = min(x, y) >= -1 and x + width <= image['width'] + 1 and y + height <= image['height'] + 1
        if width <= 0 or height <= 0 or not is_inside:
            outside.append(f'{where}, bbox {annotation["bbox"]} in {image["width"]}x{image["height"]}')
        elif max(width, height) <= 1:  # in pixels, mmdet leaves such boxes out
            small.append(f'{where}, bbox {annotation["bbox"]}')
        if not annotation.get('segmentation'):
            without_mask.append(where)
    data.found(f'{file.name}: annotations of an unknown image_id or category_id', strange)
    if 2 * len(small) > len(annotations):
        data.found(f'{file.name}: boxes of less than a pixel, as if relative to the image; COCO has pixels', small)
    data.found(f'{file.name}: boxes that are empty or outside the image; COCO has [x, y, width, height]', outside)
    if with_masks:
        if len(without_mask) == len(annotations):
            raise DataError(f'{str(file)!r} has boxes and no masks (segmentation): its task is detection')
        data.found(f'{file.name}: annotations without a mask (segmentation)', without_mask)


def _check_classes(data: Data, content: dict, file: Path) -> None:
    used = {annotation.get('category_id') for annotation in content['annotations']}
    names = {category['name'] for category in content['categories'] if category['id'] in used}
    rest = shlex.join(name for name in data.classes if name in names)
    unused = [name for name in data.classes if name not in names]
    data.found(f'{file.name}: classes without an annotation; leave them out by --classes {rest}', unused)
