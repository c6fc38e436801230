from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from nodule_plugin import extras
from nodule_plugin.errors import InputError
from nodule_plugin.extras import Extra
from nodule_plugin.handlers.validation import measures

EXTRAS = [
    "open_clip",
    "timm",
    "lpips",
    "torch_fidelity",
    "pandas",
    "highdicom",
    "peft",
    "gdcm",
    "fastapi",
    "idc_index",
    "c2pa",
    "opacus",
]
"""Packages that what prepares, trains and generates does without."""
WITHOUT_EXTRAS = """
import sys, torch, torchmetrics  # which looks for some of them itself
sys.modules |= dict.fromkeys(sys.argv[1:])  # as if they were not installed
import nodule_plugin.data.sources, nodule_plugin.data.datalist, nodule_plugin.report.data_page
import nodule_plugin.diffusion.encoding, nodule_plugin.diffusion.sampling, nodule_plugin.diffusion.training
import nodule_plugin.handlers.checkpoint, nodule_plugin.handlers.progress, nodule_plugin.handlers.selection
import nodule_plugin.handlers.generation, nodule_plugin.handlers.validation
import nodule_plugin.handlers.evaluation
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.openclip import OpenCLIPModel
clip = OpenCLIPModel("ViT-B-32/openai")
try:  # a metric that one of them computes, asked for
    clip.encode_texts(["round"])
except InputError as error:
    print(error)
"""


def test_a_module_is_imported_at_its_first_use() -> None:
    assert Extra("json.decoder", "evaluate").JSONDecoder is json.JSONDecoder


def test_a_missing_package_is_named_with_the_line_that_installs_it() -> None:
    absent = Extra("no_such_package.inner", "evaluate")  # no error yet
    with pytest.raises(InputError, match=r"^no_such_package: not installed; run pip install .*evaluate"):
        absent.anything  # noqa: B018


def test_what_will_be_needed_is_asked_for_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    settings = {"inception_weights": None, "scorer": "scorer", "window_hu": (-1000, 400), "device": torch.device("cpu")}
    assert len(measures("kd_imagenet,kd_tiny", items=[], **settings)) == 2
    for name, package in (("kd_imagenet", "timm"), ("kd_tiny", "open_clip")):
        with pytest.raises(InputError, match=rf"^{package}: not installed; .*evaluate.*, or train without validation"):
            measures(name, items=[1, 2, 3, 4], **settings)


def test_the_core_needs_no_package_of_an_extra() -> None:
    command = [sys.executable, "-c", WITHOUT_EXTRAS, *EXTRAS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "open_clip: not installed; run pip install 'nodule-plugin[evaluate]'\n"
