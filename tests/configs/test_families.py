"""Every config of configs/<task>/olor takes a step with its real model and pipeline, from a checkpoint with the names of
the one it asks for, and holds back what came out of that."""

import argparse
import functools
import gc
import importlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlparse

import cv2
import numpy as np
import pytest
import torch
import torchvision
import yaml
from conftest import ROOT, load
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from execution import execution_order
from olor_mm.cli.launch import config_file, load_config

CONFIGS = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob('configs/*/olor/*.py'))
# of these the quick tests have the smaller size, or the config for a whole pre-trained model, which builds on this one
SLOW = re.compile('swin-base|(rcnn|dino|retinanet|mask2former|rtmdet|deeplab|upernet).*in1k-to-custom')
CLASSES = ('circle', 'square', 'bar')
SIZES = ('scale', 'scales', 'img_scale', 'crop_size', 'size')  # keys of pipelines and preprocessors


def draw(image: np.ndarray, mask: np.ndarray, number: int, x: int, y: int) -> list[float]:
    """One object, into an image and a mask; its box as x, y, width, height."""
    width, height = ((20, 20), (24, 24), (32, 12))[number]
    image[y : y + height, x : x + width] = np.eye(3)[number] * 200
    mask[y : y + height, x : x + width] = number + 1
    return [float(value) for value in (x, y, width, height)]


@pytest.fixture(scope='module')
def own(tmp_path_factory) -> Path:
    """A copy of the configs in which the user has named data of their own, in the one place for it."""
    root = tmp_path_factory.mktemp('own')
    rng = np.random.default_rng(0)
    for part in ('train', 'val'):
        coco = dict(images=[], annotations=[], categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)])
        for i in range(4):
            image = rng.integers(0, 60, (96, 96, 3), dtype=np.uint8)
            mask = np.zeros((96, 96), np.uint8)
            number = i % len(CLASSES)
            for place in (8, 52):
                x, y, w, h = box = draw(image, mask, number, place, place)
                coco['annotations'].append(
                    dict(
                        id=len(coco['annotations']) + 1, image_id=i, category_id=number + 1, bbox=box, area=w * h,
                        iscrowd=0, segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                    )
                )  # fmt: skip
            coco['images'].append(dict(id=i, file_name=f'{i}.png', width=96, height=96))
            for file, pixels in {
                f'coco_format/{part}/{i}.png': image,
                f'image_mask_folder/images/{part}/{i}.jpg': image,
                f'image_mask_folder/masks/{part}/{i}.png': mask,
                **{f'image_folder/{part}/{name}/{i}.jpg': image for name in CLASSES},
            }.items():
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / file), pixels)
        annotations = root / f'coco_format/annotations/{part}.json'
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(json.dumps(coco))
    shutil.copytree(ROOT / 'configs', root / 'configs')
    for fragment in (root / 'configs/_base_/datasets').glob('*.py'):
        classes = ('background', *CLASSES) if fragment.stem == 'image_mask_folder' else CLASSES
        text = fragment.read_text().replace("data_root='data/custom/'", f"data_root='{root / fragment.stem}/'")
        fragment.write_text(re.sub(r'classes=\(.*\)', f'classes={classes}', text))
    return root


@pytest.fixture
def work_dir(tmp_path):
    """A directory without a checkpoint after the test: those of large models fill a disk, cycles of theirs the memory."""
    yield tmp_path
    (tmp_path / 'source.pth').unlink(missing_ok=True)
    gc.collect()


def stock_of(file: Path) -> str:
    """``library::path`` of the stock config that a config builds on."""
    stock = re.search(r"'(mm\w+::[^']+)'", file.read_text())
    return stock[1] if stock else stock_of(file.parent / re.search(r"_base_ = '(.+)'", file.read_text())[1])


