#!/usr/bin/env bash
# All ranks on this machine, through accelerate; one per GPU, or RANKS of them.
#   RANKS=2 launch/local.sh train --config configs/example.yaml --run-dir runs/example
#   RANKS=2 CUDA_VISIBLE_DEVICES= launch/local.sh train ...      CPU ranks even where there are GPUs
set -euo pipefail
if [ $# -eq 0 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
export EUPMIM_WORLD_SIZE=$ranks # the trainer refuses a world of another size
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "$ranks" -gt 1 ]; then
    # --multi_gpu on CPU too: it means torchrun, while accelerate's --cpu starts a single process.
    several=(--multi_gpu --main_process_port 0)
else
    several=()
fi
exec accelerate launch --num_processes "$ranks" --num_machines 1 ${several[@]+"${several[@]}"} \
    --mixed_precision "${MIXED_PRECISION:-no}" --dynamo_backend no -m eupmim_dist "$@"
