"""At the highest rate of a group, w is its level, whoever scales the rate."""

import warnings
from collections.abc import Callable

import pytest
import torch
from stepping import gradients, parameters
from torch.optim import lr_scheduler

from olor_mm.optim import SGDOLOR, AdamWOLOR

LR, EPOCHS, SCALES, LEVELS = 0.1, 12, (0.04, 0.2, 1.0), (0.3, 0.2, 0.1)


def optimizer_with(scales=None, lr=LR, **options) -> SGDOLOR:
    groups = [dict(params=[p], rollback=level) for p, level in zip(parameters(), LEVELS)]
    for group, scale in zip(groups, scales or ()):
        group['lr_scale'] = scale
    return SGDOLOR(groups, lr=lr, **options)


def weights_of(optimizer, step: Callable[[int], object]) -> list[list[tuple[float, float]]]:
    """(rate, w) of every group at every step; ``step`` is given the epoch that comes next."""
    found = []
    for epoch in range(EPOCHS):
        params = [group['params'][0] for group in optimizer.param_groups]
        for p, g in zip(params, gradients(epoch)):
            p.grad = g
        optimizer.step()
        found.append([(float(g['lr']), float(optimizer.rollback_weight(g))) for g in optimizer.param_groups])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # SequentialLR passes an epoch that PyTorch itself deprecates
            step(epoch + 1)
    return found


def timm(**options):
    def make():
        from timm.scheduler import CosineLRScheduler

        optimizer = optimizer_with(SCALES)
        return optimizer, CosineLRScheduler(optimizer, t_initial=EPOCHS, **options).step

    return make


def warmed_up(epoch: int) -> float:
    return min(1.0, (epoch + 1) / 4) * (1 if epoch < 6 else 0.5)


def as_mae_does():
    optimizer = optimizer_with(SCALES)

    def adjust(epoch):
        for group in optimizer.param_groups:
            group['lr'] = LR * warmed_up(epoch) * group['lr_scale']

    adjust(0)
    return optimizer, adjust


def as_mmdet_does():
    """`lr_scale` is a note of what is in the rate already, and the warm-up is of all."""
    optimizer = optimizer_with(SCALES)
    for group in optimizer.param_groups:
        group['lr'] *= group['lr_scale']
        group['rollback_initial_lr'] = group['lr']
    schedule = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=4)
    return optimizer, lambda epoch: schedule.step()


def nobody_scales():
    optimizer = optimizer_with(SCALES)
    schedule = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=4)
    return optimizer, lambda epoch: schedule.step()


def nobody_scales_equal_ones():
    return optimizer_with((0.2, 0.2, 0.2)), lambda epoch: None


def functions(*of_groups):
    def make():
        optimizer = optimizer_with()
        schedule = lr_scheduler.LambdaLR(optimizer, list(of_groups))
        return optimizer, lambda epoch: schedule.step()

    return make


def one_cycle():
    optimizer = optimizer_with()
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=[0.02, 0.2, 0.4], total_steps=EPOCHS, cycle_momentum=False)
    return optimizer, lambda epoch: schedule.step() if epoch < EPOCHS else None


def raised_by_hand():
    optimizer = optimizer_with()
    for group in optimizer.param_groups:
        group['lr'] *= 8
    return optimizer, lambda epoch: None


def raised_by_hand_then_warmed_up():
    optimizer, _ = raised_by_hand()
    schedule = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=4)
    return optimizer, lambda epoch: schedule.step()


SCHEDULES = dict(
    timm=timm(),
    timm_warmup=timm(warmup_t=4, warmup_prefix=True, warmup_lr_init=1e-6),
    timm_warmup_from_0=timm(warmup_t=4, warmup_prefix=True, warmup_lr_init=0.0),
    mae=as_mae_does,
    mmdet=as_mmdet_does,
    nobody=nobody_scales,
    nobody_equal=nobody_scales_equal_ones,
    lambda_of_groups=functions(*(lambda epoch, s=s: s * 0.9**epoch for s in SCALES)),
    lambda_warmup=functions(*[warmed_up] * 3),
    lambda_above_1=functions(*[lambda epoch: 4 * 0.9**epoch] * 3),
    one_cycle=one_cycle,
    by_hand=raised_by_hand,
    by_hand_then_warmup=raised_by_hand_then_warmed_up,
)


