from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from warm import run_python

from nodule_plugin.cli import MODULES, TOOLS, main
from nodule_plugin.cli.options import CONFIGS, config_parser, config_settings, find_bundle, monai_arguments, read_config
from nodule_plugin.cli.pages import OVERLAYS, completion_script, settings_page
from nodule_plugin.errors import InputError
from nodule_plugin.settings import settings_table


def knobs(config: dict[str, Any]) -> set[str]:
    """What stands before the first component or group of a configuration, or change of one: what users set."""
    names = set()
    for name, value in config.items():
        if "#" in name or (isinstance(value, dict) and name not in ("displayable_configs", "base_findings")):
            break
        names.add(name)
    return names - {"imports", "initialize", "+imports"}


def test_the_table_holds_every_setting_and_no_other(bundle: Path) -> None:
    configs = [path.stem for path in (bundle / "configs").glob("*.json") if path.stem != "metadata"]
    contents = {name: read_config(bundle, name) for name in configs}
    table = settings_table()
    assert {
        name: knobs(content) - set(table) for name, content in contents.items() if knobs(content) - set(table)
    } == {}
    unused = {name for name in table if not any(name.split("#")[0] in content for content in contents.values())}
    assert unused == set()
    assert list(table) == sorted(table)


def test_the_page_of_settings_is_current(bundle: Path, repository: Path) -> None:
    page = settings_page(bundle)
    assert (repository / "docs" / "settings.md").read_text(encoding="utf-8") == page, (
        "nodule settings > docs/settings.md"
    )
    shown = {name for command, _ in CONFIGS.values() for name in config_settings(read_config(bundle, command))}
    assert all(f"| `{name}` | {settings_table()[name].kind} |" in page for name in shown)
    overlays = {path.stem for path in (bundle / "configs").glob("*.json")} - {"metadata", "export", "multi_gpu_train"}
    assert overlays == {config for config, _ in CONFIGS.values()} | set(OVERLAYS)


