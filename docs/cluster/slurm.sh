#!/usr/bin/env bash
# Several machines: sbatch slurm.sh FORGET RETAIN OUTPUT [further words of `expunge run`]
#SBATCH --job-name=expunge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
forget=$1 retain=$2 output=$3
shift 3
# from the signal on: time for the step under way and a checkpoint (torchrun gives 30 s by itself)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
[ -e "$output" ] && resume=(--resume)
# one torchrun per machine; the first machine's name and a port that follows from the job are where they meet
srun --kill-on-bad-exit=1 python -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc-per-node="${GPUS_PER_NODE:-8}" \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 20000))" \
  -m expunge run --forget "$forget" --retain "$retain" --output "$output" --set fsdp=true "${resume[@]}" "$@"
