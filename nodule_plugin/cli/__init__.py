"""The console command ``nodule``: the bundle's configurations and the project's tools, by one name each.

    nodule train --overlay sd15 --datalist work/datalist.json --epochs 3

is ``python -m monai.bundle run`` on the configurations of the bundle, run the same way.
"""

from __future__ import annotations

import argparse
import gc
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module

from nodule_plugin.cli.options import CONFIGS, config_parser, find_bundle, monai_arguments
from nodule_plugin.cli.pages import completion_script, settings_page
from nodule_plugin.errors import show_input_errors
from nodule_plugin.parallel import wait_passively

TOOLS = {
    "download": "fetch CT series of LIDC-IDRI",
    "data-page": "draw a data list as one HTML page",
    "contact-sheet": "draw contact sheets of generated nodules, and of the real ones beside them",
    "detect-mark": "look for the mark of synthetic images in pictures, NIfTI and DICOM files",
    "export": "write a fine-tuned model for diffusers, user interfaces and other runtimes, with a model card",
    "export-data": "write a data list's pairs for others' training, with the note of their licence",
    "extract": "write LIDC-IDRI's own nodules as masks: DICOM SEG and NIfTI",
    "playground": "move findings and look at nodules in a browser, or write that page as a folder without Python",
    "package": "write the bundle as one zip that needs no checkout",
    "sign": "write copies of generated PNG and JPEG files with a signed C2PA manifest: synthetic, and what made them",
    "verify": "say what C2PA manifests in pictures claim, and whether they hold",
}
"""Functions of :mod:`nodule_plugin.cli.tools`, with underscores."""
MODULES = {
    "lidc": ("nodule_plugin.lidc", "count what a source of annotations holds"),
    "phantom": ("nodule_plugin.lidc.phantom", "write synthetic CT around real annotations"),
    "reader-study": ("nodule_plugin.reader_study", "design, serve and analyse a blinded reader study"),
    "deploy": ("nodule_plugin.deploy", "run the application of MONAI Deploy"),
}
"""Modules that are commands of their own."""
PAGES = {
    "settings": "print the table of all settings, docs/settings.md",
    "completion": "print a script that completes commands and settings: source <(nodule completion)",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: if what was given cannot be used.
    """
    show_input_errors()
    wait_passively()
    given = _parser().parse_args(arguments)
    command, words = given.command, given.arguments
    if command in CONFIGS:
        _run_module("monai.bundle", monai_arguments(command, words))
    elif command in MODULES:
        _run_module(MODULES[command][0], words)
    elif command in TOOLS:
        getattr(import_module("nodule_plugin.cli.tools"), command.replace("-", "_"))(words)
    elif command == "settings":
        print(settings_page(find_bundle()), end="")
    else:
        options = {name: list(config_parser(name, find_bundle())._option_string_actions) for name in CONFIGS}
        print(completion_script([*CONFIGS, *TOOLS, *MODULES, *PAGES], options))


def _parser() -> argparse.ArgumentParser:
    helps = {name: text for name, (_, text) in (CONFIGS | MODULES).items()} | TOOLS | PAGES
    lines = [f"  {name:14} {text}" for name, text in helps.items()]
    parser = argparse.ArgumentParser(
        prog="nodule",
        description="From radiologists' findings to chest CT nodule images.",
        epilog="\n".join(["commands:", *lines, "", "nodule COMMAND --help says more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=helps, metavar="COMMAND", help="see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the command")
    return parser


def _run_module(name: str, arguments: Sequence[str]) -> None:
    """``python -m NAME ARGUMENTS``, in this process."""
    gc.disable()  # what is imported stays: to look for garbage in it again and again takes a fifth of the start
    import_module(name)
    gc.freeze()
    gc.enable()
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
