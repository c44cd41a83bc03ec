"""Any config works, or is answered by one error that names key, value and remedy."""

import copy
import traceback
from collections import Counter

import bad_configs as configs
import numpy as np
import pytest
import torch
from bad_command_lines import files
from bad_configs import BASES, EXPLAINED, PACKAGE, WORKS, Case, study, unexplained
from hypothesis import HealthCheck, given, settings
from mmengine.registry import HOOKS
from torch import nn

QUICK = dict(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=60, **QUICK)
@given(configs.cases())
def test_any_config_works_or_is_explained(case):
    outcome, detail = configs.judge(case)
    assert outcome in (WORKS, EXPLAINED), detail


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2))
def test_hundreds_of_configs_do(seed):
    found = [(case, outcome, detail) for case, outcome, detail in study(configs.cases(), configs.judge, 500, seed)]
    assert [row for row in found if row[1] not in (WORKS, EXPLAINED)] == []
    assert all(Counter(row[1] for row in found)[outcome] > 500 / 30 for outcome in (WORKS, EXPLAINED))


def test_the_study_tells_a_bad_answer_from_a_good_one():
    """Errors of torch and Python, without a value, without a remedy, too late, or with a wrong name are no answers."""
    changes = [(('optimizer', 'lr'), 'x')]

    def error_of(function, *args):
        try:
            function(*args)
        except Exception as error:
            return error

    bare = error_of(torch.optim.SGD, nn.Linear(1, 1).parameters(), 'x')
    ours = error_of(configs.run_config, dict(copy.deepcopy(BASES['AdamW']), optimizer=dict(type='SGD', lr='x')), [])
    assert ours is not None and unexplained(ours, changes, None, late=False) is None
    assert unexplained(bare, changes, None, late=False) is not None
    assert unexplained(ours, changes, None, late=True) is not None
    assert unexplained(ours, [(('optimizer', 'lr'), 'y')], None, late=False) is not None
    assert unexplained(ours, changes, 'eps', late=False) is not None
    wrong = Case('AdamW', ((('optimizer', 'type'), 'Muon'),))
    assert configs.judge(wrong)[0] == EXPLAINED


def changed(**sections) -> dict:
    cfg = copy.deepcopy(BASES['rollback'])
    for name, options in sections.items():
        section = {'opt': cfg['optimizer'], 'pw': cfg['paramwise_cfg'], 'rb': cfg['paramwise_cfg']['rollback']}.get(
            name, cfg
        )
        section.update(options)
    return cfg


def custom(**options) -> dict:
    return dict(pw=dict(custom_keys=dict(options)))


