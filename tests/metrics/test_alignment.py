from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import MODEL_CONFIG, make_tiny_biomedclip, make_tiny_clip

import nodule_plugin
from nodule_plugin.data.pixels import to_pictures
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.alignment import (
    BIOMEDCLIP,
    AlignmentMeasure,
    BiomedCLIPScorer,
    CLIPScorer,
    clip_scores,
    shuffle_prompts,
)
from nodule_plugin.metrics.features import OpenCLIPImageFeatures, backbone_extractors
from nodule_plugin.metrics.openclip import OpenCLIPModel, _load

PROMPTS = ["The nodule is round in shape.", "The nodule is oval in shape.", "calcification is seen."] * 2


def test_clip_scores_are_two_and_a_half_times_the_cosine_and_never_negative() -> None:
    first = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    second = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert clip_scores(first, second).tolist() == pytest.approx([2.5, 0.0, 2.5 / 2**0.5, 0.0])


def test_scorer_equals_open_clip_used_by_hand(clip_folder: Path, images: torch.Tensor) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(PROMPTS)
    with torch.no_grad():
        pictures = torch.stack([preprocess(picture) for picture in to_pictures(images)])
        image, text = model.eval().encode_image(pictures, normalize=True), model.encode_text(tokens, normalize=True)
    expected = 2.5 * (image * text).sum(1).clamp(min=0)
    scorer = CLIPScorer(clip_folder)
    assert scorer(images, PROMPTS).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert scorer.score(images, PROMPTS) == pytest.approx(float(expected.mean()), abs=1e-5)
    assert torch.equal(scorer(to_pictures(images), PROMPTS), scorer(images, PROMPTS))


def test_prefix_changes_the_text_only(clip_folder: Path, images: torch.Tensor) -> None:
    prefixed = CLIPScorer(clip_folder, prefix="A photo depicts ")
    by_hand = CLIPScorer(clip_folder)(images, ["A photo depicts " + prompt for prompt in PROMPTS])
    assert torch.allclose(prefixed(images, PROMPTS), by_hand)


def test_nothing_is_loaded_before_the_first_call() -> None:
    scorer = BiomedCLIPScorer()
    assert scorer.clip.model == BIOMEDCLIP
    assert scorer.clip.context_length == 256
    assert nodule_plugin.BiomedCLIPScorer is BiomedCLIPScorer
    assert BiomedCLIPScorer(model=None).unavailable == "no weights given"


