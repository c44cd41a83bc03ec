"""The tools as a user starts them: real configs, real processes, real files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import CLASSIFICATION, ROOT, load, run, tool, train
from jobs import free_port
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.loops import _InfiniteDataloaderIterator

from olor_mm.cli.packaged import config_file

DETECTION = 'configs/detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py'
INSTANCES = 'configs/instance_segmentation/olor/mask-rcnn_mobilenet-v2-fpn_olor_1xb4-6e_composite-160px.py'
SEMANTIC = 'configs/semantic_segmentation/olor/mobilenet-v2-d8_fcn_olor_1xb8-80iter_nuclei-128px.py'
FEW = ('train_dataloader.dataset.indices=8',)
FEW_TESTED = ('val_dataloader.dataset.indices=8', 'test_dataloader.dataset.indices=8')
ONE_EPOCH = ('train_cfg.max_epochs=1', 'train_cfg.val_interval=1')
TASKS = {
    CLASSIFICATION: ('accuracy/top1', (*ONE_EPOCH, *FEW, *FEW_TESTED), 'mmpretrain'),
    DETECTION: ('coco/bbox_mAP', (*ONE_EPOCH, *FEW), 'mmdet'),  # tested on its one image
    INSTANCES: ('coco/segm_mAP', (*ONE_EPOCH, *FEW, *FEW_TESTED), 'mmdet'),
    SEMANTIC: (
        'mIoU',
        ('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2', *FEW_TESTED),
        'mmseg',
    ),
}


def scalars(work_dir: Path) -> list[dict]:
    [file] = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def last_checkpoint(work_dir: Path) -> Path:
    return ROOT / (work_dir / 'last_checkpoint').read_text().strip()


@pytest.mark.parametrize('config', TASKS, ids=lambda config: Path(config).parent.name)
def test_each_task_trains_evaluates_and_tests(data, tmp_path, config):
    metric, options, library = TASKS[config]
    done = train(config, tmp_path, *options)
    assert 'pre-trained and rolled back (backbone' in done.stdout
    trained = [row[metric] for row in scalars(tmp_path) if metric in row]
    assert trained
    checkpoint = load(last_checkpoint(tmp_path))
    kept = [entry['anchor'] for entry in checkpoint['optimizer']['state'].values() if 'anchor' in entry]
    source = load(data / f'weights/mobilenet_v2_{library}.pth')['state_dict']
    convolutions = [value for name, value in source.items() if name.endswith('conv.weight')]
    assert all(any(a.shape == b.shape and torch.equal(a, b) for a in kept) for b in convolutions)

    command = ['tools/test.py', config, last_checkpoint(tmp_path), '--work-dir', tmp_path / 'test']
    written = ['--out', tmp_path / 'predictions.pkl', '--show-dir', tmp_path / 'test/shown']
    few = [option for option in options if option.startswith('test_dataloader')]
    tool(*command, *written, '--cfg-options', *few, 'log_level=INFO')
    [tested] = [json.loads(file.read_text()) for file in (tmp_path / 'test').glob('*/*.json')]
    assert tested[metric] == pytest.approx(trained[-1], abs=1e-6)
    assert (tmp_path / 'predictions.pkl').stat().st_size > 0
    assert list((tmp_path / 'test').rglob('*.png')) or list((tmp_path / 'test').rglob('*.jpg'))


# stock configs with rollback and small data, without a file of one's own
SETTINGS_PAGE = (ROOT / 'docs/en/settings.md').read_text()
README_OPTIONS = re.search(r'--cfg-options \\\n\s*(optim_wrapper\..*?)\n```', SETTINGS_PAGE, re.S)[1]
ONE_STEP = ('default_hooks.checkpoint.interval=1', 'train_dataloader.persistent_workers=False')
STOCK = {
    'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py': (
        'train_dataloader.dataset.data_root=data/trees/',
        'train_dataloader.dataset.ann_file=train.json',
        'train_dataloader.dataset.data_prefix.img=',
        'train_dataloader.dataset.metainfo.classes=("tree",)',
        'train_dataloader.dataset.indices=4',
        'train_dataloader.dataset.pipeline.2.scale=(128,128)',
        'train_cfg.max_epochs=1',
        'model.bbox_head.num_classes=1',
    ),
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': (
        'train_dataloader.dataset.type=BaseSegDataset',
        'train_dataloader.dataset.data_root=data/nuclei',
        'train_dataloader.dataset.data_prefix.img_path=train',
        'train_dataloader.dataset.data_prefix.seg_map_path=train_semantic',
        'train_dataloader.dataset.img_suffix=.png',
        'train_dataloader.dataset.metainfo.classes=("background","nucleus")',
        'train_dataloader.dataset.pipeline.1.reduce_zero_label=False',
        'train_dataloader.dataset.pipeline.2.scale=(128,128)',
        'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
        'data_preprocessor.size=(64,64)',
        'model.data_preprocessor.size=(64,64)',
        'train_cfg.max_iters=2',
        'model.decode_head.num_classes=2',
    ),
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py': (
        'train_dataloader.dataset.data_root=data/digits',
        f'train_dataloader.dataset.metainfo.classes=({",".join(map(repr, "0123456789"))})',
        'train_dataloader.dataset.indices=8',
        'train_dataloader.batch_size=4',
        'train_dataloader.dataset.pipeline.1.scale=64',
        'train_cfg.max_epochs=1',
        'model.head.num_classes=10',
        'data_preprocessor.num_classes=10',
        'param_scheduler=[]',
        'custom_hooks=[]',
    ),
}


@pytest.mark.parametrize('config', STOCK, ids=lambda config: config.split('::')[0])
def test_a_stock_config_gains_rollback_by_the_options_of_the_readme(data, tmp_path, config):
    cfg = Config.fromfile(config_file(config))
    weights = tmp_path / 'weights.pth'
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build({**cfg.model.backbone, 'init_cfg': None})
    torch.save(backbone.state_dict(), weights)
    options = (
        *README_OPTIONS.replace('\\', ' ').split(),
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={weights}',
    )
    done = train(config, tmp_path / 'run', '--no-validate', *options, *STOCK[config], *ONE_STEP)
    trained = sum(p.requires_grad for p in backbone.parameters())
    assert f'pre-trained and rolled back (backbone {trained} of {trained})' in done.stdout
    checkpoint = load(last_checkpoint(tmp_path / 'run'))
    kept = [entry['anchor'] for entry in checkpoint['optimizer']['state'].values() if 'anchor' in entry]
    assert sorted(float(a.double().sum()) for a in kept) == sorted(
        float(p.detach().double().sum()) for p in backbone.parameters() if p.requires_grad
    )


PURE_BASE = """
from mmengine.dataset import DefaultSampler
from mmengine.dataset.utils import default_collate
from mmpretrain.datasets import CustomDataset, LoadImageFromFile, PackInputs
from mmpretrain.models import ClsDataPreprocessor, GlobalAveragePooling, ImageClassifier, LinearClsHead, MobileNetV2

