"""Damaged files, and pickles that run code when they are loaded without care."""

import io
import os
import pickle
import random
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def damages(content: bytes, number: int, seed: int = 0):
    """Pairs of a name and a damaged copy: cut off anywhere, single flipped bits, overwritten pieces, emptied."""
    rng = random.Random(seed)
    yield 'empty', b''
    yield 'one byte', content[:1]
    yield 'last byte missing', content[:-1]
    yield 'nothing but zeros', bytes(len(content))
    yield 'something appended', content + b'\0'
    for place in (0, 3, 40, len(content) - 30, len(content) - 75, len(content) - 90, len(content) - 1):
        yield f'bit of byte {place}', flipped(content, place, 0)
    for _ in range((number - 12) // 3):
        end, place, piece = (rng.randrange(len(content)) for _ in range(3))
        yield f'cut off at {end}', content[:end]
        yield f'bit of byte {place}', flipped(content, place, rng.randrange(8))
        yield f'block at {piece}', content[:piece] + os.urandom(512) + content[piece + 512 :]


def flipped(content: bytes, place: int, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    return bytes(damaged)


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """So that the result of a call can be what is called next."""


class OrderedCalls(dict):
    def __init__(self, call: Calls):
        self.call = call

    def __reduce__(self):
        return dict, (), None, None, iter([('layer', self.call)])


def hostile(canary: Path) -> dict:
    """Contents that create the canary file when they are loaded without care, by name."""
    command = f'touch {canary}'
    source = f'open({str(canary)!r}, "w").close()'
    weights = {'layer': torch.ones(2)}
    methods = HistoryBuffer([1.0], [1])
    methods._log_history = Calls(os.system, command)
    indirect = Calls(Calls(getattr, Calls(__import__, 'os'), 'system'), command)
    objects = np.array([Calls(os.system, command)], dtype=object)
    return {
        'os.system as the whole': Calls(os.system, command),
        'among the weights': dict(state_dict={**weights, 'more': Calls(os.system, command)}),
        'in the place of a dict': dict(state_dict=OrderedCalls(Calls(os.system, command))),
        'exec in meta': dict(state_dict=weights, meta=dict(cfg=Calls(exec, source))),
        'eval as a key': dict(state_dict=weights, meta={Calls(eval, f'{source} or 1'): 1}),
        'in the optimizer': dict(state_dict=weights, optimizer=dict(state={0: dict(anchor=Calls(os.system, command))})),
        'in a history': dict(state_dict=weights, message_hub=dict(log_scalars=dict(loss=methods))),
        'by getattr of an import': dict(state_dict=weights, meta=indirect),
        'in an array of objects': dict(state_dict=weights, meta=dict(dataset_meta=objects)),
        'as a state': dict(state_dict=weights, meta=Calls(OrderedDict, state=dict(a=Calls(os.system, command)))),
        'a pickle in a pickle': dict(
            state_dict=weights, meta=Calls(pickle.loads, pickle.dumps(Calls(os.system, command)))
        ),
        'torch.load in a pickle': dict(
            state_dict=weights, meta=Calls(partial(torch.load, weights_only=False), saved_call(canary))
        ),
    }


def saved_call(canary: Path) -> str:
    inner = canary.with_name('inner.pth')
    torch.save(Calls(os.system, f'touch {canary}'), inner)
    return str(inner)


def saved(content, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()
