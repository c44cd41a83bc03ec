"""One set of tests for everything that is registered: a new optimizer is tested by being there."""

import copy
import inspect
import io
import pickle

import pytest
import stepping
import torch
from stepping import take_steps
from torch import nn

from olor_mm.optim import Rollback, registered, with_rollback

# what an optimizer needs beyond defaults to take sensible steps here
OPTIONS = {
    'AdadeltaOLOR': dict(lr=1.0),
    'AdamWOLOR': dict(lr=1e-2, weight_decay=0.05),
    'SGDOLOR': dict(lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.01),
    'RMSpropOLOR': dict(lr=1e-2, momentum=0.9),
}
LAMBDAS = (0.2, 0.05, 0.0)
every_optimizer = pytest.mark.parametrize('name', registered())


def options(name: str) -> dict:
    return OPTIONS.get(name, dict(lr=1e-2))


def parameters(name: str, dtype=torch.float32) -> list[nn.Parameter]:
    shapes = ((5, 3), (2, 7), (4, 4)) if name == 'MuonOLOR' else stepping.SHAPES  # Muon takes matrices
    return stepping.parameters(dtype, shapes=shapes)


def groups(params) -> list[dict]:
    return [dict(params=[p], rollback=level) for p, level in zip(params, LAMBDAS)]


def ours(name, params, **changes) -> Rollback:
    return registered()[name](groups(params), rollback_coupling='constant', **{**options(name), **changes})


def assert_same(these, those, **tolerance) -> None:
    for a, b in zip(these, those):
        torch.testing.assert_close(a, b, **(tolerance or dict(rtol=0, atol=0)))


def test_everything_dense_that_torch_has_is_registered():
    known = {name for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)}
    dense = {name for name in known if issubclass(getattr(torch.optim, name), torch.optim.Optimizer)}
    dense -= {'Optimizer', 'LBFGS', 'SparseAdam'}
    assert {f'{name}OLOR' for name in dense} == set(registered())
    import olor_mm.optim

    assert all(getattr(olor_mm.optim, name) is cls for name, cls in registered().items())


@every_optimizer
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_the_base_optimizer_and_a_float64_lerp(name, dtype, tolerance):
    """Every step of the base optimizer, from where we are, then the lerp in float64."""
    params, base = parameters(name, dtype), registered()[name].__bases__[-1]
    optimizer = ours(name, params)
    theirs = copy.deepcopy(params)
    stock = base([dict(params=[p]) for p in theirs], **options(name))
    anchors = [p.detach().double().clone() for p in params]
    furthest = 0.0
    for step in range(12):
        take_steps(optimizer, params, [step])
        take_steps(stock, theirs, [step])
        for p, q, anchor, level in zip(params, theirs, anchors, LAMBDAS):
            expected = q.detach().double() - level * (q.detach().double() - anchor)
            furthest = max(furthest, (expected - anchor).abs().max().item())
            torch.testing.assert_close(p.detach().double(), expected, rtol=tolerance, atol=tolerance)
            q.data = p.detach().clone()  # errors of one step, not of all before
    assert furthest > 0.01


@every_optimizer
def test_without_rollback_it_is_the_base_optimizer_bit_for_bit(name):
    params, theirs = parameters(name), parameters(name)
    base = registered()[name].__bases__[-1]
    take_steps(base(theirs, **options(name)), theirs, range(15))
    with pytest.warns(UserWarning, match='rollback is 0 in every parameter group'):
        take_steps(registered()[name](params, rollback=0.0, **options(name)), params, range(15))
    assert_same(params, theirs)


@every_optimizer
def test_a_parameter_of_level_zero_has_no_anchor_and_is_stepped_as_by_the_base(name):
    params, theirs = parameters(name), parameters(name)
    optimizer = ours(name, params)
    take_steps(optimizer, params, range(5))
    flags = {key: optimizer.param_groups[2][key] for key in ('foreach', 'fused') if key in optimizer.param_groups[2]}
    take_steps(registered()[name].__bases__[-1](theirs, **{**options(name), **flags}), theirs, range(5))
    assert torch.equal(params[2], theirs[2])
    assert [('anchor' in optimizer.state.get(p, {})) for p in params] == [True, True, False]


@every_optimizer
def test_full_rollback_stays_at_the_pretrained_weights(name):
    params = parameters(name)
    start = copy.deepcopy(params)
    optimizer = registered()[name](params, rollback=1.0, rollback_coupling='constant', **options(name))
    take_steps(optimizer, params, range(5))
    assert_same(params, start)


