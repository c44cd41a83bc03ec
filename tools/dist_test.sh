#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in the OpenMMLab libraries. Without GPUs, GPUS is the
# number of processes, which talk over gloo.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2
    exit 2
fi
if ! [[ "$3" =~ ^[1-9][0-9]*$ ]]; then
    echo "$0: GPUS='$3' is not a number of processes; give 1 or more" >&2
    exit 2
fi
if [[ "$1" != *::* && ! -f "$1" ]]; then
    echo "$0: CONFIG='$1' is not a file; give the path of a config" >&2
    exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
exec python -m torch.distributed.run --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" --nproc_per_node="$3" \
    "$here/test.py" "$1" "$2" --launcher pytorch "${@:4}"
