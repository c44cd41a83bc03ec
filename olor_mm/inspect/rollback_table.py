"""The rollback that a config means, found without training: layer, source, lambda, w and budget of every parameter."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from ..engine.budgets import is_under_budget
from ..engine.constructor import OLOROptimWrapperConstructor
from ..engine.optimizers import is_named
from ..engine.settings import STOCK_KEYS, RollbackSettings
from ..optim.rules import RULES
from ..pretrained import new_elements, statistics_states, summary
from .libraries import named, quiet
from .report import CLAIMED, NEW, Parameter, RollbackReport
from .schedule import walk_schedule
from .weights import load_weights

UNKNOWN_EPOCH = 1000  # iterations of an epoch without a data set
SECTIONS = ('model', 'optim_wrapper', 'train_cfg', 'train_dataloader')
GIVEN = ('model', 'train_cfg', 'param_scheduler', 'auto_scale_lr', 'data_preprocessor')  # to the Runner as they are


def examine(cfg: Config, images: int | None = None) -> RollbackReport:
    """Build model, optimizer and schedules of a config as MMEngine's Runner does, in one process, and inspect them."""
    for key in SECTIONS:
        if not cfg.get(key) or not isinstance(cfg[key], dict):
            raise ValueError(f'{key}={cfg.get(key)!r} is not a dict: give the config of a training run')
    report, scope = RollbackReport(), cfg.get('default_scope') or 'mmengine'
    with quiet(), DefaultScope.overwrite_default_scope(scope), tempfile.TemporaryDirectory() as work_dir:
        wrapper = _with_rollback(cfg.optim_wrapper.to_dict(), report)
        loader = _train_loader(cfg, images, report)
        with named('this config cannot be built'):
            runner = Runner(
                **{key: cfg.get(key) for key in GIVEN},
                work_dir=work_dir,
                train_dataloader=loader,
                optim_wrapper=wrapper,
                default_scope=scope,
                experiment_name=os.path.basename(work_dir),
                log_level='ERROR',
            )
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
        origins = load_weights(runner, cfg, report)
        runner.model.train()  # some backbones freeze stages here, and norm layers their statistics
        points = walk_schedule(runner, report)
        report.steps = report.iterations / runner.optim_wrapper._accumulative_counts
        settings = RollbackSettings.from_cfg((wrapper.get('paramwise_cfg') or {}).get('rollback', {}))
        report.max_level = settings.max_level if settings.shown_rule.is_review else None
        _fill(runner, origins, points, settings.index(runner.model), report)
        report.warnings += _warnings(cfg, settings, report)
    return report


def _with_rollback(wrapper: dict, report: RollbackReport) -> dict:
    """The config's optim_wrapper with our constructor, and without what needs a GPU or several processes."""
    if is_named(wrapper.get('type'), 'AmpOptimWrapper'):
        wrapper = {k: v for k, v in wrapper.items() if k not in ('loss_scale', 'dtype', 'use_fsdp')}
        wrapper['type'] = 'OptimWrapper'
    optimizer = wrapper.get('optimizer') or {}
    if is_named(optimizer.get('type'), 'ZeroRedundancyOptimizer') and 'optimizer_type' in optimizer:
        rest = {k: v for k, v in optimizer.items() if k not in ('type', 'optimizer_type')}
        wrapper = {**wrapper, 'optimizer': dict(rest, type=optimizer['optimizer_type'])}
    if is_named(wrapper.get('constructor'), OLOROptimWrapperConstructor):
        return wrapper
    theirs = wrapper.get('paramwise_cfg', {})
    kept = {key: value for key, value in (theirs or {}).items() if key in STOCK_KEYS}
    rollback, others, replaced = dict(max_level=RollbackSettings.max_level), '', ''
    if kept != theirs:  # another constructor's keys would be refused; _delete_ also replaces a paramwise_cfg of None
        others = ''.join(f', {key}={value!r}' for key, value in dict(_delete_=True, **kept).items())
        dropped = ', '.join(key for key in theirs or () if key not in kept) or 'paramwise_cfg'
        replaced = f'  # instead of {wrapper.get("constructor")} and its {dropped}'
    report.lines_to_add = (
        f"optim_wrapper = dict(\n    constructor='olor_mm.OLOROptimWrapperConstructor',{replaced}\n"
        f'    paramwise_cfg=dict(rollback=dict(max_level={rollback["max_level"]}){others}))'
    )
    return {**wrapper, 'constructor': OLOROptimWrapperConstructor, 'paramwise_cfg': dict(kept, rollback=rollback)}


def _train_loader(cfg: Config, images: int | None, report: RollbackReport) -> torch.utils.data.DataLoader:
    """A data loader of the right length; its images are never read."""
    given, loader, why = cfg.train_dataloader, None, f'--images {images}'
    batch_size = given.get('batch_size') or 1
    if images is None:
        try:
            loader = Runner.build_dataloader(given)
            images, why = len(loader.dataset), 'the data set here'
        except Exception as error:  # data sets of any library, without their data
            why = f'the data set cannot be read here ({type(error).__name__}: {error})'
    if loader is None:
        options = {key: given[key] for key in ('drop_last', 'num_batch_per_epoch') if key in given}
        dataset, sampler = range(images or UNKNOWN_EPOCH * batch_size), dict(type='DefaultSampler', shuffle=False)
        loader = Runner.build_dataloader(dict(dataset=dataset, sampler=sampler, batch_size=batch_size, **options))
    if images:
        report.steps_per_epoch = len(loader) / (cfg.optim_wrapper.get('accumulative_counts') or 1)
        report.data = f'{images:,} images ({why}), {len(loader):,} iterations of {batch_size} an epoch'
    else:
        report.data = (
            f'{why}: half-lives are in steps only, and epochs count as {UNKNOWN_EPOCH:,} iterations of {batch_size}; '
            'give the number of training images with --images'
        )
    return loader


