"""Fetch CT series of LIDC-IDRI from the NCI Imaging Data Commons, such as

python scripts/download_lidc.py --output /data/LIDC-IDRI --patients LIDC-IDRI-0001 LIDC-IDRI-0003 --dry-run
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from nodule_plugin.errors import InputError, show_input_errors
from nodule_plugin.lidc.download import check_space, describe, fetch_series, list_series, missing_series, terms


def main() -> None:
    """Show licence, citation, the list and its size; ask; fetch.

    Raises:
        InputError: if what is asked for does not exist or does not fit, or nobody can be asked.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="the later dataset_dir")
    parser.add_argument("--patients", nargs="+", metavar="NAME", help="such as LIDC-IDRI-0001")
    parser.add_argument("--series", nargs="+", metavar="UID", help="by SeriesInstanceUID, beside those of --patients")
    parser.add_argument("--all", action="store_true", help="the whole collection's CT: 1,018 series, 128 GB")
    parser.add_argument("--annotated", action="store_true", help="leave out series in which no nodule is outlined")
    parser.add_argument("--dry-run", action="store_true", help="only list the series and their size")
    parser.add_argument("--yes", action="store_true", help="do not ask before fetching")
    options = parser.parse_args()
    if options.all == bool(options.patients or options.series):
        parser.error("give either --all, or --patients or --series")
    series = list_series(options.patients, options.series, options.annotated)
    print(terms(), describe(series, options.output), sep="\n\n", flush=True)
    missing = missing_series(series, options.output)
    if options.dry_run or not missing:
        return
    check_space(missing, options.output)
    if not options.yes and not _confirmed():
        print("nothing was fetched")
        return
    fetch_series(series, options.output)
    print(f"whole: {len(series)} series below {options.output}")


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        raise InputError("--yes: needed where nobody can be asked; it says that licence, list and size are accepted")
    return input("Fetch? [y/N] ").strip().lower() in ("y", "yes")


if __name__ == "__main__":
    show_input_errors()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
