"""What the table of settings is made into besides options: a page of the documentation, and shell completion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nodule_plugin.cli.options import CONFIGS, config_settings, read_config, shown_default
from nodule_plugin.settings import RENAMED, settings_table

OVERLAYS = (
    *("sd15", "sd2", "from_scratch", "lora", "low_memory", "private", "train_insertion", "sd15_inpainting"),
    *("few_steps", "dose_response", "attack", "sensitivity", "privacy", "copy_paste"),
)
_HEAD = """# Settings

Made by `nodule settings` from [`settings.json`](../nodule_plugin/settings.json) and the configurations; a test checks
that it is current. Each is given as `--NAME VALUE`, to `python -m monai.bundle run` and to `nodule`. A value is taken
as typed: digits, commas and `#` in a path or prompt mean themselves; quotes around all of a value are left out.
Several paths or prompts are a list in square brackets, `"['a','b']"`; `null` is nothing. What begins with `$`, `@` or
`%` is code to MONAI (`nodule` refuses it). `<datalist>` stands for another setting's value, `computed` for an
expression.
"""


def settings_page(bundle: Path) -> str:
    """docs/settings.md."""
    parts = [_HEAD]
    for name, (config_name, meaning) in CONFIGS.items():
        if name == config_name:
            config = read_config(bundle, config_name)
            rows = [
                f"| `{setting}` | {settings_table()[setting].kind} | `{shown_default(default, config)}` "
                f"| {settings_table()[setting].meaning} |"
                for setting, default in config_settings(config).items()
            ]
            head = ["| setting | kind | default | meaning |", "| --- | --- | --- | --- |"]
            parts.append("\n".join([f"## {name}: {meaning}", "", *head, *rows, ""]))
    rows = []
    for name in OVERLAYS:
        config = read_config(bundle, name)
        changes = (f"`{setting} {shown_default(value, config)}`" for setting, value in config_settings(config).items())
        rows.append(f"| `{name}.json` | {', '.join(changes)} |")
    parts.append("\n".join(["## What overlays set", "", "| overlay | settings |", "| --- | --- |", *rows, ""]))
    rows = [f"| `{old}` | `{new}` |" for old, new in RENAMED.items()]
    parts.append("\n".join(["## Names of earlier versions", "", "| was | is |", "| --- | --- |", *rows, ""]))
    return "\n".join(parts)


def completion_script(commands: Sequence[str], options: Mapping[str, Sequence[str]]) -> str:
    """A script for bash (and zsh after ``bashcompinit``) that completes commands, options and file names."""
    cases = "\n".join(f"        {command}) words={json.dumps(' '.join(options[command]))} ;;" for command in options)
    return f"""_nodule() {{
    local words=""
    if [ "$COMP_CWORD" = 1 ]; then words="{" ".join(commands)}"; else case "${{COMP_WORDS[1]}}" in
{cases}
    esac; fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o bashdefault -o default -F _nodule nodule"""
