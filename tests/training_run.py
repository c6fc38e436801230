"""A training run in small: a very small U-Net on invented images, with everything that a run of the bundle has."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer

from nodule_plugin.data.latents import LatentCache, LatentDataset, collate_samples
from nodule_plugin.data.order import StepSampler
from nodule_plugin.diffusion.components import (
    TextConditioner,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from nodule_plugin.diffusion.iteration import StepEvents, TrainingIteration, count_steps
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.schedule import learning_rate_schedule
from nodule_plugin.diffusion.training import DenoisingLoss, DenoisingPrepareBatch
from nodule_plugin.handlers.checkpoint import TrainingCheckpoint
from nodule_plugin.handlers.ema import ExponentialMovingAverage
from nodule_plugin.handlers.order import EpochOrder

IMAGES = 5


def invented_image(item: dict[str, Any]) -> dict[str, Any]:
    """An image (3, 64, 64) that belongs to the item's id."""
    generator = torch.Generator().manual_seed(int(item["id"]))
    return {"image": torch.rand(3, 64, 64, generator=generator) * 2 - 1}


@cache
def frozen_parts(base: str) -> tuple[Any, TextConditioner, Any]:
    """Autoencoder, text encoder and noise schedule of a base model, read once."""
    return load_vae(base), TextConditioner(load_tokenizer(base), load_text_encoder(base)), load_noise_scheduler(base)


class Run:
    """The parts of a run; ``losses`` are those of its optimizer steps."""

    def __init__(
        self,
        base_model: Path,
        folder: Path | None = None,
        latents: LatentCache | None = None,
        batch_size: int = 2,
        accumulation_steps: int = 1,
        epochs: int = 2,
        every_steps: int | None = None,
        resume: bool = True,
        images: int = IMAGES,
        seed: int = 3,
        learning_rate: float = 1e-3,
        schedule: str = "cosine",
        network: dict[str, Any] | None = None,
        prepare: dict[str, Any] | None = None,
        iteration: dict[str, Any] | None = None,
        workers: int = 0,
        evaluator: Engine | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(0)
        base = str(base_model)
        self.network = DiffusionUNet.from_base(base, **(network or {}))
        self.optimizer = torch.optim.AdamW(self.network.trainable_parameters(), lr=learning_rate)
        items = [{"id": str(number), "prompt": f"nodule {number % 3}"} for number in range(images)]
        self.dataset = LatentDataset(items, invented_image, latents)
        self.sampler = StepSampler(images, batch_size, accumulation_steps, seed)
        schedule_ = learning_rate_schedule(schedule, self.optimizer, 1, epochs * self.sampler.steps_per_epoch)
        self.iteration = TrainingIteration(self.optimizer, self.sampler, lr_scheduler=schedule_, **(iteration or {}))
        self.ema = ExponentialMovingAverage(self.network, 0.9)
        vae, conditioner, scheduler = frozen_parts(base)
        settings = {"caption_dropout": 0.2} | (prepare or {})
        prepare_batch = DenoisingPrepareBatch(vae, conditioner, scheduler, latents, **settings)
        self.losses: list[float] = []
        handlers: list[Any] = [self, EpochOrder(self.sampler), self.ema]
        if folder is not None:
            saved = {"network": self.network, "optimizer": self.optimizer, "ema": self.ema}
            saved |= {"iteration": self.iteration}
            options: dict[str, Any] = {"resume": resume, "evaluator": evaluator}
            checkpoint = TrainingCheckpoint(str(folder), saved, self.sampler, recipe, every_steps, **options)
            handlers.append(checkpoint)
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=DataLoader(
                self.dataset, batch_sampler=self.sampler, collate_fn=collate_samples, num_workers=workers
            ),
            network=self.network,
            optimizer=self.optimizer,
            loss_function=DenoisingLoss(),
            prepare_batch=prepare_batch,
            inferer=SimpleInferer(),
            iteration_update=self.iteration,
            train_handlers=handlers,
            decollate=False,
        )

    def attach(self, engine: Any) -> None:
        """Note the losses, as a handler."""
        count_steps(engine)
        engine.add_event_handler(StepEvents.STEP_COMPLETED, lambda engine: self.losses.append(engine.state.step_loss))

    def train(self) -> Run:
        """Run to the end."""
        self.trainer.run()
        return self

    def weights(self) -> torch.Tensor:
        """All weights of network and average in one row."""
        modules = (self.network, self.ema.model)
        return torch.cat([value.detach().flatten() for module in modules for value in module.state_dict().values()])
