"""What the kernel is still to be told: names and attributes that it believes, and that are others by now."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from cachefs.core.types import Ino, Name

_KEPT: Final = 4096


@dataclass(frozen=True, slots=True)
class Forget:
    """What the kernel should ask for again: a name in the directory *ino*, or (no name) the attributes of *ino*."""

    ino: Ino
    name: Name | None = None


class Untold:
    """What the kernel has to forget, in order, until the one who tells it takes it out.

    INVARIANT: what is not in here any more, the kernel was told of. A channel would not do: it hands over to a task that
    waits before that task runs, and for so long nobody else could tell the kernel, nor see that it was not told.

    Without a kernel that knows the tree nothing is kept, for nobody would ever take it out.
    """

    def __init__(self) -> None:
        self._waiting: deque[Forget] = deque()
        self._changed = trio.Event()
        self._has_kernel = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep, for as long as the block lasts, what the kernel is to be told."""
        self._has_kernel = True
        try:
            yield
        finally:
            self._has_kernel = False
            self._waiting.clear()
            self._wake()

    def offer(self, what: Forget) -> bool:
        """Add *what*, unless too much waits. Return whether it was added, or is of no use."""
        if not self._has_kernel:
            return True
        if len(self._waiting) >= _KEPT:
            return False
        self._waiting.append(what)
        self._wake()
        return True

    async def put(self, what: Forget) -> None:
        """Add *what*, once there is room."""
        while not self.offer(what):
            await self._changed.wait()

    def take(self) -> Forget | None:
        """Take out what has waited longest; None: nothing waits. The kernel is to be told before anything else runs."""
        if not self._waiting:
            return None
        what = self._waiting.popleft()
        self._wake()
        return what

    async def wait(self) -> None:
        """Return once there is anything to take."""
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
