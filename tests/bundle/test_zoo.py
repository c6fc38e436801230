"""What the Model Zoo asks of a bundle, of the models that ship with this one."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow
from tiny_clip import make_tiny_clip
from warm import run_python

from nodule_plugin.data.generated import load_generated
from nodule_plugin.diffusion.sampling import decode_latents

SECTIONS = ["Model Overview", "Data", "Training configuration", "Memory Consumption", "Performance", "Bundle Commands",
            "Limitations", "References", "License"]  # fmt: skip
TENSOR_FIELDS = ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"]
LARGE_FILE_BYTES = 25 * 2**20


@pytest.fixture(scope="module")
def bundle(repository: Path) -> Path:
    return repository / "bundle"


@pytest.fixture(scope="module")
def metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def datalist(phantom_datalist: Path) -> str:
    """Of phantoms: synthetic data."""
    return str(phantom_datalist)


def monai_bundle(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    return run_python(command, cwd)


def parts(bundle: Path, config: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / config)
    parser["bundle_root"] = str(bundle)
    return parser


def draw(tensor: dict[str, Any]) -> torch.Tensor:
    """A batch of two as a data format describes it."""
    shape = (2, *([] if tensor["type"] == "timesteps" else [tensor["num_channels"], *tensor["spatial_shape"]]))
    if tensor["dtype"] == "int64":
        low, high = tensor["value_range"]
        return torch.randint(low, high + 1, shape)
    values = torch.randn(shape)
    return values.clamp(*tensor["value_range"]) if tensor["value_range"] else values


def test_formats_describe_every_tensor(metadata: dict[str, Any]) -> None:
    formats = {name: value for name, value in metadata.items() if name.endswith("_data_format")}
    assert formats.keys() == {"network_data_format", "decoder_data_format", "autoencoder_data_format",
                              "text_encoder_data_format"}  # fmt: skip
    for one in formats.values():
        tensors = [*one["inputs"].values(), *one["outputs"].values()]
        assert all(field in tensor for tensor in tensors for field in TENSOR_FIELDS)
        assert all(len(tensor["value_range"]) in (0, 2) for tensor in tensors)
    network = metadata["network_data_format"]
    for tensor in (network["inputs"]["image"], network["outputs"]["pred"]):
        assert len(tensor["channel_def"]) == tensor["num_channels"]


@pytest.mark.parametrize(
    ("name", "config", "run"),
    [
        ("network", "inference.json", lambda parser: parser.get_parsed_content("network_def").eval()),
        ("decoder", "export.json", lambda parser: parser.get_parsed_content("decoder_def")),
        ("autoencoder", "inference.json", lambda parser: run_autoencoder(parser.get_parsed_content("vae_def"))),
        ("text_encoder", "inference.json", lambda parser: run_encoder(parser.get_parsed_content("text_encoder_def"))),
    ],
)
def test_formats_are_those_of_the_networks(
    bundle: Path, metadata: dict[str, Any], name: str, config: str, run: Callable[[ConfigParser], Any]
) -> None:
    described = metadata[f"{name}_data_format"]
    network = run(parts(bundle, config))
    with torch.no_grad():
        found = network(**{name: draw(tensor) for name, tensor in described["inputs"].items()})
    wanted = described["outputs"]["pred"]
    assert tuple(found.shape) == (2, wanted["num_channels"], *wanted["spatial_shape"])
    assert str(found.dtype) == f"torch.{wanted['dtype']}"
    if wanted["value_range"]:
        assert wanted["value_range"][0] <= found.min()
        assert found.max() <= wanted["value_range"][1]


def run_autoencoder(vae: Any) -> Callable[..., torch.Tensor]:
    return lambda image: vae(image).sample


def run_encoder(encoder: Any) -> Callable[..., torch.Tensor]:
    return lambda tokens: encoder(tokens).last_hidden_state


def test_the_networks_shape_is_verified_by_monai(bundle: Path) -> None:
    done = monai_bundle("verify_net_in_out", "network_def", "--config_file", "configs/inference.json",
                        "--meta_file", "configs/metadata.json", "--device", "cpu", cwd=bundle)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "data shape of network is verified with no error" in done.stdout + done.stderr


def test_the_decoder_is_exported_as_torchscript(bundle: Path, tmp_path: Path) -> None:
    config = str(bundle / "configs" / "export.json")
    written = monai_bundle("run", "--config_file", config, "--bundle_root", str(bundle), "--decoder_weights",
                           str(tmp_path / "decoder.pt"), cwd=tmp_path)  # fmt: skip
    assert written.returncode == 0, written.stderr[-2000:]
    done = monai_bundle("ckpt_export", "decoder_def", "--config_file", config, "--bundle_root", str(bundle),
                        "--ckpt_file", str(tmp_path / "decoder.pt"), "--filepath", str(tmp_path / "decoder.ts"),
                        "--use_trace", "True", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    vae = parts(bundle, "inference.json").get_parsed_content("vae_def")
    side = 64 // 2 ** (len(vae.config.block_out_channels) - 1)
    latents = torch.randn(3, vae.config.latent_channels, side, side)
    with torch.no_grad():
        found, expected = torch.jit.load(tmp_path / "decoder.ts")(latents), decode_latents(vae, latents)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_one_epoch_of_training_and_its_inference(
    bundle: Path, datalist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = workflow(bundle, "train", datalist=datalist, output_dir="trained", epochs=1, batch_size=8, val_interval=1,
                     val_images=2, val_steps=2, scorer=str(make_tiny_clip(tmp_path / "scorer")))  # fmt: skip
    run(train)
    trained = torch.load(tmp_path / "trained" / "models" / "model.pt", weights_only=True)
    base = parts(bundle, "inference.json").get_parsed_content("network_def").state_dict()
    assert trained.keys() == base.keys()
    assert any(not torch.equal(value, base[name]) for name, value in trained.items())

    inference = workflow(bundle, "inference", weights="trained/models/model.pt", output_dir="made", seeds=7,
                         prompts="a round nodule", guidance_scales=2, steps=2)  # fmt: skip
    run(inference)
    (item,) = load_generated(tmp_path / "made").items
    assert (item["prompt"], item["seed"]) == ("a round nodule", 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "scorer", "trained"]


def workflow(bundle: Path, kind: str, **settings: Any) -> ConfigWorkflow:
    configs = bundle / "configs"
    return create_workflow(
        config_file=str(configs / f"{kind}.json"),
        meta_file=str(configs / "metadata.json"),
        logging_file=str(configs / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(bundle),
        **settings,
    )


def run(flow: ConfigWorkflow) -> None:
    assert flow.check_properties() == []
    flow.run()
    flow.finalize()


def test_workers_of_any_platform_can_be_given_the_data(bundle: Path, datalist: str, tmp_path: Path) -> None:
    """Where processes are not forked, as on Windows and macOS, a worker's dataset and collation are pickled."""
    flow = workflow(bundle, "train", datalist=datalist, output_dir=str(tmp_path / "out"))
    for name in ("train#dataloader", "validate#dataloader"):
        loader = flow.parser.get_parsed_content(name)
        dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
        assert len(dataset) == len(loader.dataset) > 0
        first = next(iter(loader.batch_sampler))[0]
        assert collate([dataset[first]])


