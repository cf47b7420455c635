"""The tasks that run beside the serving: a failure of one is logged, never the end of the mount."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from cachefs.core.errors import CacheError, CachefsError
from cachefs.engine.cause import because
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 10.0


@dataclass(slots=True)
class Failures:
    """What ended unforeseen since the start."""

    count: int = 0


class Background:
    """A nursery, behind a catch-all."""

    def __init__(self, nursery: trio.Nursery, failures: "Failures | None" = None) -> None:
        self._nursery = nursery
        self._failures = failures or Failures()

    @property
    def failed(self) -> int:
        """How many tasks ended in an exception that nobody had foreseen."""
        return self._failures.count

    def within(self, nursery: trio.Nursery) -> "Background":
        """Return the same for tasks that end with *nursery*."""
        return Background(nursery, self._failures)

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* beside the caller, once."""
        self._nursery.start_soon(self._guard, name, work)

    def keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* beside the caller; begin it again, after a longer and longer wait, whenever it fails."""
        self._nursery.start_soon(self._restart, name, work)

    async def _guard(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            # It outlives the operation that started it, and is done because of that.
            with deadline.unlimited(), because(name, if_unknown=True):
                await work()
        except CacheError as error:  # of the disk, which may have room again
            _log.warning("%s: %s", name, error)
        except CachefsError as error:  # known, and out of place here
            _log.error("%s: %s", name, error)
        except Exception:  # noqa: BLE001 - the point of this room: logged, and the mount lives
            self._failures.count += 1
            _log.exception("%s failed", name)

    async def _restart(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        wait_s = _FIRST_WAIT_S
        while True:
            began = trio.current_time()
            await self._guard(name, work)
            if trio.current_time() - began > _LONGEST_WAIT_S:
                wait_s = _FIRST_WAIT_S
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def stop(self) -> None:
        """Cancel every task."""
        self._nursery.cancel_scope.cancel()
