from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from nodule_plugin.cli.tools import detect_mark
from nodule_plugin.data.evaluation_images import real_items
from nodule_plugin.data.window import unit_to_hu
from nodule_plugin.errors import InputError
from nodule_plugin.provenance.codebook import PUBLIC, MarkKey, codebook, log10_p, payload_of, read_key
from nodule_plugin.provenance.detection import THRESHOLD, detect, p_text
from nodule_plugin.provenance.embedding import MOST_HU, MOST_OF_TEXTURE, embed, most_hu
from nodule_plugin.provenance.files import detect_file, refuse_marked, warn_of_marked
from nodule_plugin.provenance.spectrum import in_all_positions, part_grids, upright, whole_grid

PAYLOAD = "fc"


def nodule(seed: int = 0, side: int = 64) -> np.ndarray:
    """(side, side) in [-1, 1]: something round and bright in textured lung."""
    draw = np.random.default_rng(seed)
    place = (np.arange(side) + 0.5) / side - 0.5
    round_one = 900 / (1 + np.exp((np.hypot(place[:, None], place) - 0.22) * 40))
    texture = 60 * gaussian_filter(draw.normal(size=(side, side)), side / 40) * side / 20
    return np.clip((-850 + round_one + texture + 300) / 700, -1, 1).astype(np.float32)


def grey(unit: np.ndarray) -> np.ndarray:
    return np.rint((unit + 1) * 127.5).astype(np.uint8)


def through_jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


@pytest.fixture(scope="module")
def marked() -> np.ndarray:
    return embed(nodule(), PAYLOAD)


@pytest.mark.parametrize(
    "use",
    [
        lambda picture: picture,
        through_jpeg,
        lambda picture: np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BICUBIC)),
        lambda picture: np.asarray(Image.fromarray(picture).resize((128, 128), Image.Resampling.BICUBIC)),
        lambda picture: np.fliplr(np.rot90(picture)),
        lambda picture: picture[9:60, 2:53],
        lambda picture: np.rot90(picture[:51, 13:], 2),
        lambda picture: 40 + picture * 0.7,
    ],
    ids=["as it is", "JPEG 75", "half", "double", "turned and flipped", "cut", "cut and turned", "another window"],
)
def test_a_mark_is_found_and_read(marked: np.ndarray, use: Callable[[np.ndarray], np.ndarray]) -> None:
    detection = detect(use(grey(marked)))
    assert detection.found
    assert detection.log10_p < THRESHOLD
    assert detection.payload == PAYLOAD


def test_the_change_is_small_and_always_the_same(marked: np.ndarray) -> None:
    change = unit_to_hu(marked) - unit_to_hu(nodule())
    assert 0 < np.sqrt(np.mean(change**2)) <= MOST_HU * 1.001
    assert np.abs(marked).max() <= 1
    np.testing.assert_array_equal(embed(nodule(), PAYLOAD), marked)


def test_a_noisy_image_may_change_by_a_fraction_of_its_noise() -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=(64, 64)).astype(np.float32)
    assert most_hu(nodule()) == MOST_HU
    assert most_hu(noise) == pytest.approx(MOST_OF_TEXTURE * 70 * np.sqrt(692 / 64**2), rel=0.1)
    change = unit_to_hu(embed(noise, PAYLOAD)) - unit_to_hu(noise)
    assert MOST_HU < np.sqrt(np.mean(change**2)) <= most_hu(noise) * 1.001


def test_a_large_image_is_marked_too() -> None:
    picture = grey(embed(nodule(side=256), "0a"))
    for use in (through_jpeg(picture), picture[30:235, 50:255]):
        detection = detect(use)
        assert detection.found
        assert detection.payload == "0a"


def test_other_keys_and_unmarked_images_show_nothing(marked: np.ndarray) -> None:
    others = [MarkKey(str(number), bytes([number]) * 16) for number in range(5)]
    looks = [detect(grey(marked), key) for key in others] + [detect(grey(nodule(seed))) for seed in range(5)]
    assert [look.found for look in looks] == [False] * 10
    secret = detect(grey(embed(nodule(1), PAYLOAD, others[0])), others[0])
    assert secret.found
    assert secret.payload == PAYLOAD


def test_images_without_content_show_nothing() -> None:
    for image in (np.zeros((64, 64)), np.ones((8, 8)), np.arange(20.0).reshape(4, 5)):
        assert detect(image).log10_p == 0


