from __future__ import annotations

import hashlib
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from study_material import CASES, SMALL, Material, write_generated

from nodule_plugin.data.evaluation_images import LoadSetImaged, real_items
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.__main__ import main
from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.design import DesignedStudy, Settings, draw_order, write_study
from nodule_plugin.reader_study.seal import Key, Sealed, commitment, digest_of_study, open_key
from nodule_plugin.reader_study.study import Plan, Study, load_study
from nodule_plugin.reader_study.words import chain_sentence


def opened(designed: DesignedStudy) -> tuple[Study, Key]:
    study = load_study(designed.study)
    return study, open_key(designed.key, study)


def chunks(png: bytes) -> list[bytes]:
    names, position = [], 8
    while position < len(png):
        length = int.from_bytes(png[position : position + 4], "big")
        names.append(png[position + 4 : position + 8])
        position += 12 + length
    return names


def test_every_case_has_an_image_of_every_arm_from_the_same_findings(designed: DesignedStudy) -> None:
    _, key = opened(designed)
    assert key.arms == ("real", "model-one", "model-two")
    counted = [image for image in key.images.values() if not image.practice and image.repeat_of is None]
    assert len(counted) == SMALL.cases * 3
    for case in {image.case for image in counted}:
        own = {image.arm: image.origin["id"] for image in counted if image.case == case}
        assert set(own) == set(key.arms)
        assert len(set(own.values())) == 1  # the material names generated images after their source
    assert sum(image.practice for image in key.images.values()) == SMALL.practice
    assert len({image.arm for image in key.images.values() if image.repeat_of}) == 3


def test_files_tell_nothing(designed: DesignedStudy) -> None:
    study, key = opened(designed)
    files = sorted((study.folder / "images").iterdir())
    assert {path.stem for path in files} == set(key.images)
    assert len({(path.stat().st_size, path.stat().st_mtime, path.stat().st_mode) for path in files}) == 1
    assert {tuple(chunks(path.read_bytes())) for path in files} == {(b"IHDR", b"IDAT", b"IEND")}
    assert {Image.open(path).mode for path in files} == {"L"}
    text = study.file.read_text() + (study.folder / "links.json").read_text()
    assert not [word for word in ("model-one", "real-", "repeat", "seed", "nonce") if word in text]


def test_real_and_generated_pixels_pass_through_the_same_steps(designed: DesignedStudy, material: Material) -> None:
    study, key = opened(designed)
    real = {item["id"]: item for item in real_items(datalist=material.datalist)}
    load = LoadSetImaged(size=(16, 16))
    for name, image in key.images.items():
        pixels = np.asarray(Image.open(study.image_file(name)))
        if image.arm == "real":
            expected = to_uint8(load(real[image.origin["id"]])["image"].float()[None])[0, 0].numpy()
        else:
            folder = material.generated[image.arm == "model-two"]
            expected = np.asarray(Image.open(folder / f"{image.origin['id']}.png"))
        np.testing.assert_array_equal(pixels, expected)


def test_each_reader_has_an_order_of_her_own_with_repeats_far_apart(designed: DesignedStudy) -> None:
    study, key = opened(designed)
    orders = [[step.image for step in steps if not step.practice] for steps in study.sequences.values()]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert sorted(order) == sorted(name for name, image in key.images.items() if not image.practice)
        for name, image in key.images.items():
            if image.repeat_of:
                assert order.index(name) - order.index(image.repeat_of) >= len(order) // 6
    assert all(step.practice for steps in study.sequences.values() for step in steps[: SMALL.practice])


def test_key_is_what_the_commitment_says_and_hides_behind_a_nonce(designed: DesignedStudy, material: Material) -> None:
    study, _ = opened(designed)
    assert study.commitment == hashlib.sha256(designed.key.read_bytes()).hexdigest() == designed.commitment
    assert len(json.loads(designed.key.read_text())["nonce"]) == 64
    assert designed.key.stat().st_mode & 0o077 == 0
    assert designed.links.stat().st_mode & 0o077 == 0


def spoil_key(designed: DesignedStudy) -> None:
    designed.key.write_text(designed.key.read_text().replace('"case": 1,', '"case": 2,', 1))


def spoil_plan(designed: DesignedStudy) -> None:
    file = designed.study / "study.json"
    file.write_text(file.read_text().replace('"margin": 0.5', '"margin": 0.9'))


