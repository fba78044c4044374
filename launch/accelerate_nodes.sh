#!/usr/bin/env bash
# Several nodes through accelerate. Run it on every node, with the node's own number:
#   NODES=2 NODE_RANK=0 ENDPOINT=node0:29500 launch/accelerate_nodes.sh train --config FILE --run-dir DIR
# RANKS per node: one per GPU by default. The run directory must be on storage that all nodes share.
set -euo pipefail
. "$(dirname "$0")/common.sh"
: "${NODES:?number of nodes}"
exec accelerate launch --multi_gpu --num_processes "$total" --num_machines "$nodes" --machine_rank "$NODE_RANK" \
    --main_process_ip "${ENDPOINT%:*}" --main_process_port "${ENDPOINT##*:}" \
    --mixed_precision "${MIXED_PRECISION:-no}" --dynamo_backend no -m eupmim_dist "$@"
