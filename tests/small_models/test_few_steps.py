from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_models import few_steps
from small_models.base_model import build_scheduler
from small_models.few_steps import (
    check_timesteps,
    distil,
    draw_prompts,
    record_trajectories,
    teacher_states,
    train_few_steps,
    what_to_say,
)
from tiny_sd import make_tiny_sd

from nodule_plugin.data.datalist import load_datalist
from nodule_plugin.diffusion.components import TextConditioner
from nodule_plugin.diffusion.model import FineTunedModel, Source, load_few_steps, load_model
from nodule_plugin.diffusion.sampling import GuidedSampler, derive_scheduler, seeded_noise
from nodule_plugin.errors import InputError
from nodule_plugin.weights import file_sha256, save_tensors


class Latents(torch.nn.Module):
    """An autoencoder whose pixels are the latents."""

    config = SimpleNamespace(scaling_factor=1.0)

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (latents,)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder as train_small_model.py leaves it, the teacher's weights untrained."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_sd(folder / "tiny", "v_prediction", all_tokens=True)  # prompts are long
    build_scheduler().save_pretrained(folder / "tiny" / "scheduler")
    save_tensors(load_model(Source(str(folder / "tiny"))).network.state_dict(), folder / "model.pt")
    guidance = {"scale": 2.0, "split": "validation", "images": 9}
    (folder / "model.json").write_text(json.dumps({"image_size": [64, 64], "chain": "any", "guidance": guidance}))
    return folder


@pytest.fixture(scope="module")
def teacher(models: Path) -> FineTunedModel:
    return load_model(Source(str(models / "tiny"), str(models / "model.pt")))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_steps, "CHUNK", 4)


def test_every_other_prompt_is_of_findings_that_were_moved(phantom_datalist: Path) -> None:
    items = load_datalist(phantom_datalist, "training")
    prompts = draw_prompts(items, 200, seed=3)
    assert prompts == draw_prompts(items, 200, seed=3) != draw_prompts(items, 200, seed=4)
    detailed = sum("lobulation" in prompt for prompt in prompts)
    assert 20 < detailed < 80
    known = {prompt for seed in range(20) for prompt in draw_prompts(items, 200, seed)[::2]}
    assert len(set(prompts[1::2]) - known) > len(set(prompts[::2]) - known) == 0


def test_the_teacher_is_the_sampler(teacher: FineTunedModel) -> None:
    prompts, noise = ["Round.", "Oval."], seeded_noise([3, 4], teacher.latent_shape)
    conditioner = TextConditioner(teacher.tokenizer, teacher.text_encoder)
    states = teacher_states(teacher, conditioner, prompts, noise, guidance=2.0)
    assert states.shape == (2, few_steps.STEPS + 1, *teacher.latent_shape)
    sampler = GuidedSampler(teacher.scheduler, Latents(), few_steps.TEACHER_STEPS, scheduler_class=None)
    context = torch.cat([conditioner([prompt]) for prompt in prompts])
    latents = sampler(noise, teacher.network, context=context, unconditional=conditioner([""]), guidance_scale=2.0)
    torch.testing.assert_close(states[:, 0], noise)
    torch.testing.assert_close(states[:, -1].clamp(-1, 1), latents, rtol=0, atol=1e-5)


def test_who_says_the_targets_walks_the_teachers_way(teacher: FineTunedModel) -> None:
    states = seeded_noise(range(2), (few_steps.STEPS + 1, 4, 8, 8))
    scheduler = derive_scheduler(teacher.scheduler, few_steps.SCHEDULER)
    timesteps, targets = what_to_say(scheduler, states)
    scheduler.set_timesteps(few_steps.STEPS)
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    for place, timestep in enumerate(timesteps):
        reached = scheduler.step(targets[:, place], timestep, states[:, place], return_dict=False)[0]
        torch.testing.assert_close(reached, states[:, place + 1], rtol=1e-4, atol=1e-4)


def test_a_student_comes_nearer_and_goes_on_after_an_interruption(
    teacher: FineTunedModel, phantom_datalist: Path, tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = load_datalist(phantom_datalist, "training")
    files = record_trajectories(teacher, items, 2.0, chunks=3, folder=tmp_path)
    before = [file.stat().st_mtime_ns for file in files]
    assert [file.stat().st_mtime_ns for file in record_trajectories(teacher, items, 2.0, 3, tmp_path)] == before
    monkeypatch.setattr(few_steps, "CHECKPOINT_EVERY", 4)
    settings = {"steps": 12, "batch_size": 8, "learning_rate": 2e-3, "decay": 0.5}
    whole = train_few_steps(teacher, files, tmp_path / "whole", **settings).state_dict()

    class Stopped(Exception):
        pass

    class Stopping:
        """A progress bar that stops the training in the sixth step."""

        def __init__(self, steps: range, **_: object) -> None:
            self.steps = steps

        def __iter__(self) -> Iterator[int]:
            for step in self.steps:
                if step == 6:
                    raise Stopped
                yield step

        def set_postfix_str(self, text: str) -> None:
            assert text.startswith("held out")

    with monkeypatch.context() as patched:
        patched.setattr(few_steps, "tqdm", Stopping)
        with pytest.raises(Stopped):
            train_few_steps(teacher, files, tmp_path / "part", **settings)
    resumed = train_few_steps(teacher, files, tmp_path / "part", **settings).state_dict()
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
    states = torch.cat([torch.load(file)["states"] for file in files])
    timesteps, targets = what_to_say(derive_scheduler(teacher.scheduler, few_steps.SCHEDULER), states)
    context = TextConditioner(teacher.tokenizer, teacher.text_encoder)(["Round."]).expand(len(states), -1, -1)

    def error() -> float:
        with torch.no_grad():
            said = [teacher.network(states[:, at], timesteps[at], context) for at in range(len(timesteps))]
        return float((torch.stack(said, 1) - targets).square().mean())

    first, own = error(), {name: value.clone() for name, value in teacher.network.state_dict().items()}
    teacher.network.load_state_dict(whole)
    last = error()
    teacher.network.load_state_dict(own)
    assert last < 0.9 * first


def test_the_student_is_found_beside_its_teacher_and_says_how_it_is_used(
    models: Path, teacher: FineTunedModel, phantom_datalist: Path, tmp_path: Path, small_chunks: None
) -> None:
    assert load_few_steps(teacher) is None
    distil(models, phantom_datalist, tmp_path, models / "few_steps", trajectories=4, steps=2)
    student = load_few_steps(teacher)
    assert student is not None
    record = json.loads((models / "few_steps" / "model.json").read_text())
    assert record["guidance"] == {"scale": 1.0, "split": "validation"}
    assert record["distilled"]["teacher_sha256"] == file_sha256(models / "model.pt")
    assert (student.guidance_scale, type(student.scheduler).__name__) == (1.0, "DDIMScheduler")
    assert student.distilled is not None
    assert (student.distilled.steps, student.distilled.guidance_scale) == (4, 2.0)
    other = Source(str(models / "tiny"), str(models / "few_steps" / "model.pt"))
    assert load_few_steps(load_model(other)) is None


def test_a_schedule_whose_steps_do_not_meet_is_refused(models: Path, tmp_path: Path) -> None:
    make_tiny_sd(tmp_path / "tiny", "v_prediction")
    with pytest.raises(InputError, match=r"timestep_spacing is 'trailing', not 'leading'"):
        check_timesteps(load_model(Source(str(tmp_path / "tiny"), str(models / "model.pt"))))
