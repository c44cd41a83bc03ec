"""What all commands of ``python -m olor_mm`` share: the way in, exit codes, and what `list` lists."""

import json
import re
import sys

import pytest
from commands import init
from conftest import CLASSIFICATION, ROOT, tool, train

from olor_mm.__main__ import COMMANDS, main
from olor_mm.optim.rules import RULES
from olor_mm.registry import RENAMED

CLASSIFIER = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
DETECTOR = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
SEGMENTER = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
BAD = dict(  # input that a command cannot begin with, and what its message names
    init=(['no/such', '--task', 'detection', '--config', DETECTOR], 'no/such'),
    label=(['no/such.py', 'README.md', 'data', '--out', 'labels.json'], 'no/such.py'),
    print_rollback=(['no/such.py'], 'no/such.py'),
    train=(['no/such.py'], 'no/such.py'),
    test=(['no/such.py', 'README.md'], 'no/such.py'),
    compare=(['no/such*'], 'no/such'),
    list=(['no-such-kind'], 'no-such-kind'),
)
TOOLS = (
    'tools/train.py',
    'tools/test.py',
    *(f'tools/analysis_tools/{name}.py' for name in ('print_rollback', 'compare')),
)


def test_help_shows_every_command_in_the_order_of_use_with_an_example(capsys):
    said = tool('olor_mm', '--help').stdout
    places = [said.index(f'python -m olor_mm {command} ') for command in COMMANDS]
    assert places == sorted(places) and list(COMMANDS) == list(BAD)
    for code in (0, 1, 2):
        assert re.search(rf'^  {code}  +\w', said, re.M)


@pytest.mark.parametrize('command', COMMANDS)
def test_the_exit_code_is_2_if_a_command_cannot_begin_and_0_if_it_is_done(command):
    arguments, named = BAD[command]
    for wrong, said in ((arguments, named), (['--no-such-option'], '--no-such-option|required|missing')):
        done = tool('olor_mm', command, *wrong, check=False)
        assert done.returncode == 2 and re.search(said, done.stdout.splitlines()[-1]), done.stdout
        assert 'Traceback' not in done.stdout
    assert tool('olor_mm', command, '-h').returncode == 0


@pytest.mark.parametrize('script', TOOLS)
def test_tools_end_with_the_same_exit_codes(script):
    arguments, named = BAD[script.rpartition('/')[2].removesuffix('.py')]
    done = tool(script, *arguments, check=False)
    assert done.returncode == 2 and named in done.stdout.splitlines()[-1]


@pytest.mark.parametrize('command', COMMANDS)
def test_what_fails_on_the_way_is_raised_as_it_is(command, monkeypatch):
    def broken():
        raise OSError('No space left on device')

    monkeypatch.setattr(f'olor_mm.cli.{COMMANDS[command][0]}.main', broken)
    monkeypatch.setattr(sys, 'argv', ['olor_mm', command])
    with pytest.raises(OSError, match='No space left'):
        main()


@pytest.mark.parametrize('wrong, right', [('trian', 'train'), ('print-rollback', 'print_rollback'), ('lable', 'label')])
def test_a_misspelled_command_gets_the_right_one_suggested(wrong, right):
    done = tool('olor_mm', wrong, check=False)
    assert done.returncode == 2 and f"did you mean '{right}'?" in done.stdout


@pytest.mark.parametrize(
    'program, shown', [('/usr/bin/olor', 'olor'), ('olor.exe', 'olor'), ('a/__main__.py', 'python -m olor_mm')]
)
def test_the_console_script_is_the_same_under_its_name(program, shown, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [program, 'train', '-h'])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and capsys.readouterr().out.startswith(f'usage: {shown} train ')


def test_the_command_line_names_what_it_has(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['olor_mm', 'list', '--json'])
    main()
    found = json.loads(capsys.readouterr().out)
    assert found['optimizers'].keys() >= {'AdamWOLOR', 'SGDOLOR', 'OLOR', 'ZeroRedundancyOptimizerOLOR'}
    assert list(found['constructors']) == ['OLOROptimWrapperConstructor']
    assert found['rules'].keys() == set(RULES) >= {'olor', 'l2sp', 'l2sp_decoupled', 'spd'}
    assert not found['hooks'].keys() & set(RENAMED)
    assert found['hooks'].keys() >= {'PretrainedEvalHook', 'SafeCheckpointHook'}
    assert 'olor_mm::_base_/rollback.py' in found['fragments']
    files = {file.relative_to(ROOT / 'configs').as_posix() for file in (ROOT / 'configs').rglob('*.py')}
    assert {name.removeprefix('olor_mm::') for name in [*found['fragments'], *found['configs']]} == files
    assert all(what for entries in found.values() for what in entries.values())


def test_it_lists_what_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['olor_mm', 'list', 'hooks'])
    main()
    table = capsys.readouterr().out
    assert 'SafeCheckpointHook' in table and 'AdamWOLOR' not in table
    monkeypatch.setattr(sys, 'argv', ['olor_mm', 'list', 'hook'])
    with pytest.raises(SystemExit):
        main()
    assert "'hook' is none of optimizers" in capsys.readouterr().err


@pytest.mark.parametrize('command', ['train', 'test', 'print_rollback', 'compare'])
def test_every_command_reads_its_own_options(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['olor_mm', command, '--trust-checkpoint', '--no-such-option'])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and f'usage: python -m olor_mm {command} ' in capsys.readouterr().err


@pytest.mark.parametrize(
    'task, what',
    [('classification', 'reading images'), ('detection', 'evaluating'), ('semantic_segmentation', 'reading masks')],
)
def test_on_a_terminal_what_may_take_long_shows_how_far_it_is(
    task, what, folders, coco, masks, data, tmp_path, monkeypatch, capsys
):
    weights = ['--checkpoint', data / 'weights/mobilenet_v2_mmpretrain.pth']
    folder, config, options = dict(
        classification=(folders, CLASSIFIER, weights),
        detection=(coco, DETECTOR, []),
        semantic_segmentation=(masks, SEGMENTER, []),
    )[task]
    arguments = [folder, '--task', task, '--config', config, '--out', tmp_path / 'own.py', '--force', *options]
    init(*arguments)
    into_a_pipe = capsys.readouterr()
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich takes what it writes to for a terminal
    init(*arguments)
    on_a_terminal = capsys.readouterr()
    assert what in on_a_terminal.err and what not in into_a_pipe.err + into_a_pipe.out
    assert on_a_terminal.out == into_a_pipe.out


@pytest.mark.slow
def test_train_says_after_an_early_stop_too_how_much_of_the_budgets_was_used(data, tmp_path):
    stop = "dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=1, min_delta=100)"
    (tmp_path / 'early.py').write_text(
        f'_base_ = {str(ROOT / CLASSIFICATION)!r}\ncustom_hooks = [{stop}]\ntrain_cfg = dict(val_interval=1)\n'
        'optim_wrapper = dict(paramwise_cfg=dict(rollback=dict(_delete_=True, max_drift=0.05)))\n'
    )
    few = [f'{split}_dataloader.dataset.indices=32' for split in ('train', 'val')]
    said = train(tmp_path / 'early.py', tmp_path / 'run', *few).stdout
    assert said.count('of their drift budgets') == 1 and 'Epoch(train) [10]' not in said
