"""The config of a small classifier."""

from conftest import CLASSIFICATION, ROOT
from mmengine.config import Config


def classifier(**changes) -> Config:
    cfg = Config.fromfile(ROOT / CLASSIFICATION)
    cfg.model.backbone.init_cfg.checkpoint = str(ROOT / cfg.model.backbone.init_cfg.checkpoint)
    cfg.merge_from_dict(changes)
    return cfg
