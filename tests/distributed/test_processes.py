"""Two gloo processes against one on the same global batch, and against themselves killed and resumed."""

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import clean_process, load, run
from jobs import free_port
from mmpretrain.registry import MODELS

import olor_mm  # noqa: F401

HERE = Path(__file__).parent
TORCH = tuple(int(part) for part in torch.__version__.split('.')[:2])
MODES = ('ddp', 'zero', 'fsdp', 'fsdp-blocks')
RULES = ('olor', 'l2sp', 'l2sp_decoupled', 'spd', 'drift')
pytestmark = pytest.mark.skipif(TORCH < (2, 4), reason='FSDP on CPU came with torch 2.4, and the rest needs no more')


def start(processes: int, *jobs: list, ends_well: bool = True) -> str:
    """Run jobs, each the name of a script here and its arguments, one after the other in the same processes."""
    described = json.dumps([list(map(str, job)) for job in jobs])
    launcher = ['-m', 'torch.distributed.run', '--nproc_per_node', processes, '--master_port', free_port()]
    command = ['timeout', 600, sys.executable, *launcher, HERE / 'several.py', described]
    done = run(*command, check=ends_well, OMP_NUM_THREADS='1')
    assert ends_well or done.returncode
    return done.stdout


def here(script: str, *arguments) -> None:
    """Run a job as one process: this one."""
    with clean_process():
        sys.path.insert(0, str(HERE))
        import_module(script).main(list(map(str, arguments)))


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
    here('worker', 'single', folder, checkpoint, '--epochs', 3)
    [result] = results(folder, 1)
    return result


@pytest.fixture(scope='module')
def photos(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    for file in sorted((data / 'photos').glob('*.png'))[::20]:
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope='module')
def two(checkpoint, photos, tmp_path_factory) -> tuple[Path, str]:
    """Where two processes have done all that takes two, and what others, who resumed what those left, printed at last."""
    folder = tmp_path_factory.mktemp('two')
    first = [
        ['rules', folder / 'rules'],
        ['fsdp2', folder / 'fsdp2/straight'],
        ['fsdp2', folder / 'fsdp2/killed', '--save-at', 3],
    ]
    first.append(['forgetting', 'ddp', folder / 'forgetting', checkpoint, photos])
    first += [['budgets', mode, folder / 'budgets' / mode, checkpoint] for mode in MODES]
    second = [['fsdp2', folder / 'fsdp2/killed', '--resume']]
    for mode in MODES:
        straight, killed = (
            ['worker', mode, folder / mode / end, checkpoint, '--epochs', 3] for end in ('straight', 'killed')
        )
        first += [straight, [*killed, '--stop', 2]]
        second.append([*killed, '--resume'])
    start(2, *first)
    assert not list(folder.glob('*/killed/rank_0.pth'))
    second.append(['worker', 'zero', folder / 'no_hook', checkpoint, '--no-hook'])
    return folder, start(2, *second, ends_well=False)


@pytest.mark.parametrize('mode', MODES)
def test_two_processes_train_as_one_and_resume_exactly(checkpoint, single, two, mode):
    folder, _ = two
    straight = results(folder / mode / 'straight')
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
    for resumed, rank in zip(results(folder / mode / 'killed'), straight):
        assert_equal(resumed['weights'], rank['weights'])
        assert_equal(parts(resumed['anchors']), parts(rank['anchors']))


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['ddp', 'zero', 'fsdp'])
def test_four_processes_train_as_one_and_share_the_anchors(checkpoint, single, tmp_path, mode):
    start(4, ['worker', mode, tmp_path, checkpoint, '--epochs', 3])
    ranks = results(tmp_path, 4)
    for rank in ranks:
        assert_equal(rank['weights'], single['weights'], 1e-6)
    assert_equal(ranks[0]['weights'], ranks[3]['weights'])
    held = [sum(anchor.numel() for anchor in rank['anchors'].values()) for rank in ranks]
    total = sum(anchor.numel() for anchor in single['anchors'].values())
    assert held == [total] * 4 if mode == 'ddp' else sum(held) == total and max(held) < 0.3 * total
    assert max(rank['bytes'] for rank in ranks) <= single['bytes'] * (1 if mode == 'ddp' else 0.3)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['ddp', 'zero', 'fsdp'])
def test_rollback_adds_no_communication(checkpoint, tmp_path, mode):
    levels = (0.1, 0)
    start(2, *(['worker', mode, tmp_path / f'{n}', checkpoint, '--epochs', 1, '--level', n, '--count'] for n in levels))
    counted = {level: results(tmp_path / f'{level}') for level in levels}
    assert counted[0.1] == counted[0]
    parameters = sum(value.numel() for value in load(checkpoint)['state_dict'].values())
    for rank in counted[0.1]:  # three steps were counted, with all their gradients
        assert rank['numbers']['gloo:all_reduce'] >= 3 * parameters


@pytest.mark.slow
def test_a_process_that_is_slower_changes_nothing(checkpoint, single, tmp_path):
    start(2, ['worker', 'ddp', tmp_path, checkpoint, '--epochs', 3, '--slow'])
    for rank in results(tmp_path):
        assert_equal(rank['weights'], single['weights'], 1e-6)
        assert_equal(rank['anchors'], single['anchors'])


