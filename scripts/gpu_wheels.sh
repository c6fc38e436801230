#!/usr/bin/env bash
# The wheels that scripts/gpu.sh needs on a bare machine: bash scripts/gpu_wheels.sh WHEELS [FURTHER FILES OR FOLDERS ...]
# Fails where they, the checkout and the further files (latents) are together larger than what can be brought along.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
WHEELS="${1:?usage: bash scripts/gpu_wheels.sh WHEELS [FURTHER ...]}"
mkdir -p "$WHEELS"
rm -f "$WHEELS"/*.whl
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux2014_x86_64 \
    --requirement "$ROOT/scripts/benchmarks/gpu_requirements.txt" --constraint "$ROOT/constraints.txt" --dest "$WHEELS"
exec "$PYTHON" "$ROOT/scripts/benchmarks/gpu_wheels.py" "$ROOT" "$@"
