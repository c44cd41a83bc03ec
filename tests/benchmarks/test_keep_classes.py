"""The study of a class whose objects are not in the new photos: its data, its configs, and what its table says."""

import json
import sys

import pytest
from conftest import ROOT
from mmengine.config import Config

sys.path.insert(0, str(ROOT / 'benchmarks'))
import keep_classes

ROWS = """
custom_hooks = [dict(type='SyncBuffersHook'), dict(type='olor_mm.ClassTransferHook')]
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(rollback=dict(max_level=1e-3, min_level=1e-3)))
train_cfg = dict(max_epochs=6, val_interval=1)
train_dataloader = dict(num_workers=2, dataset=dict(ann_file='rows_labels.json'))
model = dict(backbone=dict(norm_eval=False))
"""


def row(task: str, seed: int, step: str, old, new) -> dict:
    return dict(task=task, seed=str(seed), step=step, old=str(old), new=str(new))


def test_a_share_is_of_the_old_model_and_of_plain_fine_tuning_with_the_same_seed():
    rows = [row('kangaroo_raccoon', 0, 'before', 0.2, ''), row('kangaroo_raccoon', 1, 'before', 0.4, '')]
    rows += [row('kangaroo_raccoon', seed, 'plain', 0.0, 0.5) for seed in range(2)]
    rows += [row('kangaroo_raccoon', 0, 'exact', 0.2, 0.4), row('kangaroo_raccoon', 1, 'exact', 0.4, 0.3)]
    rows += [row('kangaroo_raccoon', 1, 'gone', 0.1, 0.5)]
    lines = keep_classes.table(rows).splitlines()
    assert '| `before` | 2 | 0.300 (0.200 to 0.400) | 100 % | - | - |' in lines
    assert '| `exact` | 2 | 0.300 (0.200 to 0.400) | 100 % | 0.350 (0.300 to 0.400) | 70 % |' in lines
    assert lines[-1] == '| `gone` | 1 | 0.100 | 25 % | 0.500 | 100 % |', 'what is no way any more comes last'
    assert not any('Raccoons' in line for line in lines)


@pytest.fixture
def photos(tmp_path):
    for name in ('kangaroo', 'raccoon'):
        (tmp_path / name).mkdir()
        for split, number in dict(train=4, test=2).items():
            images = [dict(id=i, file_name=f'{split}/{i}.jpg', width=9, height=9) for i in range(number)]
            annotations = [dict(id=i, image_id=i, category_id=1, bbox=[0, 0, 5, 5]) for i in range(number)]
            content = dict(images=images, annotations=annotations, categories=[dict(id=1, name=name)])
            (tmp_path / name / f'{split}.json').write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize('task', keep_classes.TASKS)
def test_new_photos_have_the_new_class_alone_with_the_number_it_has_beside_the_old_one(task, photos, tmp_path):
    study = keep_classes.Photos(task, 0, photos, set())
    study.folder = tmp_path / 'study'
    study.folder.mkdir()
    study.write_data()
    old, new = task.split('_')
    plain, alone = (json.loads((study.folder / name).read_text()) for name in ('plain.json', 'new/train.json'))
    assert [category['name'] for category in plain['categories']] == [old, new]
    assert {a['category_id'] for a in plain['annotations']} == {2} and plain['images'] == alone['images']
    assert alone['categories'] == [dict(id=1, name=new)] and {a['category_id'] for a in alone['annotations']} == {1}
    assert all(image['file_name'].startswith(str(photos / new)) for image in plain['images'])


@pytest.mark.parametrize('way', [way for way, (_, name, _) in keep_classes.WAYS.items() if name])
def test_a_way_is_a_config_that_changes_what_it_says(way, tmp_path):
    (tmp_path / 'rows.py').write_text(ROWS)
    study = keep_classes.Photos('kangaroo_raccoon', 0, tmp_path, set())
    (tmp_path / 'way.py').write_text(study.config(way, 'rows', 6))
    cfg = Config.fromfile(tmp_path / 'way.py')
    assert cfg.train_cfg == dict(max_epochs=6, val_interval=6) and cfg.train_dataloader.num_workers == 0
    settings, hooks = cfg.optim_wrapper.paramwise_cfg, [hook.type for hook in cfg.custom_hooks]
    levels = settings.rollback.get('max_level'), settings.rollback.get('min_level')
    if 'level' in way:
        assert levels == (0.03, 0.03)
    elif way in ('plain', 'rows', 'replay', 'joint', 'labels', 'rows_slow', 'rows_frozen', 'frozen_backbone'):
        assert levels == (0.0, 0.0)
    assert ('olor_mm.ClassTransferHook' in hooks) == (way != 'plain')
    assert cfg.train_dataloader.dataset.ann_file.endswith('/labels.json') == (way == 'labels')
    assert ('custom_keys' in settings) == ('rows_frozen' in way)
    assert cfg.optim_wrapper.optimizer.lr == (3e-4 if way == 'rows_slow' else 1e-3)
