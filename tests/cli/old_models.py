"""Old models of all kinds for tests: stock configs, made small, with random weights that see something."""

import copy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from olor_mm.cli.packaged import config_file

SIZE = (64, 48)


def old_model(folder: Path, stock: str, classes: list[str], **changes) -> tuple[str, str]:
    """Config and checkpoint of a stock model with these classes."""
    cfg = Config.fromfile(config_file(stock))
    cfg.merge_from_dict(changes)
    _change(cfg._cfg_dict, len(classes))
    for loader in (cfg.test_dataloader, cfg.val_dataloader):
        loader.num_workers = 0
        loader.persistent_workers = False
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(copy.deepcopy(dict(cfg.model)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, (p[0].numel() or 1) ** -0.5)
            elif ('cls' in name or 'seg' in name) and 'norm' not in name:
                p.normal_(0, 2)  # scores of all sizes
    folder.mkdir(exist_ok=True, parents=True)
    cfg.dump(folder / 'old.py')
    meta = dict(dataset_meta=dict(classes=tuple(classes)))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'old.pth')
    return str(folder / 'old.py'), str(folder / 'old.pth')


def _change(node: Any, number: int) -> None:
    """Set numbers of classes, forget checkpoints, and make images small, anywhere in a config."""
    if isinstance(node, (list, tuple)):
        for part in node:
            _change(part, number)
    if not isinstance(node, dict):
        return
    for key, value in list(node.items()):
        if key in ('num_classes', 'num_things_classes') and isinstance(value, int) and node.get('type') != 'RPNHead':
            node[key] = number
        elif key == 'num_stuff_classes':
            node[key] = 0
        elif key == 'class_weight' and isinstance(value, (list, tuple)):
            node[key] = [1.0] * number + [0.1]
        elif key in ('init_cfg', 'pretrained') and 'checkpoint' in str(value) + 'checkpoint' * (key == 'pretrained'):
            node[key] = None
        elif key == 'scale' and str(node.get('type')).startswith('Resize'):
            node[key] = SIZE if isinstance(value, (list, tuple)) else min(SIZE)
        elif key == 'norm_cfg' and isinstance(value, dict) and value.get('type') == 'SyncBN':
            node[key] = dict(type='BN', requires_grad=True)
        elif key != 'rpn_head':
            _change(value, number)
