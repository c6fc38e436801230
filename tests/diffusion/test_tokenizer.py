from __future__ import annotations

import open_clip
import pytest
import torch

from nodule_plugin.diffusion.tokenizer import clip_tokenizer

PROMPTS = [
    "The nodule is oval in shape, solid internally, with relatively well-defined margins. marked spiculation is seen.",
    "ground-glass, non-solid; it's 12.5 mm (naïve café)",
    "",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_are_those_of_open_clip(prompt: str) -> None:
    expected = open_clip.tokenize([prompt])[0]
    tokens = clip_tokenizer()(prompt, padding="max_length").input_ids
    length = int(expected.argmax()) + 1  # the end mark has the highest id; open_clip pads with 0 behind it
    assert tokens[:length] == expected[:length].tolist()
    assert set(tokens[length:]) <= {49407}


def test_stable_diffusion_2_pads_with_an_exclamation_mark() -> None:
    assert clip_tokenizer("!")("a", padding="max_length").input_ids[-1] == 0


def test_saved_and_loaded_it_is_the_same(tmp_path) -> None:
    clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    from nodule_plugin.diffusion.components import load_tokenizer

    loaded = load_tokenizer(str(tmp_path))
    assert len(loaded) == 49408
    assert torch.equal(
        torch.tensor(loaded(PROMPTS, padding="max_length").input_ids),
        torch.tensor(clip_tokenizer()(PROMPTS, padding="max_length").input_ids),
    )
