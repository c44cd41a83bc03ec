"""What rollback a config means, found without training: the layer, source, lambda and w of every parameter."""

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop, Runner, load_state_dict
from torch import Tensor, nn

from ..engine.constructor import OLOROptimWrapperConstructor
from ..engine.optimizers import is_named
from ..engine.settings import STOCK_KEYS, RollbackSettings
from ..optim.penalty import half_life_of
from ..pretrained import LoadRecord, statistics_states, summary

NEW, CLAIMED = 'new', 'claimed'
UNKNOWN_EPOCH = 1000  # iterations, to place a schedule in time where the data set is not there


@dataclass
class Parameter:
    """One parameter tensor; three values stand for the first step, the one of the highest rate and the last.

    Attributes:
        name (str): As in ``model.named_parameters()``.
        layer, layers (int): i and n.
        number (int): Of scalars in it.
        source (str): The checkpoint, 'new', or 'claimed' where only ``pretrained`` of the config says it had one.
        frozen (bool): Whether it is not trained, in the mode the model trains in.
        norm (str): 'updated', 'frozen' or 'none' for the running statistics of its norm layer; '' outside of any.
        lr (tuple[float, ...]): Three learning rates; () for what is in no group of the optimizer.
        weight_decay, level (float or None): Of its group; ``level`` is lambda.
        w (tuple[float, ...]): Three shares of the way back per step; zeros for what is not rolled back.
        anchor_bytes (int): Memory of its anchor.
    """

    name: str
    layer: int
    layers: int
    number: int
    source: str
    frozen: bool
    norm: str
    lr: tuple[float, ...] = ()
    weight_decay: float | None = None
    level: float | None = None
    w: tuple[float, ...] = (0.0, 0.0, 0.0)
    anchor_bytes: int = 0

    @property
    def half_life(self) -> float | None:
        """Steps in which a deviation that nothing feeds is halved, at the highest rate; None without rollback."""
        return half_life_of(self.w[1]) if self.w[1] else None


@dataclass
class RollbackReport:
    """All that the tables show.

    Attributes:
        parameters (list[Parameter]): In the order of the model.
        sources (dict[str, str]): Checkpoint to 'loaded' or why it is only declared.
        top_iteration, iterations (int): Where the rate is highest, from 0; and length of the run.
        steps (float): Steps of the optimizer in the run.
        steps_per_epoch (float or None): Steps of the optimizer in an epoch; None if the data set is unknown.
        max_level (float or None): The level of the layer nearest the input, also where the config has a half-life;
            None for other rules, or if it is unknown.
        data (str): One line on the data set.
        norms (str): One line on the statistics of pre-trained norm layers.
        lines_to_add (str): What a config without rollback lacks; ''.
        warnings (list[str]): What looks wrong.
    """

    parameters: list[Parameter] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    top_iteration: int = 0
    iterations: int = 0
    steps: float = 0.0
    steps_per_epoch: float | None = None
    max_level: float | None = None
    data: str = ''
    norms: str = ''
    lines_to_add: str = ''
    warnings: list[str] = field(default_factory=list)


def examine(cfg: Config, images: int | None = None) -> RollbackReport:
    """Build model, optimizer and schedules of a config as MMEngine's Runner does, in one process, and look at them.

    Checkpoints that are here or in a local cache are loaded. Of others it is assumed that they hold every weight of the
    module that names them; nothing is downloaded. Random initialisation is left out.

    Args:
        cfg (Config): Config of a training run. One without rollback is looked at as if it had it.
        images (int, optional): Images of an epoch, instead of those of the data set.

    Raises:
        ValueError: If the config is not one for training or something in it cannot be built.
    """
    for key in ('model', 'optim_wrapper', 'train_cfg', 'train_dataloader'):
        if not cfg.get(key):
            raise ValueError(f'{key} is missing: it takes a config of a training run; give one')
        if not isinstance(cfg[key], dict):
            raise ValueError(f'{key}={cfg[key]!r} is not a dict; give one')
    report = RollbackReport()
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')
    with quiet(), scope, tempfile.TemporaryDirectory() as work_dir:
        wrapper = _with_rollback(cfg.optim_wrapper.to_dict(), report)
        loader = _train_loader(cfg, images, report)
        with _named('this config cannot be built'):
            runner = Runner(
                model=cfg.model,
                work_dir=work_dir,
                train_dataloader=loader,
                train_cfg=cfg.train_cfg,
                optim_wrapper=wrapper,
                param_scheduler=cfg.get('param_scheduler'),
                auto_scale_lr=cfg.get('auto_scale_lr'),
                data_preprocessor=cfg.get('data_preprocessor'),
                default_scope=cfg.get('default_scope') or 'mmengine',
                experiment_name=os.path.basename(work_dir),
                log_level='ERROR',
            )
            optim_wrapper = runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
            runner.scale_lr(optim_wrapper, runner.auto_scale_lr)
        origins = _load_weights(runner, cfg.get('load_from'), report)
        runner.model.train()  # where some backbones freeze their stages, and norm layers their statistics
        points = _walk_schedule(runner, report)
        settings = RollbackSettings.from_cfg((wrapper.get('paramwise_cfg') or {}).get('rollback', {}))
        loop, counts = runner.train_loop, optim_wrapper._accumulative_counts
        report.steps = loop.max_iters / counts
        if settings.half_life is not None:
            with contextlib.suppress(ValueError):  # reported when the schedule was walked
                settings = settings.resolved(settings.half_life_steps(loop.max_iters, loop.max_epochs, counts))
        report.max_level = settings.max_level if settings.rule == 'olor' else None
        _fill(runner.model, optim_wrapper.optimizer, origins, points, settings, report)
        _warn(cfg, settings, report)
    return report


