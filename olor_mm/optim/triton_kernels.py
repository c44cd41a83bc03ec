"""Kernels of :mod:`olor_mm.optim.one_pass` for GPUs, compiled by Triton at their first call and cached.

A launch takes tensors of all groups: a table on the device has a row for each, of the addresses of parameter, gradient,
anchor and state, its number of elements and its group, and a program, which takes a chunk of one tensor, looks up its
row. Arithmetic is in float32, whatever the dtypes in memory. ``TRITON_INTERPRET=1``, set before this is imported, runs
the same code on tensors in host memory.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .one_pass import Scalars, chunks_of

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
BLOCK = 2048  # elements that are in the registers of a program at a time
CHUNK = 8  # blocks of a program
WARPS = 8
TAKES_TENSORS = True  # for a learning rate, the scale of gradients, or whether a step is skipped


@triton.jit
def _span(address, start, dtype: tl.constexpr, is_aligned: tl.constexpr):
    pointer = tl.load(address).to(tl.pointer_type(dtype))
    if is_aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def _load(pointers, mask, is_whole: tl.constexpr):
    if is_whole:  # noqa: SIM108
        value = tl.load(pointers)
    else:
        value = tl.load(pointers, mask=mask, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _store(pointers, value, mask, is_whole: tl.constexpr):
    if is_whole:
        tl.store(pointers, value.to(pointers.dtype.element_ty))
    else:
        tl.store(pointers, value.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _review(learned, anchor, w):
    # either form is exact at its own end: w = 0 keeps what was learned, w = 1 the anchor
    return tl.where(w < 0.5, learned + w * (anchor - learned), anchor - (1.0 - w) * (anchor - learned))


@triton.jit
def _block(
    method: tl.constexpr, P, G, A, S, V, mask, scale, rate, l2, c2, c3, c4, eps, correction, w,
    is_scaled: tl.constexpr, is_measured: tl.constexpr, is_whole: tl.constexpr,
):  # fmt: skip
    p, g = _load(P, mask, is_whole), _load(G, mask, is_whole)
    if is_scaled:  # and kept so, as torch's fused kernels do: users read p.grad after a step
        g = g * scale
        _store(G, g, mask, is_whole)
    g += l2 * p
    if method == 'adam':  # c2 to c4: what weight decay leaves, beta1, beta2
        m, v = _load(S, mask, is_whole), _load(V, mask, is_whole)
        m += (1.0 - c3) * (g - m)
        v = c4 * v + (1.0 - c4) * (g * g)
        _store(S, m, mask, is_whole)
        _store(V, v, mask, is_whole)
        learned = c2 * p - rate * tl.div_rn(m, tl.sqrt_rn(v) * correction + eps)
    elif method == 'momentum_sgd':  # momentum, dampening, nesterov
        b = c2 * _load(S, mask, is_whole) + (1.0 - c3) * g
        _store(S, b, mask, is_whole)
        learned = p - rate * tl.where(c4 != 0, g + c2 * b, b)
    else:
        learned = p - rate * g
    if is_measured:
        learned = learned.to(P.dtype.element_ty)
        _store(P, learned, mask, is_whole)
        step = learned.to(tl.float32) - p
        square = tl.sum(tl.where(mask, step * step, 0.0))
    else:
        _store(P, _review(learned, _load(A, mask, is_whole), w), mask, is_whole)
        square = 0.0
    return square


@triton.jit
def _step(
    table, all_scalars, chunks, squares, grad_scale, found_inf, method: tl.constexpr, p_type: tl.constexpr,
    g_type: tl.constexpr, a_type: tl.constexpr, s_type: tl.constexpr, v_type: tl.constexpr,
    is_aligned: tl.constexpr, is_scaled: tl.constexpr, is_measured: tl.constexpr, may_skip: tl.constexpr,
    block: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Columns of ``table`` (int64): p, g, a, momentum, exp_avg_sq, step, size, group; w is the last scalar (float64).

    ``chunks`` (int32) has the row and the number of the chunk within its tensor of every program. With a drift budget,
    ``squares`` (float32) gets the squared length of the step of every chunk, and nothing is taken back yet.
    """
    if may_skip:  # noqa: SIM102  # compiled away, with what is within
        if tl.load(found_inf) != 0:
            return
    place = chunks + 2 * tl.program_id(0)
    row = table + 8 * tl.load(place)
    start = tl.load(place + 1).to(tl.int64) * (chunk * block)
    size = tl.load(row + 6) - start
    scalars = all_scalars + 8 * tl.load(row + 7)
    rate, c3, c4 = tl.load(scalars), tl.load(scalars + 3), tl.load(scalars + 4)
    correction = rate
    if method == 'adam':  # in float64: 1 - beta2^step loses three digits at the start; `step` counts this one already
        step = tl.load(tl.load(row + 5).to(tl.pointer_type(tl.float32))).to(tl.float64)
        rate = rate / (1.0 - tl.exp2(step * tl.log2(c3)))
        correction = 1.0 / tl.sqrt(1.0 - tl.exp2(step * tl.log2(c4)))
    l2, c2 = tl.load(scalars + 1).to(tl.float32), tl.load(scalars + 2).to(tl.float32)
    eps, w = tl.load(scalars + 5).to(tl.float32), tl.load(scalars + 7).to(tl.float32)
    rate, c3, c4, correction = rate.to(tl.float32), c3.to(tl.float32), c4.to(tl.float32), correction.to(tl.float32)
    scale = w
    if is_scaled:
        scale = 1.0 / tl.load(grad_scale)
    P, G = _span(row, start, p_type, is_aligned), _span(row + 1, start, g_type, is_aligned)
    A, S = _span(row + 2, start, a_type, is_aligned), _span(row + 3, start, s_type, is_aligned)
    V = _span(row + 4, start, v_type, is_aligned)
    square = 0.0
    for number in range(chunk):
        i = number * block + tl.arange(0, block)
        if (number + 1) * block <= size:
            square += _block(
                method, P + i, G + i, A + i, S + i, V + i, i < size, scale, rate, l2, c2, c3, c4, eps, correction, w,
                is_scaled, is_measured, True,
            )  # fmt: skip
        elif number * block < size:
            square += _block(
                method, P + i, G + i, A + i, S + i, V + i, i < size, scale, rate, l2, c2, c3, c4, eps, correction, w,
                is_scaled, is_measured, False,
            )  # fmt: skip
    if is_measured:
        tl.store(squares + tl.program_id(0), square)


