# shellcheck shell=bash
# Sourced by the scripts beside it: their usage, the ranks of this node, and what each rank is told.
if [ $# -eq 0 ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # numbers or UUIDs; empty or -1: none
    gpus=$(tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -vc -e '^$' -e '^-1$') || true
else
    gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
fi
ranks=${RANKS:-$((gpus > 0 ? gpus : 2))}
nodes=${NODES:-1}
if [ "$nodes" -gt 1 ]; then
    : "${NODE_RANK:?number of this node, from 0}" "${ENDPOINT:?HOST:PORT of node 0}"
fi
total=$((ranks * nodes))
export EUPMIM_WORLD_SIZE=$total # the trainer refuses a world of another size
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
