from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
NOT_ON_A_GPU = ["pydicom", "gdcm", "pylidc", "highdicom", "sqlite3", "open_clip", "timm", "lpips"]
NOT_ON_A_GPU += ["tensorboard", "jsonschema", "pynetdicom", "fastapi", "skimage", "ftfy", "datasets"]
"""Packages that the machine which runs ``scripts/gpu.sh`` may lack."""
WITHOUT = """
import sys, torch, torchmetrics  # which looks for some of them itself
extras, not_on_a_gpu, train_config, folder = sys.argv[1].split(), sys.argv[2].split(), *sys.argv[3:]
sys.modules |= dict.fromkeys(extras + not_on_a_gpu)  # as if they were not installed: what imports them fails

import gpu, gpu_small, gpu_stages, timed_process
import json, re, pathlib
text = pathlib.Path(train_config).read_text()
for line in json.loads(text)["imports"]:
    exec(line[1:])
for name in set(re.findall(r'"(nodule_plugin[\\w.]*)[.]\\w+"', text)) - {"nodule_plugin.metrics.features"}:
    __import__(name.removesuffix(".DiffusionUNet"))
datalist = data_lists.ensure_datalist(__import__("noise_pairs").write_noise_pairs(pathlib.Path(folder), 1))
items = data_lists.load_datalist(datalist, "training")
from nodule_plugin.data.transforms import nodule_transform
assert nodule_transform(16)(items[0])["image"].shape == (3, 16, 16)
assert not [name for name in sys.modules if name.startswith("nodule_plugin.lidc.dicom")]

for name in set(not_on_a_gpu) - set(extras):
    del sys.modules[name]
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


@pytest.mark.slow
def test_a_gpus_stages_and_the_core_do_without_what_they_do_not_need(repository: Path, tmp_path: Path) -> None:
    """Both in one process, since this one has to import PyTorch and MONAI anew."""
    given = [" ".join(EXTRAS), " ".join(NOT_ON_A_GPU), repository / "bundle" / "configs" / "train.json", tmp_path]
    command = [sys.executable, "-c", WITHOUT, *map(str, given)]
    path = os.pathsep.join([str(repository / "scripts" / "benchmarks"), str(repository)])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "open_clip: not installed; run pip install 'nodule-plugin[evaluate]'\n"
