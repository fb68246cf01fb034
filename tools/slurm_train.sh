#!/usr/bin/env bash
# Train on a slurm cluster, one process a GPU.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [GPUS=4 GPUS_PER_NODE=4 CPUS_PER_TASK=5 SRUN_ARGS=...] $0 PARTITION JOB_NAME CONFIG [train.py options]" >&2
    exit 2
fi
exec bash "$(dirname "$0")/slurm_run.sh" train.py "$@"
