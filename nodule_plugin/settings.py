"""Settings: their table, their way from a command line into the configurations, and checks of their values.

``settings.json`` lists every setting that the bundle's configurations have, its kind and its meaning. MONAI's command
line reads values with python-fire, which takes digits for numbers, commas for tuples and what follows ``#`` for a
comment; MONAI itself reads ``#`` as ``::``. :func:`read_settings`, which every configuration calls first, puts back
what was typed.
"""

from __future__ import annotations

import ast
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

RENAMED = {
    "part": "split",
    "workers": "num_workers",
    "dtype": "precision",
    "tiny_scorer": "scorer",
    "scheduler": "cluster_address",
}
"""Names of earlier versions."""
CODE = ("$", "@", "%")
"""With one of these begins what MONAI evaluates or looks up."""
_NOTHING = ("null", "None")
_TEXTS = ("path", "text", "paths", "texts", "findings", "flag or path")
_SEVERAL = ("paths", "texts")
_PLAIN = (str, int, float, PurePath, list, tuple)
LARGEST_SIDE = 4096
"""Pixels a side of an image; a larger one would take all memory before anything failed."""
_LIMITS = {
    **dict.fromkeys(("batch_size", "epochs", "steps", "val_batch_size"), (1, None)),
    **dict.fromkeys(("patience", "overfit_patience", "seed", "page_seed", "phantom_seed"), (0, None)),
    "split_seed": (0, 2**32 - 1),
    "image_size": (1, LARGEST_SIDE),
}
"""Of whole numbers that others would refuse late, at length or by another name."""
_ABOVE_0 = ("learning_rate",)
"""The same of numbers."""
_OPTION = re.compile(r"--|-[A-Za-z]")


@dataclass(frozen=True)
class Setting:
    """A line of the table.

    Attributes:
        name: id in the configurations.
        kind: what it takes, such as "whole number"; ends in " or null" where it may be nothing.
        meaning: for whoever sets it.
    """

    name: str
    kind: str
    meaning: str

    def value(self, given: Any, typed: str | None = None) -> Any:
        """What the setting is, given what arrived in a configuration and, where it comes from a command line, the text.

        A text is taken as it was typed, but that quotes around all of it are left out, and that a list in square
        brackets is several where there may be several; commas divide nothing. "null" is nothing. What begins like
        MONAI's expressions and references stays what it is; so do components and other objects.

        Raises:
            InputError: if it is of another kind, or MONAI has changed it and nobody knows the text.
        """
        kind = self.kind.removesuffix(" or null")
        if typed in _NOTHING:
            given = None
        if isinstance(given, str) and given.startswith(CODE):
            return given
        if given is None or given in _NOTHING:
            if kind == self.kind:
                raise InputError(f"{self.name}: a {_one(kind)} is needed, not null")
            return None
        if kind == "flag" or (kind == "flag or path" and str(given).lower() in ("true", "false")):
            return as_flag(self.name, given)
        if kind in _TEXTS and not (kind == "findings" and isinstance(given, (Mapping, list, tuple))):
            text = _as_typed(typed, kind in _SEVERAL) if typed and typed.strip() else self._text(kind, given)
            return as_device(self.name, text) if self.name == "device" else text
        if kind in ("number", "whole number") and not isinstance(given, Mapping):
            return self._number(kind, given)
        return given

    def _number(self, kind: str, given: Any) -> float | int:
        if kind == "number":
            value = as_number(self.name, given)
            if self.name in _ABOVE_0 and value <= 0:
                raise InputError(f"{self.name}: a number above 0 is needed, not {value}")
            return value
        number = as_whole_number(self.name, given)
        return whole_number(self.name, number, *_LIMITS[self.name]) if self.name in _LIMITS else number

    def _text(self, kind: str, given: Any) -> Any:
        if not isinstance(given, _PLAIN):
            return given
        if kind in _SEVERAL and isinstance(given, (list, tuple)):
            return [self._one_text(kind, each) for each in given]
        return self._one_text(kind, given)

    def _one_text(self, kind: str, given: Any) -> str:
        if isinstance(given, bool) or not isinstance(given, (str, int, float, PurePath)) or not str(given).strip():
            raise InputError(f"{self.name}: a {_one(kind)} is needed, not {given!r}")
        if "::" in str(given):
            remedy = "give a .txt, .json or .csv file" if kind == "texts" else "choose a name without it"
            raise InputError(f"{self.name}: MONAI has made :: of # in {str(given)!r}; {remedy}, or use a command line")
        return str(given)


