"""Which parameters get an anchor."""

import logging
from functools import cached_property

from mmengine.logging import print_log
from torch import Tensor, nn

from ..layers import clean_name, names_under
from ..pretrained import LoadRecord, copy_statistics, fingerprint, statistics_states, summary
from .earlier import filled_in_constructor, was_initialised
from .settings import WHERE, RollbackSettings


class PretrainedSelection:
    """Decides, when anchors are captured, which parameters were pre-trained, and logs it.

    Args:
        model (nn.Module): The model without wrappers.
        record (LoadRecord): What was loaded into it since it was built; before that, if MMEngine has initialised it.
        settings (RollbackSettings): ``pretrained`` of them decides.
        candidates (list[Parameter]): The parameters that are trained and have a level above 0.

    Raises:
        ValueError: If a prefix matches no parameter.
    """

    def __init__(
        self, model: nn.Module, record: LoadRecord, settings: RollbackSettings, candidates: list[nn.Parameter]
    ):
        self.model = model
        self.pretrained = settings.pretrained
        self.what = 'rolled back' if settings.rule == 'olor' else f'held by rule={settings.rule!r}'
        self.is_on = settings.max_level > 0
        self.half_life = settings.half_life  # until it has been made a level
        self.record = record
        self.candidates = candidates
        self.names = {p: clean_name(name) for name, p in model.named_parameters()}
        self.claimed = set(self.names)
        self.selected: set[nn.Parameter] | None = None
        self.kept = ''  # where and how, for the log
        self.custom = ''  # the levels of custom_keys, for errors
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
        """Refuse a run in which nothing would be rolled back though a level is set.

        Raises:
            ValueError: The message says what to set.
        """
        params = self.candidates
        if not params and self.is_on:
            raise ValueError(
                f'{WHERE}.max_level is above 0, but no parameter that is trained has a level above 0: all of the '
                'backbone is frozen, or custom_keys set rollback=0. Train some of it, raise min_level to roll back '
                'neck and head, or set max_level=0 for a run without rollback.'
            )
        if self.pretrained == 'auto':
            self._require_loaded(params)
        if params and not self.claimed.intersection(params):
            raise ValueError(
                f'{WHERE}.pretrained={self.pretrained!r}: every parameter under it has level 0 or is frozen, so '
                'nothing would be rolled back. Neck and head have min_level, which is 0 by default; name the backbone, '
                "e.g. ['backbone'], or raise min_level."
            )

    def _require_loaded(self, params: list[nn.Parameter]) -> None:
        loaded = self.record.loaded(params)
        filled = self.filled.keys() - set(loaded)
        unseen = [p for p in params if p in filled]
        if unseen:
            places = sorted({self.filled[p] for p in unseen})
            raise ValueError(
                f"{WHERE}.pretrained='auto': {len(unseen)} parameters with a level above 0, e.g. "
                f'{self.names[unseen[0]]}, are in a module that loads weights in its constructor, as a TIMM backbone '
                'with pretrained=True does, where it cannot be seen what came out of a checkpoint. Name all that is '
                f'pre-trained: pretrained={"all" if "" in places else places!r}'
            )
        if params and not any(self.record.unchanged([p]) for p in loaded):
            none = f'no checkpoint was loaded into any parameter with a level above 0{self.custom}'
            if loaded:
                none = f'all {len(loaded)} parameters that a checkpoint was loaded into were initialised again since'
            raise ValueError(
                f"{WHERE}.pretrained='auto': {none}, so there are no pre-trained weights to return to. Set "
                "load_from=..., or init_cfg=dict(type='Pretrained', checkpoint=...) of the backbone; if one is set, "
                'its keys or shapes do not fit this model, see the warnings above. If the weights are loaded where '
                'this cannot be seen, as by a TIMM or HuggingFace wrapper in its constructor, set '
                "pretrained=['backbone'] or 'all'. For a run without rollback set max_level=0."
            )

    @cached_property
    def norm_layers(self) -> list[str]:
        """Names of the pre-trained norm layers, with running statistics or without; asked before they change."""
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
        """Running statistics of the pre-trained norm layers as they are now, by name."""
        return copy_statistics(self.model, self.norm_layers)

    def __call__(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        if self.half_life is not None:
            raise ValueError(
                f'{WHERE}.half_life={self.half_life!r} was not made a level, as it is within optim_context of the '
                'optim wrapper, which train_step of a model of MMEngine enters; set max_level instead'
            )
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
        loaded = self.record.loaded(params)
        if self.pretrained == 'auto':
            selected = self.among(loaded)
            self._warn(
                'were initialised again after a checkpoint had been loaded into them and count as new',
                set(loaded) - set(selected),
            )
            backbone = {p for p in params if 'backbone' in self.names[p].split('.')} or set(params)
            new = backbone - set(loaded)
            if 2 * len(new) > len(backbone):
                self._warn(
                    f'of the {len(backbone)} of the backbone count as new: no checkpoint was loaded into them, though '
                    'one was into others. If one should have been, its keys or shapes do not fit, see the warnings '
                    'above; if it was, where this cannot be seen (a TIMM or HuggingFace wrapper, in its constructor), '
                    "name all that is pre-trained, e.g. pretrained=['backbone']",
                    new,
                )
        else:
            selected = self.among(params)
            unseen = set(selected) - set(loaded)
            what = f'count as pre-trained because of pretrained={self.pretrained!r}, though '
            if len(self.record):
                self._warn(f'{what}no checkpoint was loaded into them', unseen)
            else:
                changed = {p for p in unseen if p in self.as_built and self.as_built[p] != fingerprint(p)}
                self._warn(
                    f'{what}they were initialised after the model had been built, and no checkpoint was loaded', changed
                )
        return selected

    def _warn(self, what: str, params: set) -> None:
        names = [name for p, name in self.names.items() if p in params]
        if names:
            shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
            print_log(f'OLOR: {len(names)} parameters {what}: {shown}', logger='current', level=logging.WARNING)

    def _report(self, selected: set[nn.Parameter]) -> None:
        parts: dict[str, list[int]] = {}
        for p in self.candidates:
            counts = parts.setdefault(self.names[p].partition('.')[0], [0, 0])
            counts[0] += p in selected
            counts[1] += 1
        shares = ', '.join(f'{name} {some} of {total}' for name, (some, total) in parts.items())
        frozen = sum(not p.requires_grad for p in selected)
        size = sum(p.numel() * p.element_size() for p in selected if p.requires_grad) / 2**20
        print_log(
            f'OLOR: {len(selected)} of {len(self.candidates)} parameter tensors with a level above 0 are '
            f'pre-trained and {self.what} ({shares})'
            + (f', {frozen} of them once they are trained: they are frozen now' if frozen else '')
            + f'; that is {size:.1f} MiB of weights to return to{self.kept}. Pre-trained norm layers: '
            + summary(self.model, self.norm_layers),
            logger='current',
        )
