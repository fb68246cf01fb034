#!/usr/bin/env bash
# Train on several processes of one or more machines, with GPUs (nccl) or without (gloo).
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] $0 CONFIG GPUS [train.py options]" >&2
    echo "without CUDA, GPUS is the number of processes" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
shift 2
exec bash "$(dirname "$0")/dist_run.sh" train.py "$GPUS" "$CONFIG" "$@"
