"""What the module of a verb hands to the command line."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from cachefs.cli.parser import Parser
from cachefs.cli.redaction import Redactor
from cachefs.config import Environment
from cachefs.config.given import Given
from cachefs.config.option import Group


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a verb."""

    arguments: argparse.Namespace
    given: Given
    """The mount options among the words."""
    words: tuple[str, ...]
    """The words after the verb, as they were written."""
    environment: Environment
    redactor: Redactor

    @property
    def quiet(self) -> bool:
        """Whether nothing but errors shall be said."""
        return bool(self.arguments.quiet)

    @property
    def verbose(self) -> bool:
        """Whether more than usual shall be said."""
        return bool(self.arguments.verbose)

    @property
    def as_json(self) -> bool:
        """Whether results shall be JSON."""
        return bool(self.arguments.json)


@dataclass(frozen=True, slots=True)
class Command:
    """One verb."""

    configure: Callable[[Parser], None]
    """Declares the verb's own arguments."""
    run: Callable[[Call], int]
    """Does it, and returns the exit code."""
    option_groups: tuple[Group, ...] = ()
    """The mount options that it takes."""


def add_json(parser: Parser) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="write the result as JSON")
