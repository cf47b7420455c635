"""What is remembered of the opens of one file, cached or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Accessed:
    """One file that programs have opened."""

    path: str
    """Relative to the mount; bytes that are no UTF-8 as surrogates."""
    size: int
    opens: int
    """In all."""
    used_ns: int
    """When it was opened last, since the epoch."""
    days: Mapping[int, int]
    """Opens on each of the last days, by the number of the day (``datetime.date.toordinal``), as the clock on the wall has it."""
    fetch_ns: int = 0
    """How long requests took to bring its bytes; 0: it is not cached, or none of these bytes was fetched."""

    def to_json(self) -> dict[str, object]:
        """Return it as what JSON can hold."""
        days = {str(day): opens for day, opens in self.days.items()}
        return {
            "path": self.path,
            "size": self.size,
            "opens": self.opens,
            "used_ns": self.used_ns,
            "days": days,
            "fetch_ns": self.fetch_ns,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` told. Raise ``KeyError``, ``TypeError`` or ``ValueError`` if it did not."""
        days = {int(day): int(opens) for day, opens in row["days"].items()}
        size, opens, used_ns, fetch_ns = (
            int(row[name]) for name in ("size", "opens", "used_ns", "fetch_ns")
        )
        return cls(str(row["path"]), size, opens, used_ns, days, fetch_ns)


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Some of what is remembered."""

    files: list[Accessed]
    after: int | None
    """Where the next page begins; None: there is none."""
