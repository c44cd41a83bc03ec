"""`label` in processes that are killed, and in several that share the work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from jobs import kill_all
from labelling import FCN, OLD, RESNET, RETINANET, label
from old_models import old_model
from PIL import Image


def many(folder: Path, number: int) -> Path:
    """So many images in a data set that a run can be killed in between."""
    rng = np.random.default_rng(0)
    (folder / 'train').mkdir(parents=True)
    images = [dict(id=i, file_name=f'{i}.png', width=60, height=40) for i in range(number)]
    for image in images:
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / 'train' / image['file_name'])
    box = dict(id=1, image_id=0, category_id=1, bbox=[5, 6, 20, 10], area=200, iscrowd=0)
    content = dict(images=images, annotations=[box], categories=[dict(id=1, name='a')])
    (folder / 'train.json').write_text(json.dumps(content))
    return folder


def begin(*arguments, processes: int = 0) -> subprocess.Popen:
    """The command in a session of its own, so that it can be killed."""
    python = [sys.executable, '-m', 'olor_mm', 'label']
    if processes:
        python = [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--nproc_per_node',
            str(processes),
            '--master_port',
            '0',
        ]
        python += ['--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0', '-m', 'olor_mm', 'label']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen([*python, *map(str, arguments)], cwd=ROOT, env=environment, start_new_session=True)


def finished(out: Path) -> list[Path]:
    return [file for file in out.parent.glob(f'{out.name}.part/*.jsonl') if file.stat().st_size]


@pytest.mark.slow
@pytest.mark.parametrize('processes', [0, 2])
def test_a_run_that_is_killed_goes_on_to_what_it_would_have_been(processes, retinanet, tmp_path):
    data, out = many(tmp_path / 'data', 40), tmp_path / 'killed.json'
    arguments = [*retinanet, data, '--threshold', 0.3, '--batch-size', 3]
    label(*arguments, '--out', tmp_path / 'straight.json')
    process = begin(*arguments, '--out', out, processes=processes)
    while len(finished(out)) < max(1, processes) and process.poll() is None:
        time.sleep(0.005)
    kill_all(process)
    assert not out.exists()
    [first, *_] = finished(out)
    first.write_bytes(first.read_bytes()[:-7])  # as if the disk had not got all of it
    lines = sum(len(file.read_bytes().splitlines()) for file in finished(out))
    assert 0 < lines < 14
    kept = {file: file.read_bytes() for file in finished(out)}
    process = begin(*arguments, '--out', out, processes=processes)
    while process.poll() is None and all(file.stat().st_size == len(content) for file, content in kept.items()):
        time.sleep(0.005)
    for file, content in kept.items():
        assert not file.exists() or file.read_bytes().startswith(content), 'what was finished is not done again'
    assert process.wait() == 0
    assert out.read_text() == (tmp_path / 'straight.json').read_text()
    assert not list(tmp_path.glob('*.part'))


@pytest.mark.slow
@pytest.mark.parametrize('task', ['boxes', 'maps', 'probabilities'])
def test_two_processes_make_what_one_makes(task, coco, masks, folders, tmp_path):
    stock, data, suffix, options = dict(
        boxes=(RETINANET, coco, '.json', ['--val', coco]),
        maps=(FCN, masks, '', ['--classes', 'background', 'b', 'c', '--val', masks]),
        probabilities=(RESNET, folders, '.npz', []),
    )[task]
    arguments = [*old_model(tmp_path / 'old', stock, OLD), data, *options, '--batch-size', 2]
    one, two = tmp_path / f'one{suffix}', tmp_path / f'two{suffix}'
    label(*arguments, '--out', one)
    assert begin(*arguments, '--out', two, processes=2).wait() == 0
    for file in [file for file in [one, *one.rglob('*')] if file.is_file()]:
        other = Path(str(file).replace(str(one), str(two)))
        if suffix == '.npz':
            with np.load(file) as a, np.load(other) as b:
                assert all(np.array_equal(a[key], b[key]) for key in a.files)
        else:
            assert file.read_bytes() == other.read_bytes()
