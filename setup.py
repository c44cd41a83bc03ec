"""Packaging of olor_mm. It requires torch alone; OpenMMLab comes as an extra, in one of its two distributions."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"^__version__ = '(.+)'", (ROOT / 'olor_mm/__init__.py').read_text(), re.M)[1]

setup(
    name='olor_mm',
    version=VERSION,
    description='Fine-tuning with layer-wise rollback (OLOR) for OpenMMLab and plain PyTorch',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='computer vision, fine-tuning, optimizer, OLOR, OpenMMLab, mmdet, mmsegmentation, mmpretrain',
    packages=find_packages(include=['olor_mm', 'olor_mm.*']),
    python_requires='>=3.10,<3.13',
    install_requires=['torch>=2.1'],
    extras_require={
        'openmmlab': [
            'mmengine>=0.10.7,<0.11',
            'mmcv>=2.1,<2.2',
            'mmdet>=3.3,<3.4',
            'mmsegmentation>=1.2,<1.3',
            'mmpretrain>=1.2,<1.3',
            'ftfy',
            'regex',
            'numba',
        ],
        'onedl': [
            'onedl-mmengine>=0.10.12,<0.11',
            'onedl-mmcv>=2.3.6,<2.4',
            'onedl-mmdetection>=3.5.1,<3.6',
            'onedl-mmsegmentation>=1.4.2,<1.5',
            'onedl-mmpretrain>=1.3.6,<1.4',
            'numba',
        ],
        'analysis': ['rich', 'matplotlib'],
        'tests': ['pytest', 'ruff', 'rich', 'matplotlib', 'tifffile', 'lion-pytorch', 'safetensors'],
        'docs': ['sphinx', 'myst-parser'],
    },
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
