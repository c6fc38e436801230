#!/usr/bin/env bash
# Lint, types and tests: bash scripts/test.sh [--quick] [pytest arguments]. Sets itself up. --quick leaves out what trains,
# measures or exports.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
chosen=()
if [ "${1:-}" = --quick ]; then
    chosen=(-m "not slow")
    shift
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
# One thread for each of two workers: the tests' networks are too small to gain from more.
OMP_NUM_THREADS=1 exec "$PYTHON" -m pytest --numprocesses 2 --dist worksteal "${chosen[@]}" "$@"
