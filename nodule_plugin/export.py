"""Networks for other runtimes: the decoder as one module of one tensor, and ONNX files of U-Net and decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nodule_plugin.diffusion.components import load_text_encoder, load_vae
from nodule_plugin.diffusion.fine_tuned import load_weights
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import decode_latents
from nodule_plugin.errors import InputError
from nodule_plugin.extras import check_installed
from nodule_plugin.files import replacing
from nodule_plugin.weights import save_tensors

TOLERANCE = 1e-3
"""The largest difference between an exported network and PyTorch's that is accepted, absolute."""

_LARGEST = 2**31 - 2**20  # a protobuf message's limit, less what is not weights


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


def export_onnx(
    base_model: str,
    weights: str | Path | None,
    output_dir: str | Path,
    image_size: int = 64,
    revision: str | None = None,
    variant: str | None = None,
) -> dict[str, float]:
    """Write ``unet.onnx`` and ``decoder.onnx``, each compared with PyTorch in onnxruntime before it takes its name.

    The U-Net takes ``image`` (B, C, h, w), ``timesteps`` (B,) and ``context`` (B, tokens, width); the decoder takes
    ``image`` (B, C, h, w) and gives pixels in [-1, 1]. The batch is free; the other sizes are those of ``image_size``.

    Args:
        base_model, revision, variant: see :func:`nodule_plugin.diffusion.components.load_unet`.
        weights: a fine-tuned ``model.pt``; None for the base model's own.
        output_dir: made where there is none.
        image_size: side of the images in pixels.

    Returns:
        File name -> largest absolute difference from PyTorch on random inputs of a batch the export did not see.

    Raises:
        InputError: if onnx, onnxscript or onnxruntime is missing, a model or its weights cannot be read, or an
            exported network differs from PyTorch's by more than :data:`TOLERANCE`.
    """
    network = DiffusionUNet.from_base(base_model, revision, variant).eval()
    if weights is not None:
        load_weights(weights, network)
    vae = load_vae(base_model, revision, variant)
    encoder = load_text_encoder(base_model, revision, variant)
    context = (encoder.config.max_position_embeddings, encoder.config.hidden_size)
    side = image_size // 2 ** (len(vae.config.block_out_channels) - 1)
    latent = (vae.config.latent_channels, side, side)
    folder = Path(output_dir)
    return {
        "unet.onnx": export_network(
            network, folder / "unet.onnx", {"image": latent, "timesteps": (), "context": context}
        ),
        "decoder.onnx": export_network(LatentDecoder(vae), folder / "decoder.onnx", {"image": latent}),
    }


def export_network(network: nn.Module, path: Path, shapes: dict[str, tuple[int, ...]]) -> float:
    """Write a network as ONNX, if onnxruntime gives what it gives.

    Args:
        network: in evaluation mode.
        path: of the file.
        shapes: name of each input -> its shape without the batch, which is free. ``timesteps`` are whole numbers
            below 1000, everything else is float32.

    Returns:
        The largest absolute difference between the file's and the network's output.

    Raises:
        InputError: see :func:`export_onnx`; also if the network is too large for one file.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        check_installed(package, "onnx")
    size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    if size > _LARGEST:
        raise InputError(f"{path}: ONNX holds at most 2 GiB in one file, and the network has {size / 2**30:.1f} GiB")
    batch = torch.export.Dim("batch", min=1, max=64)
    with replacing(path) as temporary, torch.no_grad():
        torch.onnx.export(
            network,
            kwargs=_inputs(shapes, 2, seed=0),
            f=temporary,
            input_names=list(shapes),
            output_names=["pred"],
            dynamic_shapes={name: {0: batch} for name in shapes},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        difference = _difference(network, temporary, _inputs(shapes, 3, seed=1))
        if not difference <= TOLERANCE:
            raise InputError(f"{path}: the exported network differs from PyTorch's by {difference:.2g} (> {TOLERANCE})")
    return difference


def _inputs(shapes: dict[str, tuple[int, ...]], batch: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(0, 1000, (batch,), generator=generator)
        if name == "timesteps"
        else torch.randn(batch, *shape, generator=generator)
        for name, shape in shapes.items()
    }


def _difference(network: nn.Module, path: Path, inputs: dict[str, Tensor]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return float((torch.from_numpy(output) - network(**inputs)).abs().max())
