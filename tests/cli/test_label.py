"""python -m olor_mm label, with real models of all tasks, in processes that are killed and that share the work."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tool
from jobs import kill_all
from old_models import old_model
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

DETECTORS = dict(
    retinanet='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    faster_rcnn='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    detr='mmdet::detr/detr_r18_8xb2-500e_coco.py',
    mask_rcnn='mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    solo='mmdet::solo/solo_r50_fpn_1x_coco.py',
    rtmdet_ins='mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
)
SEGMENTERS = dict(
    fcn='mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    segformer='mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    mask2former='mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
)
CLASSIFIERS = dict(
    resnet='mmpretrain::resnet/resnet18_8xb32_in1k.py',
    vit='mmpretrain::deit/deit-tiny_4xb256_in1k.py',
    conformer='mmpretrain::conformer/conformer-tiny-p16_8xb128_in1k.py',
)
OLD = ['cat', 'B', 'person']
RETINANET, FCN, RESNET = DETECTORS['retinanet'], SEGMENTERS['fcn'], CLASSIFIERS['resnet']
SLOW = dict(marks=pytest.mark.slow)


def some(models: dict, quick: str) -> list:
    return [pytest.param(stock, id=name, **({} if name == quick else SLOW)) for name, stock in models.items()]


@pytest.fixture(autouse=True)
def no_weights_are_left(tmp_path):
    """Those of all tests together would be gigabytes."""
    yield
    for file in tmp_path.rglob('*.pth'):
        file.unlink()


def label(*arguments, check=True, **environment):
    return tool('olor_mm', 'label', *arguments, check=check, **environment)


def state(folder: Path) -> dict:
    """Every file below a folder, and when it was changed."""
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob('*') if file.is_file()}


def labels_of(content: dict) -> list[tuple]:
    """What was added: name of the image, class, box, whether it is ignored."""
    names = {c['id']: c['name'] for c in content['categories']}
    files = {image['id']: image['file_name'] for image in content['images']}
    return [
        (files[a['image_id']], names[a['category_id']], a['bbox'], a['iscrowd'], a['score'])
        for a in content['annotations']
        if a.get('source') == 'olor_mm'
    ]


def edited(file: Path, change) -> dict:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return content


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


@pytest.fixture
def retinanet(tmp_path):
    return old_model(tmp_path / 'old', RETINANET, OLD)


def many(folder: Path, number: int) -> Path:
    """So many images in a data set that a run can be killed in between."""
    rng = np.random.default_rng(0)
    (folder / 'train').mkdir(parents=True)
    images = [dict(id=i, file_name=f'{i}.png', width=60, height=40) for i in range(number)]
    for image in images:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / 'train' / image['file_name'])
    box = dict(id=1, image_id=0, category_id=1, bbox=[5, 6, 20, 10], area=200, iscrowd=0)
    content = dict(images=images, annotations=[box], categories=[dict(id=1, name='a')])
    (folder / 'train.json').write_text(json.dumps(content))
    return folder


def begin(*arguments, processes: int = 0) -> subprocess.Popen:
    """The command in a session of its own, so that it can be killed."""
    python = [sys.executable, '-m', 'olor_mm', 'label']
    if processes:
        python = [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--nproc_per_node',
            str(processes),
            '--master_port',
            '0',
        ]
        python += ['--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0', '-m', 'olor_mm', 'label']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([*python, *map(str, arguments)], cwd=ROOT, env=environment, start_new_session=True)


def finished(out: Path) -> list[Path]:
    return [file for file in out.parent.glob(f'{out.name}.part/*.jsonl') if file.stat().st_size]


@pytest.mark.slow
@pytest.mark.parametrize('processes', [0, 2])
def test_a_run_that_is_killed_goes_on_to_what_it_would_have_been(processes, retinanet, tmp_path):
    data, out = many(tmp_path / 'data', 40), tmp_path / 'killed.json'
    arguments = [*retinanet, data, '--threshold', 0.3, '--batch-size', 3]
    label(*arguments, '--out', tmp_path / 'straight.json')
    process = begin(*arguments, '--out', out, processes=processes)
    while len(finished(out)) < max(1, processes) and process.poll() is None:
        time.sleep(0.005)
    kill_all(process)
    assert not out.exists()
    [first, *_] = finished(out)
    first.write_bytes(first.read_bytes()[:-7])  # as if the disk had not got all of it
    lines = sum(len(file.read_bytes().splitlines()) for file in finished(out))
    assert 0 < lines < 14
    kept = {file: file.read_bytes() for file in finished(out)}
    process = begin(*arguments, '--out', out, processes=processes)
    while process.poll() is None and all(file.stat().st_size == len(content) for file, content in kept.items()):
        time.sleep(0.005)
    for file, content in kept.items():
        assert not file.exists() or file.read_bytes().startswith(content), 'what was finished is not done again'
    assert process.wait() == 0
    assert out.read_text() == (tmp_path / 'straight.json').read_text()
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.slow
@pytest.mark.parametrize('task', ['boxes', 'maps', 'probabilities'])
def test_two_processes_make_what_one_makes(task, coco, masks, folders, tmp_path):
    stock, data, suffix, options = dict(
        boxes=(RETINANET, coco, '.json', ['--val', coco]),
        maps=(FCN, masks, '', ['--classes', 'background', 'b', 'c', '--val', masks]),
        probabilities=(RESNET, folders, '.npz', []),
    )[task]
    arguments = [*old_model(tmp_path / 'old', stock, OLD), data, *options, '--batch-size', 2]
    one, two = tmp_path / f'one{suffix}', tmp_path / f'two{suffix}'
    label(*arguments, '--out', one)
    assert begin(*arguments, '--out', two, processes=2).wait() == 0
    for file in [file for file in [one, *one.rglob('*')] if file.is_file()]:
        other = Path(str(file).replace(str(one), str(two)))
        if suffix == '.npz':
            with np.load(file) as a, np.load(other) as b:
                assert all(np.array_equal(a[key], b[key]) for key in a.files)
        else:
            assert file.read_bytes() == other.read_bytes()


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


def bad(*options, **change):
    return pytest.param(options, change, id=' '.join(map(str, options)) or next(iter(change), ''))


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


def test_names_may_be_those_of_a_stock_data_set(coco, tmp_path):
    config, checkpoint = old_model(tmp_path / 'old', RETINANET, [f'class {i}' for i in range(80)])
    out = tmp_path / 'labels.json'
    label(config, checkpoint, coco, '--out', out, '--old-classes', 'coco')
    names = [category['name'] for category in json.loads(out.read_text())['categories']]
    assert (len(names), names[0], names[79:]) == (82, 'person', ['toothbrush', 'a', 'b'])


def test_masks_need_names(masks, tmp_path):
    given = [*old_model(tmp_path / 'old', FCN, OLD), masks, '--out', tmp_path / 'maps']
    done = label(*given, check=False)
    assert done.returncode and '--classes is missing' in done.stdout
    done = label(*given, '--classes', 'background', 'bus', check=False)
    assert done.returncode and 'has the values [2], and there are 2 classes' in done.stdout
    assert not (tmp_path / 'maps').exists()
