"""The kernels of the one-pass path against the two-pass rule, and what must stay outside of them.

Those of Triton run on a GPU where there is one, else in Triton's interpreter on CPU.
"""

import copy
import os
import subprocess
import sys
import weakref
from importlib import import_module

import numpy as np
import pytest
import stepping
import torch
from reference import ReferenceAdam
from stepping import take_steps
from torch import nn

from olor_mm.optim import SGDOLOR, AdamOLOR, AdamWOLOR, Rollback, one_pass

HAS_GPU = torch.cuda.is_available()
os.environ.setdefault('TRITON_INTERPRET', str(int(not HAS_GPU)))  # read when the kernels are imported
TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
pytestmark = pytest.mark.skipif(TORCH < (2, 4), reason='no fused optimizers on CPU before torch 2.4')
# one element, an odd number, more than a chunk of the kernel, and a number that no vector divides
SHAPES = dict(numba=((1,), (7, 3), (300, 211), (16_385,)), triton=((1,), (7, 3), (60, 91), (4_097,)))
CASES = {
    'adam': (AdamOLOR, torch.optim.Adam, dict(lr=1e-2)),
    'adam with L2': (AdamOLOR, torch.optim.Adam, dict(lr=1e-2, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-4)),
    'adamw': (AdamWOLOR, torch.optim.AdamW, dict(lr=1e-2, weight_decay=0.05)),
    'sgd': (SGDOLOR, torch.optim.SGD, dict(lr=1e-2, weight_decay=0.1)),
    'momentum': (SGDOLOR, torch.optim.SGD, dict(lr=1e-2, momentum=0.9, dampening=0.1)),
    'nesterov': (SGDOLOR, torch.optim.SGD, dict(lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1)),
}
every_case = pytest.mark.parametrize('case', CASES)


@pytest.fixture(params=SHAPES)
def library(request) -> str:
    """What the kernels are written with."""
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def kernels(library, monkeypatch):
    """The kernels, which are given what is on the device of ``parameters``."""
    module = import_module('olor_mm.optim.' + dict(numba='kernels', triton='triton_kernels')[library])
    if library == 'triton' and not HAS_GPU:
        monkeypatch.setattr(one_pass, '_kernels', lambda device: module)
    return module


@pytest.fixture
def parameters(library, kernels):
    def make(dtype=torch.float32) -> list[nn.Parameter]:
        params = stepping.parameters(dtype, shapes=SHAPES[library])
        return [nn.Parameter(p.detach().cuda()) for p in params] if HAS_GPU and library == 'triton' else params

    return make


@pytest.fixture
def taken(monkeypatch, kernels) -> list[int]:
    """Numbers of parameters that each call of a kernel took."""
    counts, launch = [], kernels.Launch.__call__

    def count_and_launch(self, gradients, *args):
        counts.append(len(gradients))
        launch(self, gradients, *args)

    monkeypatch.setattr(kernels.Launch, '__call__', count_and_launch)
    return counts


STRENGTHS = [*(dict(rollback=level, rollback_coupling='constant') for level in (0.001, 0.3, 0.7, 1.0))]
STRENGTHS += [dict(rollback_drift=budget) for budget in (0.1, 1.0)]


@every_case
@pytest.mark.parametrize('strength', STRENGTHS, ids=str)
def test_equals_two_passes(case, strength, taken, parameters):
    cls, base, options = CASES[case]
    two_pass = type('TwoPass', (Rollback, base), {})
    settings = dict(**strength, fused=True, **options)
    stays = strength.get('rollback') == 1.0
    ours, theirs = parameters(), parameters()
    optimizer, reference = cls(ours, **settings), two_pass(theirs, **settings)
    for step in range(6):
        take_steps(optimizer, ours, [step])
        take_steps(reference, theirs, [step])
        for p, q, start in zip(ours, theirs, parameters()):
            assert (q - start).abs().max() > 0 or stays
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6 if 'rollback' in strength else 3e-6)
            for key, value in reference.state[q].items():
                torch.testing.assert_close(optimizer.state[p][key], value, rtol=1e-4, atol=1e-6)
    assert sum(taken) >= 5 * len(ours)  # the first step makes the state
    if stays:
        assert all(torch.equal(p, start) for p, start in zip(ours, parameters()))


def test_groups_keep_their_own_options(taken, parameters):
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