@triton.jit
def _weigh(squares, firsts, radii, weights, block: tl.constexpr):
    """w of every tensor by its drift budget; tensor i has the chunks from ``firsts[i]`` to ``firsts[i + 1]``."""
    tensor = tl.program_id(0)
    first, end, radius = tl.load(firsts + tensor), tl.load(firsts + tensor + 1), tl.load(radii + tensor)
    total = tl.zeros((block,), tl.float32)
    while first < end:
        i = first + tl.arange(0, block)
        total += tl.load(squares + i, mask=i < end, other=0.0)
        first += block
    length = tl.sqrt_rn(tl.sum(total))
    if radius > 0:  # noqa: SIM108
        w = tl.minimum(length / radius, 1.0)
    else:
        w = tl.where(length > 0, 1.0, 0.0)
    tl.store(weights + tensor, w)


@triton.jit
def _take_back(
    table, chunks, weights, found_inf, p_type: tl.constexpr, a_type: tl.constexpr, is_aligned: tl.constexpr,
    may_skip: tl.constexpr, block: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    if may_skip:  # noqa: SIM102  # compiled away, with what is within
        if tl.load(found_inf) != 0:
            return
    place = chunks + 2 * tl.program_id(0)
    row, w = table + 8 * tl.load(place), tl.load(weights + tl.load(place))
    start = tl.load(place + 1).to(tl.int64) * (chunk * block)
    size = tl.load(row + 6) - start
    P, A = _span(row, start, p_type, is_aligned), _span(row + 2, start, a_type, is_aligned)
    for number in range(chunk):
        i = number * block + tl.arange(0, block)
        if (number + 1) * block <= size:
            _store(P + i, _review(_load(P + i, i < size, True), _load(A + i, i < size, True), w), i < size, True)
        elif number * block < size:
            _store(P + i, _review(_load(P + i, i < size, False), _load(A + i, i < size, False), w), i < size, False)


def kind(tensors: list[Tensor]) -> tuple | None:
    """What the tensors of one launch have in common; None if no kernel takes them."""
    p, columns = tensors[0], tensors[:5]
    is_dense = all(t.is_contiguous() for t in columns) or (
        p.ndim == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in columns)
    )
    dtypes = [t.dtype for t in columns]
    return (p.device, *dtypes) if p.numel() and is_dense and all(dtype in DTYPES for dtype in dtypes) else None


