"""Draw a generated set as one picture: python scripts/contact_sheet.py GENERATED_DIR FILE.png"""

from __future__ import annotations

import argparse
from pathlib import Path

from nodule_plugin.errors import show_input_errors
from nodule_plugin.report.sheet import write_contact_sheet

if __name__ == "__main__":
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generated_dir")
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompts", type=int, default=8, help="rows at most")
    parser.add_argument("--per-cell", type=int, default=1, help="images of one prompt and scale")
    arguments = parser.parse_args()
    print(write_contact_sheet(arguments.generated_dir, arguments.file, arguments.prompts, arguments.per_cell))