OUTSIDE = {
    'foreach': dict(foreach=True),
    'loop': dict(foreach=False, fused=False),
    'amsgrad': dict(amsgrad=True),
    'maximize': dict(maximize=True),
    'not contiguous': {},
    # what is beyond numba's kernels alone
    'rate in a tensor': dict(lr=torch.tensor(1e-2)),
    'anchors of another dtype': dict(anchor_dtype='bfloat16'),
    'bfloat16': {},
}


@pytest.mark.parametrize('case', OUTSIDE)
def test_what_a_kernel_cannot_do_goes_by_two_passes(case, taken, parameters, library):
    if library == 'triton' and [*OUTSIDE].index(case) > [*OUTSIDE].index('not contiguous'):
        pytest.skip('these kernels do it')
    options = OUTSIDE[case]
    params = parameters(torch.bfloat16 if case == 'bfloat16' else torch.float32)
    if case == 'not contiguous':
        params = [nn.Parameter(p.detach().t()) for p in params if p.ndim == 2]
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


def test_a_nan_in_a_gradient_is_not_hidden(parameters):
    params = parameters()
    optimizer = AdamWOLOR(params, lr=1e-2, rollback=0.1)
    take_steps(optimizer, params, range(2))
    params[2].grad[5, 7] = float('nan')
    optimizer.step()
    assert params[2].isnan().sum() == 1


def of_triton(test):
    """What these kernels can do beyond those of numba."""
    return pytest.mark.parametrize('library', ['triton'], indirect=True)(test)


# dtype of parameters and gradients, of the state, of anchors; largest error, relative to the largest weight: a unit of
# rounding in each step, as Triton's interpreter cuts off where a GPU rounds
MIXED = {
    'fp32': (torch.float32, torch.float32, None, 2e-6),
    'bf16': (torch.bfloat16, torch.bfloat16, None, 5 * 2**-8),
    'bf16 with a state in fp32': (torch.bfloat16, torch.float32, None, 5 * 2**-8),
    'fp16 with a state in fp32': (torch.float16, torch.float32, None, 5 * 2**-11),
    'bf16 anchors': (torch.float32, torch.float32, 'bfloat16', 2**-9),
}


@of_triton
@pytest.mark.parametrize('mix', MIXED)
@pytest.mark.parametrize('size', [1, 2, 1023, 1024, 4095, 4097, pytest.param((1 << 20) + 3, marks=pytest.mark.slow)])
@pytest.mark.parametrize('is_view', [False, True])
def test_equals_the_rule_in_float64(mix, size, is_view, taken):
    dtype, of_state, of_anchor, bound = MIXED[mix]
    [start] = stepping.drawn(0, dtype, [(size,)])
    if is_view:  # from an odd place, so that no element is where a vector of them could begin
        start = torch.cat([start[:1], start])[1:]
    p, start = nn.Parameter(start.cuda() if HAS_GPU else start), start.clone()
    # the first step makes the state, in the dtype of the parameter, so it is one without an effect
    optimizer = AdamWOLOR([p], lr=1e-2, rollback=0.3, fused=True, anchor_dtype=of_anchor)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    with torch.no_grad():
        p.copy_(start)
    for key in ('exp_avg', 'exp_avg_sq'):
        optimizer.state[p][key] = optimizer.state[p][key].to(of_state)
    reference = ReferenceAdam(start.double().numpy(), 0.3, 1e-2, 'lr', weight_decay=1e-2)
    reference.step(np.zeros(size), 0.0)
    for step in range(1 if size > 1e6 else 5):
        rate = 1e-2 * (1 - step / 10)
        optimizer.param_groups[0]['lr'] = rate
        [p.grad] = [g.to(p.device) for g in stepping.drawn(1 + step, dtype, [(size,)])]
        reference.step(p.grad.double().cpu().numpy(), rate)
        optimizer.step()
    assert sum(taken) == (1 if size > 1e6 else 5)
    error = np.abs(p.detach().double().cpu().numpy() - reference.theta).max()
    assert error <= bound * np.abs(reference.theta).max()


