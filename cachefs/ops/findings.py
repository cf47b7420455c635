"""What verifying finds of each file, and in all."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """How a file here and its object at the store stand to each other."""

    SAME = "same"
    """The same bytes."""
    PARTIAL = "partial"
    """Of the cache: the same version; the bytes that are here are as they came."""
    STALE = "stale"
    """Of the cache: the store has a newer version, which the next open gets. No error."""
    QUEUED = "queued"
    """Of the cache: changed here, and waits for its upload."""
    UPLOADING = "uploading"
    """Of the cache: being uploaded at this moment."""
    PARKED = "parked"
    """Of the cache: changed here, and its upload was given up until somebody decides."""
    DIFFERS = "differs"
    """Other bytes."""
    MISSING_REMOTE = "missing_remote"
    """The store has no such object."""
    MISSING_LOCAL = "missing_local"
    """The store has an object for which there is no file here."""
    ROTTED = "rotted"
    """Of the cache: the bytes are not those of the version that they should be."""
    UNVERIFIABLE = "unverifiable"
    """The store tells nothing by which the bytes could be known."""
    ERROR = "error"
    """It could not be found out."""


class Repair(StrEnum):
    """What was done about a file."""

    REFETCHED = "refetched"
    """Its bytes were given up, and come anew from the store."""
    QUEUED = "queued"
    """It waits for its upload."""
    STORED = "stored"
    """The store has it again."""


FINE: Final = frozenset({State.SAME, State.PARTIAL})
"""Nothing to say of them."""
WAITING: Final = frozenset({State.QUEUED, State.UPLOADING})
HARMLESS: Final = frozenset({State.STALE, State.UNVERIFIABLE})
"""Worth saying, and no failure."""
OUT_OF_SYNC: Final = frozenset(State) - FINE - WAITING - HARMLESS

SYMBOLS: Final = {
    State.SAME: "=",
    State.PARTIAL: "=",
    State.STALE: "*",
    State.QUEUED: "*",
    State.UPLOADING: "*",
    State.PARKED: "*",
    State.DIFFERS: "*",
    State.MISSING_REMOTE: "+",
    State.MISSING_LOCAL: "-",
    State.ROTTED: "*",
    State.UNVERIFIABLE: "!",
    State.ERROR: "!",
}
"""As ``rclone check --combined`` has them: equal, differing, only here, only at the store, not found out."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of one file."""

    path: str
    """Relative to what was verified; bytes that are no UTF-8 as surrogates."""
    state: State
    reason: str = ""
    """Why, where the state alone does not say it."""
    local_md5: str | None = None
    """In hexadecimal, as the other; None: it was not needed, or is not known."""
    remote_md5: str | None = None
    size: int | None = None
    """Bytes here; of what is not here, at the store."""
    mtime_ns: int | None = None
    """Of the file here; of what is not here, when the store took it in."""
    repair: Repair | None = None
    """What was done about it; None: nothing."""

    @property
    def is_out_of_sync(self) -> bool:
        """Whether something is wrong, and stays so."""
        return self.state in OUT_OF_SYNC and self.repair is None

    @property
    def is_waiting(self) -> bool:
        """Whether it will be right once what waits is uploaded."""
        return self.state in WAITING or self.repair is Repair.QUEUED


@dataclass(slots=True)
class Tally:
    """How many files were found in which state."""

    states: Counter[State] = field(default_factory=Counter)
    repairs: Counter[Repair] = field(default_factory=Counter)
    out_of_sync: int = 0
    waiting: int = 0

    def count(self, finding: Finding) -> None:
        """Count one more."""
        self.states[finding.state] += 1
        self.out_of_sync += finding.is_out_of_sync
        self.waiting += finding.is_waiting
        if finding.repair is not None:
            self.repairs[finding.repair] += 1

    @property
    def files(self) -> int:
        """All of them."""
        return self.states.total()
