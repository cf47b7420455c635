"""What the README says is so: its tables are compared with the code, its files are there."""

import os
import re
import tomllib
from pathlib import Path
from typing import Final

import pytest

from cachefs.cli import COMMANDS, failures
from cachefs.config.option import Option
from cachefs.config.options import MOUNT_OPTIONS
from cachefs.core.keys import name_of

ROOT: Final = Path(__file__).parents[2]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")


def option_row(option: Option[object]) -> str:
    short = f"`-{option.short}` " if option.short else ""
    value = "" if option.is_switch else f" {option.metavar}"
    aliases = ", ".join(f"`{alias.name}`" for alias in option.aliases)
    cells = (f"{short}`--{option.name}{value}`", option.shown_default, option.help, aliases)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def test_the_table_of_options_is_the_one_that_the_command_takes() -> None:
    wanted = "\n".join(option_row(option) for option in MOUNT_OPTIONS)

    assert wanted in README, f"the README's table should be:\n{wanted}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_named(command: str) -> None:
    assert f"cachefs {command}" in README


def test_every_exit_code_is_explained() -> None:
    codes = {value for name, value in vars(failures).items() if name.startswith("EXIT_")}
    section = README.partition("### Exit codes")[2].partition("\n## ")[0]

    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == codes


def test_the_configuration_shown_is_toml_with_the_options_there_are() -> None:
    shown = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert shown

    mounts = tomllib.loads(shown[1])["mounts"]

    known = {option.key for option in MOUNT_OPTIONS} | {"source", "mountpoint"}
    assert set(mounts["photos"]) <= known


@pytest.mark.parametrize(
    ("component", "shadowed"),
    [("", False), (".", False), ("..", False), ("a", True)],
)
def test_the_escaped_names_shown_are_the_ones_in_the_mount(component: str, shadowed: bool) -> None:
    assert f"`{bytes(name_of(component, shadowed=shadowed)).decode()}`" in README


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?<![\w/])(?:tools|systemd)/[\w@.-]+", README)))
)
def test_every_file_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()
    assert os.access(ROOT / path, os.X_OK) == path.startswith("tools/")
