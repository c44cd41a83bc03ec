"""Where ``_base_ = 'mmseg::...'`` and ``'olor_mm::...'`` are looked for."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from mmengine.config import utils as config_utils


def resolve_config_scopes() -> None:
    """Make ``_base_ = 'mmseg::...'`` work with any distribution that mmseg comes from, and ``'olor_mm::...'`` too."""
    # MMEngine looks for the upstream distribution ('mmsegmentation') alone, and refuses scopes that it does not list
    for scope, distribution in config_utils.MODULE2PACKAGE.items():
        try:
            version(distribution)
        except PackageNotFoundError:
            if find_spec(scope) is not None:
                config_utils.MODULE2PACKAGE[scope] = scope
    # a module of the package, where upstream's takes any distribution, an editable one too, to be in site-packages
    config_utils.MODULE2PACKAGE['olor_mm'] = 'olor_mm.scopes'
