"""Small folders of data, one for each task."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from labelling import OLD, RETINANET
from old_models import old_model
from PIL import Image


@pytest.fixture
def coco(tmp_path) -> Path:
    """Six images with a box and a mask each, of two classes, in the layout of Roboflow."""
    folder = tmp_path / 'boxes'
    (folder / 'train').mkdir(parents=True)
    images, annotations = [], []
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / 'train' / f'{i}.png')
        images.append(dict(id=i, file_name=f'{i}.png', width=60, height=40))
        box = [5, 6, 20, 10]
        polygon = [[5, 6, 25, 6, 25, 16, 5, 16]]
        entry = dict(id=i, image_id=i, category_id=1 + i % 2, bbox=box, area=200, iscrowd=0, segmentation=polygon)
        annotations.append(entry)
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='a'), dict(id=2, name='b')])
    (folder / 'train/_annotations.coco.json').write_text(json.dumps(content))
    return folder


@pytest.fixture
def masks(tmp_path) -> Path:
    folder = tmp_path / 'masks'
    rng = np.random.default_rng(0)
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(folder / f'images/{i}.jpg')
        Image.fromarray(rng.integers(0, 3, (32, 48), dtype=np.uint8)).save(folder / f'masks/{i}.png')
    return folder


@pytest.fixture
def folders(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in 'xyz':
        (tmp_path / 'classes' / name).mkdir(parents=True)
        for i in range(5):
            image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            image.save(tmp_path / 'classes' / name / f'{i} of {name}.png')
    return tmp_path / 'classes'


BOXES = ('detection', 'instance_segmentation')


@pytest.fixture
def new(coco, masks, folders) -> dict[str, Path]:
    """Folders of new data by task: boxes of a and b; masks of background, b and cat; images of v, x and z."""
    (folders / 'y').rename(folders / 'v')
    return dict(classification=folders, semantic_segmentation=masks) | dict.fromkeys(BOXES, coco)


@pytest.fixture
def old(new, tmp_path) -> dict[str, Path]:
    """Folders of old data by task, with categories in another order than the model's, and one it does not have."""
    found = {}
    boxes = found['detection'] = found['instance_segmentation'] = tmp_path / 'old boxes'
    shutil.copytree(new['detection'], boxes)
    file = boxes / 'train/_annotations.coco.json'
    content = json.loads(file.read_text())
    content['categories'] = [dict(id=7, name='dog'), dict(id=1, name='tree'), dict(id=2, name='b')]
    for annotation in content['annotations']:
        annotation['category_id'] = (7, 2, 7, 2, 1, 2)[annotation['image_id']]
    file.write_text(json.dumps(content))
    for image in (boxes / 'train').glob('*.png'):
        Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    found['semantic_segmentation'] = tmp_path / 'old masks'
    shutil.copytree(new['semantic_segmentation'], found['semantic_segmentation'])
    found['classification'] = tmp_path / 'old classes'
    shutil.copytree(new['classification'], found['classification'])
    (found['classification'] / 'v').rename(found['classification'] / 'Old_Y')
    return found


@pytest.fixture(autouse=True)
def no_weights_are_left(tmp_path):
    """Those of all tests together would be gigabytes."""
    yield
    for file in tmp_path.rglob('*.pth'):
        file.unlink()


@pytest.fixture
def retinanet(tmp_path):
    return old_model(tmp_path / 'old', RETINANET, OLD)
