"""`init` takes folders that train and validate as they are meant, and refuses the others: those in quirks.py."""

import os
import re
from pathlib import Path

import pytest
import torch
from commands import init
from conftest import ROOT, tool, train
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope
from pycocotools import mask as rle
from quirks import ALL_RIGHT, ALL_WRONG, CONFIGS, LABELS, STOPS, coco, labels

from olor_mm.cli import config_text


def written(folder: Path, task: str, out: Path) -> Config:
    """What `init` writes for a folder; the config that it starts from names weights in data."""
    os.chdir(ROOT)
    init(folder, '--task', task, '--config', ROOT / CONFIGS[task], '--out', out, '--epochs', 1, '--batch-size', 2)
    return Config.fromfile(out)


@pytest.fixture(autouse=True)
def in_less_time(monkeypatch):
    """Configs of the libraries are found by their path and not by an index, and no text is laid out."""

    def no_index(*_):
        raise ValueError

    monkeypatch.setattr('mmengine.config.utils._get_cfg_metainfo', no_index)
    monkeypatch.setattr(config_text, 'FormatCode', lambda text, **_: (text, True))


def made(task: str, folder: Path) -> Path:
    return labels(folder) if task == LABELS else coco(folder)


@pytest.mark.parametrize('name', ALL_RIGHT)
def test_what_training_reads_as_it_is_meant_is_taken(name, data, tmp_path, capsys):
    task, change = ALL_RIGHT[name]
    change(made(task, tmp_path / 'data'))
    cfg = written(tmp_path / 'data', task, tmp_path / 'own.py')
    assert '_delete_' not in repr({key: cfg[key] for key in cfg if key != 'dataset'})  # a variable of the stock config
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        train_set, val_set = (DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val'))
        assert 0 < len(train_set) <= 5 and 0 < len(val_set) <= 5
        for i in range(len(train_set)):
            sample = train_set[i]['data_samples']
            if task == LABELS:
                values = set(sample.gt_sem_seg.data.unique().tolist())
                assert values <= {*range(len(cfg.classes)), 255} and values != {255}
            else:
                assert len(sample.gt_instances) + len(sample.ignored_instances)
        if task != LABELS:
            assert evaluated(cfg, val_set) == 1


def evaluated(cfg: Config, dataset) -> float:
    """The mean precision of a detector that finds what the data set has."""
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for info in map(dataset.get_data_info, range(len(dataset))):
        found = [instance for instance in info['instances'] if not instance['ignore_flag']]
        boxes = torch.tensor([instance['bbox'] for instance in found], dtype=torch.float).reshape(-1, 4)
        kinds = torch.tensor([instance['bbox_label'] for instance in found], dtype=torch.int64)
        predicted = dict(bboxes=boxes, labels=kinds, scores=torch.ones(len(found)))
        if 'segm' in metric.metrics:
            size = info['height'], info['width']
            whole = [rle.frPyObjects(i['mask'], *size) if is_open(i['mask']) else [i['mask']] for i in found]
            predicted['masks'] = [dict(rle.merge(parts if isinstance(parts, list) else [parts])) for parts in whole]
        sample = dict(img_id=info['img_id'], ori_shape=(info['height'], info['width']), pred_instances=predicted)
        metric.process({}, [sample])
    found = metric.evaluate(len(dataset))
    return min(found[f'coco/{kind}_mAP'] for kind in metric.metrics)


def is_open(mask: list | dict) -> bool:
    return isinstance(mask, list) or isinstance(mask['counts'], list)


@pytest.mark.parametrize('name', ALL_WRONG)
def test_what_stops_training_or_is_read_otherwise_is_refused(name, data, tmp_path, capsys):
    task, change, named, _ = ALL_WRONG[name]
    change(made(task, tmp_path / 'data'))
    with pytest.raises(SystemExit) as refused:
        written(tmp_path / 'data', task, tmp_path / 'own.py')
    assert not list(tmp_path.glob('own*'))
    told = f'{refused.value}\n{capsys.readouterr().err}'
    assert [line for line in told.splitlines() if re.search(named, line)], told


WITHOUT_WORKERS = [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL_RIGHT)
def test_what_is_taken_trains_is_validated_and_tested(name, data, tmp_path):
    task, change = ALL_RIGHT[name]
    change(made(task, tmp_path / 'data'))
    written(tmp_path / 'data', task, tmp_path / 'own.py')
    train(tmp_path / 'own.py', tmp_path / 'run', *WITHOUT_WORKERS)
    arguments = [tmp_path / 'own.py', tmp_path / 'run/epoch_1.pth', '--work-dir', tmp_path / 'test']
    tool('tools/test.py', *arguments, '--cfg-options', *WITHOUT_WORKERS)
    assert [*(tmp_path / 'run').glob('best_*.pth')]


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name, case in ALL_WRONG.items() if case[3]])
def test_training_without_init_stops_where_the_table_says_so(name, data, tmp_path):
    """The config is the one of a folder without the quirk."""
    task, change, _, what = ALL_WRONG[name]
    folder = made(task, tmp_path / 'data')
    written(folder, task, tmp_path / 'own.py')
    change(folder)
    done = train(tmp_path / 'own.py', tmp_path / 'run', *WITHOUT_WORKERS, check=False)
    assert (what == STOPS) == bool(done.returncode), done.stdout[-600:]
