#!/usr/bin/env bash
# One machine: torchrun.sh GPUS FORGET RETAIN OUTPUT [further words of `expunge run`]
set -euo pipefail
processes=$1 forget=$2 retain=$3 output=$4
shift 4
# after Ctrl-C or SIGTERM: seconds for the step under way and a checkpoint, before ranks are killed
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
python -m torch.distributed.run --standalone --nproc-per-node="$processes" -m expunge run \
  --forget "$forget" --retain "$retain" --output "$output" --set fsdp=true "$@"
