"""Kernels of :mod:`olor_mm.optim.one_pass`, compiled by numba at their first call and cached.

Every kernel takes addresses, uint64 of shape (tensors, columns), the numbers of elements, int64 of shape (tensors,),
scalars, float64 of shape (tensors, arguments), and chunks of work, int64 of shape (chunks, 2): a tensor and the first
element. It updates the memory, which is float32, in place.
"""

import math

import numpy as np
import torch
from numba import carray, config, njit, prange, set_num_threads, types
from numba.extending import intrinsic
from torch import Tensor

from .one_pass import Scalars, chunks_of

CHUNK = 1 << 14  # elements that a thread takes at a time
TAKES_TENSORS = False  # for a learning rate, the scale of gradients, or whether a step is skipped
COMPILED = dict(nogil=True, cache=True, error_model='numpy', fastmath={'contract'})


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
def _adam_chunk(row, start, size, scalars):
    lr, l2, decay, beta1, beta2, eps, w = scalars
    step = _span(row[5], 0, 1)[0]
    rate, correction = np.float32(lr / (1 - beta1**step)), np.float32(1 / math.sqrt(1 - beta2**step))
    kept, l2_32, eps_32 = np.float32(decay), np.float32(l2), np.float32(eps)
    b1, b2, w_32 = np.float32(beta1), np.float32(beta2), np.float32(w)
    P, G, A = _span(row[0], start, size), _span(row[1], start, size), _span(row[2], start, size)
    M, V = _span(row[3], start, size), _span(row[4], start, size)
    for i in range(size):
        g = G[i] + l2_32 * P[i]
        m = M[i] + (np.float32(1) - b1) * (g - M[i])
        v = b2 * V[i] + (np.float32(1) - b2) * (g * g)
        M[i], V[i] = m, v
        P[i] = _review(kept * P[i] - rate * (m / (np.sqrt(v) * correction + eps_32)), A[i], w_32)


@njit(parallel=True, **COMPILED)
def adam(addresses, sizes, scalars, chunks):
    """Columns: parameter, gradient, anchor, exp_avg, exp_avg_sq, step; ``step`` is advanced."""
    for row in addresses:
        _span(row[5], 0, 1)[0] += 1
    for i in prange(len(chunks)):
        tensor, start = chunks[i]
        _adam_chunk(addresses[tensor], start, min(CHUNK, sizes[tensor] - start), scalars[tensor])


@njit(**COMPILED)
def _momentum_chunk(row, start, size, scalars):
    lr, l2, momentum, dampening, nesterov, w = scalars
    rate, l2_32, w_32 = np.float32(lr), np.float32(l2), np.float32(w)
    kept, damped, looks_ahead = np.float32(momentum), np.float32(1 - dampening), nesterov != 0
    P, G, A = _span(row[0], start, size), _span(row[1], start, size), _span(row[2], start, size)
    B = _span(row[3], start, size)
    for i in range(size):
        g = G[i] + l2_32 * P[i]
        b = kept * B[i] + damped * g
        B[i] = b
        P[i] = _review(P[i] - rate * (g + kept * b if looks_ahead else b), A[i], w_32)


@njit(parallel=True, **COMPILED)
def momentum_sgd(addresses, sizes, scalars, chunks):
    """Columns: parameter, gradient, anchor, momentum_buffer."""
    for i in prange(len(chunks)):
        tensor, start = chunks[i]
        _momentum_chunk(addresses[tensor], start, min(CHUNK, sizes[tensor] - start), scalars[tensor])


@njit(**COMPILED)
def _sgd_chunk(row, start, size, scalars):
    rate, l2_32, w_32 = np.float32(scalars[0]), np.float32(scalars[1]), np.float32(scalars[2])
    P, G, A = _span(row[0], start, size), _span(row[1], start, size), _span(row[2], start, size)
    for i in range(size):
        P[i] = _review(P[i] - rate * (G[i] + l2_32 * P[i]), A[i], w_32)


@njit(parallel=True, **COMPILED)
def sgd(addresses, sizes, scalars, chunks):
    """Columns: parameter, gradient, anchor."""
    for i in prange(len(chunks)):
        tensor, start = chunks[i]
        _sgd_chunk(addresses[tensor], start, min(CHUNK, sizes[tensor] - start), scalars[tensor])


def kind(tensors: list[Tensor]) -> tuple | None:
    """What the tensors of one launch have in common; None if no kernel takes them."""
    return ('cpu',) if all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors) else None


class Launch:
    """Steps some parameters by a kernel, on as many threads as torch uses.

    Args:
        method (str): Name of the kernel.
        rows (list[list[Tensor]]): Of every parameter, the columns of the kernel.
        groups (list[int]): Of every parameter, the place of its numbers among those that a call is given.
    """

    def __init__(self, method: str, _, rows: list[list[Tensor]], groups: list[int], *__):
        self.kernel, self.groups = globals()[method], groups
        self.addresses = np.array([[t.data_ptr() for t in row] for row in rows], np.uint64)
        self.sizes = np.array([row[0].numel() for row in rows], np.int64)
        self.chunks = chunks_of(self.sizes.tolist(), CHUNK).numpy() * np.array([1, CHUNK])

    def __call__(self, gradients: list[int], scalars: list[Scalars], *_) -> None:
        """Make a step, with gradients at these addresses."""
        threads = torch.get_num_threads()
        set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
        self.addresses[:, 1] = gradients
        numbers = np.array([scalars[group] for group in self.groups], np.float64)
        self.kernel(self.addresses, self.sizes, numbers, self.chunks)
        if torch.get_num_threads() != threads:  # starting its threads, numba sets the number for all users of OpenMP
            torch.set_num_threads(threads)