@pytest.mark.slow
@pytest.mark.parametrize(
    'first, then',
    [
        ((1, 'single'), (2, 'ddp')),
        ((2, 'ddp'), (1, 'single')),
        ((1, 'single'), (2, 'zero')),
        ((2, 'zero'), (4, 'zero')),
    ],
)
def test_resuming_with_another_number_of_processes(checkpoint, single, tmp_path, first, then):
    for (processes, mode), how in ((first, ('--stop', 2)), (then, ('--resume',))):
        job = ['worker', mode, tmp_path, checkpoint, '--epochs', 3, *how]
        start(processes, job) if processes > 1 else here(*job)
    kept = {}
    for rank in results(tmp_path, then[0]):
        assert_equal(rank['weights'], single['weights'], 1e-6)
        kept.update(rank['anchors'])
    assert_equal(kept, single['anchors'])


def test_fully_shard_in_a_plain_loop_trains_as_one_process_and_resumes_exactly(two, tmp_path):
    here('fsdp2', tmp_path)
    [one] = results(tmp_path, 1)
    assert len(one['anchors']) == 6
    folder, _ = two
    for straight, resumed in zip(results(folder / 'fsdp2/straight'), results(folder / 'fsdp2/killed')):
        assert_equal(straight['weights'], one['weights'], 1e-6)
        assert_equal(straight['anchors'], one['anchors'])
        assert_equal(resumed['weights'], straight['weights'])
        assert_equal(resumed['anchors'], straight['anchors'])


def test_zero_without_the_hook_says_so_instead_of_waiting_for_ever(two):
    _, output = two
    assert "was not gathered: set custom_hooks=[dict(type='ConsolidateOptimizerHook')]" in output


@pytest.mark.parametrize('rule', RULES)
def test_rows_of_two_processes_are_those_of_one_and_resume_exactly(two, rule):
    folder, _ = two
    for ended in results(folder / 'rules'):
        for kind in ('ddp rows', 'zero rows'):
            for p, q in zip(ended[kind, rule], ended['rows', rule], strict=True):
                torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        for kind in ('ddp rows', 'zero rows', *(['fsdp'] if rule != 'spd' else [])):
            assert all(map(torch.equal, ended[f'{kind} resumed', rule], ended[kind, rule]))
        assert not torch.allclose(ended['rows', rule][0][4], ended['alone', rule][0][4], atol=1e-4)


@pytest.mark.parametrize('rule', RULES)
def test_rules_of_two_processes_are_those_of_one_or_refused(two, rule):
    folder, _ = two
    for ended in results(folder / 'rules'):
        kinds = ['zero'] if rule in ('spd', 'drift') else ['zero', 'fsdp']  # a shard has a budget of its own
        for kind in kinds:
            for p, q in zip(ended[kind, rule], ended['alone', rule], strict=True):
                torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        assert rule != 'spd' or 'compares whole parameter tensors' in ended['fsdp', rule]
        for p, start in zip(ended['fsdp', rule], ended['start']) if rule == 'drift' else ():
            assert 0 < (p - start).norm() <= 0.5 * start.norm() * (1 + 1e-5)


@pytest.mark.parametrize('mode', ['ddp', *(pytest.param(mode, marks=pytest.mark.slow) for mode in ('zero', 'fsdp'))])
def test_forgetting_of_two_processes_is_that_of_one(checkpoint, photos, tmp_path, mode, request):
    here('forgetting', 'single', tmp_path / 'single', checkpoint, photos)
    if mode == 'ddp':
        folder = request.getfixturevalue('two')[0] / 'forgetting'
    else:
        folder = tmp_path / mode
        start(2, ['forgetting', mode, folder, checkpoint, photos])
    drifts, found = {}, {}
    for name, (work_dir, processes) in dict(single=(tmp_path / 'single', 1), several=(folder, 2)).items():
        [file] = work_dir.glob('*/vis_data/scalars.json')
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        drifts[name] = [row for row in rows if 'drift/all' in row]
        found[name] = results(work_dir, processes)
    assert [row['step'] for row in drifts['single']] == [2, 4, 6] and drifts['single'][-1]['drift/all'] > 1e-3
    for ours, theirs in zip(drifts['several'], drifts['single'], strict=True):
        if mode == 'fsdp':  # only what has an anchor: not the last norm layer, of level 0
            assert theirs.pop('drift/layer_04') > 0 and ours.pop('drift/all') and theirs.pop('drift/all')
        assert ours == pytest.approx(theirs, rel=1e-4)
    if mode != 'fsdp':  # where it is refused
        assert found['several'][0] == found['several'][1] == pytest.approx(found['single'][0], rel=1e-4)
        assert {'val/pretrained/agreement', 'val/pretrained/kl', 'val/pretrained/accuracy/top1'} < found['single'][
            0
        ].keys()


def use_of_budgets(work_dir: Path) -> dict[str, float]:
    """Shares of the budgets by layer after the last iteration, which DriftHook logged."""
    [file] = work_dir.rglob('scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines() if '_of_budget' in line]
    assert [row['step'] for row in rows] == list(range(1, 10))
    return {key: value for key, value in rows[-1].items() if key.endswith('_of_budget')}


@pytest.mark.parametrize('mode', MODES)
def test_two_processes_measure_the_use_of_budgets_together_and_say_it_once(checkpoint, two, tmp_path, mode):
    here('budgets', 'single', tmp_path, checkpoint)
    single, found = use_of_budgets(tmp_path), use_of_budgets(two[0] / 'budgets' / mode)
    # under FSDP each shard has a bound of its own
    assert len(single) > 4 and found == pytest.approx(single, rel=0.3 if 'fsdp' in mode else 1e-4)
    layers = [value for key, value in found.items() if key.startswith('drift/layer')]
    assert min(layers) > 0 and max(layers) <= 1
    [log] = (two[0] / 'budgets' / mode).rglob('*.log')
    [line] = [line for line in log.read_text().splitlines() if 'layers used' in line]
    assert f'layers used {100 * min(layers):.0f} to {100 * max(layers):.0f} %' in line
