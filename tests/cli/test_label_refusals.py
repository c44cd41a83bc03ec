"""What `label` cannot use is one error before the work begins, and the data is left as it is."""

import re

import pytest
import torch
from conftest import tool
from labelling import FCN, OLD, label
from old_models import old_model


@pytest.mark.parametrize(
    'options, said',
    [
        (['--threshold', '1.5'], "--threshold '1.5'"),
        (['--threshold', 'cta=0.5'], '--threshold cta=0.5: no class of the old model; give .*cat'),
        (['--ignore-from', '2'], '--ignore-from 2'),
        (['--batch-size', '0'], '--batch-size 0'),
        (['--aliases', 'a'], "--aliases 'a'"),
        (['--aliases', 'a=tiger'], "'tiger' is no old class"),
        (['--aliases', 'a=B'], 'collide'),
        (['--old-classes', 'one', 'two'], r'\[3\] classes .* 2 names'),
        (['--classes', 'a', 'z'], r"\['z'\] of the classes are not there"),
        (['--out', 'labels.npz'], r'labels.npz.*an annotation file of COCO, .json'),
        (['--out', 'old/old.py'], r'old.py'),
        (['--val', 'nowhere'], 'nowhere'),
    ],
    ids=lambda part: ' '.join(part) if isinstance(part, list) else '',
)
def test_bad_input_is_one_error_before_the_work_begins(options, said, retinanet, coco, tmp_path):
    options = ['--out', 'labels.json', *options]
    done = tool('olor_mm', 'label', *retinanet, coco, *options, folder=tmp_path, check=False)
    assert done.returncode and re.search(said, done.stdout.splitlines()[-1]), done.stdout
    assert 'Traceback' not in done.stdout and not (tmp_path / 'labels.json').exists()


def test_the_data_and_what_is_there_are_left_alone(retinanet, coco, masks, tmp_path):
    (tmp_path / 'there.json').write_text('mine')
    for out in (tmp_path / 'there.json', coco / 'labels.json', coco / 'train/labels.json'):
        done = label(*retinanet, coco, '--out', out, check=False)
        assert done.returncode and str(out) in done.stdout
    assert (tmp_path / 'there.json').read_text() == 'mine' and not (coco / 'labels.json').exists()


def test_a_checkpoint_of_another_model_or_without_names_is_refused(retinanet, coco, tmp_path):
    config, checkpoint = retinanet
    content = torch.load(checkpoint)
    torch.save(dict(content, meta={}), tmp_path / 'nameless.pth')
    done = label(config, tmp_path / 'nameless.pth', coco, '--out', tmp_path / 'a.json', check=False)
    assert done.returncode and '--old-classes' in done.stdout
    other = dict(content, state_dict={k: v for k, v in content['state_dict'].items() if 'retina_cls' not in k})
    torch.save(other, tmp_path / 'headless.pth')
    done = label(config, tmp_path / 'headless.pth', coco, '--out', tmp_path / 'a.json', check=False)
    assert done.returncode and '2 parameters' in done.stdout and 'retina_cls' in done.stdout
    label(config, tmp_path / 'nameless.pth', coco, '--out', tmp_path / 'a.json', '--old-classes', *OLD)


def test_masks_need_names(masks, tmp_path):
    given = [*old_model(tmp_path / 'old', FCN, OLD), masks, '--out', tmp_path / 'maps']
    done = label(*given, check=False)
    assert done.returncode and '--classes is missing' in done.stdout
    done = label(*given, '--classes', 'background', 'bus', check=False)
    assert done.returncode and 'has the values [2], and there are 2 classes' in done.stdout
    assert not (tmp_path / 'maps').exists()
