"""What configs can name, in MMEngine's registries and in children of them.

With ``custom_imports=dict(imports=['olor_mm'])``, ``type='AdamWOLOR'`` is found in any default scope; without, it is
``type='olor_mm.AdamWOLOR'``. Hooks and constructors are registered by name alone and imported when one is built:
:mod:`olor_mm.engine` makes MMEngine import half of ``torch.distributed``.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from mmengine import registry as stock
from mmengine.registry import Registry

from .optim.optimizers import registered
from .scopes import resolve_config_scopes

ENGINE, DURABLE = 'olor_mm.engine', 'olor_mm.durable'
LOCATIONS = [ENGINE, DURABLE]
OPTIMIZERS = Registry('optimizer', scope='olor_mm', parent=stock.OPTIMIZERS, locations=LOCATIONS)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', scope='olor_mm', parent=stock.OPTIM_WRAPPER_CONSTRUCTORS, locations=LOCATIONS
)
# empty: what is inherited from a config of olor_mm::, `_base_.olor_optim_wrapper` for one, is built in this scope
OPTIM_WRAPPERS = Registry('optim_wrapper', scope='olor_mm', parent=stock.OPTIM_WRAPPERS, locations=LOCATIONS)
METRICS = Registry('metric', scope='olor_mm', parent=stock.METRICS, locations=LOCATIONS)
MODELS = Registry('model', scope='olor_mm', parent=stock.MODELS, locations=LOCATIONS)
TRANSFORMS = Registry('transform', scope='olor_mm', parent=stock.TRANSFORMS, locations=LOCATIONS)
HOOKS = Registry('hook', scope='olor_mm', parent=stock.HOOKS, locations=LOCATIONS)
IMPORTED_LATER = {
    'OLOR': (OPTIMIZERS, ENGINE),
    'ZeroRedundancyOptimizerOLOR': (OPTIMIZERS, ENGINE),
    'OLOROptimWrapperConstructor': (OPTIM_WRAPPER_CONSTRUCTORS, ENGINE),
    'ClassTransferHook': (HOOKS, ENGINE),
    'ConsolidateOptimizerHook': (HOOKS, ENGINE),
    'DriftHook': (HOOKS, ENGINE),
    'FreezeBackboneHook': (HOOKS, ENGINE),
    'PretrainedEvalHook': (HOOKS, ENGINE),
    'PretrainedStatisticsHook': (HOOKS, ENGINE),
    'ResumableRandomnessHook': (HOOKS, ENGINE),
    'SafeCheckpointHook': (HOOKS, DURABLE),
    'ClassGroupsAccuracy': (METRICS, 'olor_mm.extend.metrics_accuracy'),
    'ClassGroupsCocoMetric': (METRICS, 'olor_mm.extend.metrics_coco'),
    'ClassGroupsIoUMetric': (METRICS, 'olor_mm.extend.metrics_iou'),
    'ExactModel': (MODELS, 'olor_mm.extend.exact'),
    'DistillationLoss': (MODELS, 'olor_mm.extend.distill'),
    'OldProbabilities': (TRANSFORMS, 'olor_mm.extend.distill'),
}
RENAMED = {'UpstreamEvalHook': "'PretrainedEvalHook'; its metrics begin with 'pretrained', no longer with 'upstream'"}


def register_members(package: str) -> None:
    """Put the classes and functions of an imported package in the place of their names."""
    for name, (registry, place) in IMPORTED_LATER.items():
        if place == package:
            _register(registry, getattr(import_module(package), name))


def _register(registry: Registry, module: Callable) -> None:
    # a parent does not look into the locations of its children, so it needs the name as well
    for place in (registry.parent, registry):
        place.register_module(module=module, force=True)


def _imported_when_built(name: str, package: str = '') -> Callable:
    def build(*args, **kwargs) -> Any:
        if name in RENAMED:
            raise ValueError(f'type={name!r} has been renamed: write {RENAMED[name]}')
        return getattr(import_module(package), name)(*args, **kwargs)

    build.__name__ = build.__qualname__ = name
    return build


resolve_config_scopes()
for optimizer in registered().values():
    _register(OPTIMIZERS, optimizer)
for name, (registry, package) in IMPORTED_LATER.items():
    _register(registry, _imported_when_built(name, package))
for name in RENAMED:
    _register(HOOKS, _imported_when_built(name))
