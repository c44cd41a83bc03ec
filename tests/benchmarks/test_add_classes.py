"""The benchmark of added classes: its data, and what its table says."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / 'benchmarks'))
import add_classes


def rows(task: str, seed: int, values: dict[str, tuple]) -> list[dict]:
    """Rows of the csv file, whose values are texts."""
    return [
        dict(task=task, seed=str(seed), step=step, old=str(old), new=str(new)) for step, (old, new) in values.items()
    ]


def test_a_share_is_of_the_old_model_and_of_joint_training_with_the_same_seed():
    first = dict(before=(0.4, ''), keep_classes=(0.3, 0.2), plain=(0.0, 0.5), joint=(0.5, 0.4))
    second = dict(before=(0.2, ''), keep_classes=(0.2, 0.3), plain=(0.0, 0.5), joint=(0.5, 0.3))
    unfinished = dict(before=(0.9, ''), keep_classes=(0.9, 0.9))
    table = add_classes.table(rows('boxes', 0, first) + rows('boxes', 1, second) + rows('boxes', 2, unfinished))
    assert '| boxes | 2 | `keep_classes` | 0.250 | 88 % | 0.250 | 75 % |' in table.splitlines()
    assert '| boxes | 2 | `before` | 0.300 | 100 % | - | - |' in table.splitlines() and 'masks' not in table


@pytest.mark.parametrize('task', add_classes.TASKS)
def test_old_and_new_data_share_images_and_no_annotation(task, data, tmp_path):
    add_classes.write_data(task, tmp_path)
    if task == 'pixels':
        maps = {
            name: {file.name: np.asarray(Image.open(file)) for file in (tmp_path / name / 'ann_dir').rglob('*.png')}
            for name in ('old', 'new', 'joint')
        }
        assert maps['old'].keys() == maps['new'].keys() == maps['joint'].keys()
        for file, both in maps['joint'].items():
            assert ((both > 0) == (maps['old'][file] > 0) | (maps['new'][file] > 0)).all()
            assert not (maps['old'][file] & maps['new'][file] & (both == 0)).any()
        return
    for split in ('train', 'test'):
        old, new, joint = (json.loads((tmp_path / n / f'{split}.json').read_text()) for n in ('old', 'new', 'joint'))
        ids = [{annotation['id'] for annotation in content['annotations']} for content in (old, new, joint)]
        assert not ids[0] & ids[1] and ids[0] | ids[1] == ids[2] and min(map(len, ids)) > 10
        assert old['images'] == new['images'] and old['categories'] + new['categories'] == joint['categories']