def test_a_hub_id_is_taken_out_of_a_filled_cache(
    tmp_path: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, cached = "0" * 40, tmp_path / "hub" / "models--microsoft--BiomedCLIP"
    folder = make_tiny_biomedclip(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    by_id, by_folder = OpenCLIPModel("hf-hub:microsoft/BiomedCLIP"), OpenCLIPModel(folder)
    assert torch.equal(by_id.encode_texts(["the nodule is round"]), by_folder.encode_texts(["the nodule is round"]))
    assert torch.equal(by_id.encode_images(images), by_folder.encode_images(images))
    for file in ("tokenizer.json", "open_clip_pytorch_model.bin", "open_clip_config.json"):
        (folder / file).unlink()
        _load.cache_clear()
        with pytest.raises(InputError, match=rf"CLIP model hf-hub:microsoft/BiomedCLIP: .*the cache lacks .*{file}"):
            OpenCLIPModel("hf-hub:microsoft/BiomedCLIP").encode_texts(["a"])


def test_a_local_folder_as_biomedclips_needs_no_hub(tmp_path: Path, images: torch.Tensor) -> None:
    make_tiny_biomedclip(tmp_path)
    scorer = BiomedCLIPScorer(model=tmp_path)
    scores = scorer(images, PROMPTS)
    assert scores.shape == (6,)
    assert scorer.clip.encode_texts(PROMPTS[:2]).unique(dim=0).shape == (2, 16)


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path: Path, images: torch.Tensor) -> None:
    make_tiny_biomedclip(tmp_path, known_words=False)
    with pytest.raises(InputError, match="does not tell words apart"):
        BiomedCLIPScorer(model=tmp_path)(images, PROMPTS)


@pytest.mark.parametrize("prompts", [list("aabbc"), list("aaabbb"), list("abcdefgh"), list("aabbccdd") * 5])
def test_shuffled_prompts_all_differ_from_the_own(prompts: list[str]) -> None:
    shuffled = shuffle_prompts(prompts, seed=3)
    assert sorted(shuffled) == sorted(prompts)
    assert all(other != own for own, other in zip(prompts, shuffled))
    assert shuffled == shuffle_prompts(prompts, seed=3)


def test_prompts_that_cannot_be_dealt_anew_are_refused() -> None:
    with pytest.raises(InputError, match="3 of 5 images share a prompt"):
        shuffle_prompts(list("aaabc"))


def test_unusable_models_and_inputs_are_named(tmp_path: Path, clip_folder: Path, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="no such folder"):
        CLIPScorer(tmp_path / "absent")(images, PROMPTS)
    with pytest.raises(InputError, match=r"holds no open_clip_config\.json"):
        CLIPScorer(tmp_path)(images, PROMPTS)
    with pytest.raises(InputError, match="2 for 6 images"):
        CLIPScorer(clip_folder)(images, PROMPTS[:2])
    with pytest.raises(InputError, match="not finite"):
        CLIPScorer(clip_folder)(torch.full((1, 3, 8, 8), torch.nan), PROMPTS[:1])
    with pytest.raises(InputError, match="shape"):
        CLIPScorer(clip_folder)(torch.zeros(1, 1, 8, 8), PROMPTS[:1])
    with pytest.raises(InputError, match="none was given"):
        CLIPScorer()(images, PROMPTS)


def test_a_folder_without_weights_is_not_a_random_model(
    tmp_path: Path, clip_folder: Path, images: torch.Tensor
) -> None:
    (tmp_path / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
    with pytest.raises(InputError, match="open_clip cannot load it"):
        CLIPScorer(tmp_path)(images, PROMPTS)


def test_colour_pictures_are_taken_as_they_are(clip_folder: Path) -> None:
    assert CLIPScorer(clip_folder)([Image.new("RGBA", (80, 60), "red")], PROMPTS[:1]).shape == (1,)


@pytest.fixture
def quickgelu_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tiny weights that open_clip lists under two architectures' names, as it does OpenAI's, trained with QuickGELU."""
    config: dict[str, Any] = dict(MODEL_CONFIG)
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config, quick_gelu=True).state_dict(), tmp_path / "weights.safetensors")
    tag = {"openai": {"file": str(tmp_path / "weights.safetensors"), "quick_gelu": True}}
    for name in ("Tiny", "Tiny-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tag)
        own = config | ({"quick_gelu": True} if name.endswith("quickgelu") else {})
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, own)
    return str(tmp_path / "weights.safetensors")


def test_weights_trained_with_quickgelu_get_it_under_either_name(quickgelu_weights: str, images: torch.Tensor) -> None:
    plain, named = CLIPScorer("Tiny/openai"), CLIPScorer("Tiny-quickgelu/openai")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # open_clip only warns of the wrong activation
        assert torch.equal(plain(images, PROMPTS), named(images, PROMPTS))
    wrong = open_clip.create_model("Tiny", pretrained=quickgelu_weights).eval()
    right = named.clip.encode_images(images)
    pictures = named.clip._preprocessed(images)
    with torch.no_grad():
        assert not torch.allclose(wrong.encode_image(pictures), right, atol=1e-4)
    # The report names the activation where the model's name does not.
    assert AlignmentMeasure("c", "CLIPScore", plain).network == "Tiny/openai (QuickGELU), prompts as they are"
    assert AlignmentMeasure("c", "CLIPScore", named).network == "Tiny-quickgelu/openai, prompts as they are"
    names = [extractor.name for extractor in backbone_extractors(["open_clip:Tiny/openai"])]
    assert names == ["image tower of Tiny/openai (QuickGELU)"]
    assert OpenCLIPImageFeatures("Tiny/openai").name == "Tiny/openai (QuickGELU)"


def test_features_of_another_activation_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    fingerprints = set()
    for quick in (True, False):
        file = make_tiny_clip(tmp_path / str(quick)) / "open_clip_config.json"
        config = json.loads(file.read_text())
        config["model_cfg"]["quick_gelu"] = quick
        file.write_text(json.dumps(config))
        fingerprints.add(OpenCLIPImageFeatures(file.parent).fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
            "a git-lfs pointer in the place",
        ),
        (lambda file: file.write_bytes(file.read_bytes()[:-99]), "open_clip cannot load it: .*(incomplete|Invalid)"),
        (lambda file: save_file({"a": torch.zeros(1)}, file), 'Missing key.s. in state_dict: "positional_embedding"'),
        (
            lambda file: save_file(load_file(file) | {"extra.weight": torch.zeros(1)}, file),
            'Unexpected key.s. in state_dict: "extra.weight"',
        ),
    ],
)
def test_weights_that_do_not_arrive_are_one_line(
    damage: Callable[[Path], object], message: str, clip_folder: Path, tmp_path: Path, images: torch.Tensor
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    damage(folder / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        CLIPScorer(folder)(images, PROMPTS)
    assert "\n" not in str(caught.value)
