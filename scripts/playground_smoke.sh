#!/usr/bin/env bash
# Test the playground with Gradio, then use both of its pages in Chromium: bash scripts/playground_smoke.sh [folder for
# screenshots]. Needs npm and a Chromium; nothing but loopback is used once the packages are there.
# PLAYGROUND_VENV: the virtual environment, made where there is none (default: .venv-playground in the checkout).
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${PLAYGROUND_VENV:-$ROOT/.venv-playground}"
OUTPUT="${1:-$ROOT/.playground}"
if [ ! -x "$VENV/bin/playwright" ]; then
    echo "Setting up $VENV (a few minutes, once) ..."
    "${BASE_PYTHON:-python3}" -m venv "$VENV"
    pinned="$(mktemp)"
    grep -v -i '^pillow==' "$ROOT/constraints.txt" > "$pinned" # Gradio wants an older one
    "$VENV/bin/python" -m pip install --quiet --constraint "$pinned" --editable "$ROOT[playground,onnx,dicom,evaluate]" \
        pytest playwright
    rm "$pinned"
fi
cd "$ROOT"
export PYTHONPATH="$ROOT"
"$VENV/bin/python" -m pytest tests/playground
scratch="$(mktemp -d)"
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$scratch"' EXIT
(cd "$scratch" && npm pack --silent axe-core@4.14.1 && tar xzf axe-core-4.14.1.tgz)
"$VENV/bin/nodule" phantom --scans 1 --output "$scratch/phantom"
PYTHONPATH="$ROOT:$ROOT/tests" "$VENV/bin/python" -c \
    "from pathlib import Path; from ct_hosts import round_crops; round_crops(Path('$scratch/crops'))"
"$VENV/bin/nodule" playground --static "$scratch/page"
"$VENV/bin/python" -m http.server 7861 --bind 127.0.0.1 --directory "$scratch/page" > "$scratch/server.log" 2>&1 &
"$VENV/bin/nodule" playground --port 7860 --series "$scratch/phantom" --crops "$scratch/crops" &
until "$VENV/bin/python" -c 'import httpx; httpx.get("http://127.0.0.1:7860")' 2> "$scratch/wait.log"; do sleep 1; done
"$VENV/bin/python" scripts/playground_browser.py http://127.0.0.1:7860 http://127.0.0.1:7861 \
    --axe "$scratch/package/axe.min.js" --output "$OUTPUT"
