import json
import os
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from conftest import ROOT

HEAVY = ('mmengine.runner', 'mmengine.optim', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch.distributed.fsdp', 'numba')

OWN = """
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', 'olor_mm::_base_/rollback.py']
optim_wrapper = dict(_delete_=True, **_base_.olor_optim_wrapper)
"""


def python(code: str, cwd: Path, *arguments: str, path: Path = ROOT) -> str:
    """What code prints, in a Python of its own that finds olor_mm in ``path``."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *(['-c', code] if code else []), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def sources(tmp_path_factory) -> Path:
    """A copy of what is under version control: a build leaves files beside the sources."""
    copy = tmp_path_factory.mktemp('sources')
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory) -> Path:
    """The wheel that comes out of the sdist, unpacked."""
    dist = tmp_path_factory.mktemp('dist')
    build = 'import sys, setuptools.build_meta as build; build.build_{}(sys.argv[1])'
    python(build.format('sdist'), sources, dist)
    [sdist] = dist.glob('*.tar.gz')
    subprocess.run(['tar', 'xzf', sdist, '-C', dist], check=True)
    python(build.format('wheel'), dist / sdist.name.removesuffix('.tar.gz'), dist)
    [file] = dist.glob('*.whl')
    with zipfile.ZipFile(file) as entries:
        entries.extractall(dist / 'site')
    return dist / 'site'


def test_the_wheel_carries_configs_tools_and_the_model_index(wheel, sources, tmp_path):
    for name in ('configs', 'tools'):
        carried = {f.relative_to(wheel / 'olor_mm/.mim') for f in (wheel / 'olor_mm/.mim' / name).rglob('*.*')}
        assert carried == {f.relative_to(sources) for f in (sources / name).rglob('*.*')}
    assert (wheel / 'olor_mm/.mim/model-index.yml').read_text() == (ROOT / 'model-index.yml').read_text()
    assert not [f for f in wheel.iterdir() if f.name != 'olor_mm' and not f.name.endswith('.dist-info')]
    [scripts] = wheel.glob('*.dist-info/entry_points.txt')
    assert scripts.read_text().split() == ['[console_scripts]', 'olor', '=', 'olor_mm.__main__:main']
    code = "import sys; sys.argv = ['bin/olor', 'list', 'configs']; from olor_mm.__main__ import main; main()"
    assert 'olor_mm::demo/fcos_mobilenet-v2-fpn_1xb8-8e_digits-128px.py' in python(code, tmp_path, path=wheel)
    [metadata] = wheel.glob('*.dist-info/METADATA')
    fields = message_from_string(metadata.read_text())
    (tmp_path / 'own.py').write_text(OWN)
    code = (
        'import olor_mm\n'
        'from mmengine.config import Config\n'
        'print(olor_mm.__file__, olor_mm.__version__, Config.fromfile("own.py").optim_wrapper.constructor)'
    )
    file, version, constructor = python(code, tmp_path, path=wheel).split()
    assert Path(file).is_relative_to(wheel) and constructor == 'OLOROptimWrapperConstructor'
    assert fields['Version'] == version
    needs = fields.get_all('Requires-Dist')
    # whatever torch a user has stays, and of mm* nothing is asked for without an extra
    assert [line for line in needs if 'extra' not in line] == ['torch']
    for stack, extra in dict(onedl='onedl', upstream='openmmlab').items():
        for pinned in (ROOT / f'requirements/{stack}/openmmlab.txt').read_text().splitlines():
            if re.match('(onedl-)?mm', pinned):
                assert f'{pinned.replace("==", "~=")}; extra == "{extra}"' in needs


@pytest.mark.slow
def test_it_works_from_the_wheel_alone(wheel, tmp_path):
    (tmp_path / 'own.py').write_text(OWN)
    report = python('', tmp_path, '-m', 'olor_mm', 'print_rollback', 'own.py', '--images', '10', path=wheel)
    assert 'backbone.layer4' in report
    code = (
        'import olor_mm\n'
        'from mmengine.config import Config\n'
        'from mmengine.optim import build_optim_wrapper\n'
        'from mmengine.registry import MODELS, DefaultScope\n'
        'cfg = Config.fromfile("own.py")\n'
        'with DefaultScope.overwrite_default_scope("mmdet"):\n'
        '    print(type(build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper).optimizer).__name__)'
    )
    assert python(code, tmp_path, path=wheel).split()[-1] == 'AdamWOLOR'
    for tool in ('tools/train.py', 'tools/test.py', 'tools/dataset_converters/embedded.py'):
        assert 'usage' in python('', tmp_path, wheel / 'olor_mm/.mim' / tool, '-h', path=wheel)


def test_an_editable_install_has_links_to_what_is_edited(sources, tmp_path):
    python('import sys, setuptools.build_meta as build; build.build_editable(sys.argv[1])', sources, tmp_path)
    mim = sources / 'olor_mm/.mim'
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).is_symlink() and (mim / name).samefile(sources / name)


IMPORT = """
before = set(sys.modules)
import olor_mm, olor_mm.optim
print(*sorted(set(sys.modules) - before))
"""
OLD_TORCH = """
torch.__version__ = type(torch.__version__)('2.0.1')
import olor_mm
"""
BUILD = """
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, OPTIMIZERS, init_default_scope
init_default_scope({scope!r})
p = [torch.nn.Parameter(torch.ones(1))]
made = [OPTIMIZERS.build(dict(type='{prefix}' + name, params=p)) for name in ('AdamWOLOR', 'NAdamOLOR')]
made.append(OPTIMIZERS.build(dict(type='{prefix}OLOR', params=p, base=dict(type='SGD', lr=1.0))))
made += [HOOKS.build(dict(type='{prefix}' + name)) for name in ('SafeCheckpointHook', 'FreezeBackboneHook', 'DriftHook')]
wrapper = dict(constructor='{prefix}OLOROptimWrapperConstructor', optimizer=dict(type='{prefix}SGDOLOR', lr=0.1))
made.append(build_optim_wrapper(torch.nn.Linear(2, 2), wrapper).optimizer)
print(*(type(each).__name__ for each in made))
"""
SCOPES = [(scope, 'olor_mm.') for scope in ('mmengine', 'mmdet', 'mmseg', 'mmpretrain')] + [('mmdet', '')]
FORKS = """
import json, os, sys, torch, mmengine
def in_a_fork(code, out):
    if not (child := os.fork()):
        with open(out, 'w') as sys.stdout:
            try:
                exec(code, globals())
            except Exception as error:
                print(error)
        os._exit(0)
    os.waitpid(child, 0)
before, after = json.loads(sys.argv[1])
for code in before:
    in_a_fork(*code)
import mmdet.models, mmseg.models, mmpretrain.models
for code in after:
    in_a_fork(*code)
"""


@pytest.fixture(scope='module')
def printed(tmp_path_factory) -> dict:
    """What code prints in processes without olor_mm; libraries are imported once, in the process they are forked from."""
    folder = tmp_path_factory.mktemp('forks')
    before = {'import': IMPORT, 'old torch': OLD_TORCH}
    after = {}
    for scope, prefix in SCOPES:
        after[scope, prefix] = ('' if prefix else 'import olor_mm\n') + BUILD.format(scope=scope, prefix=prefix)
    files = {key: folder / f'{i}.txt' for i, key in enumerate([*before, *after])}
    codes = [[(code, str(files[key])) for key, code in group.items()] for group in (before, after)]
    python(FORKS, ROOT, json.dumps(codes))
    return {key: file.read_text().strip() for key, file in files.items()}


def test_importing_costs_little(printed):
    """Next to nothing on top of torch and mmengine: no part of it that takes long is imported."""
    new = printed['import'].split()
    assert 'olor_mm.optim' in new
    assert not [name for name in new if name.startswith(HEAVY)]
    assert not [name for name in new if name.partition('.')[0] != 'olor_mm']


@pytest.mark.parametrize('scope, prefix', SCOPES)
def test_types_are_found_in_any_scope(printed, scope, prefix):
    """By the scope's name with nothing imported, and by their own name after custom_imports."""
    optimizers, hooks = 'AdamWOLOR NAdamOLOR SGDOLOR', 'SafeCheckpointHook FreezeBackboneHook DriftHook'
    assert printed[scope, prefix].splitlines()[-1] == f'{optimizers} {hooks} SGDOLOR'


def test_an_old_torch_is_named(printed):
    assert re.search(r'needs torch 2\.1 or later, and 2\.0\.1 is installed', printed['old torch'])


@pytest.mark.slow
@pytest.mark.parametrize('stack', ['onedl', 'upstream'])
def test_the_wheel_trains_in_an_empty_environment(stack, data):
    """10 to 20 minutes each; python3.11 and a package index are needed."""
    subprocess.run(['bash', ROOT / 'tools/check_install.sh', stack], check=True)
