"""Imports go one way: which wing of olor_mm may import which other one, and which libraries."""

import ast
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TORCH, MMENGINE = {'torch'}, {'torch', 'mmengine'}
METHOD = {'names', 'classes', 'mixing', 'optim', 'layers', 'pretrained', 'measure'}
# wing or module: what it may import of olor_mm, and which libraries; `import_module` is an import by name
ARROWS = {
    'names': (set(), set()),
    'mixing': (set(), set()),
    'scopes': (set(), MMENGINE),
    'progress': (set(), {'rich'}),
    'optim': ({'names'}, TORCH | {'safetensors', 'numba', 'numpy', 'triton'}),
    'layers': ({'names', 'optim'}, TORCH),
    'pretrained': ({'layers', 'optim'}, TORCH),
    'classes': (set(), TORCH),
    'measure': ({'names', 'layers', 'pretrained'}, TORCH),
    'registry': ({'scopes', 'optim'}, MMENGINE | {'import_module'}),
    'engine': (METHOD | {'registry'}, MMENGINE | {'numpy'}),
    'durable': (METHOD | {'registry', 'engine'}, MMENGINE | {'numpy', 'safetensors'}),
    'extend': (
        METHOD | {'registry', 'engine'},
        MMENGINE | {'mmdet', 'mmseg', 'mmpretrain', 'numpy', 'pycocotools', 'PIL', 'rich'},
    ),
    'inspect': (METHOD | {'registry', 'engine'}, MMENGINE | {'matplotlib', 'rich'}),
    'compare': (set(), MMENGINE | {'numpy', 'pandas', 'scipy', 'matplotlib', 'markdown_it'}),
    'cli': (
        METHOD | {'registry', 'engine', 'durable', 'extend', 'inspect', 'compare', 'progress'},
        MMENGINE | {'numpy', 'PIL', 'rich', 'matplotlib', 'yapf', 'import_module'},
    ),
    '__main__': ({'cli'}, {'import_module'}),
    '__init__': ({'registry'}, TORCH),
}


