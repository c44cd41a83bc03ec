"""Options that configs hand on to classes of torch and MMEngine, checked before the first step, by trying them."""

import copy
import inspect
import os
import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from inspect import Parameter
from numbers import Integral, Real

import torch
from torch import nn

from ..optim.penalty import is_number

FLAGS = ('foreach', 'fused')  # of torch's optimizers: True, False, or None for what torch thinks best
EXAMPLE = 1e-3  # in the place of an argument that has no default, such as lr


def arguments(cls: Callable, given: int = 1) -> dict[str, Parameter] | None:
    """What a class takes by name beside its first ``given`` arguments, its bases included; None if that is anything."""
    found: dict[str, Parameter] = {}
    for base in cls.__mro__ if inspect.isclass(cls) else (cls,):
        init = vars(base).get('__init__') if inspect.isclass(base) else base
        if init is None:
            continue
        if base is object:
            return None
        kinds = inspect.signature(init).parameters
        first = given + inspect.isclass(base)  # after self
        found.update(
            (name, p)
            for name, p in list(kinds.items())[first:]
            if name not in found and p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        )
        if all(p.kind is not Parameter.VAR_KEYWORD for p in kinds.values()):
            return found
    return None


def check_types(options: Mapping, known: Mapping[str, Parameter], where: str) -> None:
    """Refuse what is of another kind than the default of an argument, and numbers that are none.

    Raises:
        ValueError: The message names the key, its value and what would be right.
    """
    for key, value in options.items():
        if key not in known or isinstance(value, torch.Tensor):
            continue
        default, annotation = known[key].default, known[key].annotation
        may_be_none = default is None or annotation is Parameter.empty or re.search('None|Optional', str(annotation))
        if value is None and may_be_none:
            continue
        what = _kind(key, default, annotation)
        if what is not None and not what[1](value):
            shown = '' if default in (None, Parameter.empty) else f', such as the default {default!r}'
            raise ValueError(f'{where}.{key}={value!r} is not {what[0]}; give one{shown}')


def _kind(key: str, default, annotation) -> tuple[str, Callable] | None:
    if isinstance(default, bool) or key in FLAGS or annotation in (bool, 'bool'):
        return 'True or False', lambda value: isinstance(value, bool)
    if annotation in (int, 'int'):
        return 'an integer', lambda value: isinstance(value, Integral) and not isinstance(value, bool)
    if re.search('str|dict|list|bool', str(annotation)):  # one of several kinds
        return None
    if isinstance(default, Real) or annotation in (float, 'float'):
        return 'a finite number', is_finite
    if isinstance(default, (tuple, list)) and default and all(d is None or isinstance(d, Real) for d in default):

        def is_like(value) -> bool:
            is_long = isinstance(value, (tuple, list)) and len(value) == len(default)
            return is_long and all(is_finite(v) or (v is None and d is None) for v, d in zip(value, default))

        return f'a list of {len(default)} finite numbers', is_like
    return None


def is_finite(value) -> bool:
    """Whether a value of a config is a number that float32 can hold."""
    return is_number(value) and abs(float(value)) <= torch.finfo(torch.float32).max


def is_ours(error: Exception) -> bool:
    """Whether an error was raised by this package, and not by what it uses."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(os.path.dirname(os.path.dirname(__file__)))


def check_number(value, where: str, example: float) -> None:
    """Refuse what is not a finite number of 0 or more.

    Raises:
        ValueError: The message names ``where`` it stands, the value and what would be right.
    """
    if not is_finite(value) or value < 0:
        raise ValueError(f'{where}={value!r} is not a finite number of 0 or more; give one, e.g. {example}')


def check_by_trial(trial: Callable[[dict], None], options: dict, known: Mapping[str, Parameter], where: str) -> None:
    """Refuse the option that makes a trial fail.

    It is the first that makes it fail by itself, or without which it goes well. Where it fails without any, nothing can
    be told.

    Args:
        trial (Callable): Called with options; raises what a training would.
        options (dict): Those of the config.
        known (Mapping[str, Parameter]): What there is, for the defaults.
        where (str): The section of the config, for the message.

    Raises:
        ValueError: The message names the key, its value, what was raised, and the default.
    """
    fault = fault_of(trial, options)
    required = {key: EXAMPLE for key, p in known.items() if p.default is Parameter.empty}
    if fault is None or fault_of(trial, required) is not None:
        return
    for key, value in options.items():
        alone = fault_of(trial, {**required, key: value})
        others = {k: v for k, v in options.items() if k != key}
        if alone is not None or fault_of(trial, {**required, **others}) is None:
            default = known[key].default if key in known else Parameter.empty
            remedy = (
                'give another value' if default is Parameter.empty else f'leave it out for the default, {default!r}'
            )
            raise ValueError(f'{where}.{key}={value!r} cannot be used: {alone or fault}; {remedy}')
    raise ValueError(f'{where}={options!r} cannot be used together: {fault}. Leave some of them out')


def fault_of(trial: Callable[[dict], None], options: dict) -> str | None:
    """What a trial raises with these options, on one line; None if nothing."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter('ignore')
            trial(copy.deepcopy(options))
    except Exception as error:  # whatever a class does with what it does not check
        said = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # of an assert
        return f'{type(error).__name__}: {said}'.strip().rstrip('.:').replace('\n', ' ')
    return None


def optimizer_trial(cls: type, device: torch.device) -> Callable[[dict], None]:
    """A trial of an optimizer: three steps with a small parameter of its own."""

    def trial(options: dict) -> None:
        p = nn.Parameter(torch.ones(2, 2, device=device))
        optimizer = cls([p], **options)
        for _ in range(3):
            p.grad = torch.eye(2, device=device)  # with zeros, as of a unit that is never active
            optimizer.step()
        if not p.isfinite().all():
            raise ValueError('weights are not finite any more after three steps')

    return trial


def wrapper_trial(cls: type) -> Callable[[dict], None]:
    """A trial of an optim wrapper: one clipping of gradients."""

    def trial(options: dict) -> None:
        p = nn.Parameter(torch.ones(2))
        p.grad = torch.ones_like(p)
        wrapper = cls(optimizer=torch.optim.SGD([p], lr=0.1), **options)
        if getattr(wrapper, 'clip_grad_kwargs', None):
            wrapper.clip_func([p], **wrapper.clip_grad_kwargs)
            if not p.grad.isfinite().all() or (p.grad < 0).any():
                raise ValueError(f'clipping makes a gradient of 1 one of {p.grad[0]:g}')

    return trial
