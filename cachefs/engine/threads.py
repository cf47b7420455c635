"""The only way off the event loop: blocking work on the disk and at the store, each with its own limit."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import trio

from cachefs.core.errors import TimedOut
from cachefs.remote import deadline

P = ParamSpec("P")
T = TypeVar("T")

_DISK_THREADS = 8
_METADATA_THREADS = 8


class Threads:
    """Two pools of worker threads. A thread gets descriptors, bytes and frozen values, and gives one back.

    A thread that has begun is never abandoned (but for :meth:`glance`): what it does to the disk or the store
    would go on unseen.
    """

    def __init__(self, *, transfers: int, timeout_s: float) -> None:
        self._disk = trio.CapacityLimiter(_DISK_THREADS)
        self._transfers = trio.CapacityLimiter(transfers)
        self._metadata = trio.CapacityLimiter(_METADATA_THREADS)
        self._timeout_s = timeout_s
        self.asked: Callable[[], None] = lambda: None
        """Called after each request, whatever came of it: the store may have gone, or be back."""

    async def disk(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on this machine's disk."""
        return await trio.to_thread.run_sync(lambda: work(*args, **kwargs), limiter=self._disk)

    async def transfer(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a request that moves an object's bytes. Raise ``TimedOut`` if no thread is free in time."""
        return await self._run(self._transfers, lambda: work(*args, **kwargs))

    async def ask(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short request. Has threads of its own, so that a listing never queues behind transfers."""
        return await self._run(self._metadata, lambda: work(*args, **kwargs))

    async def _run(self, limiter: trio.CapacityLimiter, work: Callable[[], T]) -> T:
        is_ours = False
        whole = deadline.current()
        patience_s = self._timeout_s if whole is None else min(self._timeout_s, whole.left_s)
        with trio.move_on_after(patience_s):
            await limiter.acquire_on_behalf_of(work)
            is_ours = True
        if not is_ours:
            raise TimedOut("every connection to the store is busy")
        try:
            # The place is held by this call already; the thread itself needs none.
            return await trio.to_thread.run_sync(work, limiter=trio.CapacityLimiter(1))
        finally:
            limiter.release_on_behalf_of(work)
            self.asked()

    @staticmethod
    async def glance(work: Callable[[], None]) -> None:
        """Run a request that changes nothing; when it is cancelled, it is left to itself."""
        await trio.to_thread.run_sync(
            work, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
        )

    @staticmethod
    async def helper(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run short blocking work that is neither of the cache's disk nor of the store."""
        return await trio.to_thread.run_sync(lambda: work(*args, **kwargs))
