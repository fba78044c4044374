#!/usr/bin/env bash
# Several nodes through accelerate. Run it on every node, with the node's own number:
#   NODES=2 NODE_RANK=0 ENDPOINT=node0:29500 launch/accelerate_nodes.sh train --config FILE --run-dir DIR
# RANKS per node: one per GPU by default. The run directory must be on storage that all nodes share.
set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
: "${NODES:?number of nodes}" "${NODE_RANK:?number of this node, from 0}" "${ENDPOINT:?HOST:PORT of node 0}"
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
total=$((ranks * NODES))
export EUPMIM_WORLD_SIZE=$total # the trainer refuses a world of another size
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec accelerate launch --multi_gpu --num_processes "$total" --num_machines "$NODES" --machine_rank "$NODE_RANK" \
    --main_process_ip "${ENDPOINT%:*}" --main_process_port "${ENDPOINT##*:}" \
    --mixed_precision "${MIXED_PRECISION:-no}" --dynamo_backend no -m eupmim_dist "$@"
