"""OLOR versions of torch's optimizers, and the factory that makes one from any other."""

from functools import cache

import torch

from .one_pass import OnePassAdam, OnePassSGD
from .rollback import Rollback


class AdamOLOR(OnePassAdam, torch.optim.Adam):
    """:class:`torch.optim.Adam` with OLOR's rollback.

    Arguments are those of ``torch.optim.Adam`` and of :class:`Rollback`. With ``lr=1e-4`` and no weight decay this is
    the setting of the reference implementation.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = AdamOLOR(model.parameters(), lr=1e-4, rollback=1e-2)
    """


class AdamWOLOR(OnePassAdam, torch.optim.AdamW):
    """:class:`torch.optim.AdamW` with OLOR's rollback.

    Arguments are those of ``torch.optim.AdamW`` and of :class:`Rollback`.

    >>> backbone, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
    >>> optimizer = AdamWOLOR([dict(params=backbone.parameters(), rollback=1e-2), dict(params=head.parameters())],
    ...                       lr=1e-4, weight_decay=0.05)
    """

    def __init__(self, params, *args, **kwargs):
        # torch has this among the defaults of its AdamW and not among the arguments; strategies of MMEngine build an
        # optimizer anew from its defaults
        if kwargs.get('decoupled_weight_decay') is True:
            del kwargs['decoupled_weight_decay']
        super().__init__(params, *args, **kwargs)


class SGDOLOR(OnePassSGD, torch.optim.SGD):
    """:class:`torch.optim.SGD` with OLOR's rollback.

    Arguments are those of ``torch.optim.SGD`` and of :class:`Rollback`.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = SGDOLOR(model.parameters(), lr=0.01, momentum=0.9, rollback=1e-2)
    """


WRITTEN = {torch.optim.Adam: AdamOLOR, torch.optim.AdamW: AdamWOLOR, torch.optim.SGD: SGDOLOR}
UNSUPPORTED = {
    'ZeroRedundancyOptimizer': 'it shards another optimizer over processes rather than being one; give it the type of '
    'that optimizer',
    'LBFGS': 'it evaluates the loss many times within a step and keeps curvature of steps that a rollback would undo',
    'SparseAdam': 'its gradients name only some rows of a parameter, while a rollback moves all of them',
}


@cache
def with_rollback(base: type) -> type:
    """The OLOR version of an optimizer class, named after it: ``with_rollback(torch.optim.NAdam)`` is ``NAdamOLOR``.

    Args:
        base (type): A subclass of ``torch.optim.Optimizer``. An OLOR class is returned as it is.

    Returns:
        type: A subclass of :class:`Rollback` and of ``base``.

    Raises:
        TypeError: If ``base`` is not an optimizer class.
        ValueError: If rollback has no meaning for that optimizer; the message says why.
    """
    if not (isinstance(base, type) and issubclass(base, torch.optim.Optimizer)):
        raise TypeError(f'{base!r} is not a subclass of torch.optim.Optimizer')
    if issubclass(base, Rollback):
        return base
    for cls in base.__mro__:
        if cls.__name__ in UNSUPPORTED:
            raise ValueError(f'{base.__name__} cannot be used with rollback: {UNSUPPORTED[cls.__name__]}')
    if base in WRITTEN:
        return WRITTEN[base]
    doc = f"``{base.__module__}.{base.__name__}`` with OLOR's rollback, see :class:`Rollback`."
    return type(f'{base.__name__}OLOR', (Rollback, base), dict(__doc__=doc, __module__=__name__))


AdadeltaOLOR = with_rollback(torch.optim.Adadelta)
AdagradOLOR = with_rollback(torch.optim.Adagrad)
AdamaxOLOR = with_rollback(torch.optim.Adamax)
ASGDOLOR = with_rollback(torch.optim.ASGD)
NAdamOLOR = with_rollback(torch.optim.NAdam)
RAdamOLOR = with_rollback(torch.optim.RAdam)
RMSpropOLOR = with_rollback(torch.optim.RMSprop)
RpropOLOR = with_rollback(torch.optim.Rprop)
if hasattr(torch.optim, 'Adafactor'):  # torch 2.5 and later
    AdafactorOLOR = with_rollback(torch.optim.Adafactor)
if hasattr(torch.optim, 'Muon'):  # torch 2.9 and later
    MuonOLOR = with_rollback(torch.optim.Muon)


def registered() -> dict[str, type]:
    """The OLOR versions of the optimizers of ``torch.optim``, by name."""
    return {name: made for name, made in globals().items() if name.endswith('OLOR')}
