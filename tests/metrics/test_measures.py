from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import sem

from nodule_plugin.data.image_set import GENERATED, REAL, TRAINING, ImageRecord, ImageSet, SetKey
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.alignment import AlignmentMeasure, CLIPScorer
from nodule_plugin.metrics.distances import Distances
from nodule_plugin.metrics.features import InceptionFeatures, OpenCLIPImageFeatures
from nodule_plugin.metrics.frechet import extrapolate_frechet_distance, frechet_distance
from nodule_plugin.metrics.intervals import Rate, mean_error
from nodule_plugin.metrics.kernel import kernel_distance
from nodule_plugin.metrics.measures import BACKBONES, PUBLISHED, STAND_IN, Value, columns
from nodule_plugin.metrics.pair_measures import DiversityMeasure, PairDistanceMeasure, _some_pairs
from nodule_plugin.metrics.radiomics import RadiomicFeatures
from nodule_plugin.metrics.results_table import FLOOR, WRONG_PROMPTS, measure_rows, real_halves

PROMPTS = ("round", "oval", "round", "linear")


class PixelDistance:
    """Mean absolute difference, as a distance whose value is known."""

    name = "pixels"
    unavailable = None

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second).abs().mean((1, 2, 3))


def _set(kind: str, greys: list[int], sources: list[str | None] | None = None, size: int = 8) -> ImageSet:
    """Images of one grey each; two images a patient."""
    records = [
        ImageRecord(f"{kind}{i}", PROMPTS[i % 4], sources[i] if sources else None, f"patient {i // 2}")
        for i in range(len(greys))
    ]
    images = [torch.full((3, size, size), grey, dtype=torch.uint8) for grey in greys]
    features = torch.randn(len(greys), 4, generator=torch.Generator().manual_seed(len(kind)))
    return ImageSet(SetKey(kind, kind, 5.0 if kind == GENERATED else None), records, images, {"inception:w": features})


@pytest.fixture
def inception(tmp_path: Path) -> InceptionFeatures:
    features = InceptionFeatures()
    features.weights = "w"
    return features


def test_distances_are_those_of_the_features_with_error_and_interval(inception: InceptionFeatures) -> None:
    real, fake = _set(REAL, list(range(40))), _set(GENERATED, list(range(30)))
    fake.features["inception:w"] += 1.0
    features = [images.features["inception:w"] for images in (real, fake)]
    measures = Distances(subsets=10)(inception, "fid", "fid_infinity", "kid", "cmmd")
    assert [measure.name for measure in measures] == ["FID", "FID∞", "KID", "CMMD"]
    assert {measure.describe()["better"] for measure in measures} == {"lower"}
    frechet, infinite, kernel, cmmd = (measure.measure(fake, real) for measure in measures)
    assert frechet.value == frechet_distance(*features)
    assert kernel.value == kernel_distance(*features, subsets=10).mean
    written = frechet.to_dict()
    low, high = written["ci95"]
    assert (low + high) / 2 == pytest.approx(frechet.value)
    assert high - low == pytest.approx(2 * 1.96 * frechet.standard_error, rel=1e-3)
    assert written["real_count"] == 40
    assert infinite.value is not None
    assert infinite.value == extrapolate_frechet_distance(*features).value
    low, high = infinite.to_dict()["ci95"]
    assert low < infinite.value < high
    assert cmmd.value is not None
    assert cmmd.standard_error is not None


def test_intervals_stay_within_bounds() -> None:
    assert Value(0.1, 0.2, bounds=(0.0, 1.0)).to_dict()["ci95"] == [0.0, pytest.approx(0.492, abs=1e-3)]


def test_errors_and_rates_of_hardly_any_images() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert (mean_error(values), mean_error(values[:1])) == (pytest.approx(sem(values)), None)
    assert np.isnan(Rate(0, 0).fraction)
    assert Rate(0, 0).to_dict()["ci95"] == [0.0, 1.0]  # nothing is known


def test_every_network_has_columns_that_bear_its_name(clip_folder: Path) -> None:
    networks = [OpenCLIPImageFeatures(clip_folder, name=name) for name in ("one", "other")]
    found = columns({BACKBONES: [Distances().on_each(networks, "fd", "kd", suffix="net")]})
    assert [column.name for column in found] == ["FD (one)", "KD (one)", "FD (other)", "KD (other)"]
    assert [column.key for column in found] == ["fd_net1", "kd_net1", "fd_net2", "kd_net2"]
    assert {column.group for column in found} == {BACKBONES}


