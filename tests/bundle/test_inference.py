from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pydicom
import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image
from tiny_sd import make_tiny_sd, make_tuned_weights
from warm import run_python

from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.transforms import nodule_transform
from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.diffusion.provenance import add_guidance, write_record
from nodule_plugin.errors import InputError, find_input_error

SMALL = {"steps": 2, "image_size": 32, "guidance_scales": 2}
ROUND = {"sphericity": 5, "margin": 5, "texture": 5, "spiculation": 1, "calcification": 6}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder with a tiny base model and a fine-tuned U-Net that differs from the base model's."""
    root = tmp_path_factory.mktemp("bundle")
    base = make_tiny_sd(root / "models" / "tiny", "v_prediction")
    make_tuned_weights(base, root / "models" / "model.pt")
    return root


@pytest.fixture
def config(repository: Path) -> str:
    return str(repository / "bundle" / "configs" / "inference.json")


def workflow(config: str, bundle: Path, **overrides: Any) -> ConfigWorkflow:
    options = {"bundle_root": str(bundle), "device": "cpu", **SMALL, **overrides}
    return ConfigWorkflow(config, workflow_type="inference", run_id="evaluating", logging_file=False, **options)


def run(config: str, bundle: Path, output: Path, **overrides: Any) -> dict[str, str]:
    """Run in this process; returns the SHA-256 of every image."""
    flow = workflow(config, bundle, output_dir=str(output), **overrides)
    flow.initialize()
    flow.run()
    flow.finalize()
    return {item["id"]: hashlib.sha256(Path(item["image"]).read_bytes()).hexdigest() for item in
            load_generated(output).items}  # fmt: skip


def command(config: str, bundle: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, "--bundle_root", str(bundle)]
    line += [f"--{name}={value}" for name, value in SMALL.items()]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(config).parents[2]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return run_python([*line, *arguments], cwd, environment)


def test_has_the_properties_that_monai_requires(config: str, bundle: Path) -> None:
    flow = workflow(config, bundle)
    flow.initialize()
    assert flow.check_properties() == []
    for name in ("bundle_root", "device", "dataset_dir", "dataset", "evaluator", "network_def", "inferer"):
        assert name in flow.parser.config
    assert set(flow.parser["displayable_configs"]) == {"prompt", "guidance_scale", "seed", "steps"}


