"""A parameter of which some rows are pre-trained: those are pulled, and the new ones are free."""

import copy
import io

import pytest
import stepping
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from olor_mm.optim import AdamWOLOR, registered
from olor_mm.pretrained import mark_new

# the update of an element depends on that element alone
BY_ELEMENT = sorted(set(registered()) - {'AdafactorOLOR', 'MuonOLOR'})
STRENGTHS = {
    'olor': dict(rollback=0.2, rollback_coupling='constant'),
    'drift': dict(rollback_drift=0.05),
    'l2sp': dict(rollback=0.1, rollback_new=0.3, rollback_rule='l2sp'),
    'l2sp_decoupled': dict(rollback=5.0, rollback_new=3.0, rollback_rule='l2sp_decoupled'),
    'spd': dict(rollback=1.0, rollback_rule='spd'),
}
OLD, NEW = [0, 2, 5], [1, 3, 4]


def rows(size: int = 6) -> torch.Tensor:
    is_new = torch.zeros(size, 4, dtype=torch.bool)
    is_new[NEW] = True
    return is_new


def head(dtype=torch.float32) -> nn.Parameter:
    p = nn.Parameter(stepping.drawn(3, dtype, [(6, 4)])[0])
    mark_new(p, rows())
    return p


def step(optimizer, params, number: int) -> None:
    stepping.take_steps(optimizer, params, [number])


@pytest.mark.parametrize('rule', STRENGTHS)
@pytest.mark.parametrize('name', BY_ELEMENT)
def test_one_head_trains_as_its_old_rows_with_an_anchor_and_its_new_ones_without(name, rule):
    whole = head()
    old, new = nn.Parameter(whole.detach()[OLD].clone()), nn.Parameter(whole.detach()[NEW].clone())
    options = dict(lr=1e-2, **STRENGTHS[rule])
    together, apart = registered()[name]([whole], **options), registered()[name]([old, new], **options)
    apart.select_pretrained = lambda params: [p for p in params if p is old]
    for number in range(12):
        whole.grad = stepping.gradients(number, shapes=[(6, 4)], period=3)[0]
        old.grad, new.grad = whole.grad[OLD].clone(), whole.grad[NEW].clone()
        together.step()
        apart.step()
    torch.testing.assert_close(whole[OLD], old, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(whole[NEW], new, rtol=2e-5, atol=1e-6)
    assert not torch.equal(old, together.anchor_of(whole)[OLD])


@pytest.mark.parametrize('options', [dict(), dict(foreach=True), dict(foreach=False)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', ['AdamWOLOR', 'AdamOLOR', 'SGDOLOR'])
def test_new_rows_are_those_of_the_stock_optimizer_bit_for_bit(name, dtype, options):
    """Under a level of 1 too, which holds old rows where they are."""
    cls = registered()[name]
    base = cls.__mro__[[c.__module__.startswith('torch.optim') for c in cls.__mro__].index(True)]
    ours, theirs = head(dtype), nn.Parameter(head(dtype).detach())
    start = theirs.detach().clone()
    mine = cls([ours], lr=1e-2, rollback=1.0, rollback_coupling='constant', **options)
    stock = base([theirs], lr=1e-2, **{k: v for k, v in mine.param_groups[0].items() if k in ('foreach', 'fused')})
    for number in range(5):
        step(mine, [ours], number)
        step(stock, [theirs], number)
    assert torch.equal(ours[NEW], theirs[NEW])
    assert torch.equal(ours[OLD], start[OLD])


def test_the_bound_of_a_budget_is_that_of_the_old_rows():
    p = head()
    with torch.no_grad():
        p[NEW] *= 100  # no part of what the budget is a share of
    start = p.detach().clone()
    optimizer = AdamWOLOR([p], lr=0.5, rollback_drift=0.02)
    for number in range(30):
        step(optimizer, [p], number)
        assert (p - start)[OLD].norm() <= 0.02 * start[OLD].norm() * (1 + 1e-5)
    assert (p - start)[NEW].norm() > start[OLD].norm()


@pytest.mark.parametrize('options', [dict(), dict(anchor_dtype='bfloat16'), dict(anchor_device='cpu')])
def test_a_resumed_run_goes_on_bit_for_bit_and_is_told_of_no_rows(options):
    settings = dict(lr=1e-2, rollback=0.2, **options)
    p = head()
    optimizer = AdamWOLOR([p], **settings)
    stepping.take_steps(optimizer, [p], range(3))
    file = io.BytesIO()
    torch.save(dict(weights=p.detach(), state=optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = nn.Parameter(saved['weights'].clone())
    resumed = AdamWOLOR([other], **settings)
    resumed.load_state_dict(saved['state'])
    stepping.take_steps(optimizer, [p], range(3, 6))
    stepping.take_steps(resumed, [other], range(3, 6))
    assert torch.equal(p, other)
    assert resumed.anchor_of(other).isnan().equal(rows())


def test_a_copied_optimizer_knows_its_rows():
    p = head()
    optimizer = AdamWOLOR([p], lr=1e-2, rollback=0.2)
    step(optimizer, [p], 0)
    twin = copy.deepcopy(optimizer)
    [q] = twin.param_groups[0]['params']
    for number in range(1, 4):
        step(optimizer, [p], number)
        step(twin, [q], number)
    assert torch.equal(p, q)
    assert q.isfinite().all()


def test_rows_of_a_file_of_anchors_are_kept_in_memory(tmp_path, recwarn):
    p, other = head(), nn.Parameter(torch.randn(3, 3))
    torch.save(dict(other=other.detach()), tmp_path / 'weights.pth')
    optimizer = AdamWOLOR([p, other], lr=1e-2, rollback=1.0, anchor_file=str(tmp_path / 'weights.pth'))
    start = p.detach().clone()
    stepping.take_steps(optimizer, [p, other], range(3))
    assert torch.equal(p[OLD], start[OLD])
    assert not torch.equal(p[NEW], start[NEW])
    assert not recwarn.list


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99), data=st.data())
def test_any_elements_may_be_new(shape, seed, data):
    torch.manual_seed(seed)
    p = nn.Parameter(torch.randn(shape))
    is_new = torch.rand(shape) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    mark_new(p, is_new)
    start = p.detach().clone()
    optimizer = AdamWOLOR([p], lr=1e-2, rollback=1.0, rollback_coupling='constant')
    stepping.take_steps(optimizer, [p], range(3))
    assert torch.equal(p[~is_new], start[~is_new])
    assert not (p[is_new] == start[is_new]).any()


@pytest.mark.parametrize(
    'is_new', [torch.zeros(6, 3, dtype=torch.bool), torch.zeros(6, dtype=torch.bool), torch.ones(6, 4)]
)
def test_rows_of_another_shape_or_dtype_are_refused(is_new):
    with pytest.raises(ValueError, match='torch.bool'):
        mark_new(nn.Parameter(torch.randn(6, 4)), is_new)
