"""What is told of files that are brought into the cache before programs want them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


class Heat(StrEnum):
    """How a question for the bytes of one file was answered."""

    CACHED = "cached"
    """Every byte is here."""
    PARTIAL = "partial"
    """There are more to come: ask again."""
    FULL = "full"
    """The cache has no room for the rest."""


@dataclass(frozen=True, slots=True)
class Heated:
    """One file, after a question for its bytes."""

    heat: Heat
    size: int
    """Bytes of the whole file."""
    cached: int
    """Bytes of it that are here."""
    fetched: int
    """Bytes that came from the store for this question."""

    def to_json(self) -> dict[str, object]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` told. Raise ``KeyError``, ``TypeError`` or ``ValueError`` if it did not."""
        return cls(Heat(row["heat"]), int(row["size"]), int(row["cached"]), int(row["fetched"]))


@dataclass(frozen=True, slots=True)
class Presence:
    """How much of a file is in the cache, as it is known without asking the store."""

    size: int | None
    """Bytes of the whole file; None: it was never seen, or is no file."""
    cached: int
