#!/usr/bin/env bash
# Run a tool on several processes of one or more machines, with GPUs (nccl) or without (gloo).
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] $0 TOOL.py GPUS [the tool's arguments]" >&2
    echo "without CUDA, GPUS is the number of processes" >&2
    exit 2
fi
TOOL=$1
GPUS=$2
shift 2
PYTHON=${PYTHON:-python}
if [ ! -f "$(dirname "$0")/$TOOL" ]; then
    echo "there is no $(dirname "$0")/$TOOL: name a tool of that folder, such as export_cams.py" >&2
    exit 2
fi
PORT=${PORT:-29500}

# The first machine listens on the port; torchrun would say so in a hundred lines.
if [ "${NODE_RANK:-0}" = 0 ]; then
    "$PYTHON" - "$PORT" <<'CHECK'
import socket, sys
try:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(('', int(sys.argv[1])))
        server.listen()
except (OSError, OverflowError, ValueError) as error:
    sys.exit(f'PORT={sys.argv[1]} cannot be listened on ({error}): set PORT=... to a free port, '
             'another one for each job on this machine')
CHECK
fi

# torchrun would give every process one thread, and torch by itself all cores to each.
threads=$(($(getconf _NPROCESSORS_ONLN) / GPUS))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

exec "$PYTHON" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="$PORT" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/$TOOL" "$@" --launcher pytorch
