"""The baselines of the anchored engine against transcriptions of their papers, in float64 numpy."""

import copy
import io
import warnings
from functools import partial

import numpy as np
import pytest
import stepping
import torch
from torch import nn

from olor_mm.optim import SGDOLOR, AdamOLOR, AdamWOLOR, registered

SHAPES = (*stepping.SHAPES, (4,))
NEW = 3  # the last one is of a new layer
ALPHA, BETA, STEPS = dict(l2sp=0.5, l2sp_decoupled=2.0, spd=0.8), 0.3, 60
RULES = tuple(ALPHA)
TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
fused_on_cpu = pytest.mark.skipif(TORCH < (2, 4), reason='no fused optimizers or GradScaler on CPU before torch 2.4')
parameters = partial(stepping.parameters, shapes=SHAPES)
gradients = partial(stepping.gradients, shapes=SHAPES, period=6)
take_steps = partial(stepping.take_steps, period=6)


def make(cls, params, rule, lr=1e-2, **options):
    beta = 0.0 if rule == 'spd' else BETA
    optimizer = cls(params, lr=lr, rollback=ALPHA[rule], rollback_rule=rule, rollback_new=beta, **options)
    optimizer.select_pretrained = lambda undecided: [p for p in undecided if p is not params[NEW]]
    return optimizer


class Adam:
    """One array under Adam, or under AdamW where ``decay`` is given; the rule is around it."""

    def __init__(self, theta, decay=0.0):
        self.theta = np.array(theta, dtype=np.float64)
        self.m, self.v, self.t, self.decay = np.zeros_like(self.theta), np.zeros_like(self.theta), 0, decay

    def step(self, g, lr):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g * g
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        self.theta = self.theta - lr * self.decay * self.theta - lr * m / (np.sqrt(v) + 1e-8)


class SGD:
    def __init__(self, theta):
        self.theta, self.m = np.array(theta, dtype=np.float64), 0.0

    def step(self, g, lr):
        self.m = 0.9 * self.m + g
        self.theta = self.theta - lr * self.m


def l2sp(base, theta_0, g, lr):
    penalty = ALPHA['l2sp'] * (base.theta - theta_0) if theta_0 is not None else BETA * base.theta
    base.step(g + penalty, lr)


def l2sp_decoupled(base, theta_0, g, lr):
    if theta_0 is not None:
        base.theta = base.theta - lr * ALPHA['l2sp_decoupled'] * (base.theta - theta_0)
    else:
        base.theta = base.theta - lr * BETA * base.theta
    base.step(g, lr)


SELECTED = []


def spd(base, theta_0, g, lr):
    """Algorithm 1 of arXiv 2411.01713, as the code of its authors computes it."""
    previous = base.theta
    base.step(g, lr)
    if theta_0 is None:
        return
    c = -np.sum(g * (previous - theta_0))
    if c < 0:
        gamma, gamma_before = np.linalg.norm(base.theta - theta_0), np.linalg.norm(previous - theta_0)
        r = max(0.0, (gamma - gamma_before) / gamma)
        SELECTED.append(r > 0)
        base.theta = base.theta - ALPHA['spd'] * r * (base.theta - theta_0)


@pytest.mark.parametrize(
    'flags', [dict(foreach=False), dict(foreach=True), pytest.param(dict(fused=True), marks=fused_on_cpu)], ids=str
)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize(
    'cls, reference, options, theirs',
    [
        (AdamOLOR, Adam, {}, {}),
        (AdamWOLOR, Adam, dict(weight_decay=0.1), dict(decay=0.1)),
        (SGDOLOR, SGD, dict(momentum=0.9), {}),
    ],
)
@pytest.mark.parametrize('rule', [l2sp, l2sp_decoupled, spd])
def test_equals_the_transcription(rule, cls, reference, options, theirs, dtype, tolerance, flags):
    params = parameters(dtype)
    optimizer = make(cls, params, rule.__name__, **options, **flags)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    expected = [reference(p.detach().numpy(), **theirs) for p in params]
    starts = [base.theta if i != NEW else None for i, base in enumerate(expected)]
    SELECTED.clear()
    for step in range(STEPS):
        lr = 1e-2 * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        take_steps(optimizer, params, [step])
        for p, base, start, g in zip(params, expected, starts, gradients(step, dtype)):
            rule(base, start, g.double().numpy(), lr)
            assert np.abs(p.detach().double().numpy() - base.theta).max() <= tolerance * np.abs(base.theta).max()
        scheduler.step()
    if rule is spd:
        assert sum(SELECTED) > 5  # it was at work
    assert all(('anchor' in optimizer.state.get(p, {})) == (i != NEW) for i, p in enumerate(params))


