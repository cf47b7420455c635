"""What an option is: its name in every place it can be given, and how its value is read."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from cachefs.config.aliases import Alias
from cachefs.core.source import StoreKind

T_co = TypeVar("T_co", covariant=True)


class Group(StrEnum):
    """The headings of ``cachefs mount --help``."""

    CACHE = "cache"
    WRITING = "writing"
    READING = "reading"
    ACCESS = "access and owners"
    REMOTE = "remote"
    RUNNING = "running"
    POOL = "pool of local files"


@dataclass(frozen=True, slots=True)
class Option(Generic[T_co]):
    """One option, declared once."""

    name: str
    """With dashes; underscores are the same everywhere."""
    parse: Callable[[str], T_co]
    """Reads a value; raises ValueError with the rest of a sentence that begins with what was written."""
    help: str
    group: Group
    example: str
    """A value for error lines."""
    default: str | None = None
    """As a user would write it. None: there is none, or ``default_help`` tells where it comes from."""
    default_help: str = ""
    metavar: str = "VALUE"
    is_switch: bool = False
    """It may stand alone, without a value."""
    short: str | None = None
    aliases: tuple[Alias, ...] = ()
    kinds: frozenset[StoreKind] = frozenset(StoreKind)
    """The stores that it means something to."""
    of_remote: bool = False
    """It may stand in ``[remotes.NAME]`` too."""
    once_only: bool = False
    """It belongs to one start of the command: neither the environment nor the file can give it."""

    @property
    def key(self) -> str:
        """The name in the configuration file."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return f"CACHEFS_{self.key.upper()}"

    @property
    def shown_default(self) -> str:
        """The default in words, or nothing."""
        if self.is_switch and self.default == "false":
            return ""
        return self.default_help or self.default or ""
