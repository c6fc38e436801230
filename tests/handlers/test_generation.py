from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from ignite.engine import Engine
from PIL import Image

from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.picture import read_picture
from nodule_plugin.data.requests import generation_requests
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.generation import GeneratedSetWriter
from nodule_plugin.provenance.codebook import PUBLIC
from nodule_plugin.provenance.marking import ImageMark

SIZE = 8
SETTINGS = {"scheduler": "DPMSolverMultistepScheduler", "prediction_type": "epsilon", "num_inference_steps": 25}
PROMPT = "The nodule is round in shape – naïve 結節"


def image_of(request: dict[str, Any]) -> torch.Tensor:
    return torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(request["seed"])) * 2 - 1


def writer_of(folder: Path, scales: str = "1,5", **options: Any) -> GeneratedSetWriter:
    requests = generation_requests(prompts=[PROMPT, "two"], guidance_scales=scales, seeds="0,1", roi_mm=16)
    settings = {"requests": requests, "settings": SETTINGS, "base_model": "owner/name", "revision": "c0ffee"}
    settings |= {"chain": "roi-cubic-2", "chosen_on": "validation"}
    return GeneratedSetWriter(folder, **{**settings, "weights_sha256": "abc", "image_size": SIZE, **options})


def generate(writer: GeneratedSetWriter, stop_after: int = 99, batch: int = 3) -> list[str]:
    """Run the writer on an engine; returns the ids that were made."""
    made: list[str] = []

    def step(engine: Engine, requests: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if len(made) >= stop_after:
            raise KeyboardInterrupt
        made.extend(request["id"] for request in requests)
        return {"pred": torch.stack([image_of(request) for request in requests])}

    engine = Engine(step)
    writer.attach(engine)
    engine.run([writer.pending[at : at + batch] for at in range(0, len(writer.pending), batch)])
    return made


def hashes(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
            for f in folder.rglob("*.*") if f.is_file() and f.name != "manifest.json"}  # fmt: skip


def test_written_set_can_be_read_back(tmp_path: Path) -> None:
    generate(writer_of(tmp_path))
    generated = load_generated(tmp_path)
    assert len(generated.items) == 8
    assert generated.manifest is not None
    assert generated.manifest["synthetic"] is True
    assert generated.manifest["num_inference_steps"] == 25
    assert generated.manifest["model"] == {
        "base_model": "owner/name",
        "revision": "c0ffee",
        "weights_sha256": "abc",
        "prediction_type": "epsilon",
        "chain": "roi-cubic-2",
        "chosen_on": "validation",
    }
    assert set(generated.manifest["software"]) == {"nodule_plugin", "torch", "diffusers", "monai"}
    item = generated.items[2]
    assert (item["prompt"], item["seed"], item["guidance_scale"]) == (PROMPT, 1, 1.0)
    assert item["spacing_mm"] == [2.0, 2.0]
    expected = image_of(item).mean(0).numpy()
    np.testing.assert_allclose(read_picture(item["image"]), expected, atol=1 / 255)


def test_nifti_is_in_hounsfield_units_and_says_what_it_is(tmp_path: Path) -> None:
    generate(writer_of(tmp_path, window_hu=(-160, 240)))
    item = load_generated(tmp_path).items[2]
    image: Any = nibabel.load(item["nifti"])
    assert image.shape == (SIZE, SIZE, 1)
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms()[:2] == (2.0, 2.0)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert bytes(image.header["descrip"]).rstrip(b"\0") == b"SYNTHETIC, not for diagnosis"
    hu = image.get_fdata()[:, :, 0].T
    np.testing.assert_allclose(hu, image_of(item).mean(0).numpy() * 200 + 40, atol=0.51)
    origin = json.loads(image.header.extensions[0].get_content())
    assert origin["request"]["prompt"] == PROMPT
    assert origin["model"]["weights_sha256"] == "abc"


def test_png_says_what_made_it(tmp_path: Path) -> None:
    generate(writer_of(tmp_path))
    with Image.open(load_generated(tmp_path).items[2]["image"]) as picture:
        assert picture.mode == "L"
        text: Any = picture.info
    assert "Synthetic" in text["notice"]
    assert "not for diagnosis" in text["notice"]
    assert (text["prompt"], text["guidance_scale"], text["seed"]) == (PROMPT, "1", "1")
    assert text["weights_sha256"] == "abc"
    assert json.loads(text["origin"])["num_inference_steps"] == 25


def test_same_requests_give_the_same_files(tmp_path: Path) -> None:
    generate(writer_of(tmp_path / "a"), batch=1)
    generate(writer_of(tmp_path / "b"), batch=3)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(hashes(tmp_path / "a")) == 17


def test_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    generate(writer_of(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        generate(writer_of(tmp_path / "cut"), stop_after=3)
    assert not (tmp_path / "cut" / "manifest.json").exists()
    assert len(generate(writer_of(tmp_path / "cut"))) == 5
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert writer_of(tmp_path / "cut").pending == []


@pytest.mark.parametrize("pattern", ["png/*.png", "nifti/*.nii.gz"])
def test_a_file_that_is_not_whole_is_made_again(tmp_path: Path, pattern: str) -> None:
    generate(writer_of(tmp_path))
    whole = hashes(tmp_path)
    damaged = sorted(tmp_path.glob(pattern))[2]
    for left in (0, damaged.stat().st_size // 2):  # what a crash leaves, and what a broken copy does
        os.truncate(damaged, left)
        assert len(generate(writer_of(tmp_path))) == 1
        assert hashes(tmp_path) == whole


def test_finished_set_can_be_extended(tmp_path: Path) -> None:
    generate(writer_of(tmp_path, "1"))
    assert len(generate(writer_of(tmp_path, "1,5"))) == 4
    assert len(load_generated(tmp_path).items) == 8


def test_a_set_whose_precision_was_called_dtype_goes_on(tmp_path: Path) -> None:
    settings = {**SETTINGS, "precision": "bfloat16"}
    generate(writer_of(tmp_path, "1", settings=settings))
    run_file = tmp_path / "request.json"
    run_file.write_text(run_file.read_text().replace('"precision"', '"dtype"'))
    assert len(generate(writer_of(tmp_path, "1,5", settings=settings))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {**SETTINGS, "num_inference_steps": 10}}, "made with num_inference_steps 25, not 10"),
        ({"revision": "other"}, "made with model.revision c0ffee, not other"),
        ({"weights_sha256": "other"}, "made with model.weights_sha256 abc, not other"),
        ({"scales": "5"}, "holds another set"),
        ({"window_hu": (-160, 240)}, "made with window_hu"),
        ({"created": "2026-02-01T12:00:00"}, "made with created 2026-01-31T12:00:00, not 2026-02-01T12:00:00"),
    ],
)
def test_another_set_is_not_mixed_in_but_can_be_replaced(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    generate(writer_of(tmp_path, created="2026-01-31T12:00:00"))
    before = hashes(tmp_path)
    with pytest.raises(InputError, match=f"output_dir: .*{message}.*overwrite=true"):
        writer_of(tmp_path, **change)
    assert hashes(tmp_path) == before
    (tmp_path / "mine.txt").write_text("kept")
    generate(writer_of(tmp_path, overwrite=True, **change))
    generate(writer_of(tmp_path / "fresh", **change))
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert load_generated(tmp_path).items[0]["id"] == load_generated(tmp_path / "fresh").items[0]["id"]
    assert len(list((tmp_path / "png").iterdir())) == len(load_generated(tmp_path).items)


@pytest.mark.parametrize(("given", "pending"), [("false", 0), (False, 0), ("true", 8), ("True", 8), (True, 8)])
def test_overwrite_as_a_command_line_gives_it(given: Any, pending: int, tmp_path: Path) -> None:
    generate(writer_of(tmp_path))
    assert len(writer_of(tmp_path, overwrite=given).pending) == pending
    with pytest.raises(InputError, match="overwrite: true or false is needed, not 'yes'"):
        writer_of(tmp_path, overwrite="yes")


@pytest.mark.parametrize("name", ["../../precious/a", "../precious/a", "/tmp/a", "png/../../../precious/a", None, 3])
def test_overwriting_removes_nothing_elsewhere(name: Any, tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious" / "a.png", tmp_path / "x" / "out"
    for file in (precious, folder / "png" / "a.png"):
        file.parent.mkdir(parents=True)
        file.write_text("kept")
    (folder / "request.json").write_text(json.dumps({"settings": {}, "requests": [{"id": "a"}, {"id": name}]}))
    with pytest.raises(InputError, match=r"request\.json: requests\[1\]: field 'id': .* cannot name a file"):
        generate(writer_of(folder, overwrite=True))
    assert precious.read_text() == (folder / "png" / "a.png").read_text() == "kept"


@pytest.mark.parametrize(
    "content",
    ["[]", '{"settings": {}}', '{"settings": [], "requests": []}', '{"settings": {}, "requests": [1]}'],
)
def test_records_of_something_else_are_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(content)
    with pytest.raises(InputError, match=r"request\.json is not of a generation run"):
        writer_of(tmp_path, overwrite=True)


def test_ids_that_lead_elsewhere_are_not_written(tmp_path: Path) -> None:
    (request, *_) = generation_requests(prompts=["one"])
    with pytest.raises(InputError, match=r"requests\[0\]: field 'id'"):
        writer_of(tmp_path / "out", requests=[{**request, "id": "../../a"}])


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(InputError, match="holds other files"):
        writer_of(tmp_path)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_output_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir: .*file"):
        generate(writer_of(tmp_path / name))


def test_damaged_run_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("{")
    with pytest.raises(InputError, match=r"request.json: not JSON"):
        writer_of(tmp_path)


@pytest.mark.parametrize("formats", ["nifti", "jpg", ["png", "gif"], ["dicom"], []])
def test_formats_that_cannot_be_written(formats: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="formats: png, and beside it nifti and dicom"):
        writer_of(tmp_path, formats=formats)


def test_png_alone(tmp_path: Path) -> None:
    generate(writer_of(tmp_path, formats="png"))
    assert load_generated(tmp_path).items[0]["nifti"] is None
    assert not (tmp_path / "nifti").exists()


def test_values_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    writer = writer_of(tmp_path)
    engine = Engine(lambda engine, batch: {"pred": torch.full((len(batch), 3, SIZE, SIZE), torch.nan)})
    writer.attach(engine)
    with pytest.raises(InputError, match="prompt000_g1_s0: values are not finite"):
        engine.run([writer.pending])
    assert list((tmp_path / "png").iterdir()) == []


def dicom(folder: Path, kind: str = "image") -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted((folder / "dicom" / kind).iterdir())]


def test_dicom_holds_the_same_hounsfield_units_as_nifti(tmp_path: Path) -> None:
    generate(writer_of(tmp_path, formats="png,nifti,dicom", window_hu=(-160, 240)))
    for item in load_generated(tmp_path).items:
        image, volume = pydicom.dcmread(item["dicom"]), cast("Any", nibabel.load(item["nifti"]))
        np.testing.assert_array_equal(image.pixel_array, np.asarray(volume.dataobj)[:, :, 0].T)
        assert image.PixelSpacing == item["spacing_mm"]
        assert item["prompt"] in image.ImageComments
        report = pydicom.dcmread(item["dicom_report"])
        assert report.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID == image.StudyInstanceUID


def test_dicom_files_are_the_same_if_they_are_dated_the_same(tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate(writer_of(tmp_path / name, formats="png,dicom", created="2026-01-31T12:00:00"))
    generate(writer_of(tmp_path / "now", formats="png,dicom"))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert dicom(tmp_path / "a")[0].StudyInstanceUID != dicom(tmp_path / "now")[0].StudyInstanceUID


def test_interrupted_and_extended_sets_are_one_study(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(writer_of(tmp_path, "1", formats="png,dicom"), stop_after=3)
    generate(writer_of(tmp_path, "1", formats="png,dicom"))
    generate(writer_of(tmp_path, "1,5", formats="png,dicom"))
    images = dicom(tmp_path)
    assert len(images) == 8
    assert len({(image.StudyInstanceUID, image.StudyDate, image.StudyTime) for image in images}) == 1
    assert len({image.SeriesInstanceUID for image in images}) == 8


def test_a_date_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="created: a time such as 2026-01-31T12:00:00 is needed, not 'yesterday'"):
        writer_of(tmp_path, formats="png,dicom", created="yesterday")


def test_dicom_without_highdicom_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("nodule_plugin.dicom", "highdicom"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r"highdicom: not installed; run pip install 'nodule-plugin\[dicom\]'"):
        writer_of(tmp_path, formats="png,dicom")
    assert writer_of(tmp_path, formats="png,nifti").pending


@pytest.mark.parametrize("mark", [ImageMark(PUBLIC, "fc"), None])
def test_manifest_and_dicom_name_the_mark(tmp_path: Path, mark: ImageMark | None) -> None:
    request = {"id": "a", "prompt": PROMPT, "findings": None, "guidance_scale": 3.0, "seed": 0, "roi_mm": 20.0}
    settings = {"settings": dict(SETTINGS), "base_model": "owner/name", "weights_sha256": "fc07" * 16, "image_size": 64}
    writer = GeneratedSetWriter(
        tmp_path / "set", [request | {"source_id": None}], **settings, formats=("png", "nifti", "dicom"), mark=mark
    )
    writer.start()
    writer.write(request, np.zeros((64, 64), np.float32))
    writer.finish()
    generated = load_generated(tmp_path / "set")
    assert generated.manifest is not None
    schemes = {"scheme": "nodule-plugin 3", "numbers": "nodule-plugin pixels 1"}
    assert generated.manifest["mark"] == (mark and {**schemes, "key": "public", "payload": "fc"})
    (item,) = generated.items
    described = "".join(pydicom.dcmread(item["dicom"]).ContributingEquipmentSequence[0].ContributionDescription)
    assert ('mark={"scheme": "nodule-plugin 3"' in described) == (mark is not None)
