#!/usr/bin/env bash
# Writes requirements/onedl/lock.txt: every package of .venv with the SHA-256 of its files, for Linux and Python 3.10 to
# 3.12. Run it after a change in requirements/; it needs uv (pip install uv), a package index, and a wheel of mmcv in
# the folder that PIP_FIND_LINKS names, to read from it what mmcv requires.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=$PWD/requirements/onedl/lock.txt
wanted=$(cat requirements/onedl/{build,torch,openmmlab}.txt requirements/{tests,docs}.txt | sed "/^#/d; s/\"/'/g; s/.*/\"&\",/")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/pyproject.toml" <<END
[project]
name = "lock"
version = "0"
requires-python = ">=3.10,<3.13"
dependencies = [$wanted]
[tool.uv]
# as pip resolves them: uv would take an imaug that asks for less
constraint-dependencies = ["imaug==0.4.3", "opencv-python<5", "opencv-python-headless<5"]
environments = ["sys_platform == 'linux'"]
no-build-isolation-package = ["onedl-mmcv"]
END
uv lock --quiet --no-python-downloads --project "$folder" --find-links "$PIP_FIND_LINKS" "$@"
# mmcv is not in it: it is compiled where it is used, or taken as a wheel that was, so its file is everybody's own.
# pip is what reads it.
{
    echo "# Written by tools/lock_requirements.sh from the other files here and those of tests and docs, without mmcv."
    uv export --quiet --no-python-downloads --project "$folder" --find-links "$PIP_FIND_LINKS" --frozen --no-header \
        --no-annotate --no-emit-project --no-emit-package onedl-mmcv --no-emit-package pip "$@"
} >"$folder/lock.txt"
mv "$folder/lock.txt" "$lock"