default_scope = 'mmpretrain'
model = dict(
    type=ImageClassifier,
    backbone=dict(type=MobileNetV2, init_cfg=dict(
        type='Pretrained', checkpoint='data/weights/mobilenet_v2_mmpretrain.pth', prefix='backbone.')),
    neck=dict(type=GlobalAveragePooling), head=dict(type=LinearClsHead, num_classes=10, in_channels=1280),
    data_preprocessor=dict(type=ClsDataPreprocessor, num_classes=10))
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type=DefaultSampler), collate_fn=dict(type=default_collate),
    dataset=dict(type=CustomDataset, data_root='data/digits/train', indices=8,
                 pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)]))
train_cfg = dict(by_epoch=True, max_epochs=1)
"""
PURE = """
from mmengine.config import read_base
from mmengine.optim import OptimWrapper
from olor_mm.engine import OLOROptimWrapperConstructor
from olor_mm.optim import AdamWOLOR

with read_base():
    from .pure_base import *

optim_wrapper = dict(
    type=OptimWrapper, constructor=OLOROptimWrapperConstructor, optimizer=dict(type=AdamWOLOR, lr=1e-4),
    paramwise_cfg=dict(rollback=dict(max_level=0.1)))
"""


def test_a_config_in_pure_python_trains(data, tmp_path):
    (tmp_path / 'pure_base.py').write_text(PURE_BASE)
    (tmp_path / 'pure.py').write_text(PURE)
    done = train(tmp_path / 'pure.py', tmp_path / 'run')
    assert 'pre-trained and rolled back (backbone 156 of 156)' in done.stdout
    table = tool('tools/analysis_tools/print_rollback.py', tmp_path / 'pure.py')
    assert 'Rolled back: 156 of 158' in table.stdout


KILLED = {
    # random flips in a worker, random sampling of boxes in the model, checkpoints by epoch
    DETECTION: (
        (
            'train_cfg.max_epochs=4',
            'train_cfg.val_interval=10',
            'param_scheduler.1.end=4',
            'param_scheduler.1.T_max=4',
            'default_hooks.checkpoint.interval=1',
            'default_hooks.checkpoint.max_keep_ckpts=-1',
            *FEW,
        ),
        'epoch_2.pth',
        'epoch_4.pth',
    ),
    # random crops, dropout, checkpoints by iteration
    SEMANTIC: (
        (
            'train_cfg.max_iters=8',
            'train_cfg.val_interval=3',
            'train_dataloader.batch_size=2',
            'val_dataloader.dataset.indices=4',
            'default_hooks.checkpoint.interval=3',
            'default_hooks.checkpoint.max_keep_ckpts=-1',
        ),
        'iter_3.pth',
        'iter_8.pth',
    ),
}


@pytest.mark.parametrize(
    'config', [pytest.param(DETECTION, marks=pytest.mark.slow), SEMANTIC], ids=['by epoch', 'by iteration']
)
def test_killed_run_resumed_by_the_tool_ends_bit_identical(data, tmp_path, config):
    if config == SEMANTIC and not hasattr(_InfiniteDataloaderIterator, 'skip_iter'):
        pytest.skip('this MMEngine loads what it skips; ResumableRandomnessHook warns of it')
    options, at, last = KILLED[config]
    train(config, tmp_path / 'straight', *options)
    process = subprocess.Popen(
        [sys.executable, 'tools/train.py', config, '--work-dir', str(tmp_path / 'killed'), '--cfg-options', *options],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    mark = tmp_path / 'killed/last_checkpoint'
    while process.poll() is None and not (mark.exists() and mark.read_text().endswith(at)):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / 'killed' / last).exists()
    done = train(config, tmp_path / 'killed', '--resume', *options)
    assert 'resumed epoch: ' in done.stdout
    straight, resumed = (load(tmp_path / name / last) for name in ('straight', 'killed'))
    for name, value in straight['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][name]), name
    states = straight['optimizer']['state'], resumed['optimizer']['state']
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][i][key]) for i, entry in states[0].items() for key, value in entry.items())
    assert sum('anchor' in entry for entry in states[0].values()) == (156 if config == DETECTION else 153)


def test_two_processes_train_and_end_with_identical_weights(data, tmp_path):
    config = tmp_path / 'with_hook.py'
    config.write_text(f"""
