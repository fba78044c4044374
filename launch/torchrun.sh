#!/usr/bin/env bash
# The same through torchrun, on one node or on several (run it on each).
#   RANKS=2 launch/torchrun.sh train --config configs/example.yaml --run-dir runs/example
#   NODES=2 NODE_RANK=0 ENDPOINT=node0:29500 RANKS=8 launch/torchrun.sh train ...      RANKS is per node
set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
nodes=${NODES:-1}
export EUPMIM_WORLD_SIZE=$((ranks * nodes)) # the trainer refuses a world of another size
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "$nodes" -gt 1 ]; then
    : "${ENDPOINT:?HOST:PORT of node 0}" "${NODE_RANK:?number of this node, from 0}"
    meet=(--nnodes "$nodes" --node_rank "$NODE_RANK" --rdzv_backend static --rdzv_endpoint "$ENDPOINT" --rdzv_id 0)
else
    meet=(--standalone)
fi
exec torchrun "${meet[@]}" --nproc_per_node "$ranks" -m eupmim_dist "$@"
