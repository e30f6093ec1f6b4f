#!/usr/bin/env bash
# Workers on TPU VMs of one host each; --root lies on a file system that all of them mount:
#   NAMES="tpu-1 tpu-2" ZONE=us-central2-b launch/tpu_vm.sh --only=cifar10 --root=/mnt/shared/runs
# The checkout is copied to each machine. A machine that is taken away loses its lease, and another one resumes its run.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${NAMES:?names of TPU VMs}" "${ZONE:?their zone}"

# A dry run prints the commands: GCLOUD="echo gcloud".
read -ra gcloud <<<"${GCLOUD:-gcloud}"
arguments=$(printf ' %q' "$@")
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --output="$archive" HEAD

for name in $NAMES; do
  "${gcloud[@]}" compute tpus tpu-vm scp "$archive" "$name:gradalign_jax.tar.gz" --zone="$ZONE"
  "${gcloud[@]}" compute tpus tpu-vm ssh "$name" --zone="$ZONE" --command="
    mkdir -p gradalign_jax && tar -xzf gradalign_jax.tar.gz -C gradalign_jax && cd gradalign_jax &&
    python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]' &&
    (nohup .venv/bin/python launch/paper.py --worker$arguments >worker.log 2>&1 &)"
done
