#!/usr/bin/env bash
# The MONAI Deploy application in an environment of its own: bash scripts/deploy_smoke.sh [FOLDER]
# Installs MONAI Deploy's SDK and this package into FOLDER (default: output/deploy), runs the application on findings,
# and tests what it wrote: the DICOM files against the bundle's own images, and against validators that are installed.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="${1:-$ROOT/output/deploy}"
python="$work/venv/bin/python"

# The SDK's Holoscan runs graphs on threads with large stacks, and says so where the limit is lower.
ulimit -s 32768 2>/dev/null || ulimit -s "$(ulimit -Hs)"

mkdir -p "$work"
# The pins that decide what images look like and what DICOM is written; the SDK needs older ones of some others.
grep -E '^(diffusers|highdicom|monai|nibabel|numpy|open_clip_torch|pydicom|pytest|pytorch-ignite|safetensors|torch|torchvision|transformers)==' \
    "$ROOT/constraints.txt" > "$work/constraints.txt"
if [ ! -x "$python" ]; then
    "${BASE_PYTHON:-python3}" -m venv "$work/venv"
fi
# SDK 4.0.0 works with Holoscan up to 4.2 (its own documentation); nothing in its metadata says so.
"$python" -m pip install --quiet --constraint "$work/constraints.txt" --editable "$ROOT[dicom]" pytest \
    "monai-deploy-app-sdk==4.0.0" "holoscan-cu13<4.3" "holoscan-cli<4.3"
"$python" -c 'import monai.deploy.core, monai.deploy.operators'

echo "== findings in, DICOM out"
cat > "$work/order.json" <<'JSON'
{
    "findings": {"sphericity": 3, "margin": 3, "texture": 5, "spiculation": 5, "calcification": 6},
    "guidance_scales": 3,
    "seeds": [0, 1]
}
JSON
rm -rf "$work/dicom"
cd "$work"
"$python" -m nodule_plugin.deploy -l WARN -i "$work/order.json" -m "$ROOT/bundle" -o "$work/dicom"
find "$work/dicom" -name '*.dcm'

echo "== a CT series in, the series with a nodule out"
rm -rf "$work/insertion" "$work/inserted"
mkdir -p "$work/insertion"
PYTHONPATH="$ROOT/tests" "$python" -c \
    'import sys; from pathlib import Path; from ct_hosts import write_host; write_host(Path(sys.argv[1]))' "$work/insertion/series"
cat > "$work/insertion/order.json" <<'JSON'
{
    "insert": {
        "position": [30, 12, 2],
        "diameter_mm": 5,
        "findings": {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 6}
    }
}
JSON
"$python" -m nodule_plugin.deploy -l WARN -i "$work/insertion" -m "$ROOT/bundle" -o "$work/inserted"
find "$work/inserted" -name '*.json' -o -name 'seg*.dcm' -o -name 'report.dcm' -o -name '*.nii.gz'

echo "== tests"
cd "$ROOT"
OMP_NUM_THREADS=1 "$python" -m pytest tests/deploy/test_application.py tests/deploy/test_generator.py \
    tests/deploy/test_inserter.py tests/dicom
echo "The application works: $work/dicom"