class Launch:
    """Steps some parameters by one launch.

    Args:
        method (str): 'adam', 'momentum_sgd' or 'sgd'.
        kind (tuple): Device and dtypes of the columns.
        rows (list[list[Tensor]]): Of every parameter, its columns.
        groups (list[int]): Of every parameter, the place of its numbers among those that a call is given.
        radii (list[float], optional): Of every parameter, how far its drift budget lets it go. None if levels pull.
        kept (list): Takes what CUDA graphs go on to read.
    """

    def __init__(
        self,
        method: str,
        kind: tuple,
        rows: Sequence[list[Tensor]],
        groups: Sequence[int],
        radii: Sequence[float] | None,
        kept: list,
    ):
        self.method, self.kept = method, kept
        self.device, *dtypes = kind
        self.dtypes = [DTYPES[dtype] for dtype in (*dtypes, *dtypes[:1] * (5 - len(dtypes)))]
        sizes = [row[0].numel() for row in rows]
        self.chunks = chunks_of(sizes, CHUNK * BLOCK).to(self.device, torch.int32)
        addresses = [[t.data_ptr() for t in row] for row in rows]
        self.steps = [row[5] for row in rows if len(row) > 5]
        table = [[*row, *[0] * (6 - len(row)), *more] for row, *more in zip(addresses, sizes, groups)]
        self.rows = torch.tensor(table)
        self.rest_is_aligned = all(x % 16 == 0 for row in addresses for x in (row[0], *row[2:5]))
        self.squares: Tensor | None = None
        if radii is not None:
            counts = torch.bincount(self.chunks[:, 0].cpu(), minlength=len(rows))
            self.firsts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(self.device, torch.int32)
            self.radii = torch.tensor(radii, dtype=torch.float32, device=self.device)
            self.weights, self.squares = torch.empty_like(self.radii), self.radii.new_empty(len(self.chunks))
        self.content: tuple = ()
        self.table = torch.empty(0)
        self.spare: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, gradients: list[int], scalars: list[Scalars], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Make a step, with gradients at these addresses.

        ``grad_scale`` and ``found_inf`` have one element: gradients are divided by the first, and where the second is
        not 0 nothing is changed.
        """
        grad_scale, found_inf = (t if t is None else t.to(self.device) for t in (grad_scale, found_inf))
        if self.steps:
            torch._foreach_add_(self.steps, 1)
            if found_inf is not None:
                torch._foreach_sub_(self.steps, [found_inf] * len(self.steps))
        table = self._uploaded(gradients, scalars)
        rows, numbers = table[: len(self.rows)], table[len(self.rows) :].view(torch.float64)
        sizes = dict(block=BLOCK, chunk=CHUNK, num_warps=WARPS)
        options = dict(may_skip=found_inf is not None, is_aligned=self.is_aligned, **sizes)
        is_measured, is_scaled = self.squares is not None, grad_scale is not None
        grid = (len(self.chunks),)
        with torch.cuda.device_of(table):
            _step[grid](
                rows, numbers, self.chunks, self.squares, grad_scale, found_inf, self.method, *self.dtypes,
                is_scaled=is_scaled, is_measured=is_measured, **options,
            )  # fmt: skip
            if is_measured:
                _weigh[(len(self.rows),)](self.squares, self.firsts, self.radii, self.weights, block=128)
                p_type, _, a_type, *_ = self.dtypes
                _take_back[grid](rows, self.chunks, self.weights, found_inf, p_type, a_type, **options)

    def _uploaded(self, gradients: list[int], scalars: list[Scalars]) -> Tensor:
        """Rows and scalars on the device, int64 of shape (tensors + groups, 8); the last step's if it had the same."""
        capturing = self.device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
        if not capturing and self.content == (gradients, scalars):
            return self.table
        count, shape = len(gradients), (len(gradients) + len(scalars), 8)
        host, table = pair = self.spare if capturing and self.spare else self._buffers(shape)
        self.rows[:, 1] = torch.tensor(gradients)
        host[:count] = self.rows
        # w is the last of the scalars; what is between is not read
        numbers = [[*given[:-1], *[0.0] * (8 - len(given)), given[-1]] for given in scalars]
        floats = [[0.0 if isinstance(x, Tensor) else x for x in row] for row in numbers]
        host[count:].view(torch.float64)[:] = torch.tensor(floats, dtype=torch.float64)
        table.copy_(host, non_blocking=True)
        on_device = [(i, j, x) for i, row in enumerate(numbers) for j, x in enumerate(row) if isinstance(x, Tensor)]
        for i, j, x in on_device:
            table[count + i].view(torch.float64)[j] = x
        self.is_aligned = self.rest_is_aligned and all(address % 16 == 0 for address in gradients)
        if capturing:  # a replay copies from the same memory, so it stays as it is
            self.kept.append(pair)
            self.spare = None
        else:
            # a rate in a tensor may change in place
            self.content, self.table = () if on_device else (gradients, scalars), table
            if self.spare is None or self.spare[0].shape != shape:
                self.spare = self._buffers(shape)  # none can be made while a CUDA graph is captured
        return table

    def _buffers(self, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """In memory from which a copy needs no waiting, and on the device."""
        host = torch.empty(shape, dtype=torch.int64, pin_memory=self.device.type == 'cuda')
        return host, torch.empty(shape, dtype=torch.int64, device=self.device)