def _one(kind: str) -> str:
    return kind.removesuffix("s") if kind in _SEVERAL else kind


@cache
def settings_table() -> dict[str, Setting]:
    """All settings of the bundle's configurations by their names."""
    content = read_json(Path(__file__).with_suffix(".json"))
    return {name: Setting(name, kind, meaning) for name, (kind, meaning) in content.items()}


def read_settings(parser: ConfigParser | None = None, arguments: Sequence[str] | None = None) -> None:
    """Give each setting the value that the user meant, and refuse settings that nothing reads.

    Args:
        parser: of the configuration, parsed and not evaluated; None for the one whose expression calls this.
        arguments: of the command line; None for the process's own where that is ``python -m monai.bundle``.

    Raises:
        InputError: if a setting is unknown, has another name now, or its value cannot be used.
    """
    parser = parser or _evaluating_parser()
    if arguments is None:
        arguments = sys.argv[1:] if Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") else []
    typed = typed_settings(arguments)
    _refuse_unread(parser, typed)
    for name, setting in settings_table().items():
        item = parser.ref_resolver.items.get(name.replace("#", "::"))
        if item is not None:
            given, text = item.get_config(), typed.get(name)
            value = setting.value(given, text if _is_source(text, given) else None)
            if value is not given:
                parser.ref_resolver.resolved_content[item.get_id()] = value


def typed_settings(arguments: Sequence[str]) -> dict[str, str]:
    """The text after each ``--name`` of a command line, before python-fire has read it."""
    words = list(arguments)
    if "--" in words:  # python-fire's own options follow
        words = words[: len(words) - 1 - words[::-1].index("--")]
    typed = {}
    for word, following in zip(words, [*words[1:], "--"]):
        name, assigned, text = word.lstrip("-").partition("=")
        if _OPTION.match(word) and (assigned or not _OPTION.match(following)):
            typed[name.replace("-", "_")] = text if assigned else following
    return typed


def _evaluating_parser() -> ConfigParser:
    """The parser that the call stack leads from: an expression of a configuration is not given it."""
    from monai.bundle import ConfigParser

    frame = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("read_settings: call it in a configuration, or give a parser")


def _refuse_unread(parser: ConfigParser, typed: Mapping[str, str]) -> None:
    """Refuse a top-level value that is no setting and that no expression refers to: it would do nothing.

    So would a setting of other configurations than the one on the command line; it passes where it was not typed, since
    overlays are laid over several.
    """
    from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

    table, resolver = settings_table(), parser.ref_resolver
    texts = (text for item in resolver.items.values() if isinstance(text := item.get_config(), str))
    read = {reference.partition("::")[0] for text in texts for reference in resolver.match_refs_pattern(text)}
    for name, value in parser.get().items():
        if name in read or name in DEFAULT_MLFLOW_SETTINGS["configs"] or not _is_plain(value):
            continue
        known = [setting for setting in table if setting in resolver.items and setting != name]
        if name in table:
            theirs, files = _configurations(name, str(parser.get("bundle_root", "."))), typed.get("config_file")
            if f"{name}s" in read:  # guidance_scale is one of insert's: here it would do nothing where it is meant
                raise InputError(f"{name}: nothing reads it here, it is for {', '.join(theirs)}; did you mean {name}s?")
            if name in typed and files and theirs and not any(f"{one}.json" in files for one in theirs):
                close = get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise InputError(f"{name}: nothing reads it here; it is a setting of {', '.join(theirs)}{hint}")
            continue
        if RENAMED.get(name) in known:
            raise InputError(f"{name}: this setting is now called {RENAMED[name]}; give --{RENAMED[name]}")
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "docs/settings.md lists all"
        raise InputError(f"{name}: there is no such setting; {hint}")


def _configurations(name: str, bundle_root: str) -> list[str]:
    """Which of the bundle's configurations have a setting."""
    files = sorted(Path(in_bundle(bundle_root, "configs")).glob("*.json"))
    return [file.stem for file in files if name in read_json(file)]


def _is_plain(value: Any) -> bool:
    """Whether a configuration's value is neither an expression nor a component nor a group of values."""
    if isinstance(value, (list, tuple)):
        return all(_is_plain(each) for each in value)
    return not isinstance(value, Mapping) and not (isinstance(value, str) and value.startswith(CODE))


def _is_source(text: str | None, arrived: Any) -> bool:
    """Whether ``arrived`` is what python-fire and MONAI make of ``text``."""
    from fire.parser import DefaultParseValue

    return text is not None and (text in _NOTHING or _as_monai_reads(DefaultParseValue(text)) == arrived)


