"""Kernels of :mod:`olor_mm.optim.one_pass`, compiled by numba at their first call and cached.

Every kernel takes addresses, uint64 of shape (tensors, columns), the numbers of elements, int64 of shape (tensors,),
scalars, float64 of shape (tensors, arguments), and chunks of work, int64 of shape (chunks, 2): a tensor and the first
element. It updates the memory, which is float32, in place.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import carray, config, njit, prange, set_num_threads, types
from numba.extending import intrinsic
from torch import Tensor

from .one_pass import Scalars, chunks_of

CHUNK = 1 << 14  # elements that a thread takes at a time
TAKES_TENSORS = False  # for a learning rate, the scale of gradients, or whether a step is skipped
CACHED = 1 << 19  # elements that are still in a cache when they are taken back
# columns after parameter, gradient and anchor: exp_avg, exp_avg_sq, step, which is advanced; momentum_buffer; none
ADAM, MOMENTUM, SGD = range(3)
METHODS = dict(adam=ADAM, momentum_sgd=MOMENTUM, sgd=SGD)
COMPILED = dict(nogil=True, cache=True, error_model='numpy', fastmath={'contract'})
MEASURED = dict(COMPILED, fastmath={'contract', 'reassoc'})  # a sum in one order only is no work for vectors


@intrinsic
def _pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(types.uint64), generate


@njit(**COMPILED)
def _span(address, start, size):
    return carray(_pointer(address + np.uint64(4 * start)), np.uint64(size))


@njit(**COMPILED)
def _review(learned, anchor, w):
    # either form is exact at its own end: w = 0 keeps what was learned, w = 1 the anchor
    return learned + w * (anchor - learned) if w < 0.5 else anchor - (np.float32(1) - w) * (anchor - learned)


@njit(**COMPILED)
def _adam(i, P, G, M, V, numbers):
    rate, correction, l2, kept, b1, b2, eps = numbers
    g = G[i] + l2 * P[i]
    m = M[i] + (np.float32(1) - b1) * (g - M[i])
    v = b2 * V[i] + (np.float32(1) - b2) * (g * g)
    M[i], V[i] = m, v
    return kept * P[i] - rate * (m / (np.sqrt(v) * correction + eps))


@njit(**COMPILED)
def _adam_numbers(row, scalars):
    lr, l2, decay, beta1, beta2, eps, _ = scalars
    step = _span(row[5], 0, 1)[0]
    rate, correction = np.float32(lr / (1 - beta1**step)), np.float32(1 / math.sqrt(1 - beta2**step))
    kept = np.float32(decay)
    return rate, correction, np.float32(l2), kept, np.float32(beta1), np.float32(beta2), np.float32(eps)


@njit(**COMPILED)
def _adam_chunk(row, start, size, scalars):
    P, G, A = _span(row[0], start, size), _span(row[1], start, size), _span(row[2], start, size)
    M, V = _span(row[3], start, size), _span(row[4], start, size)
    numbers, w = _adam_numbers(row, scalars), np.float32(scalars[6])
    for i in range(size):
        P[i] = _review(_adam(i, P, G, M, V, numbers), A[i], w)


@njit(**MEASURED)
def _adam_measured(row, start, size, scalars):
    P, G = _span(row[0], start, size), _span(row[1], start, size)
    M, V = _span(row[3], start, size), _span(row[4], start, size)
    numbers, total = _adam_numbers(row, scalars), np.float32(0)
    for i in range(size):
        learned = _adam(i, P, G, M, V, numbers)
        total += (learned - P[i]) * (learned - P[i])
        P[i] = learned
    return total


@njit(**COMPILED)
def _momentum(i, P, G, B, numbers):
    rate, l2, kept, damped, looks_ahead = numbers
    g = G[i] + l2 * P[i]
    b = kept * B[i] + damped * g
    B[i] = b
    return P[i] - rate * (g + kept * b if looks_ahead else b)


@njit(**COMPILED)
def _momentum_numbers(scalars):
    lr, l2, momentum, dampening, nesterov, _ = scalars
    return np.float32(lr), np.float32(l2), np.float32(momentum), np.float32(1 - dampening), nesterov != 0


@njit(**COMPILED)
def _momentum_chunk(row, start, size, scalars):
    P, G, A = _span(row[0], start, size), _span(row[1], start, size), _span(row[2], start, size)
    B, numbers, w = _span(row[3], start, size), _momentum_numbers(scalars), np.float32(scalars[5])
    for i in range(size):
        P[i] = _review(_momentum(i, P, G, B, numbers), A[i], w)


@njit(**MEASURED)
def _momentum_measured(row, start, size, scalars):
    P, G, B = _span(row[0], start, size), _span(row[1], start, size), _span(row[3], start, size)
    numbers, total = _momentum_numbers(scalars), np.float32(0)
    for i in range(size):
        learned = _momentum(i, P, G, B, numbers)
        total += (learned - P[i]) * (learned - P[i])
        P[i] = learned
    return total


@njit(**COMPILED)
def _sgd_chunk(row, start, size, scalars):
    rate, l2_32, w_32 = np.float32(scalars[0]), np.float32(scalars[1]), np.float32(scalars[2])
    P, G, A = _span(row[0], start, size), _span(row[1], start, size), _span(row[2], start, size)
    for i in range(size):
        P[i] = _review(P[i] - rate * (G[i] + l2_32 * P[i]), A[i], w_32)


@njit(**MEASURED)
def _sgd_measured(row, start, size, scalars):
    rate, l2_32, total = np.float32(scalars[0]), np.float32(scalars[1]), np.float32(0)
    P, G = _span(row[0], start, size), _span(row[1], start, size)
    for i in range(size):
        learned = P[i] - rate * (G[i] + l2_32 * P[i])
        total += (learned - P[i]) * (learned - P[i])
        P[i] = learned
    return total


@njit(**COMPILED)
def _advance(addresses):
    for row in addresses:
        _span(row[5], 0, 1)[0] += 1


@njit(parallel=True, **COMPILED)
def _take_back(addresses, sizes, chunks, radii, lengths, first, last):
    """Take tensors back by their drift budget, after a step of these squared lengths by chunk."""
    begun = chunks[first, 0]
    squares = np.zeros(chunks[last - 1, 0] - begun + 1)
    for i in range(first, last):
        squares[chunks[i, 0] - begun] += lengths[i]
    for i in prange(first, last):
        tensor, start = chunks[i]
        length, size = math.sqrt(squares[tensor - begun]), min(CHUNK, sizes[tensor] - start)
        w = np.float32(min(1.0, length / radii[tensor])) if radii[tensor] > 0 else np.float32(length > 0)
        if w > 0:
            P, A = _span(addresses[tensor, 0], start, size), _span(addresses[tensor, 2], start, size)
            for j in range(size):
                P[j] = _review(P[j], A[j], w)


@njit(parallel=True, **COMPILED)
def _step(method, addresses, sizes, scalars, chunks):
    """A step with levels; ``method`` is a value of ``METHODS``."""
    if method == ADAM:
        _advance(addresses)
    for i in prange(len(chunks)):
        tensor, start = chunks[i]
        row, size, numbers = addresses[tensor], min(CHUNK, sizes[tensor] - start), scalars[tensor]
        if method == ADAM:
            _adam_chunk(row, start, size, numbers)
        elif method == MOMENTUM:
            _momentum_chunk(row, start, size, numbers)
        else:
            _sgd_chunk(row, start, size, numbers)


@njit(parallel=True, **COMPILED)
def _step_within(method, addresses, sizes, scalars, chunks, radii, portions):
    """A step with drift budgets; ``portions`` (int64) has the first chunk and the end of each."""
    if method == ADAM:
        _advance(addresses)
    lengths = np.empty(len(chunks))
    for first, last in portions:
        for i in prange(first, last):
            tensor, start = chunks[i]
            row, size, numbers = addresses[tensor], min(CHUNK, sizes[tensor] - start), scalars[tensor]
            if method == ADAM:
                lengths[i] = _adam_measured(row, start, size, numbers)
            elif method == MOMENTUM:
                lengths[i] = _momentum_measured(row, start, size, numbers)
            else:
                lengths[i] = _sgd_measured(row, start, size, numbers)
        _take_back(addresses, sizes, chunks, radii, lengths, first, last)


def kind(tensors: list[Tensor]) -> tuple | None:
    """What the tensors of one launch have in common; None if no kernel takes them."""
    return ('cpu',) if all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors) else None


class Launch:
    """Steps some parameters by a kernel, on as many threads as torch uses.

    Args:
        method (str): Of ``METHODS``.
        rows (list[list[Tensor]]): Of every parameter, the columns of the kernel.
        groups (list[int]): Of every parameter, the place of its numbers among those that a call is given.
        radii (list[float], optional): Of every parameter, how far its drift budget lets it go. None if levels pull.
    """

    def __init__(self, method: str, _, rows: Sequence, groups: Sequence[int], radii: Sequence[float] | None, *__):
        self.method, self.groups = METHODS[method], groups
        self.kernel = _step if radii is None else _step_within
        self.addresses = np.array([[t.data_ptr() for t in row] for row in rows], np.uint64)
        self.sizes = np.array([row[0].numel() for row in rows], np.int64)
        self.chunks = chunks_of(self.sizes.tolist(), CHUNK).numpy() * np.array([1, CHUNK])
        self.budget = () if radii is None else (np.array(radii), self._portions())

    def _portions(self) -> np.ndarray:
        """First chunk and end, of shape (portions, 2), of whole tensors that are stepped, then taken back, together."""
        ends = np.cumsum(-(-self.sizes // CHUNK))
        held = np.cumsum(self.sizes)
        bounds, before = [0], 0
        for end, count in zip(ends, held):
            if count - before >= CACHED or end == ends[-1]:
                bounds.append(end)
                before = count
        return np.stack([bounds[:-1], bounds[1:]], 1).astype(np.int64)

    def __call__(self, gradients: list[int], scalars: list[Scalars], *_) -> None:
        """Make a step, with gradients at these addresses."""
        threads = torch.get_num_threads()
        set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
        self.addresses[:, 1] = gradients
        numbers = np.array([scalars[group] for group in self.groups], np.float64)
        self.kernel(self.method, self.addresses, self.sizes, numbers, self.chunks, *self.budget)
        if torch.get_num_threads() != threads:  # starting its threads, numba sets the number for all users of OpenMP
            torch.set_num_threads(threads)