def test_a_column_stands_in_the_table_that_lists_it(clip_folder: Path) -> None:
    network, distance = OpenCLIPImageFeatures(clip_folder, name="one"), PixelDistance()
    tables = {
        PUBLISHED: [PairDistanceMeasure("lpips", "LPIPS", distance)],
        STAND_IN: [Distances()(network, "fd"), DiversityMeasure("d", "D", distance)],
    }
    described = [measure.describe() for measure in columns(tables)]
    assert [(one["key"], one["group"], one["standard"]) for one in described] == [
        *[("lpips", PUBLISHED, True), ("fd", STAND_IN, False), ("d", STAND_IN, False)]
    ]
    with pytest.raises(InputError, match="two have the key fd"):
        columns({PUBLISHED: [Distances()(network, "fd")], STAND_IN: [Distances()(network, "fd")]})


def test_a_number_carries_how_its_images_were_made_and_what_the_network_does_with_them() -> None:
    distances = [Distances()(InceptionFeatures(), "fid"), AlignmentMeasure("clip_score", "CLIPScore", CLIPScorer())]
    fid, score = (measure.describe()["convention"] for measure in columns({PUBLISHED: distances}, {"bits": 8}))
    assert fid == {"bits": 8, "input_size": 299, "resampling": "bilinear, as TensorFlow 1", "layer": "pooled, 2048"}
    assert (score["bits"], score["layer"]) == (8, "image embedding")


def test_a_metrics_name_belongs_to_its_network(clip_folder: Path) -> None:
    network = OpenCLIPImageFeatures(clip_folder, name="one")
    with pytest.raises(InputError, match="kid is of Inception's features, not of one; take fd or kd"):
        Distances()(network, "kid")
    with pytest.raises(InputError, match="there is no 'fdd'; choose among fid, fd"):
        Distances()(network, "fdd")


def test_radiomic_features_are_measured_in_units_of_their_real_spread() -> None:
    extractor = RadiomicFeatures()
    rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = rows / 2 + torch.tensor([0.0, 2.0])

    def features(values: torch.Tensor, unit: float = 1.0) -> torch.Tensor:
        """With a third feature that is the same in all images."""
        return torch.nn.functional.pad(values * torch.tensor([1.0, unit]), (0, 1)) + 5

    real, fake = (_set(kind, [0] * 60) for kind in (REAL, GENERATED))
    real.features, fake.features = ({extractor.id: features(values, 1000.0)} for values in (rows, moved))
    value, found = (measure.measure(fake, real) for measure in Distances()(extractor, "frd", "krd"))
    # Unit variances, and a quarter of these: (1 - 1/2)^2 in each of two features, and the means.
    means = (moved.mean(0) - rows.mean(0)) / rows.std(0)
    assert value.value == pytest.approx(float(means.square().sum()) + 2 * 0.25)
    reference, other = ((values - rows.mean(0)) / rows.std(0) for values in (rows, moved))
    padded = (torch.nn.functional.pad(values, (0, 1)).numpy() for values in (reference, other))
    assert found.value == pytest.approx(kernel_distance(*padded).mean)
    assert found.standard_error is not None


def test_what_cannot_be_computed_says_why(inception: InceptionFeatures) -> None:
    one, many = _set(REAL, [1]), _set(GENERATED, [1, 2, 3])
    fid, infinite = Distances()(inception, "fid", "fid_infinity")
    assert (fid.measure(many, one).value, fid.measure(many, one).reason) == (None, "1 real image, 2 needed")
    assert fid.measure(one, many).reason == "1 real image, 2 needed"
    assert fid.measure(many, many).reason == "compared with itself"
    assert infinite.measure(many, _set(REAL, [1] * 9)).reason == "3 images, 10 needed (twice the 4 features)"
    assert Distances()(InceptionFeatures(), "fid")[0].measure(many, one).reason == "no weights given"
    unprompted = ImageSet(many.key, [ImageRecord("a")], many.images[:1])
    scorer = CLIPScorer("model")
    assert AlignmentMeasure("clip", "CLIPScore", scorer).measure(unprompted, one).reason == "images without prompts"
    assert DiversityMeasure("d", "d", PixelDistance()).measure(_set(REAL, [1, 2]), one).reason is not None


def test_pair_distance_compares_with_the_source_then_with_the_prompt() -> None:
    real = _set(REAL, [0, 51, 102, 153])
    measure = PairDistanceMeasure("lpips", "LPIPS", PixelDistance())
    from_source = measure.measure(_set(GENERATED, [51, 51], ["real1", "real0"]), real)
    assert from_source.value == pytest.approx((0 + 0.4) / 2, rel=1e-5)
    assert from_source.details == {"pairs": "source"}
    # "round" is the prompt of real images 0 and 2, at distance 0.4 and 0.4.
    from_prompt = measure.measure(_set(GENERATED, [51]), real)
    assert (from_prompt.value, from_prompt.count) == (pytest.approx(0.4, rel=1e-5), 1)
    assert from_prompt.details == {"pairs": "prompt"}


