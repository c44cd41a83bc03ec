#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [options of train.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, as in the OpenMMLab libraries. Without GPUs, GPUS is the
# number of processes, which talk over gloo. MAX_RESTARTS=3 and --resume: if a process dies, all of them are started
# again, up to three times, and go on from the last checkpoint.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of train.py]" >&2
    exit 2
fi
if ! [[ "$2" =~ ^[1-9][0-9]*$ ]]; then
    echo "$0: GPUS='$2' is not a number of processes; give 1 or more" >&2
    exit 2
fi
if [[ "$1" != *::* && ! -f "$1" ]]; then
    echo "$0: CONFIG='$1' is not a file; give the path of a config" >&2
    exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
address="${MASTER_ADDR:-127.0.0.1}" port="${PORT:-29500}"
meeting=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
if [ "${MAX_RESTARTS:-0}" != 0 ]; then
    # the store of the first start would send restarted processes to those that died (pytorch issue 135712)
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    meeting=(--rdzv_backend=c10d --rdzv_endpoint="$address:$port" --rdzv_id="$port" --max_restarts="$MAX_RESTARTS")
fi
exec python -m torch.distributed.run --nnodes="${NNODES:-1}" "${meeting[@]}" --nproc_per_node="$2" \
    "$here/train.py" "$1" --launcher pytorch "${@:3}"
