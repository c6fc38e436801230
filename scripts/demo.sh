#!/usr/bin/env bash
# The whole way from radiologists' findings to judged nodule images, on a CPU:
#     bash scripts/demo.sh [--dataset-dir DIR] [--output DIR] [--epochs N] [--images N]
# Without --dataset-dir it runs on phantoms (synthetic CT around real annotations), which it makes itself; DIR may be a
# LIDC-IDRI tree of DICOM series or a folder of NIfTI crops with nodules.csv. Sets itself up.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
exec "$PYTHON" "$ROOT/scripts/demo.py" "$@"
