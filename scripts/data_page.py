"""Draw a data list as one HTML page: python scripts/data_page.py DATALIST.json [--page FILE.html]"""

from __future__ import annotations

import argparse
from pathlib import Path

from nodule_plugin.errors import show_input_errors
from nodule_plugin.report.data_page import write_data_page

if __name__ == "__main__":
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datalist", type=Path)
    parser.add_argument("--page", default=True, help="default: the data list's path with .html")
    parser.add_argument("--samples", type=int, default=6, help="images of each split")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument("--dataset-dir", type=Path, help="folder of the images, where the data list's is not it")
    arguments = parser.parse_args()
    print(write_data_page(arguments.datalist, arguments.page, arguments.samples, arguments.seed, arguments.dataset_dir))
