"""The two clocks: one that is set by hand and by others, and one that nobody sets."""

import time


def _steady_ns() -> int:
    """Return nanoseconds since the boot, those of a suspended machine included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """Tells the time of this run.

    What is compared with another moment (how old an answer is, when an upload is due, what came before what) goes
    by :meth:`now_ns`, which starts with the time of day and then passes evenly, whatever becomes of the machine's
    clock. What people read (the times of a file) is :meth:`wall_ns`.
    """

    def __init__(self) -> None:
        self._offset_ns = self.wall_ns() - _steady_ns()

    def now_ns(self) -> int:
        """Return the moment, to compare with others of this run."""
        return _steady_ns() + self._offset_ns

    @staticmethod
    def wall_ns() -> int:
        """Return the time of day, nanoseconds since the epoch, as the machine has it now."""
        return time.time_ns()
