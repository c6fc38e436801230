"""A U-Net that makes in four steps, guidance included, what the small model makes in sixteen guided ones.

The small model's own sampler is run from noise to image for prompts of its training, and a copy of its U-Net learns to
go from every fourth state to the next in one step of DDIM. That is progressive distillation (Salimans & Ho, ICLR 2022,
arXiv:2202.00512) in one stage, with the guidance taken into the weights (Meng et al., CVPR 2023, arXiv:2210.03142) at
the one scale that suits them, so that the network is called once a step: 4 times where the default's 15 steps call it
30 times.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.data.requests import rating_steps
from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.model import FineTunedModel, Source, load_model
from nodule_plugin.diffusion.provenance import Distilled
from nodule_plugin.diffusion.sampling import derive_scheduler
from nodule_plugin.errors import InputError
from nodule_plugin.files import replacing, write_json
from nodule_plugin.findings import Findings
from nodule_plugin.prompts import findings_to_prompt, get_template
from nodule_plugin.weights import save_tensors

STEPS, SCHEDULER = 4, "DDIMScheduler"
"""Of the student. A step of DDIM is linear in what the network says, so what it should say can be solved for."""
TEACHER_STEPS, TEACHER_SCHEDULER = 16, "DPMSolverMultistepScheduler"
"""One more than inference's default, so that the student's timesteps are among the teacher's."""
CHUNK = 48
"""Trajectories in a file."""
CHECKPOINT_EVERY = 100
"""Steps of the training."""
TEMPLATES = ("reference", "reference", "reference", "detailed")
"""Wordings as often as the small model's training has them."""


def distil(
    models: Path, datalist: Path, work: Path, output: Path, trajectories: int = 7200, steps: int = 2400, seed: int = 0
) -> None:
    """Teach the small model's images to a U-Net of few steps.

    Args:
        models: folder with the teacher: ``tiny``, ``model.pt`` and ``model.json``.
        datalist: of its training.
        work: folder for what is kept when it is interrupted.
        output: folder for ``model.pt``, in half precision, and ``model.json``.
        trajectories: of the teacher, to learn from.
        steps, seed: see :func:`train_few_steps`.

    Raises:
        InputError: if the student's timesteps are not among the teacher's, as trailing ones are.
    """
    teacher = load_model(Source(str(models / "tiny"), str(models / "model.pt")))
    check_timesteps(teacher)
    items = load_datalist(datalist, "training")
    chunks = math.ceil(trajectories / CHUNK)
    files = record_trajectories(teacher, items, teacher.guidance_scale, chunks, work / "trajectories")
    student = train_few_steps(teacher, files, work / "checkpoint.pt", steps, seed=seed)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "model.json", record_of(teacher))
    save_tensors({name: tensor.half() for name, tensor in student.state_dict().items()}, output / "model.pt")


