from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import write_slice
from PIL import Image
from tiny_sd import make_tiny_sd

from nodule_plugin.cli.tools import detect_mark
from nodule_plugin.data.evaluation_images import real_items
from nodule_plugin.data.generated import load_generated
from nodule_plugin.data.window import hu_to_unit, unit_to_hu
from nodule_plugin.deploy.generator import BundleGenerator
from nodule_plugin.diffusion.model import Source, load_model
from nodule_plugin.diffusion.sampling import seeded_noise
from nodule_plugin.errors import InputError
from nodule_plugin.handlers.generation import GeneratedSetWriter
from nodule_plugin.provenance.codebook import (
    PUBLIC,
    WORDS,
    MarkKey,
    log10_p,
    payload_of,
    payloads,
    read_key,
    word_of,
    words,
)
from nodule_plugin.provenance.detection import Detection, detect, p_text
from nodule_plugin.provenance.files import described, detect_file, refuse_marked, warn_of_marked
from nodule_plugin.provenance.inversion import Inversion, bundled_inversion
from nodule_plugin.provenance.marking import ImageMark, image_mark
from nodule_plugin.provenance.noise import band, cosines, mark_noise, positions

BUNDLE = Path(__file__).parents[2] / "bundle"
MODELS = BUNDLE / "models"
SECRET = MarkKey("secret", bytes(range(16)))


class Images:
    """One request's image with the public mark, with a secret one and without, 8 bits each, by the shipped model."""

    def __init__(self, folder: Path) -> None:
        (folder / "key").write_bytes(SECRET.secret)
        self.public = self._one({})
        self.secret = self._one({"mark_key": str(folder / "key")})
        self.unmarked = self._one({"mark": False})

    def _one(self, overrides: dict[str, object]) -> np.ndarray:
        generator = BundleGenerator(BUNDLE, {"steps": 10, "device": torch.device("cpu"), **overrides})
        request = generator.requests({"prompts": ["The nodule is round in shape, solid internally."], "seeds": 0})[0]
        noise, conditions = generator.prepare(request)
        hu = generator.to_hu(generator.sample(noise, conditions), "image")
        self.payload = payload_of(generator.run["model"]["weights_sha256"])
        return grey(hu_to_unit(hu))


def grey(unit: np.ndarray) -> np.ndarray:
    return np.rint((unit + 1) * 127.5).astype(np.uint8)


