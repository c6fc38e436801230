"""``nodule phantom``: write synthetic CT series, or crops, around real annotations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nodule_plugin.errors import show_input_errors
from nodule_plugin.lidc.phantom.dataset import write_phantom_crops
from nodule_plugin.lidc.phantom.series import write_phantom_series


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write what it asks for."""
    show_input_errors()
    parser = argparse.ArgumentParser(prog="nodule phantom", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scans", type=int, metavar="N", help="write N whole CT series (DICOM) with the readers' XML")
    what.add_argument("--nodules", type=int, metavar="N", help="write N crops (NIfTI) with a table")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed gives the same pixels, on one kind of processor (default: 0)"
    )
    parser.add_argument(
        "--slices", type=int, metavar="N", help="of each series keep N slices beyond the outlined ones (default: all)"
    )
    options = parser.parse_args(arguments)
    if options.scans is not None:
        folder = write_phantom_series(options.output, options.scans, options.seed, options.slices)
    elif options.slices is not None:
        parser.error("--slices goes with --scans")
    else:
        folder = write_phantom_crops(options.output, options.nodules, options.seed)
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
