import copy
import warnings

import numpy as np
import pytest
import torch
from reference import ReferenceAdam, ReferenceSGD, warmup_cosine
from stepping import gradients, parameters, take_steps
from torch import nn

from olor_mm.optim import SGDOLOR, AdamOLOR, AdamWOLOR, Rollback, with_rollback

TOTAL, WARMUP = 100, 10
TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
fused_on_cpu = pytest.mark.skipif(TORCH < (2, 4), reason='no fused optimizers or GradScaler on CPU before torch 2.4')


def schedule(optimizer):
    """PyTorch's own warm-up and cosine, so that `initial_lr` comes from where it comes from in training."""
    schedulers = torch.optim.lr_scheduler
    warmup = schedulers.LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1)
    cosine = schedulers.CosineAnnealingLR(optimizer, T_max=TOTAL - WARMUP)
    return schedulers.SequentialLR(optimizer, [warmup, cosine], milestones=[WARMUP])


@pytest.mark.parametrize('coupling', ['lr', 'constant'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    'flags', [dict(foreach=False), dict(foreach=True), pytest.param(dict(fused=True), marks=fused_on_cpu)], ids=str
)
@pytest.mark.parametrize(
    'cls, reference, options',
    [
        (AdamOLOR, ReferenceAdam, {}),
        (AdamWOLOR, ReferenceAdam, dict(weight_decay=0.05)),
        (SGDOLOR, ReferenceSGD, dict(momentum=0.9)),
    ],
)
def test_equals_the_papers_rule(cls, reference, options, flags, dtype, tolerance, coupling):
    lr, lambdas = 1e-2, (0.05, 0.3, 0.0)
    params = parameters(dtype)
    groups = [dict(params=[p], rollback=lam) for p, lam in zip(params, lambdas)]
    optimizer = cls(groups, lr=lr, rollback_coupling=coupling, **options, **flags)
    scheduler = schedule(optimizer)
    furthest = 0.0
    expected = [reference(p.detach().numpy(), lam, lr, coupling, **options) for p, lam in zip(params, lambdas)]
    for step in range(TOTAL):
        rate = warmup_cosine(step, lr, WARMUP, TOTAL)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(rate, rel=1e-9)
        take_steps(optimizer, params, [step])
        for p, rule, g in zip(params, expected, gradients(step, dtype)):
            rule.step(g.numpy(), rate)
            assert np.abs(p.detach().double().numpy() - rule.theta).max() <= tolerance * np.abs(rule.theta).max()
            furthest = max(furthest, np.abs(rule.theta - rule.theta_0).max())
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # SequentialLR passes an epoch that PyTorch itself deprecates
            scheduler.step()
    assert furthest > 0.02  # it did move


def test_groups_added_later_are_anchored_at_their_first_step():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = SGDOLOR([a], lr=0.1, rollback=0.5)
    a.grad = torch.ones(2)
    optimizer.step()
    with torch.no_grad():
        b.fill_(5.0)  # say, loaded after the optimizer had been built
    optimizer.add_param_group(dict(params=[b], rollback=1.0, rollback_coupling='constant'))
    b.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(optimizer.state[a]['anchor'], torch.zeros(2))
    assert torch.equal(optimizer.state[b]['anchor'], torch.full((2,), 5.0))
    assert torch.equal(b, torch.full((2,), 5.0))


def test_only_what_is_selected_as_pretrained_is_anchored():
    kept, new = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SGDOLOR([kept, new], lr=0.1, rollback=1.0)
    optimizer.select_pretrained = lambda params: [p for p in params if p is kept]
    kept.grad = new.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(kept, torch.ones(2))
    torch.testing.assert_close(new.data, torch.full((2,), 0.9))
    assert 'anchor' not in optimizer.state.get(new, {})


def test_weight_is_clamped_where_a_schedule_exceeds_the_initial_rate():
    p = nn.Parameter(torch.zeros(1))
    optimizer = SGDOLOR([p], lr=0.1, rollback=0.3)
    optimizer.param_groups[0]['lr'] = 1.0
    assert optimizer.rollback_weight(optimizer.param_groups[0]) == 1.0
    optimizer.param_groups[0]['lr'] = 0.0
    assert optimizer.rollback_weight(optimizer.param_groups[0]) == 0.0


def test_a_warmup_set_by_hand_does_not_become_the_initial_rate():
    p = nn.Parameter(torch.zeros(1))
    optimizer = SGDOLOR([p], lr=0.1, rollback=0.3)
    optimizer.param_groups[0]['lr'] = 0.001
    p.grad = torch.ones(1)
    optimizer.step()
    optimizer.param_groups[0]['lr'] = 0.1
    assert optimizer.rollback_weight(optimizer.param_groups[0]) == pytest.approx(0.3)


STRENGTHS = [dict(rollback=0.1), dict(rollback_drift=0.01)]
PATHS = [dict(fused=False), dict(fused=True), dict(fused=True, amsgrad=True)]  # the last one in two passes


@fused_on_cpu
@pytest.mark.parametrize('path', PATHS, ids=str)
@pytest.mark.parametrize('strength', STRENGTHS, ids=str)
def test_a_step_skipped_for_inf_changes_nothing(strength, path):
    params = parameters()
    optimizer = AdamWOLOR(params, lr=1e-2, **strength, **path)
    scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
    scaler.scale(torch.zeros(1)).sum()  # a scaler knows its scale from the first loss on

    def step(bad):
        for p, g in zip(params, gradients(0)):
            p.grad = g * scaler.get_scale()
        if bad:
            params[1].grad[2] = float('inf')
        scaler.step(optimizer)
        scaler.update()

    step(bad=False)
    before, state = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict()['state'])
    step(bad=True)
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    after = optimizer.state_dict()['state']
    assert all(torch.equal(state[i][key], after[i][key]) for i in state for key in state[i])
    step(bad=False)
    assert not torch.equal(params[0], before[0])


