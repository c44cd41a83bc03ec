"""Any config and any command line works, or is answered by one error that names key, value and remedy."""

import copy
import sys
import traceback
from collections import Counter

import bad_command_lines as lines
import bad_configs as configs
import numpy as np
import pytest
import torch
from bad_command_lines import MOBILENET, PRINT, RESTORE, TEST, TRAIN, WISE, files
from bad_configs import BASES, EXPLAINED, PACKAGE, WORKS, Case, study, unexplained
from conftest import run
from damage import hostile
from hypothesis import HealthCheck, given, settings
from mmengine.registry import HOOKS
from torch import nn

from olor_mm.names import nearest

QUICK = dict(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=60, **QUICK)
@given(configs.cases())
def test_any_config_works_or_is_explained(case):
    outcome, detail = configs.judge(case)
    assert outcome in (WORKS, EXPLAINED), detail


@settings(max_examples=20, **QUICK)
@given(lines.lines())
def test_any_command_line_works_or_is_explained(line):
    outcome, detail = lines.judge(line)
    assert outcome in (WORKS, EXPLAINED), detail


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2))
def test_hundreds_of_each_do(seed):
    for strategy, judge, number in (
        (configs.cases(), configs.judge, 500),
        (lines.lines(), lines.judge, 200),
    ):
        found = [(case, outcome, detail) for case, outcome, detail in study(strategy, judge, number, seed)]
        assert [row for row in found if row[1] not in (WORKS, EXPLAINED)] == []
        assert all(Counter(row[1] for row in found)[outcome] > number / 30 for outcome in (WORKS, EXPLAINED))


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


@pytest.mark.parametrize('name', ['FreezeBackboneHook', 'ResumableRandomnessHook', 'ConsolidateOptimizerHook'])
def test_hooks_without_options_take_none(name):
    HOOKS.build(dict(type=f'olor_mm.{name}'))
    with pytest.raises(ValueError, match=rf"{name}: unknown key 'seed' \(=1\); it takes none; leave it out"):
        HOOKS.build(dict(type=f'olor_mm.{name}', seed=1))


def trained(*options: str) -> tuple:
    return TRAIN, (files()['config.py'], '--work-dir', files()['new'] + '/run', '--cfg-options', *options)


LINES_BY_HAND = {
    'variable of a base': (trained('rollback.max_level=0.1'), 'set optim_wrapper.paramwise_cfg.rollback.max_level=0.1'),
    'typo of a section': (trained('optim_wraper.optimizer.lr=1'), "did you mean 'optim_wrapper'?"),
    'typo of a hook': (trained('custom_hooks.0.type=ResumableRandomnesHook'), "Did you mean 'ResumableRandomnessHook'"),
    'typo of a scheduler': (trained('param_scheduler.0.type=CosinAnnealingLR'), "Did you mean 'CosineAnnealingLR'"),
    'typo of a runner': (trained('runner_type=FlexibleRuner'), "Did you mean 'FlexibleRunner'"),
    'typo of a metric': (trained('default_hooks.checkpoint.save_best=acuracy/top1'), "did you mean 'accuracy/top1'"),
    'unbalanced': (trained('optim_wrapper.optimizer.betas=[0.9,(0.99]'), 'give lists as key=[a,b]'),
    'no module': (trained('custom_imports.imports=no_such_module'), 'Give names of installed modules'),
    'word for a switch': (trained('resume=no'), "resume='no' is not True or False; give one"),
    'no such backend': (
        trained('default_hooks.checkpoint.backend_args.backend=nope'),
        "{'backend': 'nope'} cannot be used",
    ),
    'no number': (trained('param_scheduler.0.T_max=nan'), 'param_scheduler.0.T_max=nan is not a number; give one'),
    'no number for a schedule': (trained('param_scheduler.0.T_max=['), 'param_scheduler.0.T_max=['),
    'no value': ((WISE, ('whole.pth', 'whole.pth', 'new', '--prefix=--')), "--prefix: '--' is no value; give another"),
    'not a section': (trained('optim_wrapper=[]'), 'optim_wrapper=[]'),
    'other model': ((TEST, ('config.py', 'other.pth')), 'weights of this model'),
    'a part of it': ((TEST, ('config.py', 'part.pth')), 'give a checkpoint of this model'),
    'no directory': (
        (TEST, ('config.py', 'whole.pth', '--out', '/nowhere/a.pkl')),
        "--out '/nowhere/a.pkl' cannot be written",
    ),
    'nothing in common': ((WISE, ('whole.pth', 'other.pth', 'new')), "prefix=''"),
    'over a directory': ((WISE, ('whole.pth', 'whole.pth', 'folder')), 'cannot be written'),
    'without statistics': ((RESTORE, ('whole.pth', 'whole.pth', 'new')), 'give a checkpoint of a run with'),
    'no format': ((PRINT, ('config.py', '--plot', 'a.doc')), "--plot 'a.doc': give a file that ends with"),
}