def check_timesteps(teacher: FineTunedModel) -> None:
    """Refuse a noise schedule with which the teacher does not pass where the student stops.

    Raises:
        InputError: see :func:`distil`.
    """
    student, slow = (
        derive_scheduler(teacher.scheduler, SCHEDULER),
        derive_scheduler(teacher.scheduler, TEACHER_SCHEDULER),
    )
    student.set_timesteps(STEPS)
    slow.set_timesteps(TEACHER_STEPS)
    own, passed = student.timesteps.tolist(), slow.timesteps[:: TEACHER_STEPS // STEPS].tolist()
    if own != passed:
        raise InputError(
            f"base_model: {STEPS} steps of {SCHEDULER} are at {own}, and the teacher passes {passed}; few steps are "
            f"taught where the scheduler's timestep_spacing is 'trailing', not {student.config.timestep_spacing!r}"
        )


def record_of(teacher: FineTunedModel) -> dict[str, Any]:
    """``model.json`` of the student."""
    taught = Distilled(teacher.sha256, teacher.guidance_scale, SCHEDULER, STEPS)
    record = {**teacher.preprocessing, "distilled": asdict(taught)}
    guidance = record.pop("guidance", None)
    return record if guidance is None else {**record, "guidance": {"scale": 1.0, "split": guidance["split"]}}


def draw_prompts(items: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[str]:
    """Prompts of findings as training nodules have them; every other one has one finding moved to another place on its
    scale, so that the student also meets what sliders can ask for and no nodule shows.

    Args:
        items: of a data list's training split.
        count, seed: of the prompts.
    """
    generator = torch.Generator().manual_seed(seed)

    def any_of(choices: Sequence[Any]) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    prompts = []
    for number in range(count):
        findings, template = any_of(items)["findings"], any_of(TEMPLATES)
        if number % 2:
            findings = any_of(rating_steps(findings, any_of(list(get_template(template).wording)), template))
        prompts.append(findings_to_prompt(Findings.from_dict(findings), template))
    return prompts


def record_trajectories(
    model: FineTunedModel, items: Sequence[Mapping[str, Any]], guidance: float, chunks: int, folder: Path
) -> list[Path]:
    """States of the teacher's sampler, from noise to latents.

    Args:
        model: the teacher.
        items: of a data list's training split.
        guidance: scale.
        chunks: files, of :data:`CHUNK` trajectories each.
        folder: for the files; those that it holds are not made again.

    Returns:
        The files: each has "prompts" and "states", (:data:`CHUNK`, :data:`STEPS` + 1, C, h, w), the noise first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04d}.pt" for number in range(chunks)]
    conditioner = TextConditioner(model.tokenizer, model.text_encoder)
    for number, file in enumerate(tqdm(files, desc="trajectories", mininterval=10)):
        if not file.is_file():
            prompts = draw_prompts(items, CHUNK, seed=number)
            noise = torch.randn(CHUNK, *model.latent_shape, generator=torch.Generator().manual_seed(number))
            states = teacher_states(model, conditioner, prompts, noise, guidance)
            with replacing(file) as temporary:
                torch.save({"prompts": prompts, "states": states}, temporary)
    return files


@torch.no_grad()
def teacher_states(
    model: FineTunedModel, conditioner: TextConditioner, prompts: Sequence[str], noise: Tensor, guidance: float
) -> Tensor:
    """(B, :data:`STEPS` + 1, C, h, w): the noise, and what becomes of it after each quarter of the teacher's steps."""
    context = torch.cat([*(conditioner([""]) for _ in prompts), *(conditioner([prompt]) for prompt in prompts)])
    scheduler = derive_scheduler(model.scheduler, TEACHER_SCHEDULER)
    scheduler.set_timesteps(TEACHER_STEPS)
    latents, states = noise * scheduler.init_noise_sigma, []
    for number, timestep in enumerate(scheduler.timesteps):
        if number % (TEACHER_STEPS // STEPS) == 0:
            states.append(latents)
        both = torch.cat([latents] * 2)
        empty, worded = model.network(both, timestep.expand(len(both)), context).chunk(2)
        latents = scheduler.step(empty + guidance * (worded - empty), timestep, latents, return_dict=False)[0]
    return torch.stack([*states, latents], dim=1)


def train_few_steps(
    model: FineTunedModel,
    files: Sequence[Path],
    checkpoint: Path,
    steps: int = 2400,
    batch_size: int = 32,
    learning_rate: float = 4e-4,
    decay: float = 0.995,
    seed: int = 0,
) -> nn.Module:
    """Train the student.

    Args:
        model: the teacher, whose U-Net it begins as.
        files: of :func:`record_trajectories`; the last twentieth shows what is learnt and is not trained on.
        checkpoint: file from which an interrupted training goes on.
        steps: batches of ``batch_size`` single steps, drawn from all trajectories and places on them.
        learning_rate: AdamW's, after 50 steps, falling to 0 on a line.
        decay: of the moving average of the weights, which is what comes out.
        seed: of the batches.

    Returns:
        The student, in evaluation mode.
    """
    trajectories = [torch.load(file) for file in files]
    states = torch.cat([chunk["states"] for chunk in trajectories])
    conditioner = TextConditioner(model.tokenizer, model.text_encoder)
    context = torch.cat([conditioner([prompt]) for chunk in trajectories for prompt in chunk["prompts"]])
    timesteps, targets = what_to_say(derive_scheduler(model.scheduler, SCHEDULER), states)
    shown = len(states) - max(1, len(states) // 20)

    def loss(network: nn.Module, rows: Tensor, places: Tensor) -> Tensor:
        said = network(states[rows, places], timesteps[places], context[rows])
        return (said - targets[rows, places]).square().mean()

    network = copy.deepcopy(model.network).train().requires_grad_(True)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / steps))
    kept: dict[str, Any] = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule}
    done = _restore(checkpoint, kept)
    progress = tqdm(range(done, steps), desc="few steps", initial=done, total=steps, mininterval=10)
    for step in progress:
        generator = torch.Generator().manual_seed(seed * steps + step)
        rows = torch.randint(shown, (batch_size,), generator=generator)
        places = torch.randint(STEPS, (batch_size,), generator=generator)
        value = loss(network, rows, places)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        if (step + 1) % CHECKPOINT_EVERY == 0:
            unseen = torch.arange(shown, len(states))
            with torch.no_grad():
                held_out = [f"{loss(average, unseen, torch.full_like(unseen, at)):.4f}" for at in range(STEPS)]
            progress.set_postfix_str(f"held out {' '.join(held_out)}")
            with replacing(checkpoint) as temporary:
                torch.save({name: part.state_dict() for name, part in kept.items()} | {"done": step + 1}, temporary)
    return average.module.eval()


def what_to_say(scheduler: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """What a network has to say so that each step of a scheduler leads from one state to the next.

    Args:
        scheduler: diffusers', whose step is linear in the state and in what the network says.
        states: (B, K + 1, ...).

    Returns:
        (K) timesteps, and (B, K, ...) what is to be said.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(states.shape[1] - 1)
    none, one = torch.zeros(1), torch.ones(1)
    targets = []
    for number, timestep in enumerate(scheduler.timesteps):
        kept = scheduler.step(none, timestep, one, return_dict=False)[0]
        added = scheduler.step(one, timestep, none, return_dict=False)[0]
        targets.append((states[:, number + 1] - kept * states[:, number]) / added)
    return scheduler.timesteps, torch.stack(targets, dim=1)


def _restore(checkpoint: Path, kept: Mapping[str, Any]) -> int:
    if not checkpoint.is_file():
        return 0
    content = torch.load(checkpoint)
    for name, part in kept.items():
        part.load_state_dict(content[name])
    return int(content["done"])