@functools.cache
def stock_config_of(library: str, url: str) -> str | None:
    """The stock config whose checkpoint a URL is, by the library's metafiles; distributions have them on other hosts."""
    path = urlparse(url).path
    for file in (Path(importlib.import_module(library).__file__).parent / '.mim/configs').glob('*/metafile.y*ml'):
        if path in file.read_text():
            listed = yaml.load(file.read_text(), yaml.CSafeLoader)
            for model in listed['Models'] if isinstance(listed, dict) else listed:
                if urlparse(str(model.get('Weights'))).path == path:
                    return f'{library}::{model["Config"].removeprefix("configs/")}'
    return None


def sources(cfg) -> list[dict]:
    """The dicts in a model's config that name a checkpoint."""
    if isinstance(cfg, (list, tuple)):
        return [place for value in cfg for place in sources(value)]
    if not isinstance(cfg, dict):
        return []
    own = [cfg] if cfg.get('type') == 'Pretrained' else []
    return [*own, *(place for value in cfg.values() for place in sources(value))]


def pretrained_weights(cfg: Config, name: str, prefix: str) -> dict[str, torch.Tensor]:
    """Weights with the names and shapes of a checkpoint, none of them what a new model starts from."""
    if Path(name).exists():
        return load(name)['state_dict']
    listed = [stock for library in ('mmdet', 'mmseg', 'mmpretrain') if (stock := stock_config_of(library, name))]
    if name == 'torchvision://resnet50':
        weights = torchvision.models.resnet50().state_dict()
    elif listed:
        stock = Config.fromfile(config_file(listed[0]))
        with DefaultScope.overwrite_default_scope(stock.get('default_scope', listed[0].split('::')[0])):
            weights = MODELS.build(stock.model).state_dict()
    else:  # of a backbone alone
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            weights = MODELS.build(dict(cfg.model.backbone, init_cfg=None)).state_dict()
        # Swin has one norm layer, after its last stage; those of its outputs belong to segmentation
        weights = {prefix + key: value for key, value in weights.items() if not re.match(r'norm\d\.', key)}
    for value in weights.values():
        if value.is_floating_point():
            value.nan_to_num_().clamp_(-1, 1)  # of embeddings that are memory as it was found until init_weights
            value.add_(1e-3)  # in place: heads of RTMDet share layers
    return weights


def reduce(cfg, most: int) -> None:
    """Make images smaller wherever a pipeline or a preprocessor says how large they are."""
    for key, value in cfg.items() if isinstance(cfg, dict) else enumerate(cfg):
        if key in SIZES:
            cfg[key] = smaller(value, most)
        elif isinstance(value, (dict, list, tuple)):
            reduce(value, most)


def smaller(value, most: int):
    return type(value)(smaller(one, most) for one in value) if isinstance(value, (list, tuple)) else min(value, most)


