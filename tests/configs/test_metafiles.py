"""README, metafile and index of the config families against the files that are there."""

import json
import re

import modelindex
import pytest
import yaml
from conftest import ROOT

FAMILIES = sorted(path.parent for path in ROOT.glob('configs/*/*/metafile.yml'))
METRICS = {
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
    'mIoU': ('mIoU', 1),
}


def configs(folder) -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for file in folder.glob('*.py'))


def test_the_index_lists_every_config_once_as_mim_reads_it(monkeypatch):
    listed = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert listed == [str((folder / 'metafile.yml').relative_to(ROOT)) for folder in FAMILIES]
    monkeypatch.chdir(ROOT)
    index = modelindex.load('model-index.yml')
    collections = {collection.name: collection for collection in index.collections}
    assert len(collections) == len(FAMILIES) == 4
    assert sorted(model.config for model in index.models) == sorted(c for folder in FAMILIES for c in configs(folder))
    for model in index.models:
        assert f'/{model.name}.py' in model.config and model.in_collection in collections
        assert model.metadata.data['Training Data'] and model.weights is None


@pytest.mark.parametrize('folder', FAMILIES, ids=lambda folder: folder.parts[-2])
def test_readme_and_metafile_say_what_is_there(folder):
    readme = (folder / 'README.md').read_text()
    links = re.findall(r'\]\(([^)]+)\)', readme)
    assert all((folder / link).exists() for link in links if not link.startswith('https://'))
    assert {link for link in links if link.endswith('.py')} >= {file.name for file in folder.glob('*.py')}
    [block] = re.findall(r'```python\n(.*?)```', readme, re.S)
    [fragment] = [
        ROOT / f'configs/_base_/datasets/{name}' for name in re.findall(r'`configs/_base_/datasets/(.+?)`', readme)
    ]
    assert block in fragment.read_text()

    models = yaml.safe_load((folder / 'metafile.yml').read_text())['Models']
    results = {model['Name']: model['Results'] for model in models if 'Results' in model}
    assert {log.stem for log in folder.glob('logs/*')} <= results.keys() <= {file.stem for file in folder.glob('*.py')}
    for name, found in results.items():
        [row] = [line for line in readme.partition('## Results')[2].splitlines() if f'({name}.py)' in line]
        log = folder / f'logs/{name}.json'
        assert f'(logs/{name}.json)' in row if log.exists() else 'not kept' in row
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        for metric, value in (item for result in found for item in result['Metrics'].items()):
            key, scale = METRICS[metric]
            assert f'{metric} {value / 100:.3f}' in row if scale == 100 else f'{value} %' in row
            for line in [line for line in lines if key in line][-1:]:
                assert round(line[key] * scale, 1) == value
            assert not lines or any(key in line for line in lines)