_base_ = '{ROOT / DETECTION}'
custom_imports = dict(imports=['olor_mm', 'weights_of_every_rank'])
custom_hooks = [*_base_.custom_hooks, dict(type='SaveWeightsOfEveryRank')]
""")
    done = run(
        'bash',
        'tools/dist_train.sh',
        config,
        2,
        '--work-dir',
        tmp_path,
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        *FEW,
        PYTHONPATH=f'{ROOT / "tests/tools"}{os.pathsep}{os.environ.get("PYTHONPATH", "")}',
        PORT=str(free_port()),
        OMP_NUM_THREADS='1',
    )
    assert 'Distributed training: True' in done.stdout and 'GPU number: 2' in done.stdout
    first, second = (load(tmp_path / f'rank_{rank}.pth') for rank in (0, 1))
    assert first['weights'].keys() == second['weights'].keys()
    for name, value in first['weights'].items():
        assert torch.equal(value, second['weights'][name]), name
    assert len(first['anchors']) == len(second['anchors']) == 156
    source = load(data / 'weights/mobilenet_v2_mmdet.pth')['state_dict']
    for name, anchor in first['anchors'].items():
        assert torch.equal(anchor, second['anchors'][name])
        assert torch.equal(anchor, source[name.removeprefix('backbone.')])


def test_a_wrong_setting_stops_the_tool_before_training(data, tmp_path):
    """In a process of its own, as are the trainings above that are killed or are of two processes."""
    wrong = 'optim_wrapper.paramwise_cfg.rollback.max_level=1.5'
    done = train(CLASSIFICATION, tmp_path, wrong, check=False, alone=True)
    assert done.returncode and 'max_level=1.5' in done.stdout.strip().splitlines()[-1]
    assert 'Traceback' not in done.stdout and 'Epoch(train)' not in done.stdout and not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh'])
def test_a_script_without_arguments_shows_its_usage(script):
    done = run('bash', f'tools/{script}', check=False)
    assert done.returncode == 2 and done.stdout.startswith('usage: ')
