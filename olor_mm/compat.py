"""Differences between upstream OpenMMLab and the OneDL distribution of it."""
from importlib.util import find_spec

from mmengine.config import utils as config_utils
from mmengine.utils import is_installed


def resolve_config_scopes() -> None:
    """Make ``_base_ = 'mmseg::...'`` work whatever the distribution is called that mmseg comes from.

    MMEngine looks scopes up by the name of the upstream distribution ('mmsegmentation'), which the OneDL one does not
    have; the name of the module finds both.
    """
    for scope, distribution in config_utils.MODULE2PACKAGE.items():
        if not is_installed(distribution) and find_spec(scope) is not None:
            config_utils.MODULE2PACKAGE[scope] = scope
