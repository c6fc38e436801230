from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open
from small_models.contrast import degrade, random_view
from small_models.examples import Examples
from small_models.scorer import MODEL_CONFIG, save_scorer, train_scorer
from small_models.scorer_card import evaluate_scorer, model_card

from nodule_plugin.errors import InputError
from nodule_plugin.metrics.alignment import CLIPScorer

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PROMPTS = ("The nodule is round in shape.", "The nodule is linear in shape.")


def _bars_and_discs(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    images, prompts = [], []
    for index in range(count):
        flat = 0.15 if index % 2 else 0.5
        shape = torch.sigmoid(30 * (0.5 - torch.hypot(row * 0.5 / flat, column)))
        noise = 0.05 * torch.randn(64, 64, generator=generator)
        images.append((2 * shape - 1 + noise).clamp(-1, 1).expand(3, -1, -1))
        prompts.append(PROMPTS[index % 2])
    ratings = torch.tensor([[float(index % 2)] for index in range(count)])
    return Examples(torch.stack(images), prompts, ratings, "drawn")


def test_training_learns_which_prompt_is_whose_and_the_saved_model_still_knows(tmp_path: Path) -> None:
    model = train_scorer(
        _bars_and_discs(32, 0),
        steps=60,
        batch_size=16,
        softness=0,
        image_weight=0.1,
        learning_rate=3e-3,
        config=SMALL,
    )
    save_scorer(model, tmp_path, card="card", config=SMALL)
    unseen = _bars_and_discs(20, 1)
    result = evaluate_scorer(tmp_path, unseen.images, unseen.prompts)
    assert result.auc > 0.9
    assert result.above > 3 * result.above_error
    assert result.distances["noise, deviation 140 HU"] > result.distances["noise, deviation 35 HU"]
    with safe_open(tmp_path / "open_clip_model.safetensors", "pt") as weights:
        assert weights.get_tensor("token_embedding.weight").dtype == torch.float16
    scorer = CLIPScorer(tmp_path)
    assert scorer.clip.encode_texts(PROMPTS).dtype == torch.float32
    assert {path.name for path in tmp_path.iterdir()} == {
        *("open_clip_config.json", "open_clip_model.safetensors", "README.md")
    }
    assert "must not be set beside published values" in model_card({"phantom, validation": result}, {"phantom": 32}, 40)


def test_a_seed_gives_the_same_weights() -> None:
    examples = _bars_and_discs(8, 0)
    first, again = (train_scorer(examples, steps=2, batch_size=8, config=SMALL) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


def test_views_move_pixels_and_invent_none() -> None:
    torch.manual_seed(0)
    image = torch.arange(64.0 * 64).reshape(1, 1, 64, 64)
    view = random_view(image)
    assert view.shape == image.shape
    assert set(view.flatten().tolist()) <= set(image.flatten().tolist())
    worse = degrade(torch.rand(6, 3, 64, 64) * 2 - 1)
    assert worse.shape == (6, 3, 64, 64)
    assert worse.abs().max() <= 1


def test_inputs_that_do_not_match_are_refused() -> None:
    examples = _bars_and_discs(4, 0)
    with pytest.raises(InputError, match="are needed"):
        train_scorer(replace(examples, prompts=examples.prompts[:2]))
    with pytest.raises(InputError, match="are needed"):
        train_scorer(replace(examples, images=examples.images[..., :32]))


def test_the_bundles_scorer_is_the_architecture_here_and_tells_prompts_apart(repository: Path) -> None:
    folder = repository / "bundle" / "models" / "tiny_scorer"
    size = (folder / "open_clip_model.safetensors").stat().st_size
    assert size < 20e6
    scorer = CLIPScorer(folder)
    texts = scorer.encode_prompts(
        [
            "The nodule is round in shape, solid internally, with well-defined margins.",
            "The nodule is oval in shape, ground-glass internally, with poorly defined margins.",
        ]
    )
    assert texts.shape == (2, MODEL_CONFIG["embed_dim"])
    assert torch.nn.functional.cosine_similarity(texts[:1], texts[1:]).item() < 0.9
    assert isinstance(scorer.clip._loaded().network, open_clip.CLIP)