def imports(file: Path, package: str) -> Iterator[str]:
    """Full names of all that a source file imports, wherever in it; ``package`` is what its relative imports begin at."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split('.')
            parts = parts[: len(parts) + 1 - node.level] if node.level else []
            yield from ('.'.join([*parts, *filter(None, [node.module]), alias.name]) for alias in node.names)


def turned(root: Path) -> set[str]:
    """Imports in a copy of the package that :data:`ARROWS` does not allow, as ``file: name``."""
    found = set()
    for file in (file for file in root.rglob('*.py') if '.mim' not in file.parts):
        place = file.relative_to(root)
        wing = place.parts[0].removesuffix('.py')
        wings, libraries = ARROWS[wing]
        for name in imports(file, '.'.join(['olor_mm', *place.parent.parts])):
            top, _, rest = name.partition('.')
            if top == 'olor_mm':
                other = rest.partition('.')[0]
                # a name of olor_mm/__init__.py, its version for one, is no wing
                is_allowed = other == wing or other in wings or (other not in ARROWS and other != '')
            else:
                is_allowed = top in sys.stdlib_module_names or top in libraries
                if name in ('importlib.import_module', 'importlib'):
                    is_allowed = 'import_module' in libraries
            if not is_allowed:
                found.add(f'{place}: {name}')
    return found


def test_every_wing_imports_what_is_below_it():
    assert {
        file.stem for file in (ROOT / 'olor_mm').iterdir() if [*file.glob('*.py')] or file.suffix
    } <= ARROWS.keys() | {'.mim'}
    assert not turned(ROOT / 'olor_mm')


@pytest.mark.parametrize(
    'file, line, name',
    [
        ('optim/rollback.py', 'from ..layers import layer_index', 'olor_mm.layers.layer_index'),
        ('optim/rules/spd.py', 'from ...pretrained.record import LoadRecord', 'olor_mm.pretrained.record.LoadRecord'),
        ('layers/blocks.py', 'import mmengine.model', 'mmengine.model'),
        ('classes/names.py', 'from .. import pretrained', 'olor_mm.pretrained'),
        ('pretrained/record.py', 'from .. import measure', 'olor_mm.measure'),
        ('measure/drift.py', 'def late():\n    from olor_mm.engine import DriftHook', 'olor_mm.engine.DriftHook'),
        ('engine/hooks/drift.py', 'import olor_mm.durable.files', 'olor_mm.durable.files'),
        ('durable/files.py', 'from ..cli import launch', 'olor_mm.cli.launch'),
        ('inspect/rollback_views.py', 'from ..compare.runs import find', 'olor_mm.compare.runs.find'),
        ('compare/runs.py', 'from ..names import nearest', 'olor_mm.names.nearest'),
        ('registry.py', 'from .engine import DriftHook', 'olor_mm.engine.DriftHook'),
        ('engine/start.py', 'from importlib import import_module', 'importlib.import_module'),
    ],
)
def test_an_arrow_that_is_turned_is_found(file, line, name, tmp_path):
    copy = tmp_path / 'olor_mm'
    shutil.copytree(ROOT / 'olor_mm', copy, ignore=shutil.ignore_patterns('.mim', '__pycache__'))
    with open(copy / file, 'a') as source:
        source.write(f'\n\n{line}\n')
    assert turned(copy) == {f'{file}: {name}'}


def python(code: str, cwd: Path, *options: str, path: str) -> str:
    environment = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run(
        [sys.executable, *options, '-c', code], cwd=cwd, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def requirements(distribution: str, seen: set[str]) -> set[str]:
    """A distribution and everything it requires on this machine, as installed."""
    name = re.sub('[-_.]+', '-', distribution).lower()
    if name not in seen:
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return seen  # of another platform
        seen.add(name)
        for line in wanted:
            if 'extra ==' not in line:
                requirements(re.match(r'[\w.-]+', line)[0], seen)
    return seen


@pytest.mark.skipif(torch.__version__ < '2.4', reason='torch 2.1 needs setuptools and does not say so')
def test_the_method_needs_torch_and_nothing_else(tmp_path):
    """A site-packages with torch and its own requirements alone, made of links into this one."""
    for name in requirements('torch', set()):
        distribution = metadata.distribution(name)
        for top in {str(file).partition('/')[0] for file in distribution.files} - {'..', '__pycache__'}:
            source, link = Path(distribution.locate_file(top)), tmp_path / top
            if source.exists() and not link.exists():
                link.symlink_to(source)
    code = (
        'import sys, torch, olor_mm.classes, olor_mm.optim, olor_mm.layers, olor_mm.pretrained, olor_mm.measure\n'
        'p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2)\n'
        'olor_mm.optim.AdamWOLOR([p], rollback=0.1).step()\n'
        'print(sorted({"mmengine", "mmcv", "numpy"} & set(sys.modules)))'
    )
    assert python(code, tmp_path, '-S', path=f'{tmp_path}{os.pathsep}{ROOT}').strip() == '[]'


def test_reports_and_measures_import_without_mmengine(tmp_path):
    wings = [ROOT / 'olor_mm/compare', ROOT / 'olor_mm/measure']
    names = {f'olor_mm.{wing.name}.{module.name}' for wing in wings for module in pkgutil.iter_modules([str(wing)])}
    assert len(names) > 10
    code = (
        'import importlib, sys\n'
        'sys.modules.update(dict.fromkeys(("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")))  # None: not to be found\n'
        f'for name in {sorted(names)}: importlib.import_module(name)\n'
        'print(*(name for name in sys.modules if name.startswith("olor_mm.")))'
    )
    imported = set(python(code, tmp_path, path=str(ROOT)).split())
    assert names < imported
    assert not [name for name in imported if name.split('.')[1] in ('registry', 'engine', 'durable', 'inspect', 'cli')]