def test_p_values_hold_for_one_word(marked: np.ndarray) -> None:
    """Correlations of an image with words of random keys follow the distribution that p-values are taken from."""
    import torch
    from scipy.stats import kstest, t

    seen = upright(whole_grid(torch.tensor(nodule())))
    words = torch.cat([codebook(MarkKey("", bytes([number]) * 16)).words for number in range(4)])
    correlation = torch.cosine_similarity(words, seen, dim=-1).double().numpy()
    freedom = len(seen) - 1
    assert kstest(correlation * np.sqrt(freedom / (1 - correlation**2)), t(freedom).cdf).pvalue > 0.01
    assert log10_p(0.0, 16) == 0
    assert log10_p(0.5, 16) < log10_p(0.5, 16 * 27**2) < THRESHOLD < log10_p(0.3, 16)


def test_a_turn_of_the_image_is_a_turn_of_its_coefficients() -> None:
    import torch

    image = torch.tensor(nodule(3))
    positions = in_all_positions(whole_grid(image))
    for seen in (image.flip(0), image.flip(1), image.T, image.rot90()):
        distances = (positions - upright(whole_grid(seen))).abs().amax(-1)
        assert float(distances.min()) < 1e-2
        assert float(distances[0]) > 0.1
    whole = part_grids(image, 64, torch.tensor(0), torch.tensor(0))
    torch.testing.assert_close(upright(whole), upright(whole_grid(image)), atol=1e-3, rtol=0)


def test_keys_and_payloads(tmp_path: Path) -> None:
    assert read_key(None) is PUBLIC
    (tmp_path / "key").write_bytes(bytes(range(32)))
    key = read_key(tmp_path / "key")
    assert key.name.startswith("secret ")
    assert key.secret == bytes(range(32))
    (tmp_path / "short").write_bytes(b"12345")
    with pytest.raises(InputError, match=r"mark_key: .* holds 5 bytes; give 16 or more"):
        read_key(tmp_path / "short")
    with pytest.raises(InputError, match=r"mark_key: .*absent cannot be read"):
        read_key(tmp_path / "absent")
    assert payload_of("ab" * 32) == "ab"
    assert payload_of("owner/name") != payload_of("owner/other")
    assert [p_text(value) for value in (0.0, -0.3, -23.5, -400.25)] == ["1.00", "0.50", "3e-24", "6e-401"]


@pytest.fixture
def folder(tmp_path: Path, marked: np.ndarray) -> Path:
    """The marked image as PNG, JPEG and the middle slice of a NIfTI volume; an unmarked one."""
    Image.fromarray(grey(marked)).save(tmp_path / "a.png")
    Image.fromarray(grey(marked)).save(tmp_path / "b.jpg", quality=75)
    planes = [unit_to_hu(one) for one in (nodule(1), marked, nodule(2))]
    volume = np.rint(np.stack(planes)).astype(np.int16).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-0.5, -0.5, 1, 1])), tmp_path / "c.nii.gz")
    Image.fromarray(grey(nodule(4))).save(tmp_path / "d.png")
    return tmp_path


def test_detect_mark_reads_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.png", "b.jpg", "c.nii.gz", "d.png")
    with pytest.raises(SystemExit) as ended:
        detect_mark([*(str(folder / name) for name in names), "--json"])
    assert ended.value.code == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["marked"] for one in said] == [True, True, True, False]
    assert {one["model"] for one in said[:3]} == {PAYLOAD}
    with pytest.raises(SystemExit) as ended:
        detect_mark([str(folder / "d.png")])
    assert ended.value.code == 1
    assert "no mark found by the public key" in capsys.readouterr().out
    with pytest.raises(InputError, match="no file"):
        detect_file(folder / "absent.png")
    with pytest.raises(InputError, match=r"absent\.nii: there is no such file; give pictures, NIfTI or DICOM files"):
        detect_mark([str(folder / "absent.nii")])


def test_an_evaluation_refuses_marked_images_as_real_ones(folder: Path) -> None:
    (folder / "c.nii.gz").unlink()
    items = real_items(folder)
    with pytest.raises(InputError, match=r"real_dir: 2 of 3 images carry the mark .*a\.png.* allow_marked"):
        refuse_marked(items)
    assert refuse_marked(items, allowed=True) == items
    assert refuse_marked(items[2:]) == items[2:]


def test_a_training_warns_of_marked_images(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [{"id": f"n{index}", "image": folder / "c.nii.gz", "slice_index": index} for index in range(3)]
    items.append({"id": "gone", "image": folder / "absent.nii.gz", "slice_index": 0})
    assert warn_of_marked(items) is items
    assert "1 of 4 training images looked at carry the mark of synthetic images (n1)" in caplog.text
    caplog.clear()
    warn_of_marked(items[:1])
    warn_of_marked(items, silent=True)
    assert caplog.text == ""
