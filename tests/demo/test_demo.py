"""The demo: how its picture judges boxes, what plain fine-tuning gets to see, and what its table says."""

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tool
from mmengine.config import Config

sys.path.insert(0, str(ROOT / 'demo'))
import picture
import run_demo

AT, NEAR, FAR = [10.0, 10.0, 30.0, 30.0], [12.0, 10.0, 30.0, 30.0], [60.0, 60.0, 80.0, 80.0]


@pytest.mark.parametrize(
    'found, right, wrong, missed',
    [
        ([], 0, 0, 1),
        ([('digit 1', AT)], 1, 0, 0),
        ([('digit 1', NEAR)], 1, 0, 0),
        ([('digit 1', FAR)], 0, 1, 1),
        ([('digit 2', AT)], 0, 1, 1),
        ([('digit 1', NEAR), ('digit 1', AT)], 1, 1, 0),  # an object is found once
    ],
    ids=['nothing', 'the same', 'near', 'far', 'another class', 'twice'],
)
def test_a_box_is_right_where_an_object_of_its_class_is(found, right, wrong, missed):
    judged = picture.judged(found, [('digit 1', AT)])
    assert {kind: len(boxes) for kind, boxes in judged.items()} == dict(right=right, wrong=wrong, missed=missed)


def test_old_and_new_classes_have_colours_of_their_own():
    assert len({*picture.COLD, *picture.WARM}) == len(run_demo.CLASSES)


def test_every_box_of_a_test_image_is_in_the_picture(data):
    content = [json.loads((data / f'demo/{name}/test.json').read_text()) for name in ('old', 'new')]
    for number in (0, 7, 59):
        file, boxes = picture.annotated([data / 'demo/old', data / 'demo/new'], number)
        assert file.is_file()
        assert len(boxes) == sum(found['image_id'] == number for one in content for found in one['annotations'])


def test_plain_fine_tuning_sees_no_label_of_the_old_model(tmp_path):
    annotations = [dict(id=i, image_id=0, category_id=i, bbox=[0, 0, 9, 9]) for i in (1, 2, 4, 6)]
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(run_demo.CLASSES)]
    labels = dict(images=[dict(id=0, file_name='a.png')], annotations=annotations, categories=categories)
    (tmp_path / 'labels.json').write_text(json.dumps(labels))
    dataset = f'train_dataloader = dict(dataset=dict(ann_file={str(tmp_path / "labels.json")!r}))\n'
    hooks = "custom_hooks = ['kept', 'ClassTransferHook']\noptim_wrapper = dict()\n"
    (tmp_path / 'ours.py').write_text(dataset + hooks)
    cfg = Config.fromfile(run_demo.write_plain(tmp_path / 'ours.py'))
    plain = json.loads(Path(cfg.train_dataloader.dataset.ann_file).read_text())
    assert [found['category_id'] for found in plain['annotations']] == [4, 6]
    assert plain['categories'] == categories and plain['images'] == labels['images']
    assert list(cfg.custom_hooks) == ['kept'] and cfg.optim_wrapper.paramwise_cfg.rollback.max_level == 0


@pytest.mark.slow
def test_the_demo_shows_old_classes_lost_by_plain_fine_tuning_and_kept_by_ours(data, tmp_path):
    tool('demo/run_demo.py', '--out', tmp_path)
    rows = [line.strip('| ').split(' | ') for line in (tmp_path / 'report.md').read_text().splitlines()]
    before, plain, ours = ([float(v.replace('-', 'nan')) for v in row[1:]] for row in rows if row[0] in run_demo.RUNS)
    assert before[0] > 0.8 and plain[0] < 0.05 and ours[0] > 0.9 * before[0] and ours[2] > 0.9 * plain[2]
    assert {file.name for file in (tmp_path / 'figures').iterdir()} == {'images.png', 'curves.png'}