def look(picture: np.ndarray, key: MarkKey = PUBLIC) -> Detection:
    return detect(picture / np.float32(127.5) - 1, bundled_inversion(MODELS), key)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def scaled(picture: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(tmp_path_factory.mktemp("key"))


@pytest.mark.parametrize(
    "use",
    [
        lambda picture: picture,
        lambda picture: jpeg(picture, 75),
        lambda picture: jpeg(picture, 50),
        lambda picture: scaled(picture, 32),
        lambda picture: scaled(picture, 128),
        lambda picture: np.fliplr(np.rot90(picture)),
        lambda picture: picture[9:60, 2:53],
        lambda picture: np.rot90(picture[:51, 13:], 2),
        lambda picture: grey(hu_to_unit(unit_to_hu(picture / 127.5 - 1), (-1350, 150))),
    ],
    ids=["as it is", "JPEG 75", "JPEG 50", "half", "double", "turned and flipped", "cut", "cut and turned", "window"],
)
def test_a_mark_is_found(images: Images, use: Callable[[np.ndarray], np.ndarray]) -> None:
    detection = look(use(images.public))
    assert detection.found
    assert detection.payload in (images.payload, None)


def test_a_payload_is_read_and_a_part_is_known(images: Images) -> None:
    assert look(images.public).payload == images.payload
    assert look(images.public).part_of is None
    assert look(images.public[9:60, 2:53]).part_of == 64


def test_other_keys_and_unmarked_images_show_nothing(images: Images) -> None:
    assert look(images.secret, SECRET).found
    others = [MarkKey(str(number), bytes([number]) * 16) for number in range(3)]
    looks = [look(images.public, key) for key in others] + [look(images.secret), look(images.unmarked)]
    assert [one.found for one in looks] == [False] * 5


def test_images_without_content_show_nothing() -> None:
    for image in (np.zeros((64, 64), np.uint8), np.ones((8, 8), np.uint8), np.arange(3, dtype=np.uint8).reshape(1, 3)):
        assert look(image).log10_p == 0


def test_only_signs_of_slow_cosines_change_and_always_alike() -> None:
    noise = seeded_noise([5], (4, 64, 64))[0]
    marked = mark_noise(noise, 5, "fc", PUBLIC)
    assert torch.equal(marked, mark_noise(noise, 5, "fc", PUBLIC))
    before, after = (cosines(64) @ one @ cosines(64).T for one in (noise, marked))
    torch.testing.assert_close(after.abs(), before.abs(), atol=1e-4, rtol=0)
    assert torch.equal(after[:, ~band(1, 11)].sign(), before[:, ~band(1, 11)].sign())
    pattern = words(PUBLIC, 4 * int(band(1, 11).sum()))[word_of(PUBLIC, 5)]
    assert torch.equal(after[:, band(1, 8)].flatten().sign(), pattern[: 4 * int(band(1, 8).sum())])
    said, fine = payloads(PUBLIC, 4 * int(band(8, 11).sum()))[0xFC], pattern[4 * int(band(1, 8).sum()) :]
    assert torch.equal(after[:, band(8, 11)].flatten().sign(), fine * said)
    # Half cycles down and across: 1, 0.7, 8 and 8.2 cycles.
    assert [bool(band(1, 8)[at]) for at in ((2, 0), (1, 1), (16, 0), (10, 13))] == [True, False, False, False]
    rest = noise - cosines(64).T @ before @ cosines(64)
    torch.testing.assert_close(marked - cosines(64).T @ after @ cosines(64), rest, atol=1e-4, rtol=0)


def test_marked_noise_is_normal() -> None:
    """Over seeds: mean, variance and correlation of latents as of normal noise, and its distribution."""
    from scipy.stats import kstest

    seeds = range(400)
    noise = image_mark(True, None, "ab" * 32, (1, 32, 32))(seeded_noise(seeds, (1, 32, 32)), seeds)
    values = noise.flatten(1)
    assert kstest(values[:, ::7].flatten().double().numpy(), "norm").pvalue > 0.01
    correlation = values.T @ values / len(seeds)
    assert float(correlation.diagonal().mean()) == pytest.approx(1, abs=0.01)
    off = correlation - torch.diag(correlation.diagonal())
    assert float(off.square().mean()) == pytest.approx(1 / len(seeds), rel=0.1)


def test_p_values_bound_what_random_signs_do() -> None:
    values = torch.randn(198, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    sums = torch.cat([words(MarkKey("", bytes([number]) * 16), 198) for number in range(4)]) @ values / values.norm()
    for level in (1.0, 2.0, 3.0):
        assert float((sums > level).double().mean()) < 10 ** log10_p(level, 1)
    assert float(sums.std()) == pytest.approx(1, abs=0.02)
    assert log10_p(0.0, 16) == 0
    assert 10 ** log10_p(2.0, 3) == pytest.approx(3 * 3.18 * 0.02275, rel=2e-3)  # as Bentkus and Dzindzalieta have it
    assert log10_p(9.0, 1) < log10_p(9.0, 1000) < -6 < log10_p(6.0, WORDS)


def test_a_turn_of_the_noise_is_a_turn_of_its_coefficients() -> None:
    noise = seeded_noise([1], (2, 32, 32))[0]
    looks = positions(cosines(32) @ noise @ cosines(32).T)
    for turned in (noise.flip(1), noise.flip(2), noise.mT, noise.rot90(1, (1, 2))):
        distances = (looks - cosines(32) @ turned @ cosines(32).T).abs().amax((1, 2, 3))
        assert float(distances.min()) < 1e-4
        assert float(distances[0]) > 0.1


def test_keys_payloads_and_small_latents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_key(None) is PUBLIC
    (tmp_path / "key").write_bytes(bytes(range(32)))
    assert read_key(tmp_path / "key").name.startswith("secret ")
    (tmp_path / "short").write_bytes(b"12345")
    with pytest.raises(InputError, match=r"mark_key: .* holds 5 bytes; give 16 or more"):
        read_key(tmp_path / "short")
    with pytest.raises(InputError, match=r"mark_key: .*absent cannot be read"):
        read_key(tmp_path / "absent")
    assert payload_of("5f" + 31 * "ab") == "5f"
    assert payload_of("owner/name") == sha256(b"owner/name").hexdigest()[:2] != payload_of("owner/other")
    assert payloads(PUBLIC, 150).unique().tolist() == [-1, 1]
    assert len({word_of(PUBLIC, seed) for seed in range(100)}) > 95
    assert sum(word_of(PUBLIC, seed) == word_of(SECRET, seed) for seed in range(100)) < 5
    assert [Detection(value, None, "").found for value in (-5.9, -6.1)] == [False, True]
    assert image_mark("false", None, "ab", (1, 32, 32)) is None
    assert image_mark(True, None, "ab", (4, 8, 8)) is None
    assert image_mark(True, None, "ab", (4, 21, 22)) is None
    assert "latents of 8 a side are too small for a mark, which needs 22" in caplog.text
    assert [p_text(value) for value in (0.0, -0.3, -23.5, -22.01, -400.25)] == [
        *("1.00", "0.50", "3e-24", "1e-22", "6e-401"),
    ]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_way_back_with_a_perfect_network_ends_at_the_noise(tmp_path: Path, prediction_type: str) -> None:
    """A network that knows latents and noise leads from the latents to that noise, whatever it predicts."""
    inversion = Inversion(Source(str(make_tiny_sd(tmp_path / "sd", prediction_type))))
    latents = inversion.latents_of(torch.zeros(1, 1, 64, 64))
    noise = seeded_noise([3], latents.shape[1:])

    def perfect(image: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        kept = model.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        signal, spread = kept.sqrt(), (1 - kept).sqrt()
        seen = (image - spread * noise) / signal  # what is signal, if that is the noise in it
        said = {"epsilon": noise, "sample": seen, "v_prediction": signal * noise - spread * seen}
        return said[prediction_type]

    model = load_model(Source(str(tmp_path / "sd")))
    inversion.network = perfect
    found = inversion(torch.zeros(1, 1, 64, 64))
    kept = model.scheduler.alphas_cumprod[-1]
    first = model.scheduler.alphas_cumprod[150]
    signal = (latents - (1 - first).sqrt() * noise) / first.sqrt()
    torch.testing.assert_close(found, kept.sqrt() * signal + (1 - kept).sqrt() * noise, atol=1e-4, rtol=1e-4)


class FromUpright:
    """A way back that finds the noise of an image that darkens downwards and to the right, and of no other."""

    image_size, pixels_per_latent = 64, 2

    def __init__(self, noise: torch.Tensor) -> None:
        self.noise = noise

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        down, across = (image_half(images, axis) for axis in (-2, -1))
        upright = (down > 0) & (across > 0) & (down > across)
        other = seeded_noise([9], self.noise.shape).expand(len(images), -1, -1, -1)
        return torch.where(upright[:, None, None, None], self.noise[None], other)


def image_half(images: torch.Tensor, axis: int) -> torch.Tensor:
    first, second = images.chunk(2, axis)
    return first.mean((1, 2, 3)) - second.mean((1, 2, 3))


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_an_image_is_looked_at_in_every_orientation(quarters: int, mirrored: bool) -> None:
    """A network that knows upright patients only still finds what was turned."""
    inversion = FromUpright(mark_noise(seeded_noise([4], (1, 32, 32))[0], 4, "5f", PUBLIC))
    rows, columns = np.mgrid[:64, :64] / 64
    image = (0.6 - 0.8 * rows - 0.4 * columns).astype(np.float32)
    turned = np.rot90(np.fliplr(image) if mirrored else image, quarters)
    found = detect(turned, inversion, PUBLIC, parts=False)  # type: ignore[arg-type]
    assert found.found
    assert found.payload == "5f"


@pytest.fixture
def folder(tmp_path: Path, images: Images) -> Path:
    """The marked image as PNG, JPEG and the middle slice of a NIfTI volume; an unmarked one."""
    Image.fromarray(images.public).save(tmp_path / "a.png")
    Image.fromarray(images.public).save(tmp_path / "b.jpg", quality=75)
    planes = [unit_to_hu(one / 127.5 - 1) for one in (images.unmarked, images.public, images.secret)]
    volume = np.rint(np.stack(planes)).astype(np.int16).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-0.5, -0.5, 1, 1])), tmp_path / "c.nii.gz")
    Image.fromarray(images.unmarked).save(tmp_path / "d.png")
    return tmp_path


