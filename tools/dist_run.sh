#!/usr/bin/env bash
# Run a tool that shares its images over processes, such as export_cams.py, on several of them.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] $0 TOOL.py GPUS [the tool's arguments]" >&2
    echo "without CUDA, GPUS is the number of processes" >&2
    exit 2
fi
TOOL=$1
GPUS=$2
shift 2

# torchrun would give every process one thread, and torch by itself all cores to each.
threads=$(($(getconf _NPROCESSORS_ONLN) / GPUS))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/$TOOL" "$@" --launcher pytorch
