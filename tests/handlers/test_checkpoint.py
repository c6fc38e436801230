from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from full_disk import full_disk
from ignite.engine import Engine, Events
from tiny_sd import make_tiny_sd
from training_run import Run

from nodule_plugin.data.latents import LatentCache
from nodule_plugin.diffusion.iteration import StepEvents
from nodule_plugin.errors import InputError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd(tmp_path_factory.mktemp("sd"), levels=2)


@pytest.fixture(scope="module")
def whole(base: Path) -> Run:
    """Two epochs of three steps, never stopped."""
    return Run(base, accumulation_steps=1).train()


class Killed(BaseException):
    """Stands for what ends a process without asking it."""


def kill_at(run: Run, step: int) -> None:
    def kill(engine: Engine) -> None:
        if engine.state.step == step:
            raise Killed

    run.trainer.add_event_handler(StepEvents.STEP_COMPLETED, kill)


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_run_killed_after_any_step_continues_to_the_bit(base: Path, whole: Run, tmp_path: Path, step: int) -> None:
    first = Run(base, tmp_path, every_steps=1)
    kill_at(first, step)
    with pytest.raises(Killed):
        first.train()
    second = Run(base, tmp_path, every_steps=1).train()
    assert first.losses + second.losses == whole.losses
    assert torch.equal(second.weights(), whole.weights())
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_steps_since_the_last_checkpoint_are_repeated(base: Path, whole: Run, tmp_path: Path) -> None:
    first = Run(base, tmp_path)
    kill_at(first, 4)
    with pytest.raises(Killed):
        first.train()
    second = Run(base, tmp_path).train()
    assert first.losses[:3] + second.losses == whole.losses
    assert torch.equal(second.weights(), whole.weights())


def test_a_run_may_go_on_in_other_batches(base: Path, whole: Run, tmp_path: Path) -> None:
    first = Run(base, tmp_path, batch_size=2, every_steps=1)
    kill_at(first, 4)
    with pytest.raises(Killed):
        first.train()
    second = Run(base, tmp_path, batch_size=1, accumulation_steps=2, every_steps=1).train()
    assert first.losses + second.losses == pytest.approx(whole.losses, abs=1e-5)


def test_a_cache_that_was_filled_in_part_changes_nothing(base: Path, tmp_path: Path) -> None:
    def cached(name: str) -> LatentCache:
        return LatentCache(tmp_path / name, "a", 5, (8, 32, 32))

    undisturbed = Run(base, latents=cached("one")).train()
    first = Run(base, tmp_path / "run", latents=cached("two"))
    kill_at(first, 4)
    with pytest.raises(Killed):
        first.train()
    second = Run(base, tmp_path / "run", latents=cached("two")).train()
    assert second.losses == undisturbed.losses[3:]
    assert torch.equal(second.weights(), undisturbed.weights())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [2, 3])
def test_a_signal_saves_and_ends_the_run(base: Path, whole: Run, tmp_path: Path, number: int, step: int) -> None:
    before = signal.getsignal(number)
    first = Run(base, tmp_path)
    closed: list[int] = []

    def send(engine: Engine) -> None:
        if engine.state.step == step - 1 and engine.state.iteration == step:
            os.kill(os.getpid(), number)

    first.trainer.add_event_handler(Events.ITERATION_STARTED, send)
    with pytest.raises(SystemExit) as ended:
        first.train()
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == before
    assert len(first.losses) == step
    second = Run(base, tmp_path)
    second.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: closed.append(engine.state.epoch))
    second.train()
    assert first.losses + second.losses == whole.losses
    assert closed == [1, 2], "an epoch's end, with its validation, must not be lost between two parts of a run"


def test_a_signal_does_not_wait_for_the_end_of_a_validation(base: Path, whole: Run, tmp_path: Path) -> None:
    batches: list[int] = []

    def validate(evaluator: Engine, batch: int) -> None:
        batches.append(batch)
        if batch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def run(process_function: Callable[[Engine, int], None]) -> Run:
        evaluator = Engine(process_function)
        run = Run(base, tmp_path, evaluator=evaluator)
        run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: evaluator.run(range(5)))
        return run

    first = run(validate)
    with pytest.raises(SystemExit) as ended:
        first.train()
    assert ended.value.code == 128 + signal.SIGTERM
    assert batches == [0, 1]
    validated: list[int] = []
    second = run(lambda evaluator, batch: validated.append(batch)).train()
    assert validated == [*range(5), *range(5)], "the validation that was cut short is made anew"
    assert first.losses + second.losses == whole.losses


