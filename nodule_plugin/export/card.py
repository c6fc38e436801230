"""The model card of an export, as the Hugging Face Hub reads it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from nodule_plugin.data.image_set import GENERATED
from nodule_plugin.diffusion.model import FineTunedModel
from nodule_plugin.errors import InputError
from nodule_plugin.export.model import NOTICE
from nodule_plugin.files import read_json
from nodule_plugin.lidc.citation import CITATION, LICENCE, LICENCE_URL
from nodule_plugin.report.numbers import set_title, with_interval
from nodule_plugin.report.results import FORMAT, PHANTOMS, arrow

CARD = "README.md"
UNKNOWN = "unknown"
_BASE_LICENCES = {
    r"stable-diffusion-v?1": "creativeml-openrail-m",
    r"stable-diffusion-2": "openrail++",
}
"""Of published models, by what their hub id holds: the Hub's identifiers."""
_LIBRARIES = {"onnx": "onnx", "pt2": "pytorch"}
_ENVIRONMENT = Environment(
    loader=PackageLoader(__package__, ""), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def write_card(
    model: FineTunedModel,
    folder: Path,
    form: str,
    metadata: Mapping[str, Any],
    metrics: str | Path | None = None,
    licence: str | None = None,
) -> Path:
    """Write ``README.md``.

    Args:
        model: that was exported.
        folder: beside its files.
        form: of the export, a name in :data:`nodule_plugin.export.forms.FORMS`.
        metadata: the bundle's ``metadata.json``.
        metrics: ``metrics.json`` of an evaluation of these weights; None says that there is none.
        licence: the Hub's identifier; None for the base model's, which the weights stay under.

    Returns:
        The file.

    Raises:
        InputError: if the metrics are of something else.
    """
    results = None if metrics is None else read_results(Path(metrics), model)
    licence = licence or base_licence(model.source.base_model)
    base_model = model.source.base_model
    at_hub = not Path(base_model).exists()
    title = "Chest CT lung nodules from radiologists' findings"
    data = ModelCardData(
        language="en",
        license=licence,
        library_name=_LIBRARIES.get(form, "diffusers"),
        pipeline_tag="text-to-image",
        tags=[
            "stable-diffusion",
            "medical",
            "chest-ct",
            "lung-nodule",
            "synthetic",
            *(["lora"] if form == "lora" else []),
        ],
        base_model=base_model if at_hub else None,
        base_model_relation=("adapter" if form == "lora" else "finetune") if at_hub else None,
        model_name=title,
        eval_results=None if results is None else eval_results(results, model) or None,
    )
    text = _ENVIRONMENT.get_template("card.md").render(
        title=title,
        form=form,
        model=model,
        base_name=base_model if at_hub else Path(base_model).name,
        metadata=metadata,
        licence=licence,
        results=results,
        table=None if results is None else metrics_table(results),
        notice=NOTICE,
        citation=CITATION,
        data_licence=(LICENCE, LICENCE_URL),
        unknown=UNKNOWN,
    )
    file = folder / CARD
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(file)
    return file


def base_licence(base_model: str) -> str:
    """The licence of a base model as the Hub calls it: from its folder's own card or its hub id; else "unknown"."""
    card = Path(base_model) / CARD
    if card.is_file():
        try:
            return str(ModelCard.load(card, ignore_metadata_errors=True).data.license or UNKNOWN)
        except (ValueError, yaml.YAMLError):  # no metadata that can be read
            return UNKNOWN
    if Path(base_model).exists():
        return UNKNOWN
    return next((licence for part, licence in _BASE_LICENCES.items() if re.search(part, base_model)), UNKNOWN)


def read_results(file: Path, model: FineTunedModel) -> dict[str, Any]:
    """The content of an evaluation's ``metrics.json``.

    Raises:
        InputError: if it is none, or no set in it was made with these weights.
    """
    results = read_json(file, "give the metrics.json that evaluate has written")
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise InputError(
            f"metrics: {file} is no evaluation of this package; give the metrics.json that evaluate writes"
        )
    if not _own_names(results, model):
        raise InputError(
            f"metrics: {file} is an evaluation of other weights than {model.source.weights} "
            f"(SHA-256 {model.sha256}); evaluate what these generate, or leave metrics out"
        )
    return results


def _own_names(results: Mapping[str, Any], model: FineTunedModel) -> set[str]:
    """What the rows of these weights are called; the folder stands behind where two models have one name."""
    names = set()
    for generated in results["settings"].get("generated", ()):
        made_by = generated.get("model", {})
        if made_by.get("weights_sha256") == model.sha256:
            name = Path(str(made_by.get("base_model") or generated["folder"])).name
            names |= {name, f"{name} ({Path(generated['folder']).name})"}
    return names


def eval_results(results: Mapping[str, Any], model: FineTunedModel) -> list[EvalResult]:
    """Every number of these weights for the card's metadata, each with its interval and its judge."""
    names, settings = _own_names(results, model), results["settings"]
    phantoms = results["reference"] == PHANTOMS
    rows = [row for row in results["rows"] if row["kind"] == GENERATED and row["model"] in names]
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="lidc-idri",
            dataset_name="Phantoms drawn around annotations of LIDC-IDRI" if phantoms else "LIDC-IDRI",
            dataset_split=settings.get("split"),
            metric_type=measure["key"],
            metric_name=f"{measure['name']} at guidance scale {row['guidance_scale']:g}",
            metric_value=value["value"],
            metric_args={"judge": measure["extractor"], "ci95": value["ci95"], "images": row["images"]},
        )
        for row in rows
        for measure in results["measures"]
        if _is_number((value := row["values"][measure["key"]])["value"])
    ]


def metrics_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows in Markdown: a measure a row with its judge, a set of images a column."""
    sets = results["rows"]
    headings = ["measure", "judge", *(f"{set_title(row['model'], row['guidance_scale'])}" for row in sets)]
    rows = [
        [f"{measure['name']} {arrow(measure)}", measure["extractor"], *_cells(measure["key"], sets)]
        for measure in results["measures"]
        if any(_is_number(row["values"][measure["key"]]["value"]) for row in sets)
    ]
    return [_escaped(text) for text in headings], [[_escaped(text) for text in row] for row in rows]


def _cells(key: str, sets: Sequence[Mapping[str, Any]]) -> list[str]:
    values = [row["values"][key] for row in sets]
    return [with_interval(v["value"], v["ci95"]) if _is_number(v["value"]) else "" for v in values]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)
