"""An audit: the same attacks on the model in question and on a control that was overfitted on purpose."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import Tensor, nn
from tqdm import tqdm

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.pixels import to_uint8
from nodule_plugin.diffusion.fine_tuned import BASE_WEIGHTS, load_weights
from nodule_plugin.diffusion.losses import denoising_losses, encoded_views
from nodule_plugin.diffusion.sampling import GenerationPrepareBatch, GuidedSampler
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing
from nodule_plugin.metrics.extraction import Clique, identified, identity_threshold, prompt_cliques
from nodule_plugin.metrics.membership import (
    describe_attack,
    likelihood_ratio_scores,
    nearest_generated_scores,
    patient_scores,
)
from nodule_plugin.metrics.memorization import FALSE_ALARMS, CopyDetector
from nodule_plugin.metrics.privacy import FORMAT, LIMITS, VERSION, audit_verdict
from nodule_plugin.privacy.references import ReferenceTrainer, balanced_halves
from nodule_plugin.settings import as_numbers, as_seeds
from nodule_plugin.weights import weights_sha256

logger = logging.getLogger(__name__)
LOSS, NEAREST = "denoising loss", "nearest generated"
"""The two attacks: with the generator's weights, and with its images alone."""
FEWEST = 4
"""Members and held-out patients: fewer say nothing."""


@dataclass(frozen=True)
class Question:
    """What an attack asks a generator.

    Attributes:
        timesteps: at which the denoising loss is taken.
        views: draws at each of them, under other noise each.
        seeds: each makes an image from every prompt,
        guidance_scales: at each of these.
        clique: near-identical images of a prompt that count as remembered.
        planted: copies that calibrate the search for copies, see :class:`CopyDetector`.
        batch_size: samples in one forward pass.
        seed: of all noise.
    """

    timesteps: Sequence[int] = (100, 400, 600, 800)
    views: int = 4
    seeds: Any = (0, 1, 2, 3)
    guidance_scales: Any = 3.0
    clique: int = 3
    planted: int = 100
    batch_size: int = 32
    seed: int = 0


@dataclass
class Patients:
    """The images that are asked for: those of members and of held-out patients, cut alike.

    Attributes:
        images: N of (3, H, W) in [-1, 1].
        prompts, ids, names: their prompts, patients and ids.
        members: those whose images the audited model learnt from.
    """

    images: list[Tensor]
    prompts: list[str]
    ids: list[str]
    names: list[str]
    members: set[str]

    def places(self, patients: set[str]) -> list[int]:
        """Of the images of these patients."""
        return [place for place, patient in enumerate(self.ids) if patient in patients]

    @cached_property
    def held_out(self) -> set[str]:
        """Patients that no audited model learnt from."""
        return set(self.ids) - self.members

    @cached_property
    def pictures(self) -> list[Tensor]:
        """The images as (3, H, W) uint8."""
        return list(to_uint8(torch.stack(self.images)))


def load_patients(
    datalist: str | Path,
    held_out: Sequence[str],
    transform: Callable[[Any], Any],
    dataset_dir: str | Path | None = None,
    drop_padded: bool | str = True,
    limit: int | None = None,
    seed: int = 0,
) -> Patients:
    """Load the images of members and held-out patients from a data list.

    Args:
        datalist: whose training split the model learnt from.
        held_out: splits that nothing was trained on.
        transform: from an item to ``image``, (3, H, W) in [-1, 1].
        dataset_dir, drop_padded: see :func:`nodule_plugin.data.datalist.load_datalist`.
        limit: members that are audited, drawn at random; None for all.
        seed: of that draw.

    Raises:
        InputError: if there are too few patients, or one is on both sides.
    """
    splits = [held_out] if isinstance(held_out, str) else list(held_out)
    training, *others_of = (load_datalist(datalist, each, dataset_dir, drop_padded) for each in ("training", *splits))
    others_items = [item for items in others_of for item in items]
    members = sorted({item["patient_id"] for item in training})
    others = {item["patient_id"] for item in others_items}
    if both := others.intersection(members):
        raise InputError(f"held_out: {len(both)} patients are in the training split too, such as {min(both)}")
    if limit is not None:
        members = [str(each) for each in np.random.default_rng(seed).permutation(members)[:limit]]
    if min(len(members), len(others)) < FEWEST:
        raise InputError(
            f"audit: {len(members)} members and {len(others)} held-out patients; at least {FEWEST} of either are needed"
        )
    items = [item for item in training if item["patient_id"] in set(members)] + others_items
    prompts, ids, names = ([item[name] for item in items] for name in ("prompt", "patient_id", "id"))
    return Patients([torch.as_tensor(transform(item)["image"]) for item in items], prompts, ids, names, set(members))


