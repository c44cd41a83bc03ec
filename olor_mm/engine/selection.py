"""Which parameters get an anchor."""

import copy
import logging
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers import clean_name, names_under
from ..mixing import mix_in
from ..optim.rules import RULES
from ..pretrained import LoadRecord, fingerprints, is_constant, is_same, statistics_states, summary
from .settings import WHERE, RollbackSettings

if TYPE_CHECKING:
    from .start import Start


# a module of which less than this is trained is frozen, with LoRA parts, adapters or prompts added
SHARE_OF_ADDED = 0.1


class PretrainedSelection:
    """Decides, when anchors are captured, which parameters were pre-trained, and logs it.

    Candidates are the parameters that are trained and have a level or budget above 0; ``kept`` says where anchors are.
    Warnings are logged, and kept in ``told``; that nothing is rolled back for now is in ``idle`` too.
    """

    start: 'Start'

    def __init__(
        self,
        model: nn.Module,
        record: LoadRecord,
        settings: RollbackSettings,
        candidates: list[nn.Parameter],
        kept: str,
    ):
        self.model, self.record, self.settings, self.candidates, self.kept = model, record, settings, candidates, kept
        self.pretrained = settings.pretrained
        self.is_on = settings.is_on
        self.names = {p: clean_name(name) for name, p in model.named_parameters()}
        self.claimed = set(self.names)
        self.selected: set[nn.Parameter] | None = None
        self.told: list[str] = []
        self.idle: list[str] = []
        self.filled = filled_in_constructor(model)
        # where something may have been loaded out of sight
        self.places: dict[str, set[nn.Parameter]] = {}
        for p, place in self.filled.items() if self.pretrained == 'auto' else ():
            self.places.setdefault(place, set()).add(p)
        if not isinstance(self.pretrained, str):
            names = self.names.values()
            for prefix in self.pretrained:
                under = set(names_under(prefix, names, f'{WHERE}.pretrained'))
                self.places[prefix] = {p for p, name in self.names.items() if name in under}
            self.claimed = set().union(*self.places.values())
        self.was_initialised = was_initialised(model)
        self.as_built: dict[nn.Parameter, dict] = {}
        if self.pretrained != 'auto' and not self.was_initialised:
            # FSDP, which shows them whole just now, has parts of them later
            claimed = [p for p in candidates if p in self.claimed and not getattr(p, '_fsdp_flattened', False)]
            self.as_built = {p: fingerprints(p) for p in claimed}

    def require_some(self) -> None:
        """Refuse a run in which nothing would be rolled back though a level or a budget is set."""
        params, kind, without = self.candidates, self.settings.kind, self.settings.how_to_turn_off
        if not params and self.is_on:
            raise ValueError(
                f'{self.settings.given}, but no parameter that is trained has a {kind} above 0: the backbone is '
                f'frozen, or custom_keys set rollback=0. Train some of it, give layers a {kind} above 0, or {without}'
            )
        if self.pretrained == 'auto':
            self._require_loaded(params)
        if params and not self.claimed.intersection(params):
            raise ValueError(
                f'{WHERE}.pretrained={self.pretrained!r}: every parameter under it has {kind} 0 or is frozen. Give '
                f"neck and heads a {kind} above 0, or name the backbone, e.g. ['backbone']"
            )
        if params and not any(self.among([p]) for p in params if p.requires_grad):
            frozen = self.among([p for p in params if not p.requires_grad])
            if frozen:
                raise ValueError(
                    f'{self.settings.given}, but all {len(frozen)} pre-trained parameters with a {kind} above 0 are '
                    f'frozen, by the model in train() (frozen_stages) or by a hook. Train some of them, or {without}'
                )
            raise ValueError(f'{WHERE}.pretrained={self.pretrained!r}: {self._why_none(params)}')

    def _require_loaded(self, params: list[nn.Parameter]) -> None:
        """Refuse ``pretrained='auto'`` where something may have been loaded that could not be seen."""
        seen = set(self.record.loaded(params)) | self._added()
        unseen = [p for p in params if p in self.filled and p not in seen]
        if unseen:
            places = sorted({self.filled[p] for p in unseen})
            raise ValueError(
                f"{WHERE}.pretrained='auto': {len(unseen)} parameters with a {self.settings.kind} above 0, e.g. "
                f'{self.names[unseen[0]]}, are in a module that loads weights in its constructor (TIMM, HuggingFace), '
                f'where this cannot be seen. Name what is pre-trained: pretrained={"all" if "" in places else places!r}'
            )

    def _why_none(self, params: list[nn.Parameter]) -> str:
        """Why none of these parameters counts as pre-trained, and what to do."""
        custom = {key: strength for key, strength in self.settings.custom_strengths.items() if any(strength.values())}
        kind, without = self.settings.kind, self.settings.how_to_turn_off
        which = f'with a {kind} above 0{f" (custom_keys: {custom})" if custom else ""}'
        if loaded := self.record.loaded(params):
            return (
                f'all {len(loaded)} parameters that a checkpoint was loaded into were initialised again since. Load it '
                f'by load_from, which comes last, or {without}'
            )
        if self._added().intersection(params):
            free_heads = ' with min_level=0' * (self.settings.max_drift is None)
            return (
                f'what is trained of the {len(params)} parameters {which} is new by its size, less than a tenth of the '
                'module it is in, as LoRA parts, adapters and prompts are. There is nothing to roll it back to: '
                f"{without}. If it came out of a checkpoint all the same, set pretrained='all'{free_heads}"
            )
        if len(self.record):
            return (
                f'no checkpoint was loaded into any parameter {which}, and what was loaded, {len(self.record)} '
                f'parameters, is frozen or has {kind} 0. Train some of that with a {kind} above 0, or {without}'
            )
        if self.record.unfit:
            return f'no checkpoint was loaded into any parameter {which}: {self.record.unfit}'
        if any(self._is_changed(p) for p in params):
            return (
                f'no checkpoint was loaded into any parameter {which}, and they were initialised since the model was '
                "built. Set load_from, or init_cfg=dict(type='Pretrained', checkpoint=...) of the backbone; a model "
                'that copies weights by itself has to do so by load_state_dict'
            )
        return (
            f"no checkpoint was loaded into any parameter {which}. Set load_from, or init_cfg=dict(type='Pretrained', "
            "checkpoint=...) of the backbone; for weights that a constructor loads, pretrained=['backbone'], "
            f'or {without}'
        )

    def _added(self) -> set[nn.Parameter]:
        """What was added to a frozen module, by its size, where it could not be seen what was loaded."""
        found: set[nn.Parameter] = set()
        for place in self.places.values():
            unseen = place - set(self.record.loaded(place))
            trained = {p for p in unseen if p.requires_grad}
            if sum(p.numel() for p in trained) < SHARE_OF_ADDED * sum(p.numel() for p in unseen):
                found |= trained
        return found

    def _is_changed(self, p: nn.Parameter) -> bool:
        """Whether a parameter was initialised since the model was built, or filled by other code than a loader's."""
        return p in self.as_built and not is_same(p, self.as_built[p])

    def _believed(self, params: list[nn.Parameter]) -> set[nn.Parameter]:
        """Those under the prefixes of ``pretrained`` that may well have been loaded, though nothing was seen of it."""
        no_loads = [place for place in self.places.values() if not self.record.loaded(place)]
        hidden = set(params) if self.was_initialised else set(self.filled).union(*no_loads)
        hidden |= {p for p in params if getattr(p, '_fsdp_flattened', False)}
        unseen = hidden.intersection(params, self.claimed) - set(self.record.loaded(params)) - self._added()
        return {p for p in unseen if not self._is_changed(p) and not (is_constant(p) and self._is_beside_changed(p))}

    def _is_beside_changed(self, p: nn.Parameter) -> bool:
        """Whether others under its prefix were initialised since: a norm layer at its ones and zeros was so too."""
        return any(self._is_changed(other) for place in self.places.values() if p in place for other in place)

    @cached_property
    def norm_layers(self) -> list[str]:
        """Names of the pre-trained norm layers, with running statistics or without."""
        is_auto = self.pretrained == 'auto'
        loaded = set(self.record.unchanged_statistics(self.model))
        weights = set(self.record.loaded(self.names)) if is_auto else self.claimed
        modules = dict(self.model.named_modules())
        return [
            name
            for name, state in statistics_states(self.model).items()
            if (name in loaded if is_auto and state != 'none' else weights.intersection(modules[name].parameters()))
        ]

    def copy_statistics(self) -> dict[str, Tensor]:
        """Running statistics of the pre-trained norm layers, from before the first training step, by name.

        From here on nothing is watched any more: training would be slower for it.
        """
        self.record.close()
        return self.record.copy_statistics(self.model, self.norm_layers)

    def __call__(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        self.start()
        if self.selected is None:  # with ZeRO every process asks for its own; the answer is for all of them
            self.require_some()
            self.selected = set(self._select(self.candidates))
            optimizer: Any = self.start.optimizer
            getattr(optimizer, 'optim', optimizer).anchored = self.selected
            self._report(self.selected)
        later = [p for p in params if p not in self.names]  # groups that were added by hand
        return [p for p in params if p in self.selected] + (later if self.pretrained == 'all' else [])

    def among(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that count as pre-trained as they are now.

        For 'auto' what was loaded and is unchanged; for prefixes, of what is under them, that and what may have been
        loaded out of sight: by a constructor, by ``FlexibleRunner``, or under a prefix for which no load was seen, if
        it was not initialised since; for 'all' everything.
        """
        if self.pretrained == 'all':
            return [p for p in params if p in self.claimed]
        claimed = [p for p in params if p in self.claimed]
        found = set(self.record.unchanged(claimed))
        if self.pretrained != 'auto':
            found |= self._believed(claimed)
        return [p for p in params if p in found]

    def _select(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        loaded, selected = set(self.record.loaded(params)), self.among(params)
        new = self.claimed.intersection(params) - set(selected)
        self._warn('were initialised again after a checkpoint had been loaded into them and count as new', new & loaded)
        if self.pretrained == 'auto':
            backbone = {p for p in params if 'backbone' in self.names[p].split('.')} or set(params)
            new = (backbone & new) - loaded
            hint = f': {self.record.unfit}' if self.record.unfit else '. Its names or shapes do not fit, see above'
            if new == backbone:
                hint = ". If a constructor loads weights there (TIMM, HuggingFace), name it: pretrained=['backbone']"
            if 2 * len(new) > len(backbone):
                what = f'of the {len(backbone)} of the backbone count as new: no checkpoint was loaded into them'
                self._warn(what, new, hint)
            return selected
        self._warn(
            f'under pretrained={self.pretrained!r} count as new: no checkpoint was loaded into them', new - loaded
        )
        unseen = set(selected) - loaded
        what = f'count as pre-trained because of pretrained={self.pretrained!r}, though '
        if len(self.record):
            self._warn(f'{what}no checkpoint was loaded into them', unseen)
        else:
            changed = {p for p in unseen if self._is_changed(p)}
            self._warn(f'{what}they were initialised since the model was built, and no checkpoint was loaded', changed)
        return selected

    def _warn(self, what: str, params: set, hint: str = '') -> None:
        names = [name for p, name in self.names.items() if p in params]
        if names:
            shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
            self.told.append(f'{len(names)} parameters {what} ({shown}){hint}')
            print_log(f'OLOR: {self.told[-1]}', logger='current', level=logging.WARNING)

    def _report(self, selected: set[nn.Parameter]) -> None:
        candidates = set(self.candidates)
        total, some = self._parts(self.candidates), self._parts(selected)
        shares = ', '.join(f'{part} {some[part]} of {total[part]}' for part in total)
        what = 'rolled back' if RULES[self.settings.rule].is_review else f'held by rule={self.settings.rule!r}'
        groups, kind = self.start.optimizer.param_groups, self.settings.kind
        rates = {p: group.get('initial_lr', group['lr']) for group in groups for p in group['params']}
        moving = {p for p in self.names if p.requires_grad and rates.get(p, 1)}
        still = selected - moving
        if selected and not selected & moving:
            self._warn(f'are pre-trained and not {what}: they are frozen, or have lr 0', still)
            self.idle = self.told[-1:]
        free = self._parts(self.among([p for p in self.names if p in moving - candidates]))
        free_parts = ', '.join(f'{part} {count}' for part, count in free.items())
        size = sum(p.numel() * p.element_size() for p in selected if p.requires_grad) / 2**20
        unseen = 0 if self.was_initialised else len(selected) - len(self.record.loaded(selected))
        print_log(
            f'OLOR: {len(selected)} of {len(self.candidates)} parameter tensors with a {kind} above 0 are '
            f'pre-trained and {what} ({shares})'
            + (f', {unseen} of them by pretrained={self.pretrained!r} alone: no load was seen' if unseen else '')
            + (f', {len(still)} of them once they are trained: they are frozen now' if still else '')
            + (f'; {free.total()} more are pre-trained and have {kind} 0 ({free_parts})' if free else '')
            + f'; that is {size:.1f} MiB of weights to return to{self.kept}. Pre-trained norm layers: '
            + summary(self.model, self.norm_layers),
            logger='current',
        )

    def _parts(self, params: Iterable[nn.Parameter]) -> Counter[str]:
        return Counter(self.names[p].partition('.')[0] for p in params)


def was_initialised(model: nn.Module) -> bool:
    """Whether MMEngine has run ``init_weights`` of the model, as ``FlexibleRunner`` does before it builds optimizers.

    A model of ``mmengine.hub.get_model(pretrained=True)`` says the same of itself, and its parts do not.
    """
    parts = any(getattr(child, 'is_init', False) for child in model.children())
    return isinstance(model, BaseModule) and model.is_init and bool(parts or model.init_cfg)


class _Silent(BaseModule):
    def _dump_init_info(self) -> None:
        """The log has it already."""


def repeat_loading(model: nn.Module, record: LoadRecord) -> None:
    """Note in the record what ``init_weights`` loaded: it is run once more, on a copy of the model that is watched.

    For a moment this takes the memory of a second model. Random numbers go on as if it had not been run.
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
            for p in copied.parameters():  # or what is loaded once more is what is there already
                p.data.add_(1)
            for module in copied.modules():
                if isinstance(module, BaseModule):
                    module.is_init = False
            mix_in(copied, _Silent)
            copied.init_weights()
    except Exception as error:
        raise ValueError(
            f"{WHERE}.pretrained='auto': this model was initialised before its optimizer was built, and initialising "
            f"a copy of it failed: {error!r}. Name what is pre-trained, e.g. pretrained=['backbone']"
        ) from error
    record.adopt(watched, copied, model)


def filled_in_constructor(model: nn.Module) -> dict[nn.Parameter, str]:
    """Parameters of modules that loaded weights in their constructor, to the name of the outermost such module.

    Wrappers of TIMM and HuggingFace, and ``get_model(pretrained=True)``, say that they need no initialisation before
    anything has initialised the model. A module with an ``init_weights`` of its own has just run that.
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
