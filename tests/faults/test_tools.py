"""Real processes of the tools that are stopped or run out of disk."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
from conftest import CLASSIFICATION, train
from damage import damages
from jobs import end, wait_for
from runs import equal

ONE_THREAD = dict(alone=True, OMP_NUM_THREADS='1')
OPTIONS = (
    'train_dataloader.dataset.indices=96',
    'train_dataloader.batch_size=16',
    'train_cfg.max_epochs=4',
    'train_cfg.val_interval=10',
    'param_scheduler.T_max=4',
    'default_hooks.checkpoint.max_keep_ckpts=2',
    'log_level=INFO',
)
LAST = 'epoch_4.pth'


def start(work_dir: Path, *options: str, **kwargs) -> subprocess.Popen:
    return jobs.start(work_dir, *OPTIONS, *options, **kwargs)


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('straight')
    train(CLASSIFICATION, folder, *OPTIONS, **ONE_THREAD)
    return folder / LAST


def test_sigterm_to_a_whole_job_ends_it_with_143_and_a_checkpoint(data, tmp_path):
    process = start(tmp_path / 'run')
    assert wait_for(process, (tmp_path / 'run/epoch_1.pth').exists), (tmp_path / 'run.log').read_text()
    assert end(process, signal.SIGTERM) == 143, (tmp_path / 'run.log').read_text()
    assert (tmp_path / 'run/last_checkpoint').read_text().endswith('interrupted.pth')
    assert 'SIGTERM' in (tmp_path / 'run.log').read_text()


@pytest.mark.slow
def test_a_terminated_run_that_is_resumed_ends_bit_identical(data, tmp_path, straight):
    work_dir, codes = tmp_path / 'run', []
    for _ in range(3):
        resume = ['--resume'] if codes else []
        process = start(work_dir, *resume)
        before = {file: file.stat().st_mtime_ns for file in work_dir.glob('epoch_*.pth')}
        wait_for(process, lambda: {f: f.stat().st_mtime_ns for f in work_dir.glob('epoch_*.pth')} != before)  # noqa: B023
        codes.append(end(process, signal.SIGTERM))
    assert codes[0] == 143 and set(codes) <= {143, 0}
    train(CLASSIFICATION, work_dir, '--resume', *OPTIONS, **ONE_THREAD)
    assert equal(work_dir / LAST, straight)


@pytest.mark.slow
@pytest.mark.parametrize('round', range(3))
def test_a_run_killed_while_saving_that_is_resumed_ends_bit_identical(data, tmp_path, straight, round):
    work_dir, half = tmp_path / 'run', []
    for epoch in range(1 + round % 2, 4):
        process = start(work_dir, '--resume')
        wait_for(process, (work_dir / f'.epoch_{epoch}.pth.part').exists)
        time.sleep(0.004 * round)
        end(process, signal.SIGKILL)
        half += list(work_dir.glob('.*.part'))
    assert half  # at least once it was in the middle
    train(CLASSIFICATION, work_dir, '--resume', *OPTIONS, **ONE_THREAD)
    assert equal(work_dir / LAST, straight)
    assert not list(work_dir.glob('.*.part'))


@pytest.mark.slow
def test_a_damaged_last_checkpoint_costs_an_epoch_and_no_more(data, tmp_path, straight):
    train(CLASSIFICATION, tmp_path, *OPTIONS, **ONE_THREAD)
    last = tmp_path / LAST
    for name, content in list(damages(last.read_bytes(), 15, seed=1))[-3:]:
        last.write_bytes(content)
        done = train(CLASSIFICATION, tmp_path, f'--resume={last}', *OPTIONS, check=False, **ONE_THREAD)
        assert done.returncode and f"'{last}'" in done.stdout.strip().splitlines()[-1], name
        assert 'Traceback' not in done.stdout
    done = train(CLASSIFICATION, tmp_path, '--resume', *OPTIONS, **ONE_THREAD)
    assert f"Resuming from '{tmp_path / 'epoch_3.pth'}'" in done.stdout
    assert equal(tmp_path / LAST, straight)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=50m', 'tmpfs', folder], capture_output=True)
    if mounted.returncode:
        pytest.skip('file systems cannot be mounted here')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_last_good_checkpoint_is_resumed(data, tmp_path, small_disk, straight):
    """There is room for one checkpoint; the second takes the last of it."""
    work_dir = small_disk / 'run'
    done = train(CLASSIFICATION, work_dir, *OPTIONS, check=False, **ONE_THREAD)
    assert done.returncode
    said = done.stdout.strip().splitlines()[-1]
    told = (f'{work_dir}/epoch_2.pth', 'No space left', f'{work_dir}/epoch_1.pth', '--resume')
    assert all(part in said for part in told), said
    assert [p.name for p in work_dir.glob('*.pth*')] == ['epoch_1.pth'] and not list(work_dir.glob('.*'))
    subprocess.run(['mount', '-o', 'remount,size=500m', small_disk], check=True)
    train(CLASSIFICATION, work_dir, '--resume', *OPTIONS, **ONE_THREAD)
    assert equal(work_dir / LAST, straight)


@pytest.mark.slow
def test_a_limit_of_file_size_is_said_too(data, tmp_path):
    limited = f'ulimit -f 1000; exec "{sys.executable}" tools/train.py "$@"'
    process = start(tmp_path / 'run', command=('bash', '-c', limited, 'train'))
    assert process.wait(100)
    said = (tmp_path / 'run.log').read_text()
    assert 'epoch_1.pth' in said and 'File too large' in said and 'Traceback' not in said
    assert not list((tmp_path / 'run').glob('*.pth*')) and not list((tmp_path / 'run').glob('.*'))


@pytest.mark.slow
def test_two_processes_agree_on_where_to_stop_and_go_on_from_there(data, tmp_path):
    for name, cut in (('straight', False), ('cut', True)):
        process = start(tmp_path / name, processes=2)
        if cut:
            assert wait_for(process, (tmp_path / name / 'epoch_1.pth').exists)
            assert end(process, signal.SIGTERM)
            assert (tmp_path / name / 'last_checkpoint').read_text().endswith('interrupted.pth')
            process = start(tmp_path / name, '--resume', processes=2)
        assert process.wait(200) == 0, Path(f'{tmp_path / name}.log').read_text()[-3000:]
    # each process has BatchNorm statistics of its own until the end of an epoch, and those of the first are saved
    assert equal(tmp_path / 'cut' / LAST, tmp_path / 'straight' / LAST, but='running_')
