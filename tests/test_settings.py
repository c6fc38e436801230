from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from nodule_plugin.errors import InputError, find_input_error
from nodule_plugin.settings import as_flag, as_seeds, in_bundle, read_settings, typed_settings, whole_number


@pytest.mark.parametrize(("value", "flag"), [(True, True), ("true", True), (False, False), ("False", False)])
def test_flags_of_configurations_and_command_lines(value: bool | str, flag: bool) -> None:
    assert as_flag("resume", value) is flag


@pytest.mark.parametrize("value", ["yes", "", 1, None])
def test_what_is_no_flag_is_named(value: object) -> None:
    with pytest.raises(InputError, match=f"resume: .*{value!r}"):
        as_flag("resume", value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("given", "seeds"), [(3, [3]), ("3", [3]), ("0, 1", [0, 1]), ((2, 0), [2, 0]), ([1.0], [1])])
def test_seeds_of_configurations_and_command_lines(given: object, seeds: list[int]) -> None:
    assert as_seeds("seeds", given) == seeds


@pytest.mark.parametrize("given", [-1, 0.5, "a", [], [0, 0], True])
def test_what_is_no_seed_is_named(given: object) -> None:
    with pytest.raises(InputError, match=r"^classifier_seeds: "):
        as_seeds("classifier_seeds", given)


def test_what_ships_is_found_from_the_bundle_and_from_the_checkout(repository: Path, tmp_path: Path) -> None:
    for root in (repository, repository / "bundle"):
        assert Path(in_bundle(str(root), "models/model.pt")).is_file()
    assert in_bundle(str(tmp_path), "models/model.pt") == str(tmp_path / "models" / "model.pt")


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", None])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=f"^limit: a whole number of 1 or above is needed, not {value!r}$"):
        whole_number("limit", value)
    assert (whole_number("limit", 1), whole_number("limit", 0, least=0)) == (1, 0)


CONFIGS = ["train", "prepare", "inference", "evaluate", "downstream", "release", "export"]


def parsed(repository: Path, config: str, arguments: list[str], **api: Any) -> ConfigParser:
    """A configuration as MONAI has it when its first expression runs: python-fire and MONAI have read the values."""
    parser = ConfigParser()
    parser.read_config([str(repository / "bundle" / "configs" / f"{name}.json") for name in config.split("+")])
    given = fire.Fire(lambda **settings: settings, command=arguments, serialize=lambda _: None) if arguments else {}
    parser.update({name: value for name, value in {**given, **api}.items() if value is not None})
    parser.parse()
    return parser


def read(repository: Path, config: str, name: str, *arguments: str, **api: Any) -> Any:
    parser = parsed(repository, config, list(arguments), **api)
    read_settings(parser, arguments)
    return parser.get_parsed_content(name)


@pytest.mark.parametrize(
    ("config", "arguments", "value"),
    [
        ("inference", ["--prompts", "Nodule #1 is round."], "Nodule #1 is round."),
        ("inference", ["--prompts", "round,solid"], "round,solid"),
        ("inference", ["--prompts=3, 5 #x"], "3, 5 #x"),
        ("inference", ["--prompts", "['a #1', b, 2024_01]"], ["a #1", "b", "2024_01"]),
        ("inference", ["--prompts", "[round] nodule"], "[round] nodule"),
        ("inference", ["--prompts", "a::b"], "a::b"),
        ("inference", ["--prompts", "{a: b}"], "{a: b}"),
        ("inference", ["--displayable_configs#prompt", "Nodule #1"], "Nodule #1"),
        ("inference", ["--output_dir", "2024_01_15"], "2024_01_15"),
        ("inference", ["--output-dir", "run #2"], "run #2"),
        ("inference", ["--output_dir", "20240115", "--output_dir", "1e5"], "1e5"),
        ("inference", ["--output_dir", "'20240115'"], "20240115"),
        ("inference", ["--output_dir", "True"], "True"),
        ("inference", ["--output_dir", "0x10"], "0x10"),
        ("inference", ["--output_dir", "(a)"], "(a)"),
        ("inference", ["--output_dir", "$@bundle_root + '/x'"], "./x"),
        ("inference", ["--findings", "run #2.json"], "run #2.json"),
        ("inference", ["--findings", "{'margin': 3}"], {"margin": 3}),
        ("inference", ["--revision", "12e4567"], "12e4567"),
        ("inference", ["--guidance_scales", "1,3"], (1, 3)),
        ("inference", ["--steps", "1e1"], 10),
        ("inference", ["--overwrite"], True),
        ("inference", ["--overwrite", "false"], False),
        ("inference", ["--limit", "null"], None),
        ("train", ["--latent_cache", "null"], None),
        ("train", ["--latent_cache", "None"], None),
        ("train", ["--compile", "False"], False),
        ("train", ["--train#trainer#max_epochs", "3"], 3),
        ("train+sd15", ["--datalist", "2024,01.json"], "2024,01.json"),
        ("prepare", ["--dataset_dir", "2023"], "2023"),
        ("prepare", ["--page", "page #2.html"], "page #2.html"),
        ("prepare", ["--page", "false"], False),
        ("prepare", ["--cluster_address", "tcp://host:8786"], "tcp://host:8786"),
        ("evaluate", ["--generated_dir", "2024"], "2024"),
        ("evaluate", ["--generated_dir", "['a','b #1']"], ["a", "b #1"]),
        ("evaluate", ["--generated_dir", "a,b"], "a,b"),
    ],
)
def test_settings_are_what_was_typed(repository: Path, config: str, arguments: list[str], value: Any) -> None:
    name = arguments[0].partition("=")[0].lstrip("-").replace("-", "_").replace("#", "::")
    read_value = read(repository, config, name, *arguments)
    assert read_value == value
    assert type(read_value) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("output_dir", 20240115, "20240115"),
        ("output_dir", Path("a"), "a"),
        ("prompts", ("a #1", "b"), ["a #1", "b"]),
        ("prompts", "a, b", "a, b"),
        ("formats", ["png"], ["png"]),
        ("device", torch.device("cpu"), torch.device("cpu")),
    ],
)
def test_settings_of_python_calls(repository: Path, name: str, given: Any, value: Any) -> None:
    assert read(repository, "inference", name, **{name: given}) == value


