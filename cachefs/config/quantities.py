"""What people write for sizes, durations, modes, owners and switches, read into numbers.

Every reader raises ValueError with the rest of a sentence: "is not a size".
"""

import grp
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final, TypeVar

E = TypeVar("E", bound=StrEnum)

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE | re.ASCII)
_LETTERS = "kmgtpe"
_UNITS = {
    "": 1,
    "b": 1,
    **{letter: 2 ** (10 * power) for power, letter in enumerate(_LETTERS, 1)},
    **{f"{letter}i": 2 ** (10 * power) for power, letter in enumerate(_LETTERS, 1)},
    **{f"{letter}ib": 2 ** (10 * power) for power, letter in enumerate(_LETTERS, 1)},
    **{f"{letter}b": 10 ** (3 * power) for power, letter in enumerate(_LETTERS, 1)},
}
_LARGEST = 2**63 - 1  # what SQLite and off_t hold

_DURATION_PART = r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)"
_DURATION = re.compile(rf"(?:{_DURATION_PART})+", re.ASCII)
_MILLISECONDS = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
_LONGEST_S = 100 * 366 * 86400.0
_LONGEST_LEASE_S: Final = 7 * 86400.0

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class Space:
    """An amount of disk: so many bytes, or a share of the whole."""

    size: int | None = None
    percent: float | None = None

    def of(self, total: int) -> int:
        """Return the amount in bytes on a disk of *total* bytes."""
        if self.size is not None:
            return self.size
        return int(total * (self.percent or 0.0) / 100)


def parse_size(text: str, *, unit: str = "") -> int:
    """Return the bytes that *text* names. A bare number counts *unit*s (bytes, unless said otherwise).

    K, Ki and KiB are 1024; KB is 1000, and so on up to E.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get((match["unit"] or unit).lower()) if match else None
    if match is None or factor is None:
        raise ValueError("is not a size")
    size = int(Fraction(match["number"]) * factor)
    if size > _LARGEST:
        raise ValueError("is larger than any disk")
    return size


def parse_space(text: str) -> Space:
    """Return the amount of disk that *text* names: a size, or a percentage from 0 up to 100."""
    if not text.strip().endswith("%"):
        return Space(size=parse_size(text))
    number = text.strip()[:-1].strip()
    if not re.fullmatch(r"-?\d{1,20}(?:\.\d{1,20})?", number, re.ASCII):
        raise ValueError("is not a percentage")
    percent = float(number)
    if not 0 <= percent < 100:
        raise ValueError("is not a percentage from 0 up to 100")
    return Space(percent=percent)


def parse_duration(text: str) -> float:
    """Return the seconds that *text* names. A bare number counts seconds."""
    stripped = text.strip()
    if re.fullmatch(r"\d+(?:\.\d+)?", stripped, re.ASCII):
        seconds = float(stripped)
    elif _DURATION.fullmatch(stripped):
        parts = re.findall(_DURATION_PART, stripped)
        exactly = sum(Fraction(number) * _MILLISECONDS[unit] for number, unit in parts) / 1000
        seconds = float(min(exactly, Fraction(2 * _LONGEST_S)))
    else:
        raise ValueError("is not a duration")
    if seconds > _LONGEST_S:
        raise ValueError("is longer than a hundred years")
    return seconds


def parse_lifetime(text: str) -> float:
    """Return the seconds that *text* names, which may also be ``minimal`` or ``indefinite``."""
    words = {"minimal": 0.0, "indefinite": _LONGEST_S}
    return words[text] if text in words else parse_duration(text)


def parse_patience(text: str) -> float:
    """Return the seconds that *text* names, which must be more than none."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError("must be longer than 0")
    return seconds


def parse_lease(text: str) -> float:
    """Return the seconds that *text* names, for which a path that a pool has told may stay good."""
    seconds = parse_duration(text)
    if not 1 <= seconds <= _LONGEST_LEASE_S:
        raise ValueError("is not from 1 second to 7 days")
    return seconds


def parse_port(text: str) -> int:
    """Return the TCP port that *text* spells; 0: any that is free."""
    if not re.fullmatch(r"\d{1,5}", text.strip(), re.ASCII) or int(text) >= 2**16:
        raise ValueError("is no port")
    return int(text)


def parse_paths(text: str) -> tuple[str, ...]:
    """Return the paths that *text* names, with colons between them."""
    return tuple(map(parse_text, text.split(":")))


def parse_mode(text: str) -> int:
    """Return the permission bits that *text* spells in octal."""
    if not re.fullmatch(r"(0o)?[0-7]{1,5}", text.strip(), re.ASCII):
        raise ValueError("is not an octal mode")
    mode = int(text.strip().removeprefix("0o"), 8)
    if mode > 0o7777:
        raise ValueError("is more than the permission bits 07777")
    return mode


def parse_count(text: str) -> int:
    """Return the number from 1 to 1024 that *text* spells."""
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise ValueError("is not a number")
    if not 1 <= int(text) <= 1024:
        raise ValueError("is not between 1 and 1024")
    return int(text)


def parse_user(text: str) -> int:
    """Return the user id that *text* is or names."""
    return _parse_id(text, "user", lambda name: pwd.getpwnam(name).pw_uid)


def parse_group(text: str) -> int:
    """Return the group id that *text* is or names."""
    return _parse_id(text, "group", lambda name: grp.getgrnam(name).gr_gid)


def parse_switch(text: str) -> bool:
    """Return whether *text* says yes."""
    word = text.strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError("is neither true nor false")
    return word in _TRUE


def parse_text(text: str) -> str:
    """Return *text*, which must hold something and nothing that does not print."""
    if not text.strip() or not text.isprintable():
        raise ValueError("is empty or holds characters that do not print")
    return text.strip()


def one_of(kind: type[E]) -> Callable[[str], E]:
    """Return a reader for the words of *kind*."""

    def parse(text: str) -> E:
        word = text.strip().lower().replace("_", "-")
        for member in kind:
            if member.value.replace("_", "-") == word:
                return member
        raise ValueError(f"is none of {', '.join(kind)}")

    return parse


def _parse_id(text: str, what: str, look_up: Callable[[str], int]) -> int:
    if re.fullmatch(r"\d{1,10}", text.strip(), re.ASCII):
        number = int(text)
        if number >= 2**32 - 1:
            raise ValueError(f"is not a {what} id")
        return number
    try:
        return look_up(text.strip())
    except (KeyError, ValueError, OverflowError):
        raise ValueError(f"names no {what} of this machine") from None
