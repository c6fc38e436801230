"""Handlers of the generation run: which weights are used, and the writing of a generated set."""

from __future__ import annotations

import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nodule_plugin import __version__
from nodule_plugin.data.entries import file_safe_id
from nodule_plugin.data.generated import FORMAT, MANIFEST, NOTICE, VERSION
from nodule_plugin.data.nifti import encode_volume
from nodule_plugin.data.window import DEFAULT_WINDOW_HU, checked_window, unit_to_hu
from nodule_plugin.diffusion.provenance import Distilled
from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed
from nodule_plugin.files import read_json, write_bytes_atomically, write_json
from nodule_plugin.provenance.marking import ImageMark
from nodule_plugin.settings import as_flag

if TYPE_CHECKING:
    from nodule_plugin.dicom import DicomEncoder

logger = logging.getLogger(__name__)

RUN_FILE = "request.json"
FILES = {
    "png": {"image": "png/{}.png"},
    "nifti": {"nifti": "nifti/{}.nii.gz"},
    "dicom": {"dicom": "dicom/image/{}.dcm", "dicom_report": "dicom/report/{}.dcm"},
}
"""The formats, and of each the files it writes for an image: field in the manifest -> path with the image's id."""
_SLICE_THICKNESS_MM = 1.0
_LIBRARIES = ("torch", "diffusers", "monai")


