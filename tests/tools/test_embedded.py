import json
import sys
from itertools import combinations

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tools.dataset_converters.embedded import TEST_PHOTOS, TRAIN_PHOTOS, main, tiles


@pytest.mark.parametrize('name, classes', [('nuclei', 1), ('composite', 10)])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_boxes_masks_and_semantic_maps_agree(data, name, classes, split):
    coco = COCO(data / name / f'{split}.json')
    assert len(coco.getCatIds()) == classes
    for image in coco.loadImgs(coco.getImgIds()):
        semantic = cv2.imread(str(data / name / f'{split}_semantic' / image['file_name'].rpartition('/')[2]), -1)
        assert (
            semantic.shape
            == cv2.imread(str(data / name / image['file_name'])).shape[:2]
            == (image['height'], image['width'])
        )
        covered = np.zeros(semantic.shape, int)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            ys, xs = np.nonzero(mask)
            assert annotation['bbox'] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation['area'] == mask.sum() > 0
            assert (semantic[mask] == annotation['category_id']).all()
            covered += mask
        assert covered.max() <= 1


def test_old_and_new_data_of_the_demo_share_test_images_and_no_class(data):
    """Nor do they share training images, and no digit of a test image covers another."""
    for split, number in (('train', 500), ('test', 60)):
        old, new = (json.loads((data / f'demo/{name}/{split}.json').read_text()) for name in ('old', 'new'))
        assert [[c['name'] for c in content['categories']] for content in (old, new)] == [
            ['digit 0', 'digit 2', 'digit 4'], ['digit 1', 'digit 3', 'digit 5'],
        ]  # fmt: skip
        files = [sorted((data / f'demo/{name}/{split}').iterdir()) for name in ('old', 'new')]
        same = [first.read_bytes() == second.read_bytes() for first, second in zip(*files, strict=True)]
        assert len(same) == number and (all(same) if split == 'test' else not any(same))
        for content in (old, new):
            assert len(content['annotations']) > number
            for annotation in content['annotations']:
                x, y, width, height = annotation['bbox']
                assert 0 <= x < x + width <= 128 and 0 <= y < y + height <= 128 and min(width, height) >= 3
    boxes = {}
    for annotation in old['annotations'] + new['annotations']:
        boxes.setdefault(annotation['image_id'], []).append(annotation['bbox'])
    for (ax, ay, aw, ah), (bx, by, bw, bh) in (pair for at in boxes.values() for pair in combinations(at, 2)):
        assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


def test_trees_lie_within_their_images(data):
    for split, images in (('train', 103), ('test', 1)):
        content = json.loads((data / f'trees/{split}.json').read_text())
        assert len(content['images']) == images
        sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
        for annotation in content['annotations']:
            x, y, w, h = annotation['bbox']
            width, height = sizes[annotation['image_id']]
            assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height


def test_no_digit_image_is_in_both_splits(data):
    train, test = (
        {file.read_bytes() for file in (data / 'digits' / split).rglob('*.png')} for split in ('train', 'test')
    )
    assert len(train) == 500 and len(test) == 1000 and not train & test


def test_no_photo_is_behind_both_splits():
    assert not set(TRAIN_PHOTOS) & set(TEST_PHOTOS)


@pytest.mark.parametrize('length, size, stride', [(512, 128, 64), (512, 128, 128), (300, 128, 128), (128, 128, 64)])
def test_tiles_cover_everything_and_stay_inside(length, size, stride):
    starts = tiles(length, size, stride)
    assert len(starts) == len(set(starts))
    assert {pixel for start in starts for pixel in range(start, start + size)} == set(range(length))


@pytest.mark.parametrize('name, hint', [('coco', 'weights, nuclei'), ('nucli', "'nuclei'")])
def test_unknown_name_is_refused(name, hint, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['embedded.py', name])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert repr(name) in said and hint in said
