"""Packaging of olor_mm. It requires torch alone; OpenMMLab comes as an extra, in one of its two distributions."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'", (ROOT / 'olor_mm/__init__.py').read_text(), re.M)[1]
MIM = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Puts what ``mim`` and ``_base_ = 'olor_mm::...'`` look for into ``olor_mm/.mim``.

    Copies go into the wheel; an editable install gets links, so that what is edited is what runs.
    """

    def run(self):
        super().run()
        mim = (ROOT if self.editable_mode else Path(self.build_lib)) / 'olor_mm/.mim'
        shutil.rmtree(mim, ignore_errors=True)  # with what has been deleted from the sources since
        mim.mkdir(parents=True)
        for name in MIM:
            source, target = ROOT / name, mim / name
            if self.editable_mode:
                try:
                    target.symlink_to(os.path.relpath(source, mim))
                    continue
                except OSError:  # Windows, without the right to make links
                    self.warn(f'{target} is a copy: after a change of {name}, install once more')
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copyfile(source, target)


def compatible(stack: str) -> list[str]:
    """The packages of OpenMMLab that the tests run with, and later releases of the same minor version."""
    needs = []
    for line in (ROOT / f'requirements/{stack}/openmmlab.txt').read_text().splitlines():
        name, is_pinned, version = line.partition('==')
        if re.match('(onedl-)?mm', name):
            needs.append(f'{name}~={version}')
        elif name.startswith('opencv'):
            needs.append(f'{name}<={version}')  # it holds numpy below 2
        elif is_pinned:
            needs.append(name)
    return needs


setup(
    name='olor_mm',
    version=VERSION,
    description='Fine-tuning with layer-wise rollback (OLOR) for OpenMMLab and plain PyTorch',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='computer vision, fine-tuning, optimizer, OLOR, OpenMMLab, mmdet, mmsegmentation, mmpretrain',
    packages=find_packages(include=['olor_mm', 'olor_mm.*']),
    package_data={'olor_mm.compare': ['report.html']},
    entry_points=dict(console_scripts=['olor = olor_mm.__main__:main']),
    cmdclass=dict(build_py=BuildWithMim),
    python_requires='>=3.10',
    # without a version, so that pip never replaces the torch that a user's mmcv was compiled for; olor_mm checks it
    install_requires=['torch'],
    extras_require={
        'openmmlab': [*compatible('upstream'), 'numpy<2', 'numba', 'rich'],
        'onedl': [*compatible('onedl'), 'numba', 'rich'],
        'analysis': ['rich', 'matplotlib', 'pandas', 'scipy', 'markdown-it-py'],
        'tests': ['pytest', 'hypothesis', 'ruff', 'matplotlib', 'pandas', 'tifffile', 'lion-pytorch', 'safetensors'],
        'docs': ['sphinx', 'myst-parser'],
    },
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12, 13)),  # `make test-matrix`
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
