#!/usr/bin/env bash
# Slurm: one task per node, which starts that node's ranks. Adjust the lines below or override them:
#   sbatch --nodes 4 launch/slurm.sh train --config configs/example.yaml --run-dir /shared/runs/a
# Slurm copies this script elsewhere: submit from the checkout. 10 minutes before the time limit all ranks are told to
# save and leave; the job is then queued again and goes on from there. So it is when it is preempted.
# Exit codes: 0 done, or queued again; 2 a mistake in the command; else what failed first.
#SBATCH --job-name=eupmim
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
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
ranks=${RANKS:-${SLURM_GPUS_ON_NODE:-1}}
# Derived from the job's number, so that two jobs which share a node do not meet.
endpoint=${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 20000))
cores=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}
launch=(eupmim-dist launch --nnodes "$SLURM_NNODES" --nproc "$ranks" --rdzv-endpoint "$endpoint" --grace 600)
[ "${SLURM_GPUS_ON_NODE:-0}" -eq 0 ] && launch+=(--cpu)

code=0
# --node-rank differs per task: it is read inside the task. srun does not take --cpus-per-task over from sbatch.
# shellcheck disable=SC2016
srun --cpus-per-task="$cores" --kill-on-bad-exit=1 bash -c 'exec "${@:2:$1}" --node-rank "$SLURM_NODEID" -- "${@:2+$1}"' \
    _ "${#launch[@]}" "${launch[@]}" "$@" || code=$?
case $code in
75 | 138 | 143) # stopped and saved: by a rank's own word, or its launcher's, told by SIGUSR1 or SIGTERM
    scontrol requeue "$SLURM_JOB_ID"
    code=0
    ;;
esac
exit "$code"