class GeneratedSetWriter:
    """Write what an evaluator generates as a generated set, see :mod:`nodule_plugin.data.generated`.

    Every image is an 8-bit grey PNG and, if asked for, a NIfTI of one slice in Hounsfield units (int16; axes x, y, z)
    and a DICOM CT image with a structured report; all carry what made them. The manifest is written last. A run
    that was interrupted is taken up where it stopped, and a finished set can be extended by further requests, as long
    as the settings are the same.

    The evaluator's batches are lists of requests and its ``pred`` is (B, C, H, W) in [-1, 1]; channels are averaged.

    Args:
        output_dir: of the set.
        requests: all that the set is to hold, see :mod:`nodule_plugin.data.requests`.
        settings: of the sampler, see :attr:`nodule_plugin.diffusion.sampling.GuidedSampler.settings`.
        base_model: folder, file or hub id; of the first two only the name is recorded.
        weights_sha256: of the network, see :func:`nodule_plugin.diffusion.fine_tuned.identify_weights`.
        image_size: height and width, pixels.
        window_hu: Hounsfield units of -1 and 1.
        formats: "png", and any of "nifti" and "dicom".
        overwrite: replace another set in ``output_dir``, and make anew what is there already.
        created: time that DICOM files carry, in ISO 8601; None for the run's start. Their identifiers depend on it, so
            that only runs with the same one give the same DICOM files; other formats hold no time.
        revision: of the hub id; none else is recorded.
        chain: that cut the images which the weights learnt from, see
            :func:`nodule_plugin.diffusion.provenance.weights_chain`; None where that is not known.
        chosen_on: split of their training's data list that chose them or their guidance scale; None for none.
        mark: of the images' noise; files hold it in whole numbers, too. None for none.
        taught: what weights of few steps learnt from, and the guidance built in; None for others.

    Raises:
        InputError: if a setting makes no sense or ``output_dir`` holds something else.
    """

    def __init__(
        self,
        output_dir: str | Path,
        requests: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        base_model: str,
        weights_sha256: str,
        image_size: int,
        window_hu: Sequence[float] = DEFAULT_WINDOW_HU,
        formats: Sequence[str] = ("png", "nifti"),
        overwrite: bool | str = False,
        created: str | None = None,
        revision: str | None = None,
        chain: str | None = None,
        chosen_on: str | None = None,
        mark: ImageMark | None = None,
        taught: Distilled | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        self.requests = [dict(request) for request in requests]
        for index, request in enumerate(self.requests):
            file_safe_id(f"requests[{index}]", request["id"])
        self.window_hu = checked_window(window_hu)
        self.formats = _checked_formats(formats)
        self.image_size = image_size
        self.run = describe_run(
            settings, base_model, weights_sha256, image_size, self.window_hu, revision, chain, chosen_on, taught
        )
        self.mark = mark
        self.run["mark"] = mark and mark.described
        overwrite = as_flag("overwrite", overwrite)
        written = _read_run(self.folder)
        self._stale = [request["id"] for request in written["requests"]] if overwrite and written else []
        if not overwrite:
            self._check_same_set(written, created)
            # All files of a set belong to one DICOM study, whenever they are made.
            created = created or (written or {}).get("created")
        self.pending = [request for request in self.requests if overwrite or not self._is_written(request)]
        """The requests that are still to be made, for the evaluator's dataset."""
        self._numbers = {request["id"]: number for number, request in enumerate(self.requests, start=1)}
        if created is None and "dicom" in self.formats:
            created = datetime.now(timezone.utc).isoformat()
        self._created = created
        self._dicom = _dicom_encoder(self.run, created) if created and "dicom" in self.formats else None

    def attach(self, engine: Engine) -> None:
        """Write after each iteration, and the manifest when the run is complete."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self) -> None:
        """Make the folders and note what is going to be made.

        Raises:
            InputError: if that is not possible.
        """
        try:
            for path in _paths("", self.formats).values():
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            if self._stale:
                (self.folder / MANIFEST).unlink(missing_ok=True)
            for stale in self._stale:
                for path in _paths(stale, FILES).values():
                    (self.folder / path).unlink(missing_ok=True)
            created = {} if self._created is None else {"created": self._created}
            write_json(self.folder / RUN_FILE, {"settings": self.run, **created, "requests": self.requests})
        except OSError as error:
            raise InputError(f"output_dir: {self.folder} cannot be written: {error}; give another folder") from error
        done = len(self.requests) - len(self.pending)
        logger.info("generating %d images into %s (%d already there)", len(self.pending), self.folder, done)

    def __call__(self, engine: Engine) -> None:
        """Write one batch.

        Raises:
            InputError: if an image holds values that are not finite, or the disk takes no more.
        """
        state: Any = engine.state
        for request, image in zip(state.batch, state.output[CommonKeys.PRED]):
            self.write(request, grey_image(image, request["id"]))

    def write(self, request: Mapping[str, Any], unit: np.ndarray) -> None:
        """Write one image.

        Args:
            request: one of the set's.
            unit: (rows, columns) in [-1, 1].

        Raises:
            InputError: if the disk takes no more.
        """
        origin = {"notice": NOTICE, **self.run, "request": dict(request)}
        spacing = self._spacing(request)
        grey = (np.clip(unit, -1, 1) + 1) * 127.5
        hu = unit_to_hu(unit, self.window_hu)
        if self.mark is not None:
            grey, hu = self.mark.whole(grey, 0, 255), self.mark.whole(hu)
        content = {"image": encode_png(grey, origin)}
        if "nifti" in self.formats:
            content["nifti"] = encode_nifti(hu, spacing, origin)
        if self._dicom is not None:
            encoded = self._dicom.encode(hu, spacing, request, self._numbers[request["id"]])
            content["dicom"], content["dicom_report"] = encoded
        paths = _paths(request["id"], self.formats)
        for name, data in content.items():
            try:
                write_bytes_atomically(self.folder / paths[name], data)
            except OSError as error:
                raise InputError(f"output_dir: image {request['id']} cannot be written: {error}") from error

    def finish(self) -> None:
        """Write the manifest, if every image is there."""
        missing = [request["id"] for request in self.requests if not self._is_written(request)]
        if missing:
            logger.warning("%s: %d images are missing; run again to complete the set", self.folder, len(missing))
            return
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "synthetic": True,
            "notice": NOTICE,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **self.run,
            "images": [self._describe(request) for request in self.requests],
        }
        write_json(self.folder / MANIFEST, manifest)
        logger.info("%d images and %s are in %s", len(self.requests), MANIFEST, self.folder)

    def _check_same_set(self, written: dict[str, Any] | None, created: str | None) -> None:
        remedy = "give another output_dir, or overwrite=true to replace it"
        if written is None:
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise InputError(f"output_dir: {self.folder} holds other files; {remedy}")
            return
        old, new = _flat(written["settings"]), _flat(json.loads(json.dumps(self.run)))
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name):
                change = f"made with {name} {old.get(name)}, not {new.get(name)}"
                raise InputError(f"output_dir: {self.folder} holds a set {change}; {remedy}")
        if created is not None and written.get("created", created) != created:
            change = f"made with created {written['created']}, not {created}"
            raise InputError(f"output_dir: {self.folder} holds a set {change}; {remedy}")
        wanted = {request["id"]: request for request in json.loads(json.dumps(self.requests))}
        for request in written["requests"]:
            if wanted.get(request["id"]) != request:
                raise InputError(f"output_dir: {self.folder} holds another set (image {request['id']}); {remedy}")

    def _is_written(self, request: Mapping[str, Any]) -> bool:
        files = [self.folder / path for path in _paths(request["id"], self.formats).values()]
        return all(_is_whole(file) for file in files)

    def _spacing(self, request: Mapping[str, Any]) -> float:
        return float(request["roi_mm"]) / self.image_size

    def _describe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **request,
            "nifti": None,
            **_paths(request["id"], self.formats),
            "size": [self.image_size, self.image_size],
            "spacing_mm": [self._spacing(request)] * 2,
        }


def grey_image(image: torch.Tensor, name: str) -> np.ndarray:
    """A sampler's (C, H, W) image as (H, W) grey values, float32: the mean of its channels.

    Raises:
        InputError: if values are not finite; ``name`` says which image's.
    """
    if not torch.isfinite(image).all():
        raise InputError(f"image {name}: values are not finite; use precision float32 or a lower guidance")
    return image.float().mean(0).cpu().numpy()


def describe_run(
    settings: Mapping[str, Any],
    base_model: str,
    weights_sha256: str,
    image_size: int,
    window_hu: Sequence[float],
    revision: str | None = None,
    chain: str | None = None,
    chosen_on: str | None = None,
    taught: Distilled | None = None,
) -> dict[str, Any]:
    """What all images of a run share and their files name; for the arguments see :class:`GeneratedSetWriter`."""
    settings, local = dict(settings), Path(base_model).exists()
    return {
        "model": {
            "base_model": Path(base_model).resolve().name if local else str(base_model),
            "revision": None if local else revision,
            "weights_sha256": weights_sha256,
            "prediction_type": settings.pop("prediction_type"),
            "chain": chain,
            "chosen_on": chosen_on,
            **({} if taught is None else {"distilled": asdict(taught)}),
        },
        **settings,
        "window_hu": [int(end) if end == int(end) else end for end in window_hu],
        "size": [image_size, image_size],
        "software": {"nodule_plugin": __version__, **{name: version(name) for name in _LIBRARIES}},
    }


def encode_png(grey: np.ndarray, origin: Mapping[str, Any]) -> bytes:
    """An 8-bit grey PNG that says in text chunks that it is synthetic and what made it.

    Args:
        grey: (rows, columns) in [0, 255], from black to white; rounded.
        origin: ``notice``, ``model`` and ``request`` get chunks of their own; all of it is in the chunk "origin".
    """
    request = origin["request"]
    chunks = {
        "notice": origin["notice"],
        "prompt": request["prompt"],
        "guidance_scale": f"{request['guidance_scale']:g}",
        "seed": str(request["seed"]),
        "weights_sha256": origin["model"]["weights_sha256"],
        "origin": json.dumps(origin),
    }
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(grey).astype(np.uint8)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def encode_nifti(hu: np.ndarray, spacing_mm: float, origin: Mapping[str, Any]) -> bytes:
    """A compressed NIfTI-1 of one axial slice that says in its header that it is synthetic and what made it.

    Args:
        hu: (rows, columns) Hounsfield units; stored rounded, as int16, with axes (column, row, slice) that run to the
            patient's left, back and head.
        spacing_mm: between pixels.
        origin: stored as JSON in a header extension of the kind "comment".
    """
    volume = np.rint(hu).astype(np.int16).T[:, :, None]
    return encode_volume(volume, np.diag([-spacing_mm, -spacing_mm, _SLICE_THICKNESS_MM, 1.0]), origin)


def _checked_formats(formats: str | Sequence[str]) -> list[str]:
    names = [name.strip() for name in formats.split(",")] if isinstance(formats, str) else list(formats)
    if "png" not in names or not set(names) <= set(FILES):
        raise InputError(f"formats: png, and beside it nifti and dicom, can be written, not {formats!r}")
    return [name for name in FILES if name in names]


def _dicom_encoder(run: Mapping[str, Any], created: str) -> DicomEncoder:
    check_installed("highdicom", "dicom", ", or leave dicom out of formats")
    from nodule_plugin.dicom import DicomEncoder, parse_created

    return DicomEncoder(run, parse_created(created))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value})
    return flat


def _paths(image_id: str, formats: Iterable[str]) -> dict[str, str]:
    """Field in the manifest -> path in the set's folder, of all files of an image in these formats."""
    return {field: path.format(image_id) for name in formats for field, path in FILES[name].items()}


def _read_run(folder: Path) -> dict[str, Any] | None:
    path = folder / RUN_FILE
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir: {folder} is a file; give a folder")
    if not path.is_file():
        return None
    run = read_json(path, "give another output_dir")
    requests = run.get("requests") if isinstance(run, dict) and isinstance(run.get("settings"), dict) else None
    if not isinstance(requests, list) or not all(isinstance(request, dict) for request in requests):
        raise InputError(f"output_dir: {path} is not of a generation run; give another output_dir")
    for index, request in enumerate(requests):
        file_safe_id(f"{path}: requests[{index}]", request.get("id"))
    if "dtype" in run["settings"]:  # what 0.1 first called it
        run["settings"]["precision"] = run["settings"].pop("dtype")
    return run


def _is_whole(path: Path) -> bool:
    """Whether a file of a set is there to its end: a full disk or a broken copy may have left less."""
    try:
        content = path.read_bytes()
        if path.suffix == ".png":
            Image.open(io.BytesIO(content), formats=["PNG"]).load()
        elif path.suffix == ".gz":
            gzip.decompress(content)
    except (OSError, EOFError, SyntaxError, ValueError, zlib.error):
        return False
    return bool(content)
