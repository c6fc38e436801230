"""Very small open_clip models with random weights in open_clip's folder layout, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertTokenizerFast

MODEL_CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def make_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``; loaded as ``local-dir:FOLDER``."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    model = open_clip.CLIP(**MODEL_CONFIG)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


BIOMEDCLIP_TEXT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
WORDS = ["the", "nodule", "is", "round", "oval", "in", "shape", ".", "calcification", "seen"]


def make_tiny_biomedclip(folder: Path, known_words: bool = True) -> Path:
    """A folder as BiomedCLIP's: a ViT of timm, a BERT named by its hub id, its tokenizer beside the weights.

    Args:
        folder: made if absent.
        known_words: False leaves the tokenizer's vocabulary without any word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(WORDS if known_words else [])]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(vocabulary)}).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertConfig(vocab_size=len(vocabulary), **sizes).save_pretrained(folder)
    text_cfg = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": BIOMEDCLIP_TEXT,
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    }
    vision_cfg = {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    }
    config = {"embed_dim": 16, "vision_cfg": vision_cfg, "text_cfg": text_cfg | {"hf_model_pretrained": False}}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config)
    config["text_cfg"] = text_cfg | {"hf_model_name": BIOMEDCLIP_TEXT}
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    preprocessing = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    content = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder
