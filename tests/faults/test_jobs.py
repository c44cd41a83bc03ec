"""Jobs as clusters run them: killed, restarted, on several nodes, by Slurm, and with parts of them gone."""

import json
import os
import re
import sys
import time
from pathlib import Path

import jobs
import kills
import pytest
from conftest import run
from jobs import children, free_port, kill, wait_for
from runs import equal

from olor_mm.cli import train as cli_train

EPOCHS = 4
OPTIONS = (
    '--no-validate',
    'train_dataloader.dataset.indices=96',
    'train_dataloader.batch_size=8',
    f'train_cfg.max_epochs={EPOCHS}',
    f'param_scheduler.T_max={EPOCHS}',
    'log_level=INFO',
)
LAST = f'epoch_{EPOCHS}.pth'


def start(work_dir: Path, *options: str, **kwargs):
    return jobs.start(work_dir, *OPTIONS, *options, **kwargs)


def log(work_dir: Path) -> str:
    return Path(f'{work_dir}.log').read_text()


def ended(process, work_dir: Path) -> Path:
    """The last checkpoint of a job that has to end well."""
    assert process.wait(300) == 0, log(work_dir)[-4000:]
    return work_dir / LAST


@pytest.fixture(scope='module')
def of_two(data, tmp_path_factory) -> Path:
    """What two processes that are left alone end with."""
    folder = tmp_path_factory.mktemp('two') / 'straight'
    return ended(start(folder, processes=2), folder)


@pytest.mark.slow
@pytest.mark.parametrize('processes', [0, 2], ids=['one process', 'two processes'])
def test_killed_again_and_again(data, tmp_path, processes, record_property):
    rows = kills.study(tmp_path / 'kills.jsonl', seed=0, processes=processes, kills=3)
    assert all(row['ok'] for row in rows), rows
    assert [json.loads(line) for line in (tmp_path / 'kills.jsonl').read_text().splitlines()] == rows
    assert len(rows) == 4


@pytest.mark.slow
def test_a_killed_data_loader_worker_ends_the_run_plainly(data, tmp_path):
    straight, work_dir, seen = tmp_path / 'straight', tmp_path / 'run', set()
    straight = ended(start(straight), straight)
    process = start(work_dir)

    def is_second_epoch() -> bool:
        seen.update(children(process.pid))
        return (work_dir / 'epoch_1.pth').exists()

    assert wait_for(process, is_second_epoch) and wait_for(process, lambda: set(children(process.pid)) - seen)
    kill((set(children(process.pid)) - seen).pop())
    assert process.wait(100)
    assert re.search(r'DataLoader worker \(pid\(?s?\)? .*(killed by signal: Killed|exited unexpectedly)', log(work_dir))
    assert equal(ended(start(work_dir, '--resume'), work_dir), straight)


@pytest.mark.slow
def test_torchrun_restarts_a_job_that_goes_on_from_its_last_checkpoint(data, tmp_path, of_two):
    work_dir = tmp_path / 'run'
    process = start(work_dir, '--resume', processes=2, MAX_RESTARTS='2')
    assert wait_for(process, (work_dir / 'epoch_2.pth').exists), log(work_dir)[-4000:]
    kill(children(process.pid)[1])
    assert equal(ended(process, work_dir), of_two)
    assert re.search(r'resumed epoch: [2-3], iter', log(work_dir))


@pytest.mark.slow
def test_processes_of_a_killed_torchrun_save_and_end(data, tmp_path, of_two):
    work_dir = tmp_path / 'run'
    process = start(work_dir, processes=2)
    assert wait_for(process, (work_dir / 'epoch_1.pth').exists), log(work_dir)[-4000:]
    ranks = children(process.pid)
    kill(process.pid)
    process.wait()
    deadline = time.monotonic() + 100
    while any(Path(f'/proc/{rank}').exists() for rank in ranks):
        assert time.monotonic() < deadline, 'they train on'
        time.sleep(0.1)
    assert (work_dir / 'last_checkpoint').read_text().endswith('interrupted.pth'), log(work_dir)[-4000:]
    assert 'SIGTERM: saved' in log(work_dir)
    # each process has BatchNorm statistics of its own until the end of an epoch, and those of the first are saved
    assert equal(ended(start(work_dir, '--resume', processes=2), work_dir), of_two, but='running_')


