"""Which parameters get an anchor."""

import copy
import logging
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..layers import clean_name, names_under
from ..mixing import mix_in
from ..optim.rules import RULES
from ..pretrained import LoadRecord, fingerprint, statistics_states, summary
from .settings import WHERE, RollbackSettings

if TYPE_CHECKING:
    from .start import Start


class PretrainedSelection:
    """Decides, when anchors are captured, which parameters were pre-trained, and logs it.

    Candidates are the parameters that are trained and have a level above 0; ``kept`` says where anchors are kept.
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
        self.is_on = settings.max_level > 0
        self.names = {p: clean_name(name) for name, p in model.named_parameters()}
        self.claimed = set(self.names)
        self.selected: set[nn.Parameter] | None = None
        self.filled = filled_in_constructor(model)
        self.as_built: dict[nn.Parameter, bytes] = {}
        if not isinstance(self.pretrained, str):
            names = self.names.values()
            under = {name for prefix in self.pretrained for name in names_under(prefix, names, f'{WHERE}.pretrained')}
            self.claimed = {p for p, name in self.names.items() if name in under}
        if self.pretrained != 'auto' and not was_initialised(model):
            # FSDP, which shows them whole just now, has parts of them later
            claimed = [p for p in candidates if p in self.claimed and not getattr(p, '_fsdp_flattened', False)]
            self.as_built = {p: fingerprint(p) for p in claimed}

    def require_some(self) -> None:
        """Refuse a run in which nothing would be rolled back though a level is set."""
        params = self.candidates
        if not params and self.is_on:
            raise ValueError(
                f'{WHERE}.max_level={self.settings.max_level!r}, but no parameter that is trained has a level above 0: '
                'the backbone is frozen, or custom_keys set rollback=0. Train some of it, raise min_level, or set '
                'max_level=0 for a run without rollback'
            )
        if self.pretrained == 'auto':
            self._require_loaded(params)
        if params and not self.claimed.intersection(params):
            raise ValueError(
                f'{WHERE}.pretrained={self.pretrained!r}: every parameter under it has level 0 or is frozen. Neck and '
                "head have min_level, which is 0 by default; raise it, or name the backbone, e.g. ['backbone']"
            )

    def _require_loaded(self, params: list[nn.Parameter]) -> None:
        loaded = self.record.loaded(params)
        unseen = [p for p in params if p in self.filled and p not in set(loaded)]
        if unseen:
            places = sorted({self.filled[p] for p in unseen})
            raise ValueError(
                f"{WHERE}.pretrained='auto': {len(unseen)} parameters with a level above 0, e.g. "
                f'{self.names[unseen[0]]}, are in a module that loads weights in its constructor (TIMM, HuggingFace), '
                f'where this cannot be seen. Name what is pre-trained: pretrained={"all" if "" in places else places!r}'
            )
        if params and not any(self.record.unchanged([p]) for p in loaded):
            custom = {key: level for key, level in self.settings.custom_levels.items() if level}
            which = f'a level above 0{f" (custom_keys: {custom})" if custom else ""}'
            why = f'no checkpoint was loaded into any parameter with {which}'
            if loaded:
                why = f'all {len(loaded)} parameters that a checkpoint was loaded into were initialised again since'
            raise ValueError(
                f"{WHERE}.pretrained='auto': {why}. Set load_from, or init_cfg=dict(type='Pretrained', checkpoint=...) "
                'of the backbone; if one is set, its keys or shapes do not fit, see the warnings above. For weights '
                "loaded out of sight, set pretrained=['backbone']; for a run without rollback, max_level=0"
            )

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
        """Running statistics of the pre-trained norm layers, from before the first training step, by name."""
        return self.record.copy_statistics(self.model, self.norm_layers)

    def __call__(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        self.start()
        if self.selected is None:  # with ZeRO every process asks for its own; the answer is for all of them
            self.require_some()
            self.selected = set(self._select(self.candidates))
            self.record.close()
            self._report(self.selected)
        later = [p for p in params if p not in self.names]  # groups that were added by hand
        return [p for p in params if p in self.selected] + (later if self.pretrained == 'all' else [])

    def among(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the parameters that count as pre-trained as they are now."""
        return self.record.unchanged(params) if self.pretrained == 'auto' else [p for p in params if p in self.claimed]

    def _select(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        loaded, selected = self.record.loaded(params), self.among(params)
        if self.pretrained == 'auto':
            again = set(loaded) - set(selected)
            self._warn('were initialised again after a checkpoint had been loaded into them and count as new', again)
            backbone = {p for p in params if 'backbone' in self.names[p].split('.')} or set(params)
            new = backbone - set(loaded)
            if 2 * len(new) > len(backbone):
                self._warn(
                    f'of the {len(backbone)} of the backbone count as new: no checkpoint was loaded into them. If one '
                    'should have been, its keys or shapes do not fit, see the warnings above; if one was, in a wrapper '
                    "of TIMM or HuggingFace, name what is pre-trained, e.g. pretrained=['backbone']",
                    new,
                )
            return selected
        unseen = set(selected) - set(loaded)
        what = f'count as pre-trained because of pretrained={self.pretrained!r}, though '
        if len(self.record):
            self._warn(f'{what}no checkpoint was loaded into them', unseen)
        else:
            changed = {p for p in unseen if p in self.as_built and self.as_built[p] != fingerprint(p)}
            self._warn(f'{what}they were initialised since the model was built, and no checkpoint was loaded', changed)
        return selected

    def _warn(self, what: str, params: set) -> None:
        names = [name for p, name in self.names.items() if p in params]
        if names:
            shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
            print_log(f'OLOR: {len(names)} parameters {what}: {shown}', logger='current', level=logging.WARNING)

    def _report(self, selected: set[nn.Parameter]) -> None:
        total = Counter(self.names[p].partition('.')[0] for p in self.candidates)
        some = Counter(self.names[p].partition('.')[0] for p in selected)
        shares = ', '.join(f'{part} {some[part]} of {total[part]}' for part in total)
        what = 'rolled back' if RULES[self.settings.rule].is_review else f'held by rule={self.settings.rule!r}'
        frozen = sum(not p.requires_grad for p in selected)
        size = sum(p.numel() * p.element_size() for p in selected if p.requires_grad) / 2**20
        print_log(
            f'OLOR: {len(selected)} of {len(self.candidates)} parameter tensors with a level above 0 are '
            f'pre-trained and {what} ({shares})'
            + (f', {frozen} of them once they are trained: they are frozen now' if frozen else '')
            + f'; that is {size:.1f} MiB of weights to return to{self.kept}. Pre-trained norm layers: '
            + summary(self.model, self.norm_layers),
            logger='current',
        )


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
