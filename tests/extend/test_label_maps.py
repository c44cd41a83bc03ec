"""Label maps: the old model's classes of pixels beside the masks of new data."""

import numpy as np
import pytest
from PIL import Image

from olor_mm.extend.label import Choice, Source
from olor_mm.extend.label_maps import Maps, read_mask
from olor_mm.extend.predict import Unusable


def drawn(mask, labels, scores, classes=('background', 'bus'), old=('road', 'Sky'), **choice):
    maps = Maps(classes, old, Choice([0.5] * len(old), **choice))
    mask, labels = (np.asarray(a, np.uint8).reshape(1, -1) for a in (mask, labels))
    found, *counts = maps.labelled(mask, labels, np.asarray(scores, np.float32).reshape(1, -1))
    assert found.dtype == np.uint8
    return found[0].tolist(), counts


def test_a_pixel_keeps_its_class_or_takes_the_old_models():
    # joined: road, Sky, background, bus
    mask, labels = [1, 0, 0, 0, 255, 255, 255], [0, 0, 1, 1, 1, 1, 0]
    scores = [0.9, 0.9, 0.4, 0.2, 0.9, 0.4, 0.1]
    found, counts = drawn(mask, labels, scores)
    assert found == [3, 0, 255, 2, 1, 255, 255]
    assert counts == [{0: 1, 1: 1}, {1: 1}]


@pytest.mark.parametrize('only_old, expected', [(False, [0, 1]), (True, [0, 3])])
def test_pixels_of_a_class_of_the_data_are_added_or_not(only_old, expected):
    names = dict(classes=('background', 'sky', 'bus'), old=('road', 'Sky', 'tree'), only_old=only_old)
    assert drawn([0, 0], [0, 1], [0.9, 0.9], **names)[0] == [expected[0], expected[1]]


def test_an_old_background_is_no_reason_to_ignore_what_the_data_calls_background():
    names = dict(classes=('Background', 'bus'), old=('background', 'cat'))
    assert drawn([0, 0, 0, 255, 255], [0, 0, 1, 0, 0], [0.9, 0.4, 0.9, 0.9, 0.4], **names)[0] == [0, 0, 1, 0, 255]


def test_masks_with_other_values_than_classes_are_an_error():
    with pytest.raises(ValueError, match=r'\[7\].*--classes'):
        drawn([7], [0], [0.9])
    with pytest.raises(ValueError, match='255'):
        Maps([f'new {i}' for i in range(200)], [f'old {i}' for i in range(100)], Choice([0.5] * 100))


@pytest.mark.parametrize('reduced, expected', [(False, [0, 1, 150, 255]), (True, [255, 0, 149, 255])])
def test_masks_are_read_as_mmseg_reads_them(reduced, expected, tmp_path):
    file = tmp_path / 'mask.png'
    Image.fromarray(np.asarray([[0, 1, 150, 255]], np.uint8)).save(file)
    assert read_mask(Source('a', file, mask=file), (1, 4), reduced)[0].tolist() == expected
    with pytest.raises(Unusable, match='2x4.*4x1'):
        read_mask(Source('a', file, mask=file), (4, 2))
    with pytest.raises(Unusable, match='mask'):
        read_mask(Source('a', file, mask=tmp_path / 'none.png'), (1, 4))
