"""`init --keep-classes --aliases`: classes of new data that the old model calls something else."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tool
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image
from test_init_keep_classes import TASKS, commands, keep, labels_of, trained

ALIASES = dict(  # the alias, and all classes then
    classification=('x=old y', ['x', 'old y', 'z', 'v']),
    detection=('b=dog', ['B', 'dog', 'a']),
    instance_segmentation=('B=DOG', ['B', 'dog', 'a']),
    semantic_segmentation=('b=rope', ['background', 'rope', 'B', 'cat']),
)


@pytest.mark.parametrize('task', TASKS)
def test_a_class_that_is_called_something_else_is_the_old_one_in_all_data(
    task, new, old, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    alias, classes = ALIASES[task]
    options = ['--aliases', alias, '--replay', old[task], '--replay-images', 3]
    keep(task, new, *trained(task, tmp_path, data), 'both.py', *options)
    [words, *_] = commands(capsys.readouterr().out)
    assert (words[-2:] == ['--aliases', alias]) == (task != 'classification')
    cfg = Config.fromfile('both.py')
    assert list(cfg.classes) == classes
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        val = DATASETS.build(cfg.val_dataloader.dataset)
    truth = dict(classification=dict(v='v', x='old y', z='z'), semantic_segmentation=['background', 'rope', 'cat'])
    seen = set()
    for index in range(len(val)):
        file = Path(val.get_data_info(index)['img_path'])
        if new[task] in file.parents:
            seen.add(file)
            found = [classes[label] for label in labels_of(task, val, index)]
            if task == 'classification':
                assert found == [truth[task][file.parent.name]]
            elif task == 'semantic_segmentation':
                values = np.unique(np.asarray(Image.open(file.parents[1] / f'masks/{file.stem}.png')))
                assert found == [truth[task][value] for value in values]
            else:
                assert found == [('a', 'dog')[int(file.stem) % 2]]
    assert seen
    if task == 'detection':
        tool('olor_mm', *words[3:], folder=tmp_path)
        content = json.loads(Path('both_labels.json').read_text())
        names = {category['id']: category['name'] for category in content['categories']}
        kept = [names[a['category_id']] for a in content['annotations'] if 'source' not in a]
        assert [*names.values()] == classes and set(kept) == {'a', 'dog'}