def _with_rollback(wrapper: dict, report: RollbackReport) -> dict:
    """The config's optim_wrapper, with our constructor if it has none, and without what needs a GPU or processes."""
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
    rollback = dict(max_level=RollbackSettings().max_level)
    others, replaced = '', ''
    if kept != theirs:  # another constructor's keys would be refused; _delete_ also replaces a paramwise_cfg of None
        others = ''.join(f', {key}={value!r}' for key, value in dict(_delete_=True, **kept).items())
        dropped = ', '.join(key for key in theirs or () if key not in kept) or 'paramwise_cfg'
        replaced = f'  # instead of {wrapper.get("constructor")} and its {dropped}'
    report.lines_to_add = (
        f"optim_wrapper = dict(\n    constructor='olor_mm.OLOROptimWrapperConstructor',{replaced}\n"
        f'    paramwise_cfg=dict(rollback=dict(max_level={rollback["max_level"]}){others}))'
    )
    return {**wrapper, 'constructor': OLOROptimWrapperConstructor, 'paramwise_cfg': dict(kept, rollback=rollback)}


class _Images(torch.utils.data.Dataset):
    """So many images that nobody will look at."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self) -> int:
        return self.number


def _train_loader(cfg: Config, images: int | None, report: RollbackReport) -> torch.utils.data.DataLoader:
    given, loader, why = cfg.train_dataloader, None, f'--images {images}'
    batch_size = given.get('batch_size') or 1
    if images is None:
        try:
            loader = Runner.build_dataloader(given)
            images, why = len(loader.dataset), 'the data set here'
        except Exception as error:  # whatever data sets of any library raise where there is no data
            why = f'the data set cannot be read here ({type(error).__name__}: {error})'
    if loader is None:
        options = {key: given[key] for key in ('drop_last', 'num_batch_per_epoch') if key in given}
        dataset, sampler = _Images(images or UNKNOWN_EPOCH * batch_size), dict(type='DefaultSampler', shuffle=False)
        loader = Runner.build_dataloader(dict(dataset=dataset, sampler=sampler, batch_size=batch_size, **options))
    if images:
        report.steps_per_epoch = len(loader) / (cfg.optim_wrapper.get('accumulative_counts') or 1)
        report.data = f'{images:,} images ({why}), {len(loader):,} iterations of {batch_size} an epoch'
    else:
        report.data = (
            f'{why}: half-lives are in steps only, and schedules by epoch are laid out with {UNKNOWN_EPOCH:,} '
            f'iterations of {batch_size}; give the number of training images with --images'
        )
    return loader


def _load_weights(runner: Runner, load_from: str | None, report: RollbackReport) -> dict[nn.Parameter, str]:
    """Load what the modules' ``init_cfg`` and ``load_from`` name, innermost modules first as MMEngine does."""
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
        watch = LoadRecord(model)
        with _offline():
            try:
                state = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
            except Exception as error:  # not there, or of a store whose client is not installed
                if os.path.isfile(checkpoint):
                    raise ValueError(f'{checkpoint!r} cannot be read: {type(error).__name__}: {error}') from error
                report.sources[checkpoint] = f'declared, not verified: {error}'.rstrip('.')
                load_state_dict(module, module.state_dict())  # as if it held every weight of the module
                if '://' not in checkpoint:
                    report.warnings.append(f'{checkpoint!r} is not here: training would stop when it is to be loaded.')
            else:
                with _named(f'{checkpoint} cannot be loaded'):
                    load()
                report.sources[checkpoint] = 'loaded'
                if module is model:
                    _note_mismatches(model, state.get('state_dict', state), checkpoint, report)
        origins.update(dict.fromkeys(watch.loaded(model.parameters()), checkpoint))
        watch.close()
    return origins