def spoil_image(designed: DesignedStudy) -> None:
    file = sorted((designed.study / "images").iterdir())[0]
    picture = np.array(Image.open(file))
    picture[0, 0] ^= 1
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", compress_level=0)
    file.write_bytes(content.getvalue())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_key, "another study's key, or it was changed"),
        (spoil_plan, r"study\.json: was changed after it was sealed"),
        (spoil_image, r"\.png: missing or changed after it was sealed"),
    ],
)
def test_any_change_after_sealing_is_found(designed: DesignedStudy, spoil: Any, message: str) -> None:
    spoil(designed)
    with pytest.raises(InputError, match=message):
        open_key(designed.key, load_study(designed.study))


def test_a_seed_draws_the_same_cases_but_no_name_or_order_follows_from_it(material: Material, tmp_path: Path) -> None:
    def study(name: str, seed: int | None) -> tuple[Study, set[str], set[str]]:
        made = write_study(tmp_path / name, material.datalist, material.generated, SMALL, seed=seed)
        study, key = opened(made)
        return study, {str(image.origin["id"]) for image in key.images.values()}, set(key.images)

    (first, cases, names), (second, same_cases, other_names), (_, other_cases, _) = (
        study(name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 3))
    )
    assert cases == same_cases != other_cases
    assert not names & other_names
    assert first.content["id"] != second.content["id"]
    assert first.rehearsal
    assert not study("d", None)[0].rehearsal


def test_arms_that_a_program_tells_apart_are_refused_unless_that_is_accepted(
    material: Material, tmp_path: Path
) -> None:
    settings = replace(SMALL, accepted_cues=())
    with pytest.raises(InputError, match=r"blinding: .*--accept-cues") as error:
        write_study(tmp_path / "study", material.datalist, material.generated, settings)
    assert not list(tmp_path.iterdir())
    families = str(error.value).split("--accept-cues ")[1].split()
    made = write_study(tmp_path / "s", material.datalist, material.generated, replace(settings, accepted_cues=families))
    _, key = opened(made)
    assert key.blinding is not None
    assert key.blinding["accepted"] == families
    assert {line["family"] for line in key.blinding["lines"] if line["telling"]} == set(families)
    assert key.blinding["cases"] == CASES  # more than the study shows: all that could have been drawn
    assert "telling" not in (made.study / "study.json").read_text()  # the server learns nothing of it


def test_answers_start_with_a_key_that_only_the_seal_keeps(designed: DesignedStudy) -> None:
    study, key = opened(designed)
    assert key.answers_key is not None
    assert study.answers_file.stat().st_mode & 0o077 == 0
    store = AnswerStore(study.answers_file, study.content["id"], create=False)
    store.save("R1", "x", {"comment": ""}, "s")
    assert store.verify(key.answers_key).keyed
    assert key.answers_key not in study.answers_file.read_bytes()


def as_in_earlier_releases(designed: DesignedStudy) -> None:
    """Take from a study what earlier releases did not write, and seal it anew."""
    file = designed.study / "study.json"
    content = {name: value for name, value in json.loads(file.read_text()).items() if name not in NEW_FIELDS}
    key = {name: value for name, value in json.loads(designed.key.read_text()).items() if name not in NEW_FIELDS}
    designed.key.write_text(json.dumps(key | {"study_sha256": digest_of_study(content)}))
    file.write_text(json.dumps(content | {"commitment": {"sha256": commitment(designed.key.read_bytes())}}))
    (designed.study / "answers.sqlite3").unlink()


NEW_FIELDS = ("rehearsal", "keyed_answers", "chain", "blinding", "answers_key")


def test_studies_of_earlier_releases_still_open(designed: DesignedStudy) -> None:
    as_in_earlier_releases(designed)
    study, key = opened(designed)
    assert (study.rehearsal, study.keyed_answers, key.blinding, key.answers_key) == (False, False, None, None)
    store = AnswerStore(study.answers_file, study.content["id"])  # the server makes it
    store.save("R1", "x", {"comment": ""}, "s")
    chain = store.verify(key.answers_key)
    assert (chain.rows, chain.keyed) == (1, False)
    assert "anew" in chain_sentence(chain)


