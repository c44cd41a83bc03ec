"""The data of the study: what ``make data`` writes, Fashion-MNIST, and splits with validation sets of their own.

    python benchmarks/evidence/data.py

| folder    | training                             | validation                   | test                       |
|-----------|--------------------------------------|------------------------------|----------------------------|
| fashion   | n of 500 a class, drawn by the seed  | 50 others a class            | the 10,000 of its test set |
| digits    | n of 250 a class, drawn by the seed  | 50 others a class            | the 2,000 others           |
| composite | 200 images                           | 40 others                    | 80 of other digits, photos |
| nuclei    | 14 tiles, left                       | 7 tiles, right of them       | 4 tiles, right of those    |
| trees     | the first 70 % of site YELL's tiles  | the other 30 %               | site OSBS                  |

And ``photos``, without labels: crops of the photos among the examples of OpenCV (Apache-2.0), to ask an old classifier
about others than those of ``make data``.

Fashion-MNIST (MIT) and these photos are in the Debian packages ``dataset-fashion-mnist`` and ``opencv-doc``, which are
fetched and unpacked, not installed.
"""

import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tools.dataset_converters.embedded import Wheels, read_digits, write_crops  # noqa: E402

DATA = ROOT / 'data'
EVIDENCE = DATA / 'evidence'
SIZES = (10, 50, 200)
SEEDS = (*range(5), 100)  # the last one is the one that is tuned with
# those that show things as they are: no drawings, no series of one scene
PHOTOS = """
alphamat/input_images/plant.jpg dnn_superres/butterfly.png hfs/data/000.jpg reg/home.png
data/aero1.jpg data/aero3.jpg data/aloeL.jpg data/apple.jpg data/baboon.jpg data/basketball1.png data/board.jpg
data/box_in_scene.png data/building.jpg data/butterfly.jpg data/chicky_512.png data/ela_original.jpg data/fruits.jpg
data/graf1.png data/home.jpg data/left.jpg data/left01.jpg data/leuvenA.jpg data/licenseplate_motion.jpg data/messi5.jpg
data/orange.jpg data/rubberwhale1.png data/smarties.png data/squirrel_cls.jpg data/stuff.jpg
text/scenetext01.jpg text/scenetext02.jpg text/scenetext03.jpg text/scenetext04.jpg text/scenetext05.jpg
text/scenetext06.jpg
"""


@contextmanager
def debian(package: str, place: str) -> Iterator[Path]:
    """The folder ``place`` of a Debian package, as it is installed or unpacked for the time being."""
    installed = Path('/', place)
    if installed.exists():
        yield installed
        return
    with tempfile.TemporaryDirectory() as scratch:
        for command in (['apt-get', 'download', package], ['sh', '-c', f'dpkg-deb -x {package}_*.deb .']):
            if shutil.which(command[0]) is None or subprocess.run(command, cwd=scratch).returncode:
                raise SystemExit(f'{package} is not in {installed}, and {" ".join(command)} failed')
        yield Path(scratch, place)


def read_fashion() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images of shape (n, 28, 28) and labels (n,), uint8, of 'train' and 't10k'."""
    splits = {}
    with debian('dataset-fashion-mnist', 'usr/share/datasets/fashion-mnist') as folder:
        for split in ('train', 't10k'):
            images, labels = (
                np.frombuffer(gzip.decompress((folder / f'{split}-{kind}-ubyte.gz').read_bytes()), np.uint8)
                for kind in ('images-idx3', 'labels-idx1')
            )
            splits[split] = images[16:].reshape(-1, 28, 28), labels[8:]
    return splits


def write_classes(folder: Path, pools: dict[str, dict[int, np.ndarray]]) -> None:
    """Write images by split and class, and lists of file and class for mmpretrain's CustomDataset."""
    rows = {}
    for split, classes in pools.items():
        rows[split] = []
        for label, images in classes.items():
            place = folder / split / str(label)
            place.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images):
                cv2.imwrite(str(place / f'{i:04d}.png'), image)
            rows[split].append([f'{split}/{label}/{i:04d}.png {label}' for i in range(len(images))])
    for split in ('val', 'test'):
        (folder / f'{split}.txt').write_text('\n'.join(row for of_class in rows[split] for row in of_class))
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        for size in SIZES:
            chosen = [row for of_class in rows['train'] for row in rng.choice(of_class, size, replace=False)]
            (folder / f'train_{size}_{seed}.txt').write_text('\n'.join(chosen))


