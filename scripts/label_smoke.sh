#!/usr/bin/env bash
# Serve the bundle with MONAI Label, use it over HTTP, and run what rests on the older packages that MONAI Label needs:
# bash scripts/label_smoke.sh [pytest arguments]. Nothing but loopback is used once the packages are there.
# LABEL_VENV: the virtual environment, made where there is none (default: .venv-label in the checkout).
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${LABEL_VENV:-$ROOT/.venv-label}"
started=$SECONDS
if [ ! -x "$VENV/bin/monailabel" ]; then
    echo "Setting up $VENV (several minutes, once) ..."
    "${BASE_PYTHON:-python3}" -m venv "$VENV"
    pinned="$(mktemp)"
    trap 'rm -f "$pinned"' EXIT
    grep -E '^(torch|torchvision|monai|pytorch-ignite|diffusers|transformers)==' "$ROOT/constraints.txt" > "$pinned"
    "$VENV/bin/python" -m pip install --quiet --upgrade pip
    "$VENV/bin/python" -m pip install --quiet --constraint "$pinned" torch torchvision wheel "setuptools<81"
    # sam2, which MONAI Label names and this does not use, has no wheel: without isolation it is built beside the torch
    # that is there already, and without its CUDA code.
    SAM2_BUILD_CUDA=0 "$VENV/bin/python" -m pip install --quiet --constraint "$pinned" --no-build-isolation \
        --editable "$ROOT[label]" pytest
fi
echo "Environment ready after $((SECONDS - started)) s"
cd "$ROOT"
export OMP_NUM_THREADS=1 PYTHONPATH="$ROOT"
"$VENV/bin/python" -m pytest tests/deploy/test_label_server.py tests/deploy/test_label.py \
    tests/deploy/test_label_insertion.py tests/lidc/test_dicom_header.py tests/lidc/test_phantom_series.py \
    tests/data/test_order.py "$@"
echo "Done after $((SECONDS - started)) s"
