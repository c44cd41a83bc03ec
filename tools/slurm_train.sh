#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# GPUS (of the whole job), GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS, as in the OpenMMLab libraries. On nodes without
# GPUs these are numbers of processes, which talk over gloo: SRUN_ARGS=--gres=none. With --resume among the options, a
# job that is requeued goes on from its last checkpoint.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]" >&2
    exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
per_node="${GPUS_PER_NODE:-8}"
# shellcheck disable=SC2086  # SRUN_ARGS are several
exec srun -p "$1" --job-name="$2" --gres="gpu:$per_node" --ntasks="${GPUS:-8}" --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$here/train.py" "$3" --work-dir "$4" --launcher slurm "${@:5}"
