"""Write the bundle as one zip that needs no checkout: python scripts/package_bundle.py --output DIR"""

from __future__ import annotations

import argparse
from pathlib import Path

from nodule_plugin.errors import show_input_errors
from nodule_plugin.packaging import BUNDLE_NAME, package_bundle

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"

if __name__ == "__main__":
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the zip and its SHA-256 sum")
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--name", default=BUNDLE_NAME)
    given = parser.parse_args()
    print(package_bundle(given.bundle, given.output, given.name))
