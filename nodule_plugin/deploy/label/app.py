"""The app for MONAI Label: a model that generates, a trainer that fine-tunes it, and a model that inserts nodules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device, strtobool

from nodule_plugin.deploy.label.client_settings import default_image_settings, image_settings, torch_device
from nodule_plugin.deploy.label.configs import BundleFiles, bundle_files
from nodule_plugin.deploy.label.generation import ImageService
from nodule_plugin.deploy.label.insertion import RESULTS, InsertionService, series_folder
from nodule_plugin.deploy.label.runs import DATALIST, TrainingRuns, default_training_settings, training_settings
from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS
from nodule_plugin.errors import InputError

logger = logging.getLogger(__name__)

MODEL_NAME = "text_to_image"
INSERTION_NAME = "insert_nodule"
BUNDLE_WEIGHTS = "bundle"


class NoduleApp(MONAILabelApp):
    """What ``monailabel start_server`` runs.

    Settings (``--conf NAME VALUE``) are those of :func:`nodule_plugin.deploy.label.configs.bundle_files`. Fine-tuned
    models are kept in the folder ``model`` of the app.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.files = bundle_files(conf)
        self.runs = TrainingRuns(Path(app_dir) / "model", self.files)
        metadata = self.files.metadata()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=metadata["name"],
            description=metadata["description"],
            version=metadata["version"],
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The models by their names."""
        insertion = InsertionService(self.files, self.conf.get("inpainter"))
        return {MODEL_NAME: TextToImage(self.files, self.runs), INSERTION_NAME: NoduleInsertion(insertion)}

    def init_trainers(self) -> dict[str, TrainTask]:
        """The one trainer."""
        return {MODEL_NAME: FineTuning(self.files, self.runs, Path(self.studies))}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Generate or insert; see MONAILabelApp. ``image`` is looked at for insertion alone.

        Raises:
            HTTPException: 404 if there is no such model, 422 if a setting or the series cannot be used.
        """
        if strtobool(request.get("save_label", False)):
            raise HTTPException(422, "save_label: what is synthetic is no label of a study; leave it out")
        return _as_http(self._infer, request, datastore)

    def _infer(self, request: dict[str, Any], datastore: Datastore | None) -> dict[str, Any]:
        if request.get("model") == INSERTION_NAME:
            request = {**request, "image": str(self._series(request.get("image"), datastore or self.datastore()))}
        result: dict[str, Any] = super().infer(request, datastore)
        return result

    def _series(self, image: Any, datastore: Datastore) -> Path:
        """The folder of a series. MONAI Label would let a client name any folder of the server."""
        if isinstance(image, str) and image in datastore.list_images():
            # Of a DICOMweb server's series MONAI Label keeps the files beside the NIfTI that it makes of them.
            folder = Path(datastore.get_image_uri(image).removesuffix(".nii.gz"))
            return series_folder(folder.name, [folder.parent])
        sessions = self.sessions()  # an empty dictionary where there are none yet, None where they are turned off
        return series_folder(image, [Path(self.studies), *([] if sessions is None else [Path(sessions.store_path)])])

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Fine-tune; see MONAILabelApp.

        Raises:
            HTTPException: 404 if there is no such model, 422 if the data list or a setting cannot be used.
        """
        return _as_http(super().train, request)


def _as_http(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """MONAI Label shows every other exception as "Internal Server Error"."""
    try:
        return function(*arguments)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except MONAILabelException as error:
        raise HTTPException(404, error.msg) from error
    except Exception as error:
        logger.exception("a request failed")
        # The last line of a failed training is all that its status keeps room for.
        cause = _innermost(error)
        raise HTTPException(500, f"{type(cause).__name__}: {cause}") from error


def _innermost(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


class TextToImage(InferTask):
    """Generate one image for one prompt. The result is no label map: a NIfTI of one slice in Hounsfield units."""

    def __init__(self, files: BundleFiles, runs: TrainingRuns) -> None:
        self.generator = ImageService(files)
        self.defaults = default_image_settings(self.generator.config["displayable_configs"])
        self.runs = runs
        super().__init__(InferType.OTHERS, None, 2, files.metadata()["description"])

    def is_valid(self) -> bool:
        """Whether to list it."""
        return True

    def config(self) -> dict[str, Any]:
        """The settings of a request and what they are by default; of a list the first."""
        choices = [BUNDLE_WEIGHTS, BASE_WEIGHTS, *self.runs.models()]
        return {**self.defaults, "weights": choices, "device": device_list()}

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Generate.

        Returns:
            The NIfTI file, which MONAI Label removes once it is sent, and what made it.

        Raises:
            InputError: if a setting cannot be used.
        """
        given = {**self.config(), **request}
        image = self.generator(
            image_settings(given), self._find_weights(given["weights"]), _find_device(given["device"])
        )
        return str(image.nifti), image.description

    def _find_weights(self, name: Any) -> str | None:
        """A file of weights by its name, so that no client reaches any other file."""
        known: dict[Any, str | None] = {BUNDLE_WEIGHTS: None, BASE_WEIGHTS: BASE_WEIGHTS}
        known |= {run: str(path) for run, path in self.runs.models().items()}
        name = _first(name)
        if not isinstance(name, str) or name not in known:
            raise InputError(f"weights: there are none of the name {name!r}; choose one of {', '.join(known)}")
        return known[name]