@dataclass
class Auditor:
    """Asks generators that share an autoencoder and a text encoder about the same patients, with the same noise.

    Attributes:
        patients: asked about.
        vae, conditioner, scheduler, sampler: what the generators share.
        question: what is asked.
        cache_dir: keeps the losses of every generator for a further run; None keeps none.
        references: (K, N, T) losses of the reference models.
        unseen: (K, N) whether a reference model did not see an image's patient.
    """

    patients: Patients
    vae: AutoencoderKL
    conditioner: Callable[[list[str]], Tensor]
    scheduler: DDPMScheduler
    sampler: GuidedSampler
    question: Question = Question()
    cache_dir: str | Path | None = None
    references: list[np.ndarray] = field(default_factory=list)
    unseen: list[list[bool]] = field(default_factory=list)

    @cached_property
    def latents(self) -> Tensor:
        """(N, D, C, h, w), see :func:`nodule_plugin.diffusion.losses.encoded_views`."""
        return encoded_views(self.patients.images, self.vae, self.question.views, self.question.seed)

    def losses(self, network: nn.Module) -> np.ndarray:
        """(N, T) of one generator."""
        if self.cache_dir is None:
            return self._losses(network)
        known = [list(self.question.timesteps), self.question.seed, self.patients.prompts, self.sampler.precision]
        decides = (weights_sha256(network) + json.dumps(known)).encode()
        key = sha256(self.latents.numpy().tobytes() + decides).hexdigest()
        file = Path(self.cache_dir) / f"losses_{key[:16]}.npy"
        if not file.is_file():
            losses = self._losses(network)
            with replacing(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, losses)
        return np.asarray(np.load(file))

    def _losses(self, network: nn.Module) -> np.ndarray:
        asked = self.question
        return denoising_losses(
            network,
            self.scheduler,
            self.conditioner,
            self.latents,
            self.patients.prompts,
            asked.timesteps,
            asked.seed,
            asked.batch_size,
            self.sampler.precision,
        )

    def add_reference(self, network: nn.Module, seen: set[str]) -> None:
        """Take a reference model that learnt from the patients ``seen``."""
        self.references.append(self.losses(network))
        self.unseen.append([patient not in seen for patient in self.patients.ids])

    @torch.no_grad()
    def generate(self, network: nn.Module) -> dict[str, list[Tensor]]:
        """Prompt -> images (3, H, W) uint8, of every prompt that a patient has."""
        asked, size = self.question, self.patients.images[0].shape[-1]
        prepare = GenerationPrepareBatch(self.conditioner, self.vae, size)
        device = next(network.parameters()).device
        scales, seeds = as_numbers("guidance_scales", asked.guidance_scales), as_seeds("seeds", asked.seeds)
        made = {}
        for prompt in tqdm(sorted(set(self.patients.prompts)), desc="generating", leave=False):
            requests = [{"prompt": prompt, "guidance_scale": scale, "seed": seed} for scale in scales for seed in seeds]
            noise, _, _, conditions = prepare(requests, device)
            made[prompt] = list(to_uint8(self.sampler(noise, network, **conditions).cpu()))
        return made

    def attack(self, network: nn.Module, members: set[str]) -> tuple[dict[str, Any], list[Finding]]:
        """Attack a generator that learnt from ``members`` and not from the held-out patients.

        Returns:
            "attacks" (name -> see :func:`nodule_plugin.metrics.membership.describe_attack`) and "extraction" in numbers
            that name nobody; and what was extracted.
        """
        logger.info("attacking a model that learnt from %d of the patients", len(members))
        places = self.patients.places(members | self.patients.held_out)
        ids, prompts = self.patients.ids, self.patients.prompts
        losses, unseen = self.losses(network)[places], np.array(self.unseen)[:, places]
        scores = {LOSS: likelihood_ratio_scores(losses, np.stack(self.references)[:, places], unseen)}
        generated = self.generate(network)
        pictures = [self.patients.pictures[place] for place in places]
        scores[NEAREST] = nearest_generated_scores(pictures, [prompts[place] for place in places], generated)
        attacks = {}
        for name, by_image in scores.items():
            of = patient_scores(by_image, [ids[place] for place in places])
            inside, outside = (
                np.array([of[each] for each in sorted(side)]) for side in (members, self.patients.held_out)
            )
            attacks[name] = describe_attack(inside, outside, self.question.seed)
        extraction, found = self._extract(generated, members)
        return {"attacks": attacks, "extraction": extraction}, found

    def _extract(
        self, generated: Mapping[str, Sequence[Tensor]], members: set[str]
    ) -> tuple[dict[str, Any], list[Finding]]:
        seen, other = (self.patients.places(group) for group in (members, self.patients.held_out))
        training, held_out = ([self.patients.pictures[place] for place in group] for group in (seen, other))
        threshold = identity_threshold(training, held_out, FALSE_ALARMS)
        groups, found, detector = prompt_cliques(generated, threshold, self.question.clique), [], None
        if groups:
            detector = CopyDetector.calibrate(training, held_out, None, FALSE_ALARMS, self.question.planted)
            found = identified(groups, generated, detector)
        numbers = {
            "prompts": len(generated),
            "images": sum(map(len, generated.values())),
            "smallest_clique": self.question.clique,
            "near_identical_above": threshold,
            "cliques": len(found),
            "extracted": len({clique.training for clique in found if clique.extracted}),
            "detector": detector and detector.describe(),
        }
        pairs = [
            Finding(clique, self.patients.names[seen[clique.training]], training[clique.training],
                    [generated[clique.prompt][member] for member in clique.members])
            for clique in found if clique.extracted
        ]  # fmt: skip
        return numbers, pairs


