#!/usr/bin/env bash
# Some minutes of a GPU, used well: bash scripts/gpu.sh OUT [--wheels DIR] [--minutes 12] [further options]
# Needs Python with torch; what else is missing comes from the wheels that scripts/gpu_wheels.sh gathers. docs/benchmarks/gpu.md
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" "$ROOT/scripts/benchmarks/gpu.py" "$@"
