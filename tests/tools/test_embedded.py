import json
import sys

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
