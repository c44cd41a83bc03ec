"""What becomes of an old model's predictions beside the annotations of new data."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, TASK_UTILS, DefaultScope
from mmengine.structures import InstanceData
from old_models import old_model
from pycocotools.coco import COCO
from torch import tensor

from olor_mm.extend.label import FAULT, Choice, Progressed, joined_indices
from olor_mm.extend.label_boxes import SOURCE, ignoring, labelled, overlaps
from olor_mm.extend.label_thresholds import best_threshold, histograms, of_boxes, of_pixels

OLD = ['cat', 'dog', 'person']
RLE = dict(size=[100, 100], counts='0b3')


def content(*annotations, names=('bus', 'Person'), images=1):
    """A COCO file with ids from 7, and numbers of categories from 20."""
    return dict(
        info=dict(year=2024),
        images=[dict(id=7 + i, file_name=f'{i}.png', width=100, height=100) for i in range(images)],
        categories=[dict(id=20 + i, name=name) for i, name in enumerate(names)],
        annotations=[dict(dict(id=30 + i, image_id=7, iscrowd=0, area=1), **a) for i, a in enumerate(annotations)],
    )


def record(*detections):
    labels, scores, boxes = zip(*detections) if detections else ((), (), ())
    return dict(
        size=[100, 100], best=max(scores, default=0), labels=[*labels], scores=[*scores], boxes=[*map(list, boxes)]
    )


def added(annotations, detections, choice=None, names=('bus', 'Person'), **more):
    """Class, box, and whether it is ignored, of what is added to one image."""
    data = content(*annotations, names=names)
    before = json.dumps(data)
    made, found = labelled(data, names, OLD, {'0.png': record(*detections)}, choice or Choice([0.5] * len(OLD)), **more)
    assert json.dumps(data) == before, 'the content of the data is left as it was'
    entries = [a for a in made['annotations'] if a.get('source') == SOURCE]
    kept = [a for a in made['annotations'] if a.get('source') != SOURCE]
    assert [a['bbox'] for a in kept] == [a['bbox'] for a in annotations]
    categories = {c['id']: c['name'] for c in made['categories']}
    assert sum(found.added.values()) + sum(found.ignored.values()) == len(entries)
    return [(categories[a['category_id']], a['bbox'], bool(a['iscrowd'])) for a in entries]


BOX, NEAR, FAR = [10, 10, 20, 20], [12, 10, 20, 20], [60, 60, 20, 20]


@pytest.mark.parametrize(
    'detections, expected',
    [
        ([(0, 0.9, FAR)], [('cat', FAR, False)]),
        ([(0, 0.5, FAR)], [('cat', FAR, False)]),
        ([(0, 0.45, FAR)], [('cat', FAR, True)]),
        ([(0, 0.29, FAR)], []),
        ([(0, 0.9, NEAR)], []),
        ([(2, 0.9, NEAR)], []),
        ([(0, 0.45, NEAR)], []),
        ([(0, 0.9, [60, 60, 0.5, 20])], []),
    ],
    ids=['sure', 'at the threshold', 'in between', 'unsure', 'on an annotation', 'same class', 'unsure on one', 'thin'],
)
def test_a_detection_is_a_label_an_ignored_region_or_nothing(detections, expected):
    assert added([dict(bbox=BOX, category_id=20)], detections) == expected


def test_every_class_has_its_own_threshold():
    detections = [(0, 0.7, FAR), (1, 0.7, [0, 60, 20, 20]), (2, 0.7, [60, 0, 20, 20])]
    assert [name for name, _, ignored in added([], detections, Choice([0.8, 0.6, 0.1])) if not ignored] == [
        'dog',
        'person',
    ]


def test_without_a_range_between_nothing_is_ignored():
    assert added([], [(0, 0.49, FAR), (0, 0.9, BOX)], Choice([0.5] * 3, ignored_from=1)) == [('cat', BOX, False)]


@pytest.mark.parametrize('flag', ['iscrowd', 'ignore'])
def test_in_a_crowd_of_the_data_nothing_is_added(flag):
    crowd = dict(bbox=[0, 0, 50, 50], category_id=20, **{flag: 1})
    assert added([crowd], [(0, 0.9, BOX), (1, 0.45, NEAR), (1, 0.9, FAR)]) == [('dog', FAR, False)]


@pytest.mark.parametrize('only_old, expected', [(False, ['person', 'cat']), (True, ['cat'])])
def test_classes_that_the_data_annotates_are_added_to_or_not(only_old, expected):
    detections = [(2, 0.9, FAR), (0, 0.9, [60, 0, 20, 20])]
    choice = Choice([0.5] * 3, only_old=only_old)
    assert [name for name, *_ in added([dict(bbox=BOX, category_id=21)], detections, choice)] == expected


def test_a_class_that_the_data_only_names_is_not_one_it_annotates():
    choice = Choice([0.5] * 3, only_old=True)
    assert [name for name, *_ in added([dict(bbox=BOX, category_id=20)], [(2, 0.9, FAR)], choice)] == ['person']


@pytest.mark.parametrize('hidden', ['an annotation', 'a label', 'nothing'])
def test_an_ignored_region_never_hides_what_is_to_be_learnt(hidden):
    """Anchors on a small object within a large ignored region would be left out of the loss."""
    small, large = [40, 40, 10, 10], [30, 30, 40, 40]
    annotations = [dict(bbox=small, category_id=20)] if hidden == 'an annotation' else []
    detections = [(0, 0.4, large), *([(1, 0.9, small)] if hidden == 'a label' else [])]
    assert (('cat', large, True) in added(annotations, detections)) == (hidden == 'nothing')


def test_ids_are_unique_and_all_of_the_data_is_kept():
    polygon = [[1, 1, 30, 1, 30, 30]]
    own = [
        dict(bbox=BOX, category_id=20, segmentation=polygon, attributes=dict(colour='red')),
        dict(bbox=FAR, category_id=21, iscrowd=1, segmentation=RLE),
        dict(bbox=NEAR, category_id=20, ignore=1, id=500),
    ]
    detections = record((0, 0.9, [70, 10, 10, 10]), (1, 0.4, [10, 70, 10, 10]))
    detections['masks'] = [RLE, RLE]
    made, _ = labelled(content(*own), ['bus', 'Person'], OLD, {'0.png': detections}, Choice([0.5] * 3))
    for before, after in zip(own, made['annotations']):
        assert {**before, 'category_id': 0} == {
            key: value for key, value in {**after, 'category_id': 0}.items() if key in before
        }
    ids = [a['id'] for a in made['annotations']]
    assert len({*ids}) == len(ids) == 5 and all(a['segmentation'] == RLE for a in made['annotations'][3:])
    assert [c['name'] for c in made['categories']] == ['cat', 'dog', 'person', 'bus']
    assert [c['id'] for c in made['categories']] == [1, 2, 3, 4]
    assert made['info'] == dict(year=2024)
    assert [a['category_id'] for a in made['annotations']] == [4, 3, 4, 1, 2], 'Person is person'


def test_an_alias_is_the_old_class():
    made, _ = labelled(
        content(dict(bbox=BOX, category_id=20), names=['pedestrian']),
        ['pedestrian'],
        OLD,
        {'0.png': record()},
        Choice([0.5] * 3),
        {'pedestrian': 'person'},
    )
    assert [c['name'] for c in made['categories']] == OLD and made['annotations'][0]['category_id'] == 3
    assert joined_indices(OLD, ['bus', 'Dog', 'car'], {}) == [3, 1, 4]


def test_names_that_collide_are_an_error():
    with pytest.raises(ValueError, match='collide'):
        added([], [], names=('bus', 'BUS'))


def test_an_image_that_cannot_be_used_is_left_out_with_its_annotations():
    data = content(dict(bbox=BOX, category_id=20), dict(bbox=BOX, category_id=20, image_id=8), images=2)
    made, _ = labelled(
        data, ['bus', 'Person'], OLD, {'0.png': {FAULT: 'cannot be read'}, '1.png': record()}, Choice([0.5] * 3)
    )
    assert [image['id'] for image in made['images']] == [8] and [a['id'] for a in made['annotations']] == [31]


def test_mmdet_reads_what_is_written(tmp_path):
    detections = [(0, 0.9, FAR), (1, 0.4, [0, 60, 20, 20])]
    made, _ = labelled(
        content(dict(bbox=BOX, category_id=20)),
        ['bus', 'Person'],
        OLD,
        {'0.png': record(*detections)},
        Choice([0.5] * 3),
    )
    file = tmp_path / 'labels.json'
    file.write_text(json.dumps(made))
    assert len(COCO(str(file)).getAnnIds()) == 3
    classes = [c['name'] for c in made['categories']]
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(
            dict(
                type='CocoDataset',
                ann_file=str(file),
                data_prefix=dict(img=''),
                pipeline=[],
                metainfo=dict(classes=classes),
                serialize_data=False,
            )
        )
    found = [(i['bbox_label'], i['ignore_flag']) for i in dataset.get_data_info(0)['instances']]
    assert found == [(3, 0), (0, 0), (1, 1)]


ASSIGNERS = [
    dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
    dict(type='mmdet.ApproxMaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
    dict(type='ATSSAssigner', topk=1),
]


@pytest.mark.parametrize('assigner', ASSIGNERS, ids=lambda a: a['type'])
def test_the_settings_that_are_named_make_mmdet_ignore_regions(assigner):
    """With them no prior within an ignored region is background; without, all are."""
    model = dict(type='A', train_cfg=dict(rcnn=[dict(assigner=dict(assigner)), dict(sampler=dict(type='B'))]))
    assert ignoring(model) == ['model.train_cfg.rcnn.0.assigner.ignore_iof_thr']
    model['train_cfg']['rcnn'][0]['assigner']['ignore_iof_thr'] = 0.5
    assert ignoring(model) == []
    inside = tensor([[60.0, 60, 80, 80], [10, 10, 30, 30]])
    truth = InstanceData(bboxes=tensor([[10.0, 10, 30, 30]]), labels=tensor([0]))
    region = InstanceData(bboxes=tensor([[55.0, 55, 90, 90]]), labels=tensor([0]))
    priors = InstanceData(priors=inside, approxs=inside[:, None])
    levels = ([2],) if 'ATSS' in assigner['type'] else ()

    def of_region(threshold):
        with DefaultScope.overwrite_default_scope('mmdet'):
            built = TASK_UTILS.build({**assigner, 'ignore_iof_thr': threshold})
        return built.assign(priors, *levels, truth, gt_instances_ignore=region).gt_inds[0].item()

    assert (of_region(-1), of_region(0.5)) == (0, -1)


# thresholds


def slow_f1(scores, hits, wanted, threshold):
    made = [hit for score, hit in zip(scores, hits) if score >= threshold]
    return 2 * sum(made) / (len(made) + wanted)


@pytest.mark.parametrize('seed', range(5))
def test_no_other_threshold_has_a_better_f1(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, 20, 40) / 20
    hits = rng.random(40) < scores
    wanted = int(hits.sum()) + 5
    best = best_threshold(scores, [(hit, 1) for hit in hits], wanted)
    others = [slow_f1(scores, hits, wanted, threshold) for threshold in np.unique(scores)]
    assert slow_f1(scores, hits, wanted, best) == pytest.approx(max(others))


def test_thresholds_of_detections_are_by_class_and_only_where_there_is_something_to_find():
    data = content(
        dict(bbox=BOX, category_id=20),
        dict(bbox=FAR, category_id=20),
        dict(bbox=[0, 50, 50, 50], category_id=21, iscrowd=1),
        names=('cat', 'dog'),
    )
    found = record(
        (0, 0.9, BOX), (0, 0.8, FAR), (0, 0.85, NEAR), (0, 0.3, [0, 0, 5, 5]), (1, 0.9, [1, 51, 9, 9]), (2, 0.9, BOX)
    )
    best = of_boxes(data, {20: 0, 21: 1}, {'0.png': found}, 3)
    assert best == [0.8, None, None]


def test_thresholds_of_pixels_are_the_best_of_all_steps():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 2, (64, 64)).astype(np.uint8)
    mask[:5] = 255
    scores = rng.random((64, 64)).astype(np.float32)
    labels = np.where(scores > rng.random((64, 64)), mask, 1 - mask) % 2
    halves = [histograms(mask[part], labels[part], scores[part], 255) for part in (slice(32), slice(32, None))]
    best = of_pixels([*json.loads(json.dumps(halves)), {FAULT: 'x'}], 3)
    counted, chosen = mask != 255, labels == 1
    hits = (mask == 1)[chosen & counted]
    f1 = [slow_f1(scores[chosen & counted], hits, (mask == 1).sum(), at / 200) for at in range(200)]
    assert slow_f1(scores[chosen & counted], hits, (mask == 1).sum(), best[1]) == pytest.approx(max(f1))
    assert best[2] is None


def test_overlaps_are_those_of_coco():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    boxes, others = rng.random((20, 4)) * 50, rng.random((15, 4)) * 50
    crowds = rng.random(15) < 0.5
    expected = coco_mask.iou(boxes, others, crowds.astype(np.uint8).tolist())
    assert np.allclose(overlaps(boxes, others, crowds), expected)
    assert overlaps([], others, crowds).shape == (0, 15) and overlaps(boxes, [], []).shape == (20, 0)


# progress


def test_a_line_that_a_kill_cut_off_is_no_harm(tmp_path):
    progressed = Progressed(tmp_path, 'images', 'config', 1)
    progressed.mine.write_bytes(b'{"a": {"x": 1}, "b": {"x": 2}}\n{"c": {"x"\n{"d": {}}\n{"e": {"x": 3}')
    assert Progressed(tmp_path, 'images', 'config', 1).read() == {'a': {'x': 1}, 'b': {'x': 2}, 'd': {}}
    for other in (('other', 1), ('config', 2)):
        assert Progressed(tmp_path, 'images', *other).read() == {}


@pytest.mark.parametrize(
    'stock',
    [
        'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        'mmdet::atss/atss_r18_fpn_8xb8-amp-lsj-200e_coco.py',
        pytest.param('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', marks=pytest.mark.slow),
    ],
)
def test_a_stock_detector_ignores_regions_with_these_settings_alone(stock, tmp_path):
    """The loss with a region, and without: the same with the stock settings, and not with those that are named."""
    config, checkpoint = old_model(tmp_path, stock, OLD)
    os.unlink(checkpoint)
    cfg = Config.fromfile(config)
    losses = {}
    for settings in ('stock', 'named'):
        if settings == 'named':
            keys = ignoring(cfg.model)
            cfg.merge_from_dict({key: 0.5 for key in keys})
            assert keys and not ignoring(cfg.model)
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(copy.deepcopy(cfg.model)).train()
        for region in (tensor([[20.0, 20, 110, 110]]), tensor([]).reshape(0, 4)):
            sample = DetDataSample(
                metainfo=dict(img_shape=(128, 128), pad_shape=(128, 128), batch_input_shape=(128, 128))
            )
            sample.gt_instances = InstanceData(bboxes=tensor([[4.0, 4, 16, 16]]), labels=tensor([0]))
            sample.ignored_instances = InstanceData(bboxes=region, labels=torch.zeros(len(region), dtype=torch.long))
            torch.manual_seed(0)
            found = model.loss(torch.ones(1, 3, 128, 128), [sample])
            parts = [v for k, v in found.items() if 'loss' in k for v in (v if isinstance(v, list) else [v])]
            losses[settings, len(region)] = float(sum(part.sum() for part in parts))
    assert losses['stock', 1] == losses['stock', 0] == losses['named', 0] != losses['named', 1]