def refused(monkeypatch, tmp_path, *options: str) -> str:
    """What tools/train.py ends with, in this process."""
    config = str(jobs.ROOT / jobs.CLASSIFICATION)
    monkeypatch.setattr(sys, 'argv', ['train.py', config, '--work-dir', str(tmp_path), *options])
    with pytest.raises(SystemExit) as ended:
        cli_train.main()
    return str(ended.value)


@pytest.mark.parametrize('options', [(), ('--resume={}/epoch_1.pth',)], ids=['anew', 'from one checkpoint'])
def test_a_restart_that_would_begin_again_is_refused_at_once(tmp_path, monkeypatch, options):
    (tmp_path / 'epoch_1.pth').touch()
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '1')
    said = refused(monkeypatch, tmp_path, *(option.format(tmp_path) for option in options))
    assert 'MAX_RESTARTS' in said and '--resume without a path' in said


@pytest.mark.slow
def test_two_nodes_train_as_one_with_two_processes(data, tmp_path, of_two):
    work_dir, port = tmp_path / 'run', str(free_port())
    nodes = [start(work_dir, processes=1, NNODES='2', NODE_RANK=str(rank), PORT=port) for rank in (0, 1)]
    for node in nodes:
        ended(node, work_dir)
    assert 'GPU number: 2' in log(work_dir)
    assert equal(work_dir / LAST, of_two)


SRUN = f"""#!{sys.executable}
import os, subprocess, sys
options = dict(a.split('=', 1) for a in sys.argv[1:] if a.startswith('--') and '=' in a)
tasks, command = int(options['--ntasks']), sys.argv[sys.argv.index('python'):]
print('srun', *sys.argv[1:], flush=True)
slurm = dict(SLURM_NTASKS=str(tasks), SLURM_NODELIST='node[1-2]')
processes = [subprocess.Popen(command, env=dict(os.environ, SLURM_PROCID=str(i), SLURM_LOCALID=str(i), **slurm))
             for i in range(tasks)]
sys.exit(max(p.wait() for p in processes))
"""
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames node[1-2]" ] && echo localhost && echo node2
"""


@pytest.mark.slow
def test_slurm_starts_the_same_job(data, tmp_path, of_two):
    """There is no Slurm here: srun and scontrol are stood in for, all else is real."""
    for name, source in dict(srun=SRUN, scontrol=SCONTROL).items():
        (tmp_path / name).write_text(source)
        (tmp_path / name).chmod(0o755)
    flags, settings = ([o for o in OPTIONS if o.startswith('--') == is_flag] for is_flag in (True, False))
    command = ['bash', 'tools/slurm_train.sh', 'cpus', 'digits', jobs.CLASSIFICATION, tmp_path / 'run', *flags]
    path = f'{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    resources = dict(GPUS='2', GPUS_PER_NODE='2', SRUN_ARGS='--gres=none --time=10', MASTER_PORT=str(free_port()))
    done = run('env', f'PATH={path}', *command, '--cfg-options', *settings, OMP_NUM_THREADS='1', **resources)
    started = (
        'srun -p cpus --job-name=digits --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=5 '
        '--kill-on-bad-exit=1 --gres=none --time=10 python -u '
    )
    assert started in done.stdout and 'GPU number: 2' in done.stdout
    assert equal(tmp_path / 'run' / LAST, of_two)


@pytest.mark.parametrize('launcher, tool', [('pytorch', 'dist_train.sh'), ('slurm', 'slurm_train.sh')])
def test_a_launcher_that_has_not_started_the_process_is_named_with_its_tool(tmp_path, monkeypatch, launcher, tool):
    assert f'tools/{tool}' in refused(monkeypatch, tmp_path, f'--launcher={launcher}')
