"""Loads the weights of a run by the code of training: ``init_weights`` of the model, and ``load_from``."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint, load_state_dict
from torch import nn

from ..engine.hooks.class_transfer import ClassTransferHook, training_classes
from ..engine.optimizers import is_named
from ..pretrained import LoadRecord
from .libraries import offline, quiet
from .report import RollbackReport

OWN_WAY = 'what init_weights reads'  # and not by MMEngine's loader, which would name a file


class NotHere(Exception):
    """A checkpoint that is not on this machine; ``args`` are its name and why it cannot be opened."""


class Unreadable(ValueError):
    """A checkpoint that is on this machine and cannot be opened."""


class Origins:
    """The checkpoint that each parameter was last loaded from, by the calls of MMEngine's loader.

    Args:
        model (nn.Module): The model, before its weights are loaded.
    """

    def __init__(self, model: nn.Module):
        self.states: dict[str, Any] = {}  # checkpoint to its content; None where it is not here
        self._model = model
        self._records = [(OWN_WAY, LoadRecord(model))]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See every checkpoint that is opened; raise :class:`NotHere` for one that is not on this machine."""
        load = CheckpointLoader.load_checkpoint

        def seen(filename: str, *args, **kwargs):
            self._records[-1][1].close()
            self._records.append((str(filename), LoadRecord(self._model)))
            try:
                self.states[str(filename)] = state = load(filename, *args, **kwargs)
            except Exception as error:  # missing, or in a store whose client is not installed
                if os.path.isfile(filename):
                    raise Unreadable(f'{filename!r} cannot be read: {type(error).__name__}: {error}') from error
                self.states[str(filename)] = None
                raise NotHere(str(filename), str(error)) from error
            return state

        with offline(), patch.object(CheckpointLoader, 'load_checkpoint', seen):
            yield
        self._records[-1][1].close()

    def found(self) -> dict[nn.Parameter, str]:
        """The checkpoint of every parameter that still has the value from it."""
        found: dict[nn.Parameter, str] = {}
        for checkpoint, record in self._records:
            found.update(dict.fromkeys(record.unchanged(self._model.parameters()), checkpoint))
        return found

    def unfit(self) -> dict[str, str]:
        """Checkpoints of which nothing was loaded, and why."""
        return {checkpoint: record.unfit for checkpoint, record in self._records if not len(record) and record.unfit}


class Transfer(Hook):
    """Gives a checkpoint the rows of the classes of the training data, as a hook of the config does in training."""

    priority = ClassTransferHook.priority

    def __init__(self, hook: ClassTransferHook, classes: list[str]):
        self.hook, self.classes = hook, classes

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self.hook.transfer(runner.model, checkpoint, self.classes)
        self.hook.mark(runner.model)


def load_weights(runner: Runner, cfg: Mapping, report: RollbackReport) -> dict[nn.Parameter, str]:
    """Load the weights as training does; return where those of each parameter came from.

    A checkpoint that is not here counts as if it held every weight of the module whose ``init_weights`` asks for it.
    """
    model, origins, load_from = runner.model, Origins(runner.model), cfg.get('load_from')
    for hook in cfg.get('custom_hooks') or ():
        if is_named(hook.get('type'), ClassTransferHook):
            _add_transfer(runner, HOOKS.build(hook), cfg, report)
    with origins.watched():
        _init_weights(model, report)
        if load_from:
            try:
                with _as_in_training(f'{load_from} cannot be loaded'):
                    runner.load_checkpoint(load_from)
            except NotHere as absent:
                _declare(model, absent, report)
    found = origins.found()
    # of a checkpoint that is not here nothing need be left: a stock detector declares one, and load_from has it all
    held = set(found.values())
    report.sources = {name: why for name, why in report.sources.items() if name in held}
    whole = [load_from, *(cfg['checkpoint'] for cfg in _pretrained_cfgs(model))]
    for checkpoint, state in origins.states.items():
        if state is None:
            continue
        report.sources[checkpoint] = 'loaded'
        if checkpoint in whole:
            _note_mismatches(model, state, checkpoint, report)
    report.warnings += [f'Nothing was loaded from {name!r}: {why}.' for name, why in origins.unfit().items()]
    return found


