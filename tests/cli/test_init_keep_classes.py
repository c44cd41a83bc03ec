"""`init --keep-classes`: from a trained model and a folder with new classes to a config that keeps the old ones."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import init
from conftest import ROOT, tool
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image
from test_init import OWN

TASKS = ('classification', 'detection', 'instance_segmentation', 'semantic_segmentation')
OLD = dict(classification=['x', 'old y', 'z'], semantic_segmentation=['background', 'rope', 'B'])  # the old classes
OLD |= dict(detection=['B', 'dog'], instance_segmentation=['B', 'dog'])
LIBRARY = dict(classification='mmpretrain', semantic_segmentation='mmseg')


def trained(task: str, folder: Path, data: Path, classes: list[str] | None = None) -> tuple[Path, Path]:
    """Config and checkpoint of a small model; it has learned nothing, but for what its backbone has."""
    classes = OLD[task] if classes is None else classes
    library = LIBRARY.get(task, 'mmdet')
    count = f'num_classes={len(OLD[task])}'
    head = dict(
        classification=f'head=dict({count}, topk=(1,))',
        detection=f'roi_head=dict(bbox_head=dict({count}))',
        instance_segmentation=f'roi_head=dict(bbox_head=dict({count}), mask_head=dict({count}))',
        semantic_segmentation=f'decode_head=dict({count}), auxiliary_head=dict({count})',
    )[task]
    weights = data / f'weights/mobilenet_v2_{library}.pth'
    backbone = f'backbone=dict(init_cfg=dict(checkpoint={str(weights)!r}))'
    config = folder / 'old.py'
    config.write_text(f'_base_ = {str(ROOT / OWN[task])!r}\nmodel = dict({head}, {backbone})\n')
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope(library):
        model = MODELS.build(cfg.model)
        model.init_weights()
    meta = dict(dataset_meta=dict(classes=tuple(classes))) if classes else {}
    checkpoint = folder / 'old.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), checkpoint)
    return config, checkpoint


def keep(task, new, config, checkpoint, out, *options) -> list[str]:
    names = ['--classes', 'background', 'b', 'cat'] if task == 'semantic_segmentation' else []
    start = ['--task', task, '--config', config, '--checkpoint', checkpoint, '--out', out, '--keep-classes']
    init(new[task], *start, *names, '--epochs', 1, *options)


def commands(said: str) -> list[list[str]]:
    return [shlex.split(line) for line in said.splitlines() if line.startswith('    python -m olor_mm ')]


EXPECTED = dict(
    classification=['x', 'old y', 'z', 'v'],
    detection=['B', 'dog', 'a'],
    instance_segmentation=['B', 'dog', 'a'],
    semantic_segmentation=['background', 'rope', 'B', 'cat'],
)


@pytest.mark.parametrize('task', TASKS)
def test_labels_mean_the_same_class_in_all_data(task, new, old, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {file: file.read_bytes() for folder in (new, old) for file in folder[task].rglob('*') if file.is_file()}
    keep(task, new, *trained(task, tmp_path, data), 'both.py', '--replay', old[task], '--replay-images', 3)
    said = capsys.readouterr().out
    assert len(commands(said)) == 4 and commands(said)[0][3] == 'label'
    cfg = Config.fromfile('both.py')
    assert list(cfg.classes) == EXPECTED[task] and list(cfg.old_classes) == OLD[task]
    stand_in_labels(task, cfg, new[task])
    scope = cfg.default_scope
    with DefaultScope.overwrite_default_scope(scope):
        train, val = DATASETS.build(cfg.train_dataloader.dataset), DATASETS.build(cfg.val_dataloader.dataset)
        for dataset in (train, val):
            assert list(dataset.metainfo['classes']) == EXPECTED[task]
            assert_right(task, dataset, new[task], old[task])
    shown = {int(label) for index in range(len(train)) for label in labels_of(task, train, index)}
    assert shown == {*range(len(EXPECTED[task]))}
    count = sum(1 for index in range(len(train)) if str(old[task]) in train.get_data_info(index)['img_path'])
    assert count == 3
    assert before == {file: file.read_bytes() for file in before}, 'the data stays as it is'


def stand_in_labels(task: str, cfg: Config, new: Path) -> None:
    """What `label` writes, without labels of the old model."""
    dataset = cfg.train_dataloader.dataset.datasets[0]
    if task == 'classification':
        for part in (dataset, cfg.train_dataloader.dataset.datasets[1].dataset):
            part.pipeline = [step for step in part.pipeline if step.type != 'olor_mm.OldProbabilities']
    elif task == 'semantic_segmentation':
        folder = Path(dataset.data_prefix.seg_map_path)
        folder.mkdir()
        for mask in (new / 'masks').glob('*.png'):
            Image.fromarray(np.array([0, 2, 3], np.uint8)[np.asarray(Image.open(mask))]).save(folder / mask.name)
    else:
        file = next(Path().glob('both_train.json'))
        content = json.loads(file.read_text())
        for annotation in content['annotations']:
            annotation['category_id'] = {1: 3, 2: 1}[annotation['category_id']]
        content['categories'] = [dict(id=i + 1, name=name) for i, name in enumerate(EXPECTED[task])]
        Path(dataset.ann_file).write_text(json.dumps(content))


def labels_of(task: str, dataset, index: int) -> list:
    info = dataset.get_data_info(index)
    if task == 'classification':
        return [info['gt_label']]
    if task == 'semantic_segmentation':
        return [*np.unique(np.asarray(Image.open(info['seg_map_path'])))]
    return [instance['bbox_label'] for instance in info['instances']]


def assert_right(task: str, dataset, new: Path, old: Path) -> None:
    names = [name.lower().replace(' ', '_') for name in EXPECTED[task]]
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        file = Path(info['img_path'])
        assert file.is_file()
        found = [names[int(label)] for label in labels_of(task, dataset, index)]
        if task == 'classification':
            assert found == [file.parent.name.lower()]
        elif task == 'semantic_segmentation':
            values = np.unique(np.asarray(Image.open(file.parents[1] / f'masks/{file.stem}.png')))
            own = ('background', 'b', 'cat') if new in file.parents else ('background', 'rope', 'b')
            assert found == [own[value] for value in values]
        else:
            truth = 'ab' * 3 if new in file.parents else ('dog', 'b', 'dog', 'b', None, 'b')
            assert found == [name for name in [truth[int(file.stem)]] if name]


def test_old_data_can_be_for_tests_alone_and_nothing_is_measured_without(new, old, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = trained('detection', tmp_path, data)
    keep('detection', new, *files, 'tested.py', '--replay', old['detection'], '--replay-images', 0)
    capsys.readouterr()
    keep('detection', new, *files, 'alone.py')
    assert 'nothing measures the old classes' in capsys.readouterr().out
    tested, alone = (Config.fromfile(f'{name}.py') for name in ('tested', 'alone'))
    for cfg, images in ((tested, 2), (alone, 1)):
        assert cfg.train_dataloader.dataset.type == 'CocoDataset'
        assert len(json.loads(Path(cfg.val_evaluator.ann_file).read_text())['images']) == images
    rollback = [cfg.optim_wrapper.paramwise_cfg.rollback for cfg in (tested, alone)]
    assert rollback[0] == rollback[1] and rollback[0].min_level == rollback[0].max_level
    assert 'ClassTransferHook' in str(alone.custom_hooks[-1]) and len(alone.custom_hooks) == 3


def test_images_of_a_class_are_shown_more_often_for_a_larger_share(new, old, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = trained('detection', tmp_path, data)
    for share, times in ((0.1, 1), (0.5, 2), (0.8, 10)):  # five new images, two old ones
        options = ['--replay', old['detection'], '--replay-images', 2, '--replay-share', share, '--force']
        keep('detection', new, *files, 'both.py', *options)
        assert Config.fromfile('both.py').train_dataloader.dataset.datasets[1].times == times


BAD = [
    (dict(), ['--checkpoint', 'none.pth'], 'none.pth'),
    (dict(classes=[]), [], 'no names of classes.*--old-classes'),
    (dict(classes=['B', 'dog', 'cat']), [], r"\[2\] classes and .* 3 names, \['B', 'dog', 'cat'\]"),
    (dict(classes=['b', 'a']), [], r"\['a', 'b'\] is new"),
    (dict(), ['--replay-images', '0', '--old-classes', 'A', 'a'], "'A', 'a'.* collide|collide"),
    (dict(), ['--aliases', 'z=dog'], "'z'.* is no new class.*'a', 'b'"),
    (dict(), ['--aliases', 'a=cow'], "'cow' is no old class.*'B', 'dog'"),
    (dict(), ['--aliases', 'a=B'], 'collide'),
    (dict(), ['--replay', 'none'], 'none.*is not a folder'),
    (dict(), ['--replay', '{old}', '--replay-images', '1'], '--replay-images 1: .*--replay-images 2'),
    (dict(), ['--replay', '{old}', '--replay-share', '1.5'], '--replay-share 1.5'),
    (dict(classes=['cow', 'ox']), ['--replay', '{old}'], r"\['b', 'dog', 'tree'\].*\['cow', 'ox'\]"),
]


@pytest.mark.parametrize('model, options, message', BAD)
def test_what_cannot_be_kept_is_refused_with_its_reason(model, options, message, new, old, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = trained('detection', tmp_path, data, **model)
    options = [option.format(old=old['detection']) for option in options]
    with pytest.raises(SystemExit, match=message):
        keep('detection', new, *files, 'both.py', *options)
    assert not Path('both.py').exists() and not [*tmp_path.glob('both*')]


def test_options_of_keep_classes_need_it(new, data, tmp_path):
    config, checkpoint = trained('detection', tmp_path, data)
    for option in (['--replay', new['detection']], ['--old-classes', 'a', 'b'], ['--aliases', 'a=b']):
        with pytest.raises(SystemExit, match=f'{option[0]} needs --keep-classes'):
            init(new['detection'], '--task', 'detection', '--config', config, '--checkpoint', checkpoint, *option)


STOCK = [
    ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', 'detection'),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', 'instance_segmentation'),
            ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', 'detection'),
            ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', 'detection'),
            ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', 'detection'),
            ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py', 'instance_segmentation'),
            ('mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py', 'semantic_segmentation'),
            ('mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py', 'semantic_segmentation'),
            ('mmpretrain::resnet/resnet18_8xb32_in1k.py', 'classification'),
            ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 'classification'),
        ]
    ),
]


@pytest.mark.parametrize('config, task', STOCK)
def test_a_stock_model_of_a_stock_data_set_learns_more_classes(
    config, task, new, tmp_path, monkeypatch, weights_at_once
):
    monkeypatch.chdir(tmp_path)
    scope, _, path = config.partition('::')
    stock = Config.fromfile(Path(__import__(scope).__file__).parent / '.mim/configs' / path)
    stock.model.pop('pretrained', None)
    with DefaultScope.overwrite_default_scope(scope):
        torch.save(MODELS.build(stock.model).state_dict(), 'stock.pth')
    name = dict(mmdet='coco', mmseg='ade20k', mmpretrain='imagenet')[scope]
    keep(task, new, config, 'stock.pth', 'both.py', '--old-classes', name)
    cfg = Config.fromfile('both.py')
    assert len(cfg.classes) > len(cfg.old_classes) == dict(coco=80, ade20k=150, imagenet=1000)[name]
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    counts = {
        m.num_classes
        for n, m in model.named_modules()
        if type(getattr(m, 'num_classes', None)) is int and 'rpn' not in n
    }
    assert counts == {len(cfg.classes)}
    assert not [key for key in re.findall(r'ignore_iof_thr=([-\d.]+)', str(cfg.model)) if float(key) <= 0]


@pytest.mark.parametrize(
    'task, replay',
    [('classification', 3), *(pytest.param(task, n, marks=pytest.mark.slow) for task in TASKS for n in (0, 3))],
)
def test_the_printed_commands_work_as_they_are(task, replay, new, old, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ['--replay', old[task], '--replay-images', replay, '--batch-size', 2]
    keep(task, new, *trained(task, tmp_path, data), 'both.py', *options)
    printed = commands(capsys.readouterr().out)
    assert [words[3] for words in printed] == ['label', 'print_rollback', 'train', 'test']
    said = [tool('olor_mm', *words[3:], folder=tmp_path).stdout for words in printed]
    kept = re.search(r'ClassTransferHook: (\d) of (\d) classes', said[2])
    assert kept and [int(number) for number in kept.groups()] == [len(OLD[task]), len(EXPECTED[task])]
    metric = dict(classification='accuracy/top1', semantic_segmentation='mIoU', detection='coco/bbox_mAP').get(task)
    for group in (
        '_old',
        '_all',
        '',
        *['_new'] * (metric in ('accuracy/top1', 'mIoU')),
    ):  # no box of a is in the val set
        assert f'{metric or "coco/segm_mAP"}{group}: ' in said[3]
    [scalars] = (tmp_path / 'work_dirs/both').glob('*/vis_data/scalars.json')
    assert f'{metric or "coco/segm_mAP"}_old' in scalars.read_text().splitlines()[-1]
    checkpoint = torch.load(tmp_path / 'work_dirs/both/epoch_1.pth', weights_only=False)
    assert list(checkpoint['meta']['dataset_meta']['classes']) == EXPECTED[task]


def test_old_masks_in_which_zero_is_no_class_are_read_as_the_old_config_says(new, old, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = trained('semantic_segmentation', tmp_path, data, ['rope', 'B', 'wall'])
    pipeline = "dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='PackSegInputs')"
    with open(config, 'a') as file:
        file.write(f'train_dataloader = dict(dataset=dict(pipeline=[{pipeline}]))\n')
    options = ['--replay', old['semantic_segmentation'], '--replay-images', 2]
    keep('semantic_segmentation', new, config, checkpoint, 'both.py', *options)
    cfg = Config.fromfile('both.py')
    assert list(cfg.classes) == ['rope', 'B', 'wall', 'background', 'cat']
    replay = cfg.train_dataloader.dataset.datasets[1].dataset
    for name in Path(replay.ann_file).read_text().splitlines():
        before = np.asarray(Image.open(old['semantic_segmentation'] / f'masks/{name}.png'))
        after = np.asarray(Image.open(Path(replay.data_prefix.seg_map_path) / f'{name}.png'))
        assert (after == np.array([255, 0, 1], np.uint8)[before]).all()
    with DefaultScope.overwrite_default_scope('mmseg'):
        sample = DATASETS.build(replay)[0]['data_samples'].gt_sem_seg.data
    assert {*sample.unique().tolist()} == {0, 1, 255}


class OwnHead(torch.nn.Module):
    """A head that nobody knows."""

    def __init__(self, num_classes, **_):
        super().__init__()
        self.num_classes, self.scores = num_classes, torch.nn.Parameter(torch.zeros(1280, num_classes + 2))


def test_a_head_of_an_unknown_layout_is_refused(new, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        MODELS.register_module(module=OwnHead, force=True)
        try:
            config, checkpoint = trained('classification', tmp_path, data)
            text = config.read_text().replace('head=dict(', "head=dict(_delete_=True, type='OwnHead', ")
            config.write_text(text)
            state = MODELS.build(Config.fromfile(config).model).state_dict()
            torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=OLD['classification']))), checkpoint)
            with pytest.raises(SystemExit, match="'head'"):
                keep('classification', new, config, checkpoint, 'both.py')
        finally:
            MODELS.module_dict.pop('OwnHead')


def test_folders_with_codes_for_names_are_taken_in_the_order_of_the_classes(
    new, old, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    codes = dict(Old_Y='n03', x='n01', z='n02')
    for name, code in codes.items():
        (old['classification'] / name).rename(old['classification'] / code)
    options = ['--replay', old['classification'], '--replay-images', 3]
    keep('classification', new, *trained('classification', tmp_path, data), 'both.py', *options)
    assert 'its folders are taken for the old classes' in capsys.readouterr().out
    rows = Path('both_replay.txt').read_text().splitlines()
    assert sorted((Path(row).parent.name, row.rsplit(' ', 1)[1]) for row in rows) == [
        *zip(('n01', 'n02', 'n03'), '012')
    ]


def test_only_the_classes_that_are_asked_for_are_labelled_and_learned(new, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    keep('detection', new, *trained('detection', tmp_path, data), 'both.py', '--classes', 'a')
    words = commands(capsys.readouterr().out)[0]
    assert words[words.index('--classes') + 1 :] == ['a']
    said = tool('olor_mm', *words[3:], folder=tmp_path).stdout
    names = [category['name'] for category in json.loads(Path('both_labels.json').read_text())['categories']]
    assert names == [*Config.fromfile('both.py').classes] == ['B', 'dog', 'a'], said
