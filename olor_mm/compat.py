"""Where the distributions of OpenMMLab differ, and what MMEngine takes for granted that is not so everywhere."""

from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.config import utils as config_utils
from mmengine.device import get_device
from mmengine.utils import is_installed


def resolve_config_scopes() -> None:
    """Make ``_base_ = 'mmseg::...'`` work whatever the distribution is called that mmseg comes from.

    MMEngine looks scopes up by the name of the upstream distribution ('mmsegmentation'), which the OneDL one does not
    have; the name of the module finds both.
    """
    for scope, distribution in config_utils.MODULE2PACKAGE.items():
        if not is_installed(distribution) and find_spec(scope) is not None:
            config_utils.MODULE2PACKAGE[scope] = scope


def use_cpu_processes(cfg: Config) -> None:
    """Let ``launcher='pytorch'`` work on a machine without an accelerator, over gloo.

    MMEngine takes for granted that each process has a GPU: it selects one before it opens the process group, and
    hands its number to DistributedDataParallel. Nothing is changed where there is an accelerator.

    Args:
        cfg (Config): Config of a run; its ``model_wrapper_cfg`` is changed in place.
    """
    if cfg.launcher != 'pytorch' or get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
