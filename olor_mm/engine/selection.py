"""Which parameters get an anchor."""

import logging

from mmengine.logging import print_log
from torch import nn

from ..layers import names_under
from ..pretrained import LoadRecord
from .settings import WHERE, RollbackSettings


class PretrainedSelection:
    """Decides, when anchors are captured, which parameters were pre-trained, and logs it.

    Args:
        model (nn.Module): The model without wrappers.
        record (LoadRecord): What was loaded into it since it was built.
        settings (RollbackSettings): ``pretrained`` of them decides.

    Raises:
        ValueError: If a prefix matches no parameter.
    """

    def __init__(self, model: nn.Module, record: LoadRecord, settings: RollbackSettings):
        self.pretrained = settings.pretrained
        self.is_on = settings.max_level > 0
        self.record = record
        self.names = {p: name for name, p in model.named_parameters()}
        self.claimed = set(self.names)
        if not isinstance(self.pretrained, str):
            names = self.names.values()
            under = {name for prefix in self.pretrained for name in names_under(prefix, names, f'{WHERE}.pretrained')}
            self.claimed = {p for p, name in self.names.items() if name in under}

    def require_some(self, params: list[nn.Parameter]) -> None:
        """Refuse a run in which nothing would be rolled back though a level is set.

        Args:
            params (list[Parameter]): The parameters that are trained and have a level above 0.

        Raises:
            ValueError: The message says what to set.
        """
        if not params and self.is_on:
            raise ValueError(
                f'{WHERE}.max_level is above 0, but no parameter that is trained has a level above 0: all of the '
                'backbone is frozen, or custom_keys set rollback=0. Train some of it, raise min_level to roll back '
                'neck and head, or set max_level=0 for a run without rollback.'
            )
        if self.pretrained == 'auto' and params and not self.record.loaded(params):
            raise ValueError(
                f"{WHERE}.pretrained='auto': no checkpoint was loaded into any parameter with a level above 0, so "
                "there are no pre-trained weights to return to. Set load_from=..., or init_cfg=dict(type='Pretrained', "
                'checkpoint=...) of the backbone; if one is set, its keys or shapes do not fit this model, see the '
                'warnings above. If the weights are loaded where this cannot be seen, by a TIMM wrapper in its '
                "constructor or by FlexibleRunner, set pretrained=['backbone'] or 'all'. For a run without rollback "
                'set max_level=0.'
            )
        if params and not self.claimed.intersection(params):
            raise ValueError(
                f'{WHERE}.pretrained={self.pretrained!r}: every parameter under it has level 0 or is frozen, so '
                'nothing would be rolled back. Neck and head have min_level, which is 0 by default; name the backbone, '
                "e.g. ['backbone'], or raise min_level."
            )

    def __call__(self, params: list[nn.Parameter]) -> list[nn.Parameter]:
        loaded = self.record.loaded(params)
        if self.pretrained == 'auto':
            selected = self.record.unchanged(loaded)
            self._warn(
                'were initialised again after a checkpoint had been loaded into them and count as new',
                set(loaded) - set(selected),
            )
        else:
            selected = [p for p in params if self.pretrained == 'all' or p in self.claimed]
            if len(self.record):
                self._warn(
                    f'count as pre-trained because of pretrained={self.pretrained!r}, though no checkpoint was '
                    'loaded into them',
                    set(selected) - set(loaded),
                )
        if any(p in self.names for p in params):  # not for groups that were added by hand
            self.require_some(params)
        self.record.close()
        self._report(params, selected)
        return selected

    def _warn(self, what: str, params: set) -> None:
        names = [name for p, name in self.names.items() if p in params]
        if names:
            shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
            print_log(f'OLOR: {len(names)} parameters {what}: {shown}', logger='current', level=logging.WARNING)

    def _report(self, params: list[nn.Parameter], selected: list[nn.Parameter]) -> None:
        chosen, parts = set(selected), {}
        for p in params:
            counts = parts.setdefault(self.names.get(p, 'added later').partition('.')[0], [0, 0])
            counts[0] += p in chosen
            counts[1] += 1
        shares = ', '.join(f'{name} {some} of {total}' for name, (some, total) in parts.items())
        size = sum(p.numel() * p.element_size() for p in selected) / 2**20
        frozen = sum(not p.requires_grad for p in selected)
        print_log(
            f'OLOR: {len(selected)} of {len(params)} parameter tensors with a level above 0 are pre-trained and rolled '
            f'back ({shares})'
            + (f', {frozen} of them frozen at present' if frozen else '')
            + f'; their anchors take {size:.1f} MiB',
            logger='current',
        )
