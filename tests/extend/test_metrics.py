"""Metrics of old and new classes apart: equal to those of stock metrics on each group alone."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS, DefaultScope

import olor_mm  # noqa: F401
from olor_mm.compare.runs import Run
from olor_mm.compare.statistics import choose_metrics, choose_retention

CLASSES = ('a', 'b', 'c', 'd')
OLD, NEW = ['a', 'b'], ['c', 'd']


def build(scope: str, cfg: dict, classes=CLASSES):
    with DefaultScope.overwrite_default_scope(scope):
        metric = METRICS.build(cfg)
    metric.dataset_meta = dict(classes=classes)
    return metric


def evaluate(metric, samples: list[dict]) -> dict:
    metric.process({}, copy.deepcopy(samples))
    return metric.evaluate(len(samples))


@pytest.fixture
def boxes(tmp_path):
    """Four images of 100 pixels with two objects of every class, and detections that find most of them."""
    rng = np.random.default_rng(0)
    images, annotations, samples = [], [], []
    for i in range(4):
        images.append(dict(id=i, file_name=f'{i}.png', width=100, height=100))
        found = []
        for label in range(8):
            x, y, side = (int(v) for v in (*rng.integers(0, 60, 2), rng.integers(10, 40)))
            polygon = [[x, y, x + side, y, x + side, y + side, x, y + side]]
            box = dict(id=len(annotations) + 1, image_id=i, category_id=10 + label % 4, bbox=[x, y, side, side])
            annotations.append(box | dict(area=side**2, iscrowd=0, segmentation=polygon))
            shift = rng.integers(-3, 4)
            found.append([x + shift, y, x + side + shift, y + side, rng.random(), (label + (rng.random() < 0.2)) % 4])
        found = torch.tensor(np.array(found), dtype=torch.float)
        masks = torch.zeros(len(found), 100, 100, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, found[:, :4].int().clamp(0, 100).tolist()):
            mask[y1:y2, x1:x2] = True
        instances = dict(bboxes=found[:, :4], scores=found[:, 4], labels=found[:, 5].long(), masks=masks)
        samples.append(dict(img_id=i, ori_shape=(100, 100), pred_instances=instances))
    categories = [dict(id=10 + i, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    return tmp_path / 'truth.json', content, samples


def coco(file, content, samples, classes=CLASSES, **options) -> dict:
    file.write_text(json.dumps(content))
    kind = 'olor_mm.ClassGroupsCocoMetric' if 'old' in options else 'CocoMetric'
    metric = build('mmdet', dict(type=kind, ann_file=str(file), metric=['bbox', 'segm'], **options), classes)
    return evaluate(metric, samples)


def without(content: dict, samples: list[dict], images: list[int], labels: list[int]) -> tuple[dict, list[dict]]:
    """No truth and no detection of some labels in some images."""
    annotations = [
        a for a in content['annotations'] if a['image_id'] not in images or a['category_id'] - 10 not in labels
    ]
    kept = []
    for sample in samples:
        found = sample['pred_instances']
        keep = ~torch.isin(found['labels'], torch.tensor(labels)) | (sample['img_id'] not in images)
        kept.append(dict(sample, pred_instances={name: value[keep] for name, value in found.items()}))
    return dict(content, annotations=annotations), kept


@pytest.mark.parametrize('old', [['a', 'b'], ['d'], ['A', 'c', 'b']])
def test_a_group_of_boxes_and_masks_has_the_value_of_the_stock_metric_for_its_classes(old, boxes):
    file, content, samples = boxes
    found = coco(file, content, samples, old=old)
    stock = coco(file, content, samples)
    assert stock == {key: value for key, value in found.items() if not key.endswith(('_old', '_new', '_all'))}
    labels = [CLASSES.index(name.lower()) for name in old]
    for group, others in dict(old=[i for i in range(4) if i not in labels], new=labels, all=[]).items():
        alone, shown = without(content, samples, range(4), others)
        kept = coco(file, alone, shown)
        assert {f'{key}_{group}': value for key, value in kept.items()}.items() <= found.items()
    assert len(found) == 4 * len(stock) == 48 and 0 < found['coco/segm_mAP_new'] < 1


def test_a_detection_of_a_class_that_is_not_annotated_in_its_image_is_not_false(boxes):
    file, content, samples = boxes
    half, shown = without(content, samples, [0, 1], [2, 3])
    half, shown = without(half, shown, [2, 3], [0, 1])
    expected = coco(file, half, shown, old=OLD)
    for image in half['images']:
        image['annotated'] = [10, 11] if image['id'] < 2 else [12, 13]
    assert coco(file, half, samples, old=OLD) == expected
    for image in half['images']:
        del image['annotated']
    assert coco(file, half, samples, old=OLD)['coco/bbox_mAP'] < expected['coco/bbox_mAP']


def test_nothing_found_is_an_average_precision_of_zero_and_nothing_annotated_is_none(boxes):
    file, content, samples = boxes
    _, without_old = without(content, samples, range(4), [0, 1])
    found = coco(file, content, without_old, old=OLD)
    assert found['coco/bbox_mAP_old'] == 0 < found['coco/bbox_mAP_new'] and found['coco/segm_mAP_50_old'] == 0
    _, nothing = without(content, samples, range(4), [0, 1, 2, 3])
    found = coco(file, content, nothing, old=OLD)
    assert len(found) == 48 and not any(found.values())
    only_new, _ = without(content, samples, range(4), [0, 1])
    found = coco(file, only_new, samples, old=OLD)
    assert 'coco/bbox_mAP_old' not in found and found['coco/bbox_mAP_new'] > 0


def test_options_of_the_stock_metric_keep_their_meaning(boxes, tmp_path):
    file, content, samples = boxes
    options = dict(old=OLD, classwise=True, metric_items=['mAP', 'mAP_50'], outfile_prefix=str(tmp_path / 'found'))
    found = coco(file, content, samples, **options)
    assert 'coco/a_precision' in found and 'coco/a_precision_old' not in found and 'coco/bbox_mAP_75_old' not in found
    assert len(json.loads((tmp_path / 'found.bbox.json').read_text())) == 32  # of all classes
    file.write_text(json.dumps(content))
    metric = build('mmdet', dict(type='olor_mm.ClassGroupsCocoMetric', old=OLD))  # the truth is in the samples
    for sample in samples:
        truth = [a for a in content['annotations'] if a['image_id'] == sample['img_id']]
        sample['instances'] = [
            dict(bbox_label=a['category_id'] - 10, bbox=[x, y, x + w, y + h])
            for a in truth
            for x, y, w, h in [a['bbox']]
        ]
    assert evaluate(metric, samples)['coco/bbox_mAP_old'] == found['coco/bbox_mAP_old']


def maps(seed: int, **changes) -> list[dict]:
    """Samples of mmseg: a label map and a prediction that is right in most pixels; class 0 is the background."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for i in range(3):
        label = torch.randint(0, 4, (1, 20, 20), generator=generator)
        predicted = torch.where(torch.rand(label.shape, generator=generator) < 0.3, label.roll(1, 1), label)
        entry = dict(gt_sem_seg=dict(data=label), pred_sem_seg=dict(data=predicted))
        samples.append(entry | dict(img_path=f'{i}.png', seg_map_path=f'/maps/new/{i}.png') | changes)
    return samples