@pytest.mark.parametrize("command", sorted(CONFIGS))
def test_help_has_every_setting_its_default_and_meaning(
    command: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = " ".join(config_parser(command, bundle).format_help().split())
    config = read_config(bundle, CONFIGS[command][0])
    for name in set(config_settings(config)) - {"bundle_root", "displayable_configs"}:
        assert f"--{name} " in text
        assert " ".join(settings_table()[name].meaning.split()) in text
    if command == "train":
        assert "passes over the training split (default: 40)" in text
        assert "(default: <output_dir>/datalist.json)" in text
    if command == "inference":
        assert "by default the one that training chose, else 1.5, 3, 5" in text


def test_a_command_line_becomes_monais(bundle: Path) -> None:
    words = [
        "--epochs",
        "3",
        "--overlay",
        "sd15",
        "lora",
        "--output-dir",
        "2024_01",
        "--dry-run",
        "--tracking",
        "mlflow",
    ]
    words += ["--train#trainer#max_epochs", "3"]
    configs = bundle / "configs"
    files = [str(configs / f"{name}.json") for name in ("train", "sd15", "lora")]
    assert monai_arguments("train", words) == [
        "run",
        f"--config_file={files}",
        f"--bundle_root={bundle}",
        "--epochs=3",
        "--output_dir=2024_01",
        "--dry_run=true",
        "--tracking",
        "mlflow",
        "--train#trainer#max_epochs",
        "3",
    ]


def test_an_overlay_and_a_bundle_of_ones_own(bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    for words in (["--bundle", str(bundle)], [f"--bundle_root={bundle}"]):
        (_, files, root, *_) = monai_arguments("generate", [*words, "--overlay", str(mine)])
        assert files == f"--config_file={[str(bundle / 'configs' / 'inference.json'), str(mine)]}"
        assert root == f"--bundle_root={bundle}"
    with pytest.raises(InputError, match=r"^overlay: there is neither .*sd3\.json nor a file sd3"):
        monai_arguments("train", ["--overlay", "sd3"])
    mine.write_text("not json")
    with pytest.raises(InputError, match=r"mine\.json: not JSON"):
        monai_arguments("generate", [*words, "--overlay", str(mine)])
    with pytest.raises(
        InputError, match=r"^overlay: inference is a workflow of its own, and would run in the place of train"
    ):
        monai_arguments("train", ["--overlay", "sd15", "inference"])
    with pytest.raises(InputError, match=rf"^bundle: there is none in {tmp_path}; give --bundle DIR"):
        monai_arguments("train", ["--bundle", str(tmp_path)])
    assert find_bundle() == bundle


@pytest.mark.parametrize("words", [["stray", "--steps", "3"], ["--steps=3", "stray"], ["--x", "y", "stray"]])
def test_a_word_that_belongs_to_no_option_is_named(words: list[str]) -> None:
    with pytest.raises(InputError, match=r"^'stray' belongs to no setting; nodule inference --help lists them"):
        monai_arguments("inference", words)
    for given in (["--tracking", "wandb"], ["--tracking=wandb"]):
        with pytest.raises(InputError, match=r"^tracking: mlflow or a file .* is needed, not 'wandb'"):
            monai_arguments("inference", given)
    assert monai_arguments("inference", ["--tracking", "mlflow", "--", "--trace"])[-3:] == ["mlflow", "--", "--trace"]


def test_a_command_may_lay_a_configuration_over_anothers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(bundle / "configs" / f"{name}.json") for name in ("evaluate", "sensitivity", "lora")]
    words = monai_arguments("sensitivity", ["--halvings", "4", "--overlay", "lora"])
    assert words == ["run", f"--config_file={files}", f"--bundle_root={bundle}", "--halvings=4"]
    with pytest.raises(SystemExit):
        config_parser("sensitivity", bundle).parse_args(["--help"])
    assert "(default: 20)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["$print(1)", "@trainer", "%train.json#run"])
def test_code_is_no_text(text: str) -> None:
    with pytest.raises(InputError, match=r"^prompts: .* would be code to MONAI"):
        monai_arguments("inference", ["--prompts", text])


@pytest.mark.parametrize(
    ("words", "known"),
    [(["--help"], "reader-study"), (["train", "--help"], "--epochs"), (["phantom", "--help"], "usage: nodule phantom"),
     (["settings"], "# Settings"), (["completion"], "complete -o")],
)  # fmt: skip
def test_it_answers_without_waiting_for_torch(words: list[str], known: str, repository: Path, tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('imported:', {'torch', 'monai', 'diffusers'} & set(sys.modules)))\n"
        f"from nodule_plugin.cli import main; main({words})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert known in done.stdout
    assert "imported: set()" in done.stdout


def test_every_command_is_named_and_a_wrong_one_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["tarin"]):
        with pytest.raises(SystemExit):
            main(words)
    out, err = capsys.readouterr()
    assert all(f"\n  {name} " in out for name in [*CONFIGS, *TOOLS, *MODULES])
    assert "invalid choice: 'tarin'" in err


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_every_tool_says_what_it_takes(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([tool, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: nodule {tool} ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--crops DIR", "crops: it belongs to --series, which is not given"),
        ("--dataset-dir DIR", "dataset_dir: it belongs to --datalist, which is not given"),
        ("--static DIR --series DIR", "series: the page without Python has no use for it"),
        ("--template none", "prompt template: there is no 'none'"),
    ],
)
def test_the_playground_ignores_no_option(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(["playground", *words.split()])


def test_completion_offers_commands_and_settings(bundle: Path) -> None:
    script = completion_script(["train", "lidc"], {"train": ["--epochs", "--epochs_more", "--seed"]})

    def offered(*words: str) -> list[str]:
        ask = f"COMP_WORDS=(nodule {' '.join(words)}); COMP_CWORD={len(words)}; _nodule; echo ${{COMPREPLY[@]}}"
        return subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True).stdout.split()

    assert offered("tr") == ["train"]
    assert offered("train", "--ep") == ["--epochs", "--epochs_more"]
    assert offered("lidc", "--x") == []


@pytest.mark.slow
def test_generating_is_what_monai_does_with_texts_as_typed(bundle: Path, repository: Path, tmp_path: Path) -> None:
    settings = ["--output_dir", "2024_01", "--prompts", "Nodule #1, round", "--guidance_scales", "1", "--steps", "1"]
    commands = {
        "nodule": [sys.executable, "-m", "nodule_plugin.cli", "generate", *settings],
        "monai": [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle), "--config_file",
                  str(bundle / "configs" / "inference.json"), *settings],
    }  # fmt: skip
    pictures = []
    for name, command in commands.items():
        (tmp_path / name).mkdir()
        done = run_python(command, tmp_path / name, os.environ | {"PYTHONPATH": str(repository)})
        assert done.returncode == 0, done.stderr[-2000:]
        manifest = json.loads((tmp_path / name / "2024_01" / "manifest.json").read_text())
        assert [image["prompt"] for image in manifest["images"]] == ["Nodule #1, round"]
        pictures.append((tmp_path / name / "2024_01" / manifest["images"][0]["image"]).read_bytes())
    assert pictures[0] == pictures[1]