@pytest.mark.parametrize(
    ("arguments", "api", "message"),
    [
        ([], {"prompts": "Nodule #1"}, r"prompts: MONAI has made :: of # in 'Nodule ::1'; give a .txt, .json or .csv"),
        ([], {"prompts": ["a", "Nodule #1"]}, r"prompts: MONAI has made :: of # in 'Nodule ::1'"),
        ([], {"output_dir": "run #2"}, r"output_dir: MONAI has made :: of # in 'run ::2'; choose a name without it"),
        ([], {"output_dir": ["a", "b"]}, r"output_dir: a path is needed, not \['a', 'b'\]"),
        (["--output_dir"], {}, "output_dir: a path is needed, not True"),
        (["--output_dir", "--overwrite"], {}, "output_dir: a path is needed, not True"),
        (["--output_dir", ""], {}, "output_dir: a path is needed, not ''"),
        (["--output_dir", "null"], {}, "output_dir: a path is needed, not null"),
        (["--prompts", "None"], {}, "prompts: a text is needed, not null"),
        (["--steps", "3,"], {}, r"steps: \(3,\) is not a number"),
        (["--overwrite", "yes"], {}, "overwrite: true or false is needed, not 'yes'"),
        (["--steps", "ten"], {}, "steps: 'ten' is not a number"),
        (["--steps", "0"], {}, "steps: a whole number of 1 or above is needed, not 0"),
        (["--batch_size", "0"], {}, "batch_size: a whole number of 1 or above is needed, not 0"),
        (["--epochs", "0"], {}, "epochs: a whole number of 1 or above is needed, not 0"),
        (["--patience", "-1"], {}, "patience: a whole number of 0 or above is needed, not -1"),
        (["--page_seed", "-1"], {}, "page_seed: a whole number of 0 or above is needed, not -1"),
        (["--split_seed", "5e9"], {}, "split_seed: a whole number from 0 to 4294967295 is needed, not 5000000000"),
        (["--learning_rate", "-1"], {}, "learning_rate: a number above 0 is needed, not -1"),
        (["--image_size", "100000"], {}, "image_size: a whole number from 1 to 4096 is needed, not 100000"),
        (["--device", "gpu"], {}, "device: this machine has no 'gpu'; give cpu"),
        (["--device", "cuda:77"], {}, "device: this machine has no 'cuda:77'; give cpu"),
        ([], {"device": torch.device("cuda:77")}, "device: this machine has no 'cuda:77'; give cpu"),
        (["--steps", "2.5"], {}, "steps: a whole number is needed, not 2.5"),
        (
            ["--guidance_scale", "3"],
            {},
            "guidance_scale: nothing reads it here, it is for insert; did you mean guidance_sc",
        ),
        (["--colour", "3"], {}, "colour: there is no such setting; docs/settings.md lists all"),
        (["--prompt", "a,b"], {}, "prompt: nothing reads it here, it is for insert; did you mean prompts"),
        (
            [],
            {"guidance_scale": 3},
            "guidance_scale: nothing reads it here, it is for insert; did you mean guidance_sc",
        ),
    ],
)
def test_settings_that_cannot_be_used(
    repository: Path, arguments: list[str], api: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        read(repository, "inference", "prompts", *arguments, **api)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "old", "new"),
    [
        ("inference", "part", "split"),
        ("inference", "dtype", "precision"),
        ("train", "workers", "num_workers"),
        ("evaluate", "tiny_scorer", "scorer"),
        ("prepare", "scheduler", "cluster_address"),
    ],
)
def test_names_of_earlier_versions(repository: Path, config: str, old: str, new: str) -> None:
    with pytest.raises(InputError, match=f"^{old}: this setting is now called {new}; give --{new}$"):
        read(repository, config, new, f"--{old}", "1")


