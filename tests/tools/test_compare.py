import re
import shutil
import sys

import pytest
from conftest import CLASSIFICATION, run, train

from olor_mm.cli.compare import main

TOOL = [sys.executable, 'tools/analysis_tools/compare.py']


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    """A training of two iterations, and copies of its work_dir with another seed and another level in the config."""
    folder = tmp_path_factory.mktemp('runs')
    work_dir = folder / 'olor_0'
    train(
        CLASSIFICATION,
        work_dir,
        *('train_cfg.max_epochs=2', 'train_cfg.val_interval=1', 'train_dataloader.dataset.indices=32'),
        *('val_dataloader.dataset.indices=100', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0'),
        *('val_dataloader.persistent_workers=False', 'default_hooks.logger.interval=1'),
    )
    for name, old, new in (('olor_1', 'seed=0', 'seed=1'), ('strong_0', 'max_level=0.01', 'max_level=0.1')):
        shutil.copytree(work_dir, folder / name)
        [config] = folder.glob(f'{name}/*/vis_data/config.py')
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))
    return folder


def test_a_report_of_real_runs(runs, tmp_path):
    """One has a checkpoint that holds a command: it is not run, and the report says what is missing."""
    harmful = runs / 'strong_0/epoch_2.pth'
    harmful.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / 'ran').encode() + b"'\ntR.")
    out = tmp_path / 'new/report'
    done = run(*TOOL, f'OLOR={runs}/olor_*', f'stronger={runs}/strong_*', '--out', out, '--images', '3')
    assert done.stdout.strip().splitlines()[-1].startswith(f'{out}/report.html is written')
    text = (out / 'report.md').read_text()
    assert '| OLOR | ' in text and 'n = 1, no interval' in text and 'no measure of retention was logged' in text
    assert '| optim_wrapper.paramwise_cfg.rollback.max_level | 0.01 | 0.1 |' in text
    assert text.count('| image ') == 3 and f'OLOR: {runs}/olor_0/epoch_2.pth' in text
    assert f'stronger: not drawn, {harmful}: CheckpointError: ' in text and not (tmp_path / 'ran').exists()
    page = (out / 'report.html').read_text()
    assert (
        page.count('<img src="data:image/png;base64,') == 2 and '<h3>accuracy/top1 (%), higher is better</h3>' in page
    )
    assert {file.name for file in out.glob('*.csv')} == {'runs.csv', 'summary.csv', 'settings.csv'}


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['A={0}/none_*'], "compare: .*'A=.*none_"),
        (['A={0}/olor_*', '--metric', 'mIoU'], "compare: .*'mIoU'"),
        (['A={0}/olor_*', '--retention', 'pretrained/kl'], "compare: --retention 'pretrained/kl'"),
        (['A={0}/olor_*', '--retention', 'upstream/kl'], "compare: .*'upstream/kl'.*'pretrained/kl'"),
        (['A={0}/olor_*', '--images', '-1'], '--images -1'),
        (['A={0}/olor_*', '--out', '{0}/olor_0/last_checkpoint'], '--out .*/last_checkpoint'),
    ],
)
def test_what_cannot_be_done_is_named(arguments, message, runs, tmp_path, monkeypatch, capsys):
    command = ['compare', '--out', tmp_path / 'out', *(argument.format(runs) for argument in arguments)]
    monkeypatch.setattr(sys, 'argv', list(map(str, command)))
    with pytest.raises(SystemExit) as ended:
        main()
    assert re.search(message, f'{ended.value}{capsys.readouterr().err}') and not (tmp_path / 'out').exists()