def test_a_second_run_into_the_same_folder_is_refused(base: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def start_another(engine: Engine) -> None:
        with pytest.raises(InputError) as error:
            Run(base, tmp_path).train()
        refused.append(str(error.value))

    first = Run(base, tmp_path)
    first.trainer.add_event_handler(Events.EPOCH_COMPLETED, start_another)
    first.train()
    assert len(refused) == 2
    assert all("another process trains into this folder" in message and str(tmp_path) in message for message in refused)
    Run(base, tmp_path, epochs=3).train()


def test_a_finished_run_is_not_trained_again(base: Path, tmp_path: Path) -> None:
    Run(base, tmp_path, epochs=1).train()
    again = Run(base, tmp_path, epochs=1).train()
    assert again.losses == []
    longer = Run(base, tmp_path, epochs=2).train()
    assert len(longer.losses) == 3


def test_only_the_last_files_are_kept(base: Path, tmp_path: Path) -> None:
    Run(base, tmp_path, every_steps=2).train()
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["step_00000004.pt", "step_00000006.pt"]


def test_resume_false_starts_anew(base: Path, whole: Run, tmp_path: Path) -> None:
    Run(base, tmp_path).train()
    again = Run(base, tmp_path, epochs=1, resume=False).train()
    assert len(again.losses) == 3
    assert [path.name for path in tmp_path.glob("*.pt")] == ["step_00000003.pt"]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_is_reported_and_the_one_before_used(
    base: Path, whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = Run(base, tmp_path, every_steps=2)
    kill_at(first, 5)
    with pytest.raises(Killed):
        first.train()
    newest = tmp_path / "step_00000004.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    newest.write_bytes(content[:1000] if damage == "cut" else content)
    second = Run(base, tmp_path, every_steps=2).train()
    assert "step_00000004.pt is damaged" in caplog.text
    assert second.losses == whole.losses[2:]


def test_where_no_file_can_be_read_it_says_so(base: Path, tmp_path: Path) -> None:
    (tmp_path / "step_00000003.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"none can be read.*--resume false"):
        Run(base, tmp_path).train()


@pytest.mark.parametrize(
    ("change", "culprit"),
    [({"images": 9}, "training items 5, not 9"), ({"seed": 8}, "seed 3, not 8"), ({"batch_size": 3}, "step 2, not 3")],
)
def test_a_file_of_another_run_is_named(base: Path, tmp_path: Path, change: dict, culprit: str) -> None:
    Run(base, tmp_path, epochs=1).train()
    with pytest.raises(InputError, match=f"step_00000003.pt.*{culprit}.*--resume false"):
        Run(base, tmp_path, epochs=1, **change).train()


def test_a_file_of_another_network_is_named(base: Path, tmp_path: Path) -> None:
    Run(base, tmp_path, epochs=1).train()
    with pytest.raises(InputError, match=r"step_00000003.pt.*another run"):
        Run(make_tiny_sd(tmp_path / "other", "v_prediction"), tmp_path, epochs=1).train()


def test_a_full_disk_ends_the_run_with_one_line_and_keeps_what_there_is(base: Path, whole: Run, tmp_path: Path) -> None:
    def fill(engine: Engine) -> None:
        if engine.state.step == 4:
            disk.enter_context(full_disk(100_000))

    first = Run(base, tmp_path, every_steps=2)
    first.trainer.add_event_handler(Events.ITERATION_STARTED, fill)
    step = r"step_00000006\.pt cannot be written or read \(File too large\).*goes on from .*step_00000004\.pt"
    with ExitStack() as disk, pytest.raises(InputError, match=step):
        first.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_00000002.pt", "step_00000004.pt"]
    second = Run(base, tmp_path, every_steps=2).train()
    assert torch.equal(second.weights(), whole.weights())


@pytest.mark.parametrize("path", ["checkpoints", "checkpoints/.lock"])
def test_a_folder_that_cannot_be_written_is_one_line(base: Path, tmp_path: Path, path: str) -> None:
    blocked = tmp_path / path
    blocked.parent.mkdir(exist_ok=True)
    blocked.mkdir() if path.endswith(".lock") else blocked.touch()
    with pytest.raises(InputError, match=rf"training: {blocked} cannot be written.*goes on from the start"):
        Run(base, tmp_path / "checkpoints").train()


def test_a_file_system_without_locks_is_one_line(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(lock: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)  # as its older versions do
    with pytest.raises(InputError, match=f"checkpoints in {tmp_path}: its file system has no locks; give an output_"):
        Run(base, tmp_path).train()


RECIPE = {"learning_rate": 1e-3, "window_hu": [-1000, 400], "chain": "roi-cubic-2", "lora_rank": None}


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_with_other_settings_is_refused_with_each_of_them(base: Path, tmp_path: Path, epochs: int) -> None:
    Run(base, tmp_path, epochs=1, recipe=RECIPE).train()
    other = RECIPE | {"learning_rate": 1e-4, "window_hu": (-160, 240), "lora_rank": 4}
    changes = r"learning_rate 0\.001, not 0\.0001; window_hu \[-1000, 400\], not \[-160, 240\]; lora_rank None, not 4; "
    with pytest.raises(InputError, match=rf"step_00000003\.pt: .*{changes}.*another output_dir, or --resume false"):
        Run(base, tmp_path, epochs=epochs, recipe=other).train()
    same = Run(base, tmp_path, epochs=epochs, recipe=RECIPE | {"window_hu": (-1000, 400)}).train()
    assert len(same.losses) == 3 * (epochs - 1)
    assert len(Run(base, tmp_path, epochs=1, recipe=other, resume=False).train().losses) == 3


def test_a_checkpoint_without_a_recipe_goes_on_and_says_so(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Run(base, tmp_path, epochs=1).train()
    again = Run(base, tmp_path, epochs=2, recipe=RECIPE).train()
    assert len(again.losses) == 3
    assert "does not say its learning_rate, window_hu, chain, lora_rank: not compared" in caplog.text