@pytest.mark.parametrize('name', SCHEDULES)
def test_w_is_the_level_at_the_highest_rate_and_follows_the_rate(name):
    if name.startswith('timm'):
        pytest.importorskip('timm')
    for level, of_group in zip(LEVELS, zip(*weights_of(*SCHEDULES[name]()))):
        top = max(rate for rate, _ in of_group)
        for rate, w in of_group:
            assert w == pytest.approx(level * rate / top, rel=0.05 if name == 'one_cycle' else 1e-3, abs=1e-9)


def test_a_group_whose_rate_starts_low_for_itself_is_never_pulled_above_its_level():
    """The head trains at the full rate from the start, the backbone is warmed up: at first this looks like a share."""
    *backbone, head = zip(*weights_of(*functions(warmed_up, warmed_up, lambda epoch: 1.0)()))
    for level, of_group in zip(LEVELS, backbone):
        assert max(w for _, w in of_group) == pytest.approx(level)
        assert [w for _, w in of_group][-1] == pytest.approx(level / 2)  # half the top rate
    assert [w for _, w in head] == [pytest.approx(LEVELS[2])] * EPOCHS


def test_a_group_that_starts_from_0_has_the_level_of_the_others_at_their_rate():
    """`lr_mult=0` under a schedule with a floor: it learns little and returns little."""
    optimizer = optimizer_with()
    optimizer.add_param_group(dict(params=parameters(seed=1), rollback=0.3, lr=0.0))
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS, eta_min=0.01)
    last = weights_of(optimizer, lambda epoch: schedule.step())[-1]
    rate, w = last[-1]
    assert 0 < rate < 0.02 and w == pytest.approx(0.3 * rate / LR)


def test_what_was_settled_goes_on_after_a_resume():
    make = SCHEDULES['timm_warmup']
    pytest.importorskip('timm')
    optimizer, step = make()
    weights_of(optimizer, step)
    resumed, _ = make()
    resumed.load_state_dict(optimizer.state_dict())
    for ours, theirs in zip(resumed.param_groups, optimizer.param_groups):
        assert resumed.rollback_weight(ours) == optimizer.rollback_weight(theirs)


def raised(old=0.0, new=0.9, **first):
    """An optimizer after a step, with the level of its first group raised since."""
    free, held = parameters()[:2]
    optimizer = SGDOLOR([dict(params=[free], rollback=old), dict(params=[held], rollback=0.1)], lr=LR, **first)
    for p, g in zip((free, held), gradients(0)):
        p.grad = g
    optimizer.step()
    optimizer.param_groups[0]['rollback'] = new
    return optimizer, free


def test_a_level_that_is_raised_from_0_after_the_first_step_is_not_followed_and_said_once():
    optimizer, free = raised()
    plain, as_plain = raised(new=0.0)
    plain.step()
    with pytest.warns(UserWarning, match=r'rollback=0\.9 .*not followed'):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        optimizer.step()
    plain.step()
    assert torch.equal(free, as_plain) and optimizer.anchor_of(free) is None


def test_a_level_that_is_raised_from_0_is_said_after_a_resume_too():
    optimizer, free = raised(new=0.0)
    resumed = SGDOLOR([dict(params=g['params'], rollback=g['rollback']) for g in optimizer.param_groups], lr=LR)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.param_groups[0]['rollback'] = 0.9
    with pytest.warns(UserWarning, match='not followed'):
        resumed.step()


@pytest.mark.parametrize('levels', [(0.05, 0.9), (0.05, 0.0, 0.9)])
def test_a_level_that_was_above_0_at_the_first_step_is_followed(levels):
    optimizer, pulled = raised(levels[0], levels[1])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for level in levels[1:]:
            optimizer.param_groups[0]['rollback'] = level
            before = pulled.detach().clone()
            optimizer.step()
            learned = before - LR * pulled.grad
            torch.testing.assert_close(pulled.data, torch.lerp(learned, parameters()[0].data, level))


def test_a_level_that_is_raised_before_the_first_step_is_followed():
    p = parameters()[0]
    optimizer = AdamWOLOR([p], lr=LR)
    optimizer.param_groups[0]['rollback'] = 1.0
    p.grad = gradients(0)[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        optimizer.step()
    assert torch.equal(p, parameters()[0])
