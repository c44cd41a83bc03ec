#!/usr/bin/env bash
# Sets up .venv with everything the demo and the tests need, once; a finished one is reused. With the argument
# `upstream` it is .venv-upstream, with the upstream packages of OpenMMLab. PYTHON chooses the interpreter,
# PIP_FIND_LINKS may name a folder with a wheel of mmcv, which saves compiling it.
set -euo pipefail
cd "$(dirname "$0")/.."

NEEDED_GIB=11
stack=${1:-onedl}
if [ "$stack" = upstream ]; then venv=.venv-upstream; candidates=(python3.11 python3.10); else venv=.venv; candidates=(python3.11 python3.12 python3.10 python3); fi
needs=requirements/$stack
stamp=$venv/.ready
wanted=$(cat "$needs"/*.txt requirements/tests.txt requirements/docs.txt setup.py tools/setup_env.sh | sha256sum | cut -d' ' -f1)

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
fail() { printf '[setup] cannot go on: %s\n' "$*" >&2; exit 1; }

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

python=""
if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
for candidate in "${candidates[@]}"; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python 3.10, 3.11 or 3.12 found${PYTHON:+ under PYTHON=$PYTHON}. Install one (Debian: apt-get install python3 python3-venv python3-dev), or name it: make demo PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module. Debian: apt-get install python3-venv"

if [ ! -d "$venv/lib" ]; then
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }') || fail "df does not tell the free disk space of $PWD"
    [ "$free" -ge "$NEEDED_GIB" ] || fail "$free GiB of disk space left in $PWD; torch, its libraries and the OpenMMLab stack need $NEEDED_GIB GiB"
fi

say "virtual environment in $venv with $("$python" --version); it takes 3 to 10 minutes, most of it for torch"
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" || fail "pip $* failed; its own message is above. Is a package index reachable?"; }
mmcv=$(grep -E '^(onedl-)?mmcv' "$needs/openmmlab.txt")
if ! "$venv/bin/python" -m pip --quiet download --no-deps --only-binary=:all: --dest "$venv/mmcv" "$mmcv" >/dev/null 2>&1; then
    compiler=${CXX:-c++}
    command -v "${compiler%% *}" >/dev/null 2>&1 || fail "no C++ compiler ($compiler), and $mmcv must be compiled. Debian: apt-get install build-essential"
    "$venv/bin/python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        fail "the header Python.h of $python is missing, and $mmcv must be compiled. Debian: apt-get install python3-dev"
fi
# the packages that the file names, with the hashes of all their files; Linux alone has such a file
lock=""
if [ "$(uname -s)" = Linux ] && [ -f "$needs/lock.txt" ]; then lock=$needs/lock.txt; fi
if [ -n "$lock" ]; then
    say "all packages but mmcv, held against the hashes in $lock"
    # first those that other packages are built with
    awk -v names=" $(grep -o '^[a-z]*' "$needs/build.txt" | tr '\n' ' ')" \
        '/^[a-z]/ { split($1, at, "=="); wanted = index(names, " " at[1] " ") } wanted' "$lock" >"$venv/build.txt"
    pip install --require-hashes --no-deps -r "$venv/build.txt"
    pip install --require-hashes --no-deps --no-build-isolation -r "$lock"
else
    pip install -r "$needs/build.txt"
    say "torch and torchvision"
    pip install -r "$needs/torch.txt"
fi
if ls "$venv"/mmcv/*.whl >/dev/null 2>&1; then  # pip makes the folder where it finds none as well
    say "$mmcv: there is a wheel"
    pip install --no-deps "$venv"/mmcv/*.whl
    rm -r "$venv/mmcv"
else
    say "$mmcv: compiling its C++ operators, about 20 minutes on two cores"
    MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps "$mmcv"
fi
if [ -z "$lock" ]; then
    say "mmengine, mmdet, mmseg, mmpretrain and what the tests use"
    pip install --no-build-isolation -r "$needs/build.txt" -r "$needs/torch.txt" -r "$needs/openmmlab.txt" -r requirements/tests.txt -r requirements/docs.txt
fi
pip install --no-build-isolation --no-deps --editable .
XDG_CACHE_HOME=$PWD/.cache "$venv/bin/python" -c 'import mmcv.ops, mmdet, mmpretrain, mmseg, olor_mm' >"$venv/import.log" 2>&1 ||
    fail "the installed packages cannot be imported: $(tail -n 1 "$venv/import.log")"
echo "$wanted" >"$stamp"
say "ready"
