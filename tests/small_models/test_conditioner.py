from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_models.conditioner import train_text_encoder
from small_models.examples import CONDITIONING, JUDGING, Examples, fold_of, load_examples
from transformers import CLIPTextModel

from nodule_plugin.data.datalist import build_datalist, write_datalist
from nodule_plugin.data.sources import load_nodules
from nodule_plugin.diffusion.tokenizer import clip_tokenizer

ROUND, LINEAR = "The nodule is round in shape.", "The nodule is linear in shape."


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Bright and dark images, each with its prompt."""
    torch.manual_seed(0)
    bright = torch.arange(16) % 2
    images = (bright - 0.5)[:, None, None, None] + 0.1 * torch.randn(16, 3, 64, 64)
    return Examples(images, [LINEAR if b else ROUND for b in bright.tolist()], bright[:, None].float(), "drawn")


def test_words_get_their_meaning_from_images(examples: Examples) -> None:
    settings = {"batch_size": 8, "image_weight": 0.0, "softness": 0.0}
    untrained, trained = (train_text_encoder(examples, steps=steps, **settings) for steps in (1, 40))
    assert isinstance(trained, CLIPTextModel)
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert likeness(trained) < likeness(untrained) - 0.1


def likeness(encoder: CLIPTextModel) -> float:
    """Cosine of what the encoder makes of the two prompts."""
    tokens = clip_tokenizer()([ROUND, LINEAR], padding="max_length", return_tensors="pt").input_ids
    pooled = encoder(tokens).pooler_output
    return F.cosine_similarity(pooled[:1], pooled[1:]).item()


def test_folds_share_out_the_patients(real_data: Path, tmp_path: Path) -> None:
    nodules = load_nodules(real_data / "lidc_nodule_crops")
    datalist = write_datalist(build_datalist(nodules), tmp_path / "crops.json")
    folds = {fold: load_examples(datalist, "training", fold) for fold in (CONDITIONING, JUDGING)}
    whole = load_examples(datalist, "training", templates=["detailed"])
    count = len(whole.prompts) // 2
    assert sum(len(fold.prompts) for fold in folds.values()) == count
    assert 0.2 < len(folds[CONDITIONING].prompts) / count < 0.5
    assert len(set(whole.prompts[count:])) > len(set(whole.prompts[:count]))
    assert torch.equal(whole.images[:count], whole.images[count:])


def test_a_patient_is_in_the_same_fold_everywhere() -> None:
    assert [fold_of(f"LIDC-IDRI-{number:04d}") for number in (1, 2, 3, 9)] == [
        JUDGING,
        CONDITIONING,
        JUDGING,
        CONDITIONING,
    ]