@of_triton
@every_case
def test_a_scaled_gradient_is_unscaled_and_a_step_that_found_inf_is_skipped(case, taken, parameters):
    """As a GradScaler asks of torch's fused optimizers."""
    cls, _, options = CASES[case]
    ours, theirs = parameters(), parameters()
    settings = dict(rollback=0.1, fused=True, **options)
    optimizer, reference = cls(ours, **settings), cls(theirs, **settings)
    scale, device = 1024.0, ours[0].device
    take_steps(optimizer, ours, [0])
    for step in range(1, 5):
        skipped = step == 2
        for p, g in zip(ours, stepping.gradients(step, shapes=[p.shape for p in ours])):
            p.grad = scale * g.to(device)
        if skipped:
            ours[0].grad.fill_(float('inf'))
        optimizer.grad_scale = torch.tensor(scale, device=device)
        optimizer.found_inf = torch.tensor(float(skipped), device=device)
        optimizer.step()
        if not skipped:
            given = stepping.gradients(step, shapes=[p.shape for p in ours])
            torch.testing.assert_close([p.grad.cpu() for p in ours], given)
    assert sum(taken) >= 4 * len(ours)
    take_steps(reference, theirs, [0, 1, 3, 4])
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        for key, value in reference.state[q].items():
            torch.testing.assert_close(optimizer.state[p][key], value, rtol=1e-4, atol=1e-6)


@of_triton
@every_case
def test_a_rate_may_be_a_tensor(case, taken, parameters):
    cls, _, options = CASES[case]
    ours, theirs = parameters(), parameters()
    rate = torch.tensor(options['lr'], device=ours[0].device)
    optimizer = cls(ours, rollback=0.1, fused=True, **{**options, 'lr': rate})
    reference = cls(theirs, rollback=0.1, fused=True, **options)
    for step in range(4):
        for group in (*optimizer.param_groups, *reference.param_groups):
            if torch.is_tensor(group['lr']):
                group['lr'].fill_(options['lr'] / (1 + step))
            else:
                group['lr'] = options['lr'] / (1 + step)
        take_steps(optimizer, ours, [step])
        take_steps(reference, theirs, [step])
    assert sum(taken) >= 2 * 3 * len(ours)
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@of_triton
def test_convolutions_whose_channels_are_last_are_stepped_too(taken):
    def made():
        [value] = stepping.drawn(0, torch.float32, [(8, 3, 3, 3)])
        value = value.cuda() if HAS_GPU else value
        return [nn.Parameter(value.contiguous(memory_format=torch.channels_last))]

    ours, theirs = made(), made()
    optimizer = AdamWOLOR(ours, lr=1e-2, rollback=0.3)
    reference = type('TwoPass', (Rollback, torch.optim.AdamW), {})(theirs, lr=1e-2, rollback=0.3)
    for step in range(4):
        for o, [p] in ((optimizer, ours), (reference, theirs)):
            p.grad = torch.empty_like(p).copy_(stepping.gradients(step, shapes=[p.shape])[0])
            o.step()
    assert sum(taken) == 3
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_momentum_in_16_bits_on_cpu_is_that_of_the_loop(dtype):
    """torch's fused kernel would be taken, and is wrong there."""
    ours, theirs = (stepping.parameters(dtype, shapes=[(1000,)]) for _ in range(2))
    settings = dict(lr=1e-2, momentum=0.9, rollback=1e-6)
    take_steps(SGDOLOR(ours, **settings), ours, range(5))
    take_steps(SGDOLOR(theirs, foreach=False, fused=False, **settings), theirs, range(5))
    torch.testing.assert_close(ours, theirs)


def test_memory_that_is_replaced_between_steps_is_seen(taken, parameters):
    """As by loading a state, by `.data = ...` of helpers that move states, and by a cast of the model."""

    def replace(p, state, step):
        if step == 1:
            p.data = p.data.clone()
        elif step == 2:
            state['anchor'] = state['anchor'].clone()
        elif step == 3:
            for value in state.values():
                value.data = value.data.clone()
        elif step == 4:
            p.grad = torch.empty(2 * p.numel(), device=p.device)[::2].view_as(p).copy_(p.grad)

    ours, theirs = parameters(), parameters()
    optimizer = AdamWOLOR(ours, lr=1e-2, rollback=0.3)
    reference = AdamWOLOR(theirs, lr=1e-2, rollback=0.3)
    for step in range(7):
        for p, g in zip(ours, stepping.gradients(step, shapes=[p.shape for p in ours])):
            p.grad = g.to(p.device)
            if step:
                replace(p, optimizer.state[p], step)
        optimizer.step()
        if step == 5:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        take_steps(reference, theirs, [step])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    del g
    gone = [weakref.ref(p.grad) for p in ours]
    optimizer.zero_grad()
    assert all(gradient() is None for gradient in gone)


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
def test_a_parameter_whose_first_gradient_comes_late_gets_its_momentum(by_closure, parameters):
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
