"""python -m olor_mm label, with real models of all tasks."""

import json
import re

import numpy as np
import pytest
from labelling import CLASSIFIERS, DETECTORS, OLD, RETINANET, SEGMENTERS, edited, label, labels_of, state
from mmengine.registry import DATASETS, DefaultScope
from old_models import old_model
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from olor_mm.cli.data import Reader, examine
from olor_mm.cli.data.training import read_images

SLOW = dict(marks=pytest.mark.slow)


def some(models: dict, quick: str) -> list:
    return [pytest.param(stock, id=name, **({} if name == quick else SLOW)) for name, stock in models.items()]


@pytest.mark.parametrize('stock', some(DETECTORS, 'retinanet'))
def test_detections_become_annotations(stock, coco, tmp_path):
    file = coco / 'train/_annotations.coco.json'
    own = edited(file, lambda c: c['annotations'][3].update(iscrowd=1))
    before, out = state(coco), tmp_path / 'labels.json'
    done = label(*old_model(tmp_path / 'old', stock, OLD), coco, '--out', out, '--threshold', 0.3, 'cat=0.2')
    assert state(coco) == before and not list(tmp_path.glob('*.part'))
    content = json.loads(out.read_text())
    assert [(c['id'], c['name']) for c in content['categories']] == [(1, 'cat'), (2, 'B'), (3, 'person'), (4, 'a')]
    kept = [a for a in content['annotations'] if 'source' not in a]
    ids = {1: 4, 2: 2}  # b is B
    assert [(a['bbox'], a['iscrowd'], a['category_id']) for a in kept] == [
        (a['bbox'], a['iscrowd'], ids[a['category_id']]) for a in own['annotations']
    ]
    added = labels_of(content)
    assert added and f'{sum(not ignored for *_, ignored, _ in added)} annotations added' in done.stdout
    for _, name, _, ignored, score in added:
        threshold = 0.2 if name == 'cat' else 0.3
        assert (0.6 * threshold <= score < threshold) if ignored else score >= threshold
    all_ids = [a['id'] for a in content['annotations']]
    assert len({*all_ids}) == len(all_ids) and len(COCO(str(out)).getAnnIds()) == len(all_ids)
    with_masks = any(name in stock for name in ('mask', 'solo', 'rtmdet'))
    for a in content['annotations']:
        x, y, width, height = a['bbox']
        assert width >= 1 and height >= 1 and x >= -1 and y >= -1 and x + width <= 61 and y + height <= 41
        if 'source' in a:
            assert ('segmentation' in a) == with_masks
            if with_masks:
                assert coco_mask.decode(a['segmentation']).shape == (40, 60)


@pytest.mark.parametrize('stock', some(SEGMENTERS, 'fcn'))
def test_pixels_become_label_maps(stock, masks, tmp_path):
    rng = np.random.default_rng(1)
    for file in (masks / 'masks').glob('*.png'):
        Image.fromarray(rng.choice([0, 1, 2, 255], (32, 48)).astype(np.uint8)).save(file)
    before, out = state(masks), tmp_path / 'maps'
    names = ['background', 'b', 'bus']
    label(*old_model(tmp_path / 'old', stock, OLD), masks, '--out', out, '--classes', *names, '--threshold', 0.4)
    assert state(masks) == before and json.loads((out / 'labels.json').read_text())['classes'] == [
        *OLD,
        'background',
        'bus',
    ]
    found = []
    for file in (masks / 'masks').glob('*.png'):
        mask, made = np.asarray(Image.open(file)), np.asarray(Image.open(out / file.name))
        assert made.dtype == np.uint8 and made.shape == mask.shape
        assert (made[mask == 1] == 1).all() and (made[mask == 2] == 4).all(), 'pixels of the data keep their class'
        assert set(np.unique(made[mask == 0])) <= {0, 1, 2, 3, 255} and set(np.unique(made[mask == 255])) <= {
            0,
            1,
            2,
            255,
        }
        found.append(made[mask % 255 == 0])
    assert set(np.unique(np.concatenate(found))) & {0, 1, 2}, 'the old model has added something'


@pytest.mark.parametrize('stock', some(CLASSIFIERS, 'resnet'))
def test_probabilities_of_classifiers_are_stored(stock, folders, tmp_path):
    before, out = state(folders), tmp_path / 'old.npz'
    label(*old_model(tmp_path / 'old', stock, OLD), folders, '--out', out, '--batch-size', 4)
    with np.load(out) as content:
        assert content['classes'].tolist() == OLD and content['log_probabilities'].dtype == np.float16
        assert set(content['files'].tolist()) == {f'{name}/{i} of {name}.png' for name in 'xyz' for i in range(5)}
        assert np.allclose(np.exp(content['log_probabilities'].astype(float)).sum(1), 1, atol=1e-2)
    assert state(folders) == before


def test_no_detection_at_all_is_told_and_the_data_is_written(retinanet, coco, tmp_path):
    out = tmp_path / 'labels.json'
    done = label(*retinanet, coco, '--out', out, '--threshold', 1.0, '--ignore-from', 1)
    content = json.loads(out.read_text())
    assert re.search(r'note: nothing was added; the highest score was 0\.[5-9]', done.stdout)
    assert labels_of(content) == [] and len(content['categories']) == 4
    assert len([a for a in content['annotations'] if 'source' not in a]) == 6


