"""One value that somebody gave to one option, and in whose words; and the errors about it."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cachefs.core.errors import UsageError


class Origin(StrEnum):
    """Where a value came from."""

    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for the option *name*, not yet read."""

    name: str
    value: str
    origin: Origin
    spelling: str
    """How this origin writes it, with one ``{}`` for the value: ``--cache-size {}``."""
    place: str = ""
    """Where it stands, if that is not plain: `` in [mounts.photos] of /etc/cachefs/config.toml``."""

    @property
    def said(self) -> str:
        """What the operator wrote, for an error line."""
        return self.spelling.format(quoted(self.value)) + self.place

    def wrong(self, reason: str, example: str) -> UsageError:
        """Return the error that this value *reason*."""
        return UsageError(f"{self.said} {reason} — for example {self.spelling.format(example)}")


def quoted(value: str) -> str:
    """Return *value* as one visible word, however odd it is, without the password of a URL."""
    value = re.sub(r"//[^/@]*@", "//[hidden]@", value)
    if value and value.isprintable() and not set(value) & set(" '\""):
        return value
    return repr(value)


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the word of *known* that *name* most likely was meant to be, if any is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def suggestion(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the end of an error line that names the closest of *known*, or nothing."""
    near = closest(name, known)
    return f" — did you mean {prefix}{near}?" if near else ""
