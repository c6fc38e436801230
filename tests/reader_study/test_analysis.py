from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from scipy.stats import t as student
from study_material import SMALL, Material
from warm import run_python

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study import fonts
from nodule_plugin.reader_study.analysis import analyse, ordinal_lines
from nodule_plugin.reader_study.answers import AnswerStore, Row
from nodule_plugin.reader_study.answers_table import build_table
from nodule_plugin.reader_study.design import DesignedStudy
from nodule_plugin.reader_study.page import _number, draw_figures, write_analysis
from nodule_plugin.reader_study.planning import pilot_components
from nodule_plugin.reader_study.questions import ITEMS
from nodule_plugin.reader_study.seal import Key, Sealed, open_key
from nodule_plugin.reader_study.simulation import Truth, simulate_scores
from nodule_plugin.reader_study.study import Plan, load_study
from nodule_plugin.reader_study.words import blinding_sentence, conclusion

ARMS = ("real", "good", "bad")
READERS = [f"R{number}" for number in range(1, 7)]
CASES = 16
TRUTH = Truth(view=0.1, image=0.2, noise=0.5)


def simulated(shifts: tuple[float, ...] = (0.0, 0.0, -1.2), seed: int = 0) -> tuple[pd.DataFrame, Key]:
    """Answers of six readers: the good model is like real, the bad one is less realistic and found out."""
    rng = np.random.default_rng(seed)
    scores = {
        item: simulate_scores(TRUTH, shifts if item == "realism" else (0,) * 3, len(READERS), CASES, rng)
        for item in ITEMS
    }
    images = {f"{a}-{c}": Sealed(arm, c, None, False, "", {}) for a, arm in enumerate(ARMS) for c in range(CASES)}
    images |= {f"again-{a}-0": Sealed(arm, 0, f"{a}-0", False, "", {}) for a, arm in enumerate(ARMS)}
    lines = []
    for r, reader in enumerate(READERS):
        for name, image in images.items():
            arm = ARMS.index(image.arm)
            line: dict[str, Any] = {"reader": reader, "image": name, "case": image.case, "arm": image.arm}
            line |= {item: float(scores[item][arm, r, image.case]) for item in ITEMS}
            suspicion = float(np.clip(round(rng.normal(3 if arm == 2 else 0, 2)), -5, 5) or 1)
            line |= {"repeat_of": image.repeat_of, "origin": "generated" if suspicion > 0 else "real"}
            line |= {"confidence": abs(suspicion), "suspicion": suspicion, "comment": "", "revisions": 1}
            lines.append(line | {"seconds": 20.0 + r, "visible_seconds": 15.0})
    return pd.DataFrame(lines), Key(ARMS, images)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    answers, key = simulated()
    return analyse(answers, key, Plan(), READERS, draws=50)


