import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import init
from conftest import CLASSIFICATION, ROOT, train
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image

OWN = dict(
    classification=CLASSIFICATION,
    detection='configs/detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py',
    instance_segmentation='configs/instance_segmentation/olor/mask-rcnn_mobilenet-v2-fpn_olor_1xb4-6e_composite-160px.py',
    semantic_segmentation='configs/semantic_segmentation/olor/mobilenet-v2-d8_fcn_olor_1xb8-80iter_nuclei-128px.py',
)
DATA = dict(
    classification=('digits', 'mmpretrain'),
    detection=('trees', 'mmdet'),
    instance_segmentation=('composite', 'mmdet'),
    semantic_segmentation=('nuclei', 'mmseg'),
)
STOCK = [
    ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'detection'),
    ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'detection'),
    ('mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', 'semantic_segmentation'),
    ('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', 'classification'),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'detection'),
            ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', 'detection'),
            ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', 'detection'),
            ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'instance_segmentation'),
            ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 'instance_segmentation'),
            ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 'instance_segmentation'),
            ('mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py', 'instance_segmentation'),
            ('mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', 'semantic_segmentation'),
            ('mmseg::fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py', 'semantic_segmentation'),
            ('mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512.py', 'semantic_segmentation'),
            ('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', 'semantic_segmentation'),
            ('mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py', 'semantic_segmentation'),
            ('mmpretrain::resnet/resnet50_8xb32_in1k.py', 'classification'),
            ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 'classification'),
            ('mmpretrain::vision_transformer/vit-base-p16_64xb64_in1k.py', 'classification'),
        ]
    ),
]


