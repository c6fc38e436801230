"""Command lines of the bundle's configurations, made from the table of settings."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nodule_plugin
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.settings import CODE, settings_table, typed_settings

CONFIGS = {
    "prepare": ("prepare", "findings to prompts, nodules to a data list"),
    "train": ("train", "fine-tune the base model's U-Net on a data list"),
    "inference": ("inference", "images from prompts, findings or a data list"),
    "generate": ("inference", "the same as inference"),
    "evaluate": ("evaluate", "generated sets against real ones: metrics and a report"),
    "sensitivity": ("evaluate", "what each measure can see: real images made worse by known steps"),
    "downstream": ("downstream", "what classifiers learn from a generated set"),
    "release": ("release", "a generated set without copies of training images"),
    "privacy": ("inference", "whether patients can be told that a model learnt from: attacks, and a control"),
    "insert": ("insert", "nodules into a patient's CT series: DICOM, masks, report"),
}
"""Command -> configuration in the bundle, and what it does."""
LAID_OVER = {"sensitivity": ["sensitivity"], "privacy": ["privacy"]}
"""Command -> what it lays over its configuration by itself."""


def find_bundle(folder: str | Path | None = None) -> Path:
    """The bundle's folder.

    Args:
        folder: as the user gave it; None for the one that this package came with: of the checkout that it is installed
            from, or of the release that it lies in. (Not the working directory's: configurations are code.)

    Raises:
        InputError: if there is none.
    """
    home = Path(nodule_plugin.__file__).absolute().parents[1]
    for path in [home / "bundle", home] if folder is None else [Path(folder)]:
        if (path / "configs" / "metadata.json").is_file():
            return path
    where = "beside this package" if folder is None else f"in {folder}"
    raise InputError(f"bundle: there is none {where}; give --bundle DIR, a checkout's bundle or an unpacked release")


def read_config(bundle: Path, name: str) -> dict[str, Any]:
    """The content of one of the bundle's configurations, nothing evaluated."""
    content: dict[str, Any] = json.loads((bundle / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def config_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration and their defaults."""
    table = settings_table()
    return {
        name: value
        for name, value in config.items()
        if name in table and not (isinstance(value, Mapping) and "_target_" in value)
    }


def shown_default(value: Any, config: Mapping[str, Any]) -> str:
    """A default for readers: paths in words, what another setting says by that, "computed" for other expressions."""
    if isinstance(value, str) and (reference := re.fullmatch(r"@(\w+)#(\w+)", value)):
        value = config[reference[1]][reference[2]]
    if isinstance(value, Mapping):
        return "several" if "prompt" in value else json.dumps(value)
    if not isinstance(value, str):
        return json.dumps(value)
    if path := re.fullmatch(r"\$@(\w+) \+ '(.*)'|\$in_bundle\(@(bundle_root), '(.*)'\)", value):
        return f"<{path[1] or path[3]}>/{(path[2] or path[4]).lstrip('/')}"
    if value.startswith("@"):
        return f"<{value[1:]}>"
    return "computed" if value.startswith("$") else value.split("\n")[0]


def config_parser(command: str, bundle: Path) -> argparse.ArgumentParser:
    """The options of one of :data:`CONFIGS`; only what is given becomes an attribute, as text."""
    config = read_config(bundle, CONFIGS[command][0])
    for name in LAID_OVER.get(command, []):
        config |= read_config(bundle, name)
    parser = argparse.ArgumentParser(
        prog=f"nodule {command}",
        usage=f"nodule {command} [--bundle DIR] [--overlay NAME ...] [--SETTING VALUE ...]",
        description=f"{CONFIGS[command][1]}.",
        epilog="Ids of the configuration (--train#trainer#max_epochs 3) and MONAI's own arguments (--tracking mlflow) "
        "are passed on.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--bundle", metavar="DIR", help="the bundle (default: the one that this package came with)")
    parser.add_argument(
        "--overlay",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="configurations laid over it, such as sd15 or a path",
    )
    for name, default in config_settings(config).items():
        setting = settings_table()[name]
        if name in ("bundle_root", "displayable_configs"):
            continue
        optional: dict[str, Any] = {"nargs": "?", "const": "true"} if setting.kind == "flag" else {}
        parser.add_argument(
            f"--{name}",
            metavar=setting.kind.removesuffix(" or null").replace(" ", "-").upper(),
            help=f"{setting.meaning} (default: {shown_default(default, config)})".replace("%", "%%"),
            **optional,
        )
    return parser


def monai_arguments(command: str, words: Sequence[str]) -> list[str]:
    """A command line of ``nodule`` as one of ``python -m monai.bundle``.

    Raises:
        InputError: if there is no such bundle or overlay, a text would be evaluated as code, or a word belongs to no
            option.
    """
    words = [re.sub(r"^--[\w-]+", lambda option: "--" + option[0][2:].replace("-", "_"), word) for word in words]
    words = _joined(words)
    where = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    where.add_argument("--bundle", "--bundle_root")
    chosen, words = where.parse_known_args(words)
    bundle = find_bundle(chosen.bundle)
    given, others = config_parser(command, bundle).parse_known_args(words)
    _refuse_stray(command, others)
    tracking = typed_settings(others).get("tracking", "mlflow")
    if tracking != "mlflow" and not Path(tracking).is_file():
        raise InputError(f"tracking: mlflow or a file with settings of MONAI's tracking is needed, not {tracking!r}")
    overlays = getattr(given, "overlay", [])
    if workflows := {config for config, _ in CONFIGS.values()}.intersection(overlays):
        raise InputError(f"overlay: {min(workflows)} is a workflow of its own, and would run in the place of {command}")
    names = [CONFIGS[command][0], *LAID_OVER.get(command, []), *overlays]
    files = [str(_config_file(bundle, name)) for name in names]
    texts = {name: text for name, text in vars(given).items() if name in settings_table()}
    for name, text in texts.items():
        if text.startswith(CODE):
            raise InputError(f"{name}: {text!r} would be code to MONAI; prompts can come from a file")
    options = [f"--{name}={text}" for name, text in texts.items()]
    return ["run", f"--config_file={files}", f"--bundle_root={bundle}", *options, *others]


def _refuse_stray(command: str, others: Sequence[str]) -> None:
    """Refuse a word that follows neither an option nor ``--``: MONAI would take it for the name of a list to run."""
    for before, word in zip(["", *others], others):
        if word == "--":  # python-fire's own options follow
            return
        if not word.startswith("-") and not (before.startswith("-") and "=" not in before):
            raise InputError(
                f"{word!r} belongs to no setting; nodule {command} --help lists them, and a value of several words"
                " stands in quotes"
            )


def _joined(words: Sequence[str]) -> list[str]:
    """Words in which a value such as -40.5,12 is one with its option: argparse would take it for another option."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and joined and re.fullmatch(r"--\w+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _config_file(bundle: Path, name: str) -> Path:
    paths = [path for path in (bundle / "configs" / f"{name}.json", Path(name)) if path.is_file()]
    if not paths:
        raise InputError(f"overlay: there is neither {bundle / 'configs' / name}.json nor a file {name}")
    if paths[0].suffix == ".json":  # MONAI, which reads YAML as well, would not name the file
        read_json(paths[0])
    return paths[0]
