"""A drift budget: the bound that it promises, the rule against float64, and what the budget is a share of."""

import copy

import numpy as np
import pytest
import stepping
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import ReferenceAdam, ReferenceSGD
from torch import nn

from olor_mm.optim import SGDOLOR, AdamOLOR, AdamWOLOR, registered, with_rollback
from olor_mm.optim.state import AnchoredState

TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
OPTIMIZERS = {name: cls for name, cls in registered().items() if name != 'MuonOLOR'}  # which takes matrices alone
SHAPES = ((40, 3), (7,), (2, 3, 2, 2))
KINDS = {
    'random': lambda p, step, start: torch.randn_like(p),
    'constant': lambda p, step, start: torch.ones_like(p),
    'alternating': lambda p, step, start: torch.full_like(p, (-1.0) ** step),
    'exploding': lambda p, step, start: torch.randn_like(p) * (1e6 if step % 7 == 0 else 1.0),
    'sparse': lambda p, step, start: torch.where(torch.rand_like(p) < 0.05, torch.randn_like(p), 0.0),
    'away': lambda p, step, start: start - p - 1e-3,
}


def drift(params, starts) -> list[float]:
    pairs = [(p.detach().double(), start.detach().double()) for p, start in zip(params, starts)]
    return [float((p - start).norm() / start.norm()) for p, start in pairs]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(OPTIMIZERS)),
    kind=st.sampled_from(sorted(KINDS)),
    budget=st.sampled_from([1e-4, 0.01, 0.1, 1.0, 30.0]),
    rate=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]),
    seed=st.integers(0, 99),
)
@example(name='AdamWOLOR', kind='exploding', budget=0.05, rate=1.0, seed=0)
@example(name='SGDOLOR', kind='away', budget=0.05, rate=0.1, seed=0)
def test_drift_never_exceeds_the_budget(name, kind, budget, rate, seed):
    torch.manual_seed(seed)
    params = stepping.parameters(seed=seed, shapes=SHAPES)
    starts = copy.deepcopy(params)
    optimizer = OPTIMIZERS[name](params, lr=rate, rollback_drift=budget)
    for step in range(200):
        optimizer.param_groups[0]['lr'] = rate * (1, 0.1, 20.0, 0.0)[step // 13 % 4]
        for p, start in zip(params, starts):
            p.grad = KINDS[kind](p, step, start).detach()
        optimizer.step()
        assert max(drift(params, starts)) <= budget * (1 + 1e-5) + 1e-7


@pytest.mark.parametrize('name', sorted(registered()))
def test_a_budget_that_is_never_reached_leaves_the_base_optimizer(name):
    """To rounding: what is pulled is a part in 10^9 of a step."""
    cls = registered()[name]
    shapes = ((5, 3), (4, 4)) if name == 'MuonOLOR' else SHAPES
    ours, theirs = stepping.parameters(shapes=shapes), stepping.parameters(shapes=shapes)
    base = next(parent for parent in cls.__mro__ if not issubclass(parent, AnchoredState))
    stepping.take_steps(cls(ours, lr=1e-2, rollback_drift=1e9), ours, range(20))
    stepping.take_steps(base(theirs, lr=1e-2), theirs, range(20))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


class Transcribed:
    """The rule written out once more, around the float64 optimizers of ``reference``."""

    def __init__(self, base, budget):
        self.base, self.budget = base, budget

    def step(self, grad, rate):
        before = self.base.theta.copy()
        self.base.step(grad, rate)  # its level is 0
        learned, start = self.base.theta, self.base.theta_0
        share = np.linalg.norm(learned - before) / (self.budget * np.linalg.norm(start))
        self.base.theta = learned + min(1.0, share) * (start - learned)


CASES = {
    'adam': (AdamOLOR, ReferenceAdam, {}),
    'adamw': (AdamWOLOR, ReferenceAdam, dict(weight_decay=0.1)),
    'momentum': (SGDOLOR, ReferenceSGD, dict(momentum=0.9)),
}


@pytest.mark.parametrize('flags', [{}, dict(foreach=True), dict(foreach=False, fused=False)], ids=str)
@pytest.mark.parametrize('dtype, bound', [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_equals_the_rule_in_float64(case, dtype, bound, flags):
    cls, reference, options = CASES[case]
    params = stepping.parameters(dtype)
    expected = [
        Transcribed(reference(p.detach().double().numpy(), 0.0, 1.0, 'constant', **options), 0.05) for p in params
    ]
    if cls is SGDOLOR and TORCH < (2, 3):  # has no fused
        flags = {key: value for key, value in flags.items() if key != 'fused'}
    optimizer = cls(params, lr=1e-2, rollback_drift=0.05, **options, **flags)
    for step in range(100):
        rate = 1e-2 * (1 + step % 5)
        optimizer.param_groups[0]['lr'] = rate
        stepping.take_steps(optimizer, params, [step])
        for p, g, one in zip(params, stepping.gradients(step, dtype), expected):
            one.step(g.double().numpy(), rate)
            error = np.abs(p.detach().double().numpy() - one.base.theta).max()
            assert error <= bound * np.abs(one.base.theta).max()


def test_a_step_of_more_than_the_budget_is_taken_back_whole():
    params = stepping.parameters()
    starts = copy.deepcopy(params)
    optimizer = SGDOLOR(params, lr=1e6, rollback_drift=0.1)
    stepping.take_steps(optimizer, params, range(3))
    assert all(torch.equal(p, start) for p, start in zip(params, starts))


def test_without_a_step_nothing_is_pulled():
    params = stepping.parameters()
    optimizer = SGDOLOR(params, lr=1e-2, rollback_drift=0.1)
    stepping.take_steps(optimizer, params, range(3))
    before = copy.deepcopy(params)
    optimizer.param_groups[0]['lr'] = 0.0
    stepping.take_steps(optimizer, params, range(3))
    assert all(torch.equal(p, was) for p, was in zip(params, before))


def budgets(optimizer) -> list[tuple]:
    return [(group['rollback_drift'], group['rollback'], group['rollback_rule']) for group in optimizer.param_groups]


def test_groups_have_budgets_or_levels():
    a, b, c, d = stepping.parameters(shapes=[(3,)] * 4)
    groups = [dict(params=[a]), dict(params=[b], rollback_drift=0.2), dict(params=[c], rollback=0.3)]
    groups.append(dict(params=[d], rollback_drift=0.0))
    assert budgets(SGDOLOR(groups, lr=0.1, rollback_drift=0.1)) == [
        (0.1, 0.1, 'drift'),
        (0.2, 0.2, 'drift'),
        (0.0, 0.3, 'olor'),
        (0.0, 0.0, 'olor'),
    ]


@pytest.mark.parametrize('value', [-0.1, float('nan'), float('inf'), '0.1', None, True])
def test_a_budget_that_is_no_number_is_refused_by_name_and_value(value):
    with pytest.raises(ValueError, match='rollback_drift') as error:
        SGDOLOR(stepping.parameters(), lr=0.1, rollback_drift=value)
    assert repr(value) in str(error.value)


def test_a_level_and_a_budget_are_two_ways_of_one_thing():
    with pytest.raises(ValueError, match=r'rollback=0.1 and rollback_drift=0.2'):
        SGDOLOR([dict(params=stepping.parameters(), rollback=0.1, rollback_drift=0.2)], lr=0.1)


def made(names: list[str], values: list[torch.Tensor]) -> tuple[SGDOLOR, list[nn.Parameter]]:
    params = [nn.Parameter(value.clone()) for value in values]
    return SGDOLOR([dict(params=params, names=names)], lr=0.01, rollback_drift=0.1), params


WEIGHT, OTHER = torch.full((4, 4), 0.5), torch.full((9,), 2.0)


@pytest.mark.parametrize(
    'names, values, norm',
    [
        (['a.weight', 'a.bias', 'b.weight'], [WEIGHT, torch.zeros(4), OTHER], 0.5 * 2),
        (['a.weight', 'a.bias', 'b.weight'], [WEIGHT, torch.full((4,), 1e-3), OTHER], 0.5 * 2),
        (['a.weight', 'a.bias', 'b.weight'], [WEIGHT, torch.full((4,), 0.1), OTHER], 0.1 * 2),
        # a layer scale has nothing beside it in its module: the others of its group count
        (['a.weight', 'block.scale'], [WEIGHT, torch.full((4,), 1e-6)], 0.5 * 2),
        (['a.weight', 'a.bias'], [torch.zeros(4, 4), torch.zeros(4)], 0.0),
    ],
)
def test_a_tensor_of_nothing_has_the_norm_of_those_beside_it(names, values, norm):
    optimizer, params = made(names, values)
    stepping.take_steps(optimizer, params, range(1))
    assert optimizer.norm_of(params[1]) == pytest.approx(norm)
    assert optimizer.norm_of(params[0]) == pytest.approx(float(values[0].norm()))


def test_a_bias_of_zeros_learns_and_stays_within_the_budget_of_its_weight():
    optimizer, params = made(['a.weight', 'a.bias'], [WEIGHT, torch.zeros(4)])
    for _ in range(200):
        params[0].grad, params[1].grad = torch.zeros(4, 4), -torch.ones(4)
        optimizer.step()
        assert params[1].norm() <= 0.1 * 0.5 * 2 * (1 + 1e-5)
    assert params[1].norm() > 0


@pytest.mark.parametrize('flags', [{}, dict(foreach=True)], ids=str)
def test_a_resumed_run_goes_on_bit_for_bit(flags):
    def fresh():
        return AdamWOLOR([dict(params=stepping.parameters(), names=['a.weight', 'a.bias', 'b.weight'])], lr=1e-2,
                         rollback_drift=0.05, **flags)  # fmt: skip

    whole, first, second = fresh(), fresh(), fresh()
    params = [optimizer.param_groups[0]['params'] for optimizer in (whole, first, second)]
    stepping.take_steps(whole, params[0], range(8))
    stepping.take_steps(first, params[1], range(4))
    with torch.no_grad():
        for p, q in zip(params[2], params[1]):
            p.copy_(q)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    stepping.take_steps(second, params[2], range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(params[0], params[2]))


def test_a_closure_is_evaluated_once():
    params, calls = stepping.parameters(shapes=[(1 << 12,)] * 3), []
    optimizer = AdamWOLOR([dict(params=[p]) for p in params], lr=1e-2, rollback_drift=0.05)

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = sum((p - 1).square().sum() for p in params)
        loss.backward()
        return loss

    for number in (1, 2, 3):
        assert optimizer.step(closure) > 0
        assert len(calls) == number


class Accumulating(torch.optim.SGD):
    """As others have it: something that lasts is kept in the group."""

    def step(self, closure=None):
        for group in self.param_groups:
            group['k'] = group.get('k', 0) + 1
        return super().step(closure)


def test_what_an_optimizer_keeps_in_its_groups_is_kept():
    params = stepping.parameters()
    optimizer = with_rollback(Accumulating)([dict(params=[p]) for p in params], lr=0.1, rollback_drift=0.1)
    stepping.take_steps(optimizer, params, range(5))
    assert [group['k'] for group in optimizer.param_groups] == [5, 5, 5]
