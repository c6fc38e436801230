"""CLIP's tokenizer from the vocabulary that the open_clip package carries; nothing is downloaded."""

from __future__ import annotations

from transformers import CLIPTokenizer

from nodule_plugin.errors import InputError

_MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
"""open_clip's names of the two marks -> those of CLIP's own files, which transformers knows."""


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion's text encoder: 49,408 tokens, prompts of at most 77.

    Args:
        pad_token: "<|endoftext|>" as in SD 1.5, or "!" as in SD 2.

    Raises:
        InputError: if open_clip is not installed.
    """
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ModuleNotFoundError as error:
        remedy = "pip install 'nodule-plugin[evaluate]'"
        raise InputError(f"tokenizer: CLIP's vocabulary comes with open_clip; {remedy}") from error
    known = SimpleTokenizer()
    vocabulary = {_MARKS.get(token, token): index for token, index in known.encoder.items()}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(known.bpe_ranks), model_max_length=77, pad_token=pad_token)
    if len(tokenizer) != 49408:
        raise RuntimeError(f"CLIP has 49408 tokens, not {len(tokenizer)}: transformers has changed its tokenizer")
    return tokenizer
