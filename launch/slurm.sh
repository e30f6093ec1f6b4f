#!/usr/bin/env bash
# A pool of workers with one GPU each; all of them share one plan and one --root on a common file system:
#   sbatch --array=1-8 launch/slurm.sh --only=cifar10 --root=/shared/runs
# Before its time limit a task stops its run, which saves its state, and queues itself again. Array sizes do not depend
# on the number of runs: a worker takes runs until none is left.
#SBATCH --job-name=gradalign
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --output=gradalign-%A_%a.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

again() {
  kill -USR1 "$worker" 2>/dev/null || exit 0
  wait "$worker" || true
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
  exit 0
}
trap again USR1
trap 'kill -TERM "$worker"; wait "$worker"' TERM

"${PYTHON:-python}" launch/paper.py --worker "$@" &
worker=$!
wait "$worker"
