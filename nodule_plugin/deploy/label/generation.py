"""One image for one prompt by the bundle's inference configuration, whose networks stay in memory between requests."""

from __future__ import annotations

import copy
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from nodule_plugin.data.generated import FILE_FIELDS, load_generated
from nodule_plugin.deploy.label.client_settings import ImageSettings
from nodule_plugin.deploy.label.configs import BundleFiles
from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS
from nodule_plugin.errors import unwrapped_input_errors

_RESIDENT = (
    "network_def",
    "vae_def",
    "text_encoder_def",
    "conditioner#tokenizer",
    "noise_scheduler",
    "weights_sha256",
    "chain",
    "chosen_on",
)
"""Ids of what does not depend on a request. Not the conditioner, which remembers every prompt that it has met."""


@dataclass(frozen=True)
class GeneratedImage:
    """One image.

    Attributes:
        nifti: file in Hounsfield units; whoever asked for the image removes it.
        description: of the image and what made it, as the manifest of a generated set says it, fit for JSON.
    """

    nifti: Path
    description: dict[str, Any]


class ImageService:
    """Generate one image at a time; requests from several threads wait for each other.

    Args:
        files: the bundle.
    """

    def __init__(self, files: BundleFiles) -> None:
        self.config = files.read("inference.json")
        self._lock = threading.Lock()
        self._resident: dict[str, Any] = {}
        self._loaded: tuple[Any, ...] | None = None

    def __call__(
        self, settings: ImageSettings, weights: str | None = None, device: torch.device | None = None
    ) -> GeneratedImage:
        """Generate.

        Args:
            settings: of the image.
            weights: file with the network's state dict, or "base" for the base model's own; None for the bundle's.
            device: None for the one that the bundle chooses.

        Raises:
            InputError: if the bundle cannot make such an image.
        """
        with self._lock, tempfile.TemporaryDirectory() as folder:
            with unwrapped_input_errors():
                self._run(settings, weights, device, folder)
            return _take_out(Path(folder))

    def _run(self, settings: ImageSettings, weights: str | None, device: torch.device | None, folder: str) -> None:
        parser = ConfigParser(copy.deepcopy(self.config))
        parser["output_dir"] = folder
        # A text in a configuration can be an expression, and expressions are evaluated. In a tuple it stays a text.
        parser["displayable_configs"] = {**vars(settings), "prompt": (settings.prompt,)}
        if device is not None:
            parser["device"] = device
        if weights is not None:
            parser["weights"] = weights
        wanted = (*_version(str(parser.get_parsed_content("weights"))), device)
        if wanted == self._loaded:
            for name, component in self._resident.items():
                parser[name] = component
            # As the network is: it has been given its weights, and their hash is known.
            parser["weights"] = BASE_WEIGHTS
        else:
            self._resident, self._loaded = {}, None  # before the next are loaded: memory may not hold both
        parser.get_parsed_content("evaluator").run()
        self._resident = {name: parser.get_parsed_content(name) for name in _RESIDENT}
        self._loaded = wanted


def _version(weights: str) -> tuple[str, int]:
    """Another where the file is another or has been written anew."""
    return weights, Path(weights).stat().st_mtime_ns if Path(weights).is_file() else 0


def _take_out(folder: Path) -> GeneratedImage:
    """The only image of a generated set, moved to where it outlives the set."""
    made = load_generated(folder)
    assert made.manifest is not None
    manifest = {**made.manifest}
    image = dict(manifest.pop("images")[0])
    for file_name in FILE_FIELDS:
        image.pop(file_name, None)
    with tempfile.NamedTemporaryFile(prefix="synthetic_nodule_", suffix=".nii.gz", delete=False) as file:
        nifti = Path(file.name)
    shutil.move(made.items[0]["nifti"], nifti)
    return GeneratedImage(nifti, {**manifest, "image": image})