def test_coupled_l2sp_is_the_penalty_added_to_the_loss_and_summed():
    plain, ours = parameters(torch.float64), parameters(torch.float64)
    starts = [p.detach().clone() for p in plain]
    stock, optimizer = torch.optim.SGD(plain, lr=0.05, momentum=0.9), make(SGDOLOR, ours, 'l2sp', lr=0.05, momentum=0.9)
    for _ in range(10):
        loss = sum(p.sin().sum() for p in plain) + BETA / 2 * plain[NEW].square().sum()
        loss = loss + sum(ALPHA['l2sp'] / 2 * (p - q).square().sum() for p, q in zip(plain[:NEW], starts))
        for opt, value in ((stock, loss), (optimizer, sum(p.sin().sum() for p in ours))):
            opt.zero_grad()
            value.backward()
            opt.step()
    for p, q in zip(plain, ours):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('rule', RULES)
def test_gradients_are_the_users_own_after_a_step(rule):
    params = parameters()
    optimizer = make(AdamWOLOR, params, rule)
    take_steps(optimizer, params, range(3))
    params[1].grad = None
    before = [(p.grad, p.grad.clone()) for p in params if p.grad is not None]
    left = params[1].detach().clone()
    optimizer.step()
    after = [p.grad for p in params if p.grad is not None]
    assert all(grad is same and torch.equal(grad, value) for grad, (same, value) in zip(after, before, strict=True))
    assert params[1].grad is None and torch.equal(params[1], left)


def test_gradients_are_the_users_own_after_a_step_that_failed(monkeypatch):
    params = parameters()
    optimizer = make(AdamWOLOR, params, 'l2sp')
    take_steps(optimizer, params, range(2))
    before = [p.grad for p in params]
    monkeypatch.setattr(torch.optim.AdamW, 'step', lambda self, closure=None: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert all(p.grad is grad for p, grad in zip(params, before))


@pytest.mark.parametrize('cls', [AdamWOLOR, SGDOLOR])  # SGD has no state, and its anchors are hidden while it steps
@pytest.mark.parametrize('rule', RULES)
def test_a_closure_gives_the_same(rule, cls):
    params, theirs = parameters(), parameters()
    optimizer, other = make(cls, params, rule), make(cls, theirs, rule)
    take_steps(optimizer, params, range(12))
    for step in range(12):

        def closure(step=step):
            for p, g in zip(theirs, gradients(step)):
                p.grad = g
            return torch.tensor(float(step))

        assert other.step(closure) == step
    for p, q in zip(params, theirs):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('rule', RULES)
def test_maximize_goes_up_the_negative(rule):
    up, down = parameters(), parameters()
    take_steps(make(SGDOLOR, down, rule, momentum=0.9, foreach=False), down, range(20))
    optimizer = make(SGDOLOR, up, rule, momentum=0.9, foreach=False, maximize=True)
    for step in range(20):
        for p, g in zip(up, gradients(step)):
            p.grad = -g
        optimizer.step()
    for p, q in zip(up, down):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@fused_on_cpu
@pytest.mark.parametrize('flags', [dict(fused=True), dict(foreach=False)], ids=str)
@pytest.mark.parametrize('rule', RULES)
def test_scaled_steps_are_unscaled_ones_and_one_with_inf_changes_nothing(rule, flags):
    params, theirs = parameters(), parameters()
    optimizer, plain = make(AdamWOLOR, params, rule, **flags), make(AdamWOLOR, theirs, rule, **flags)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    scaler.scale(torch.zeros(1)).sum()  # a scaler knows its scale from the first loss on

    def scaled_step(step, bad=False):
        for p, g in zip(params, gradients(step)):
            p.grad = g * scaler.get_scale()
        if bad:
            params[1].grad[2] = float('inf')
        scaler.step(optimizer)
        scaler.update()

    for step in range(20):
        scaled_step(step)
        take_steps(plain, theirs, [step])
    for p, q in zip(params, theirs):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    before, state = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict()['state'])
    scaled_step(20, bad=True)
    assert all(torch.equal(a, b) for a, b in zip(params, before))
    after = optimizer.state_dict()['state']
    assert all(torch.equal(state[i][key], after[i][key]) for i in state for key in state[i])


