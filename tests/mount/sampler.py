"""How many bytes a cache directory takes on its disk, watched while the daemon works."""

import contextlib
import os
import signal
import stat
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cachefs.local.db import RESERVE_NAME

BLOCK: Final = 4096
_PATIENCE_S: Final = 0.05


class Sampler:
    """Measures every few milliseconds what the content files of a daemon's cache take.

    The daemon is stopped for each measurement: otherwise a file that goes and another that comes between
    two of its steps would both be counted, and a cache at its limit would seem to be above it. Whether it stands
    still is told to its parent only: the mount must be *fresh*, a child of the process that measures.
    """

    def __init__(self, cache_dir: Path, pid: int, *, every_s: float = 0.004) -> None:
        self._peak = 0
        self.files = 0
        """How many files there were at that moment."""
        self.samples = 0
        self._cache_dir = str(cache_dir)
        self._pid = pid
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join(10)

    @property
    def peak(self) -> int:
        """The most bytes that were seen at one moment."""
        assert self.samples, "nothing was measured"
        return self._peak

    @property
    def slack(self) -> int:
        """A block for each file: where a file system keeps the map of a file that has many holes."""
        return self.files * BLOCK

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                self._sample()

    def _sample(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        try:
            if not self._stands_still():
                return
            sizes = self._sizes()
        finally:
            os.kill(self._pid, signal.SIGCONT)
        self.samples += 1
        if (used := sum(sizes.values())) > self._peak:
            self._peak, self.files = used, len(sizes)

    def _stands_still(self) -> bool:
        """Whether all of its threads stopped at once, or it has ended.

        A thread that tells the kernel of a change waits for a directory's lock, which a program may hold that
        waits for another thread: these two stop only when they go on.
        """
        end = time.monotonic() + _PATIENCE_S
        options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        while os.waitid(os.P_PID, self._pid, options) is None:
            if time.monotonic() > end:
                return False
            self._end.wait(0.0005)
        return True

    def _sizes(self) -> dict[int, int]:
        """Allocated bytes by inode: what is below the directory, and what is open and has no name left."""
        sizes: dict[int, int] = {}
        for top, _, names in os.walk(self._cache_dir):
            for name in names:
                if not _is_of_tables(name):
                    _note(sizes, f"{top}/{name}")
        for fd in os.listdir(f"/proc/{self._pid}/fd"):
            link = f"/proc/{self._pid}/fd/{fd}"
            with contextlib.suppress(OSError):
                name = os.readlink(link)
                if name.startswith(self._cache_dir) and not _is_of_tables(name):
                    _note(sizes, link)
        return sizes


def _is_of_tables(name: str) -> bool:
    """Whether it is no file of content, but the tables, or the room that is kept for them."""
    return "sqlite3" in name or name.endswith(RESERVE_NAME)


def _note(sizes: dict[int, int], path: str) -> None:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            sizes[found.st_ino] = found.st_blocks * 512
