"""A limit of bytes a second, shared by all threads of a job."""

import threading
import time
from collections.abc import Callable


class Throttle:
    """Lets *rate* bytes a second through in the long run, and a second's worth at once.

    rate: None lets everything through.
    """

    def __init__(self, rate: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock() - 1.0
        self._ended = threading.Event()

    def take(self, size: int) -> None:
        """Wait until *size* bytes may go. Returns at once after :meth:`end`."""
        wait_s = self._booked(size)
        if wait_s > 0:
            self._ended.wait(wait_s)

    def end(self) -> None:
        """Let everybody through, because the job ends."""
        self._ended.set()

    def _booked(self, size: int) -> float:
        """Take up a place in the queue, and return how many seconds away it is."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - 1.0) + size / self._rate
            return self._free_at - now
