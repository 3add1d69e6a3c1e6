#!/usr/bin/env bash
# Renews the locks beside this file from the *.in lists; needs `uv`.
# torch, torchvision and what torch itself asks for (CUDA's libraries, triton) are left out: install.sh installs
# them first, so that each machine takes the builds that fit it.
set -euo pipefail
cd "$(dirname "$0")"

by_install_sh='torch|torchvision|triton|cuda-(bindings|pathfinder|toolkit)|nvidia-(cublas|cuda-(cupti|nvrtc|runtime)|cudnn-cu13|cufft|cufile|curand|cusolver|cusparse|cusparselt-cu13|nccl-cu13|nvjitlink|nvshmem-cu13|nvtx)'

lock() {
  cp "$1.txt" "$1.tmp"  # what is pinned stays, unless UPGRADE=1
  uv pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
    "$1.in" -o "$1.tmp" ${UPGRADE:+--upgrade} "${@:2}"
  { echo "# Made by requirements/lock.sh from $(basename "$1").in."
    awk -v left_out="^($by_install_sh)==" '/^[^ ]/ { skipped = $0 ~ left_out } !skipped' "$1.tmp"; } > "$1.txt"
  rm "$1.tmp"
}

lock base
lock cpu --override overrides.txt
lock cuda
lock otel
lock dev
lock chart
lock bench --override overrides.txt
lock fleet --override overrides.txt
lock trackers --override overrides.txt --override trackers_overrides.txt
lock ../tests/trackers/requirements-mlflow
lock ../tests/s3/requirements-seaweedfs
for list in ../tests/clients/requirements-*.in; do lock "${list%.in}"; done
