"""Questions that may take long: answered within seconds, if only by a number under which to ask again."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import trio

from cachefs.core.errors import UsageError

SLICE_S: Final = 20.0
"""After how long a caller is told to ask again."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The answer for now."""

    job: int


@dataclass(slots=True, eq=False)
class _Job:
    over: trio.Event = field(default_factory=trio.Event)
    result: object = None
    error: Exception | None = None


class Jobs:
    """What one caller has asked for and not been told the outcome of. It ends with the conversation."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._jobs: dict[int, _Job] = {}
        self._numbers = count(1)

    async def begin(self, work: Callable[[], Awaitable[object]]) -> object:
        """Do *work*, and return what comes of it, or ``Unfinished`` if that takes longer."""
        job, number = _Job(), next(self._numbers)
        self._jobs[number] = job
        self._nursery.start_soon(self._do, job, work)
        return await self.wait(number)

    async def wait(self, number: int) -> object:
        """Return what came of the work that was begun as *number*, or ``Unfinished``, or raise what it raised."""
        job = self._jobs.get(number)
        if job is None:
            raise UsageError("nothing was begun under that number, or its outcome was told")
        with trio.move_on_after(SLICE_S):
            await job.over.wait()
        if not job.over.is_set():
            return Unfinished(number)
        del self._jobs[number]
        if job.error is not None:
            raise job.error
        return job.result

    @staticmethod
    async def _do(job: _Job, work: Callable[[], Awaitable[object]]) -> None:
        try:
            job.result = await work()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            job.error = error
        finally:
            job.over.set()
