"""Where the tools and configs are that come with olor_mm, installed or not."""

from difflib import get_close_matches
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
    library, is_stock, path = name.partition('::')
    if not is_stock:
        folder = None
    elif library == 'olor_mm':
        folder = packaged('configs')
    else:
        spec = find_spec(library) if library.isidentifier() else None
        if spec is None or spec.origin is None:
            raise SystemExit(
                f'config {name!r}: {library!r} is not installed; it is mmdet::, mmseg::, mmpretrain:: or olor_mm::'
            )
        folder = Path(spec.origin).parent / '.mim/configs'
    file = Path(name) if folder is None else folder / path
    if not file.is_file():
        message = f'config {name!r} is not a file'
        if folder is not None:
            there = {other.name: other.relative_to(folder).as_posix() for other in folder.rglob('*.py')}
            nearest = [f'{library}::{there[near]}' for near in get_close_matches(file.name, there)]
            message += f': there is no {file}' + f'; nearest are {", ".join(nearest)}' * bool(nearest)
        raise SystemExit(f'{message}; give the path of a config')
    return str(file)
