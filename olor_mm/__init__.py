"""Layer-wise rollback (OLOR) for fine-tuning with OpenMMLab and plain PyTorch."""

from importlib.util import find_spec

__version__ = '0.1.0'

# `olor_mm.optim` is for users of plain PyTorch too, who have no mmengine to register anything in
if find_spec('mmengine') is not None:
    from . import engine  # noqa: F401