@pytest.mark.parametrize('place', [{}, dict(anchor_dtype='bfloat16'), dict(anchor_file=True)], ids=str)
@pytest.mark.parametrize('rule', RULES)
def test_state_round_trip_in_mid_training_is_exact_wherever_anchors_lie(rule, place, tmp_path):
    if 'anchor_file' in place:
        place = dict(anchor_file=str(tmp_path / 'weights.pth'))
        torch.save({str(i): p.detach() for i, p in enumerate(parameters())}, place['anchor_file'])
    straight, first = parameters(), parameters()
    take_steps(make(AdamWOLOR, straight, rule, **place), straight, range(20))
    optimizer = make(AdamWOLOR, first, rule, **place)
    take_steps(optimizer, first, range(8))
    file = io.BytesIO()
    torch.save(dict(state=optimizer.state_dict(), params=[p.data for p in first]), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = [nn.Parameter(p) for p in saved['params']]
    resumed = make(AdamWOLOR, second, rule, **place)
    resumed.load_state_dict(saved['state'])
    take_steps(resumed, second, range(8, 20))
    assert all(torch.equal(a, b) for a, b in zip(second, straight))
    anchor = resumed.state[second[0]]['anchor']
    assert torch.equal(anchor, parameters()[0].to(anchor.dtype))
    assert bool(resumed._files.entries) == ('anchor_file' in place)


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize('name', registered())
def test_every_optimizer_runs_under_every_rule_and_differs_from_its_base(name, rule):
    def run(level):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)]
        optimizer = registered()[name](params, lr=1e-2, rollback=level, rollback_rule=rule)
        for step in range(12):
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step // 6))
            optimizer.step()
        return params

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that level 0 is the base optimizer
        plain = run(0.0)
    for p, q in zip(run(1.0), plain):
        # the path of these has no momentum that leads on when the gradient turns
        assert p.isfinite().all() and (not torch.equal(p, q) or rule == 'spd')


def test_rules_of_groups_go_side_by_side_and_olor_keeps_its_one_pass():
    mixed, alone = parameters(), parameters()
    rules = ('olor', 'l2sp', 'spd', 'olor')
    options = dict(lr=1e-2, rollback_coupling='constant', weight_decay=0.0)
    optimizer = AdamWOLOR([dict(params=[p], rollback=0.3, rollback_rule=r) for p, r in zip(mixed, rules)], **options)
    take_steps(optimizer, mixed, range(15))
    for p, q, rule, i in zip(mixed, alone, rules, range(4)):
        single = AdamWOLOR([q], rollback=0.3, rollback_rule=rule, **options)
        for step in range(15):
            q.grad = gradients(step)[i]
            single.step()
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_compiled_equals_eager():
    torch._dynamo.reset()
    for rule in RULES:
        eager, compiled = parameters(), parameters()
        take_steps(make(AdamWOLOR, eager, rule, foreach=True), eager, range(8))
        optimizer = make(AdamWOLOR, compiled, rule, foreach=True)
        step = torch.compile(optimizer.step, backend='aot_eager')
        for i in range(8):
            for p, g in zip(compiled, gradients(i)):
                p.grad = g
            step()
        for p, q in zip(eager, compiled):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_resuming_under_another_rule_says_whose_is_used():
    params = parameters()
    optimizer = make(AdamWOLOR, params, 'spd')
    take_steps(optimizer, params, [0])
    resumed = make(AdamWOLOR, params, 'l2sp')
    with pytest.warns(UserWarning, match=r"rollback_rule='spd' .*configuration"):
        resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]['rollback_rule'] == 'spd'


def test_a_state_of_before_there_were_rules_goes_on():
    params = parameters()
    optimizer = AdamWOLOR(params, rollback=0.1)
    take_steps(optimizer, params, [0])
    state = optimizer.state_dict()
    for key in ('rollback_rule', 'rollback_new'):
        del state['param_groups'][0][key]
    resumed = AdamWOLOR(params, rollback=0.1)
    resumed.load_state_dict(state)
    take_steps(resumed, params, [1])
    assert resumed.param_groups[0]['rollback_rule'] == 'olor'


def test_shards_are_refused_where_whole_tensors_are_compared():
    params = parameters()
    params[0]._fsdp_flattened = True
    optimizer = make(AdamWOLOR, params, 'spd')
    with pytest.raises(ValueError, match="rollback_rule='spd' compares whole parameter tensors.*another rule"):
        take_steps(optimizer, params, [0])


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(rollback_rule='ewc'), "rollback_rule='ewc' .*'olor', 'l2sp', 'l2sp_decoupled', 'spd'"),
        (dict(rollback_rule=['l2sp']), r"rollback_rule=\['l2sp'\] is unknown"),
        (dict(rollback_rule='spd', rollback=-1), 'rollback=-1 '),
        (dict(rollback_rule='l2sp', rollback=float('inf')), 'rollback=inf '),
        (dict(rollback_rule='l2sp', rollback_new=-0.1), r'rollback_new=-0\.1 '),
        (dict(rollback_rule='l2sp', rollback_new='no'), "rollback_new='no'"),
        (dict(rollback_new=0.1), r"rollback_new=0\.1 .*'l2sp'.*'olor'"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdamWOLOR(parameters(), **options)
    with pytest.raises(ValueError, match=f'parameter group 1: .*{message}'):
        AdamWOLOR([dict(params=parameters()), dict(params=parameters(), **options)])