def test_images_without_a_source_are_matched_by_prompt(material: Material, tmp_path: Path) -> None:
    items = json.loads(material.datalist.read_text())["test"]
    folder = write_generated(tmp_path / "by_prompt", items, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    for image in manifest["images"]:
        image["source_id"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    made = write_study(tmp_path / "study", material.datalist, [folder], SMALL)
    _, key = opened(made)
    prompts: dict[int, set[str]] = {}
    for image in key.images.values():
        prompts.setdefault(image.case, set()).add(image.origin["prompt"])
    assert all(len(found) == 1 for found in prompts.values())
    used = [image.origin["id"] for image in key.images.values() if image.arm != "real" and not image.repeat_of]
    assert len(set(used)) == len(used)


def test_cases_are_different_patients_as_far_as_possible(material: Material, tmp_path: Path) -> None:
    content = json.loads(material.datalist.read_text())
    for number, item in enumerate(content["test"]):
        item["patient_id"] = f"P{number // 2}"
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps(content))
    made = write_study(tmp_path / "study", datalist, material.generated, replace(SMALL, cases=5, practice=2))
    _, key = opened(made)
    patients = {int(image.origin["id"].split("-")[1]) // 2 for image in key.images.values()}
    assert len(patients) == 7


def test_phantoms_are_said_to_be_phantoms(material: Material, tmp_path: Path) -> None:
    content = json.loads(material.datalist.read_text())
    for item in content["test"]:
        item["synthetic"] = True
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps(content))
    made = write_study(tmp_path / "study", datalist, material.generated, SMALL)
    assert load_study(made.study).content["phantoms"] is True


def test_names_and_splits_as_they_are_typed(material: Material, tmp_path: Path) -> None:
    words = ["--real", str(material.datalist), "--generated", *map(str, material.generated), "--readers", "Ann, Bo"]
    words += ["--cases", "2", "--repeats", "0", "--practice", "0", "--output", str(tmp_path / "study")]
    words += ["--accept-cues", "edge", "spectrum", "histogram", "file"]
    main(["design", *words])
    assert load_study(tmp_path / "study").readers == ["Ann", "Bo"]
    once = real_items(datalist=material.datalist, split="test")
    assert len(real_items(datalist=material.datalist, split=["test", "test"])) == len(once)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(SMALL, cases=20), "only 14 real images have a generated one of every set"),
        (replace(SMALL, cases=1), "cases: a whole number of 2 or above"),
        (replace(SMALL, repeats=10), "at most half of the 18 images"),
        (replace(SMALL, readers=("A", "A")), "readers: different names"),
        (replace(SMALL, plan=Plan(margin=0)), "plan: margin 0"),
        (replace(SMALL, plan=Plan(primary="beauty")), "there is no item 'beauty'"),
    ],
)
def test_settings_that_make_no_sense(material: Material, tmp_path: Path, settings: Settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_study(tmp_path / "study", material.datalist, material.generated, settings)
    assert not list(tmp_path.iterdir())


def test_sets_that_would_tell_themselves_apart_are_refused(material: Material, tmp_path: Path) -> None:
    items = json.loads(material.datalist.read_text())["test"]
    other = write_generated(tmp_path / "window", items, 3, window_hu=[-1000, 300])
    with pytest.raises(InputError, match="different windows"):
        write_study(tmp_path / "study", material.datalist, [material.generated[0], other], SMALL)
    mixed = write_generated(tmp_path / "scales", items, 3)
    manifest = json.loads((mixed / "manifest.json").read_text())
    manifest["images"][0]["guidance_scale"] = 9.0
    (mixed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="guidance scales 3, 9"):
        write_study(tmp_path / "study", material.datalist, [mixed], SMALL)
    large = write_generated(tmp_path / "large", items, 3)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(large / "real-0.png")
    with pytest.raises(InputError, match="one size is needed"):
        write_study(tmp_path / "study", material.datalist, [large], replace(SMALL, cases=12), seed=0)
    assert not (tmp_path / "study").exists()


def test_a_key_is_never_served_nor_replaced(material: Material, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies in the study's folder"):
        write_study(tmp_path / "s", material.datalist, material.generated, SMALL, key=tmp_path / "s" / "key.json")
    (tmp_path / "s.key.json").write_text("precious")
    with pytest.raises(InputError, match="a key is never replaced"):
        write_study(tmp_path / "s", material.datalist, material.generated, SMALL)
    assert (tmp_path / "s.key.json").read_text() == "precious"


def test_repeats_keep_their_distance_whatever_the_draw() -> None:
    images = {f"i{n}": Sealed("real", n, None, False, "", {}) for n in range(60)}
    images |= {f"r{n}": Sealed("real", n, f"i{n}", False, "", {}) for n in range(30)}
    for seed in range(50):
        order = draw_order(images, random.Random(seed))["images"]
        assert len(set(order)) == 90
        assert min(order.index(f"r{n}") - order.index(f"i{n}") for n in range(30)) >= 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a reader study of this release"),
        ({"plan": None}, "is damaged"),
        ({"readers": {"R1": {"images": []}}}, r"is damaged \(KeyError\('practice'\)\)"),
        ({"readers": {"R1": {"practice": ["gone"], "images": []}}}, "there is no image"),
    ],
)
def test_a_damaged_study_is_named(designed: DesignedStudy, change: dict[str, Any], message: str) -> None:
    file = designed.study / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_study(designed.study)


def test_a_study_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the folder that design wrote"):
        load_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        load_study(tmp_path)
