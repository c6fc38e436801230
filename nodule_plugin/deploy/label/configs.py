"""Which files a bundle is configured by, and what its settings are when nobody sets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json


@dataclass(frozen=True)
class BundleFiles:
    """A bundle's folder, and what is laid over its configurations.

    Attributes:
        root: the folder that holds ``configs`` and ``models``.
        overlays: configurations that override, such as ``sd15.json``: names in ``configs``, or paths.
        base_model: a local folder or hub id in place of the one that the configurations name; None keeps that.
    """

    root: Path
    overlays: tuple[str, ...] = ()
    base_model: str | None = None

    def config_files(self, name: str) -> list[str]:
        """``name`` and the overlays, as MONAI takes them.

        Raises:
            InputError: if one of them is missing.
        """
        files = [self._find(name), *(self._find(overlay) for overlay in self.overlays)]
        return [str(file) for file in files]

    def overrides(self) -> dict[str, Any]:
        """The settings that follow from where the bundle lies and what it was started with."""
        chosen = {} if self.base_model is None else {"base_model": self.base_model}
        return {"bundle_root": str(self.root), **chosen}

    def read(self, name: str) -> dict[str, Any]:
        """The content of ``name`` with the overlays on it, nothing evaluated.

        Raises:
            InputError: if a file is missing or not JSON.
        """
        files = self.config_files(name)
        try:
            content: dict[str, Any] = ConfigParser.load_config_files(files)
        except ValueError as error:
            raise InputError(f"bundle: {', '.join(files)} cannot be read as JSON: {error}") from error
        return content | self.overrides()

    def metadata(self) -> dict[str, Any]:
        """The bundle's ``metadata.json``.

        Raises:
            InputError: if it is missing or not JSON.
        """
        content: dict[str, Any] = read_json(self._find("metadata.json"))
        return content

    def _find(self, name: str) -> Path:
        for path in (self.root / "configs" / name, Path(name)):
            if path.is_file():
                return path
        raise InputError(f"bundle: there is no file {self.root / 'configs' / name}; give the bundle's folder")


def bundle_files(conf: Mapping[str, str]) -> BundleFiles:
    """From what ``monailabel start_server --conf NAME VALUE`` was given: ``bundle``, ``overlays``, ``base_model``.

    Raises:
        InputError: if there is no bundle.
    """
    if "bundle" not in conf:
        raise InputError("bundle: start the server with --conf bundle FOLDER, the folder with configs and models")
    overlays: Sequence[str] = [name.strip() for name in conf.get("overlays", "").split(",") if name.strip()]
    files = BundleFiles(Path(conf["bundle"]).absolute(), tuple(overlays), conf.get("base_model"))
    for name in ("inference.json", "train.json"):
        files.config_files(name)
    return files
