#!/usr/bin/env bash
# All ranks on this machine, through accelerate; one per GPU, or RANKS of them.
#   RANKS=2 launch/local.sh train --config configs/example.yaml --run-dir runs/example
#   RANKS=2 CUDA_VISIBLE_DEVICES= launch/local.sh train ...      CPU ranks even where there are GPUs
#   MIXED_PRECISION=bf16 launch/local.sh train ...
set -euo pipefail
. "$(dirname "$0")/common.sh"
if [ "$total" -gt 1 ]; then
    # --multi_gpu on CPU too: it means torchrun, while accelerate's --cpu starts a single process.
    several=(--multi_gpu --main_process_port 0)
fi
exec accelerate launch --num_processes "$total" --num_machines 1 ${several[@]+"${several[@]}"} \
    --mixed_precision "${MIXED_PRECISION:-no}" --dynamo_backend no -m eupmim_dist "$@"