def _pretrained_cfgs(module: nn.Module) -> list[dict]:
    cfgs = getattr(module, 'init_cfg', None) or []
    cfgs = [cfgs] if isinstance(cfgs, dict) else cfgs
    return [cfg for cfg in cfgs if isinstance(cfg, dict) and is_named(cfg.get('type'), 'Pretrained')]


def _note_mismatches(model: nn.Module, state: dict[str, Tensor], checkpoint: str, report: RollbackReport) -> None:
    shapes = {
        name: (tuple(state[name].shape), tuple(p.shape))
        for name, p in model.named_parameters()
        if name in state and state[name].shape != p.shape
    }
    if shapes:
        name, (there, here) = next(iter(shapes.items()))
        report.warnings.append(
            f'{len(shapes)} parameters have another shape in {checkpoint}, as those of a head do with another number '
            f'of classes, and start anew: {", ".join(shapes)}. {name} is {there} there and {here} here.'
        )


def _walk_schedule(runner: Runner, report: RollbackReport) -> list[list[dict]]:
    """Step the schedulers through the whole run; options of every group at the first, the top and the last iteration.

    Groups with equal rates go the same way, so that one of each kind is stepped.
    """
    optim_wrapper, loop = runner.optim_wrapper, runner.train_loop
    optimizer = optim_wrapper.optimizer
    groups = optimizer.param_groups
    kinds = [(group['lr'], group.get('weight_decay')) for group in groups]
    firsts = dict(zip(kinds, groups))
    optimizer.param_groups = list(firsts.values())
    with _named('param_scheduler'):
        schedulers = runner.build_param_scheduler(runner.param_schedulers or [])
    optimizer.param_groups = groups
    optim_wrapper.initialize_count_status(runner.model, 0, loop.max_iters)
    runner.message_hub.update_info_dict(dict(max_iters=loop.max_iters, max_epochs=loop.max_epochs))
    try:
        optim_wrapper.optim_context(runner.model)  # has the constructor settle the initial rates, and complain
    except ValueError as error:
        report.warnings.append(f'Training would stop before its first step: {error}')
    optimizer.param_groups = list(firsts.values())

    def options() -> dict:
        return {kind: {k: v for k, v in group.items() if k != 'params'} for kind, group in firsts.items()}

    def highest_rate() -> float:
        return max(group['lr'] for group in optimizer.param_groups)

    start = top = options()
    top_rate = highest_rate()
    epoch = len(runner.train_dataloader) if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    last_change = max((s.end for s in schedulers if not s.by_epoch), default=0)
    for iteration in range(1, loop.max_iters):
        is_epoch = iteration % epoch == 0
        if not is_epoch and iteration >= last_change:
            continue
        for scheduler in schedulers:  # by iteration before by epoch is how the hook has it; they do not meet otherwise
            if is_epoch if scheduler.by_epoch else iteration < scheduler.end:
                scheduler.step()
        if highest_rate() > top_rate * (1 + 1e-9):
            top_rate, top, report.top_iteration = highest_rate(), options(), iteration
    end, report.iterations = options(), loop.max_iters
    if max((s.begin for s in schedulers), default=0) >= loop.max_iters or any(
        s.end > loop.max_iters and not s.by_epoch for s in schedulers
    ):
        report.warnings.append(
            f'The schedule is longer than the run of {loop.max_iters:,} iterations: param_scheduler goes on until '
            f'iteration {max(s.end for s in schedulers if not s.by_epoch):,}, so that warm-up or decay is cut off.'
        )
    optimizer.param_groups = groups
    return [
        [{**point[kind], 'rollback': g['rollback']} for kind, g in zip(kinds, groups)] for point in (start, top, end)
    ]


def _fill(model, optimizer, origins: dict, points: list[list[dict]], settings: RollbackSettings, report) -> None:
    selected = set()
    with contextlib.suppress(ValueError):  # reported when the schedule was walked
        selected = set(optimizer.select_pretrained(optimizer.undecided()))
    report.norms = summary(model, optimizer.select_pretrained.norm_layers)
    numbers = {p: i for i, group in enumerate(optimizer.param_groups) for p in group['params']}
    index, states = settings.index(model), statistics_states(model)
    for name, p in model.named_parameters():
        row = Parameter(
            name,
            *index[name],
            number=p.numel(),
            source=origins.get(p, CLAIMED if p in selected else NEW),
            frozen=not p.requires_grad,
            norm=states.get(name.rpartition('.')[0], ''),
        )
        report.parameters.append(row)
        if p not in numbers:
            continue
        groups = [point[numbers[p]] for point in points]
        row.lr = tuple(float(group['lr']) for group in groups)
        row.weight_decay, row.level = groups[0].get('weight_decay'), groups[0]['rollback']
        if p in selected and p.requires_grad:
            row.w = tuple(float(optimizer.rollback_weight(group)) for group in groups)
            dtype = p.dtype if groups[0]['anchor_dtype'] is None else getattr(torch, groups[0]['anchor_dtype'])
            row.anchor_bytes = 0 if groups[0]['anchor_file'] else p.numel() * dtype.itemsize


