"""The kernels of the one-pass path against the two-pass rule, and what must stay outside of them."""

import copy
import subprocess
import sys
from functools import partial

import pytest
import stepping
import torch
from stepping import take_steps
from torch import nn

from olor_mm.optim import SGDOLOR, AdamOLOR, AdamWOLOR, Rollback

pytest.importorskip('numba')
from olor_mm.optim import kernels

TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
pytestmark = pytest.mark.skipif(TORCH < (2, 4), reason='no fused optimizers on CPU before torch 2.4')
# one element, an odd number, more than a chunk of the kernel, and a number that no vector divides
SHAPES = ((1,), (7, 3), (300, 211), (16_385,))
CASES = {
    'adam': (AdamOLOR, torch.optim.Adam, dict(lr=1e-2)),
    'adam with L2': (AdamOLOR, torch.optim.Adam, dict(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-4)),
    'adamw': (AdamWOLOR, torch.optim.AdamW, dict(lr=1e-2, weight_decay=0.05)),
    'sgd': (SGDOLOR, torch.optim.SGD, dict(lr=1e-2, weight_decay=0.1)),
    'momentum': (SGDOLOR, torch.optim.SGD, dict(lr=1e-2, momentum=0.9, dampening=0.1)),
    'nesterov': (SGDOLOR, torch.optim.SGD, dict(lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1)),
}
every_case = pytest.mark.parametrize('case', CASES)
parameters = partial(stepping.parameters, shapes=SHAPES)


@pytest.fixture
def taken(monkeypatch) -> list[int]:
    """Numbers of parameters that each call of a kernel took."""
    counts, run = [], kernels.run

    def count_and_run(kernel, addresses, sizes, scalars):
        counts.append(len(sizes))
        run(kernel, addresses, sizes, scalars)

    monkeypatch.setattr(kernels, 'run', count_and_run)
    return counts


@every_case
@pytest.mark.parametrize('level', [0.001, 0.3, 0.7, 1.0])
def test_equals_two_passes(case, level, taken):
    cls, base, options = CASES[case]
    two_pass = type('TwoPass', (Rollback, base), {})
    settings = dict(rollback=level, rollback_coupling='constant', fused=True, **options)
    ours, theirs = parameters(), parameters()
    optimizer, reference = cls(ours, **settings), two_pass(theirs, **settings)
    for step in range(6):
        take_steps(optimizer, ours, [step])
        take_steps(reference, theirs, [step])
        for p, q, start in zip(ours, theirs, parameters()):
            assert (q - start).abs().max() > 0 or level == 1.0
            torch.testing.assert_close(p, q, rtol=1e-6, atol=3e-7)
            for key, value in reference.state[q].items():
                torch.testing.assert_close(optimizer.state[p][key], value, rtol=1e-4, atol=1e-6)
    assert sum(taken) >= 5 * len(SHAPES)  # the first step makes the state
    if level == 1.0:
        assert all(torch.equal(p, start) for p, start in zip(ours, parameters()))


def test_groups_keep_their_own_options(taken):
    def make(cls, params):
        groups = [
            dict(params=params[:1], rollback=0.3, lr=0.1, weight_decay=0.2),
            dict(params=params[1:2]),
            dict(params=params[2:], rollback=0.1, betas=(0.5, 0.9)),
        ]
        return cls(groups, lr=1e-2, fused=True)

    ours, theirs = parameters(), parameters()
    take_steps(make(AdamWOLOR, ours), ours, range(5))
    take_steps(make(type('TwoPass', (Rollback, torch.optim.AdamW), {}), theirs), theirs, range(5))
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert [count for count in taken if count] == [3] * 4


def shrink_to_two_passes():
    half = lambda params: [nn.Parameter(p.detach().bfloat16()) for p in params]  # noqa: E731
    strided = lambda params: [nn.Parameter(torch.randn(8, 4).t())]  # noqa: E731
    return {
        'foreach': (dict(foreach=True), None),
        'loop': (dict(foreach=False, fused=False), None),
        'amsgrad': (dict(amsgrad=True), None),
        'maximize': (dict(maximize=True), None),
        'rate in a tensor': (dict(lr=torch.tensor(1e-2)), None),
        'anchors of another dtype': (dict(anchor_dtype='bfloat16'), None),
        'bfloat16': ({}, half),
        'not contiguous': ({}, strided),
    }


@pytest.mark.parametrize('case', shrink_to_two_passes())
def test_what_a_kernel_cannot_do_goes_by_two_passes(case, taken):
    options, change = shrink_to_two_passes()[case]
    params = (change or (lambda ps: ps))(parameters())
    start = copy.deepcopy(params)
    settings = dict(lr=1e-2, rollback=0.5, rollback_coupling='constant')
    optimizer = AdamWOLOR(params, **{**settings, **options})
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert sum(taken) == 0
    assert all(0 < (p - q).abs().max() < 0.02 for p, q in zip(params, start))


def test_a_gradient_that_is_not_contiguous_is_read_right():
    params = [nn.Parameter(torch.zeros(4, 6))]
    optimizer = SGDOLOR(params, lr=1.0, rollback=0.5, rollback_coupling='constant')
    for expected in (-0.5, -0.75):  # the first step is the base optimizer's, the second a kernel's
        gradient = torch.arange(24.0).reshape(6, 4).t()
        params[0].grad = gradient
        optimizer.step()
        assert torch.equal(params[0].data, expected * gradient)


def test_autograd_sees_that_parameters_have_changed():
    p = nn.Parameter(torch.ones(3))
    optimizer = SGDOLOR([p], lr=0.1, rollback=0.5, rollback_coupling='constant')
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()


def test_a_nan_in_a_gradient_is_not_hidden():
    params = parameters()
    optimizer = AdamWOLOR(params, lr=1e-2, rollback=0.1)
    take_steps(optimizer, params, range(2))
    params[2].grad[5, 7] = float('nan')
    optimizer.step()
    assert params[2].isnan().sum() == 1


THREADS = """
import torch
from olor_mm.optim import AdamWOLOR
assert torch.get_num_threads() == 1
p = torch.nn.Parameter(torch.ones(100_000))
optimizer = AdamWOLOR([p], rollback=0.1)
for _ in range(3):
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.get_num_threads() == 1
"""


def test_the_number_of_threads_stays_as_it_was():
    """Of all users of OpenMP: numba sets it when it starts its own, and sums would come out otherwise after it."""
    command = ['env', 'OMP_NUM_THREADS=1', sys.executable, '-W', 'ignore', '-c', THREADS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_numba_it_is_two_passes():
    code = 'import sys; sys.modules["numba"] = None\n' + THREADS.replace('assert torch.get_num_threads() == 1', '')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('by_closure', [False, True])
def test_a_parameter_whose_first_gradient_comes_late_gets_its_momentum(by_closure):
    """torch's fused SGD fails on it."""
    for nesterov in (False, True):
        ours, theirs = parameters(), parameters()
        options = dict(lr=0.1, momentum=0.9, nesterov=nesterov)
        optimizer = SGDOLOR([dict(params=ours, rollback=1e-9)], rollback_coupling='constant', **options)
        stock = torch.optim.SGD(theirs, **options)
        for step in range(5):
            for params, o in ((ours, optimizer), (theirs, stock)):

                def closure(params=params, step=step):
                    for i, p in enumerate(params):
                        p.grad = torch.full_like(p, float(step)) if step >= i else None
                    return 1.0

                if by_closure:
                    assert o.step(closure) == 1.0
                else:
                    closure()
                    o.step()
        for p, q in zip(ours, theirs):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)
