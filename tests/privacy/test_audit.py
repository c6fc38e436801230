"""The audit at small size, by the code that audits what ships: it hears what it must, and nothing where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from tiny_sd import make_tiny_sd
from training_run import frozen_parts

from nodule_plugin.data.order import seeded_generator
from nodule_plugin.diffusion.network import DiffusionUNet
from nodule_plugin.diffusion.sampling import GuidedSampler
from nodule_plugin.diffusion.training import denoising_target
from nodule_plugin.errors import InputError
from nodule_plugin.metrics.privacy import DEAF, LIMITS, WITHIN, audit_verdict, rate_at
from nodule_plugin.privacy.audit import LOSS, Audit, Auditor, Patients, Question, load_patients
from nodule_plugin.privacy.references import ReferenceTrainer, balanced_halves, small_base
from nodule_plugin.report.privacy import OWNERS, write_audit

MEMBERS, HELD_OUT = 8, 104
PROMPT = "a nodule"


def _image(number: int) -> torch.Tensor:
    coarse = torch.rand(1, 1, 8, 8, generator=seeded_generator(number)) * 2 - 1
    return F.interpolate(coarse, (64, 64), mode="bicubic").clamp(-1, 1)[0].expand(3, -1, -1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("base") / "base", "v_prediction")


@pytest.fixture(scope="module")
def auditor(base: Path) -> Auditor:
    """With four reference models that learnt a little from half of the patients each."""
    names = [str(number) for number in range(MEMBERS + HELD_OUT)]
    images = [_image(number) for number in range(len(names))]
    patients = Patients(images, [PROMPT] * len(names), names, names, set(names[:MEMBERS]))
    vae, conditioner, scheduler = frozen_parts(str(base))
    question = Question((30, 60, 120), views=2, seeds=(0, 1, 2), guidance_scales=1, planted=10, batch_size=224)
    sampler = GuidedSampler(scheduler, vae, 2, images_per_call=3)
    auditor = Auditor(patients, vae, conditioner, scheduler, sampler, question)
    for half in balanced_halves(names, 4):
        auditor.add_reference(_learn(auditor, half, steps=10), half)
    return auditor


def _learn(auditor: Auditor, patients: set[str], steps: int) -> DiffusionUNet:
    """A very small U-Net that has learnt to denoise these patients' images."""
    torch.manual_seed(0)
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32)}
    blocks |= {"mid_block_type": "UNetMidBlock2D", "norm_num_groups": 8, "cross_attention_dim": 16}
    network = DiffusionUNet(UNet2DConditionModel(**sizes, **blocks, layers_per_block=1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    latents = auditor.latents[auditor.patients.places(patients)].flatten(0, 1)
    context = auditor.conditioner([PROMPT]).expand(16, -1, -1)
    for _ in range(steps):
        clean, times = latents[torch.randint(len(latents), (16,))], torch.randint(200, (16,))
        noise = torch.randn(clean.shape)
        prediction = network(auditor.scheduler.add_noise(clean, noise, times), times, context)
        (prediction - denoising_target(auditor.scheduler, clean, noise, times)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


def test_the_control_is_heard_and_an_innocent_model_is_not(auditor: Auditor) -> None:
    members = auditor.patients.members
    control, _ = auditor.attack(_learn(auditor, members, steps=300), members)
    reached = rate_at(control["attacks"][LOSS], LIMITS["false_positive_rate"])["value"]
    assert reached >= LIMITS["control"]
    assert control["attacks"][LOSS]["area"]["ci95"][0] > 0.6
    innocent, found = auditor.attack(_learn(auditor, set(sorted(auditor.patients.held_out)[:8]), steps=10), members)
    assert innocent["attacks"][LOSS]["area"]["ci95"][0] < 0.5
    assert found == []
    assert audit_verdict(innocent, control)[0] == WITHIN
    assert audit_verdict(control, innocent)[0] == DEAF


def test_halves_are_balanced() -> None:
    patients = [f"P{number}" for number in range(11)]
    halves = balanced_halves(patients, 6, seed=1)
    assert all(sum(patient in half for half in halves) == 3 for patient in patients)
    assert {len(half) for half in halves} == {5, 6}
    with pytest.raises(InputError, match="an even number of 4 or above is needed, not 3"):
        balanced_halves(patients, 3)


def test_reference_models_come_from_the_bundles_training_once(
    base: Path, phantom_datalist: Path, repository: Path, tmp_path: Path
) -> None:
    start = small_base(str(base), tmp_path, divisor=1)
    assert small_base(str(base), tmp_path, divisor=1) == start
    settings = {"bundle_root": str(repository / "bundle"), "device": torch.device("cpu"), "precision": "float32"}
    config = str(repository / "bundle" / "configs" / "train.json")
    trainer = ReferenceTrainer(config, str(phantom_datalist), start, tmp_path, settings)
    items = json.loads(phantom_datalist.read_text())["training"]
    chosen = {item["patient_id"] for item in items[:3]}
    network = trainer.train(chosen, {"epochs": 1, "seed": 0})
    (folder,) = {path.parents[1] for path in tmp_path.glob("*/models/model.pt")}
    learnt = json.loads((folder / "datalist.json").read_text())
    assert {item["patient_id"] for item in learnt["training"]} == chosen
    assert learnt["validation"] == learnt["test"] == []
    untrained = DiffusionUNet.from_base(start).state_dict()
    assert any(not torch.equal(tensor, untrained[name]) for name, tensor in network.state_dict().items())
    written = (folder / "models" / "model.pt").stat().st_mtime_ns
    trainer.train(chosen, {"epochs": 1, "seed": 0})
    assert (folder / "models" / "model.pt").stat().st_mtime_ns == written
    with pytest.raises(InputError, match=r"reference_base: .* is no folder with a unet"):
        small_base("some/hub-id", tmp_path, divisor=2)


def test_patients_on_both_sides_are_refused(phantom_datalist: Path, tmp_path: Path) -> None:
    content = json.loads(phantom_datalist.read_text())
    content |= {"dataset_dir": str(phantom_datalist.parent / content["dataset_dir"]), "test": content["training"][:1]}
    (tmp_path / "both.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="held_out: 1 patients are in the training split too"):
        load_patients(tmp_path / "both.json", ["test"], lambda item: item)
    with pytest.raises(InputError, match="at least 4 of either are needed"):
        load_patients(phantom_datalist, ["validation"], lambda item: item, limit=3)


def test_what_was_extracted_is_for_the_owner_alone(auditor: Auditor, tmp_path: Path) -> None:
    members, own = auditor.patients.members, auditor.patients.pictures[3]
    auditor.generate = lambda network: {PROMPT: [own] * 3}  # type: ignore[method-assign]
    try:
        model, findings = auditor.attack(_learn(auditor, members, steps=1), members)
    finally:
        del auditor.generate
    assert model["extraction"]["extracted"] == 1
    assert [finding.training for finding in findings] == ["3"]
    content = {"verdict": "above limits", "reasons": [], "audited": model, "control": model, "limits": LIMITS}
    written = write_audit(Audit(content, findings), tmp_path)
    private = tmp_path / OWNERS
    assert private.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in written if path.parent == private} == {"000.png", "extracted.json"}
    assert json.loads((private / "extracted.json").read_text())["files"]["000.png"]["training"] == "3"
    assert "1 training images extracted" in (tmp_path / "privacy.md").read_text()
    assert '"training"' not in (tmp_path / "privacy.json").read_text()
