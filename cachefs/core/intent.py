"""The life of a promise to the store, as a table: whatever is not in it does not happen."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cachefs.core.types import EntryId, Token


class State(StrEnum):
    """Where a promise stands. Settled has no state: the row is gone."""

    OPEN = "open"
    """A program is writing, or may."""
    QUEUED = "queued"
    """Complete; waits for its turn, or for its next try."""
    UPLOADING = "uploading"
    """An upload is under way."""
    PARKED = "parked"
    """Given up until the operator, or another write, speaks. The bytes stay."""


class Event(StrEnum):
    """What can happen to a promise."""

    WRITE = "write"
    SEAL = "seal"
    CLAIM = "claim"
    FAULT = "fault"
    REFUSE = "refuse"
    RETRY = "retry"


MOVES: Final[dict[State, dict[Event, State]]] = {
    State.OPEN: {Event.WRITE: State.OPEN, Event.SEAL: State.QUEUED, Event.REFUSE: State.PARKED},
    State.QUEUED: {
        Event.WRITE: State.OPEN,
        Event.SEAL: State.QUEUED,
        Event.CLAIM: State.UPLOADING,
        Event.REFUSE: State.PARKED,
    },
    State.UPLOADING: {
        Event.WRITE: State.OPEN,
        Event.FAULT: State.QUEUED,
        Event.REFUSE: State.PARKED,
    },
    State.PARKED: {Event.WRITE: State.OPEN, Event.RETRY: State.QUEUED, Event.SEAL: State.QUEUED},
}


@dataclass(frozen=True, slots=True)
class Intent:
    """One promise, as its row stands."""

    entry: EntryId
    token: Token
    state: State
    boot: str | None
    """The boot in which the bytes were written but not yet synced; None once they are on the disk."""
    due_ns: int
    tries: int
    was_sent: bool
    """An upload was begun: the store may have the bytes, whatever it answered."""
    error: str | None


def move(state: State, event: Event) -> State:
    """Return where *event* takes a promise that is in *state*. Raise ValueError if it may not happen."""
    try:
        return MOVES[state][event]
    except KeyError:
        raise ValueError(f"a promise that is {state} cannot {event}") from None