def test_images_that_cannot_be_used_are_named_and_left_out(retinanet, coco, tmp_path):
    (coco / 'train/3.png').write_bytes(b'no image')
    (coco / 'train/4.png').unlink()
    edited(coco / 'train/_annotations.coco.json', lambda c: c['images'][5].update(width=61))
    out = tmp_path / 'labels.json'
    done = label(*retinanet, coco, '--out', out, '--threshold', 0.3, '--batch-size', 4)
    content = json.loads(out.read_text())
    assert [image['file_name'] for image in content['images']] == ['0.png', '1.png', '2.png']
    assert {a['image_id'] for a in content['annotations']} == {0, 1, 2}
    assert 'note: 3 images are left out' in done.stdout
    for what in ('3.png cannot be read', '4.png cannot be read', '5.png is 60x40, annotated as 61x40'):
        assert what in done.stdout
    for image in content['images']:
        (coco / 'train' / image['file_name']).unlink()
    done = label(
        *retinanet,
        coco / 'train/_annotations.coco.json',
        '--images',
        coco / 'train',
        '--out',
        tmp_path / 'no.json',
        check=False,
    )
    assert done.returncode and 'no image can be used' in done.stdout and not (tmp_path / 'no.json').exists()


def test_an_annotation_file_is_data_too(retinanet, coco, tmp_path):
    some_images = tmp_path / 'some.json'
    content = json.loads((coco / 'train/_annotations.coco.json').read_text())
    some_images.write_text(json.dumps(dict(content, images=content['images'][:2])))
    out = tmp_path / 'labels.json'
    label(*retinanet, some_images, '--images', coco / 'train', '--out', out, '--threshold', 0.3)
    assert {image['file_name'] for image in json.loads(out.read_text())['images']} == {'0.png', '1.png'}


def test_crowds_and_ignored_regions_of_the_data_stay_and_nothing_is_added_in_them(retinanet, coco, tmp_path):
    whole = [0, 0, 60, 40]
    rle = dict(size=[40, 60], counts=[0, 2400])
    edited(
        coco / 'train/_annotations.coco.json',
        lambda c: [
            c['annotations'][0].update(bbox=whole, iscrowd=1, segmentation=rle),
            c['annotations'][1].update(bbox=whole, ignore=1),
        ],
    )
    out = tmp_path / 'labels.json'
    label(*retinanet, coco, '--out', out, '--threshold', 0.3)
    content = json.loads(out.read_text())
    crowd, ignored = content['annotations'][:2]
    assert crowd['iscrowd'] == 1 and crowd['segmentation'] == rle and ignored['ignore'] == 1
    assert {name for name, *_ in labels_of(content)} == {'2.png', '3.png', '4.png', '5.png'}


def test_thresholds_are_those_of_best_f1_on_old_data(retinanet, coco, tmp_path):
    edited(coco / 'train/_annotations.coco.json', lambda c: c['categories'][0].update(name='Cat'))
    label(*retinanet, coco, '--out', tmp_path / 'first.json', '--threshold', 0.05, '--ignore-from', 1)
    found = [entry for entry in labels_of(json.loads((tmp_path / 'first.json').read_text())) if entry[1] == 'cat']
    truth = edited(  # what the model sees of cats from 0.7 on, and nothing else
        coco / 'train/_annotations.coco.json',
        lambda c: c.update(
            annotations=[
                dict(id=i + 1, image_id=int(name[0]), category_id=1, bbox=box, area=9, iscrowd=0)
                for i, (name, _, box, _, score) in enumerate(found)
                if score >= 0.7
            ]
        ),
    )
    assert truth['annotations']
    done = label(*retinanet, coco, '--out', tmp_path / 'second.json', '--val', coco, '--threshold', 'person=0.9')
    thresholds = json.loads((tmp_path / 'second.json').read_text())['olor_mm']['thresholds']
    assert thresholds['cat'] >= 0.7 and thresholds['B'] == 0.5 and thresholds['person'] == 0.9
    assert '--val says nothing of 2 classes' in done.stdout


def test_with_only_old_the_data_has_its_classes_for_itself(retinanet, coco, tmp_path):
    for name, options in dict(all=[], old=['--only-old']).items():
        label(*retinanet, coco, '--out', tmp_path / f'{name}.json', '--threshold', 0.3, *options)
    classes = {
        name: {entry[1] for entry in labels_of(json.loads((tmp_path / f'{name}.json').read_text()))}
        for name in ('all', 'old')
    }
    assert classes['all'] - classes['old'] == {'B'}


def test_names_may_be_those_of_a_stock_data_set(coco, tmp_path):
    config, checkpoint = old_model(tmp_path / 'old', RETINANET, [f'class {i}' for i in range(80)])
    out = tmp_path / 'labels.json'
    label(config, checkpoint, coco, '--out', out, '--old-classes', 'coco')
    names = [category['name'] for category in json.loads(out.read_text())['categories']]
    assert (len(names), names[0], names[79:]) == (82, 'person', ['toothbrush', 'a', 'b'])


@pytest.mark.parametrize('what', ['a class folder', 'an image', 'the folder of the data'])
def test_links_are_followed_as_training_follows_them(what, folders, tmp_path):
    names = {name for name, _ in read_images(folders)[1]}
    place = {'a class folder': folders / 'x', 'an image': folders / 'x/0 of x.png', 'the folder of the data': folders}[
        what
    ]
    place.rename(tmp_path / 'elsewhere')
    place.symlink_to(tmp_path / 'elsewhere')
    assert {name for name, file in read_images(folders)[1] if file.is_file()} == names
    data = examine(
        folders, 'classification', tmp_path / 'own.py', None, Reader('mmpretrain', dict(type='LoadImageFromFile'))
    )
    assert data.classes == ['x', 'y', 'z'] and data.images == 12 and not data.problems
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(dict(type='CustomDataset', data_prefix=str(folders), pipeline=[]))
    assert len(dataset) == len(names) == 15