PIXELS = ('background', 'b', 'c', 'd')


@pytest.mark.parametrize('old, groups', [(['Background', 'b'], ([0, 1], [2, 3])), (['d'], ([3], [0, 1, 2]))])
def test_a_group_of_pixels_has_the_mean_over_its_classes(old, groups):
    samples = maps(0)
    stock = build('mmseg', dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice']), PIXELS)
    metric = build('mmseg', dict(type='olor_mm.ClassGroupsIoUMetric', iou_metrics=['mIoU', 'mDice'], old=old), PIXELS)
    found = evaluate(metric, samples)
    assert evaluate(stock, samples).items() <= found.items()
    label, predicted = (torch.stack([s[k]['data'] for s in samples]) for k in ('gt_sem_seg', 'pred_sem_seg'))
    iou = [100 * ((label == i) & (predicted == i)).sum() / ((label == i) | (predicted == i)).sum() for i in range(4)]
    for group, classes in zip(('old', 'new'), groups):
        assert found[f'mIoU_{group}'] == pytest.approx(np.mean([iou[i] for i in classes]), abs=0.01)
    assert found['mDice_all'] == found['mDice'] and 'aAcc_new' in found


def test_pixels_predicted_as_a_class_that_is_not_annotated_are_not_false():
    samples = maps(0)
    new = [0, 2, 3]  # b, an old class, is background in the maps of the new data
    for sample in samples:
        label = sample['gt_sem_seg']['data']
        label[label == 1] = 0
    options = dict(type='olor_mm.ClassGroupsIoUMetric', old=['background', 'b'])
    metric = build('mmseg', dict(options, annotated={'/maps/new': ['background', 'c', 'd']}), PIXELS)
    found = evaluate(metric, samples)
    label, predicted = (torch.stack([s[k]['data'] for s in samples]) for k in ('gt_sem_seg', 'pred_sem_seg'))
    label = torch.where((predicted == 1) & (label == 0), 255, label)
    seen = label != 255
    iou = {}
    for i in new:
        both, either = (label == i) & (predicted == i), ((label == i) | (predicted == i)) & seen
        iou[i] = 100 * both.sum() / either.sum()
    assert found['mIoU'] == pytest.approx(np.mean([*iou.values()]), abs=0.01)  # b is measured nowhere
    assert 'mIoU_old' not in found  # background alone is no old class
    naive = evaluate(build('mmseg', options, PIXELS), samples)
    assert naive['mIoU'] < found['mIoU']
    complete = maps(1, seg_map_path='/maps/all/1.png')
    both = evaluate(metric, samples + complete)
    assert both['mIoU_old'] > 0 and evaluate(metric, complete) == evaluate(build('mmseg', options, PIXELS), complete)


def images(count: int = 40) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    scores = torch.rand(count, 4, generator=generator) + torch.eye(4)[labels] * 0.5
    return [dict(gt_label=label.view(1), pred_score=score) for label, score in zip(labels, scores)]


@pytest.mark.parametrize('old', [['a', 'b'], ['d'], ['a', 'b', 'c']])
def test_a_group_of_images_is_that_of_its_true_classes(old):
    samples = images()
    found = evaluate(build('mmpretrain', dict(type='olor_mm.ClassGroupsAccuracy', topk=(1, 2), old=old)), samples)
    stock = dict(type='Accuracy', topk=(1, 2))
    assert evaluate(build('mmpretrain', stock), samples).items() <= found.items()
    for group in ('old', 'new'):
        chosen = [s for s in samples if (CLASSES[int(s['gt_label'])] in old) == (group == 'old')]
        alone = evaluate(build('mmpretrain', stock), chosen)
        assert {f'{key}_{group}': value for key, value in alone.items()}.items() <= found.items()
    only_new = [s for s in samples if CLASSES[int(s['gt_label'])] not in old]
    found = evaluate(build('mmpretrain', dict(type='olor_mm.ClassGroupsAccuracy', old=old)), only_new)
    assert {'accuracy/top1', 'accuracy/top1_all', 'accuracy/top1_new'} == {*found}


@pytest.mark.parametrize(
    'options, told', [(dict(old=['a', 'z']), "'z'"), (dict(old='a'), "old='a'"), (dict(old=['a'], new=['y']), "'y'")]
)
def test_classes_that_are_not_there_are_refused(options, told):
    metric = build('mmpretrain', dict(type='olor_mm.ClassGroupsAccuracy', **options))
    with pytest.raises(ValueError, match=told):
        evaluate(metric, images())


def test_a_config_names_the_metrics_as_it_names_all_of_olor_mm(tmp_path):
    cfg = Config(dict(val_evaluator=dict(type='ClassGroupsAccuracy', old=OLD, new=NEW)))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert type(Evaluator(cfg.val_evaluator).metrics[0]).__name__ == 'ClassGroupsAccuracy'


@pytest.mark.parametrize('key, unit', [('coco/bbox_mAP', '0 to 1'), ('mIoU', '%'), ('accuracy/top1', '%')])
def test_compare_holds_new_classes_against_old_ones(key, unit, tmp_path):
    values = {f'{key}{suffix}': 0.5 for suffix in ('', '_old', '_new', '_all')}
    scalars = [dict(axis='epoch', key=name, step=1, value=value) for name, value in values.items()]
    runs = [Run(tmp_path / name, Config(), pd.DataFrame(scalars)) for name in 'ab']
    metrics, retention = choose_metrics(runs), choose_retention(runs)
    assert [metric.key for metric in metrics] == [f'{key}_new', key] and retention.key == f'{key}_old'
    assert {measure.unit for measure in (*metrics, retention)} == {unit}
