"""A level that is given by its half-life: against float64 in this file, a real run, its resume and its table."""

import math

import pytest
import torch
from conftest import load
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from test_finetune import small_model
from test_runner import StopAfter, config
from test_runner import run as train

from olor_mm.analysis.rollback_table import examine
from olor_mm.engine.settings import RollbackSettings
from olor_mm.optim.penalty import half_life_of, level_of


@pytest.mark.parametrize('steps', [0.3, 1.0, 12.5, 69.0, 17000.0, 1e7])
def test_a_deviation_is_halved_in_the_steps_asked_for(steps):
    level = level_of(steps)
    assert (1 - level) ** steps == pytest.approx(0.5, rel=1e-6)
    assert half_life_of(level) == pytest.approx(steps, rel=1e-9)
    assert 0 < level < 1


def test_the_ends():
    assert half_life_of(0.0) == math.inf and half_life_of(1.0) == 0 and level_of(1.0) == 0.5


@pytest.mark.parametrize(
    'half_life, iters, epochs, counts, steps',
    [
        ('3 epochs', 1200, 12, 1, 300),
        ('1 epoch', 1200, 12, 4, 25),
        ('500 iters', 80000, 1, 2, 250),
        ('500iters', 80000, 1, 1, 500),
        ('10 %', 80000, 1, 1, 8000),
        ('2.5 %', 1200, 12, 2, 15),
    ],
)
def test_times_are_steps_of_the_optimizer(half_life, iters, epochs, counts, steps):
    settings = RollbackSettings.from_cfg(dict(half_life=half_life))
    assert settings.half_life_steps(iters, epochs, counts) == pytest.approx(steps)
    assert settings.resolved(steps).level(0, 9) == pytest.approx(1 - 2 ** (-1 / steps), rel=1e-9)


def half_life_config(work_dir, data, half_life, **changes):
    cfg = config(work_dir, data, **changes)
    rollback = cfg.optim_wrapper.paramwise_cfg.rollback
    rollback.update(half_life=half_life, max_level=None, min_level=0.001)
    cfg.optim_wrapper.paramwise_cfg.custom_keys = {'conv2': dict(rollback=0.25)}
    cfg.optim_wrapper.accumulative_counts = 2
    return cfg


def levels(optimizer) -> dict[str, float]:
    return {name: group['rollback'] for group in optimizer.param_groups for name in group['names']}


def assert_levels(found: dict[str, float], steps: float) -> None:
    highest = 1 - 0.5 ** (1 / steps)
    assert found['backbone.conv1.conv.weight'] == pytest.approx(highest, rel=1e-12)
    layer, n = 1 + 2 + 2, 18  # the second block of the third stage
    expected = 0.001 + (1 - layer / n) * (highest - 0.001)
    assert found['backbone.layer3.1.conv.2.conv.weight'] == pytest.approx(expected, rel=1e-12)
    assert found['head.fc.weight'] == 0.001
    assert found['backbone.conv2.conv.weight'] == 0.25  # by hand


def test_a_run_its_resume_and_its_table_have_the_same_level(data, tmp_path, capfd):
    steps = 1.5 * 4 / 2  # one and a half epochs of four iterations, two to a step
    cfg = half_life_config(tmp_path, data, '1.5 epochs', epochs=2, iterations=4)
    report = examine(cfg)
    assert report.max_level == pytest.approx(1 - 0.5 ** (1 / steps))
    assert report.steps == 4 and report.steps_per_epoch == 2
    stem = next(row for row in report.parameters if row.name == 'backbone.conv1.conv.weight')
    assert stem.half_life == pytest.approx(steps)

    cfg.log_level = 'INFO'
    runner = Runner.from_cfg(cfg)
    runner.register_hook(StopAfter(1))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert_levels(levels(runner.optim_wrapper.optimizer), steps)
    printed = ''.join(capfd.readouterr())
    assert "half_life='1.5 epochs' is 3 steps of the optimizer in this run, so max_level=0.2063, at the" in printed
    saved = load(next(tmp_path.glob('epoch_1.pth')))['optimizer']['param_groups']
    found = {name: group['rollback'] for group in saved for name in group['names']}
    assert_levels(found, steps)
    assert {row.name: row.level for row in report.parameters} == pytest.approx(found)

    longer = half_life_config(tmp_path, data, '1.5 epochs', epochs=3, iterations=4, resume=True, log_level='INFO')
    runner, _ = train(longer)
    assert_levels(levels(runner.optim_wrapper.optimizer), steps)
    assert 'the resumed optimizer state has' not in ''.join(capfd.readouterr())

    other = half_life_config(tmp_path, data, '10 %', epochs=4, iterations=4, resume=True, log_level='INFO')
    runner, _ = train(other)
    assert_levels(levels(runner.optim_wrapper.optimizer), steps)
    printed = ''.join(capfd.readouterr())
    assert (
        "has, in its groups, rollback_half_life=['1.5 epochs'" in printed and 'where the configuration has' in printed
    )


@pytest.mark.parametrize(
    'rollback, message',
    [
        (dict(half_life='3'), r"half_life='3' is not a time above 0 with its unit.*'3 epochs', '500 iters' or '10 %'"),
        (dict(half_life=3), r'half_life=3 is not a time'),
        (dict(half_life='0 iters'), "half_life='0 iters' is not a time above 0"),
        (dict(half_life='-1 epochs'), 'is not a time above 0'),
        (dict(half_life='3 steps'), "half_life='3 steps' is not a time"),
        (dict(half_life='3 epochs', max_level=0.1), r"half_life='3 epochs' and max_level=0\.1 .*keep one of them"),
        (dict(half_life='3 epochs', rule='spd'), "half_life='3 epochs' is an option of rule='olor'"),
    ],
    ids=str,
)
def test_what_is_no_half_life_is_refused(rollback, message):
    with pytest.raises(ValueError, match=message):
        RollbackSettings.from_cfg(rollback)


def test_what_the_run_does_not_fit_is_refused(data, tmp_path):
    settings = RollbackSettings.from_cfg(dict(half_life='3 epochs'))
    with pytest.raises(ValueError, match=r"half_life='3 epochs': this run is of a single epoch or counts iterations"):
        settings.half_life_steps(80000, 1, 1)
    settings = RollbackSettings.from_cfg(dict(half_life='90 %', min_level=0.1))
    with pytest.raises(ValueError, match=r'min_level=0\.1 is above the max_level=0\.0007.*half_life=.90 %. means'):
        settings.resolved(settings.half_life_steps(1000, 1, 1))


def test_a_loop_of_ones_own_is_told_and_not_given_the_highest_level():
    """Without ``optim_context`` nothing says how long the run is; the weights must not be held by a level of 1."""
    model = small_model()
    cfg = dict(
        constructor='OLOROptimWrapperConstructor',
        optimizer=dict(type='SGD', lr=0.1),
        paramwise_cfg=dict(rollback=dict(half_life='10 iters', pretrained='all')),
    )
    wrapper = build_optim_wrapper(model, cfg)
    with pytest.raises(ValueError, match="half_life='10 iters' was not made a level.*set max_level instead"):
        wrapper.update_params(model.head(model.backbone(torch.ones(1, 4))).sum())