@dataclass(frozen=True)
class Finding:
    """A training image that was extracted.

    Attributes:
        clique: of generated images.
        training: id of the training image.
        original: that image, (3, H, W) uint8.
        images: the generated ones.
    """

    clique: Clique
    training: str
    original: Tensor
    images: list[Tensor]


@dataclass(frozen=True)
class Audit:
    """The content of privacy.json, and what only the owner of the training images may see."""

    content: dict[str, Any]
    findings: list[Finding]


def run_audit(
    network: Any,
    weights: str,
    identity: str,
    auditor: Auditor,
    trainer: ReferenceTrainer,
    reference_models: int = 4,
    reference_training: Mapping[str, Any] | None = None,
    control_patients: int = 16,
    control_training: Mapping[str, Any] | None = None,
    limits: Mapping[str, float] = LIMITS,
    settings: Mapping[str, Any] | None = None,
) -> Audit:
    """Audit a generator.

    Args:
        network: of the generator; gets the weights.
        weights: see :func:`nodule_plugin.diffusion.fine_tuned.load_weights`.
        identity: SHA-256 of these weights, see :func:`nodule_plugin.diffusion.fine_tuned.identify_weights`.
        auditor: knows the patients and what to ask.
        trainer: of reference models and control.
        reference_models: see :func:`balanced_halves`. Members and held-out patients alike are divided among them, so
            that nothing but the audited model's training tells the two apart.
        reference_training, control_training: settings of train.json.
        control_patients: members that the control learns by heart, starting from the audited model.
        limits: see :data:`nodule_plugin.metrics.privacy.LIMITS`.
        settings: of the run, for the record.

    Raises:
        InputError: if a setting is out of its range or the weights do not fit.
    """
    patients, seed = auditor.patients, auditor.question.seed
    if not FEWEST <= control_patients <= len(patients.members):
        most = len(patients.members)
        raise InputError(f"control_patients: from {FEWEST} to {most} are needed, not {control_patients}")
    if weights != BASE_WEIGHTS:
        load_weights(weights, network)
    for number, half in enumerate(balanced_halves(sorted(set(patients.ids)), reference_models, seed)):
        auditor.add_reference(trainer.train(half, {**(reference_training or {}), "seed": seed + number}), half)
    drawn = np.random.default_rng(seed).permutation(sorted(patients.members))[:control_patients]
    chosen = {str(each) for each in drawn}
    overfitted = trainer.train(chosen, {**(control_training or {}), "seed": seed}, network.unet)
    control, _ = auditor.attack(overfitted, chosen)
    model, findings = auditor.attack(network, patients.members)
    verdict, reasons = audit_verdict(model, control, limits)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": {"weights_sha256": identity},
        "settings": dict(settings or {}),
        "limits": dict(limits),
        "audited": model,
        "control": control,
        "verdict": verdict,
        "reasons": reasons,
    }
    return Audit(content, findings)
