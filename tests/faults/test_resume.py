"""Runs that are stopped, and checkpoints that are not what they should be: a real Runner, a small real model."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from damage import damages, flipped, hostile
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from runs import SAFE, Iterations, Terminate, configured, equal, logged, resumed, trained

from olor_mm.durable.checkpoints import SafeCheckpointHook
from olor_mm.durable.files import write_durably
from olor_mm.durable.loading import CheckpointError, load
from olor_mm.durable.resuming import check_resumable, checkpoints_of, newest_good


def test_checkpoints_are_whole_and_named_last(run_dir):
    assert sorted(p.name for p in run_dir.glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    assert not list(run_dir.glob('.*'))
    assert (run_dir / 'last_checkpoint').read_text() == str(run_dir / 'epoch_2.pth')
    assert any('anchor' in state for state in load(run_dir / 'epoch_2.pth')['optimizer']['state'].values())


@pytest.mark.parametrize('option', [dict(max_keep_ckpt=2), dict(filename_tmpl='last.pth')], ids=str)
def test_options_that_would_lose_checkpoints_are_refused_when_the_hook_is_built(option):
    [(key, value)] = option.items()
    with pytest.raises(ValueError, match=f'SafeCheckpointHook.*{key}.*{value}'):
        SafeCheckpointHook(**option)


# ---- resuming --------------------------------------------------------------------------------------------------------


def altered(file: Path, change) -> None:
    """Saved by stock means after a change, so that the file itself is whole."""
    checkpoint = torch.load(file, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, file)


def without_anchors(checkpoint: dict) -> None:
    for state in checkpoint['optimizer']['state'].values():
        state.pop('anchor', None)


def of_stock_adamw(checkpoint: dict) -> None:
    without_anchors(checkpoint)
    checkpoint['optimizer'].pop('pretrained_statistics')
    for group in checkpoint['optimizer']['param_groups']:
        for key in [key for key in group if 'rollback' in key or 'anchor' in key]:
            del group[key]


def of_another_width(checkpoint: dict) -> None:
    states = checkpoint['state_dict']
    states.update({name: value.repeat_interleave(2, 0) for name, value in states.items() if value.dim()})


BAD = {
    'no anchors': (without_anchors, 'no anchors'),
    'stock AdamW': (of_stock_adamw, 'no anchors'),
    'another model': (of_another_width, 'another model'),
    'another head': (lambda c: c['state_dict'].pop('head.fc.bias'), r"another model: 1 .*'head\.fc\.bias'"),
    'no optimizer': (lambda c: c.pop('optimizer'), 'without its optimizer'),
    'weights alone': (lambda c: [c.pop(key) for key in list(c) if key != 'state_dict'], 'use load_from'),
    'other groups': (lambda c: c['optimizer']['param_groups'].pop(), 'parameter groups'),
    'nonsense': (lambda c: c.update(optimizer=[1, 2]), 'not that of a checkpoint'),
}


@pytest.fixture(scope='module')
def runner(data, tmp_path_factory) -> Runner:
    """As a run is when it looks for a checkpoint to resume from."""
    runner = Runner.from_cfg(configured(tmp_path_factory.mktemp('resumed'), data))
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def found(runner: Runner) -> str | None:
    return newest_good(runner, checkpoints_of(runner, None, 'epoch_{}.pth'))


@pytest.mark.parametrize('kind', BAD)
def test_a_checkpoint_of_something_else_is_refused(runner, copy_of_run, kind):
    change, message = BAD[kind]
    last = copy_of_run / 'epoch_2.pth'
    altered(last, lambda checkpoint: None)
    check_resumable(str(last), runner)
    altered(last, change)
    with pytest.raises(CheckpointError, match=rf'epoch_2\.pth.*{message}.*Resume with the config'):
        check_resumable(str(last), runner)


@pytest.mark.parametrize('number', [18, pytest.param(200, marks=pytest.mark.slow)])
def test_no_damaged_checkpoint_is_resumed_and_the_last_good_one_is(
    runner, copy_of_run, number, monkeypatch, record_property
):
    monkeypatch.setattr(runner, '_work_dir', str(copy_of_run))
    last = copy_of_run / 'epoch_2.pth'
    assert found(runner) == str(last)
    wrong = []
    for name, content in damages(last.read_bytes(), number):
        last.write_bytes(content)
        try:
            check_resumable(str(last), runner)
            outcome = 'taken for good'
        except CheckpointError as error:
            said = str(error)
            outcome = f'refused: {said.partition(": ")[2].partition(".")[0].partition("(")[0]}'
            wrong += [] if said.startswith(f'{str(last)!r} is damaged') and '--resume' in said else [said]
        fallback = found(runner)
        outcome += '; epoch 1 resumed from' if fallback == str(copy_of_run / 'epoch_1.pth') else f'; {fallback} resumed'
        record_property(name, outcome)
        wrong += [] if outcome.startswith('refused') and outcome.endswith('epoch 1 resumed from') else [outcome]
    assert wrong == []


def test_a_file_that_is_named_is_refused_and_without_a_name_an_older_one_is_taken(data, copy_of_run):
    last, iterations = copy_of_run / 'epoch_2.pth', Iterations()
    altered(last, BAD['no anchors'][0])
    with pytest.raises(CheckpointError, match=r'epoch_2\.pth.*no anchors'):
        resumed(copy_of_run, data, load_from=str(last))
    resumed(copy_of_run, data, iterations, epochs=2, log_level='WARNING')
    assert iterations.seen == [(1, 0), (1, 1)]
    log = logged(copy_of_run)
    assert f"Not resumed from: '{last}'" in log
    assert f"Resuming from '{copy_of_run / 'epoch_1.pth'}' instead" in log


def test_a_damaged_and_a_hostile_checkpoint_are_left_for_the_last_good_one(data, copy_of_run, run_dir):
    file, canary = copy_of_run / 'epoch_2.pth', copy_of_run / 'canary'
    torch.save(hostile(canary)['exec in meta'], file)
    with pytest.raises(CheckpointError, match=r'epoch_2\.pth.*was not opened'):
        resumed(copy_of_run, data, load_from=str(file))
    content = (run_dir / 'epoch_2.pth').read_bytes()
    write_durably(copy_of_run / 'epoch_3.pth', flipped(content, len(content) // 2, 3))
    resumed(copy_of_run, data, epochs=2)  # MMEngine's own reading is as ever here, and is not reached
    assert not canary.exists()
    assert equal(file, run_dir / 'epoch_2.pth')


def test_where_no_checkpoint_is_good_training_does_not_start_anew(data, copy_of_run):
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (copy_of_run / name).write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'no checkpoint in .* is good: .*epoch_2.*epoch_1.*empty'):
        resumed(copy_of_run, data)


@pytest.mark.parametrize('pointer', [None, '', 'gone.pth'], ids=['missing', 'empty', 'of a file that is gone'])
def test_a_lost_last_checkpoint_is_found_among_the_files(runner, copy_of_run, pointer, monkeypatch):
    monkeypatch.setattr(runner, '_work_dir', str(copy_of_run))
    (copy_of_run / 'last_checkpoint').unlink()
    if pointer is not None:
        (copy_of_run / 'last_checkpoint').write_text(pointer)
    assert found(runner) == str(copy_of_run / 'epoch_2.pth')


def test_without_any_checkpoint_a_run_starts_anew_unless_one_has_gone(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, '_work_dir', str(tmp_path))
    assert found(runner) is None
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    with pytest.raises(CheckpointError, match=r'no checkpoint in .* is good: .*epoch_1\.pth.*No such file'):
        found(runner)


def test_a_checkpoint_of_version_0_1_is_resumed(data, copy_of_run, run_dir):
    """It has the statistics of the pre-trained model by another name, and a SHA-256 of anchors."""

    def change(checkpoint: dict) -> None:
        optimizer = checkpoint['optimizer']
        optimizer.update(upstream=optimizer.pop('pretrained_statistics'), anchor_sha256='0' * 64)

    altered(copy_of_run / 'epoch_1.pth', change)
    (copy_of_run / 'epoch_2.pth').unlink()
    resumed(copy_of_run, data, epochs=2, load_from=str(copy_of_run / 'epoch_1.pth'))
    assert equal(copy_of_run / 'epoch_2.pth', run_dir / 'epoch_2.pth')
    kept, expected = (load(d / 'epoch_2.pth')['optimizer']['pretrained_statistics'] for d in (copy_of_run, run_dir))
    assert kept.keys() == expected.keys() and all(torch.equal(kept[name], expected[name]) for name in expected)


# ---- saving ----------------------------------------------------------------------------------------------------------


class Watch(Hook):
    """Notes at every moment of saving which good checkpoints there are."""

    def __init__(self, monkeypatch, folder: Path):
        self.good, self.read, replace = [], set(), os.replace

        def watch(source, target):
            self.good.append(self.names(folder))
            replace(source, target)
            self.good.append(self.names(folder))

        monkeypatch.setattr(os, 'replace', watch)

    def names(self, folder: Path) -> list[str]:
        for file in folder.glob('*.pth'):
            version = (file.name, file.stat().st_ino, file.stat().st_mtime_ns)
            if version not in self.read:
                load(file)
                self.read.add(version)
        return sorted(file.name for file in folder.glob('*.pth'))


def test_the_only_good_checkpoint_is_kept_until_the_next_is_there(data, tmp_path, monkeypatch):
    watch = Watch(monkeypatch, tmp_path)
    trained(tmp_path, data, hook=dict(SAFE, max_keep_ckpts=1))
    assert watch.good[0] == [] and all(watch.good[1:])
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_2.pth']


class Metric(Hook):
    """A validation that finds every epoch better."""

    priority = 'LOWEST'

    def after_train_epoch(self, runner):
        runner.train_loop._epoch += 1
        [hook] = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        hook.after_val_epoch(runner, metrics=dict(acc=float(runner.epoch)))
        runner.train_loop._epoch -= 1


def test_the_best_checkpoint_is_kept_until_a_better_one_is_there(data, tmp_path, monkeypatch):
    watch = Watch(monkeypatch, tmp_path)
    trained(tmp_path, data, Metric(), hook=dict(SAFE, save_best='acc', max_keep_ckpts=1))
    best = [any(name.startswith('best') for name in names) for names in watch.good]
    assert all(best[best.index(True) :])
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['best_acc_epoch_2.pth', 'epoch_2.pth']


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_no_half_one(data, copy_of_run, monkeypatch, number, run_dir):
    def fail(fd):
        if any(copy_of_run.glob('.epoch_3*')):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', fail)
    message = rf'epoch_3\.pth could not be saved: .*{os.strerror(number)}.*{copy_of_run}/epoch_2\.pth.*--resume'
    with pytest.raises(CheckpointError, match=message):
        resumed(copy_of_run, data, epochs=4, hook=dict(SAFE, max_keep_ckpts=2))
    assert sorted(p.name for p in copy_of_run.iterdir() if p.is_file() and p.suffix != '.py') == [
        'epoch_1.pth',
        'epoch_2.pth',
        'last_checkpoint',
    ]
    assert (copy_of_run / 'last_checkpoint').read_text() == str(copy_of_run / 'epoch_2.pth')
    assert equal(copy_of_run / 'epoch_2.pth', run_dir / 'epoch_2.pth')


def overwritten(file: Path, moment: str) -> None:
    """Write a file in a process that is killed at this call of the operating system."""
    setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    write_durably(file, b'new')


@pytest.mark.parametrize('moment', ['fsync', 'replace'])
def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path, moment):
    file = tmp_path / 'epoch_1.pth'
    file.write_bytes(b'old')
    process = multiprocessing.get_context('fork').Process(target=overwritten, args=(file, moment))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert file.read_bytes() == b'old'
    assert (tmp_path / '.epoch_1.pth.part').read_bytes() == b'new'


def test_what_a_killed_process_left_of_a_checkpoint_goes(data, copy_of_run):
    (copy_of_run / '.epoch_3.pth.part').write_bytes(b'half')
    resumed(copy_of_run, data)
    assert not list(copy_of_run.glob('.*'))
    assert load(copy_of_run / 'epoch_3.pth')


# ---- SIGTERM ---------------------------------------------------------------------------------------------------------


# in the middle of the second epoch, and at its end
@pytest.mark.parametrize('workers, at', [(0, 2), (1, 2), pytest.param(0, 3, marks=pytest.mark.slow)])
def test_sigterm_saves_at_the_next_iteration_and_the_resumed_run_is_bit_identical(
    data, tmp_path, run_dir, workers, at, own_sigterm
):
    more = {'train_dataloader.num_workers': workers}
    straight = run_dir
    if workers:  # they draw other numbers than the main process
        straight = tmp_path / 'straight'
        trained(straight, data, **more)
    with pytest.raises(SystemExit) as stopped:
        trained(tmp_path / 'cut', data, Terminate(at), **more)
    assert stopped.value.code == 143
    assert (tmp_path / 'cut/last_checkpoint').read_text() == str(tmp_path / 'cut/interrupted.pth')
    assert load(tmp_path / 'cut/interrupted.pth')['meta']['iter'] == at + 1
    assert not (tmp_path / 'cut/epoch_2.pth').exists()
    iterations = Iterations()
    resumed(tmp_path / 'cut', data, iterations, epochs=2, **more)
    assert iterations.seen == [(1, 1)] * (at == 2)
    assert equal(tmp_path / 'cut/epoch_2.pth', straight / 'epoch_2.pth')
    assert load(tmp_path / 'cut/epoch_2.pth')['meta']['iter'] == 4
