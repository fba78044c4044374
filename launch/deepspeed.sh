#!/usr/bin/env bash
# Several nodes through DeepSpeed's launcher, from one of them: it starts the others by pdsh, over ssh without a password.
#   HOSTFILE=hosts launch/deepspeed.sh train --config FILE --run-dir DIR      hosts: a line such as `node0 slots=8` for each
# ZERO: 1 or 2 partitions the dense network's optimizer (and gradients), 0 does not; 2 by default. The checkout, the
# environment and the run directory must have the same paths on all nodes.
set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
: "${HOSTFILE:?a file with a line such as 'node0 slots=8' for each node}"
zero=${ZERO:-2}
first=$(awk '!/^[[:space:]]*#/ && /slots=/ { print $1; exit }' "$HOSTFILE") # by its name: DeepSpeed would take any address it has
if [ -z "$first" ]; then
    echo "$HOSTFILE: names no node; write a line such as 'node0 slots=8' for each" >&2
    exit 2
fi
total=$(sed -n 's/^[^#]*slots=\([0-9]*\).*/\1/p' "$HOSTFILE" | awk '{ total += $1 } END { print total + 0 }')
export EUPMIM_WORLD_SIZE=$total # the trainer refuses a world of another size
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "$zero" -gt 0 ]; then
    export ACCELERATE_USE_DEEPSPEED=true ACCELERATE_DEEPSPEED_ZERO_STAGE=$zero
    export ACCELERATE_MIXED_PRECISION=${MIXED_PRECISION:-no}
fi
# What DeepSpeed hands on to the nodes: of its own environment only what stands in such a file. All can read it
# there, so nothing secret; no blanks, and nothing that a shell would expand.
DS_ENV_FILE=$(mktemp)
export DS_ENV_FILE
trap 'rm -f "$DS_ENV_FILE"' EXIT
env | grep -E -e '^(LD_LIBRARY_)?PATH=[^[:space:]]*$' \
    -e '^(EUPMIM_|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES|ACCELERATE_|GLOO_|NCCL_|TORCH_|HF_HOME|HF_HUB_OFFLINE|HF_HUB_CACHE)[^=]*=[A-Za-z0-9_./:,=@+-]*$' >"$DS_ENV_FILE"
deepspeed --hostfile "$HOSTFILE" --master_addr "$first" --master_port "${PORT:-29500}" \
    --module eupmim_dist "$@"
