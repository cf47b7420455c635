"""The trace of opens: kept in memory, and appended to a file beside the serving.

No request waits for it, and none fails by it. Where the file cannot be written, lines are lost; that is said once,
and once more how many when it can be written again.
"""

import contextlib
import logging
import os
import threading
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cachefs.core.traceline import HEADER, TraceLine
from cachefs.engine.threads import Threads

_log = logging.getLogger(__name__)

_EVERY_S: Final = 1.0
_PATIENCE_S: Final = 2.0
"""How long the last write waits for one before it, which may hang."""
_MOST_LINES: Final = 50_000
"""Lines that wait at most, about 10 MB: more than a mount can open in the time between two writes."""


class Trace:
    """The file that ``--trace`` names; None: nothing is traced. Belongs to the loop thread, but for the writing."""

    def __init__(self, path: Path | None, threads: Threads) -> None:
        self._path = path
        self._threads = threads
        self._waiting: list[TraceLine] = []
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
        """Whether anything is traced."""
        return self._path is not None

    def note(self, line: TraceLine) -> None:
        """Have *line* written."""
        if len(self._waiting) < _MOST_LINES:
            self._waiting.append(line)
        else:
            self.lost += 1

    async def run(self) -> None:
        """Write what was noted, every second, for ever."""
        while True:
            await trio.sleep(_EVERY_S)
            if lines := self._take():
                outcome: list[OSError] = []
                await self._threads.beside(partial(self._write, lines, outcome))
                self._count(len(lines), outcome)

    def finish(self) -> None:
        """Write the last of it: when nothing else is served. Blocks."""
        if lines := self._take():
            outcome: list[OSError] = []
            self._write(lines, outcome)
            self._count(len(lines), outcome)

    def _take(self) -> list[TraceLine]:
        lines, self._waiting = self._waiting, []
        return lines

    def _write(self, lines: list[TraceLine], outcome: list[OSError]) -> None:
        """Append *lines* to the file; put into *outcome* why it did not work. Any thread."""
        if self._path is None:
            return
        if not self._writing.acquire(timeout=_PATIENCE_S):
            outcome.append(TimeoutError("an earlier write does not end"))
            return
        try:
            _append(self._path, lines)
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
                "the trace %s cannot be written: %s; opens are not traced until it can be",
                self._path,
                error.strerror or error,
            )
            self._is_failing, self._lost_before = True, self.lost
        self.lost += number

    def _written(self, number: int) -> None:
        self.lines += number
        if self._is_failing:
            _log.warning(
                "the trace %s is written again; %d opens are missing",
                self._path,
                self.lost - self._lost_before,
            )
            self._is_failing = False

    def status(self) -> dict[str, object] | None:
        """Return what ``cachefs status`` tells of it; None: there is none."""
        if self._path is None:
            return None
        return {"file": str(self._path), "lines": self.lines, "lost": self.lost}


def _append(path: Path, lines: list[TraceLine]) -> None:
    """Append *lines*, whole or not at all. The file is opened anew each time: it may have been moved away."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        head = "" if size else f"{HEADER}\n"
        text = head + "".join(f"{line.encode()}\n" for line in lines)
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