def find(lines: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (line,) = [line for line in lines if all(line[name] == value for name, value in wanted.items())]
    return line


def test_the_truth_is_recovered(results: dict[str, Any]) -> None:
    good, bad = (find(results["comparisons"], item="realism", model=model) for model in ("good", "bad"))
    expected = TRUTH.expected_score(-1.2) - TRUTH.expected_score(0)
    assert good["equivalent"] is True
    assert good["p_difference"] > 0.05
    assert abs(good["difference"]) < 0.35
    assert bad["equivalent"] is False
    assert bad["p_difference_holm"] < 0.001
    assert bad["difference"] == pytest.approx(expected, abs=0.3)
    assert bad["delta_low"] < bad["delta"] < bad["delta_high"] < 0
    assert good["delta_low"] < 0 < good["delta_high"]
    reach = (
        student.ppf(1 - Plan().alpha, good["df"]) * good["standard_error"]
    )  # of level 1 - 2 alpha, as of equivalence
    assert (good["low"], good["high"]) == pytest.approx((good["difference"] - reach, good["difference"] + reach))


def test_recognition_is_recovered(results: dict[str, Any]) -> None:
    good, bad = (find(results["recognition"], model=model) for model in ("good", "bad"))
    assert good["low"] < 0.5 < good["high"]
    assert good["indistinguishable"] is True
    assert bad["low"] > 0.7
    assert bad["indistinguishable"] is False
    assert set(bad["by_reader"]) == set(READERS)
    assert bad["generated_called_generated"] > 0.85  # suspicion of 3 on average, with a deviation of 2
    assert bad["real_called_real"] == good["real_called_real"] < 0.5  # of 0, and a 0 counts as 1
    assert find(results["recognition"], model="all models")["auc"] == pytest.approx((good["auc"] + bad["auc"]) / 2)


def test_ordinal_model_sees_the_same(results: dict[str, Any]) -> None:
    good, bad = (find(results["ordinal"], item="realism", model=model) for model in ("good", "bad"))
    assert good["low"] < 1 < good["high"]
    assert bad["high"] < 0.5
    assert bad["p_holm"] < 0.001
    assert bad["n"] == len(READERS) * 3 * CASES


def test_scores_are_the_papers_table(results: dict[str, Any]) -> None:
    answers, _ = simulated()
    first = answers[answers["repeat_of"].isna()]
    own, real = (first[first["arm"] == arm].set_index("case")["realism"] for arm in ("bad", "real"))
    line = find(results["scores"], item="realism", arm="bad")
    assert (line["n"], line["mean"], line["sd"]) == (
        len(READERS) * CASES,
        pytest.approx(own.mean()),
        pytest.approx(own.std()),
    )
    assert line["method"] == "tie-corrected"
    assert line["p"] < 1e-6
    assert (line["u"], line["p"]) == pytest.approx(tuple(mannwhitneyu(own, real)))
    means = [scores.groupby("case").mean() for scores in (own, real)]
    assert line["p_image_means"] == pytest.approx(mannwhitneyu(*means).pvalue)
    assert find(results["scores"], item="realism", arm="real")["p"] is None


def test_agreement_and_repeats(results: dict[str, Any]) -> None:
    line = find(results["agreement"], question="malignancy")
    assert line["alpha_low"] < line["alpha"] < line["alpha_high"]
    assert (line["readers"], line["images"]) == (6, 3 * CASES)
    again = find(results["repeats"], reader="R1", question="realism")
    assert (again["pairs"], again["identical"]) == (3, 1.0)  # the same score: drawn once for both showings


def test_conclusion_says_what_the_numbers_allow(results: dict[str, Any]) -> None:
    sentences = conclusion(results, Plan(), phantoms=False)
    assert any(re.match(r"Realism, good against real images: .*: equivalent", sentence) for sentence in sentences)
    assert any(re.match(r"Realism, bad against real images: .*: different", sentence) for sentence in sentences)
    assert any(sentence.startswith("Telling bad from real") and "can tell" in sentence for sentence in sentences)
    rehearsal = conclusion(results, Plan(), phantoms=True)
    assert rehearsal[0].startswith("Phantoms (synthetic CT) stand in for real images")
    assert not any("real" in sentence.lower().replace("realism", "") for sentence in rehearsal[1:])


def test_missing_answers_are_counted_and_handled() -> None:
    answers, key = simulated()
    stopped = (answers["reader"] == "R1") & (answers["case"] >= CASES // 2)
    answers = answers[~stopped].copy()
    answers.loc[(answers["reader"] == "R2") & (answers["image"] == "1-3"), "realism"] = np.nan
    answers.loc[(answers["reader"] == "R3") & (answers["image"] == "1-3"), "revisions"] = 2
    results = analyse(answers, key, Plan(), [*READERS, "R9"], draws=10)
    first = find(results["readers"], reader="R1")
    assert (first["answered"], first["missing"]) == (3 * CASES // 2 + 3, 3 * CASES // 2)
    assert find(results["readers"], reader="R2")["cannot_judge"] == 1
    assert [find(results["readers"], reader=reader)["changed"] for reader in ("R2", "R3")] == [0, 1]
    assert find(results["readers"], reader="R9")["answered"] == 0
    line = find(results["comparisons"], item="realism", model="good")
    assert (line["readers"], line["cases"]) == (5, CASES - 1)
    assert find(results["comparisons"], item="realism", model="bad")["cases"] == CASES
    assert find(results["ordinal"], item="realism", model="good")["n"] == len(READERS) * 3 * CASES - 3 * CASES // 2 - 1


def test_one_reader_gives_reasons_instead_of_numbers() -> None:
    answers, key = simulated()
    results = analyse(answers[answers["reader"] == "R1"], key, Plan(), ["R1"], draws=10)
    for line in (*results["comparisons"], *results["ordinal"], *results["agreement"]):
        assert line["reason"], line
    assert find(results["comparisons"], item="realism", model="good")["difference"] is None
    assert find(results["recognition"], model="good")["reason"].startswith("one reader")


def test_readers_who_all_give_one_score() -> None:
    answers, key = simulated()
    answers["margin"] = 3.0
    results = analyse(answers, key, Plan(), READERS, draws=10)
    line = find(results["comparisons"], item="margin", model="good")
    assert (line["difference"], line["equivalent"], line["p_difference"]) == (0, True, 1)
    assert find(results["agreement"], question="margin")["reason"] == "all answers are the same"
    assert find(results["ordinal"], item="margin", model="good")["reason"]
    json.dumps(results, allow_nan=False)


def fill(designed: DesignedStudy, readers: int = 3) -> Key:
    """Answers through the store: generated images look less real."""
    study = load_study(designed.study)
    key = open_key(designed.key, study)
    store = AnswerStore(study.answers_file, study.content["id"])
    rng = np.random.default_rng(0)
    for reader in study.readers[:readers]:
        for step in study.sequences[reader]:
            made = key.images[step.image].arm != "real"
            answer = {item: int(rng.integers(2, 5)) for item in ITEMS}
            answer |= {"realism": int(rng.integers(1, 4) if made else rng.integers(3, 6)), "confidence": 3}
            answer |= {"origin": "generated" if rng.random() < (0.8 if made else 0.2) else "real", "comment": "=1+1"}
            store.note_view(reader, step.image)
            store.save(reader, step.image, answer, step.image)
    return key


def test_from_the_database_to_the_report(designed: DesignedStudy, tmp_path: Path) -> None:
    fill(designed)
    command = [sys.executable, "-m", "nodule_plugin.reader_study", "analyse", str(designed.study)]
    command += ["--key", str(designed.key), "--output", str(tmp_path / "out"), "--bootstrap", "20"]
    run = run_python(command, tmp_path)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["cases"] == SMALL.cases
    assert results["hidden_repeats"] == SMALL.repeats
    assert results["answer_rows"] == 3 * (SMALL.cases * 3 + SMALL.repeats + SMALL.practice)
    assert find(results["comparisons"], item="realism", model="model-one")["difference"] < -0.5
    assert designed.commitment in results["methods"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert page.count("data:image/png") == 4
    assert "<h2>Blinding</h2>" in page
    assert "checked with the sealed key" in page
    assert (tmp_path / "out" / "answers.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    answers = pd.read_csv(tmp_path / "out" / "answers.csv")
    assert set(answers["comment"]) == {"'=1+1"}
    assert len(answers) == 3 * (SMALL.cases * 3 + SMALL.repeats)
    table = pd.read_csv(tmp_path / "out" / "comparisons.csv")
    assert table["difference"].notna().all()
    pilot = pilot_components(tmp_path / "out" / "results.json", "realism", "model-two")
    assert pilot.error == pytest.approx(table.loc[1, "var_error"])


def test_the_last_revision_counts_and_practice_does_not(designed: DesignedStudy) -> None:
    key = fill(designed, readers=1)
    study = load_study(designed.study)
    store = AnswerStore(study.answers_file, study.content["id"])
    practice, counted = study.sequences["R1"][0].image, study.sequences["R1"][-1].image
    before = store.of_reader("R1")[counted][0].answer
    store.save("R1", counted, before | {"texture": None}, "changed", on_revision=1)
    table = build_table(store.rows(), key).set_index("image")
    assert practice not in table.index
    assert np.isnan(table.loc[counted, "texture"])
    assert table.loc[counted, "revisions"] == 2
    assert 0 <= table.loc[counted, "seconds"] < 60


def test_what_cannot_be_analysed_is_named(designed: DesignedStudy, material: Material, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no answer that counts"):
        write_analysis(designed.study, designed.key, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fill(designed, readers=1)
    with pytest.raises(InputError, match="link: 9-0 is not in"):
        write_analysis(designed.study, designed.key, tmp_path / "out", links=["9-0"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_analysis(designed.study, designed.key, tmp_path / "file", draws=5)
    with pytest.raises(InputError, match="bootstrap: a whole number of 1 or above is needed, not 0"):
        write_analysis(designed.study, designed.key, tmp_path / "out", draws=0)
    before = set(designed.study.rglob("*"))
    for output in (designed.study, designed.study / "report"):
        with pytest.raises(InputError, match="lies in the study's folder, which is served"):
            write_analysis(designed.study, designed.key, output, draws=5)
    assert set(designed.study.rglob("*")) == before


def test_answers_too_few_for_an_odds_ratio() -> None:
    """Three that an arm's name tells apart: the odds ratio's interval goes beyond floating point."""
    scores = {item: [3.0, 4.0, 1.0] for item in ITEMS}
    answers = pd.DataFrame({"reader": list("AAB"), "case": [6, 6, 6], "arm": ["real", "m", "real"], **scores})
    line = ordinal_lines(answers, ["m"])[0]
    assert (line["odds_ratio"], line["p"]) == (None, None)
    assert line["reason"] == "the model did not converge"


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (1.2345, "1.23"), (4.17e30, "4.17e+30")])
def test_numbers_stay_as_short_as_a_column(value: float | None, text: str) -> None:
    assert _number(value) == text


def test_characters_without_a_font_are_told(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts, "findSystemFonts", list)
    renamed = json.loads(json.dumps(results).replace('"R1"', '"山田"'))
    figures, missing = draw_figures(renamed | {"arms": list(ARMS), "reference": "real"}, Plan())
    assert missing == "山田"
    assert "no installed font has 山田" in caplog.text
    assert all(figure.startswith(b"\x89PNG") for figure in figures.values())


@pytest.mark.parametrize(
    ("shown", "answered", "visible_ms", "seconds"),
    [
        ("10:00:00", "10:00:30", 29500, 30),
        ("10:00:00", "09:00:30", 29500, None),  # set back by an hour while the page was open
        ("10:00:00", "10:00:10", 29500, None),  # by 20 seconds
        ("10:00:00", "09:59:59", None, None),  # without a script
        (None, "10:00:30", 29500, None),
    ],
)
def test_a_clock_set_back_does_not_enter_reading_times(
    shown: str | None, answered: str, visible_ms: int | None, seconds: float | None
) -> None:
    times = [None if time is None else f"2026-01-01T{time}.000+00:00" for time in (shown, answered)]
    answer = dict.fromkeys(ITEMS, 3) | {"origin": "real", "confidence": 2, "comment": ""}
    key = Key(ARMS, {"a": Sealed("real", 1, None, False, "", {})})
    table = build_table([Row(1, "R1", "a", 1, "s", answer, times[0], str(times[1]), visible_ms)], key)
    line = analyse(table, key, Plan(), ["R1"], draws=2)["readers"][0]
    assert (line["median_seconds"], line["untimed"]) == (seconds, int(seconds is None))


def test_the_report_says_what_told_the_arms_apart(results: dict[str, Any]) -> None:
    telling = {"model": "bad", "family": "edge", "cue": "step", "area": 0.97, "low": 0.9, "high": 1.0, "telling": True}
    blinding = {"cases": 40, "limit": 0.6, "chance": 0.69, "accepted": ["edge"]}
    for lines, said in (([telling], "bad by its edge (step: area 0.97;"), ([telling | {"telling": False}], "No cue")):
        measured = results | {"blinding": blinding | {"lines": lines}}
        assert said in blinding_sentence(measured["blinding"])
        assert any(said in sentence for sentence in conclusion(measured, Plan(), False)) == (said != "No cue")
    assert "was not measured" in conclusion(results, Plan(), False)[0]
    assert conclusion(results, Plan(), False, rehearsal=True)[0].startswith("Rehearsal: ")
