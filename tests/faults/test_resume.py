"""Runs that are stopped, and checkpoints that are not what they should be: a real Runner, a small real model."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from damage import damages, flipped, hostile
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from test_runner import config

from olor_mm.engine.checkpoints import SafeCheckpointHook, check_resumable, write_durably
from olor_mm.engine.loading import CheckpointError, load

SAFE = dict(type='SafeCheckpointHook', interval=1)


def configured(work_dir, data, epochs=2, hook=SAFE, **changes):
    cfg = config(work_dir, data, epochs=epochs, iterations=2, **changes)
    cfg.model.backbone.widen_factor = 0.1
    cfg.model.backbone.init_cfg = None
    cfg.model.head.in_channels = 1280
    cfg.optim_wrapper.paramwise_cfg.rollback.pretrained = ['backbone']
    cfg.default_hooks.checkpoint = dict(hook)
    cfg.param_scheduler.T_max = 4
    return cfg


def trained(work_dir, data, *hooks: Hook, **options) -> Runner:
    runner = Runner.from_cfg(configured(work_dir, data, **options))
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


@pytest.fixture(scope='module')
def run_dir(data, tmp_path_factory) -> Path:
    """Two epochs of two iterations; not to be changed."""
    folder = tmp_path_factory.mktemp('run')
    trained(folder, data)
    return folder


@pytest.fixture
def copy_of_run(run_dir, tmp_path) -> Path:
    for number, name in enumerate(('epoch_1.pth', 'epoch_2.pth')):
        (tmp_path / name).write_bytes((run_dir / name).read_bytes())
        os.utime(tmp_path / name, (number, number))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    return tmp_path


def resumed(work_dir, data, *hooks, epochs=3, **options) -> Runner:
    return trained(work_dir, data, *hooks, epochs=epochs, resume=True, **options)


class Starts(Hook):
    def __init__(self):
        self.epochs = []

    def before_train_epoch(self, runner):
        self.epochs.append(runner.epoch)


def equal(file: Path, other: Path, but: str = 'nothing') -> bool:
    a, b = load(file), load(other)
    states = a['optimizer']['state'], b['optimizer']['state']
    return (
        all(torch.equal(value, b['state_dict'][name]) for name, value in a['state_dict'].items() if but not in name)
        and states[0].keys() == states[1].keys()
        and all(torch.equal(v, states[1][i][key]) for i, state in states[0].items() for key, v in state.items())
        and a['optimizer']['anchor_sha256'] == b['optimizer']['anchor_sha256']
    )


def test_checkpoints_are_whole_and_named_last(run_dir):
    assert sorted(p.name for p in run_dir.glob('*.pth')) == ['epoch_1.pth', 'epoch_2.pth']
    assert not list(run_dir.glob('.*'))
    assert (run_dir / 'last_checkpoint').read_text() == str(run_dir / 'epoch_2.pth')
    assert load(run_dir / 'epoch_2.pth')['optimizer']['anchor_sha256']


# ---- resuming --------------------------------------------------------------------------------------------------------


def altered(file: Path, change) -> None:
    """Saved by stock means after a change, so that the file itself is whole."""
    checkpoint = torch.load(file, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, file)


def first_anchor(checkpoint: dict) -> dict:
    return next(state for state in checkpoint['optimizer']['state'].values() if 'anchor' in state)


def without_anchors(checkpoint: dict) -> None:
    for state in checkpoint['optimizer']['state'].values():
        state.pop('anchor', None)


def of_stock_adamw(checkpoint: dict) -> None:
    without_anchors(checkpoint)
    checkpoint['optimizer'].pop('anchor_sha256')
    checkpoint['optimizer'].pop('upstream')
    for group in checkpoint['optimizer']['param_groups']:
        for key in [key for key in group if 'rollback' in key or 'anchor' in key]:
            del group[key]


def of_another_width(checkpoint: dict) -> None:
    states = checkpoint['state_dict']
    states.update({name: value.repeat_interleave(2, 0) for name, value in states.items() if value.dim()})


BAD = {
    'one anchor altered': (lambda c: first_anchor(c)['anchor'].add_(1e-3), 'anchors.*not those it was saved with'),
    'one anchor missing': (lambda c: first_anchor(c).pop('anchor'), 'anchors.*not those it was saved with'),
    'statistics altered': (
        lambda c: next(iter(c['optimizer']['upstream'].values())).add_(1),
        'not those it was saved with',
    ),
    'no anchors': (without_anchors, 'no anchors'),
    'stock AdamW': (of_stock_adamw, 'no anchors'),
    'another model': (of_another_width, 'another model'),
    'another head': (lambda c: c['state_dict'].pop('head.fc.bias'), r"another model: 1 of .*'head\.fc\.bias'"),
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


@pytest.mark.parametrize('kind', BAD)
def test_a_checkpoint_of_something_else_is_refused(runner, copy_of_run, kind):
    change, message = BAD[kind]
    last = copy_of_run / 'epoch_2.pth'
    altered(last, lambda checkpoint: None)
    check_resumable(str(last), runner)
    altered(last, change)
    with pytest.raises(CheckpointError, match=rf'epoch_2\.pth.*{message}.*Resume with the config'):
        check_resumable(str(last), runner)


@pytest.mark.parametrize('number', [40, pytest.param(200, marks=pytest.mark.slow)])
def test_no_damaged_checkpoint_is_resumed_and_the_last_good_one_is(
    runner, copy_of_run, number, monkeypatch, record_property
):
    monkeypatch.setattr(runner, '_work_dir', str(copy_of_run))
    last, hook = copy_of_run / 'epoch_2.pth', SafeCheckpointHook()
    assert hook._newest_good(runner) == str(last)
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
        fallback = hook._newest_good(runner)
        outcome += '; epoch 1 resumed from' if fallback == str(copy_of_run / 'epoch_1.pth') else f'; {fallback} resumed'
        record_property(name, outcome)
        wrong += [] if outcome.startswith('refused') and outcome.endswith('epoch 1 resumed from') else [outcome]
    assert wrong == []


def test_a_file_that_is_named_is_refused_and_without_a_name_an_older_one_is_taken(data, copy_of_run):
    last, starts = copy_of_run / 'epoch_2.pth', Starts()
    altered(last, BAD['one anchor altered'][0])
    with pytest.raises(CheckpointError, match=r'epoch_2\.pth.*not those it was saved with'):
        resumed(copy_of_run, data, load_from=str(last))
    resumed(copy_of_run, data, starts, epochs=2, log_level='WARNING')
    assert starts.epochs == [1]
    log = ''.join(file.read_text() for file in copy_of_run.glob('*/*.log'))
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


@pytest.mark.parametrize('pointer', [None, ''], ids=['missing', 'empty'])
def test_a_lost_last_checkpoint_is_found_among_the_files(data, copy_of_run, pointer):
    (copy_of_run / 'last_checkpoint').unlink()
    if pointer is not None:
        (copy_of_run / 'last_checkpoint').write_text(pointer)
    starts = Starts()
    resumed(copy_of_run, data, starts)
    assert starts.epochs == [2]


# ---- saving ----------------------------------------------------------------------------------------------------------


class Watch(Hook):
    """Notes at every moment of saving which good checkpoints there are."""

    def __init__(self, monkeypatch, folder: Path):
        self.good, replace = [], os.replace

        def watch(source, target):
            self.good.append(sorted(p.name for p in folder.glob('*.pth') if load(p)))
            replace(source, target)
            self.good.append(sorted(p.name for p in folder.glob('*.pth') if load(p)))

        monkeypatch.setattr(os, 'replace', watch)


def test_the_only_good_checkpoint_is_kept_until_the_next_is_there(data, tmp_path, monkeypatch):
    watch = Watch(monkeypatch, tmp_path)
    trained(tmp_path, data, epochs=3, hook=dict(SAFE, max_keep_ckpts=1))
    assert watch.good[0] == [] and all(watch.good[1:])
    assert [p.name for p in tmp_path.glob('*.pth')] == ['epoch_3.pth']


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
    trained(tmp_path, data, Metric(), epochs=3, hook=dict(SAFE, save_best='acc', max_keep_ckpts=1))
    best = [any(name.startswith('best') for name in names) for names in watch.good]
    assert all(best[best.index(True) :])
    assert sorted(p.name for p in tmp_path.glob('*.pth')) == ['best_acc_epoch_3.pth', 'epoch_3.pth']


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_last_good_checkpoint_and_no_half_one(data, copy_of_run, monkeypatch, number, run_dir):
    def fail(fd):
        if any(copy_of_run.glob('.epoch_3*')):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', fail)
    message = (
        rf'epoch_3\.pth could not be saved: .*{os.strerror(number)}.*last good checkpoint is .*epoch_2\.pth.*--resume'
    )
    with pytest.raises(CheckpointError, match=message):
        resumed(copy_of_run, data, epochs=4, hook=dict(SAFE, max_keep_ckpts=2))
    assert sorted(p.name for p in copy_of_run.iterdir() if p.is_file() and p.suffix != '.py') == [
        'epoch_1.pth',
        'epoch_2.pth',
        'last_checkpoint',
    ]
    assert (copy_of_run / 'last_checkpoint').read_text() == str(copy_of_run / 'epoch_2.pth')
    assert equal(copy_of_run / 'epoch_2.pth', run_dir / 'epoch_2.pth')


def test_what_a_killed_process_left_of_a_checkpoint_goes(data, copy_of_run):
    (copy_of_run / '.epoch_3.pth.part').write_bytes(b'half')
    resumed(copy_of_run, data)
    assert not list(copy_of_run.glob('.*'))
    assert load(copy_of_run / 'epoch_3.pth')


# ---- SIGTERM ---------------------------------------------------------------------------------------------------------


class Terminate(Hook):
    def __init__(self, at: int):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


# in the middle of the second epoch, and at its end
@pytest.mark.parametrize('workers, at', [(0, 2), (1, 2), pytest.param(0, 3, marks=pytest.mark.slow)])
def test_sigterm_saves_at_the_next_iteration_and_the_resumed_run_is_bit_identical(
    data, tmp_path, run_dir, workers, at, request
):
    before = signal.getsignal(signal.SIGTERM)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
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
    resumed(tmp_path / 'cut', data, epochs=2, **more)
    assert equal(tmp_path / 'cut/epoch_2.pth', straight / 'epoch_2.pth')
    assert load(tmp_path / 'cut/epoch_2.pth')['meta']['iter'] == 4