def tiny(config: Path, work_dir: Path, images: int) -> tuple[Config, dict[str, torch.Tensor]]:
    """The config with an iteration and a validation on a few small images, and a file in the place of its checkpoint;
    what is in that, by the names that it has in the model."""
    arguments = dict(config=str(config), cfg_options={}, work_dir=str(work_dir), launcher='none', local_rank=0)
    cfg = load_config(argparse.Namespace(**arguments))
    [place] = sources(cfg.model) or [cfg]
    key, prefix = ('load_from', '') if place is cfg else ('checkpoint', place.get('prefix', ''))
    weights = pretrained_weights(cfg, place[key], prefix)
    if 'num_queries' in cfg.model:  # DINO selects them among the places of an image, of which a small one has few
        cfg.model.num_queries = cfg.model.test_cfg.max_per_img = 50
        weights = {name: value[:50] if name == 'query_embedding.weight' else value for name, value in weights.items()}
    if not Path(place[key]).exists():
        place[key] = str(work_dir / 'source.pth')
        torch.save(dict(state_dict=weights, meta={}), place[key])
    for loader, count in ((cfg.train_dataloader, 2), (cfg.val_dataloader, 1)):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.indices = count
        reduce(loader.dataset.pipeline, images)
    for preprocessor in (cfg.model.get('data_preprocessor'), cfg.get('data_preprocessor')):
        reduce(preprocessor or {}, images)
    rcnn = (cfg.model.get('train_cfg') or {}).get('rcnn')
    for stage in rcnn if isinstance(rcnn, list) else filter(None, [rcnn]):
        stage.sampler.num = 16
    for stage in (cfg.model.get('test_cfg') or {}).values() if rcnn else ():
        stage.max_per_img = 16
    by_epoch = 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.update(dict(max_epochs=1, val_interval=1) if by_epoch else dict(max_iters=1, val_interval=1))
    cfg.default_hooks.checkpoint = None
    cfg.log_level = 'ERROR'
    cfg.randomness = dict(seed=0)
    cfg.experiment_name = str(work_dir).replace('/', '_')
    part = '' if place is cfg else 'backbone.'
    return cfg, {part + key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


@pytest.mark.parametrize(
    'config', [pytest.param(c, marks=[pytest.mark.slow] if SLOW.search(c) else []) for c in CONFIGS]
)
def test_a_step_holds_back_what_is_pretrained(config, own, work_dir, request, monkeypatch, weights_at_once):
    torch.manual_seed(0)
    monkeypatch.chdir(ROOT)
    if 'to-custom' not in config:
        request.getfixturevalue('data')
    # Swin of mmpretrain takes no image whose last stage is smaller than a window
    cfg, weights = tiny(own / config, work_dir, images=224 if 'classification/olor/swin' in config else 64)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1

    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    names = {p: name for name, p in model.named_parameters()}
    level = {names[p]: group['rollback'] for group in optimizer.param_groups for p in group['params']}
    state = {names[p]: entry for p, entry in optimizer.state.items() if 'exp_avg' in entry}
    assert any(entry['step'] == 1 for entry in state.values())
    whole = cfg.load_from is not None
    same = {name for name in weights if name in level and weights[name].shape == model.get_parameter(name).shape}
    # a backbone resizes its own position embedding, a head of other classes is left as it is
    loaded = same if whole else {name for name in weights if name in level}
    new = state.keys() - loaded
    anchored = {name for name, entry in state.items() if 'anchor' in entry}
    assert anchored == {name for name in state.keys() & loaded if level[name] > 0}
    for name in anchored & same:
        assert torch.equal(state[name]['anchor'], weights[name]), name

    if whole:  # only what depends on the number of classes is new
        assert new and new <= weights.keys()
        assert any(not name.startswith('backbone.') for name in anchored)
    else:  # the backbone is not, whatever follows is; Swin's norm layers of outputs are not in its checkpoint
        assert {name for name in new if not re.match(r'backbone\.norm\d\.', name)} == {
            name for name in state if not name.startswith('backbone.')
        }
    assert {level[name] for name in state if not name.startswith('backbone.')} == {3e-3 if whole else 0.0}

    size = 224 if 'swin' in config else 64
    model.eval()
    executed = execution_order(model.backbone, torch.rand(1, 3, size, size))
    along = [level[f'backbone.{name}'] for name in executed if f'backbone.{name}' in anchored]
    assert along == sorted(along, reverse=True) and len(set(along)) > 3
    stem_is_trained = model.backbone.get_parameter(executed[0]).requires_grad
    assert (along[0] == pytest.approx(cfg.optim_wrapper.paramwise_cfg.rollback.max_level)) == stem_is_trained


@pytest.mark.parametrize('config', [config for config in CONFIGS if 'to-custom' in config])
def test_checkpoints_are_those_of_stock_metafiles(config):
    text = (ROOT / config).read_text()
    # strings side by side, as they stand where a line would be too long
    for url in (re.sub(r"'\s+'", '', found) for found in re.findall(r"'(https://[^=#)]+\.pth)'", text)):
        if 'load_from' in text:  # a whole model: of the very config that this one builds on
            stock = stock_of(ROOT / config)
            assert stock_config_of(stock.split('::')[0], url) == stock
        else:
            assert stock_config_of('mmpretrain', url)
    assert text.count('https://') == len(re.findall(r"'https://[^=#)]+\.pth'", text))