# outside of the generator's grammar: what else Python and people put into configs
BY_HAND = {
    'nan of numpy': (dict(rb=dict(max_level=np.float64('nan'))), 'max_level=.*nan.* is not a finite number; give'),
    'tensor': (dict(rb=dict(max_level=torch.tensor(0.1))), r'max_level=tensor.* is not a finite number'),
    'integer no float can hold': (dict(rb=dict(power=10**400)), 'power=1000.* is not a finite number'),
    'number in quotes': (dict(opt=dict(lr='1e-3')), "lr='1e-3' is not a finite number; give one, such as"),
    'complex': (dict(opt=dict(lr=1j)), 'lr=1j is not a finite number'),
    'tuple in quotes': (dict(opt=dict(betas='(0.9,0.999)')), 'betas=.* is not a list of 2 finite numbers'),
    'switch in quotes': (dict(opt=dict(amsgrad='False')), "amsgrad='False' is not True or False; give one"),
    'lambda': (dict(opt=dict(type=lambda params: None)), 'optimizer.type=.*; take one of torch'),
    'module': (dict(opt=dict(type=nn.Linear)), 'optimizer.type=.*Linear.*; take one of torch'),
    'Cyrillic letter': (dict(rb={'m\u0430x_level': 0.1}), "did you mean 'max_level'"),
    'blank': (dict(rb={'max_level ': 0.1}), "did you mean 'max_level'"),
    'capitals': (dict(rb={'Max_Level': 0.1}), "did you mean 'max_level'"),
    'set of prefixes': (dict(rb=dict(pretrained={'backbone'})), 'pretrained=.* take .*a list of prefixes'),
    'wildcard': (dict(rb=dict(pretrained=['*'])), r"no parameter under '\*'; its parts are backbone, head; name"),
    'second prefix': (dict(rb=dict(pretrained=['backbone', 'haed'])), "'haed'; did you mean 'head'"),
    'layer of a float': (dict(rb=dict(layer_index={'backbone': 1.0})), r"\['backbone'\]=1.0 is not an integer from 0"),
    'number for a part': (dict(pw=dict(custom_keys={0: dict(lr_mult=1)})), 'the key 0 .* is no part of a name; give'),
    'number for a key': (dict(pw={1: 2}), r'paramwise_cfg: unknown key 1 \(=2\)'),
    'betas of a part': (custom(head=dict(betas=[0.9, 2])), r"\['head'\].betas=\[0.9, 2\] cannot be used: .*; leave"),
    'rule of a part': (custom(backbone=dict(rollback_rule='spd')), "'rollback_rule' .*='spd'.*did you mean 'rollback'"),
    'rate of a part': (custom(head=dict(lr_mult=1e300)), r"\['head'\].lr_mult=1e\+300 is not a finite number"),
    'negative rate': (dict(pw=dict(bias_lr_mult=-1)), 'bias_lr_mult=-1 is not a finite number of 0 or more; give'),
    'growth': (dict(opt=dict(lr=1e30)), r'optimizer.lr=1e\+30 cannot be used: .* not finite any more'),
    'no rate': (
        dict(optimizer=dict(type='AdamW', weight_decay=0.1), pw=dict(bias_lr_mult=2)),
        'optimizer.lr is not set, and paramwise_cfg.bias_lr_mult is a multiple of it: set lr',
    ),
    'two ways at once': (
        dict(opt=dict(foreach=True, fused=True)),
        'foreach=True cannot be used: .*fused.*; leave it out',
    ),
    'file and dtype': (
        dict(opt=dict(anchor_file='WEIGHTS', anchor_dtype='bfloat16')),
        "anchor_dtype='bfloat16' has no meaning with anchor_file=.*; leave one",
    ),
    'list in a file': (dict(opt=dict(anchor_file='list.pth')), 'anchor_file=.*list.pth.*it has a list in it.* Save'),
    'no place': (dict(opt=dict(anchor_device='meta')), "anchor_device='meta' is no device of torch here; take 'cpu'"),
    'matrices alone': (dict(opt=dict(type='Muon')), "optimizer.type='Muon' cannot be used.*take another"),
    'base of base': (
        dict(optimizer=dict(type='OLOR', base=dict(type='OLOR', base=dict(type='SGD', lr=0.1)))),
        "optimizer.type='OLOR'.*; take one of torch",
    ),
    'wrapper of dicts': (dict(top=dict(type='OptimWrapperDict')), "'OptimWrapperDict'.*did you mean 'OptimWrapper'"),
    'no such device': (dict(top=dict(type='AmpOptimWrapper')), "type='AmpOptimWrapper' cannot be used here.*; take"),
    'ascent': (dict(top=dict(clip_grad=dict(max_norm=-1))), 'clip_grad.max_norm=-1 cannot be used: .*; give another'),
    'nothing to divide by': (dict(opt=dict(eps=0)), 'optimizer.eps=0 cannot be used: .*; leave it out .*1e-08'),
    'rate beyond floats': (dict(pw=dict(layer_decay_rate=10**400)), r'layer_decay_rate=10+ is not a number in \(0, 1'),
    'device beyond integers': (dict(opt=dict(anchor_device=10**400)), 'anchor_device=10+ is no device'),
    'level beyond floats': (dict(rb=dict(rule='l2sp', max_level=1e300)), r'max_level=1e\+300 is more than float32'),
    'assertion without words': (
        dict(optimizer=dict(type='OLOR', base=dict(type='Lion', lr=1e-4, weight_decay=0.1)), pw=dict(bias_lr_mult=0.0)),
        'bias_lr_mult=0.0 cannot be used: AssertionError: assert lr > 0',
    ),
    'half a step': (dict(top=dict(accumulative_counts=2.0)), 'accumulative_counts=2.0 is not an integer; give one'),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_cases_by_hand(name):
    sections, message = BY_HAND[name]
    sections = {'top': {}, **copy.deepcopy(sections)}
    if 'optimizer' in sections:
        sections['top'] = dict(optimizer=sections.pop('optimizer'))
    cfg, moment = changed(**sections), []
    file = cfg['optimizer'].get('anchor_file')
    if file is not None:
        cfg['optimizer']['anchor_file'] = configs.weights_file() if file == 'WEIGHTS' else files()[file]
    if name == 'matrices alone' and not hasattr(torch.optim, 'Muon'):
        pytest.skip('this torch has no Muon')
    with pytest.raises(ValueError, match=message) as raised:
        configs.run_config(cfg, moment)
    assert moment[-1] == 'build'
    assert traceback.extract_tb(raised.tb)[-1].filename.startswith(PACKAGE)


@pytest.mark.parametrize(
    'sections, warning',
    [
        (custom(bakbone=dict(lr_mult=0.1)), "'bakbone' is part of no parameter name; did you mean 'backbone'"),
        (dict(pw=dict(_delete=True)), "_delete=True is not used; did you mean '_delete_'"),
        (dict(rb=dict(power=0, layer_index='tensor')), "layer_index='tensor' is not used: all layers have the same"),
        (dict(rb=dict(power=0, min_level=0.001)), 'min_level=0.001 is not used: with power=0'),
        (dict(rb=dict(max_level=0), opt=dict(anchor_dtype='bfloat16')), "anchor_dtype='bfloat16' is not used"),
    ],
    ids=str,
)
def test_what_has_no_effect_and_stock_configs_have_too_is_warned_of(sections, warning):
    with configs.log() as log:
        configs.run_config(changed(**copy.deepcopy(sections)), [])
    assert any(warning in said for said in log.said), log.said


@pytest.mark.parametrize('value', [np.float32(0.05), 0.05, 1])
def test_numbers_of_any_kind_are_numbers(value):
    wrapper, _ = configs.run_config(changed(rb=dict(max_level=value)), [])
    assert configs.level_of(wrapper, configs.STEM) == pytest.approx(float(value))


CHECKPOINT_HOOK = {
    'max_keep_ckpt': (2, "unknown key 'max_keep_ckpt'.*did you mean 'max_keep_ckpts'"),
    'interval': (0, r'interval=0 is no number of 1 or more; give one, or -1'),
    'max_keep_ckpts': (0, 'max_keep_ckpts=0 is no number of 1 or more'),
    'by_epoch': ('no', "by_epoch='no' is not True or False"),
    'save_begin': (-1, 'save_begin=-1 cannot be used'),
    'filename_tmpl': ('last.pth', 'filename_tmpl=.* has no {} for the number'),
    'out_dir': (3, 'out_dir=3 is no directory; give one'),
    'save_best': (3, 'save_best=3 cannot be used'),
    'rule': ('grater', "rule='grater' cannot be used"),
    'backend_args': (dict(backend='locl'), 'backend_args=.* cannot be used'),
}


@pytest.mark.parametrize('key', CHECKPOINT_HOOK)
def test_options_of_the_checkpoint_hook_are_checked_when_it_is_built(key):
    value, message = CHECKPOINT_HOOK[key]
    also = dict(save_best='acc') if key == 'rule' else {}
    with pytest.raises(ValueError, match=f'SafeCheckpointHook.*{message}'):
        HOOKS.build(dict(type='olor_mm.SafeCheckpointHook', **{key: value}, **also))
