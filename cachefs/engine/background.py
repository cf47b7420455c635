"""The tasks that run beside the serving: a failure of one is logged, never the end of the mount."""

import logging
from collections.abc import Awaitable, Callable

import trio

from cachefs.core.errors import CachefsError
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_FIRST_BREATH_S = 1
_LONGEST_BREATH_S = 60


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
        """Run *work* beside the caller; begin it again, after a longer and longer breath, whenever it fails."""
        self._nursery.start_soon(self._restart, name, work)

    async def _guard(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            with deadline.unlimited():  # it outlives the operation that started it
                await work()
        except (
            CachefsError
        ) as error:  # known, and out of place here: a table that cannot be read, say
            self.failures += 1
            _log.error("%s failed: %s", name, error)
        except Exception:  # noqa: BLE001 - the point of this room: logged, and the mount lives
            self.failures += 1
            _log.exception("%s failed", name)

    async def _restart(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        breath_s = _FIRST_BREATH_S
        while True:
            began = trio.current_time()
            await self._guard(name, work)
            went_well = trio.current_time() - began > _LONGEST_BREATH_S
            breath_s = _FIRST_BREATH_S if went_well else breath_s
            await trio.sleep(breath_s)
            breath_s = min(2 * breath_s, _LONGEST_BREATH_S)

    def stop(self) -> None:
        """Cancel every task."""
        self._nursery.cancel_scope.cancel()