def make_fashion(folder: Path) -> None:
    splits = read_fashion()
    (images, labels), (test_images, test_labels) = splits['train'], splits['t10k']
    by_class = {label: images[labels == label] for label in range(10)}
    write_classes(
        folder,
        dict(
            train={label: of_class[:500] for label, of_class in by_class.items()},
            val={label: of_class[500:550] for label, of_class in by_class.items()},
            test={label: test_images[test_labels == label] for label in range(10)},
        ),
    )


def make_digits(folder: Path) -> None:
    by_class = read_digits(Wheels(DATA / 'wheels'))
    parts = dict(train=np.s_[:250], val=np.s_[250:300], test=np.s_[300:])
    write_classes(folder, {s: {label: i[part] for label, i in by_class.items()} for s, part in parts.items()})


def write_coco(source: Path, target: Path, wanted) -> None:
    """A COCO file with those images for which ``wanted(image)`` is true; its paths start from data/."""
    coco = json.loads(source.read_text())
    images = [dict(image, file_name=f'{source.parent.name}/{image["file_name"]}') for image in coco['images']]
    images = [image for image in images if wanted(image)]
    kept = {image['id'] for image in images}
    annotations = [a for a in coco['annotations'] if a['image_id'] in kept]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(dict(coco, images=images, annotations=annotations)))
    files = [Path(image['file_name']) for image in images]
    # the form mmseg wants: names without suffix, from the folder of the images
    target.with_suffix('.txt').write_text('\n'.join(str(file.with_suffix('').name) for file in files))


def make_composite(folder: Path) -> None:
    source = DATA / 'composite'
    write_coco(source / 'train.json', folder / 'train.json', lambda image: image['id'] < 200)
    write_coco(source / 'train.json', folder / 'val.json', lambda image: image['id'] >= 200)
    write_coco(source / 'test.json', folder / 'test.json', lambda image: True)
    for split in ('train', 'val', 'test'):
        for old in (True, False):
            split_classes(folder / f'{split}.json', old)


def split_classes(source: Path, old: bool) -> None:
    """The same images with the digits 0 to 4 (old) or 5 to 9 (new) alone, for the chain of two detection tasks."""
    coco = json.loads(source.read_text())
    half = [c for c in coco['categories'] if (c['id'] <= 5) == old]
    wanted = {c['id'] for c in half}
    annotations = [a for a in coco['annotations'] if a['category_id'] in wanted]
    name = f'{source.stem}_{"old" if old else "new"}.json'
    source.with_name(name).write_text(json.dumps(dict(coco, annotations=annotations, categories=half)))


def make_nuclei(folder: Path) -> None:
    """Tiles are 128 wide and start at x = 0, 64, 128, 192, 224: those of the first two columns end before the last."""
    source = DATA / 'nuclei'
    columns = 5
    write_coco(source / 'train.json', folder / 'train.json', lambda image: image['id'] % columns < 2)
    write_coco(source / 'train.json', folder / 'val.json', lambda image: image['id'] % columns == 4)
    write_coco(source / 'test.json', folder / 'test.json', lambda image: True)


def make_trees(folder: Path) -> None:
    source = DATA / 'trees'
    count = len(json.loads((source / 'train.json').read_text())['images'])
    write_coco(source / 'train.json', folder / 'train.json', lambda image: image['id'] < 0.7 * count)
    write_coco(source / 'train.json', folder / 'val.json', lambda image: image['id'] >= 0.7 * count)
    write_coco(source / 'test.json', folder / 'test.json', lambda image: True)


def make_photos(folder: Path) -> None:
    with debian('opencv-doc', 'usr/share/doc/opencv-doc/examples') as examples:
        photos = {name.replace('/', '_').split('.')[0]: cv2.imread(str(examples / name)) for name in PHOTOS.split()}
    write_crops(folder, photos, scales=(1.0, 0.75))


MAKERS = dict(
    fashion=make_fashion,
    digits=make_digits,
    composite=make_composite,
    nuclei=make_nuclei,
    trees=make_trees,
    photos=make_photos,
)


def main() -> None:
    converter = ROOT / 'tools/dataset_converters/embedded.py'
    subprocess.run([sys.executable, converter, '--data-root', DATA], check=True)
    for name, make in MAKERS.items():
        done = EVIDENCE / name / '.done'
        if not done.exists():
            shutil.rmtree(done.parent, ignore_errors=True)
            done.parent.mkdir(parents=True)
            make(done.parent)
            done.touch()


if __name__ == '__main__':
    main()
