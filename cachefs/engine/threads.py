"""The only way off the event loop: blocking work on the disk and at the store, each with its own limit."""

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

from cachefs.core.errors import NoMemory, TimedOut, naming_shortages
from cachefs.remote import deadline

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

_DISK_THREADS = 8
_METADATA_THREADS = 8
_PAUSE_S = 0.05
"""How long to wait for a thread of ours to end, where the machine gives no further one."""


class Threads:
    """Two pools of worker threads. A thread gets descriptors, bytes and frozen values, and gives one back.

    A thread that has begun is never abandoned (but for :meth:`glance` and :meth:`beside`): what it does to the disk or the store
    would go on unseen.
    """

    def __init__(self, *, transfers: int, timeout_s: float) -> None:
        self._disk = trio.CapacityLimiter(_DISK_THREADS)
        self._transfers = trio.CapacityLimiter(transfers)
        self._metadata = trio.CapacityLimiter(_METADATA_THREADS)
        self._timeout_s = timeout_s
        self.asked: Callable[[], None] = lambda: None
        """Called after each request, whatever came of it: the store may have gone, or be back."""
        self._is_short = False

    async def disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on this machine's disk. Raise what the machine lacks as ``DiskFull`` and the like."""
        with naming_shortages():
            return await self._begin(lambda: work(*args, **kwargs), self._disk)

    async def transfer(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a request that moves an object's bytes. Raise ``TimedOut`` if no thread is free in time."""
        return await self._run(self._transfers, lambda: work(*args, **kwargs))

    async def ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short request. Has threads of its own, so that a listing never queues behind transfers."""
        return await self._run(self._metadata, lambda: work(*args, **kwargs))

    async def _run(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        is_ours = False
        with trio.move_on_after(self._patience_s()):
            await limiter.acquire_on_behalf_of(work)
            is_ours = True
        if not is_ours:
            raise TimedOut("every connection to the store is busy")
        try:
            # The place is held by this call already; the thread itself needs none.
            return await self._begin(work, trio.CapacityLimiter(1))
        finally:
            limiter.release_on_behalf_of(work)
            self.asked()

    def _patience_s(self) -> float:
        """Return how long whoever calls may wait for a thread."""
        whole = deadline.current()
        return self._timeout_s if whole is None else min(self._timeout_s, whole.left_s)

    async def glance(self, work: Callable[[], None]) -> None:
        """Run a request that changes nothing; when it is cancelled, it is left to itself."""
        await self._begin(work, trio.CapacityLimiter(1), may_abandon=True)

    async def beside(self, work: Callable[[], None]) -> None:
        """Run work that no request waits for, on a disk that need not be ours; when it is cancelled, it is left to itself."""
        await self._begin(work, trio.CapacityLimiter(1), may_abandon=True)

    async def at_length(self, work: Callable[[], T]) -> T:
        """Run work that takes long, that no request waits for, and that ends soon when it is told to."""
        return await self._begin(work, trio.CapacityLimiter(1))

    async def _begin(
        self, work: Callable[[], T], limiter: trio.CapacityLimiter, *, may_abandon: bool = False
    ) -> T:
        """Run *work* in a thread; where the machine gives none, wait for one of ours to be free, as long as we may."""
        has_begun = False

        def begin() -> T:
            nonlocal has_begun
            has_begun = True
            return work()

        give_up_at = trio.current_time() + self._patience_s()
        while True:
            try:
                result = await trio.to_thread.run_sync(
                    begin, limiter=limiter, abandon_on_cancel=may_abandon
                )
            except (RuntimeError, MemoryError) as error:
                if has_begun:
                    raise
                if trio.current_time() > give_up_at:
                    raise NoMemory(f"no thread for it: {error}") from error
                self._note_shortage(error)
                await trio.sleep(_PAUSE_S)
            else:
                self._is_short = False
                return result

    def _note_shortage(self, error: Exception) -> None:
        if not self._is_short:
            _log.warning(
                "no further thread can be started (%s): fewer things are done at once", error
            )
        self._is_short = True

    @staticmethod
    async def helper(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run short blocking work that is neither of the cache's disk nor of the store."""
        return await trio.to_thread.run_sync(lambda: work(*args, **kwargs))

    @staticmethod
    async def for_program(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what a program would wait for in a thread of its own; when it is cancelled, it is left to itself."""
        return await trio.to_thread.run_sync(lambda: work(*args, **kwargs), abandon_on_cancel=True)
