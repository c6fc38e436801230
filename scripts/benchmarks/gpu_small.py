"""The bundle's own training of the small models on a bare GPU, both at once, until a given time.

    python gpu_small.py SETTINGS.json    # as gpu_stages writes them

Laid over the configurations: large batches, float32, a learning rate that stays, no validation (its networks are not on
a bare machine), epochs that go several times over the data, and weights that fit through a narrow door.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import run
from monai.data import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nodule_plugin.data.datalist import datalist_kernel, load_datalist
from nodule_plugin.data.order import SampleKey
from nodule_plugin.data.transforms import ORIENTATIONS, nodule_transform, orient
from nodule_plugin.data.window import DEFAULT_WINDOW_HU
from nodule_plugin.diffusion.components import load_vae
from nodule_plugin.diffusion.encoding import open_latent_cache
from nodule_plugin.diffusion.iteration import StepEvents, count_steps
from nodule_plugin.diffusion.network import export_weights
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing, write_text_atomically

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parents[1] / "bundle"
IMAGE_SIZE = 64
KEPT = 2
TIMES = 40
"""How often an epoch goes over the data: workers and pipelines start anew with each epoch."""
OVERLAYS = {"unet": "from_scratch.json", "inpainter": "train_insertion.json"}


class Repeated(torch.utils.data.Dataset):
    """A training's data set for an order that is :data:`TIMES` as long."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return TIMES * len(self.dataset)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        return self.dataset[key._replace(item=key.item % len(self.dataset))]


def fill_cache(datalist: Path, base_model: str, folder: Path, workers: int) -> None:
    """The latents of all training images in all orientations, where a training finds them."""
    items = load_datalist(datalist, "training", drop_padded=True)
    transform = nodule_transform(IMAGE_SIZE, list(DEFAULT_WINDOW_HU), kernel=datalist_kernel(datalist))
    # Read before CUDA starts: workers are forks of this process.
    loader = DataLoader(Dataset(items, transform), batch_size=16, num_workers=workers, collate_fn=_images)
    images = torch.cat(list(loader))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae: Any = load_vae(base_model)
    cache = open_latent_cache(folder, "training", vae.to(device), items, transform)
    assert cache is not None  # a folder is given, and a data list without items is refused
    torch.backends.cudnn.allow_tf32 = False  # as in training, which encodes in float32
    for first in range(0, len(images), 64):
        for orientation in range(ORIENTATIONS):
            batch = torch.stack([orient(image, orientation) for image in images[first : first + 64]])
            with torch.no_grad():
                moments = vae.encode(batch.to(device)).latent_dist.parameters
            cache.put([(first + row, orientation) for row in range(len(batch))], moments)


def _images(samples: Sequence[Mapping[str, Any]]) -> Tensor:
    return torch.stack([torch.as_tensor(sample["image"]) for sample in samples])