def _add_transfer(runner: Runner, hook: ClassTransferHook, cfg: Mapping, report: RollbackReport) -> None:
    try:
        classes = training_classes(runner)
    except ValueError:  # the data is not here
        classes = _declared_classes(cfg['train_dataloader'])
    if classes:
        runner.register_hook(Transfer(hook, classes))
    else:
        report.warnings.append('The classes of the training data are not known here, so no rows of heads are kept.')


def _declared_classes(node: Any) -> list[str]:
    """The classes in the settings of a data set, whatever it is wrapped in."""
    if isinstance(node, (list, tuple)):
        return next(filter(None, map(_declared_classes, node)), [])
    if not isinstance(node, Mapping):
        return []
    classes = (node.get('metainfo') or {}).get('classes')
    return list(classes or _declared_classes([node.get('dataset'), node.get('datasets')]))


def _init_weights(model: nn.Module, report: RollbackReport) -> None:
    """Call ``init_weights`` until it passes all modules whose checkpoint is not here."""
    while hasattr(model, 'init_weights') and not getattr(model, 'is_init', False):
        try:
            with _as_in_training('init_weights'):
                model.init_weights()
            return
        except NotHere as absent:
            modules = _callers(absent)
            if not getattr(modules[-1], 'is_init', False):
                _declare(modules[-1], absent, report)
            # a module that is initialised is passed by the next call, unless its parent has a way of its own
            next(module for module in reversed(modules) if not getattr(module, 'is_init', False)).is_init = True


def _callers(absent: NotHere) -> list[nn.Module]:
    """The modules that called each other until one asked for the checkpoint, outermost first."""
    found: list[nn.Module] = []
    trace = absent.__traceback__
    while trace is not None:
        caller = trace.tb_frame.f_locals.get('self')
        if isinstance(caller, nn.Module):
            found.append(caller)
        trace = trace.tb_next
    return found


@contextmanager
def _as_in_training(what: str) -> Iterator[None]:
    try:
        yield
    except (NotHere, Unreadable):
        raise
    except Exception as error:
        raise ValueError(f'{what}: {type(error).__name__}: {error}') from error


def loaded_share(cfg: Config) -> tuple[float, str]:
    """The share of the backbone's parameters that training would load, and why nothing, if that is so."""
    with quiet(), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = cfg.model.copy()
        if cfg.get('data_preprocessor'):
            model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the Runner does
        model = MODELS.build(model)
        record = LoadRecord(model)
        backbone = getattr(model, 'backbone', model)
        if cfg.get('load_from'):
            load_checkpoint(model, cfg.load_from, map_location='cpu')
        else:
            backbone.init_weights()
        parameters = list(backbone.parameters())
        return len(record.unchanged(parameters)) / len(parameters), record.unfit


def _declare(module: nn.Module, absent: NotHere, report: RollbackReport) -> None:
    checkpoint, why = absent.args
    # other values than the module has: its own ones, loaded again, are no load
    load_state_dict(module, {name: value + 1 for name, value in module.state_dict().items()})
    report.sources[checkpoint] = f'declared, not verified: {why}'.rstrip('.')
    if '://' not in checkpoint:
        report.warnings.append(f'{checkpoint!r} is not here: training would stop when it loads it.')


def _pretrained_cfgs(module: nn.Module) -> list[dict]:
    cfgs = getattr(module, 'init_cfg', None) or []
    cfgs = [cfgs] if isinstance(cfgs, dict) else cfgs
    return [cfg for cfg in cfgs if isinstance(cfg, dict) and is_named(cfg.get('type'), 'Pretrained')]


def _note_mismatches(model: nn.Module, content: dict, checkpoint: str, report: RollbackReport) -> None:
    state = {re.sub(r'^module\.', '', name): value for name, value in content.get('state_dict', content).items()}
    shapes = {n: p.shape for n, p in model.named_parameters() if n in state and state[n].shape != p.shape}
    if shapes:
        name, here = next(iter(shapes.items()))
        report.warnings.append(
            f'{len(shapes)} parameters have another shape in {checkpoint} and start at random, as a head does with '
            f'other classes: {", ".join(shapes)}. {name} is {tuple(state[name].shape)} there and {tuple(here)} here.'
        )