@every_optimizer
def test_state_round_trip_in_mid_training_is_exact(name):
    straight, first = parameters(name), parameters(name)
    take_steps(ours(name, straight), straight, range(20))
    optimizer = ours(name, first)
    take_steps(optimizer, first, range(8))
    file = io.BytesIO()
    torch.save(dict(state=optimizer.state_dict(), params=[p.data for p in first]), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = [nn.Parameter(p) for p in saved['params']]
    resumed = ours(name, second)
    resumed.load_state_dict(saved['state'])
    take_steps(resumed, second, range(8, 20))
    assert_same(second, straight)
    for p, start, level in zip(second, parameters(name), LAMBDAS):
        assert level == 0 or torch.equal(resumed.state[p]['anchor'], start)


@every_optimizer
@pytest.mark.parametrize('copier', [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(name, copier):
    if name == 'AdafactorOLOR' and torch.cuda.is_available():
        pytest.skip("on CUDA a copy of torch's own Adafactor raises KeyError: 'capturable'")
    params = parameters(name)
    optimizer = ours(name, params)
    take_steps(optimizer, params, range(4))
    other, copied = copier((optimizer, params))
    assert type(other) is registered()[name]
    take_steps(optimizer, params, range(4, 8))
    take_steps(other, copied, range(4, 8))
    assert_same(params, copied)


@every_optimizer
def test_foreach_and_fused_equal_the_for_loop(name):
    results = {}
    for flag in ('loop', 'foreach', 'fused'):
        params = parameters(name)
        try:
            optimizer = ours(name, params, **(dict(foreach=False) if flag == 'loop' else {flag: True}))
        except (TypeError, RuntimeError):  # this optimizer, or this torch, has no such way
            continue
        take_steps(optimizer, params, range(10))
        results[flag] = params
    has_foreach = 'foreach' in inspect.signature(registered()[name].__bases__[-1]).parameters
    assert {'loop', 'foreach'} <= results.keys() or not has_foreach
    for params in results.values():
        assert_same(params, results['loop'], rtol=2e-6, atol=1e-6)


@every_optimizer
def test_compiled_equals_eager(name):
    if name == 'NAdamOLOR' and torch.__version__ < '2.2':
        pytest.skip('this torch compiles NAdam for GPUs alone')
    torch._dynamo.reset()
    eager, compiled = parameters(name), parameters(name)
    changes = dict(foreach=True) if name != 'MuonOLOR' else {}
    if name == 'AdafactorOLOR':
        changes['eps'] = (1e-30, 1e-3)  # torch cannot compile its default
    take_steps(ours(name, eager, **changes), eager, range(6))
    optimizer = ours(name, compiled, **changes)
    step = torch.compile(optimizer.step, backend='aot_eager')
    for i in range(6):
        generator = torch.Generator().manual_seed(1000 + i)
        for p in compiled:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        step()
    in_bfloat16 = name == 'MuonOLOR'  # so it orthogonalises
    assert_same(compiled, eager, **(dict(rtol=1e-3, atol=1e-4) if in_bfloat16 else dict(rtol=1e-5, atol=1e-6)))
    assert all('anchor' in optimizer.state[p] for p in compiled[:2])


@every_optimizer
@pytest.mark.parametrize('by_closure', [False, True])
def test_gradients_of_other_strides_are_read_right(name, by_closure):
    """torch's fused kernels on CPU do not; the same values as contiguous tensors come out otherwise with them."""
    made = {}
    for turned in (False, True):
        params = parameters(name)
        optimizer = ours(name, params)
        for step in range(3):

            def closure(params=params, step=step, turned=turned):
                generator = torch.Generator().manual_seed(step)
                for p in params:
                    p.grad = torch.randn(p.shape, generator=generator)
                    if turned and p.ndim > 1:
                        p.grad = p.grad.transpose(0, 1).contiguous().transpose(0, 1)
                return 1.0

            if by_closure:
                assert optimizer.step(closure) == 1.0
            else:
                closure()
                optimizer.step()
        made[turned] = params
    assert_same(made[True], made[False], rtol=1e-6, atol=1e-6)


@every_optimizer
def test_a_parameter_without_gradient_is_left_alone_until_it_has_one(name):
    """Also when its state is saved in between: an anchor alone must not look like state of the base optimizer."""
    params = parameters(name)[:2]
    late, other = params
    make = lambda ps: registered()[name](ps, rollback=0.5, rollback_coupling='constant', **options(name))  # noqa: E731
    optimizer = make(params)
    for _ in range(2):
        other.grad = torch.ones_like(other)
        optimizer.step()
    start = parameters(name)[0]
    assert torch.equal(late, start)
    with torch.no_grad():
        late.add_(1.0)  # something else moved it
    resumed = make(params)
    resumed.load_state_dict(optimizer.state_dict())
    late.grad, other.grad = torch.full_like(late, 0.5), torch.ones_like(other)
    alone = nn.Parameter(late.detach().clone())
    alone.grad = late.grad.clone()
    resumed.step()
    flags = {key: resumed.param_groups[0][key] for key in ('foreach', 'fused') if key in resumed.param_groups[0]}
    registered()[name].__bases__[-1]([alone], **{**options(name), **flags}).step()
    torch.testing.assert_close(late.data, (alone.data + start.data) / 2, rtol=1e-5, atol=1e-6)


def test_lion_of_another_package():
    lion = pytest.importorskip('lion_pytorch').Lion
    params, theirs = parameters('Lion', torch.float64), parameters('Lion', torch.float64)
    optimizer, stock = (
        with_rollback(lion)(params, lr=1e-3, rollback=0.1, rollback_coupling='constant'),
        lion(theirs, lr=1e-3),
    )
    anchors = [p.detach().clone() for p in theirs]
    for step in range(5):
        take_steps(optimizer, params, [step])
        take_steps(stock, theirs, [step])
        for p, anchor in zip(theirs, anchors):
            p.data = p.data - 0.1 * (p.data - anchor)
    assert_same(params, theirs, rtol=1e-12, atol=1e-14)
