"""Pure verdicts: is it fresh, when to evict, when to try again, what a crash left behind."""

from dataclasses import dataclass
from enum import Enum, auto

from cachefs.core.errors import CachefsError, Denied, Refused
from cachefs.core.intent import State

SECOND_NS = 10**9
HIGH_WATER = 0.95
"""Share of the limit above which eviction begins beside the serving."""
LOW_WATER = 0.85
"""Share of the limit at which it stops."""


def is_fresh(checked_ns: int, ttl_ns: int, now_ns: int) -> bool:
    """Whether what the store said at *checked_ns* may be used without asking again.

    A clock that went backwards makes everything stale, rather than fresh for years.
    """
    return checked_ns <= now_ns < checked_ns + ttl_ns


def next_try_ns(tries: int, now_ns: int, jitter: float) -> int:
    """Return when an upload that failed *tries* times is due: 1 s doubling to 60 s.

    *jitter* in [0, 1) spreads uploads that failed together over half of the wait (AWS Architecture Blog,
    "Exponential Backoff And Jitter", 2015: equal jitter).
    """
    wait_ns = min(60 * SECOND_NS, SECOND_NS << min(tries, 10))
    return now_ns + wait_ns // 2 + int(jitter * (wait_ns // 2))


def is_final(error: CachefsError) -> bool:
    """Whether an upload that ended so waits for the operator or another write, not for its next try.

    What the store refuses of the object itself it would refuse again. Credentials and permissions are renewed
    without anybody telling.
    """
    return isinstance(error, Refused) and not isinstance(error, Denied)


def is_due(due_ns: int, now_ns: int, longest_wait_ns: int) -> bool:
    """Whether something put off until *due_ns* may be done.

    Nothing is put off for longer than *longest_wait_ns*, so a time further ahead is of a clock that has gone
    back since.
    """
    return due_ns <= now_ns or due_ns > now_ns + longest_wait_ns


class Remedy(Enum):
    """What recovery does with one cache entry."""

    KEEP = auto()
    QUEUE = auto()
    SET_ASIDE = auto()
    """A program was in the middle of writing: the name keeps what the store has, the bytes are kept apart."""
    PARK_UNSYNCED = auto()
    """Power was lost before these bytes were synced: the store still has the base."""
    PARK_UNTOLD = auto()
    """The promise that stands beside owed bytes is not there: the row may be older than what became of them."""
    PARK_LOST = auto()
    """Promised bytes are not on the disk any more. Never taken for clean."""
    DROP = auto()
    DISCARD = auto()
    """The name was removed while the file was open: nothing is owed."""


@dataclass(frozen=True, slots=True)
class Remains:
    """One entry as a stopped daemon left it."""

    has_file: bool
    is_named: bool
    """False: unlinked while it was open."""
    state: State | None
    """Of its promise; None: clean."""
    boot: str | None
    """Of a promise: the boot whose page cache its bytes were last known to be in; None: they are synced."""
    is_whole: bool
    """The file is at least as long as the entry says."""
    has_promise: bool = True
    """Of a promised entry: the file beside it says so, too."""


def remedy(remains: Remains, *, boot: str) -> Remedy:
    """Return what to do with an entry, given the present *boot*.

    Clean bytes are kept even after a loss of power: each piece is held against its sum before it is served.
    """
    if not remains.is_named:
        return Remedy.KEEP if remains.state is State.PARKED else Remedy.DISCARD
    if remains.state is None:
        return Remedy.KEEP if remains.has_file and remains.is_whole else Remedy.DROP
    if not remains.has_file:
        return Remedy.PARK_LOST
    if remains.state is State.OPEN:
        return Remedy.SET_ASIDE
    if not remains.has_promise:
        return Remedy.PARK_UNTOLD
    return Remedy.QUEUE if remains.boot in (None, boot) else Remedy.PARK_UNSYNCED
