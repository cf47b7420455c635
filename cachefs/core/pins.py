"""What operators are told of pins."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Pinning:
    """What became of one question to pin, or to unpin."""

    files: int
    """Files that are pinned (or are not any more) that were not (or were) before."""
    bytes: int
    """Bytes of disk that they need."""
    turn: int
    """The turn of fetching that covers them: see :class:`Pinned`."""

    def to_json(self) -> dict[str, object]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` told. Raise ``KeyError``, ``TypeError`` or ``ValueError`` if it did not."""
        return cls(int(row["files"]), int(row["bytes"]), int(row["turn"]))


@dataclass(frozen=True, slots=True)
class Pinned:
    """How far the fetching of pinned files is."""

    files: int
    """Files that are pinned, all together."""
    bytes: int
    """Bytes of disk that they need."""
    turn: int
    """Turns that are over: each looks at all files that were pinned when it began, and fetches what is missing."""
    looked_at: int
    """Files that this turn has come to."""
    fetched: int
    """Bytes that were fetched since the start of the daemon."""
    failed: Mapping[str, str]
    """Files that the last turn could not fetch, the first of them, each with the reason."""
    failures: int
    """How many it could not fetch."""

    def to_json(self) -> dict[str, object]:
        """Return it as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` told. Raise ``KeyError``, ``TypeError`` or ``ValueError`` if it did not."""
        numbers = {
            name: int(row[name])
            for name in ("files", "bytes", "turn", "looked_at", "fetched", "failures")
        }
        failed = {str(path): str(why) for path, why in row["failed"].items()}
        return cls(**numbers, failed=failed)