@fused_on_cpu
@pytest.mark.parametrize('amsgrad', [False, True])
@pytest.mark.parametrize('strength', STRENGTHS, ids=str)
def test_fused_and_unfused_scaled_steps_are_the_same(strength, amsgrad):
    results = []
    for fused in (False, True):
        params = parameters()
        optimizer = AdamWOLOR(params, lr=1e-2, amsgrad=amsgrad, fused=fused, **strength)
        scaler = torch.amp.GradScaler('cpu', init_scale=4.0)
        scaler.scale(torch.zeros(1)).sum()
        for step in range(5):
            for p, g in zip(params, gradients(step)):
                p.grad = g * scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
        results.append(params)
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_resuming_from_a_run_without_rollback_is_refused():
    for base, cls in ((torch.optim.AdamW, AdamWOLOR), (torch.optim.SGD, SGDOLOR)):
        params = parameters()
        stock = base(params, lr=0.1)
        take_steps(stock, params, [0])
        with pytest.raises(ValueError, match='no anchors.*load_from.*without rollback'):
            cls(params, lr=0.1, rollback=0.1).load_state_dict(stock.state_dict())
        cls(params, lr=0.1).load_state_dict(stock.state_dict())  # rollback off: fine


def test_resuming_with_other_levels_says_whose_are_used():
    params = parameters()
    optimizer = AdamWOLOR(params, rollback=0.1)
    take_steps(optimizer, params, [0])
    resumed = AdamWOLOR(params, rollback=0.2)
    with pytest.warns(UserWarning, match=r'rollback=0\.1 .*configuration has rollback=0\.2'):
        resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]['rollback'] == 0.1


def test_resuming_with_other_groups_names_the_settings_they_follow_from():
    params = parameters()
    optimizer = AdamWOLOR(params, rollback=0.1)
    take_steps(optimizer, params, [0])
    with pytest.raises(
        ValueError,
        match=r'1 parameter groups \(sizes \[3\]\).*2 .*paramwise_cfg',
    ):
        AdamWOLOR([dict(params=params[:1]), dict(params=params[1:])], rollback=0.1).load_state_dict(
            optimizer.state_dict()
        )


def test_the_state_of_another_optimizer_is_refused_by_what_it_lacks():
    params = parameters()
    optimizer = AdamWOLOR(params, rollback=0.1)
    take_steps(optimizer, params, [0])
    with pytest.raises(ValueError, match=r'not of SGDOLOR: .* no dampening, momentum, nesterov\. Resume with the type'):
        SGDOLOR(params, lr=0.1, momentum=0.9, rollback=0.1).load_state_dict(optimizer.state_dict())


def test_a_rate_above_the_one_that_the_level_is_meant_for_is_told_once():
    params = parameters()
    optimizer = SGDOLOR(params, lr=0.1, rollback=0.01)
    take_steps(optimizer, params, [0])
    optimizer.param_groups[0]['lr'] = 0.5
    with pytest.warns(UserWarning, match=r'lr=0\.5 is above .*rollback=0\.01') as told:
        take_steps(optimizer, params, range(1, 4))
    assert len(told) == 1


def test_a_changed_coupling_is_told():
    params = parameters()
    optimizer = AdamWOLOR(params, rollback=0.1)
    take_steps(optimizer, params, [0])
    with pytest.warns(UserWarning, match=r"rollback_coupling='lr' .*configuration"):
        AdamWOLOR(params, rollback=0.1, rollback_coupling='constant').load_state_dict(optimizer.state_dict())


def test_a_reset_to_the_initial_state_keeps_what_was_pretrained():
    params = parameters()
    optimizer = AdamWOLOR(params, lr=0.1, rollback=0.5)
    fresh = copy.deepcopy(optimizer.state_dict())
    take_steps(optimizer, params, range(3))
    optimizer.load_state_dict(fresh)
    take_steps(optimizer, params, range(3))
    assert all(torch.equal(optimizer.state[p]['anchor'], start) for p, start in zip(params, parameters()))


