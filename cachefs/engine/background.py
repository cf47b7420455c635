"""The tasks that run beside the serving: a failure of one is logged, never the end of the mount."""

import logging
from collections.abc import Awaitable, Callable

import trio

from cachefs.remote import deadline

_log = logging.getLogger(__name__)


class Background:
    """The one nursery of a service, behind a catch-all."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.failures = 0
        """How many tasks ended in an exception that nobody had foreseen."""

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* beside the caller, once."""
        self._nursery.start_soon(self._guard, name, work)

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* beside the caller; begin it again, after a breath, whenever it fails."""
        self._nursery.start_soon(self._restart, name, work)

    async def _guard(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with deadline.unlimited():  # it outlives the operation that started it
                await work()
        except Exception:  # noqa: BLE001 - the point of this room: logged, and the mount lives
            self.failures += 1
            _log.exception("%s failed", name)

    async def _restart(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self._guard(name, work)
            await trio.sleep(1)

    def stop(self) -> None:
        """Cancel every task."""
        self._nursery.cancel_scope.cancel()
