#!/usr/bin/env bash
# tools/setup_env.sh [onedl|upstream] [operators]
# Sets up .venv with everything the demo and the tests need, once; a finished one is reused. With `upstream` it is
# .venv-upstream, with the upstream packages of OpenMMLab. PYTHON chooses the interpreter.
# The compiled operators of mmcv come from a wheel, if pip finds one (PIP_FIND_LINKS may name a folder with it). Else
# mmcv goes in without them in a minute, with tools/mmcv_ext.py in their place. With `operators` they are compiled then.
set -euo pipefail
cd "$(dirname "$0")/.."

NEEDED_GIB=11
stack=${1:-onedl}
compile=${2:-}
if [ "$stack" = upstream ]; then venv=.venv-upstream; candidates=(python3.11 python3.10); else venv=.venv; candidates=(python3.11 python3.12 python3.10 python3); fi
needs=requirements/$stack
stamp=$venv/.ready
wanted=$(cat "$needs"/*.txt requirements/tests.txt requirements/docs.txt setup.py tools/setup_env.sh tools/mmcv_ext.py | sha256sum | cut -d' ' -f1)

say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
fail() { printf '[setup] cannot go on: %s\n' "$*" >&2; exit 1; }

# whether mmcv is there in the version that is wanted, and its operators with it
has_mmcv() { "$venv/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(m.version(sys.argv[1]) != sys.argv[2])' "${mmcv%%==*}" "${mmcv##*==}" 2>/dev/null; }
has_operators() { has_mmcv && ls "$venv"/lib/python3*/site-packages/mmcv/_ext.*.so >/dev/null 2>&1; }
mmcv=$(grep -E '^(onedl-)?mmcv' "$needs/openmmlab.txt")

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && { [ -z "$compile" ] || has_operators; }; then
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

say "virtual environment in $venv with $("$python" --version); it takes 2 to 10 minutes, most of it for torch"
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" || fail "pip $* failed; its own message is above. Is a package index reachable?"; }
wheel=""
if ! has_operators; then
    rm -rf "$venv/mmcv"
    "$venv/bin/python" -m pip --quiet download --no-deps --only-binary=:all: --dest "$venv/mmcv" "$mmcv" >/dev/null 2>&1 || true
    wheel=$(ls "$venv"/mmcv/*.whl 2>/dev/null || true)  # pip makes the folder where it finds none as well
fi
if [ -n "$compile" ] && [ -z "$wheel" ] && ! has_operators; then
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
    # Python compiles what it imports; all of torch would take half a minute
    pip install --require-hashes --no-deps --no-build-isolation --no-compile -r "$lock"
else
    pip install -r "$needs/build.txt"
    say "torch and torchvision"
    pip install -r "$needs/torch.txt"
fi
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
if has_operators; then
    say "$mmcv: its compiled operators are here"
elif [ -n "$wheel" ]; then
    say "$mmcv: there is a wheel"
    pip install --no-deps --force-reinstall "$wheel"
elif [ -n "$compile" ]; then
    say "$mmcv: compiling its C++ operators, about 20 minutes on two cores"
    MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --force-reinstall "$mmcv"
    has_operators || fail "pip installed a wheel of $mmcv from its cache that has no operators: pip cache remove '*mmcv*'"
elif ! has_mmcv; then
    say "$mmcv: no wheel, so nms and RoIAlign of torchvision instead of its operators; make operators compiles them"
    # built where torch is not, its setup.py leaves the operators out; that wheel must not stay in the cache of pip
    "$python" -m venv "$venv/bare"
    "$venv/bare/bin/python" -m pip --disable-pip-version-check --quiet install -r "$needs/build.txt"
    "$venv/bare/bin/python" -m pip --disable-pip-version-check --quiet wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$venv/mmcv" "$mmcv" ||
        fail "pip could not build $mmcv without its operators; its own message is above"
    pip install --no-deps --force-reinstall "$venv"/mmcv/*.whl
fi
rm -rf "$venv/mmcv" "$venv/bare"
if has_operators; then rm -f "$site/mmcv/_ext.py"; else cp tools/mmcv_ext.py "$site/mmcv/_ext.py"; fi
if [ -z "$lock" ]; then
    say "mmengine, mmdet, mmseg, mmpretrain and what the tests use"
    pip install --no-build-isolation -r "$needs/build.txt" -r "$needs/torch.txt" -r "$needs/openmmlab.txt" -r requirements/tests.txt -r requirements/docs.txt
fi
pip install --no-build-isolation --no-deps --editable .
XDG_CACHE_HOME=$PWD/.cache "$venv/bin/python" -c 'import mmcv.ops, mmdet, mmpretrain, mmseg, olor_mm' >"$venv/import.log" 2>&1 ||
    fail "the installed packages cannot be imported: $(tail -n 1 "$venv/import.log")"
echo "$wanted" >"$stamp"
say "ready"
