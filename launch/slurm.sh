#!/usr/bin/env bash
# Slurm: one task per node, which starts that node's ranks. Adjust the lines below or override them:
#   sbatch --nodes 4 launch/slurm.sh train --config configs/example.yaml --run-dir /shared/runs/a
# Slurm copies this script elsewhere: submit from the checkout. Signals (time limit, scancel) reach all ranks, which save
# and leave. For as long as Slurm lets them: KillWait, or 10 minutes with --signal=TERM@600 added below.
#SBATCH --job-name=eupmim
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: sbatch --nodes N launch/slurm.sh SUBCOMMAND ..." >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR"
# shellcheck disable=SC1091
[ -f .venv/bin/activate ] && . .venv/bin/activate

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export NODES=$SLURM_NNODES
export RANKS=${RANKS:-${SLURM_GPUS_ON_NODE:-1}}
# Derived from the job's number, so that two jobs which share a node do not meet.
export ENDPOINT=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))
# What `eupmim-dist launch --grace 600` sets: torchrun would kill ranks that are still saving after 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > RANKS ? cores / RANKS : 1))}

if [ "$NODES" -eq 1 ]; then
    exec launch/local.sh "$@"
fi
# NODE_RANK differs per task: it is read inside the task.
# shellcheck disable=SC2016
# srun does not take --cpus-per-task over from sbatch.
exec srun --cpus-per-task="$cores" --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec launch/accelerate_nodes.sh "$@"' _ "$@"
