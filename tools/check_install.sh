#!/usr/bin/env bash
# tools/check_install.sh onedl|upstream [VENV]
# Proves that the wheel works where nothing of this repository is: an empty virtual environment, torch, the wheel with
# its extra, and in another folder a user's config, written by `init`, trained and tested, by `olor` and by `mim`. It
# takes 5 to 15 minutes and 8 GiB. Without a wheel of mmcv (PIP_FIND_LINKS may name a folder with one), it goes in
# without its operators, as in tools/setup_env.sh. Needs `make data`.
set -euo pipefail
cd "$(dirname "$0")/.."
repository=$PWD
stack=${1:?usage: $0 onedl|upstream [VENV]}
if [ "$stack" = upstream ]; then extra=openmmlab; else extra=onedl; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'echo "[check] line $LINENO failed: $BASH_COMMAND" >&2' ERR
venv=${2:-$work/venv}
needs=$repository/requirements/$stack
say() { printf '\033[1m[check]\033[0m %s\n' "$*"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
versions() { "$venv/bin/python" -m pip list --format=freeze | grep -iE '^(torch|torchvision|(onedl[-_])?mm(engine|cv|det|detection|seg|segmentation|pretrain))=='; }

say "an empty environment, and torch"
"${PYTHON:-python3.11}" -m venv "$venv"
pip install -r "$needs/build.txt" -r "$needs/torch.txt"

say "sdist, and the wheel out of it"
"$venv/bin/python" -c "import setuptools.build_meta as build; build.build_sdist('$work')" >/dev/null
pip wheel --no-build-isolation --no-deps --wheel-dir "$work" "$work"/olor_mm-*.tar.gz
wheel=$(ls "$work"/olor_mm-*.whl)

say "the wheel with the extra $extra"
mmcv=$(grep -E '^(onedl-)?mmcv==' "$needs/openmmlab.txt")
if pip download --no-deps --only-binary=:all: --dest "$work/mmcv" "$mmcv" 2>/dev/null; then
    pip install --no-deps "$work"/mmcv/*.whl
else  # built where torch is not, its setup.py leaves the operators out
    "${PYTHON:-python3.11}" -m venv "$work/bare"
    "$work/bare/bin/python" -m pip --quiet install -r "$needs/build.txt"
    "$work/bare/bin/python" -m pip --quiet wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir "$work/mmcv" "$mmcv"
    pip install --no-deps "$work"/mmcv/*.whl
    cp tools/mmcv_ext.py "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/mmcv/_ext.py"
fi
versions >"$work/before"
pip install --no-build-isolation "$wheel[$extra]"
versions >"$work/after"
[ -z "$(comm -23 <(sort "$work/before") <(sort "$work/after"))" ] || { echo "pip replaced: $(diff "$work/before" "$work/after")" >&2; exit 1; }
cat "$work/after"

say "a user's config in another folder: init, train, test"
mkdir "$work/user" && cd "$work/user"
export PATH="$venv/bin:$PATH"
olor --help >/dev/null
olor init "$repository/data/digits" --task classification --epochs 1 --batch-size 10 --out digits.py \
    --config mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py \
    --checkpoint "$repository/data/weights/mobilenet_v2_mmpretrain.pth"
short=(--cfg-options train_dataloader.dataset.indices=20 val_dataloader.dataset.indices=20)
olor train digits.py --work-dir run "${short[@]}" >log 2>&1 || { tail -n 30 log; exit 1; }
grep -o 'OLOR: .* rolled back' log
olor test digits.py run/epoch_1.pth --work-dir run --cfg-options test_dataloader.dataset.indices=20 >log 2>&1
grep -o 'Epoch(test) .*accuracy.*' log
printf "_base_ = 'olor_mm::detection/olor/faster-rcnn_mobilenet-v2-fpn_olor_1xb4-12e_trees-320px.py'\n" >inherited.py
olor print_rollback inherited.py --images 10 >log 2>&1 || { tail -n 30 log; exit 1; }

say "mim, of the distribution openmim: onedl-mim takes a package named like its distribution to be in its .dist-info"
pip install openmim -r "$needs/torch.txt"  # its pandas would bring numpy 2, which torch 2.1 cannot use
for config in digits.py mobilenet-v2_olor_1xb32-10e_digits-64px.py; do
    ln -sfn "$repository/data" data
    mim train olor_mm "$config" --gpus 0 --work-dir mim "${short[@]}" train_cfg.max_epochs=1 >log 2>&1 || { tail -n 30 log; exit 1; }
    grep -o 'OLOR: .* rolled back' log
done
mim test olor_mm digits.py --checkpoint mim/epoch_1.pth --gpus 0 --cfg-options test_dataloader.dataset.indices=20 >log 2>&1 || { tail -n 30 log; exit 1; }
grep -o 'Epoch(test) .*accuracy.*' log
mim search olor_mm | tail -n 20
say "all of it works"