def test_pair_distance_under_shuffled_prompts_is_a_ceiling() -> None:
    # "round" is dark and "oval" is bright: images of one prompt are near each other.
    real = _set(REAL, [0, 204, 51, 255] * 3)
    real.records = [replace(record, prompt=("round", "oval")[i % 2]) for i, record in enumerate(real.records)]
    measure = PairDistanceMeasure("lpips", "LPIPS", PixelDistance())
    values = {row.key: row.values["lpips"] for row in measure_rows([_set(GENERATED, [0, 255]), real], [measure])}
    assert values[real.key].reason == "compared with itself"
    floor, ceiling = values[FLOOR].value, values[WRONG_PROMPTS].value
    assert floor is not None
    assert ceiling is not None
    assert floor <= 0.4 + 1e-6 < 1.2 - 1e-6 <= ceiling


def test_pair_distance_brings_images_to_one_size() -> None:
    real = _set(REAL, [102, 102], size=16)
    measure = PairDistanceMeasure("lpips", "LPIPS", PixelDistance())
    assert measure.measure(_set(GENERATED, [51]), real).value == pytest.approx(0.4, rel=1e-5)


def test_diversity_is_within_a_prompt() -> None:
    # Images 0 and 2 share "round", nothing else is shared.
    value = DiversityMeasure("d", "d", PixelDistance()).measure(_set(REAL, [0, 255, 51, 255]), _set(REAL, [0]))
    assert value.value == pytest.approx(0.4, rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 10, 2000])
def test_pairs_of_a_prompt_are_different_and_each_may_come(count: int) -> None:
    pairs = _some_pairs(range(100, 100 + count), 50, np.random.default_rng(0))
    assert len(pairs) == len(set(pairs)) == min(50, count * (count - 1) // 2)
    assert all(100 <= first < second < 100 + count for first, second in pairs)
    assert _some_pairs([7], 50, np.random.default_rng(0)) == []


def test_alignment_stands_beside_shuffled_prompts(clip_folder: Path) -> None:
    scorer = CLIPScorer(clip_folder)
    images = _set(REAL, [10, 80, 150, 220])
    embeddings = scorer.clip.encode_texts([record.prompt or "" for record in images.records])
    images.features = {scorer.clip.id: embeddings}
    value = AlignmentMeasure("clip", "CLIPScore", scorer).measure(images, images)
    assert value.value == pytest.approx(2.5, abs=1e-4)
    assert value.details["shuffled"] < 2.5
    assert value.details["above_shuffled"] == pytest.approx(2.5 - value.details["shuffled"], abs=1e-4)


def test_the_words_before_a_prompt_are_stated(clip_folder: Path) -> None:
    plain, prefixed = (CLIPScorer(clip_folder, prefix=prefix) for prefix in ("", "A photo depicts "))
    names = [AlignmentMeasure("clip", "CLIPScore", scorer).network for scorer in (plain, prefixed)]
    assert names == [
        f"{clip_folder.name}, prompts as they are",
        f"{clip_folder.name}, prompts after 'A photo depicts '",
    ]


def test_features_of_one_model_are_computed_once(clip_folder: Path) -> None:
    (distance,) = Distances()(OpenCLIPImageFeatures(clip_folder), "fd")
    score = AlignmentMeasure("clip", "CLIPScore", CLIPScorer(clip_folder))
    assert [encoder.id for encoder in distance.encoders(REAL)] == [encoder.id for encoder in score.encoders(REAL)]
    assert distance.encoders(TRAINING) == []


def test_rows_come_in_order_with_floor_and_controls(inception: InceptionFeatures) -> None:
    real, fake = _set(REAL, list(range(20))), _set(GENERATED, list(range(12)))
    other = fake.take(range(12), SetKey(GENERATED, "generated", 1.0))
    rows = measure_rows([fake, real, other], Distances(repeats=5)(inception, "fid"))
    assert [row.key for row in rows] == [real.key, FLOOR, other.key, fake.key, WRONG_PROMPTS]
    assert rows[0].values["fid"].reason == rows[-1].values["fid"].reason == "compared with itself"
    assert all(row.values["fid"].value is not None for row in rows[1:-1])


def test_halves_share_no_patient() -> None:
    first, second = real_halves(_set(REAL, list(range(20))))
    assert len(first) == len(second) == 10
    assert not {r.patient_id for r in first.records} & {r.patient_id for r in second.records}
    assert np.isin([r.id for r in first.records], [f"real{i}" for i in range(20)]).all()