def _fill(runner: Runner, origins: dict, points: list[list[dict]], index: dict, report: RollbackReport) -> None:
    """Add every parameter of the model to the report."""
    model, optimizer = runner.model, runner.optim_wrapper.optimizer
    selected = set()
    with contextlib.suppress(ValueError):  # reported by walk_schedule
        selected = set(optimizer.select_pretrained(optimizer.undecided()))
    report.warnings += optimizer.select_pretrained.idle
    report.norms = summary(model, optimizer.select_pretrained.norm_layers)
    numbers = {p: i for i, group in enumerate(optimizer.param_groups) for p in group['params']}
    states = statistics_states(model)
    for name, p in model.named_parameters():
        source, norm = origins.get(p, CLAIMED if p in selected else NEW), states.get(name.rpartition('.')[0], '')
        (layer, layers), frozen = index[name], not p.requires_grad
        row = Parameter(name, layer, layers, p.numel(), source, frozen, norm)
        report.parameters.append(row)
        if p not in numbers:
            continue
        groups = [point[numbers[p]] for point in points]
        row.lr = tuple(float(group['lr']) for group in groups)
        row.weight_decay, strength = groups[0].get('weight_decay'), groups[0]['rollback']
        row.level, row.budget = (None, strength) if is_under_budget(groups[0]) else (strength, None)
        if p in selected and p.requires_grad:
            row.is_held = strength > 0
            if row.budget and report.sources.get(source, 'loaded') == 'loaded':  # its weights are here
                row.bound = row.budget * optimizer.norm_of(p)
                row.size = _norm(p)
            row.w = tuple(float(optimizer.rollback_weight(group)) for group in groups)
            dtype = p.dtype if groups[0]['anchor_dtype'] is None else getattr(torch, groups[0]['anchor_dtype'])
            row.anchor_bytes = 0 if groups[0]['anchor_file'] else p.numel() * dtype.itemsize


def _norm(p: torch.nn.Parameter) -> float:
    """||theta_0||, without elements that are new."""
    is_new = new_elements(p)
    return float((p.detach() if is_new is None else p.detach()[~is_new.to(p.device)]).double().norm())


def _warnings(cfg: Mapping, settings: RollbackSettings, report: RollbackReport) -> Iterator[str]:
    rows, rule = report.parameters, RULES[settings.rule]
    backbone = [row for row in rows if row.layer < row.layers]
    loaded = sum(row.number for row in backbone if row.source != NEW) / (sum(row.number for row in backbone) or 1)
    if any(row.source != NEW for row in rows) and loaded < 0.5:
        yield f'Only {loaded:.0%} of the backbone is pre-trained, the rest is random. Does the checkpoint fit it?'
    claimed = [row.name for row in rows if row.source == CLAIMED]
    if claimed:
        because = f'because of pretrained={settings.pretrained!r}, but no checkpoint has them'
        yield f'{len(claimed)} parameters, like {claimed[0]}, count as pre-trained {because}.'
    if not any(row.level or row.budget for row in rows):
        yield 'lambda is 0 everywhere: this is plain training. Set rollback.max_level above 0.'
    if (budget := max((row.budget or 0 for row in rows), default=0)) >= 1:
        yield f'A drift budget of {budget:.3g} lets a tensor move by its whole norm: 0.05, and not 5, is 5 %.'
    risen = [row for row in rows if row.level and max(row.w) > row.level * (1 + 1e-6)]
    if risen:
        w, level = max(max(row.w) for row in risen), max(row.level or 0 for row in risen)
        yield (
            f'The learning rate rises above its first value, and w with it: to {w:.3g}, above the highest lambda, '
            f"{level:.3g}. Adapt the schedule (eta_min) to optimizer.lr, or take coupling='constant'."
        )
    half_lives = [row.half_life for row in rows if row.half_life]
    if half_lives and min(half_lives) > report.iterations:
        least = f'at least {min(half_lives):,.0f} steps to halve, and the run has {report.iterations:,}'
        yield f'Rollback will hardly show: a deviation takes {least}. Raise max_level.'
    if not rule.is_review:
        share = 'w is the share of its decay' if rule.has_share else 'a step takes no fixed share back, so w is 0'
        yield f'rule={rule.name!r}: the column lambda has {rule.symbol} of the rule; {share}.'
    elif any(row.level for row in rows) and settings.coupling == 'lr' and not cfg.get('param_scheduler'):
        yield "coupling='lr' without a param_scheduler: w stays at lambda to the end, as with coupling='constant'."
    # without a gradient, a step leaves (1 - w) (1 - lr decay) theta + w theta_0: at rest theta is this share of theta_0
    rest = [(row.w[1] / (row.w[1] + row.lr[1] * (row.weight_decay or 0.0)), row.layer) for row in rows if row.w[1]]
    against = sorted({layer for share, layer in rest if share < 0.9})
    if against:
        yield (
            f'Weight decay pulls to 0, against rollback: without gradients, layer {", ".join(map(str, against))} would '
            f'shrink to {min(rest)[0]:.0%} of theta_0. Lower weight_decay there (custom_keys, decay_mult) or raise the '
            'level.'
        )