def test_large_files_are_listed_and_no_other(bundle: Path) -> None:
    listed = {one["path"] for one in ConfigParser.load_config_file(bundle / "large_files.yml")["large_files"]}
    files = [path for part in ("configs", "docs", "models") for path in (bundle / part).rglob("*") if path.is_file()]
    large = {path.relative_to(bundle).as_posix() for path in files if path.stat().st_size > LARGE_FILE_BYTES}
    assert large == {name for name in listed if (bundle / name).is_file()}


def test_the_readme_has_the_zoos_sections(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^#{1,2} (.+)$", text, re.MULTILINE) == SECTIONS
    licences = text.partition("## License")[2]
    assert all(f"- {what}: " in licences for what in ("Code", "Data", "Weights"))


def test_commands_of_the_readme_name_what_there_is(bundle: Path) -> None:
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"configs/\w+\.\w+", text))
    assert {"configs/train.json", "configs/inference.json", "configs/export.json"} <= named
    assert all((bundle / name).is_file() for name in named)


def test_no_file_knows_whose_machine_it_was_written_on(bundle: Path) -> None:
    kinds = {".json", ".md", ".txt", ".yml", ".conf"}
    files = [path for part in ("configs", "docs", "models") for path in (bundle / part).rglob("*")]
    texts = [path for path in files if path.suffix in kinds and path.name != "tokenizer.json"]
    assert len(texts) > 15
    for path in texts:
        assert not re.search(r"/home/|/root/|/Users/|[A-Z]:\\\\", path.read_text(encoding="utf-8")), path
