"""A sample of old images that has every class, and annotation files of several data sets in one."""

import copy
from pathlib import Path

import pytest

from olor_mm.extend.merged import CocoPart, merged_coco, used_categories
from olor_mm.extend.replay import TooFewImages, repeats, sample_of_every_class


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('images, number', [([{1, 2}, {2}, {3}, set(), {1}] * 3, 2), ([{i} for i in range(9)], 9)])
def test_every_class_is_in_the_sample_and_the_seed_decides_among_equals(images, number, seed):
    chosen = sample_of_every_class(images, number, seed)
    assert len(chosen) == len({*chosen}) == number
    assert {name for index in chosen for name in images[index]} == {name for image in images for name in image}
    assert chosen == sample_of_every_class(images, number, seed)
    more = sample_of_every_class(images, number + 3, seed)
    assert {*chosen} <= {*more} and len(more) == min(number + 3, len(images))


def test_a_rare_class_is_found_among_many_images_and_others_are_drawn():
    images = [{'common'}] * 500 + [{'rare', 'common'}] + [{'common'}] * 500
    drawn = [sample_of_every_class(images, 10, seed) for seed in range(3)]
    assert all(500 in chosen and len(chosen) == 10 for chosen in drawn) and len({*map(tuple, drawn)}) == 3


@pytest.mark.parametrize(
    'images, number, needed', [([{1}, {2}, {3}], 2, 3), ([{1, 2}, {3}, {4}, {3, 4}], 1, 2), ([{1}], 0, 1)]
)
def test_too_small_a_sample_is_refused_with_one_that_is_enough(images, number, needed):
    with pytest.raises(TooFewImages, match=f'{number} images') as refused:
        sample_of_every_class(images, number)
    assert refused.value.needed == needed
    assert len(sample_of_every_class(images, needed)) == needed


@pytest.mark.parametrize('new, old, share', [(180, 20, 0.1), (180, 20, 0.5), (1000, 7, 0.3), (10, 100, 0.1)])
def test_old_images_are_repeated_to_about_their_share_of_an_epoch(new, old, share):
    times = repeats(new, old, share)
    at = [abs(k * old / (k * old + new) - share) for k in range(1, 2 * times + 1)]
    assert times >= 1 and at[times - 1] <= min(at) + 0.02


def content(names: list[str], ids: list[int], boxes: list[tuple[int, int]]) -> dict:
    """A COCO file with an image for each id; boxes are (image, category)."""
    images = [dict(id=i, file_name=f'{i}.png', width=9, height=9, source='camera') for i in ids]
    categories = [dict(id=5 + i, name=name) for i, name in enumerate(names)]
    annotations = [
        dict(id=i, image_id=image, category_id=category, bbox=[0, 0, 3, 3], area=9, iscrowd=i % 2)
        for i, (image, category) in enumerate(boxes)
    ]
    return dict(images=images, annotations=annotations, categories=categories)


def test_files_whose_ids_and_orders_differ_are_merged_by_name():
    classes = ['person', 'traffic light', 'kite', 'mug']
    old = content(['kite', 'Traffic-Light', 'tree', 'person'], [0, 1, 2], [(0, 5), (0, 6), (1, 7), (2, 8)])
    new = content(['mug', 'person'], [0, 1], [(0, 5), (1, 6), (1, 5)])
    before = copy.deepcopy((old, new))
    parts = [
        CocoPart(new, Path('/n'), ['mug', 'person']),
        CocoPart(old, Path('/o/x'), ['kite', 'Traffic-Light', 'person']),
    ]
    merged = merged_coco(parts, classes)
    assert (old, new) == before
    assert merged['categories'] == [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
    names = {image['id']: image['file_name'] for image in merged['images']}
    assert [*names.values()] == ['/n/0.png', '/n/1.png', '/o/x/0.png', '/o/x/1.png', '/o/x/2.png']
    assert [(names[a['image_id']], classes[a['category_id'] - 1]) for a in merged['annotations']] == [
        ('/n/0.png', 'mug'), ('/n/1.png', 'person'), ('/n/1.png', 'mug'),
        ('/o/x/0.png', 'kite'), ('/o/x/0.png', 'traffic light'), ('/o/x/2.png', 'person'),
    ]  # fmt: skip
    assert [a['id'] for a in merged['annotations']] == [1, 2, 3, 4, 5, 6]
    assert [image['annotated'] for image in merged['images']] == [[1, 4]] * 2 + [[1, 2, 3]] * 3
    assert merged['images'][0]['source'] == 'camera' and merged['annotations'][1]['iscrowd'] == 1
    some = merged_coco([CocoPart(old, Path('/o'), classes, {2})], ['person', 'kite'])
    assert [image['file_name'] for image in some['images']] == ['/o/2.png'] and 'annotated' not in merged_coco(
        [CocoPart(new, Path('/n'), ['mug', 'person'])], ['person', 'mug']
    )['images'][0]


def test_a_category_without_an_annotation_is_not_annotated():
    assert used_categories([content(['a', 'b', 'c'], [0], [(0, 5)]), content(['a', 'c'], [0], [(0, 6)])]) == {'a', 'c'}