def test_a_group_added_just_before_saving_is_anchored_after_loading():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    groups = [dict(params=[a]), dict(params=[b])]
    optimizer = SGDOLOR(groups[:1], lr=0.1, rollback=0.5)
    a.grad = b.grad = torch.ones(2)
    optimizer.step()
    optimizer.add_param_group(groups[1])
    loaded = SGDOLOR([dict(params=[a]), dict(params=[b])], lr=0.1, rollback=0.5)
    loaded.load_state_dict(optimizer.state_dict())
    loaded.step()
    assert torch.equal(loaded.state[b]['anchor'], torch.ones(2))
    assert torch.equal(loaded.state[a]['anchor'], torch.zeros(2))


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)


def cyclic(optimizer):
    return torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=1e-3, max_lr=0.1, step_size_up=5, cycle_momentum=False)


@pytest.mark.parametrize('make', [one_cycle, cyclic])
def test_cyclic_schedules_reach_the_level_at_their_top_and_never_exceed_it(make):
    p = nn.Parameter(torch.zeros(1))
    optimizer = SGDOLOR([p], lr=0.1, momentum=0.9, rollback=0.3)
    scheduler = make(optimizer)
    weights = []
    for _ in range(19):
        p.grad = torch.ones(1)
        optimizer.step()
        [group] = optimizer.param_groups
        weights.append(optimizer.rollback_weight(group))
        assert weights[-1] == pytest.approx(0.3 * group['lr'] / 0.1)
        scheduler.step()
    assert max(weights) == pytest.approx(0.3, rel=0.05)


def test_a_learning_rate_that_is_a_tensor_is_followed():
    optimizer = AdamWOLOR(parameters(), lr=torch.tensor(0.01), rollback=0.1)
    [group] = optimizer.param_groups
    group['lr'].fill_(0.001)
    assert optimizer.rollback_weight(group) == pytest.approx(0.01)


def test_a_group_added_with_rate_zero_is_refused_when_the_rate_rises():
    p = nn.Parameter(torch.zeros(1))
    optimizer = SGDOLOR([p], lr=0.0, rollback=0.1)
    assert optimizer.rollback_weight(optimizer.param_groups[0]) == 0
    optimizer.param_groups[0]['lr'] = 0.1
    with pytest.raises(ValueError, match=r'lr=0\.1.*add the group with the rate'):
        optimizer.rollback_weight(optimizer.param_groups[0])


def test_step_hooks_run_once():
    """torch wraps the step of a class when the first of it is made; ours calls the base's step."""
    torch.optim.AdamW(parameters())
    params, calls = parameters(), []
    optimizer = AdamWOLOR(params, rollback=0.1)
    optimizer.register_step_pre_hook(lambda *_: calls.append('before'))
    optimizer.register_step_post_hook(lambda *_: calls.append('after'))
    take_steps(optimizer, params, [0])
    assert calls == ['before', 'after']


def test_closure_is_evaluated_and_rolled_back():
    p = nn.Parameter(torch.zeros(2))
    optimizer = SGDOLOR([p], lr=0.5, rollback=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p - 1).square().sum() / 2
        loss.backward()
        return loss

    assert optimizer.step(closure) == 1.0
    torch.testing.assert_close(p.data, torch.full((2,), 0.25))


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(rollback=1.5), r'rollback=1\.5 is not a number in \[0, 1\]'),
        (dict(rollback=-0.1), r'rollback=-0\.1'),
        (dict(rollback='much'), "rollback='much'"),
        (dict(rollback=float('nan')), 'rollback=nan'),
        (dict(rollback_coupling='cosine'), "rollback_coupling='cosine' is unknown; take 'lr' or 'constant'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdamWOLOR(parameters(), **options)
    with pytest.raises(ValueError, match=f'parameter group 1: {message}'):
        AdamWOLOR([dict(params=parameters()), dict(params=parameters(), **options)])


def test_factory_makes_any_optimizer_and_says_what_cannot_work():
    assert with_rollback(torch.optim.AdamW) is AdamWOLOR
    assert with_rollback(AdamWOLOR) is AdamWOLOR
    made = with_rollback(torch.optim.RAdam)
    assert made.__name__ == 'RAdamOLOR' and issubclass(made, (Rollback, torch.optim.RAdam))
    for refused in (torch.optim.LBFGS, torch.optim.SparseAdam):
        with pytest.raises(ValueError, match=f'{refused.__name__} cannot be used with rollback: '):
            with_rollback(refused)
    with pytest.raises(TypeError, match='not a subclass'):
        with_rollback(nn.Linear)


def test_an_anchor_of_another_shape_is_refused():
    small, large = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))
    optimizer = SGDOLOR([small], lr=0.1, rollback=0.1)
    small.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(ValueError, match=r'an anchor of shape \(3,\) for a parameter, which has shape \(4,\) here'):
        SGDOLOR([large], lr=0.1, rollback=0.1).load_state_dict(optimizer.state_dict())