def test_png_nifti_and_dicom_carry_the_mark(tmp_path: Path, images: Images) -> None:
    request = {"id": "a", "prompt": "a", "findings": None, "guidance_scale": 3.0, "seed": 0, "roi_mm": 20.0}
    run = {"settings": {"scheduler": "", "prediction_type": "", "num_inference_steps": 1}, "base_model": "owner/name"}
    run |= {"weights_sha256": "fc07" * 16, "image_size": 64, "formats": ("png", "nifti", "dicom")}
    writer = GeneratedSetWriter(tmp_path / "set", [request | {"source_id": None}], **run)
    writer.start()
    writer.write(request, images.public / np.float32(127.5) - 1)
    writer.finish()
    (item,) = load_generated(tmp_path / "set").items
    for name in ("image", "nifti", "dicom"):
        assert detect_file(item[name], bundled_inversion(MODELS), parts=False).found


class NoModel:
    """Where numbers carry a mark, no model is asked."""

    def __call__(self, *_: object) -> None:
        raise AssertionError("the model was asked")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of an image with the mark in their numbers only: none is in its noise."""
    folder = tmp_path_factory.mktemp("written") / "set"
    request = {"id": "a", "prompt": "a", "findings": None, "guidance_scale": 3.0, "seed": 0, "roi_mm": 20.0}
    run = {"settings": {"scheduler": "", "prediction_type": "", "num_inference_steps": 1}, "base_model": "owner/name"}
    run |= {"weights_sha256": "fc07" * 16, "image_size": 64, "formats": ("png", "nifti", "dicom")}
    writer = GeneratedSetWriter(folder, [request | {"source_id": None}], **run, mark=ImageMark(PUBLIC, "fc"))
    writer.start()
    writer.write(request, np.random.default_rng(0).normal(-0.5, 0.4, (64, 64)).clip(-1, 1).astype(np.float32))
    writer.finish()
    assert load_generated(folder).manifest["mark"]["numbers"] == "nodule-plugin pixels 1"
    return {name: load_generated(folder).items[0][name] for name in ("image", "nifti", "dicom")}


@pytest.mark.parametrize("name", ["image", "nifti", "dicom"])
def test_numbers_of_every_format_carry_the_mark(name: str, written: dict[str, Path]) -> None:
    found = detect_file(written[name], NoModel())
    assert found.found
    assert found.payload == "fc"
    assert f"{written[name]}: marked as synthetic (p " in described(written[name], found)
    assert not detect_file(written[name], bundled_inversion(MODELS), SECRET, parts=False).found


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_part_of_a_picture_that_was_turned_carries_the_mark(
    mode: str, written: dict[str, Path], tmp_path: Path
) -> None:
    picture = np.rot90(np.asarray(Image.open(written["image"]))[2:53, 11:62], 3)
    if mode == "I;16":
        Image.fromarray(picture.astype(np.uint16) * 257).save(tmp_path / "part.png")
    else:
        Image.fromarray(picture).convert(mode).save(tmp_path / "part.png")
    assert detect_file(tmp_path / "part.png", NoModel()).found


def test_evaluation_and_training_see_numbers(
    written: dict[str, Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="real_dir: 1 of 1 images carry the mark"):
        refuse_marked(real_items(Path(written["image"]).parent), tmp_path)
    warn_of_marked([{"id": "n0", "image": written["nifti"], "slice_index": 0}], tmp_path)
    assert "1 of 1 training images looked at carry the mark of synthetic images (n0)" in caplog.text


def test_detect_mark_reads_files(folder: Path, images: Images, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("a.png", "b.jpg", "c.nii.gz", "d.png")
    with pytest.raises(SystemExit) as ended:
        detect_mark([*(str(folder / name) for name in names), "--json"])
    assert ended.value.code == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["marked"] for one in said] == [True, True, True, False]
    assert said[0]["model"] == images.payload
    with pytest.raises(SystemExit) as ended:
        detect_mark([str(folder / "d.png")])
    assert ended.value.code == 1
    assert "no mark found by the public key" in capsys.readouterr().out
    with pytest.raises(InputError, match="no file"):
        detect_file(folder / "absent.png", bundled_inversion(MODELS))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_file_that_cannot_be_read_stops_nothing(
    options: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.png").write_text("no picture")
    names = ("absent.nii", "text.png", "a.png")
    with pytest.raises(SystemExit) as ended:
        detect_mark([*(str(folder / name) for name in names), *options])
    assert ended.value.code == 2
    said = capsys.readouterr()
    absent, text = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert absent == f"error: {folder}/absent.nii: there is no such file; give pictures, NIfTI or DICOM files"
    assert text.startswith(f"error: image: {folder}/text.png cannot be read as a picture")
    (line,) = said.out.splitlines()
    assert "a.png" in line
    with pytest.raises(SystemExit) as ended:
        detect_mark([str(folder / "a.png"), "--mark-key", str(folder / "absent.key"), *options])
    assert ended.value.code == 2
    assert "absent.key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "voxels", "message"),
    [
        ("a.webp", None, r"a.webp is no DICOM file, and its name ends on none of .png, .*; convert it to PNG$"),
        ("a.nii", np.zeros((9, 9, 2, 2)), r"has shape \(9, 9, 2, 2\); give one slice, or a volume"),
        ("a.nii", np.full((9, 9, 2), np.nan), "has values that are not finite; give Hounsfield units"),
    ],
)
def test_what_cannot_be_looked_at_is_named(name: str, voxels: np.ndarray | None, message: str, tmp_path: Path) -> None:
    if voxels is None:
        (tmp_path / name).write_bytes(b"RIFF")
    else:
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), np.eye(4)), tmp_path / name)
    with pytest.raises(InputError, match=message):
        detect_file(tmp_path / name, bundled_inversion(MODELS))


def test_a_dicom_file_without_units_is_named(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a.dcm", 0, RescaleSlope=None)
    with pytest.raises(InputError, match="RescaleSlope is missing, without which stored values are not Hounsfield"):
        detect_file(path, bundled_inversion(MODELS))


@pytest.mark.parametrize("shape", [(1, 64, 64), (64, 1, 64), (64, 64, 1), (64, 64)])
def test_one_slice_may_lie_anyhow(shape: tuple[int, ...], images: Images, tmp_path: Path) -> None:
    hu = np.rint(unit_to_hu(images.public / 127.5 - 1)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(hu.T.reshape(shape), np.eye(4)), tmp_path / "a.nii")
    assert detect_file(tmp_path / "a.nii", bundled_inversion(MODELS), parts=False).found


@pytest.mark.parametrize("shape", [(1, 64, 64), (64, 64, 1), (64, 64), (1, 2, 64)])
def test_images_that_can_carry_no_mark(shape: tuple[int, ...], tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full(shape, -500, np.int16), np.eye(4)), tmp_path / "a.nii")
    detection = detect_file(tmp_path / "a.nii", bundled_inversion(MODELS))
    assert not detection.found
    assert "to carry a mark; nothing can be said" in described("a.nii", detection)
    assert json.loads(described("a.nii", detection, as_json=True))["possible"] is False


def test_an_evaluation_refuses_marked_images_as_real_ones(folder: Path) -> None:
    (folder / "c.nii.gz").unlink()
    items = real_items(folder)
    with pytest.raises(InputError, match=r"real_dir: 2 of 3 images carry the mark .*a\.png.* allow_marked"):
        refuse_marked(items, MODELS)
    assert refuse_marked(items, MODELS, allowed=True) == items
    assert refuse_marked(items[2:], MODELS) == items[2:]
    with pytest.raises(InputError, match="holds no small model"):
        refuse_marked(items, folder)


def test_a_training_warns_of_marked_images(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = [{"id": f"n{index}", "image": folder / "c.nii.gz", "slice_index": index} for index in range(3)]
    items.append({"id": "gone", "image": folder / "absent.nii.gz", "slice_index": 0})
    assert warn_of_marked(items, MODELS) is items
    assert "1 of 3 training images looked at carry the mark of synthetic images (n1)" in caplog.text
    caplog.clear()
    warn_of_marked(items[:1], MODELS)
    warn_of_marked(items, MODELS, silent=True)
    assert caplog.text == ""
