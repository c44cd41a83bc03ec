"""Two gloo processes against one on the same global batch, and against themselves killed and resumed."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import load, run
from mmpretrain.registry import MODELS

import olor_mm  # noqa: F401

HERE = Path(__file__).parent
TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
PORT = iter(range(29700, 29800))
mmengine_modes = pytest.mark.parametrize('mode', ['ddp', 'zero', 'fsdp', 'fsdp-blocks'])
pytestmark = pytest.mark.skipif(TORCH < (2, 4), reason='FSDP on CPU came with torch 2.4, and the rest needs no more')


def start(processes: int, script: str, *options) -> None:
    several = ['-m', 'torch.distributed.run', '--nproc_per_node', processes, '--master_port', next(PORT)]
    run(sys.executable, *(several if processes > 1 else []), HERE / script, *options, OMP_NUM_THREADS='1')


def results(work_dir: Path, processes: int = 2) -> list[dict]:
    return [load(work_dir / f'rank_{rank}.pth') for rank in range(processes)]


def assert_equal(these: dict, those: dict, tolerance: float = 0.0) -> None:
    assert these.keys() == those.keys()
    for name in these:
        assert (these[name] - those[name]).abs().max() <= tolerance, name


def parts(anchors: dict) -> dict:
    return {name: anchor for name, anchor in anchors.items() if anchor.numel()}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    """A pre-trained model of the kind that worker.py trains."""
    folder = tmp_path_factory.mktemp('pretrained')
    sys.path.insert(0, str(HERE))
    import worker

    cfg = worker.config('single', str(folder), '', 1, False).model
    cfg.backbone.pop('init_cfg')
    torch.manual_seed(1)
    model = MODELS.build(cfg)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    return folder / 'model.pth'


@pytest.fixture(scope='module')
def single(checkpoint, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('single')
    start(1, 'worker.py', 'single', folder, checkpoint, '--epochs', 3)
    [result] = results(folder, 1)
    return result


@mmengine_modes
def test_two_processes_train_as_one_and_resume_exactly(checkpoint, single, tmp_path, mode):
    start(2, 'worker.py', mode, tmp_path / 'straight', checkpoint, '--epochs', 3)
    straight = results(tmp_path / 'straight')
    source = load(checkpoint)['state_dict']
    rolled_back = {name for group in single['groups'] if group['rollback'] > 0 for name in group['names']}
    assert len(rolled_back) > 30
    assert max((single['weights'][name] - source[name]).abs().max() for name in rolled_back) > 1e-3
    assert single['anchors'].keys() == rolled_back
    for rank in straight:
        assert rank['groups'] == single['groups']
        assert_equal(rank['weights'], single['weights'], 1e-6)
        for name, anchor in parts(rank['anchors']).items():
            if 'fsdp' in mode:  # a piece of the parameter
                assert any(torch.equal(anchor, w) for w in source[name].flatten().unfold(0, anchor.numel(), 1)), name
            else:
                assert torch.equal(anchor, source[name]), name
        assert rank['bytes'] <= single['bytes'] * (1 if mode == 'ddp' else 0.51)
    if mode == 'zero':
        assert straight[0]['anchors'].keys() | straight[1]['anchors'].keys() == rolled_back
        assert not straight[0]['anchors'].keys() & straight[1]['anchors'].keys()

    start(2, 'worker.py', mode, tmp_path / 'killed', checkpoint, '--epochs', 3, '--stop', 2)
    assert not (tmp_path / 'killed/rank_0.pth').exists()
    start(2, 'worker.py', mode, tmp_path / 'killed', checkpoint, '--epochs', 3, '--resume')
    for resumed, rank in zip(results(tmp_path / 'killed'), straight):
        assert_equal(resumed['weights'], rank['weights'])
        assert_equal(parts(resumed['anchors']), parts(rank['anchors']))


def test_fully_shard_in_a_plain_loop_trains_as_one_process_and_resumes_exactly(tmp_path):
    start(1, 'fsdp2.py', tmp_path / 'single')
    start(2, 'fsdp2.py', tmp_path / 'straight')
    start(2, 'fsdp2.py', tmp_path / 'killed', '--save-at', 3)
    start(2, 'fsdp2.py', tmp_path / 'killed', '--resume')
    [one] = results(tmp_path / 'single', 1)
    assert len(one['anchors']) == 6
    for straight, resumed in zip(results(tmp_path / 'straight'), results(tmp_path / 'killed')):
        assert_equal(straight['weights'], one['weights'], 1e-6)
        assert_equal(straight['anchors'], one['anchors'])
        assert_equal(resumed['weights'], straight['weights'])
        assert_equal(resumed['anchors'], straight['anchors'])


def test_zero_without_the_hook_says_so_instead_of_waiting_for_ever(checkpoint, tmp_path):
    script = tmp_path / 'no_hook.py'
    code = (HERE / 'worker.py').read_text().replace("[dict(type='ConsolidateOptimizerHook')]", '[]')
    script.write_text(code)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port', next(PORT)]
    done = run('timeout', 100, *command, script, 'zero', tmp_path, checkpoint, check=False, OMP_NUM_THREADS='1')
    assert "was not gathered: set custom_hooks=[dict(type='ConsolidateOptimizerHook')]" in done.stdout


def test_baselines_of_two_processes_are_those_of_one_or_refused():
    start(2, 'rules.py')
