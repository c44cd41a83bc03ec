"""A config of rollback works, or is refused before the first step by one error with the key and its value."""

import copy

import bad_configs as configs
import numpy as np
import pytest
import torch
from bad_configs import EXPLAINED, KEYS, SECTION, SILENT, STEM, UNEXPLAINED, WORKS, Case, judge
from hypothesis import HealthCheck, Phase, given, seed, settings
from mmengine.logging import MMLogger
from torch import nn

ANY_TIME = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize('path', KEYS, ids='.'.join)
def test_every_right_value_holds_and_a_wrong_one_is_refused(path):
    right, wrong, _ = KEYS[path]
    assert [(value, judge(Case(path, value, True))) for value in right[:2]] == [(v, (WORKS, '')) for v in right[:2]]
    assert judge(Case(path, wrong[0], False))[0] == EXPLAINED


@settings(max_examples=30, derandomize=True, **ANY_TIME)
@given(configs.cases())
def test_any_config_works_or_is_explained(case):
    outcome, said = judge(case)
    assert outcome in (WORKS, EXPLAINED), (str(case), said)


@pytest.mark.slow
def test_hundreds_of_configs_work_or_are_explained(record_property):
    """Each is a row of docs/en/reliability.md."""
    outcomes: dict[str, tuple[str, str]] = {}

    @seed(0)
    @settings(max_examples=600, phases=[Phase.generate], **ANY_TIME)
    @given(configs.cases())
    def draw(case):
        if str(case) not in outcomes:
            outcomes[str(case)] = judge(case)
            record_property(str(case), outcomes[str(case)][0])

    draw()
    assert {case: outcome for case, outcome in outcomes.items() if outcome[0] not in (WORKS, EXPLAINED)} == {}
    found = [outcome for outcome, _ in outcomes.values()]
    assert min(map(found.count, (WORKS, EXPLAINED))) > len(found) / 20


def test_the_study_tells_a_bad_answer_from_a_good_one():
    """A wrong value that is taken, a right one that is refused, and an error of torch are no good answers."""
    level = (*SECTION, 'max_level')
    assert judge(Case(level, 0.5, False))[0] == SILENT
    assert judge(Case(level, 2, True))[0] == UNEXPLAINED
    assert judge(Case(('optimizer', 'lr'), 'x', False))[0] == UNEXPLAINED
    assert judge(Case(level, 2, False))[0] == EXPLAINED


def changed(**sections) -> dict:
    cfg = copy.deepcopy(configs.BASE)
    places = dict(optimizer=cfg['optimizer'], paramwise=cfg['paramwise_cfg'], rollback=cfg['paramwise_cfg']['rollback'])
    for name, options in sections.items():
        places.get(name, cfg).update(options)
    return cfg


# outside of the generator's grammar
BY_HAND = {
    'nan of numpy': (dict(rollback=dict(max_level=np.float64('nan'))), 'max_level=.*nan'),
    'tensor': (dict(rollback=dict(max_level=torch.tensor(0.1))), r'max_level=tensor'),
    'Cyrillic letter': (dict(rollback={'m\u0430x_level': 0.1}), "did you mean 'max_level'"),
    'blank': (dict(rollback={'max_level ': 0.1}), "did you mean 'max_level'"),
    'capitals': (dict(rollback={'Max_Level': 0.1}), 'Max_Level'),
    'second prefix': (dict(rollback=dict(pretrained=['backbone', 'haed'])), "'haed'; did you mean 'head'"),
    'number for a key': (dict(paramwise={1: 2}), r'paramwise_cfg: unknown key 1 \(=2\)'),
    'rule of a part': (
        dict(paramwise=dict(custom_keys=dict(conv1=dict(rollback_rule='spd')))),
        "'rollback_rule'.*'spd'",
    ),
    'module': (dict(optimizer=dict(type=nn.Linear)), 'optimizer.type=.*Linear'),
    'lambda': (dict(optimizer=dict(type=lambda params: None)), 'optimizer.type=.*lambda'),
    'base of base': (
        dict(optimizer=dict(type='OLOR', base=dict(type='OLOR', base=dict(type='SGD', lr=0.1)))),
        'optimizer.*: keep one|optimizer.type',
    ),
    'list in a file': (dict(optimizer=dict(anchor_file='list.pth')), 'anchor_file=.*list.pth.* a list'),
    'level beyond floats': (dict(rollback=dict(rule='l2sp', max_level=1e300)), r'max_level=1e\+300'),
    'beta without a level': (
        dict(rollback=dict(rule='l2sp', new_level=0.1, max_level=0)),
        'new_level=0.1.*max_level=0',
    ),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_cases_by_hand(name, tmp_path, monkeypatch):
    sections, message = BY_HAND[name]
    monkeypatch.chdir(tmp_path)
    torch.save([1], 'list.pth')
    moment = []
    with pytest.raises(ValueError, match=message):
        configs.run_config(changed(**copy.deepcopy(sections)), moment)
    assert moment == ['build']


@pytest.mark.parametrize(
    'sections, warning',
    [
        (dict(paramwise=dict(custom_keys=dict(bakbone=dict(lr_mult=0.1)))), "custom_keys['bakbone']"),
        (dict(paramwise=dict(_delete=True)), '_delete=True is not used'),
        (dict(rollback=dict(power=0, layer_index='tensor')), "layer_index='tensor' is not used"),
        (dict(rollback=dict(power=0, min_level=0.001)), 'min_level=0.001 is not used'),
        (
            dict(rollback=dict(max_level=0), optimizer=dict(anchor_dtype='bfloat16')),
            "anchor_dtype='bfloat16' is not used",
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_warned_of(sections, warning, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        configs.run_config(changed(**copy.deepcopy(sections)), [])
    finally:
        logger.removeHandler(caplog.handler)
    assert warning in caplog.text


@pytest.mark.parametrize('value', [np.float32(0.05), 0.05, 1])
def test_numbers_of_any_kind_are_numbers(value):
    wrapper = configs.run_config(changed(rollback=dict(max_level=value)), [])
    assert configs.group_of(wrapper, STEM)['rollback'] == pytest.approx(float(value))