@pytest.mark.parametrize(
    'task', ['classification', *(pytest.param(task, marks=pytest.mark.slow) for task in list(DATA)[1:])]
)
def test_what_is_written_trains_and_is_tested(task, data, tmp_path):
    name, library = DATA[task]
    out = tmp_path / 'own.py'
    weights = data / f'weights/mobilenet_v2_{library}.pth'
    init(
        data / name, '--task', task, '--config', ROOT / OWN[task], '--checkpoint', weights, '--epochs', 1, '--out', out
    )
    two = ['train_dataloader.batch_size=2', 'train_dataloader.dataset.indices=4', 'val_dataloader.dataset.indices=2']
    done = train(out, tmp_path / 'run', *two, 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0')
    assert re.search(r'are pre-trained and rolled back \(backbone (\d+) of \1\b', done.stdout)
    best = {'classification': 'accuracy', 'semantic_segmentation': 'mIoU'}.get(task, 'coco')
    assert list((tmp_path / 'run').glob(f'best_{best}*.pth')) and (tmp_path / 'run/epoch_1.pth').is_file()
    checkpoint = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    assert checkpoint['meta']['iter'] == 2


def test_the_config_in_a_work_dir_leads_to_a_run_in_another_one(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(ROOT / CLASSIFICATION)
    cfg.merge_from_dict(dict(work_dir='work_dirs/first', resume=True))
    cfg.dump('first.py')
    weights = data / 'weights/mobilenet_v2_mmpretrain.pth'
    options = '--task', 'classification', '--config', 'first.py', '--checkpoint', weights
    init(data / 'digits', *options, '--out', 'second.py')
    second = Config.fromfile('second.py')
    assert second.work_dir is None and not second.resume


@pytest.mark.parametrize('config, task', STOCK)
def test_stock_configs_get_the_classes_of_the_data(config, task, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixture = dict(classification='folders', semantic_segmentation='masks').get(task, 'coco')
    classes = dict(folders=['x', 'y', 'z'], masks=['class 0', 'class 1', 'class 2'], coco=['a', 'b'])[fixture]
    folder = request.getfixturevalue(fixture)
    scope = config.partition('::')[0]
    options = []
    if scope == 'mmpretrain' or 'yolox' in config:  # trained from scratch
        stock = Config.fromfile(Path(__import__(scope).__file__).parent / '.mim/configs' / config.partition('::')[2])
        with DefaultScope.overwrite_default_scope(scope):
            torch.save(MODELS.build(dict(stock.model)).state_dict(), 'weights.pth')
        options = ['--checkpoint', 'weights.pth']
    init(folder, '--task', task, '--config', config, '--out', 'own.py', *options)
    cfg = Config.fromfile('own.py')
    assert list(cfg.classes) == classes
    with DefaultScope.overwrite_default_scope(scope):
        cfg.model.pop('pretrained', None)
        model = MODELS.build(cfg.model)
        loaders = [cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]
        train_set, val_set = (DATASETS.build(loader) for loader in loaders)
        for dataset in (train_set, val_set):
            assert list(dataset.metainfo['classes']) == classes and dataset[0]['inputs'].ndim == 3
        assert len(val_set) == dict(folders=3, masks=1, coco=1)[fixture]
    counts = {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int) and 'rpn' not in name
    }
    assert counts and set(counts.values()) == {len(classes)}, counts
    steps = cfg.train_cfg.max_epochs * -(-len(train_set) // cfg.train_dataloader.batch_size)
    assert cfg.param_scheduler[0].end <= steps / 10 or cfg.param_scheduler[0].type == 'CosineAnnealingLR'
    assert not list(folder.rglob('own*')), 'nothing is written into the folder of the data'


def drop_annotations(folder):
    (folder / 'train/_annotations.coco.json').unlink()


def edit(change):
    def damage(folder):
        file = folder / 'train/_annotations.coco.json'
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return damage


def copy_to_test(folder):
    shutil.copytree(folder / 'train', folder / 'test')


RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
BAD_COCO = {
    'no annotation file': drop_annotations,
    'is not JSON': lambda folder: (folder / 'train/_annotations.coco.json').write_text('{'),
    'has no categories': edit(lambda content: content.pop('categories')),
    'has no images': edit(lambda content: content.update(images=[])),
    'are nowhere in': lambda folder: [file.unlink() for file in (folder / 'train').glob('*.png')],
    'images that are not there: 1, first .*3.png': lambda folder: (folder / 'train/3.png').unlink(),
    'images that cannot be read: 1, first .*3.png': lambda folder: (folder / 'train/3.png').write_bytes(b'no image'),
    'another size .*: 1, first .*60x40, .*61x40': edit(lambda content: content['images'][0].update(width=61)),
    r'outside .*: 1, first annotation 2, bbox \[50, 6, 30, 10\] in 60x40': edit(
        lambda content: content['annotations'][2].update(bbox=[50, 6, 30, 10])
    ),
    r'less than a pixel.*: 6, first annotation 0, bbox \[0.1': edit(
        lambda content: [a.update(bbox=[0.1, 0.1, 0.2, 0.2]) for a in content['annotations']]
    ),
    'too few images': edit(
        lambda content: content.update(images=content['images'][:1], annotations=content['annotations'][:1])
    ),
    'unknown category_id: 1, first annotation 4, category_id 9': edit(
        lambda content: content['annotations'][4].update(category_id=9)
    ),
    r"_annotations.coco.json' has the categories \['a', 'b', 'a'\]": edit(
        lambda content: content['categories'].append(dict(id=3, name='a'))
    ),
    'all 6 validation images': copy_to_test,
    'several annotation files': lambda folder: (folder / 'train/more.json').write_text('{}'),
}


@pytest.mark.parametrize('message', BAD_COCO)
def test_boxes_that_are_not_what_they_seem_are_refused(message, coco, tmp_path, capsys):
    BAD_COCO[message](coco)
    with pytest.raises(SystemExit) as refused:
        init(coco, '--task', 'detection', '--config', RETINANET, '--out', tmp_path / 'own.py')
    assert_said(message, refused, capsys)
    assert not list(tmp_path.glob('*.*')), 'nothing was written'


@pytest.mark.parametrize('chosen', [(), ('--classes', 'b', 'a')])
def test_labels_mean_the_same_in_training_and_validation_whatever_the_order(chosen, coco, tmp_path, capsys):
    shutil.copytree(coco / 'train', coco / 'val')
    file = coco / 'val/_annotations.coco.json'
    content = json.loads(file.read_text())
    content['categories'].reverse()
    for image in content['images']:
        path = coco / 'val' / image['file_name']
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)  # not those of training
    file.write_text(json.dumps(content))
    init(coco, '--task', 'detection', '--config', RETINANET, '--out', tmp_path / 'own.py', *chosen)
    assert 'in the order of training' in capsys.readouterr().out
    cfg = Config.fromfile(tmp_path / 'own.py')
    names = {category['id']: category['name'] for category in content['categories']}
    truth = {
        (image['file_name'], tuple(a['bbox'])): names[a['category_id']]
        for image in content['images']
        for a in content['annotations']
        if a['image_id'] == image['id']
    }
    with DefaultScope.overwrite_default_scope('mmdet'):
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            dataset = DATASETS.build(loader.dataset)
            for info in map(dataset.get_data_info, range(len(dataset))):
                for instance in info['instances']:
                    x1, y1, x2, y2 = instance['bbox']
                    name = dataset.metainfo['classes'][instance['bbox_label']]
                    assert name == truth[Path(info['img_path']).name, (x1, y1, x2 - x1, y2 - y1)]


def assert_said(message, refused, capsys) -> None:
    told = f'{refused.value} {capsys.readouterr().err}'
    assert re.search(message, told), told


def mask(values):
    def damage(folder):
        for file in (folder / 'masks').glob('*.png'):
            Image.fromarray(values(np.asarray(Image.open(file)))).save(file)

    return damage


BAD_MASKS = {
    'has no folder of images beside one of masks': lambda folder: shutil.rmtree(folder / 'masks'),
    'images without a mask .png: 1, first .*2.jpg': lambda folder: (folder / 'masks/2.png').unlink(),
    r'values \[9\], first in .*; the 3 classes are 0 to 2': mask(
        lambda values: np.where(values == 1, 9, values).astype(np.uint8)
    ),
    r'values \[0, 255\].* write a class as 1': mask(lambda values: (values > 0).astype(np.uint8) * 255),
    r'masks/\d.png has colours \(RGB\)': mask(lambda values: np.stack([values] * 3, -1)),
    'of another size than annotated: 5, first .*48x32, annotated as 32x48': mask(
        lambda values: np.ascontiguousarray(values.T)
    ),
    r"end with \['.jpg', '.png'\]": lambda folder: (folder / 'images/0.jpg').rename(folder / 'images/0.png'),
}


@pytest.mark.parametrize('message', BAD_MASKS)
def test_masks_that_are_not_what_they_seem_are_refused(message, masks, tmp_path, capsys):
    BAD_MASKS[message](masks)
    stock = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
    with pytest.raises(SystemExit) as refused:
        init(
            masks, '--task', 'semantic_segmentation', '--config', stock, '--classes', *'abc', '--out', tmp_path / 'o.py'
        )
    assert_said(message, refused, capsys)


BAD_FOLDERS = {
    'class folders without images: 1, first .*new': lambda folder: (folder / 'new').mkdir(),
    'has 1 folders': lambda folder: [shutil.rmtree(folder / name) for name in 'xy'],
    'images that cannot be read: 1': lambda folder: (folder / 'x/broken.jpg').write_bytes(b'\xff\xd8\xff'),
}


@pytest.mark.parametrize('message', BAD_FOLDERS)
def test_folders_that_are_not_what_they_seem_are_refused(message, folders, tmp_path, capsys):
    BAD_FOLDERS[message](folders)
    with pytest.raises(SystemExit) as refused:
        init(folders, '--task', 'classification', '--config', ROOT / CLASSIFICATION, '--out', tmp_path / 'own.py')
    assert_said(message, refused, capsys)


def test_configs_and_weights_that_do_not_fit_are_refused(coco, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [
        (
            coco,
            'detection',
            'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
            [],
            'is of the task instance_segmentation',
        ),
        (
            coco,
            'detection',
            'mmseg::fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512.py',
            [],
            'of the task semantic_segmentation',
        ),
        (coco, 'detection', 'mmdet::retinanet/none.py', [], 'is not a file'),
        (
            coco,
            'detection',
            'mmdet::retinanet_r18_fpn_1x_coco',
            [],
            'did you mean .*mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        ),
        (folders, 'classification', 'mmpretrain::resnet/resnet50_8xb32_in1k.py', [], 'names no pre-trained weights'),
        (coco, 'detection', RETINANET, ['--checkpoint', 'none.pth'], '--checkpoint none.pth is not a file'),
        (coco, 'detection', RETINANET, ['--checkpoint', 'other.pth'], 'other.pth does not fit the model: .* 0%'),
        (coco, 'detection', RETINANET, ['--epochs', '0'], '--epochs 0 is not above 0'),
        (coco, 'detection', RETINANET, ['--out', 'own.txt'], "--out 'own.txt'"),
        (coco, 'detection', RETINANET, ['--classes', 'z'], r"\['z'\] of the classes are not there"),
        (tmp_path / 'none', 'detection', RETINANET, [], 'is not a folder'),
    ]
    torch.save(dict(state_dict=dict(weight=torch.ones(2))), 'other.pth')
    for folder, task, config, options, message in cases:
        with pytest.raises(SystemExit, match=message):
            init(folder, '--task', task, '--config', config, *options)
    with pytest.raises(SystemExit, match='--task is missing'):
        init(coco)  # not on a terminal
    assert not list(tmp_path.glob('*.py'))


def test_a_validation_set_is_split_off_and_problems_can_be_overruled(coco, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    edit(lambda content: content['categories'].append(dict(id=3, name='c')))(coco)
    edit(lambda content: content['annotations'][2].update(bbox=[50, 6, 30, 10]))(coco)
    init(coco, '--task', 'detection', '--config', RETINANET, '--force')
    cfg = Config.fromfile('boxes_detection.py')
    parts = [json.loads(Path(cfg[f'{split}_dataloader'].dataset.ann_file).read_text()) for split in ('train', 'val')]
    assert [len(part['images']) for part in parts] == [5, 1]
    ids = [{image['id'] for image in part['images']} for part in parts]
    assert not ids[0] & ids[1]
    assert all({a['image_id'] for a in part['annotations']} == own for part, own in zip(parts, ids))
    assert cfg.model.bbox_head.num_classes == 3
    said = capsys.readouterr()
    assert '1 of 6 images were split off' in said.out and 'problem: _annotations.coco.json: boxes' in said.err
    edit(lambda content: content['annotations'][2].update(bbox=[30, 6, 30, 10]))(coco)
    with pytest.raises(SystemExit, match='is there already'):
        init(coco, '--task', 'detection', '--config', RETINANET, '--classes', 'a', 'b')


@pytest.mark.skipif(sys.platform == 'win32', reason='no pseudo terminals')
def test_it_asks_on_a_terminal(coco, tmp_path, monkeypatch, capsys):
    import pty

    keyboard, screen = pty.openpty()
    os.write(keyboard, f'{coco}\ndetection\n{RETINANET}\n\n'.encode())
    monkeypatch.chdir(tmp_path)
    with os.fdopen(screen) as terminal:
        monkeypatch.setattr(sys, 'stdin', terminal)
        init()
    assert 'Config to start from [mmdet::faster_rcnn' in capsys.readouterr().out
    assert (tmp_path / 'boxes_detection.py').is_file()