def _as_monai_reads(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_monai_reads(each) for each in value]
    return value.replace("#", "::") if isinstance(value, str) else value


def _as_typed(text: str, several: bool) -> str | list[str]:
    """A text, or the texts of a list, without the quotes around them."""
    source = text.strip()
    try:
        literal = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError):
        return text
    if ast.get_source_segment(source, literal) != source:  # a "comment" follows
        return text
    if several and isinstance(literal, ast.List):
        return [_unquoted(each, source) for each in literal.elts]
    return _unquoted(literal, source)


def _unquoted(literal: ast.expr, source: str) -> str:
    if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
        return literal.value
    return ast.get_source_segment(source, literal) or source


def as_flag(name: str, value: bool | str) -> bool:
    """A setting that is true or false; a command line gives these as texts, and "false" would count as true.

    Raises:
        InputError: if it is neither.
    """
    flag = {"true": True, "false": False}.get(str(value).lower())
    if flag is None:
        raise InputError(f"{name}: true or false is needed, not {value!r}")
    return flag


def as_number(name: str, given: Any) -> float | int:
    """A setting that is a number, given as one or as text.

    Raises:
        InputError: if it is none, not finite, or its size is 2**63 or above.
    """
    value = given
    if isinstance(value, str) and "_" not in value:  # Python takes 1_0 for 10; whoever types it may mean 1.0
        try:
            value = int(value) if re.fullmatch(r"[+-]?\d+", value) else float(value)
        except ValueError as error:
            raise InputError(f"{name}: {value!r} is not a number; give such as 5 or 1,5,10") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}: {value!r} is not a number; give such as 5 or 1,5,10")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}: a finite number is needed, not {value}")
    if not abs(value) < 2**63:
        raise InputError(f"{name}: a number below 2**63 is needed, not {value}")
    return value


def as_whole_number(name: str, given: Any) -> int:
    """:func:`as_number` that is whole.

    Raises:
        InputError: if it is not.
    """
    number = as_number(name, given)
    if int(number) != number:
        raise InputError(f"{name}: a whole number is needed, not {given!r}")
    return int(number)


def as_numbers(name: str, given: Any) -> list[float | int]:
    """The distinct numbers in a number, a list or a text, as a command line or a configuration gives them.

    Raises:
        InputError: if there is none, something else, or one twice.
    """
    values = re.split(r"[,\s]+", given.strip(" ,[]()")) if isinstance(given, str) else given
    if not isinstance(values, Sequence) or isinstance(values, str):
        values = [values]
    if not values:
        raise InputError(f"{name}: at least one number is needed")
    numbers = [as_number(name, value) for value in values]
    for index, number in enumerate(numbers):
        if number in numbers[:index]:
            raise InputError(f"{name}: {number} is given twice")
    return numbers


def as_seeds(name: str, given: Any) -> list[int]:
    """:func:`as_numbers` that are seeds.

    Raises:
        InputError: if one is no whole number of 0 or above.
    """
    seeds = as_numbers(name, given)
    for seed in seeds:
        if seed < 0 or int(seed) != seed:
            raise InputError(f"{name}: a seed is a whole number of 0 or above, not {seed}")
    return [int(seed) for seed in seeds]


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A setting that is a whole number from ``least`` on, to ``most`` where there is one.

    Raises:
        InputError: if it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"of {least} or above" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}: a whole number {allowed} is needed, not {value!r}")
    return value


def as_device(name: str, given: Any) -> Any:
    """A device that this machine has, as it was given.

    Raises:
        InputError: if there is none of that name.
    """
    import torch  # a command's help needs none

    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    message = f"{name}: this machine has no {str(given)!r}; give {' or '.join(['cpu', *cards])}"
    try:
        device = torch.device(given)
        there = device.type != "cuda" or (device.index or 0) < len(cards)
        if device.type not in ("cpu", "cuda"):
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        # No device's name, a back end that PyTorch was built without, one that holds no tensors, no text at all.
        raise InputError(message) from error
    if not there:
        raise InputError(message)
    return given


def in_bundle(bundle_root: str, name: str) -> str:
    """The path of something that ships with the bundle.

    Args:
        bundle_root: the bundle's folder; the checkout, whose folder ``bundle`` it is, will do too, so that commands
            given from there work without ``--bundle_root bundle``.
        name: relative path within the bundle.

    Returns:
        The path in the checkout's ``bundle`` where only that exists, else the one in ``bundle_root``.
    """
    own, nested = Path(bundle_root, name), Path(bundle_root, "bundle", name)
    return str(nested if nested.exists() and not own.exists() else own)