class NoduleInsertion(InferTask):
    """Insert nodules into a CT series. The result is the series with them, or their mask, as NIfTI.

    It is no segmentation of the study, whose image has no such nodule; hence its type.
    """

    def __init__(self, service: InsertionService) -> None:
        self.service = service
        super().__init__(InferType.OTHERS, None, 3, "Insert a synthetic nodule into a CT series (a folder of DICOM)")

    def is_valid(self) -> bool:
        """Whether to list it."""
        return True

    def config(self) -> dict[str, Any]:
        """The settings of a request that viewers show, and what they are by default; of a list the first."""
        shown = ("position", "diameter_mm", "prompt", "guidance_scale", "steps")
        defaults = {name: "" if (value := self.service.defaults[name]) is None else value for name in shown}
        return {**defaults, "seed": 0, "result": list(RESULTS), "device": device_list()}

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Insert.

        Returns:
            The NIfTI file, which MONAI Label removes once it is sent, and what was inserted.

        Raises:
            InputError: if a setting or the series cannot be used.
        """
        device = _find_device(request.get("device") or device_list())
        given = {**request, "result": _first(request.get("result"))}
        made = self.service(given, Path(request["image"]), str(device))
        return str(made.nifti), made.description


class FineTuning(TrainTask):
    """Fine-tune the bundle's base model on the data list of the studies' folder."""

    def __init__(self, files: BundleFiles, runs: TrainingRuns, studies: Path) -> None:
        super().__init__(f"Fine-tune the base model on pairs of images and prompts, the {DATALIST} of the studies")
        self.defaults = default_training_settings(files.read("train.json"))
        self.runs = runs
        self.studies = studies

    def config(self) -> dict[str, Any]:
        """The settings of a request and what they are by default; an empty ``run`` gets a name."""
        return {"run": "", **self.defaults, "device": device_list()}

    def stats(self) -> dict[str, Any]:
        """What came of the finished runs, by name."""
        return self.runs.results()

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train to the end, see :meth:`TrainingRuns.train`.

        Raises:
            InputError: if the data list or a setting cannot be used.
        """
        given = {**self.config(), **request}
        result = self.runs.train(self.studies / DATALIST, training_settings(given), _find_device(given["device"]))
        logger.info("The model is %s", result["model"])
        return result


def _find_device(name: Any) -> torch.device:
    """A device by the name that MONAI Label shows for it, or by torch's."""
    return torch_device(name_to_device(_first(name)))


def _first(value: Any) -> Any:
    """What is chosen; clients may send the list of choices as it was shown to them."""
    return value[0] if isinstance(value, list) and value else value
