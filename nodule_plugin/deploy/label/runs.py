"""Fine-tuning by the bundle's training configuration, each run in a folder of its own."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.deploy.label.client_settings import run_name
from nodule_plugin.deploy.label.configs import BundleFiles
from nodule_plugin.errors import InputError, unwrapped_input_errors
from nodule_plugin.files import read_json, write_json
from nodule_plugin.settings import as_number, as_whole_number, whole_number
from nodule_plugin.weights import file_sha256

DATALIST = "datalist.json"
"""In the studies' folder, as ``prepare`` writes it."""
MODEL = "models/model.pt"
RESULT = "result.json"
_SETTINGS = {"max_epochs": "epochs", "batch_size": "batch_size", "learning_rate": "learning_rate", "seed": "seed"}
"""What a client may set, by MONAI Label's names and the configuration's."""


@dataclass(frozen=True)
class TrainingSettings:
    """What a client may say of a run; the rest is the configuration's.

    Attributes:
        run: name of the run; one that was stopped goes on where it did.
        overrides: ids of the training configuration and their values.
    """

    run: str
    overrides: dict[str, Any]


def default_training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown to a client: the training configuration's own values."""
    return {name: config[target] for name, target in _SETTINGS.items()}


def training_settings(given: Mapping[str, Any]) -> TrainingSettings:
    """Check what a client gave; what it left out stays as the configuration has it.

    Raises:
        InputError: naming the setting, its value and what is allowed.
    """
    overrides: dict[str, Any] = {}
    for name, target in _SETTINGS.items():
        if name not in given:
            continue
        if name == "learning_rate":
            overrides[target] = float(as_number(name, given[name]))
            if not 0 < overrides[target] < 1:
                raise InputError(f"{name}: a number between 0 and 1 is needed, not {given[name]!r}")
        else:
            least = 0 if name == "seed" else 1
            overrides[target] = whole_number(name, as_whole_number(name, given[name]), least, 10**9)
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return TrainingSettings(run_name(given.get("run") or now), overrides)


class TrainingRuns:
    """The runs of one app.

    Args:
        folder: a run's output is in the folder of its name in here.
        files: the bundle.
    """

    def __init__(self, folder: Path, files: BundleFiles) -> None:
        self.folder = folder
        self.files = files

    def models(self) -> dict[str, Path]:
        """The weights of each run that has any, by the run's name."""
        return {path.parents[1].name: path for path in sorted(self.folder.glob(f"*/{MODEL}"))}

    def results(self) -> dict[str, dict[str, Any]]:
        """What :meth:`train` returned, for each run that came to its end."""
        return {path.parent.name: read_json(path) for path in sorted(self.folder.glob(f"*/{RESULT}"))}

    def train(self, datalist: Path, settings: TrainingSettings, device: torch.device | None = None) -> dict[str, Any]:
        """Train to the end.

        Args:
            datalist: pairs of images and prompts, as ``prepare`` writes it.
            settings: of the run.
            device: None for the one that the bundle chooses.

        Returns:
            {"run", "model" (path of the weights), "weights_sha256", "last" (of the curves)}, fit for JSON.

        Raises:
            InputError: if the data list or a setting cannot be used.
        """
        if not datalist.is_file():
            raise InputError(
                f"datalist: there is no file {datalist}; write it with prepare, or copy it there, before training"
            )
        load_datalist(datalist, "training", drop_padded=True)
        output = self.folder / settings.run
        overrides = {**self.files.overrides(), **settings.overrides}
        if device is not None:
            overrides["device"] = device
        with unwrapped_input_errors():
            workflow = ConfigWorkflow(
                self.files.config_files("train.json"),
                workflow_type="train",
                run_id="training",
                logging_file=False,
                datalist=str(datalist),
                output_dir=str(output),
                **overrides,
            )
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        result = {
            "run": settings.run,
            "model": str(output / MODEL),
            "weights_sha256": file_sha256(output / MODEL),
            "last": _last_row(output / "curves.csv"),
        }
        write_json(output / RESULT, result)
        return result


def _last_row(curves: Path) -> dict[str, str]:
    with curves.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))[-1]
