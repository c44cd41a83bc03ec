"""What was loaded into a model before its optimizer was built, where no record of it could be kept."""

import copy

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import nn

from ..pretrained import LoadRecord
from .settings import WHERE


def was_initialised(model: nn.Module) -> bool:
    """Whether MMEngine has run ``init_weights`` of the model, as ``FlexibleRunner`` does before it builds optimizers.

    A model of ``mmengine.hub.get_model(pretrained=True)`` says the same of itself, and its parts do not.
    """
    parts = any(getattr(child, 'is_init', False) for child in model.children())
    return isinstance(model, BaseModule) and model.is_init and bool(parts or model.init_cfg)


def repeat_loading(model: nn.Module, record: LoadRecord) -> None:
    """Note in the record what ``init_weights`` loaded: it is run once more, on a copy of the model that is watched.

    For a moment this takes the memory of a second model. Random numbers go on as if it had not been run.

    Args:
        model (nn.Module): The model, its weights initialised.
        record (LoadRecord): The record of the model.

    Raises:
        ValueError: If the model cannot be copied or initialised once more.
    """
    print_log(
        'OLOR: this model was initialised before its optimizer was built; initialising a copy, to see what comes out '
        'of a checkpoint',
        logger='current',
    )
    devices = {p.device for p in model.parameters() if p.device.type == 'cuda'}
    try:
        with torch.random.fork_rng(devices):
            copied, watched = copy.deepcopy((model, record))
            for module in copied.modules():
                if isinstance(module, BaseModule):
                    module.is_init = False
            copied._dump_init_info = lambda: None  # the log has it already
            copied.init_weights()
    except Exception as error:
        raise ValueError(
            f"{WHERE}.pretrained='auto': this model was initialised before its optimizer was built, as FlexibleRunner "
            f'does, and initialising a copy, to see what comes out of a checkpoint, failed: {error!r}. Name what is '
            "pre-trained, e.g. pretrained=['backbone']"
        ) from error
    record.adopt(watched, copied, model)


def filled_in_constructor(model: nn.Module) -> dict[nn.Parameter, str]:
    """Parameters of modules that say they need no initialisation before anything has initialised the model.

    Wrappers of TIMM and HuggingFace do so, and ``get_model(pretrained=True)``, after they have loaded weights by
    themselves. A module that has its own ``init_weights``, as mmcv's deformable attention, has just run that.

    Returns:
        dict[Parameter, str]: Parameter to the name of the outermost such module; that of the model itself is ''.
    """
    if was_initialised(model):
        return {}
    filled: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        drew = isinstance(module, BaseModule) and type(module).init_weights is not BaseModule.init_weights
        if getattr(module, 'is_init', False) and not drew:
            for p in module.parameters():
                filled.setdefault(p, name)
    return filled
