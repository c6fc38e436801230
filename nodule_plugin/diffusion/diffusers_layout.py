"""Parts of a base model in diffusers' layout: from a local folder, the hub's cache or the hub.

Where a part cannot be loaded the error says what in the folder or the cache is the reason, and what helps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from nodule_plugin.errors import InputError
from nodule_plugin.weights import UNREADABLE, damage, one_line, refuse_faults

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_VARIANT = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)\.(?!non_ema)(\w+)\.(?:safetensors|bin)")


def load_part(load: Callable[..., Any], base_model: str, part: str, revision: str | None, **options: Any) -> Any:
    """What is in the folder ``part`` of a model.

    Args:
        load: diffusers' or transformers' way to load it, such as ``CLIPTokenizer.from_pretrained``.
        base_model: a local folder or a hub id.
        part: such as "unet".
        revision: of the hub id.
        options: for ``load``.

    Raises:
        InputError: if there is no such model, or the part cannot be read.
    """
    _check_source(base_model, part, revision)
    options |= {"subfolder": part, "revision": revision}
    local = Path(base_model).is_dir()
    # What a commit holds cannot change: the cache is asked first, without the hub.
    if not local and _COMMIT.fullmatch(str(revision)):
        try:
            return load(str(base_model), local_files_only=True, **options)
        except UNREADABLE:
            pass
    try:
        return load(str(base_model), local_files_only=local, **options)
    except UNREADABLE as error:
        folder = _snapshots(base_model) / str(revision) if not local else Path(base_model)
        if folder.is_dir():
            reason = _what_is_wrong(folder / part, part, options.get("variant")) or one_line(error)
        else:
            reason = _not_at_hand(base_model)
        raise InputError(f"base_model: the {part} of {base_model!r} cannot be loaded: {reason}") from error


def _check_source(base_model: str, part: str, revision: str | None) -> None:
    path = Path(base_model)
    if path.is_dir():
        if not (path / part).is_dir():
            raise InputError(f"base_model: {path} has no folder {part!r}; {_other_layout(path)}")
    elif path.suffix in _FILES:
        raise InputError(f"base_model: there is no file {base_model}")
    elif not _HUB_ID.fullmatch(str(base_model)):
        raise InputError(f"base_model: there is no folder {base_model!r}, and it is not a hub id (owner/name) either")
    elif revision is None:
        raise InputError(
            f"base_model: there is no folder {base_model!r}{_from_here(path)}, and as a hub id it needs a revision, "
            "since what an id holds can change; give the commit (on the model's page: Files and versions, History"
            f"{''.join(f'; in the cache: {commit}' for commit in _cached_commits(base_model))})"
        )


def _from_here(path: Path) -> str:
    """What a path that begins with the bundle's own folder of models most likely lacks: the folder of the bundle."""
    if path.parts[0] != "models":
        return ""
    return f" in {Path.cwd()} (if it is the bundle's own, give the bundle's folder as bundle_root, or work in it)"


def _other_layout(folder: Path) -> str:
    """What a folder without the wanted part is, as far as can be told."""
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".ckpt"))
    if (folder / "transformer").is_dir():
        return "it holds a diffusion transformer, such as Stable Diffusion 3; only Stable Diffusion 1 and 2 can be used"
    if files:
        return f"give the file as base_model ({folder / files[0]}), or a model in diffusers' folder layout"
    return "give a model in diffusers' folder layout"


def _snapshots(hub_id: str) -> Path:
    """Where this machine's cache keeps the commits of a model of the hub, a folder each."""
    return Path(constants.HF_HUB_CACHE, f"models--{hub_id.replace('/', '--')}", "snapshots")


def _cached_commits(hub_id: str) -> list[str]:
    folder = _snapshots(hub_id)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _not_at_hand(hub_id: str) -> str:
    commits = ", ".join(_cached_commits(hub_id)) or "nothing of it"
    return (
        f"the hub cannot be reached or has no such revision, and the cache {constants.HF_HUB_CACHE} holds {commits}; "
        f"with a connection run 'hf download {hub_id} --revision COMMIT', or give a local folder or file as base_model"
    )


def _what_is_wrong(folder: Path, part: str, variant: str | None) -> str | None:
    """What keeps a part from being loaded from a folder and what helps, as far as its files show it."""
    if part == "tokenizer":
        lacking = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        remedy = "copy it from the model's page or another Stable Diffusion 1 or 2, where it is the same"
        return f"{folder} lacks {' and '.join(lacking)}; {remedy}" if lacking else None
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    for file in files:
        if reason := damage(file):
            return f"{file.name}: {reason}"
    variants = sorted({match[1] for file in files if (match := _VARIANT.fullmatch(file.name))})
    if variant is not None and variant not in variants:
        return (
            f"there are no weights of the variant {variant}, but {', '.join(variants) or 'plain ones'}; change variant"
        )
    if variant is None and variants:
        return f"there are only weights of the variant {' and '.join(variants)}; give --variant {variants[0]}"
    return None


def load_network(kind: Any, base_model: str, part: str, revision: str | None, variant: str | None) -> Any:
    """A part that is a network, in float32, if every weight arrives.

    Args:
        kind: its class, of diffusers or transformers.
        base_model, part, revision: see :func:`load_part`.
        variant: of the weights files, such as "fp16".

    Raises:
        InputError: also if a weight is missing or has no place in the network.
    """
    options = {"variant": variant, "dtype": torch.float32, "output_loading_info": True}
    network, info = load_part(kind.from_pretrained, base_model, part, revision, **options)
    faults = {kind: sorted(info[f"{kind}_keys"]) for kind in ("missing", "unexpected")}
    refuse_faults(faults, f"base_model: the {part} of {base_model!r}", f"the weights of a {kind.__name__}")
    return network
