"""argparse, made to answer in one line, and to take ``_`` for ``-`` in the names of options."""

import argparse
import textwrap
from collections.abc import Collection, Sequence
from typing import NoReturn

from cachefs.config.given import dashed, unknown_option
from cachefs.config.option import Group, Option
from cachefs.config.options import MOUNT_OPTIONS
from cachefs.config.settings import suggestion
from cachefs.core.errors import UsageError

_NARROWEST, _WIDEST = 20, 110
"""Columns that a paragraph may take."""


class _Filled(argparse.HelpFormatter):
    """Fills paragraphs to the width of the terminal; leaves those as they are that have indented lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wide = max(_NARROWEST, min(width, _WIDEST) - len(indent))
        shown = (
            part if "\n " in f"\n{part}" else textwrap.fill(part, wide, break_on_hyphens=False)
            for part in text.split("\n\n")
        )
        return textwrap.indent("\n\n".join(shown), indent)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of ending the process."""

    def __init__(self, prog: str) -> None:
        super().__init__(
            prog=prog,
            allow_abbrev=False,
            formatter_class=_Filled,
        )

    def error(self, message: str) -> NoReturn:
        """Raise *message* as the operator's mistake."""
        raise UsageError(f"{message} — see {self.prog} --help")

    def with_dashes(self, words: Sequence[str]) -> list[str]:
        """Return *words* with the names of long options spelled as they are declared."""
        end = words.index("--") if "--" in words else len(words)
        return [_with_dashes(word) for word in words[:end]] + list(words[end:])

    @property
    def long_options(self) -> list[str]:
        """The names of the declared long options, without dashes in front."""
        return [
            name.removeprefix("--")
            for action in self._actions
            for name in action.option_strings
            if name.startswith("--")
        ]


def show_mount_options(
    parser: Parser, groups: tuple[Group, ...], *, without: Collection[str] = ()
) -> None:
    """Let ``--help`` show mount options, which are read before argparse sees the words.

    *without*: those that the command refuses, or says itself.
    """
    for group in groups:
        section = parser.add_argument_group(f"options: {group}")
        for option in MOUNT_OPTIONS:
            if option.group is group and option.name not in without:
                _show(section, option)
    section = parser.add_argument_group("options: as in fstab")
    section.add_argument(
        "-o",
        metavar="NAME=VALUE,…",
        help="any of these options, separated by commas (\\, is a comma within a value); those meant for "
        "mount(8), such as _netdev, nofail and x-systemd.…, are ignored",
    )


def check_left_over(words: Sequence[str], parser: Parser, *, mounting: bool) -> None:
    """Raise UsageError for the first of *words*, which no declared argument took."""
    if not words:
        return
    options = [word for word in words if word.startswith("-") and word != "--"]
    if not options:
        raise UsageError(f"unexpected argument {words[0]!r} — see {parser.prog} --help")
    spelled = options[0].partition("=")[0]
    name = spelled.lstrip("-")
    if mounting and not suggestion(dashed(name), parser.long_options):
        raise unknown_option(name, spelled)
    hint = suggestion(dashed(name), parser.long_options, prefix="--")
    raise UsageError(f"unknown option {spelled}{hint or f' — see {parser.prog} --help'}")


def _show(section: "argparse._ArgumentGroup", option: Option[object]) -> None:
    names = [f"--{option.name}"]
    if option.short:
        names.insert(0, f"-{option.short}")
    default = f" [{option.shown_default}]" if option.shown_default else ""
    text = (option.help + default).replace("%", "%%")
    if option.is_switch:
        section.add_argument(*names, action="store_true", help=text)
    else:
        section.add_argument(*names, metavar=option.metavar, help=text)


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value
