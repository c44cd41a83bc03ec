"""Layer-wise rollback (OLOR) for fine-tuning with OpenMMLab and plain PyTorch."""

from importlib.util import find_spec

import torch

__version__ = '0.2.0'

if torch.__version__ < '2.1':
    raise ImportError(f'olor_mm {__version__} needs torch 2.1 or later, and {torch.__version__} is installed')
# `olor_mm.optim` is for users of plain PyTorch too, who have no mmengine to register anything in
if find_spec('mmengine') is not None:
    from . import registry  # noqa: F401
