#!/bin/bash
# A study on SLURM: sbatch --nodes 2 --gpus-per-node 8 cluster/slurm.sh studies/nlp.yaml /shared/w2s-store
# Each node runs Ray; the first one also runs the study. At the time limit SLURM requeues the job, which goes on where it was.
#SBATCH --job-name=w2s
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -euo pipefail

study=${1:?usage: sbatch cluster/slurm.sh STUDY STORE}
store=${2:?usage: sbatch cluster/slurm.sh STUDY STORE (a folder that all nodes share, or a bucket)}
project=${W2S_PROJECT:-$SLURM_SUBMIT_DIR}
cd "$project"

# 120 s before the end: stop in good order, and be queued again.
requeue() {
  kill -TERM "$step" 2>/dev/null || true
  wait "$step" || true
  scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | base64 | tr -d '\n') # of this job alone; never written to a file
export RAY_AUTH_TOKEN

srun --kill-on-bad-exit=1 .venv/bin/ray symmetric-run \
  --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
  .venv/bin/w2s run "$study" --store "$store" --address "$head:$port" &
step=$!
wait "$step"
