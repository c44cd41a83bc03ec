"""Where the tools and configs are that come with olor_mm, installed or not."""

from importlib.util import find_spec
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def packaged(name: str) -> Path:
    """A file or folder of ``.mim``, or, where olor_mm is not installed, of the repository."""
    installed = PACKAGE / '.mim' / name
    return installed if installed.exists() else PACKAGE.parent / name


def config_file(name: str) -> str:
    """The file of a config; ``mmdet::PATH`` is one that an installed library brought along, as in ``_base_``.

    Raises:
        SystemExit: If there is no such file.
    """
    file = Path(name)
    library, is_stock, path = name.partition('::')
    if library == 'olor_mm' and is_stock:
        file = packaged('configs') / path
    elif is_stock:
        spec = find_spec(library) if library.isidentifier() else None
        if spec is None or spec.origin is None:
            raise SystemExit(
                f'config {name!r}: {library!r} is not installed; it is mmdet::, mmseg::, mmpretrain:: or olor_mm::'
            )
        file = Path(spec.origin).parent / '.mim/configs' / path
    if not file.is_file():
        raise SystemExit(
            f'config {name!r} is not a file' + f': there is no {file}' * bool(is_stock) + '; give the path of a config'
        )
    return str(file)