def test_a_scheduler_is_still_asked_for_by_its_class(repository: Path) -> None:
    with pytest.raises(InputError, match=r"^scheduler: there is no such setting; did you mean scheduler_class"):
        read(repository, "inference", "steps", "--scheduler", "PNDMScheduler")


def test_a_typed_setting_of_another_configuration_is_refused(repository: Path) -> None:
    bundle = {"bundle_root": str(repository / "bundle")}
    parser = parsed(repository, "prepare", ["--seed", "3"], **bundle)
    with pytest.raises(InputError, match=r"^seed: nothing reads it here; it is a setting of .*evaluate.*, train"):
        read_settings(parser, ["--config_file", "configs/prepare.json", "--seed", "3"])
    assert read(repository, "prepare", "split_seed", seed=3) == 0  # as where an overlay of several says it
    given = ["--bundle_root", bundle["bundle_root"], "--base_model", "a", "--scorer", "b", "--output_dir", "c"]
    parser = parsed(repository, "train", given)  # now nothing refers to bundle_root, which is its setting all the same
    read_settings(parser, ["--config_file", "configs/train.json", *given])


def test_a_refused_setting_is_not_what_was_meant(repository: Path) -> None:
    bundle = {"bundle_root": str(repository / "bundle")}
    parser = parsed(repository, "insert", ["--guidance_scales", "3"], **bundle)
    with pytest.raises(InputError, match=r"^guidance_scales: nothing reads it here; .*mean guidance_scale\?$"):
        read_settings(parser, ["--config_file", "configs/insert.json", "--guidance_scales", "3"])


@pytest.mark.parametrize("config", [*CONFIGS, "train+sd15+lora", "train+from_scratch", "train+low_memory",
                                    "train+multi_gpu_train", "train+train_insertion", "inference+sd2",
                                    "inference+attack", "inference+dose_response"])  # fmt: skip
def test_what_ships_passes(repository: Path, config: str) -> None:
    read_settings(parsed(repository, config, []), [])


@pytest.mark.parametrize("config", [*CONFIGS, "multi_gpu_train"])
def test_every_configuration_reads_its_settings_first(repository: Path, config: str) -> None:
    content = json.loads((repository / "bundle" / "configs" / f"{config}.json").read_text())
    assert content["initialize"][:2] == ["$show_input_errors()", "$read_settings()"]


def test_new_ids_that_something_reads_and_monais_own_pass(repository: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({
        "my_scale": 2, "guidance_scales": "$[@my_scale]", "my_steps": ["$print('x')"], "run": "%my_steps",
        "my_network": {"_target_": "torch.nn.Identity"}, "group": {"a": 1},
    }))  # fmt: skip
    parser = ConfigParser()
    parser.read_config([str(repository / "bundle" / "configs" / "inference.json"), str(overlay)])
    parser.update({"run_name": "mine", "experiment_name": "nodules", "inferer#guidance_rescale": 0.5})
    parser.parse()
    read_settings(parser, ["--run_name", "mine"])
    assert parser.get_parsed_content("guidance_scales") == [2]


def test_values_of_another_command_line_are_not_taken(repository: Path) -> None:
    """A process started for one configuration may run another from Python."""
    parser = parsed(repository, "inference", [], output_dir="inner")
    read_settings(parser, ["--output_dir", "outer"])
    assert parser.get_parsed_content("output_dir") == "inner"


def test_the_text_after_each_option() -> None:
    line = "run --a 1 --b=2=3 --c --d x y -e z --f-g #h --d w -- --trace"
    assert typed_settings(line.split(" ")) == {"a": "1", "b": "2=3", "d": "w", "e": "z", "f_g": "#h"}


def test_a_configuration_that_runs_reads_its_settings(repository: Path) -> None:
    config = str(repository / "bundle" / "configs" / "export.json")
    options = {"workflow_type": "infer", "logging_file": False, "bundle_root": str(repository / "bundle")}
    flow = ConfigWorkflow(config, decoder_weights=2024, **options)
    flow.initialize()
    assert flow.parser.get_parsed_content("decoder_weights") == "2024"
    with pytest.raises(RuntimeError) as caught:
        ConfigWorkflow(config, decoder_weight="a", **options).initialize()
    assert str(find_input_error(caught.value)).startswith("decoder_weight: there is no such setting; did you mean")


def test_outside_of_a_configuration_there_is_nothing_to_read() -> None:
    with pytest.raises(RuntimeError, match="call it in a configuration"):
        read_settings()
