"""The bundle as a function from an order to images in Hounsfield units, without files and without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from nodule_plugin.data.requests import generation_requests
from nodule_plugin.data.window import checked_window, unit_to_hu
from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS, load_weights
from nodule_plugin.diffusion.provenance import check_few_steps, distilled
from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json, visible_files
from nodule_plugin.handlers.generation import describe_run, grey_image

CONFIG = "configs/inference.json"
ORDER_FIELDS = ("prompts", "findings", "guidance_scales", "seeds", "roi_mm", "template")
"""What an order may hold, with the names and meanings of :func:`nodule_plugin.data.requests.generation_requests`."""


class BundleGenerator:
    """Networks and sampler as the bundle's ``inference.json`` describes them, ready to generate.

    Args:
        bundle_root: the bundle's folder, or one that holds nothing but such a folder (as model folders of MONAI Deploy
            do).
        overrides: of the configuration, such as ``steps`` or ``device``.

    Raises:
        InputError: if there is no bundle, or its weights do not fit.
    """

    def __init__(self, bundle_root: str | Path, overrides: Mapping[str, Any] | None = None) -> None:
        root = find_bundle(Path(bundle_root))
        parser = ConfigParser()
        parser.read_config(str(root / CONFIG))
        parser.update({"bundle_root": str(root), **(overrides or {})})
        parser.parse()
        self._defaults = {name: parser.get_parsed_content(name) for name in ("guidance_scales", "seeds", "roi_mm")}
        self._device = parser.get_parsed_content("device")
        self._prepare = parser.get_parsed_content("prepare_batch")
        self._sampler = parser.get_parsed_content("inferer")
        self._network = parser.get_parsed_content("network").eval()
        self.window_hu = checked_window(parser.get_parsed_content("window_hu"))
        self.image_size = parser.get_parsed_content("image_size")
        self._weights, sha256 = parser.get_parsed_content("weights"), parser.get_parsed_content("weights_sha256")
        if self._weights != BASE_WEIGHTS:
            load_weights(self._weights, self._network)
        origin = {name: parser.get_parsed_content(name) for name in ("base_model", "revision", "chain", "chosen_on")}
        self.run = describe_run(
            self._sampler.settings,
            weights_sha256=sha256,
            image_size=self.image_size,
            window_hu=self.window_hu,
            taught=distilled(self._weights),
            **origin,
        )
        """Settings that all images share, as manifests hold them."""
        self.mark = parser.get_parsed_content("image_mark")
        self.run["mark"] = self.mark and self.mark.described

    def requests(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Lay out what an order asks for.

        Args:
            order: ``prompts`` or ``findings``, and any other of :data:`ORDER_FIELDS`; what it leaves out is as in the
                bundle's configuration.

        Raises:
            InputError: if something in it cannot be used.
        """
        if unknown := sorted(set(order) - set(ORDER_FIELDS)):
            raise InputError(f"order: there is no field {unknown[0]!r}; there are {', '.join(ORDER_FIELDS)}")
        given = {**self._defaults, **order}
        # An order names no files of the machine that fills it.
        if isinstance(given.get("prompts"), str):
            given["prompts"] = given["prompts"].splitlines()
        if isinstance(given.get("findings"), str):
            raise InputError(f"order: findings: a dictionary of ratings is needed, not {given['findings']!r}")
        requests = generation_requests(**given)
        check_few_steps(self._weights, self._sampler.settings, requests)
        return requests

    def prepare(self, request: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The noise of a request's seed, with the configuration's mark, and the conditions that the sampler takes."""
        noise, _, _, conditions = self._prepare([request], self._device)
        return noise, conditions

    def sample(self, noise: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """(1, 3, H, W) images in [-1, 1]."""
        with torch.no_grad():
            return self._sampler(noise, self._network, **conditions)

    def to_hu(self, images: Tensor, name: str) -> np.ndarray:
        """(H, W) Hounsfield units, int16, of the single image in ``images``, with the configuration's mark.

        Raises:
            InputError: if values are not finite; ``name`` says which image's.
        """
        unit = grey_image(images[0], name)
        hu = unit_to_hu(unit, self.window_hu)
        return np.rint(hu if self.mark is None else self.mark.whole(hu)).astype(np.int16)


def find_bundle(folder: Path) -> Path:
    """The bundle in ``folder``: itself, or the only folder in it that is one.

    Raises:
        InputError: if there is none, or several.
    """
    bundles = [path for path in (folder, *sorted(folder.glob("*/"))) if (path / CONFIG).is_file()]
    if len(bundles) != 1:
        what = "no bundle" if not bundles else f"{len(bundles)} bundles"
        raise InputError(f"model: {folder} holds {what}; give the folder that has {CONFIG}")
    return bundles[0]


def read_order(path: Path) -> dict[str, Any]:
    """An order from a JSON file, or from the only JSON file in a folder.

    Raises:
        InputError: if there is none, or it is not an object.
    """
    files = [file for file in visible_files(path) if file.suffix == ".json"] if path.is_dir() else [path]
    if len(files) != 1:
        raise InputError(f"input: {path} holds {len(files)} JSON files; give one with {' or '.join(ORDER_FIELDS[:2])}")
    order = read_json(files[0])
    if not isinstance(order, dict):
        raise InputError(f"input: {files[0]} must hold an object such as {{'findings': ...}}, not {order!r}")
    return order
