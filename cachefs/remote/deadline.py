"""One deadline for all that an operation waits for: its requests, and whatever it waits for in between."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic


class Deadline:
    """How long one operation may still wait.

    Only waiting in vain counts: what an answered request took is given back, so that a rename of ten thousand
    objects has time, and a store that does not answer has ``--timeout`` seconds in all, however many requests the
    operation would make. May be used from several threads: an answer that is counted twice or lost makes the
    deadline a little later or earlier, never later than *timeout_s* from now.

    *outer*: that of the operation of which this one is a part. What is answered to the part is answered to both.
    """

    def __init__(self, timeout_s: float, outer: "Deadline | None" = None) -> None:
        self._timeout_s = timeout_s
        self._at = monotonic() + timeout_s
        self._outer = outer

    @property
    def left_s(self) -> float:
        """Seconds that are left, zero if there are none."""
        return max(0.0, self._at - monotonic())

    def answered(self, took_s: float = math.inf) -> None:
        """Give back the time that something took which did come about."""
        self._at = min(self._at + took_s, monotonic() + self._timeout_s)
        if self._outer is not None:
            self._outer.answered(took_s)


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def current() -> Deadline | None:
    """Return the deadline of the operation that is being carried out here; None: there is none.

    Threads that :mod:`cachefs.engine.threads` starts have that of whom they work for.
    """
    return _current.get()


class limited:
    """Gives what the block does *timeout_s* seconds, or what is left to the operation if that is less."""

    __slots__ = ("_timeout_s", "_token")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        outer = _current.get()
        left_s = self._timeout_s if outer is None else min(self._timeout_s, outer.left_s)
        self._token = _current.set(Deadline(left_s, outer))

    def __exit__(self, *raised: object) -> None:
        _current.reset(self._token)


@contextmanager
def unlimited() -> Iterator[None]:
    """Let the block end what it has begun, whatever the operation's deadline: each of its waits has a bound."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)