def test_run_from_another_folder(config: str, bundle: Path, tmp_path: Path) -> None:
    result = command(config, bundle, "--prompts", "a round nodule", "--guidance_scales", "1,3", "--seeds", "[4,5]",
                     "--output_dir", "made", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    generated = load_generated(tmp_path / "made")
    assert generated.manifest is not None
    assert [(item["guidance_scale"], item["seed"]) for item in generated.items] == [(1, 4), (1, 5), (3, 4), (3, 5)]
    assert generated.manifest["model"]["prediction_type"] == "v_prediction"
    digest = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    assert generated.manifest["model"]["weights_sha256"] == digest
    assert generated.manifest["num_inference_steps"] == 2


def test_error_is_one_line_and_exit_1(config: str, bundle: Path, tmp_path: Path) -> None:
    findings = json.dumps({**ROUND, "margin": 7})
    result = command(config, bundle, "--findings", findings, "--output_dir", "made", cwd=tmp_path)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "findings[0]: margin" in errors[0]
    assert "7" in errors[0]
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_default_run_and_displayable_configs(config: str, bundle: Path, tmp_path: Path) -> None:
    flow = ConfigWorkflow(config, workflow_type="inference", run_id="evaluating", logging_file=False,
                          bundle_root=str(bundle), device="cpu", image_size=32, output_dir=str(tmp_path / "made"),
                          **{"displayable_configs#steps": 2, "displayable_configs#seed": 3})  # fmt: skip
    flow.initialize()
    flow.run()
    generated = load_generated(tmp_path / "made")
    assert len(generated.guidance_scales) > 1
    assert len({item["prompt"] for item in generated.items}) > 1
    assert {item["seed"] for item in generated.items} == {3}
    assert len(generated.items) <= 16


def test_the_scale_that_training_chose_is_the_default(config: str, bundle: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.pt"
    shutil.copy(bundle / "models" / "model.pt", weights)
    write_record(weights, nodule_transform(32, (-1000, 400), "cubic"), {"split": "validation"})
    add_guidance(weights, {"scale": 2.5, "split": "validation"})
    for name, given, scales in (
        ("own", {}, [2.5]),
        ("asked", {"guidance_scales": "4"}, [4.0]),
        ("displayed", {"displayable_configs#guidance_scale": "1, 2"}, [1.0, 2.0]),
        ("unrecorded", {"weights": "base"}, [1.5, 3.0, 5.0]),
    ):
        settings = {"image_size": 32, "output_dir": str(tmp_path / name), "weights": str(weights), **given}
        flow = ConfigWorkflow(
            config, workflow_type="inference", logging_file=False, bundle_root=str(bundle), **settings
        )
        flow.initialize()
        assert sorted({request["guidance_scale"] for request in flow.parser.get_parsed_content("requests")}) == scales
        model = flow.parser.get_parsed_content("writer").run["model"]
        assert model["chosen_on"] == (None if name == "unrecorded" else "validation")


def test_files_do_not_depend_on_the_batch_size(config: str, bundle: Path, tmp_path: Path) -> None:
    options = {"prompts": ["one", "two"], "guidance_scales": "1,4"}
    one = run(config, bundle, tmp_path / "one", **options)
    three = run(config, bundle, tmp_path / "three", batch_size=3, **options)
    assert one == three
    assert len(set(one.values())) == 4


def test_fine_tuned_weights_are_used_unless_told_otherwise(config: str, bundle: Path, tmp_path: Path) -> None:
    tuned = run(config, bundle, tmp_path / "tuned", prompts="one")
    base = run(config, bundle, tmp_path / "base", prompts="one", weights="base")
    assert tuned != base
    assert run(config, bundle, tmp_path / "tuned", prompts="one") == tuned


def test_findings(config: str, bundle: Path, tmp_path: Path) -> None:
    run(config, bundle, tmp_path / "made", findings=[ROUND, {**ROUND, "spiculation": 5}], roi_mm=16)
    items = load_generated(tmp_path / "made").items
    assert items[1]["prompt"].endswith("marked spiculation is seen.")
    assert items[1]["findings"]["spiculation"] == 5
    assert items[1]["spacing_mm"] == [0.5, 0.5]


def test_dicom(config: str, bundle: Path, tmp_path: Path) -> None:
    run(config, bundle, tmp_path / "made", findings=ROUND, formats="png,nifti,dicom", created="2026-01-31T12:00:00")
    (item,) = load_generated(tmp_path / "made").items
    image, volume = pydicom.dcmread(item["dicom"]), cast("Any", nibabel.load(item["nifti"]))
    np.testing.assert_array_equal(image.pixel_array, np.asarray(volume.dataobj)[:, :, 0].T)
    assert (image.SyntheticData, image.StudyDate) == ("YES", "20260131")
    assert pydicom.dcmread(item["dicom_report"]).Modality == "SR"


def test_datalist(config: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    item = {"image": "a.nii.gz", "slice_index": 0, "centre": [9, 9], "spacing": [1, 1], "diameter_mm": 8, "padding": 0,
            "roi_mm": 16, "prompt": "a nodule", "findings": ROUND}  # fmt: skip
    content = {"dataset_dir": str(tmp_path), "test": [{**item, "id": name} for name in ("a", "b", "c")]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    run(config, bundle, tmp_path / "made", datalist=str(tmp_path / "datalist.json"), limit=2, guidance_scales=[1, 2])
    items = load_generated(tmp_path / "made").items
    assert [(item["source_id"], item["guidance_scale"], item["seed"]) for item in items] == [
        ("a", 1, 0),
        ("b", 1, 1),
        ("a", 2, 0),
        ("b", 2, 1),
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"base_model": "no/such/folder"}, "base_model: there is no folder 'no/such/folder'"),
        ({"weights": "none.pt"}, "weights: there is no file none.pt"),
        ({"guidance_scales": -1}, "guidance_scales: .* not -1"),
        ({"findings": {}}, r"findings\[0\]: .*'sphericity' is missing"),
        ({"findings": []}, r"findings: a dictionary of ratings or a list of them is needed, not \[\]"),
        ({"prompts": "nodule " * 99}, "prompt: .* tokens"),
        ({"output_dir": "/dev/null/made"}, "output_dir: /dev/null/made"),
        ({"steps": 0}, "steps: a whole number of 1 or above is needed, not 0"),
        ({"batch_size": 0}, "batch_size: a whole number of 1 or above is needed, not 0"),
        ({"image_size": 100000}, "image_size: a whole number from 1 to 4096 is needed, not 100000"),
        ({"device": "gpu"}, "device: this machine has no 'gpu'; give cpu"),
        ({"image_size": 30}, "image_size: a multiple of 8"),
        ({"window_hu": [1, 0]}, "window_hu: two rising numbers"),
        ({"window_hu": [-20000, 60000]}, "window_hu: files hold Hounsfield units of -32768 to 32767"),
        ({"scheduler_class": "Magic"}, "scheduler_class: 'Magic' does not fit"),
        ({"datalist": "none.json"}, "none.json"),
    ],
)
def test_bad_input_leaves_nothing(
    overrides: dict[str, Any], message: str, config: str, bundle: Path, tmp_path: Path
) -> None:
    options = dict(overrides)
    output = Path(options.pop("output_dir", tmp_path / "made"))
    with pytest.raises((InputError, RuntimeError)) as caught:
        run(config, bundle, output, **options)
    found = find_input_error(caught.value)
    assert found is not None
    with pytest.raises(InputError, match=message):
        raise found
    assert "\n" not in str(found)
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_model_generates_from_the_checkout_without_further_settings(
    repository: Path, tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "bundle/configs/inference.json"]
    line += ["--output_dir", str(tmp_path / "out"), "--prompts", "The nodule is round in shape.", "--steps", "3"]
    done = run_python(line, repository)
    assert done.returncode == 0, done.stderr[-2000:]
    made = load_generated(tmp_path / "out")
    models = repository / "bundle" / "models"
    assert made.guidance_scales == [json.loads((models / "model.json").read_text())["guidance"]["scale"]]
    assert made.manifest is not None
    weights = (models / "model.pt").read_bytes()
    assert made.manifest["model"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def shipped(configs: list[str], repository: Path, **settings: Any) -> ConfigWorkflow:
    """The repository's own bundle, initialized."""
    options = {"bundle_root": str(repository / "bundle"), "device": "cpu", **settings}
    flow = ConfigWorkflow(configs, workflow_type="inference", run_id="evaluating", logging_file=False, **options)
    flow.initialize()
    return flow


def test_the_shipped_model_of_few_steps_draws_what_the_other_does(repository: Path, tmp_path: Path) -> None:
    config, few = (str(repository / "bundle" / "configs" / f"{name}.json") for name in ("inference", "few_steps"))
    given = {"findings": ROUND, "seeds": [1, 2], "mark": False, "formats": ["png"]}
    made = {}
    for name, configs in (("all", [config]), ("few", [config, few])):
        shipped(configs, repository, **given, output_dir=str(tmp_path / name)).run()
        made[name] = load_generated(tmp_path / name)
    assert made["few"].manifest is not None
    assert made["all"].manifest is not None
    assert (made["few"].manifest["scheduler"], made["few"].manifest["num_inference_steps"]) == ("DDIMScheduler", 4)
    assert (made["all"].guidance_scales, made["few"].guidance_scales) == ([1.5], [1.0])
    taught = made["few"].manifest["model"]["distilled"]
    assert (taught["guidance_scale"], taught["teacher_sha256"]) == (
        1.5,
        made["all"].manifest["model"]["weights_sha256"],
    )
    pixels = {
        name: [np.asarray(Image.open(item["image"]), float) for item in each.items] for name, each in made.items()
    }
    difference = np.abs(np.subtract(pixels["all"], pixels["few"])).mean((1, 2))
    assert difference.max() < 0.2 * np.abs(pixels["all"][0] - pixels["all"][1]).mean()


def test_few_steps_refuse_other_settings(repository: Path, tmp_path: Path) -> None:
    configs = [str(repository / "bundle" / "configs" / f"{name}.json") for name in ("inference", "few_steps")]
    flow = shipped(configs, repository, findings=ROUND, guidance_scales=[1, 3], output_dir=str(tmp_path / "out"))
    with pytest.raises(RuntimeError, match="check_few_steps") as caught:
        flow.run()
    found = find_input_error(caught.value)
    assert found is not None
    assert "guidance 1.5 built in; give steps=4, scheduler_class=DDIMScheduler and guidance_scales=1" in str(found)
    assert not (tmp_path / "out").exists()


def test_a_model_of_few_steps_takes_no_other_scheduler(repository: Path) -> None:
    models = repository / "bundle" / "models"
    source = Source(str(models / "tiny"), str(models / "few_steps" / "model.pt"), scheduler_class="PNDMScheduler")
    with pytest.raises(InputError, match=r"scheduler_class: .* in 4 steps of DDIMScheduler, not of PNDMScheduler"):
        load_model(source)