def overlay(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is laid over the configurations of one of :data:`OVERLAYS`."""
    model, work, output = settings["models"][name], Path(settings["work"]), settings["output"]
    common = {
        "+imports": ["$import gpu_small"],
        **model,
        "output_dir": str(work / name),
        "precision": "float32",
        "batch_size": settings["batch_size"],
        "lr_schedule": "constant_with_warmup",  # nobody knows how many steps there will be
        "epochs": 10**6,
        "checkpoint": None,
        "checkpoint_steps": 10**9,
        "curves": None,
        "val_interval": 10**6,
        "train#sampler#length": "$gpu_small.TIMES * len(@train#dataset)",
        "train#dataloader#dataset": "$gpu_small.Repeated(@train#dataset)",
        "+train#handlers": [
            {
                "_target_": "gpu_small.KeepWeights",
                "network": "$@ema.model",
                "name": name,
                "folder": output,
                "progress": str(work / f"{name}.json"),
                **{key: settings[key] for key in ("until", "every", "most_bytes")},
            }
        ],
    }
    if name == "inpainter":  # whose samples are cut anew each time
        return common | {"num_workers": settings["workers"]}
    unjudged = {"val_images": 0, "validate#data": [], "validate#key_metric": None, "summary_writer": None}
    return common | unjudged | {"latent_cache": str(work / "latents"), "allow_marked": True, "num_workers": 0}


def train(name: str, settings: Mapping[str, Any]) -> None:
    """One training, as ``python -m monai.bundle run training`` does it."""
    file = Path(settings["work"]) / f"{name}_overlay.json"
    file.write_text(json.dumps(overlay(name, settings), indent=1))
    files = [BUNDLE / "configs" / "train.json", BUNDLE / "configs" / OVERLAYS[name], *settings["further"], file]
    sys.path.insert(0, str(HERE))  # the configuration imports this module by its name
    run("training", config_file=[str(one) for one in files], bundle_root=str(BUNDLE))


def start(work: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """A process that has imported everything already: a fork, so long as this one has not begun to use the GPU."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def main() -> None:
    """See the module; fails where one of the trainings does."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    models = settings["models"]
    running = [start(train, "inpainter", settings)] if "inpainter" in models else []
    if "unet" in models:
        unet, folder = models["unet"], Path(settings["work"]) / "latents"
        filling = start(fill_cache, Path(unet["datalist"]), unet["base_model"], folder, settings["workers"])
        filling.join()
        running.append(filling if filling.exitcode else start(train, "unet", settings))
    for process in running:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in running))


class KeepWeights:
    """Write a network's weights in half precision again and again, and end the training when its time is over.

    Args:
        network: whose weights, as :func:`nodule_plugin.diffusion.network.export_weights` gives them.
        name: of the files.
        folder: gets ``NAME_STEP.pt``, the last two.
        progress: JSON, what has been done when the last file was written.
        until: time (of :func:`time.time`) after which the training ends.
        every: seconds between two files.
        most_bytes: of a file.

    Raises:
        InputError: if the weights are larger.
    """

    def __init__(
        self, network: nn.Module, name: str, folder: str, progress: str, until: float, every: float, most_bytes: int
    ) -> None:
        needed = sum(2 * value.numel() for value in network.state_dict().values())
        if needed > 0.98 * most_bytes:  # names and headers are a hundredth
            raise InputError(f"small models: weights of {needed} bytes in half precision, more than {most_bytes}")
        self.network = network
        self.name = name
        self.folder = Path(folder)
        self.progress = Path(progress)
        self.until = until
        self.every = every
        self._images = 0
        self._losses: list[float] = []
        self._written = self._first = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow the trainer ``engine``; attach it after what averages the weights."""
        count_steps(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(StepEvents.STEP_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def _count(self, engine: Engine) -> None:
        if self._first:
            self._images += len(engine.state.batch["id"])

    def __call__(self, engine: Engine) -> None:
        now = time.time()
        self._losses.append(engine.state.step_loss)
        if not self._first:  # the first step loads and tunes kernels
            self._first = self._written = now
        if now >= self.until:
            engine.terminate()
        elif now >= self._written + self.every:
            self.save(engine)

    def save(self, engine: Engine) -> None:
        """Write the weights, remove the oldest, note the progress."""
        seconds = time.time() - self._first
        path = self.folder / f"{self.name}_{engine.state.step:07d}.pt"
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({name: value.half().cpu() for name, value in export_weights(self.network).items()}, file)
        kept = sorted(self.folder.glob(f"{self.name}_*.pt"))
        for old in kept[:-KEPT]:
            old.unlink()
        done = {
            "case": self.name,
            "step": engine.state.step,
            "seconds": seconds,
            "rate": self._images / seconds if seconds else None,
            "loss": sum(self._losses) / len(self._losses) if self._losses else None,
            "weights": ", ".join(file.name for file in kept[-KEPT:]),
        }
        write_text_atomically(self.progress, json.dumps(done))
        self._losses = []
        self._written = time.time()


if __name__ == "__main__":
    main()
