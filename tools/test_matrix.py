"""Run `make test-core` with several versions of Python and torch, and print how it went as a table.

make test-matrix                                            # all of ROWS; 30 minutes on two cores, 7 GiB
python tools/test_matrix.py '3.12 torch==2.9.1 numpy<2'     # others: a version of Python, and what pip installs

Each row gets a virtual environment of its own, which is deleted after its tests. A Python that is not here is said.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = (
    '3.10 torch==2.1.2 torchvision==0.16.2 numpy==1.26.4',
    '3.12 torch==2.7.1 torchvision==0.22.1 numpy==2.2.6',
    '3.11 torch==2.13.0 numpy>=2',  # without torchvision
    '3.13 torch==2.10.0 torchvision==0.25.0 numpy>=2',
    '3.13 torch==2.14.1 torchvision==0.29.1 numpy>=2',
)
SHOWN = ('torch', 'torchvision', 'numpy', 'numba')


def interpreter(version: str) -> str | None:
    """A Python of this version that runs: of the path, or one that pyenv has."""
    pyenv = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv')) / 'versions'
    for python in (f'python{version}', *map(str, sorted(pyenv.glob(f'{version}.*/bin/python'), reverse=True))):
        if shutil.which(python) and not subprocess.run([python, '-c', ''], capture_output=True).returncode:
            return python
    return None


def tested(version: str, *packages: str) -> list[str]:
    """The cells of a row, after its tests."""
    python = interpreter(version)
    if not python:
        return [version, *packages[:1], *[''] * (len(SHOWN) - 1), f'no Python {version} here', '']
    with tempfile.TemporaryDirectory(prefix='matrix-') as folder:
        own = f'{folder}/bin/python'
        subprocess.run([python, '-m', 'venv', folder], check=True)
        install = [own, '-m', 'pip', '--quiet', 'install', '--no-cache-dir', '--no-compile']
        if shutil.which('uv'):  # three times as fast
            install = ['uv', 'pip', 'install', '--quiet', '--no-cache', '--python', own]
        install += [*packages, '-r', str(ROOT / 'requirements/core.txt')]
        if subprocess.run(install).returncode:
            return [version, *packages[:1], *[''] * (len(SHOWN) - 1), 'pip could not install it', '']
        ask = 'import importlib.metadata as m; print(*(d.name + "==" + d.version for d in m.distributions()))'
        listed = subprocess.run([own, '-c', ask], capture_output=True, text=True, check=True).stdout
        versions = dict(each.split('==') for each in listed.split())
        start = time.monotonic()
        command = ['make', '--no-print-directory', 'test-core', f'PYTHON={own}']
        done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seconds = time.monotonic() - start
        full = subprocess.run([own, '-V'], capture_output=True, text=True, check=True).stdout.split()[1]
    failed = re.findall(r'^(?:FAILED|ERROR) .*', done.stdout, re.M)
    print('\n'.join(failed) if failed or not done.returncode else done.stdout[-3000:], file=sys.stderr)
    summary = re.findall(r'^.*\b(?:passed|failed|errors?)\b.* in [\d.]+s', done.stdout, re.M)[-1:] or ['']
    counts = ', '.join(re.findall(r'\d+ (?:failed|errors?|passed|skipped)', summary[0]))
    return [full, *(versions.get(name, '-') for name in SHOWN), counts or 'no test ran', f'{seconds / 60:.1f} min']


def main(rows: list[str]) -> int:
    table = [['Python', *SHOWN, 'tests', 'time'], ['---'] * (len(SHOWN) + 3)]
    for row in rows:
        table.append(tested(*row.split()))
        print('|', ' | '.join(table[-1]), '|', file=sys.stderr)
    print('\n'.join(f'| {" | ".join(cells)} |' for cells in table))
    return any(not re.fullmatch(r'\d+ passed(, \d+ skipped)?', cells[-2]) for cells in table[2:])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:] or list(ROWS)))
