import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


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
def test_optimizers_need_torch_and_nothing_else(tmp_path):
    """A site-packages with torch and its own requirements alone, made of links into this one."""
    for name in requirements('torch', set()):
        for file in metadata.files(name):
            top = Path(file).parts[0]
            source, link = Path(metadata.distribution(name).locate_file(top)), tmp_path / top
            if top not in ('..', '__pycache__') and source.exists() and not link.exists():
                link.symlink_to(source)
    code = (
        'import sys, torch, olor_mm.optim, olor_mm.layers, olor_mm.pretrained\n'
        'p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2)\n'
        'olor_mm.optim.AdamWOLOR([p], rollback=0.1).step()\n'
        'print(sorted({"mmengine", "mmcv", "numpy"} & set(sys.modules)))'
    )
    done = subprocess.run(
        [sys.executable, '-S', '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'


def test_packages_import_in_one_direction():
    """optim, layers and pretrained know nothing of mmengine, of each other's users, or of the engine."""
    for package in ('optim', 'layers', 'pretrained'):
        for file in (ROOT / 'olor_mm' / package).glob('*.py'):
            imports = re.findall(r'^\s*(?:from|import) (\S+)', file.read_text(), re.M)
            assert not [
                name
                for name in imports
                if name != '..optim.penalty'  # of layers: the levels of its groups
                and name.startswith(('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', '..', 'olor_mm'))
            ], file


def test_the_method_fits_one_file_of_200_lines():
    assert len((ROOT / 'olor_mm/optim/rollback.py').read_text().splitlines()) < 200
