from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from tiny_sd import make_tiny_sd
from training_run import Run

from nodule_plugin.data.order import StepSampler
from nodule_plugin.diffusion.iteration import StepEvents, TrainingIteration
from nodule_plugin.diffusion.network import DiffusionUNet, export_weights
from nodule_plugin.diffusion.schedule import learning_rate_schedule
from nodule_plugin.errors import InputError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd"))


def gradient_norms(run: Run) -> list[float]:
    """Norms of the gradients that the optimizer gets, filled while the run trains."""
    norms: list[float] = []
    step = run.optimizer.step

    def noted(*args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad.flatten() for group in run.optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())
        return step(*args, **kwargs)

    run.optimizer.step = noted  # type: ignore[method-assign]
    return norms


def test_accumulated_batches_give_the_step_of_a_large_one(base: Path) -> None:
    whole = Run(base, batch_size=4, schedule="constant").train()
    parts = Run(base, batch_size=1, accumulation_steps=4, schedule="constant").train()
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)
    assert (parts.weights() - whole.weights()).abs().max() < 1e-4
    assert len(parts.losses) == 4


def test_clipping_limits_the_gradient_norm(base: Path) -> None:
    free, clipped = Run(base, epochs=1), Run(base, epochs=1, iteration={"max_grad_norm": 0.05})
    norms, limited = gradient_norms(free), gradient_norms(clipped)
    free.train()
    clipped.train()
    assert min(norms) > 0.05
    assert limited == pytest.approx([0.05] * len(limited), rel=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_is_near_full_precision(base: Path, precision: str) -> None:
    full = Run(base, epochs=1).train()
    seen: list[torch.dtype] = []
    mixed = Run(base, epochs=1, iteration={"precision": precision})
    mixed.network.unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    mixed.train()
    assert set(seen) == {getattr(torch, precision)}
    assert mixed.losses == pytest.approx(full.losses, rel=0.05)
    assert {parameter.dtype for parameter in mixed.network.parameters()} == {torch.float32}


def test_float16_scales_the_loss_and_leaves_out_overflowing_steps(base: Path) -> None:
    run = Run(base, epochs=1, iteration={"precision": "float16"})
    before = run.weights().clone()
    run.iteration.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    run.train()
    assert torch.equal(run.weights(), before), "gradients overflowed, so no step was made"
    assert run.iteration.scaler.get_scale() < 2.0**100
    assert run.iteration.lr_scheduler.last_epoch == 0, "nor did the schedule move"
    state = run.iteration.state_dict()
    again = Run(base, epochs=1, iteration={"precision": "float16"})
    again.iteration.load_state_dict(state)
    assert again.iteration.scaler.get_scale() == run.iteration.scaler.get_scale()


def test_a_loss_that_is_no_number_ends_the_run(base: Path) -> None:
    run = Run(base)
    run.network.unet.conv_in.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="loss is nan at step 1; lower learning_rate"):
        run.train()


@pytest.mark.parametrize(("setting", "value"), [("precision", "float8"), ("max_grad_norm", 0), ("max_grad_norm", -1.0)])
def test_settings_out_of_range(setting: str, value: object) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    with pytest.raises(InputError, match=f"{setting}.*{value}"):
        TrainingIteration(optimizer, StepSampler(3, 1), **{setting: value})


def test_the_schedule_counts_steps(base: Path) -> None:
    rates: list[float] = []
    run = Run(base, batch_size=1, accumulation_steps=2, schedule="cosine", learning_rate=1.0e-3)

    def note(engine: Engine) -> None:
        rates.append(run.optimizer.param_groups[0]["lr"])

    run.trainer.add_event_handler(StepEvents.STEP_COMPLETED, note)
    run.train()
    assert len(rates) == 6
    assert rates[0] == pytest.approx(1e-3), "one step of warm-up"
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("name", "warmup", "culprit"), [("linaer", 0, "lr_schedule.*linaer"), ("linear", 9, "not 9")])
def test_wrong_schedules(name: str, warmup: int, culprit: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    with pytest.raises(InputError, match=culprit):
        learning_rate_schedule(name, optimizer, warmup, 8)


def test_a_constant_rate_can_be_warmed_up() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    schedule = learning_rate_schedule("constant", optimizer, 2, 2)
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.5, 1, 1, 1]


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "channels_last"])
def test_what_saves_memory_or_time_changes_no_result(base: Path, setting: str) -> None:
    plain, changed = Run(base), Run(base, network={setting: True})
    assert changed.network.unet.is_gradient_checkpointing == (setting == "gradient_checkpointing")
    is_last = changed.network.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert is_last == (setting == "channels_last")
    assert changed.train().losses == pytest.approx(plain.train().losses, abs=1e-5)


def test_low_rank_updates_begin_at_zero_and_train_alone(base: Path) -> None:
    plain = DiffusionUNet.from_base(str(base))
    run = Run(base, network={"lora_rank": 2}, learning_rate=1e-2)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 16)
    with torch.no_grad():
        assert torch.equal(run.network(*inputs), plain(*inputs))
    trained = run.network.trainable_parameters()
    assert sum(p.numel() for p in trained) < 0.2 * sum(p.numel() for p in plain.parameters())
    frozen = {name: p.clone() for name, p in run.network.named_parameters() if not p.requires_grad}
    run.train()
    assert all(torch.equal(dict(run.network.named_parameters())[name], p) for name, p in frozen.items())
    merged = export_weights(run.ema.model)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    with torch.no_grad():
        assert torch.allclose(plain(*inputs), run.ema.model(*inputs), atol=1e-5)
        assert not torch.allclose(plain(*inputs), DiffusionUNet.from_base(str(base))(*inputs), atol=1e-4)


def test_the_average_shares_frozen_weights(base: Path) -> None:
    run = Run(base, network={"lora_rank": 2})
    own = {id(parameter) for parameter in run.network.parameters()}
    copies = [parameter for parameter in run.ema.model.parameters() if id(parameter) not in own]
    assert len(copies) == len(run.network.trainable_parameters())


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_that_is_none_is_refused(base: Path, rank: object) -> None:
    with pytest.raises(InputError, match="lora_rank"):
        DiffusionUNet.from_base(str(base), lora_rank=rank)  # type: ignore[arg-type]


def test_without_peft_it_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"nodule-plugin\[train\]"):
        DiffusionUNet.from_base(str(base), lora_rank=4)


def test_a_compiled_network_is_saved_and_averaged_as_a_plain_one(base: Path) -> None:
    network = DiffusionUNet.from_base(str(base), compile=True)
    assert network.unet._compiled_call_impl is not None
    assert network.state_dict().keys() == DiffusionUNet.from_base(str(base)).state_dict().keys()
