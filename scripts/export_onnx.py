"""Write U-Net and decoder as ONNX files, checked against PyTorch: python scripts/export_onnx.py --output DIR"""

from __future__ import annotations

import argparse
from pathlib import Path

from nodule_plugin.errors import show_input_errors
from nodule_plugin.export import export_onnx

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"

if __name__ == "__main__":
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for unet.onnx and decoder.onnx")
    parser.add_argument("--base-model", default=str(BUNDLE / "models" / "tiny"), help="folder or hub id")
    parser.add_argument("--revision", help="of the hub id: a commit")
    parser.add_argument("--variant", help="of the weights files, such as fp16")
    parser.add_argument(
        "--weights", default=str(BUNDLE / "models" / "model.pt"), help="'base' for the base model's own"
    )
    parser.add_argument("--image-size", type=int, default=64)
    given = parser.parse_args()
    weights = None if given.weights == "base" else given.weights
    found = export_onnx(given.base_model, weights, given.output, given.image_size, given.revision, given.variant)
    for name, difference in found.items():
        print(f"{given.output / name}: largest difference from PyTorch {difference:.1e}")
