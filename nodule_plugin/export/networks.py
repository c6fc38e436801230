"""Networks for other runtimes: U-Net, decoder and text encoder as ONNX and as programs of ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from nodule_plugin.diffusion.model import FineTunedModel
from nodule_plugin.diffusion.sampling import decode_latents
from nodule_plugin.errors import InputError
from nodule_plugin.export.model import NOTICE, TOLERANCE
from nodule_plugin.extras import check_installed
from nodule_plugin.files import replacing
from nodule_plugin.weights import save_tensors

Shapes = dict[str, tuple[int, ...]]
"""Name of each input -> its shape without the batch, which is free."""

_LARGEST = 2**31 - 2**20  # a protobuf message's limit, less what is not weights
_WHOLE_NUMBERS = {"timesteps", "input_ids"}
_LARGEST_BATCH = 63  # from 64 on diffusers' upsampling takes another way through the graph
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class LatentDecoder(nn.Module):
    """Sampled latents to pixels in [-1, 1], as the sampler does it: one tensor in, one out, which can be traced.

    Args:
        vae: diffusers' AutoencoderKL; its configuration holds the latents' scaling.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """(B, latent channels, h, w) latents to (B, 3, H, W) pixels; see :func:`decode_latents`."""
        return decode_latents(self.vae, image)


class PromptEncoder(nn.Module):
    """Tokens to the hidden states that condition the U-Net: one tensor in, one out, which can be traced.

    Args:
        text_encoder: transformers' CLIPTextModel.
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.eval()

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, tokens) token ids, int64, to (B, tokens, width)."""
        return self.text_encoder(input_ids).last_hidden_state


def save_decoder_weights(decoder: nn.Module, path: str | Path) -> Path:
    """Write the decoder's state dict as a file that ``monai.bundle ckpt_export --ckpt_file`` reads.

    A base model keeps its weights as safetensors, which that command does not read.

    Raises:
        InputError: if the file cannot be written.
    """
    path = Path(path)
    try:
        save_tensors(decoder.state_dict(), path)
    except OSError as error:
        raise InputError(f"decoder_weights: {path} cannot be written ({error.strerror})") from error
    return path


def write_onnx(model: FineTunedModel, folder: Path) -> dict[str, float]:
    """Write ``unet.onnx``, ``decoder.onnx`` and ``text_encoder.onnx``, see :func:`traced_networks`.

    Returns:
        File name -> largest absolute difference from PyTorch on random inputs of a batch the export did not see.

    Raises:
        InputError: if onnx, onnxscript or onnxruntime is missing, a network is too large for one file, or differs from
            PyTorch's by more than :data:`~nodule_plugin.export.model.TOLERANCE`.
    """
    for package in _ONNX_PACKAGES:
        check_installed(package, "onnx")
    return {
        f"{name}.onnx": save_network(network, folder / f"{name}.onnx", shapes, save_onnx, run_onnx)
        for name, (network, shapes) in traced_networks(model).items()
    }


def write_programs(model: FineTunedModel, folder: Path) -> dict[str, float]:
    """Write ``unet.pt2``, ``decoder.pt2``, ``text_encoder.pt2`` for ``torch.export.load``; see :func:`write_onnx`."""
    return {
        f"{name}.pt2": save_network(network, folder / f"{name}.pt2", shapes, save_program, run_program)
        for name, (network, shapes) in traced_networks(model).items()
    }


def traced_networks(model: FineTunedModel) -> dict[str, tuple[nn.Module, Shapes]]:
    """The networks of a model with their inputs.

    The U-Net takes ``image`` (B, C, h, w), ``timesteps`` (B,) and ``context`` (B, tokens, width); the decoder takes
    ``image`` (B, C, h, w) and gives pixels in [-1, 1]; the text encoder takes ``input_ids`` (B, tokens) and gives
    ``context``. The batch is free, 1 to 63; the other sizes are those of the model's image size and tokenizer.
    """
    tokens, width = model.tokenizer.model_max_length, model.text_encoder.config.hidden_size
    return {
        "unet": (model.network, {"image": model.latent_shape, "timesteps": (), "context": (tokens, width)}),
        "decoder": (LatentDecoder(model.vae), {"image": model.latent_shape}),
        "text_encoder": (PromptEncoder(model.text_encoder), {"input_ids": (tokens,)}),
    }


def save_network(
    network: nn.Module,
    path: Path,
    shapes: Shapes,
    save: Callable[[ExportedProgram, Path], None],
    run: Callable[[Path, dict[str, Tensor]], Tensor],
) -> float:
    """Write a network for another runtime, if that gives what PyTorch gives.

    Args:
        network: in evaluation mode.
        path: of the file.
        shapes: of its inputs. ``timesteps`` and ``input_ids`` are whole numbers, everything else is float32.
        save: writes the traced network.
        run: the file's network on inputs by name.

    Returns:
        The largest absolute difference between the file's and the network's output.

    Raises:
        InputError: see :func:`write_onnx`.
    """
    with replacing(path) as temporary, torch.no_grad():
        save(trace(network, shapes), temporary)
        inputs = _inputs(shapes, 3, seed=1)
        difference = float((run(temporary, inputs) - network(**inputs)).abs().max())
        if not difference <= TOLERANCE:
            raise InputError(f"{path}: the exported network differs from PyTorch's by {difference:.2g} (> {TOLERANCE})")
    return difference


def trace(network: nn.Module, shapes: Shapes) -> ExportedProgram:
    """A network's operations and weights, with a free batch."""
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    dynamic = {name: {0: batch} for name in shapes}
    return torch.export.export(network, (), _inputs(shapes, 2, seed=0), dynamic_shapes=dynamic)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write what ``torch.export.load`` reads, with the notice as a file in it."""
    torch.export.save(program, path, extra_files={"notice.txt": NOTICE})


def run_program(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    """What the network in a file of :func:`save_program` gives."""
    return torch.export.load(path).module()(**inputs)


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an ONNX file with the output ``pred`` and the notice among its properties.

    Raises:
        InputError: if the network is too large for one file.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _LARGEST:
        raise InputError(f"{path}: ONNX holds at most 2 GiB in one file, and the network has {size / 2**30:.1f} GiB")
    exported: Any = torch.onnx.export(program, output_names=["pred"], dynamo=True, external_data=False, verbose=False)
    exported.model.metadata_props["notice"] = NOTICE
    exported.save(path)


def run_onnx(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    """What the network in a file of :func:`save_onnx` gives, in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(output)


def _inputs(shapes: Shapes, batch: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 1000, (batch, *shape), generator=generator)
        if name in _WHOLE_NUMBERS
        else torch.randn(batch, *shape, generator=generator)
        for name, shape in shapes.items()
    }
