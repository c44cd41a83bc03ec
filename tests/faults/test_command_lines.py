"""A command line works, or ends before any work with a message that names the argument, its value and a remedy."""

import sys

import pytest
import torch
from bad_command_lines import (
    EXPLAINED,
    MOBILENET,
    PRINT,
    RESTORE,
    TEST,
    TRAIN,
    WISE,
    WORKS,
    call,
    judge,
    lines,
    path_of,
)
from conftest import run
from damage import hostile
from hypothesis import HealthCheck, Phase, given, seed, settings

from olor_mm.names import nearest

ANY_TIME = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=20, derandomize=True, **ANY_TIME)
@given(lines())
def test_any_command_line_works_or_is_explained(line):
    outcome, said = judge(line)
    assert outcome in (WORKS, EXPLAINED), said


@pytest.mark.slow
def test_hundreds_of_command_lines_work_or_are_explained(record_property):
    """Each is a row of docs/en/reliability.md."""
    outcomes: dict[str, tuple[str, str]] = {}

    @seed(0)
    @settings(max_examples=600, phases=[Phase.generate], **ANY_TIME)
    @given(lines())
    def draw(line):
        if str(line) not in outcomes:
            outcomes[str(line)] = judge(line)
            record_property(str(line), outcomes[str(line)][0])

    draw()
    assert {line: outcome for line, outcome in outcomes.items() if outcome[0] not in (WORKS, EXPLAINED)} == {}
    found = [outcome for outcome, _ in outcomes.values()]
    assert min(map(found.count, (WORKS, EXPLAINED))) > len(found) / 20


START = ('config.py', '--work-dir', 'new/run')
BY_HAND = {  # tool, command line, what has to be named
    'variable of a base': (TRAIN, (*START, '--cfg-options', 'rollback.max_level=0.1'), 'rollback.max_level=0.1'),
    'section': (TRAIN, (*START, '--cfg-options', 'optim_wraper.optimizer.lr=1'), "did you mean 'optim_wrapper'?"),
    'key of the config': (TRAIN, (*START, '--cfg-options', 'model.head.num_class=3'), "'num_classes'"),
    'renamed hook': (
        TRAIN,
        (*START, '--cfg-options', 'custom_hooks.0.type=UpstreamEvalHook'),
        "'PretrainedEvalHook'",
    ),
    'no pair': (TRAIN, (*START, '--cfg-options', 'resume'), "'resume'"),
    'brackets': (TRAIN, (*START, '--cfg-options', 'model.head.topk=[1,(2]'), "'model.head.topk=[1,(2]'"),
    'no module': (TRAIN, (*START, '--cfg-options', 'custom_imports.imports=no_such_module'), 'no_such_module'),
    'key in a string': (TRAIN, (*START, '--cfg-options', 'log_level.a=1'), 'log_level.a=1'),
    'no section': (TRAIN, (*START, '--cfg-options', 'optim_wrapper=[]'), 'optim_wrapper=[]'),
    'nothing loaded': (TRAIN, (*START, '--cfg-options', 'model.backbone.init_cfg=None'), "pretrained='auto'"),
    'no config': (TRAIN, ('no/such.py',), "config 'no/such.py' is not a file"),
    'other model': (TEST, ('config.py', 'other.pth'), 'other.pth'),
    'a part of it': (TEST, ('config.py', 'part.pth'), 'part.pth'),
    'over a directory': (WISE, ('whole.pth', 'whole.pth', 'folder'), 'cannot be written'),
    'over a source': (WISE, ('whole.pth', 'whole.pth', 'whole.pth'), 'whole.pth'),
    'without statistics': (RESTORE, ('whole.pth', 'whole.pth', 'new'), 'whole.pth'),
    'old name': ('model_converters/restore_upstream.py', ('a', 'b', 'c'), 'restore_pretrained.py'),
    'no process': ('analysis_tools/stock_configs.py', ('--processes', '0'), '--processes 0'),
    'no folder': ('dataset_converters/embedded.py', ('--data-root', 'text.txt/sub'), '--data-root'),
}


@pytest.mark.parametrize('name', BY_HAND)
def test_command_lines_by_hand(name):
    tool, argv, named = BY_HAND[name]
    code, said, error = call(tool, tuple(map(path_of, argv)))
    assert error is None and code, said
    assert named in said and 'Traceback' not in said


HOSTILE = {
    'load_from': (TRAIN, (*START, '--cfg-options', 'load_from=hostile')),
    'resume': (TRAIN, (*START, '--resume', 'hostile')),
    'init_cfg': (TRAIN, (*START, '--cfg-options', 'model.backbone.init_cfg.checkpoint=hostile')),
    'anchor_file': (TRAIN, (*START, '--cfg-options', 'optim_wrapper.optimizer.anchor_file=hostile')),
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
    argv = tuple(path_of(part).replace('hostile', str(file)) for part in argv)
    code, said, error = call(tool, argv)
    assert code and error is None and not (tmp_path / 'canary').exists()
    assert str(file) in said and '--trust-checkpoints' in said
    call(tool, (*argv, '--trust-checkpoints'))
    assert (tmp_path / 'canary').exists() != (way == 'anchor_file')  # which is mapped, never unpickled


@pytest.mark.parametrize(
    'command, named',
    [
        (['bash', 'tools/dist_train.sh', 'nowhere.py', '2'], "CONFIG='nowhere.py'"),
        (['bash', 'tools/dist_train.sh', 'README.md', 'two'], "GPUS='two'"),
        (['bash', 'tools/dist_test.sh', 'README.md', 'x.pth', '0'], "GPUS='0'"),
        pytest.param(
            [sys.executable, 'tools/train.py', 'a.py', '--resume', 'x.pth'], "'x.pth'", marks=pytest.mark.slow
        ),
        pytest.param(
            [sys.executable, '-m', 'olor_mm', 'train', 'a.py', '--worker-dir'], "'--work-dir'", marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_real_process_says_it_too(command, named):
    done = run(*command, check=False)
    assert done.returncode == 2 and named in done.stdout and 'Traceback' not in done.stdout


def test_a_fault_within_training_is_raised_as_it_is(tmp_path, monkeypatch):
    (tmp_path / 'broken.py').write_text(
        'from mmengine.hooks import Hook\nfrom mmengine.registry import HOOKS\n\n\n@HOOKS.register_module()\n'
        "class Broken(Hook):\n    def after_train_iter(self, *args, **kwargs):\n        raise RuntimeError('mine')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ('custom_imports.imports=broken', 'custom_hooks.0.type=Broken')
    code, said, error = call(TRAIN, (*map(path_of, START), '--cfg-options', *options))
    assert isinstance(error, RuntimeError) and str(error) == 'mine'


@pytest.mark.parametrize(
    'wrong, right', [('bteas', ['betas']), ('ep', ['eps']), ('weight_dcay', ['weight_decay']), ('zzz', [])]
)
def test_the_nearest_name_is_suggested_if_one_is_near(wrong, right):
    assert nearest(wrong, ['lr', 'betas', 'eps', 'weight_decay']) == right
