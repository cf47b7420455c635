"""Lines about what is done: kept in memory, and appended to a file beside the serving.

No request waits for it, and none fails by it. Where the file cannot be written, lines are lost; that is said once,
and once more how many when it can be written again. What of the last second is not written yet goes with a kill.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

import trio

from cachefs.engine.threads import Threads

T = TypeVar("T")

_log = logging.getLogger(__name__)

_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 2.0
"""How long the last write waits for one before it, which may hang."""
_MOST_LINES: Final = 50_000
"""Lines that wait at most, about 10 MB: more than a mount can open in the time between two writes."""


class LineFile(Generic[T]):
    """A file of lines, one for each thing that was noted."""

    def __init__(
        self,
        path: Path | None,
        threads: Threads,
        *,
        name: str,
        of: str,
        encode: Callable[[T], str],
        header: str = "",
    ) -> None:
        """*path*: None: nothing is noted. *name* is what messages call the file, *of* what it tells of ("opens").

        *encode* makes the line of a thing, without its end. *header*: the first line of the file.
        """
        self._path = path
        self._threads = threads
        self._name = name
        self._of = of
        self._encode = encode
        self._header = header
        self._waiting: list[T] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._is_failing = False
        self.lines = 0
        """Written since the start."""
        self.lost = 0
        """Not written since the start."""
        self._lost_before = 0
        """Of those, how many were lost before the present failure."""

    @property
    def is_on(self) -> bool:
        """Whether anything is noted."""
        return self._path is not None

    def note(self, thing: T) -> None:
        """Have a line written about *thing*. Any thread."""
        with self._lock:
            if len(self._waiting) < _MOST_LINES:
                self._waiting.append(thing)
            else:
                self.lost += 1

    async def run(self) -> None:
        """Write what was noted, every second, for ever."""
        while True:
            await trio.sleep(_EVERY_S)
            if things := self._take():
                outcome: list[OSError] = []
                await self._threads.beside(partial(self._write, things, outcome))
                self._count(len(things), outcome)

    def finish(self) -> None:
        """Write the last of it: when nothing else is served. Blocks."""
        if things := self._take():
            outcome: list[OSError] = []
            self._write(things, outcome)
            self._count(len(things), outcome)

    def _take(self) -> list[T]:
        with self._lock:
            things, self._waiting = self._waiting, []
        return things

    def _write(self, things: list[T], outcome: list[OSError]) -> None:
        """Append lines about *things* to the file; put into *outcome* why it did not work. Any thread."""
        if self._path is None:
            return
        if not self._writing.acquire(timeout=_PATIENCE_S):
            outcome.append(TimeoutError("an earlier write does not end"))
            return
        try:
            _append(self._path, list(map(self._encode, things)), self._header)
        except OSError as error:
            outcome.append(error)
        finally:
            self._writing.release()

    def _count(self, number: int, outcome: list[OSError]) -> None:
        if outcome:
            self._failed(number, outcome[0])
        else:
            self._written(number)

    def _failed(self, number: int, error: OSError) -> None:
        if not self._is_failing:
            _log.warning(
                "the %s %s cannot be written: %s; it misses %s until it can be",
                self._name,
                self._path,
                error.strerror or error,
                self._of,
            )
            self._is_failing, self._lost_before = True, self.lost
        with self._lock:
            self.lost += number

    def _written(self, number: int) -> None:
        self.lines += number
        if self._is_failing:
            _log.warning(
                "the %s %s is written again; %d %s are missing",
                self._name,
                self._path,
                self.lost - self._lost_before,
                self._of,
            )
            self._is_failing = False

    def status(self) -> dict[str, object] | None:
        """Return what ``cachefs status`` tells of it; None: there is none."""
        if self._path is None:
            return None
        return {"file": str(self._path), "lines": self.lines, "lost": self.lost}


def _append(path: Path, lines: list[str], header: str) -> None:
    """Append *lines*, whole or not at all. The file is opened anew each time: it may have been moved away."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        head = f"{header}\n" if header and not size else ""
        text = head + "".join(f"{line}\n" for line in lines)
        view = memoryview(text.encode())
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)  # half a line would be read as another one
            raise
    finally:
        os.close(descriptor)