@pytest.mark.parametrize('name', LINES_BY_HAND)
def test_command_lines_by_hand(name):
    (tool, argv), message = LINES_BY_HAND[name]
    code, said, error = lines.call(tool, tuple(files().get(part, part) for part in argv))
    assert error is None and code, said
    assert message in said and 'Traceback' not in said


START = (TRAIN, ('config.py', '--work-dir', 'new'))
HOSTILE = {
    'load_from': (TRAIN, (*START[1], '--cfg-options', 'load_from=hostile')),
    'resume': (TRAIN, (*START[1], '--resume', 'hostile')),
    'init_cfg': (TRAIN, (*START[1], '--cfg-options', 'model.backbone.init_cfg.checkpoint=hostile')),
    'anchor_file': (TRAIN, (*START[1], '--cfg-options', 'optim_wrapper.optimizer.anchor_file=hostile')),
    'test': (TEST, ('config.py', 'hostile', '--work-dir', 'new')),
    'print_rollback, load_from': (PRINT, ('config.py', '--load-from', 'hostile')),
    'print_rollback, init_cfg': (PRINT, ('config.py', '--cfg-options', 'model.backbone.init_cfg.checkpoint=hostile')),
    'wise_ft, pretrained': (WISE, ('hostile', 'whole.pth', 'new')),
    'wise_ft, finetuned': (WISE, ('whole.pth', 'hostile', 'new')),
    'restore_pretrained, finetuned': (RESTORE, ('hostile', 'whole.pth', 'new')),
    'restore_pretrained, pretrained': (RESTORE, ('whole.pth', 'hostile', 'new')),
    'torchvision_mobilenet_v2': (MOBILENET, ('hostile', 'new')),
}


@pytest.mark.parametrize('way', HOSTILE)
def test_no_tool_runs_what_is_in_a_hostile_file(tmp_path, way):
    tool, argv = HOSTILE[way]
    file = tmp_path / 'hostile.pth'
    torch.save(hostile(tmp_path / 'canary')['among the weights'], file)
    code, said, error = lines.call(tool, tuple(files().get(part, part.replace('hostile', str(file))) for part in argv))
    assert error is None and not (tmp_path / 'canary').exists()
    said = ' '.join(said.split())
    assert f"'{file}' has more in it than tensors and plain values, and was not opened" in said
    assert code and '--trust-checkpoints' in said
    torch.load(file, weights_only=False)
    assert (tmp_path / 'canary').exists()  # it was in there


@pytest.mark.parametrize(
    'command, message',
    [
        (['bash', 'tools/dist_train.sh', 'nowhere.py', '2'], "CONFIG='nowhere.py' is not a file; give"),
        (['bash', 'tools/dist_train.sh', 'README.md', 'two'], "GPUS='two' is not a number of processes; give"),
        (['bash', 'tools/dist_test.sh', 'README.md', 'x.pth', '0'], "GPUS='0' is not a number of processes; give"),
        pytest.param(
            [sys.executable, 'tools/train.py', 'setup.py', '--resume', 'x.pth'],
            "--resume 'x.pth' is not there; give",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [sys.executable, 'tools/train.py', 'setup.py', '--worker-dir', 'x'],
            "did you mean '--work-dir'?",
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_real_process_says_it_too(command, message):
    done = run(*command, check=False)
    assert done.returncode == 2 and message in done.stdout and 'Traceback' not in done.stdout


def test_a_fault_within_training_is_raised_as_it_is(tmp_path, monkeypatch):
    (tmp_path / 'broken.py').write_text(
        'from mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n\n\n@HOOKS.register_module()\n'
        "class Broken(Hook):\n    def after_train_iter(self, *args, **kwargs):\n        raise RuntimeError('mine')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, said, error = lines.call(*trained('custom_imports.imports=broken', 'custom_hooks.0.type=Broken'))
    assert isinstance(error, RuntimeError) and str(error) == 'mine'


@pytest.mark.parametrize(
    'wrong, right',
    [('eas', 'eps'), ('lu', 'lr'), ('bteas', 'betas'), ('epss', 'eps'), ('ep', 'eps'), ('weight_dcay', 'weight_decay')],
)
def test_one_edit_is_nearer_than_many_common_letters(wrong, right):
    assert nearest(wrong, ['lr', 'betas', 'eps', 'weight_decay']) == [right]
