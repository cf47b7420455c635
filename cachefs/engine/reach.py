"""Whether the store can be reached: known from all requests together, and from asking again and again while it cannot."""

import contextlib
import logging
import time
from collections.abc import Callable

import trio

from cachefs.core.errors import StoreError, TimedOut
from cachefs.engine.threads import Threads
from cachefs.remote import deadline
from cachefs.remote.retry import Retrying

_log = logging.getLogger(__name__)

_PATIENCE_S = 2.0
"""How long one look lasts: a request that was swallowed tells nothing of when the store is back."""
_QUICK_S = 1.0
"""What a look takes at most that somebody answers, if only by a refusal."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 5.0


class Reach:
    """Looks whether the store is back, while it is offline, and lets questions know.

    Offline is a store of which a request failed for a whole deadline, while nothing else was answered. Any answer
    ends that, so neither a lost request nor one object that cannot be had makes anybody believe what is old: the
    first question after it has the store looked at anew.
    """

    def __init__(self, store: Retrying, threads: Threads) -> None:
        self._store = store
        self._threads = threads
        self._wanted = trio.Event()
        self._looked = trio.Event()
        self._last_began = 0.0
        """When the last look that is over began, on the monotonic clock."""
        self._was_silent = False
        """Whether it was not ended by a word, so that the next one may be no quicker."""
        self._is_watching = False
        self.on_return: list[Callable[[bool], None]] = []
        """Called when the store answers again; told whether it was seen not to answer, so that much was missed."""

    @property
    def is_offline(self) -> bool:
        """What was known last."""
        return self._store.health.is_offline

    def notice(self) -> None:
        """Begin to look, or to tell that the store is back, if the last request says so."""
        if self.is_offline != self._is_watching:
            self._wanted.set()

    def look(self) -> None:
        """Look now, if the store is offline, rather than when it is time: somebody waits for it."""
        if self.is_offline:
            self._wanted.set()

    async def is_lost(self) -> bool:
        """Return whether to go by what is known: the store is offline, and does not answer at this moment either.

        Waits for a look that begins now, but where looks end in silence: there nobody waits for more than one.
        """
        asked = time.monotonic()
        with trio.move_on_after(2 * _PATIENCE_S):
            while self._last_began < asked and self.is_offline and not self._was_silent:
                self._wanted.set()
                await self._looked.wait()
        return self.is_offline

    async def run(self) -> None:
        """Look whether the store is back whenever it is offline, for ever."""
        while True:
            if not self.is_offline:  # else a failure of this loop has left it so
                await self._wanted.wait()
            self._wanted = trio.Event()
            # Even if it has answered since: others may have seen that it did not, and wait to be told.
            await self._watch()

    async def _watch(self) -> None:
        began = time.monotonic()
        wait_s = _FIRST_WAIT_S
        self._is_watching, was_missed = True, False
        try:
            await self._look()
            while self.is_offline:
                if not was_missed:
                    was_missed = True
                    _log.warning("the store is offline: %s", self._store.health.last_error)
                with trio.move_on_after(0 if self._was_silent else wait_s):
                    await self._wanted.wait()
                self._wanted = trio.Event()
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                await self._look()
        finally:
            self._is_watching = self._was_silent = False
        if was_missed:
            _log.warning("the store answers again, after %.0f s", time.monotonic() - began)
        for tell in self.on_return:
            tell(was_missed)

    async def _look(self) -> None:
        began = time.monotonic()
        with trio.move_on_after(_PATIENCE_S), contextlib.suppress(StoreError):
            await self._threads.glance(self._store.ping)
        self._last_began, self._was_silent = began, time.monotonic() - began > _QUICK_S
        self._looked.set()
        self._looked = trio.Event()


async def wait_for(event: trio.Event, what: str) -> None:
    """Wait for *event*, but no longer than the operation may: then raise ``TimedOut`` that says *what* was not done."""
    whole = deadline.current()
    if whole is None or event.is_set():
        await event.wait()
        return
    with trio.move_on_after(whole.left_s):
        await event.wait()
        return
    raise TimedOut(f"waited in vain: {what}")
