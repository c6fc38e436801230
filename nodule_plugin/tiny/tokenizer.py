"""CLIP's tokenizer from the vocabulary that the open_clip package carries; nothing is downloaded."""

from __future__ import annotations

import gzip
from importlib.resources import files

from transformers import CLIPTokenizer

_MERGES = 49152 - 256 - 2
"""CLIP keeps this many of the file's merges, so that bytes, end-of-word bytes, merges and two marks make 49,408."""


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """The tokenizer of Stable Diffusion's text encoder: 49,408 tokens, prompts of at most 77.

    Args:
        pad_token: "<|endoftext|>" as in SD 1.5, or "!" as in SD 2.
    """
    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : _MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    characters = list(_byte_characters())
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=pad_token)
    if len(tokenizer) != 49408:
        raise RuntimeError(f"CLIP has 49408 tokens, not {len(tokenizer)}: transformers has changed its tokenizer")
    return tokenizer


def _byte_characters() -> list[str]:
    """A printable character for each byte, in the order of CLIP's vocabulary (the scheme of GPT-2's tokenizer)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
