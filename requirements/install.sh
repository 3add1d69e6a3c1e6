#!/usr/bin/env bash
# Makes .venv with everything Toque needs: requirements/install.sh cpu|cuda [dev] [bench] [fleet] [trackers]
set -euo pipefail
cd "$(dirname "$0")/.."

device=$1
locks=(base "$@")
needed_gib=8

fail() { echo "install: $*" >&2; exit 1; }

find_python() {
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' && { echo "$candidate"; return; }
  done
  fail "Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=/path/to/python make install"
}

[ "$device" = cpu ] || [ "$device" = cuda ] || fail "the device is 'cpu' or 'cuda', not '$device'"
if [ ! -x .venv/bin/python ]; then
  python=$(find_python)
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
  free_gib=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free_gib" -ge "$needed_gib" ] ||
    fail "$needed_gib GiB of free disk space are needed here, $free_gib are left"
  "$python" -m venv .venv
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
requirements=()
for lock in "${locks[@]}"; do requirements+=(--requirement "requirements/$lock.txt"); done

# torch and torchvision with their dependencies, which differ between builds; everything else exactly as locked.
echo "install: PyTorch for $device, then what requirements/ pins; this takes minutes, and prints nothing meanwhile"
pip install --quiet 'setuptools==78.1.1' 'torch>=2.13,<2.14' 'torchvision>=0.28,<0.29'
pip install --quiet --no-deps --require-hashes "${requirements[@]}"
pip install --quiet --no-deps --no-build-isolation --editable .
