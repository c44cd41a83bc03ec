"""Loads the checkpoints that a config names, as far as they are on this machine."""

import os
from functools import partial

from mmengine.runner import CheckpointLoader, Runner, load_state_dict
from torch import Tensor, nn

from ..engine.optimizers import is_named
from ..pretrained import LoadRecord
from .libraries import named, offline
from .report import RollbackReport


def load_weights(runner: Runner, load_from: str | None, report: RollbackReport) -> dict[nn.Parameter, str]:
    """Load ``init_cfg``, innermost modules first as MMEngine does, and ``load_from``; return the origins of weights."""
    model = runner.model
    origins: dict[nn.Parameter, str] = {}
    jobs = [
        (module, cfg['checkpoint'], module.init_weights)
        for module in reversed(list(model.modules()))
        for cfg in _pretrained_cfgs(module)
    ]
    if load_from:
        jobs.append((model, load_from, partial(runner.load_checkpoint, load_from)))
    for module, checkpoint, load in jobs:
        record = LoadRecord(model)
        with offline():
            try:
                state = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
            except Exception as error:  # missing, or in a store whose client is not installed
                if os.path.isfile(checkpoint):
                    raise ValueError(f'{checkpoint!r} cannot be read: {type(error).__name__}: {error}') from error
                report.sources[checkpoint] = f'declared, not verified: {error}'.rstrip('.')
                load_state_dict(module, module.state_dict())  # as if it held every weight of the module
                if '://' not in checkpoint:
                    report.warnings.append(f'{checkpoint!r} is not here: training would stop when it loads it.')
            else:
                with named(f'{checkpoint} cannot be loaded'):
                    load()
                report.sources[checkpoint] = 'loaded'
                if module is model:
                    _note_mismatches(model, state.get('state_dict', state), checkpoint, report)
        origins.update(dict.fromkeys(record.loaded(model.parameters()), checkpoint))
        record.close()
    return origins


def _pretrained_cfgs(module: nn.Module) -> list[dict]:
    cfgs = getattr(module, 'init_cfg', None) or []
    cfgs = [cfgs] if isinstance(cfgs, dict) else cfgs
    return [cfg for cfg in cfgs if isinstance(cfg, dict) and is_named(cfg.get('type'), 'Pretrained')]


def _note_mismatches(model: nn.Module, state: dict[str, Tensor], checkpoint: str, report: RollbackReport) -> None:
    shapes = {n: p.shape for n, p in model.named_parameters() if n in state and state[n].shape != p.shape}
    if shapes:
        name, here = next(iter(shapes.items()))
        report.warnings.append(
            f'{len(shapes)} parameters have another shape in {checkpoint} and start at random, as a head does with '
            f'other classes: {", ".join(shapes)}. {name} is {tuple(state[name].shape)} there and {tuple(here)} here.'
        )
