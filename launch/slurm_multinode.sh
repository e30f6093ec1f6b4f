#!/usr/bin/env bash
# One run over several machines, one process per GPU:
#   sbatch --nodes=4 launch/slurm_multinode.sh --config=configs/cifar10.py:pgd --workdir=/shared/runs/cifar10_pgd
# The processes find each other by SLURM's variables. At the time limit they save, and the job queues itself again.
#SBATCH --job-name=gradalign_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# No --gpus-per-task: every process must see all GPUs of its machine, of which JAX takes the one of its local number.
set -u

again() {
  trap '' USR1
  scancel --signal=USR1 "$SLURM_JOB_ID.0" # to the processes: save and end
  wait "$steps"
  scontrol requeue "$SLURM_JOB_ID"
}
trap again USR1

srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m gradalign_jax.main "$@" &
steps=$!
wait "$steps"
