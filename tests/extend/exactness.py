"""Stock models made small, data for them, and what they predict."""

import copy
import importlib
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData, PixelData

from olor_mm.extend.exact import exact_config

NEW = ['new', 'newer']
SIZE = 96  # pixels of an image
WIDTHS = {
    *('in_channels', 'out_channels', 'feat_channels', 'channels', 'stacked_convs_channels', 'embed_dims', 'num_feats'),
    *(
        'fc_out_channels',
        'conv_out_channels',
        'roi_feat_channels',
        'feedforward_channels',
        'c1_in_channels',
        'c1_channels',
    ),
    *('stem_channels', 'base_channels', 'mask_feature_channels', 'mask_out_channels', 'mid_channels', 'ffn_channels'),
}


def _narrow(node, by: int):
    if isinstance(node, dict):
        return {key: _width(value, by) if key in WIDTHS else _narrow(value, by) for key, value in node.items()}
    return [_narrow(value, by) for value in node] if isinstance(node, (list, tuple)) else node


def _width(value, by: int):
    if isinstance(value, (list, tuple)):
        return [_width(part, by) for part in value]
    return value // by if isinstance(value, int) and value >= 48 else value


def read(name: str) -> Config:
    scope, _, path = name.partition('::')
    return Config.fromfile(Path(importlib.import_module(scope).__file__).parent / '.mim/configs' / path)


def stock(name: str, is_wide: bool = False) -> Config:
    """A stock config as it is but for widths, thresholds below which nothing is predicted, and pre-trained weights."""
    cfg = read(name)
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.backbone.pop('pretrained', None)
    for part in (cfg.model, cfg):
        preprocessor = part.get('data_preprocessor') or {}
        preprocessor.pop('batch_augments', None)  # which ask a Runner
        if 'size' in preprocessor:
            preprocessor.size = (SIZE, SIZE)
    if cfg.model.backbone.type.startswith('ResNet') and not is_wide:  # others are small as they are
        cfg.model.backbone.setdefault('base_channels', 64)
        cfg.model.backbone.setdefault('stem_channels', 64)
        cfg = Config(dict(cfg.to_dict(), model=_narrow(cfg.model.to_dict(), 4)))
    test_cfg = cfg.model.get('test_cfg') or {}
    for options in (test_cfg, *test_cfg.values()):
        for key in ('score_thr', 'max_per_img') if isinstance(options, dict) else ():
            if key in options:
                options[key] = dict(score_thr=0.0, max_per_img=20)[key]
    return cfg


def old_classes(cfg: Config) -> list[str]:
    head = cfg.model.get('decode_head', {})
    head = head[-1] if isinstance(head, (list, tuple)) else head
    return [f'old {i}' for i in range(head.get('num_classes', 80))]


def build(cfg: Config) -> torch.nn.Module:
    """As the Runner builds it."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = copy.deepcopy(cfg.model)  # some models change it
        if cfg.get('data_preprocessor'):
            model.setdefault('data_preprocessor', cfg.data_preprocessor)
        return MODELS.build(model)


def trained(cfg: Config, file: Path) -> torch.nn.Module:
    """A model of random weights and statistics, in a checkpoint too."""
    model = build(cfg)
    model.init_weights()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(('running_mean', 'running_var')):
                value.uniform_(0.5, 1.5)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=old_classes(cfg)))), file)
    return model.eval()


def exact(cfg: Config, file: Path | None = None) -> torch.nn.Module:
    """The model that keeps all of it, as a run starts with it."""
    model = build(exact_config(cfg, old_classes(cfg), NEW))
    model.init_weights()
    if file is not None:
        load_checkpoint(model, str(file), map_location='cpu', logger='silent')
    return model


def images(cfg: Config, number: int, first: int | None = None, size: int = SIZE) -> list[dict]:
    """Random images with objects or pixels of old and of two new classes, from ``first`` on, as a data set gives them."""
    rng, with_masks = np.random.default_rng(0), 'mask' in str(cfg.model).lower()
    first = first or len(old_classes(cfg))
    samples = []
    for _ in range(number):
        meta = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size), scale_factor=(1.0, 1.0))
        pixels = torch.as_tensor(rng.integers(0, 256, (3, size, size)), dtype=torch.uint8)
        if cfg.default_scope == 'mmseg':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=meta)
            blocks = rng.integers(0, first + len(NEW), (4, 4))
            blocks[0], blocks[1, 0] = rng.integers(first, first + len(NEW), 4), 255
            label = torch.as_tensor(blocks.repeat(size // 4, 0).repeat(size // 4, 1))[None]
            sample.gt_sem_seg = PixelData(data=label)
        else:
            sample = _with_boxes(rng, meta, size, first, with_masks)
        samples.append(dict(inputs=pixels, data_samples=sample))
    return samples


def _with_boxes(rng, meta: dict, size: int, first: int, with_masks: bool):
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    corner = rng.uniform(0, size / 2, (4, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(size / 6, size / 2, (4, 2))], 1).astype(np.float32)
    gt = InstanceData(
        bboxes=HorizontalBoxes(torch.as_tensor(boxes)), labels=torch.tensor([0, first - 1, first, first + 1])
    )
    if with_masks:
        masks = np.zeros((4, size, size), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
            mask[y1:y2, x1:x2] = 1
        gt.masks = BitmapMasks(masks, size, size)
    return DetDataSample(
        metainfo=meta,
        gt_instances=gt,
        ignored_instances=InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)),
            labels=torch.zeros(0, dtype=torch.long),
            **(dict(masks=BitmapMasks(np.zeros((0, size, size), np.uint8), size, size)) if with_masks else {}),
        ),
    )


def batch(samples: list[dict]) -> dict:
    return {key: [sample[key] for sample in samples] for key in samples[0]}


@torch.no_grad()
def predictions(model: torch.nn.Module, samples: list[dict]) -> list[dict]:
    """All that a model predicts, image by image."""
    mode = model.training
    model.eval()
    found = []
    for sample in samples:
        given = dict(inputs=sample['inputs'], data_samples=sample['data_samples'].clone())
        (result,) = model.test_step(batch([given]))
        if 'seg_logits' in result:
            found.append(dict(logits=result.seg_logits.data, label=result.pred_sem_seg.data))
        else:
            found.append(dict(result.pred_instances.items()))
    model.train(mode)
    return found


def part(found: list[dict], classes: int, of_new: bool = False) -> list[dict]:
    """What of predictions is of the first so many classes, or of the others."""
    parts = []
    for one in found:
        if 'logits' in one:
            parts.append(dict(logits=one['logits'][classes:] if of_new else one['logits'][:classes]))
        else:
            chosen = (one['labels'] >= classes) == of_new
            parts.append({key: value[chosen] for key, value in one.items()})
    return parts


def outputs(model: torch.nn.Module, samples: list[dict], classes: int, of_new: bool = False) -> list[dict]:
    return part(predictions(model, samples), classes, of_new)


def is_same(first: list[dict], second: list[dict]) -> bool:
    """Whether two predictions are the same bits."""
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second)
    )
