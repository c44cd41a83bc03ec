"""Where the configs and tools of olor_mm and of the libraries are."""

from importlib.util import find_spec
from pathlib import Path

from ..names import nearest

PACKAGE = Path(__file__).parents[1]


def packaged(name: str) -> Path:
    """A file or folder of ``.mim``, or, where olor_mm is not installed, of the repository."""
    installed = PACKAGE / '.mim' / name
    return installed if installed.exists() else PACKAGE.parent / name


def config_file(name: str) -> str:
    """The file of a config; ``mmdet::PATH`` is one of an installed library, as in ``_base_``."""
    library, is_stock, path = name.partition('::')
    if not is_stock:
        folder = Path()
    elif library == 'olor_mm':
        folder = packaged('configs')
    else:
        spec = find_spec(library) if library.isidentifier() else None
        if spec is None or spec.origin is None:
            raise SystemExit(f'config {name!r}: {library!r} is not installed; take mmdet, mmseg, mmpretrain or olor_mm')
        folder = Path(spec.origin).parent / '.mim/configs'
    file = folder / (path if is_stock else name)
    if not file.is_file():
        others = [other.relative_to(folder) for other in folder.rglob('*.py')] if is_stock else []
        there = {other.name: other.as_posix() for other in others if '_base_' not in other.parts}
        near = ', '.join(f'{library}::{there[name]}' for name in nearest(file.name, there, 3))
        raise SystemExit(f'config {name!r} is not a file; ' + (f'did you mean {near}?' if near else 'give its path'))
    return str(file)
