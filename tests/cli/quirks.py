"""Folders of data with one quirk each, right ones and wrong ones, and what training makes of those that are wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

CONFIGS = dict(
    detection='configs/detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py',
    instance_segmentation='configs/instance_segmentation/olor/mask-rcnn_mobilenet-v2-fpn_olor_1xb4-6e_composite-160px.py',
    semantic_segmentation='configs/semantic_segmentation/olor/mobilenet-v2-d8_fcn_olor_1xb8-80iter_nuclei-128px.py',
)
BOXES, MASKS, LABELS = CONFIGS
WIDTH, HEIGHT = 96, 64
STOPS, OTHERWISE = 'training stops', 'training reads what is not meant'


def noise(*shape: int, top: int = 255) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, top, shape, dtype=np.uint8)


def save(file: Path, values: np.ndarray, orientation: int = 1, mode: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    if orientation > 1:
        tags[0x0112] = orientation
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(file, **(dict(exif=tags) if orientation > 1 else {}))


def coco(folder: Path) -> Path:
    """Four images with an object each, of two classes, for training, and four others for validation."""
    for split in ('train', 'valid'):
        images, annotations = [], []
        for i in range(1, 5):
            save(folder / split / f'{split}{i}.png', np.roll(noise(HEIGHT, WIDTH, 3), i + 9 * (split == 'train')))
            images.append(dict(id=i, file_name=f'{split}{i}.png', width=WIDTH, height=HEIGHT))
            x, y, w, h = 5 + i, 5, 20, 30
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            entry = dict(id=i, image_id=i, category_id=1 + i % 2, bbox=[x, y, w, h], area=w * h, iscrowd=0)
            annotations.append(dict(entry, segmentation=[polygon]))
        categories = [dict(id=1, name='leaf'), dict(id=2, name='stem')]
        content = dict(images=images, annotations=annotations, categories=categories)
        (folder / split / '_annotations.coco.json').write_text(json.dumps(content))
    return folder


def edit(change, encoding: str = 'utf-8'):
    """A change of the content of both annotation files."""

    def edited(folder: Path) -> None:
        for file in folder.glob('*/*.json'):
            content = json.loads(file.read_text())
            change(content)
            file.write_text(json.dumps(content), encoding)

    return edited


def each(change, key: str = 'annotations'):
    return edit(lambda content: [change(entry) for entry in content[key]])


def third(**changes):
    return edit(lambda content: content['annotations'][2].update(changes))


def images(values):
    """Other values of every image, given those it has."""
    return lambda folder: [save(file, values(np.asarray(Image.open(file)))) for file in folder.rglob('*.png')]


def as_jpeg(orientation: int = 1, mode: str | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)):
    """All images as JPEG, annotated with a size."""

    def change(folder: Path) -> None:
        for file in sorted(folder.rglob('*.png')):
            save(file.with_suffix('.jpg'), np.asarray(Image.open(file)), orientation, mode)
            file.unlink()
        names = each(
            lambda i: i.update(file_name=f'{i["file_name"][:-4]}.jpg', width=size[0], height=size[1]), 'images'
        )
        names(folder)

    return change


def moved(name):
    """All images moved to the name that a function makes of theirs."""

    def change(folder: Path) -> None:
        for file in [*folder.rglob('*.png')]:
            (file.parent / name(file.name)).parent.mkdir(exist_ok=True)
            file.rename(file.parent / name(file.name))
        each(lambda image: image.update(file_name=name(image['file_name'])), 'images')(folder)

    return change


def number(kind):
    """All ids of a kind."""

    def change(content: dict) -> None:
        for key in ('images', 'categories', 'annotations'):
            for entry in content[key]:
                entry.update({name: kind(entry[name]) for name in ('id', 'image_id', 'category_id') if name in entry})

    return edit(change)


def recategorised(numbers: dict):
    def change(content: dict) -> None:
        for category in content['categories']:
            category['id'] = numbers[category['id']]
        for annotation in content['annotations']:
            annotation['category_id'] = numbers[annotation['category_id']]

    return edit(change)


def encoded(is_compressed: bool, height: int = HEIGHT):
    def change(annotation: dict) -> None:
        x, y, w, h = annotation['bbox']
        mask = np.zeros((height, WIDTH), np.uint8, order='F')
        mask[y : y + h, x : x + w] = 1
        if is_compressed:
            found = rle.encode(mask)
            annotation['segmentation'] = dict(size=found['size'], counts=found['counts'].decode())
        else:
            flat = mask.flatten(order='F')
            edges = np.flatnonzero(np.diff(flat)) + 1
            annotation['segmentation'] = dict(size=[height, WIDTH], counts=np.diff([0, *edges, len(flat)]).tolist())

    return each(change)


def without(key: str, field: str):
    return each(lambda entry: entry.pop(field), key)


def cut(folder: Path) -> None:
    as_jpeg()(folder)
    file = folder / 'train/train1.jpg'
    file.write_bytes(file.read_bytes()[:-900])


def more_images(content: dict) -> None:
    content['images'].append(dict(content['images'][0], id=99))


def apart(folder: Path) -> None:
    """Annotation files beside the folders of images, and the same names of images in both."""
    for split in ('train', 'valid'):
        for file in [*(folder / split).glob('*.png')]:
            file.rename(folder / split / f'{file.stem[-1]}.png')
        (folder / split / '_annotations.coco.json').rename(folder / f'{split}.json')
        content = json.loads((folder / f'{split}.json').read_text())
        for image in content['images']:
            image['file_name'] = f'{image["id"]}.png'
        (folder / f'{split}.json').write_text(json.dumps(content))


RIGHT = {
    'nothing': (BOXES, lambda folder: None),
    'masks': (MASKS, lambda folder: None),
    'no iscrowd': (BOXES, without('annotations', 'iscrowd')),
    'iscrowd as text': (BOXES, each(lambda a: a.update(iscrowd='0'))),
    'a crowd': (MASKS, third(iscrowd=1)),
    'equal ids': (BOXES, each(lambda a: a.update(id=1))),
    'ids from 0': (MASKS, each(lambda a: a.update(id=a['id'] - 1))),
    'no ids': (BOXES, without('annotations', 'id')),
    'ids as text': (MASKS, number(lambda i: f'n{i}')),
    'ids with a point': (MASKS, number(float)),
    'category ids with gaps': (BOXES, recategorised({1: 7, 2: 90})),
    'category ids from 0': (BOXES, recategorised({1: 0, 2: 1})),
    'an unused category': (BOXES, edit(lambda c: c['categories'].insert(0, dict(id=0, name='plants')))),
    'super-categories': (BOXES, each(lambda c: c.update(supercategory='plants'), 'categories')),
    'numbers as names': (BOXES, each(lambda c: c.update(name=c['id']), 'categories')),
    'no area': (MASKS, without('annotations', 'area')),
    'an area of 0': (BOXES, each(lambda a: a.update(area=0))),
    'no width and height': (MASKS, each(lambda i: (i.pop('width'), i.pop('height')), 'images')),
    'sizes with a point': (MASKS, each(lambda i: i.update(width=96.0, height=64.0), 'images')),
    'no masks': (BOXES, without('annotations', 'segmentation')),
    'polygons of two points, for boxes': (BOXES, each(lambda a: a.update(segmentation=[[5, 5, 25, 35]]))),
    'a polygon of two points beside another': (MASKS, each(lambda a: a['segmentation'].append([5, 5, 25, 35]))),
    'polygons that are no lists of lists': (MASKS, each(lambda a: a.update(segmentation=a['segmentation'][0]))),
    'compressed RLE': (MASKS, encoded(True)),
    'uncompressed RLE': (MASKS, encoded(False)),
    'an image without annotations': (BOXES, edit(lambda c: c['annotations'].pop())),
    'an empty box': (BOXES, third(bbox=[5, 5, 0, 30])),
    'key points': (BOXES, each(lambda a: a.update(keypoints=[9, 9, 2], num_keypoints=1))),
    'info and licences': (BOXES, edit(lambda c: c.update(info=dict(year=2026), licenses=[]))),
    'names of another script': (BOXES, moved(lambda name: f'Bäume 森 {name}')),
    'equal names in sub-folders': (BOXES, moved(lambda name: f'day {name[-5]}/photo.png')),
    'paths of Windows': (BOXES, lambda f: (moved(lambda n: f'a/{n}')(f), each(lambda i: i.update(file_name=i['file_name'].replace('/', '\\')), 'images')(f))),
    'a byte order mark': (BOXES, edit(lambda c: None, 'utf-8-sig')),
    'grey images': (BOXES, images(lambda values: values[..., 0])),
    'transparent images': (BOXES, images(lambda values: values[..., (0, 1, 2, 0)])),
    '16 bits': (BOXES, images(lambda values: values[..., 0].astype(np.uint16) * 257)),
    'four printing colours': (BOXES, as_jpeg(mode='CMYK')),
    'turned by EXIF, annotated as shown': (MASKS, as_jpeg(6, size=(HEIGHT, WIDTH))),
    'turned by EXIF upside down': (BOXES, as_jpeg(3)),
    'annotations of other images': (BOXES, edit(lambda c: c['annotations'].append(dict(c['annotations'][0], id=9, image_id=77)))),
    'an image twice': (BOXES, edit(more_images)),
    'a box that overhangs the image': (MASKS, third(bbox=[80, 5, 20, 30], segmentation=[[80, 5, 100, 5, 100, 35, 80, 35]])),
    'equal names in both splits': (BOXES, apart),
    'no validation set': (MASKS, lambda folder: shutil.rmtree(folder / 'valid')),
}  # fmt: skip
WRONG = {
    'polygons of two points': (MASKS, each(lambda a: a.update(segmentation=[[5, 5, 25, 35]])), 'annotation 1, ', STOPS),
    'an odd polygon': (MASKS, third(segmentation=[[5, 5, 25, 5, 25, 35, 5]]), 'annotation 3, ', OTHERWISE),
    'RLE of another size': (MASKS, encoded(True, HEIGHT + 8), 'annotation 1, .*72, 96', STOPS),
    'no masks, for masks': (MASKS, without('annotations', 'segmentation'), 'segmentation', STOPS),
    'a mask too few': (MASKS, third(segmentation=[]), 'annotation 3', STOPS),
    'turned by EXIF, annotated as stored': (BOXES, as_jpeg(6), 'EXIF.*train1.jpg of 64x96.*96x64', OTHERWISE),
    'a missing image': (BOXES, lambda f: (f / 'train/train3.png').unlink(), 'train3.png', STOPS),
    'an image that is none': (BOXES, lambda f: (f / 'valid/valid3.png').write_bytes(b'no'), 'valid3.png', STOPS),
    'an image that is cut off': (BOXES, cut, 'train1.jpg', STOPS),
    'boxes beyond the image': (BOXES, third(bbox=[80, 5, 40, 30]), r'annotation 3, bbox \[80', OTHERWISE),
    'boxes relative to the image': (BOXES, each(lambda a: a.update(bbox=[0.1, 0.1, 0.4, 0.5])), 'bbox .0.1', OTHERWISE),
    'corners for boxes': (BOXES, each(lambda a: a.update(bbox=[60, 40, 80, 60])), r'bbox \[60', OTHERWISE),
    'negative widths': (BOXES, each(lambda a: a['bbox'].__setitem__(2, -20)), r'-20', OTHERWISE),
    'empty boxes': (BOXES, each(lambda a: a.update(bbox=[5, 5, 0, 0])), r'\[5, 5, 0, 0\]', OTHERWISE),
    'boxes as text': (BOXES, third(bbox=['5', '5', '20', '30']), r"id 3.*bbox=\['5'", STOPS),
    'boxes of three numbers': (BOXES, third(bbox=[5, 5, 20]), r'id 3.*bbox=\[5, 5, 20\]', STOPS),
    'a box that is no number': (BOXES, third(bbox=[5, 5, float('nan'), 20]), 'id 3.*bbox=.5, 5, nan', OTHERWISE),
    'ids as text in images alone': (BOXES, each(lambda i: i.update(id=str(i['id'])), 'images'), 'image_id 1', STOPS),
    'equal ids of images': (BOXES, edit(lambda c: c['images'][1].update(id=1)), 'id 1', OTHERWISE),
    'equal ids of categories': (BOXES, each(lambda c: c.update(id=1), 'categories'), 'id 1', OTHERWISE),
    'equal names': (BOXES, each(lambda c: c.update(name='leaf'), 'categories'), "'leaf', 'leaf'", OTHERWISE),
    'a category that is not there': (BOXES, third(category_id=9), 'annotation 3, category_id 9', OTHERWISE),
    'a category without a name': (BOXES, without('categories', 'name'), 'name=None', STOPS),
    'an image without a name': (BOXES, without('images', 'file_name'), 'file_name=None', STOPS),
    'no annotations': (BOXES, edit(lambda c: c.update(annotations=[])), 'no annotations', STOPS),
    'no images': (BOXES, edit(lambda c: c.update(images=[])), 'no images', STOPS),
    'no categories': (BOXES, edit(lambda c: c.pop('categories')), 'no categories', STOPS),
    'a list': (BOXES, lambda f: (f / 'valid/_annotations.coco.json').write_text('[]'), 'no images', STOPS),
    'no text': (BOXES, lambda f: (f / 'valid/_annotations.coco.json').write_bytes(b'\xff\xfe\x00'), 'not JSON', STOPS),
    'one image with annotations': (BOXES, lambda f: (shutil.rmtree(f / 'valid'), edit(lambda c: c.update(annotations=c['annotations'][:1]))(f)), 'too few', None),
    'one image': (BOXES, lambda f: (shutil.rmtree(f / 'valid'), edit(lambda c: (c.update(images=c['images'][:1], annotations=c['annotations'][:1])))(f)), 'too few', None),
}  # fmt: skip


def labels(folder: Path) -> Path:
    """Four images with masks of three classes, one of which is the ground, for training, and four for validation."""
    for split in ('train', 'val'):
        for i in range(1, 5):
            save(folder / f'images/{split}/{i}.jpg', np.roll(noise(HEIGHT, WIDTH, 3), i + 9 * (split == 'val')))
            save(folder / f'masks/{split}/{i}.png', noise(HEIGHT, WIDTH, top=3))
    return folder


def masks(change, suffix: str = '.png', **options):
    """A change of all masks, given their values."""

    def changed(folder: Path) -> None:
        for file in [*folder.rglob('*.png')]:
            values = change(np.asarray(Image.open(file)))
            file.unlink()
            save(file.with_name(file.stem + suffix), values, **options)

    return changed


def photos(change, **options):
    def changed(folder: Path) -> None:
        for file in folder.rglob('*.jpg'):
            save(file, np.ascontiguousarray(change(np.asarray(Image.open(file)))), **options)

    return changed


def palette(folder: Path) -> None:
    for file in folder.rglob('*.png'):
        image = Image.fromarray(np.asarray(Image.open(file)))
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        image.save(file)


def beside(folder: Path) -> None:
    """Masks beside their images, as Roboflow writes them."""
    for file in [*folder.rglob('*.png'), *folder.rglob('*.jpg')]:
        name = f'{file.stem}_mask.png' if file.suffix == '.png' else file.name
        (folder / file.parent.name).mkdir(exist_ok=True)
        file.rename(folder / file.parent.name / name)
    for name in ('images', 'masks'):
        shutil.rmtree(folder / name)


def all_png(folder: Path) -> None:
    beside(folder)
    for file in folder.rglob('*.jpg'):
        save(file.with_suffix('.png'), np.asarray(Image.open(file)))
        file.unlink()


def same(values: np.ndarray) -> np.ndarray:
    return values


def times(factor: int):
    return masks(lambda values: values * np.uint8(factor))


RIGHT_LABELS = {
    'nothing': lambda folder: None,
    'x_mask.png in another folder': masks(same, '_mask.png'),
    'x_mask.png beside x.jpg': beside,
    'x_mask.png beside x.png': all_png,
    'a palette': palette,
    'true and false': masks(lambda values: values > 1),
    'values to be ignored': masks(lambda values: np.where(values == 2, 255, values).astype(np.uint8)),
    '16 bits, of classes': masks(lambda values: values.astype(np.uint16)),
    'ground that has no number': masks(lambda values: np.maximum(values, 1)),
    'images turned by EXIF, masks as shown': lambda f: (photos(lambda v: np.rot90(v), orientation=6)(f)),
    'grey images': photos(lambda values: values[..., 0]),
    'sub-folders': lambda f: [p.rename((p.parent / 'a').mkdir(exist_ok=True) or p.parent / 'a' / p.name) for p in [*f.rglob('*1.jpg'), *f.rglob('*1.png')]],
    'no validation set': lambda f: [shutil.rmtree(f / name / 'val') for name in ('images', 'masks')],
}  # fmt: skip
WRONG_LABELS = {
    'JPEG masks': (masks(same, '.jpg'), r'masks/train/\d.jpg is a JPEG', STOPS),
    'colours': (masks(lambda v: np.stack([v * 100] * 3, -1)), r'masks/train/\d.png has colours', STOPS),
    'colours with transparency': (masks(lambda v: np.stack([v] * 4, -1)), 'colours', STOPS),
    'images turned by EXIF, masks as stored': (photos(same, orientation=6), 'EXIF.*64x96.*96x64', STOPS),
    'masks with an EXIF orientation': (masks(same, orientation=3), r'masks/train/\d.png', OTHERWISE),
    'masks of another size': (masks(lambda v: np.ascontiguousarray(v[:-8])), '96x64.*96x56', STOPS),
    '0 and 255': (masks(lambda v: (v > 0) * np.uint8(255)), r'\[0, 255\]', OTHERWISE),
    'only 255': (masks(lambda v: v * 0 + np.uint8(255)), r'\[255\]', OTHERWISE),
    'only 0': (masks(lambda v: v * 0), r'\[0\]', OTHERWISE),
    'spread values': (times(100), r'\[0, 100, 200\].*masks/train/\d.png', STOPS),
    '16 bits, of objects': (masks(lambda v: v.astype(np.uint16) * 1000), '2000', STOPS),
    'a mask too few': (lambda f: (f / 'masks/train/2.png').unlink(), '2.jpg', STOPS),
    'a mask that cannot be read': (lambda f: (f / 'masks/val/2.png').write_bytes(b'no'), 'val/2.png', STOPS),
    'images of two kinds': (lambda f: (f / 'images/train/2.jpg').rename(f / 'images/train/2.png'), "'.jpg', '.png'", OTHERWISE),
    'no masks': (lambda f: shutil.rmtree(f / 'masks'), 'beside one of masks', STOPS),
}  # fmt: skip
ALL_RIGHT = {**RIGHT, **{f'{name}, labels': (LABELS, change) for name, change in RIGHT_LABELS.items()}}
ALL_WRONG = {**WRONG, **{f'{name}, labels': (LABELS, *rest) for name, rest in WRONG_LABELS.items()}}