def _warn(cfg: Config, settings: RollbackSettings, report: RollbackReport) -> None:
    rows = report.parameters
    backbone = [row for row in rows if row.layer < row.layers]
    loaded = sum(row.number for row in backbone if row.source != NEW) / (sum(row.number for row in backbone) or 1)
    if any(row.source != NEW for row in rows) and loaded < 0.5:
        report.warnings.append(
            f'Only {loaded:.0%} of the backbone is pre-trained, the rest starts at random and is not rolled back: do '
            'the checkpoint and the backbone belong together?'
        )
    if settings.half_life and report.steps_per_epoch is None:
        report.warnings.append(
            f'half_life={settings.half_life!r}: the length of this run is not known, as there is no data set; levels '
            f'are those of epochs of {UNKNOWN_EPOCH:,} iterations. Give --images.'
        )
    claimed = [row.name for row in rows if row.source == CLAIMED]
    if claimed:
        report.warnings.append(
            f'{len(claimed)} parameters, like {claimed[0]}, count as pre-trained because of '
            f'pretrained={settings.pretrained!r}, though no checkpoint goes into them: they would be held where they '
            'start.'
        )
    if not any(row.level for row in rows):
        report.warnings.append('lambda is 0 everywhere: this is plain training. Set rollback.max_level above 0.')
    risen = [row for row in rows if row.level and max(row.w) > row.level * (1 + 1e-6)]
    if risen:
        highest = max(max(row.w) for row in risen)
        report.warnings.append(
            f'The learning rate rises above the one it starts from, and w with it: to {highest:.3g} where lambda is '
            f'at most {max(row.level or 0 for row in risen):.3g}. The schedule (its eta_min) is made for a higher '
            "optimizer.lr; adapt it, or take coupling='constant'."
        )
    half_lives = [row.half_life for row in rows if row.half_life]
    if half_lives and min(half_lives) > report.iterations:
        report.warnings.append(
            f'Even in the first layer a deviation takes {min(half_lives):,.0f} steps to halve, and the run has '
            f'{report.iterations:,}: rollback will hardly show. Raise max_level.'
        )
    if settings.rule != 'olor':
        report.warnings.append(
            f'rule={settings.rule!r}: lambda is its {"lambda" if settings.rule == "spd" else "alpha"}'
            + (
                '; w and half-lives are those of its decay.'
                if settings.rule == 'l2sp_decoupled'
                else ', and what a step takes back is no fixed share: no w is shown, and nothing counts as rolled back.'
            )
        )
    elif settings.coupling == 'lr' and not cfg.get('param_scheduler'):
        report.warnings.append(
            "coupling='lr' without a param_scheduler: w stays at lambda to the end, as with coupling='constant'."
        )
    # without a gradient, a step leaves (1 - w) (1 - lr decay) theta + w theta_0: at rest theta is this share of theta_0
    rest = [(row.w[1] / (row.w[1] + row.lr[1] * (row.weight_decay or 0.0)), row.layer) for row in rows if row.w[1]]
    against = sorted({layer for share, layer in rest if share < 0.9})
    if against:
        report.warnings.append(
            'Weight decay pulls to zero what rollback pulls to its pre-trained value: left alone, those of layer '
            f'{", ".join(map(str, against))} would come to rest at down to {min(rest)[0]:.0%} of it. Lower '
            'weight_decay there (custom_keys, decay_mult) or raise the level.'
        )


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Say what could not be done, whatever kind of error a library raises."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'{what}: {type(error).__name__}: {error}') from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what the libraries print and warn of on their own account."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        yield


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Let torch's hub take what is in its cache and refuse all else."""

    def refuse(url: str, *_, **__) -> None:
        raise FileNotFoundError(f'not in {torch.hub.get_dir()}/checkpoints')

    download, torch.hub.download_url_to_file = torch.hub.download_url_to_file, refuse
    try:
        yield
    finally:
        torch.hub.download_url_to_file = download
