#!/usr/bin/env bash
# The same through torchrun, on one node or on several (run it on each).
#   RANKS=2 launch/torchrun.sh train --config configs/example.yaml --run-dir runs/example
#   NODES=2 NODE_RANK=0 ENDPOINT=node0:29500 RANKS=8 launch/torchrun.sh train ...      RANKS is per node
set -euo pipefail
. "$(dirname "$0")/common.sh"
if [ "$nodes" -gt 1 ]; then
    meet=(--nnodes "$nodes" --node_rank "$NODE_RANK" --rdzv_backend static --rdzv_endpoint "$ENDPOINT" --rdzv_id 0)
else
    meet=(--standalone)
fi
exec torchrun "${meet[@]}" --nproc_per_node "$ranks" -m eupmim_dist "$@"
