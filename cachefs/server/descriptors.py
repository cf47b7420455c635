"""Open files that come along with questions on the control socket (SCM_RIGHTS)."""

import array
import os
import socket
import stat
from collections import deque
from collections.abc import Iterable
from typing import Final

from cachefs.core.errors import UsageError

_MOST: Final = 4
"""Descriptors of one caller that wait for the question that they belong to."""
ROOM: Final = socket.CMSG_SPACE(_MOST * array.array("i").itemsize)
"""Bytes for as many as one message may bring."""


class Descriptors:
    """The descriptors that one caller has sent, in order, until a question takes them."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()

    def add(self, ancillary: Iterable[tuple[int, int, bytes]]) -> None:
        """Take in what came with a message. Those that are too many are closed."""
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._waiting.extend(numbers)
        while len(self._waiting) > _MOST:
            os.close(self._waiting.pop())

    def take(self) -> int:
        """Return the oldest, which is the caller's to close. Raise ``UsageError`` unless it is a plain file."""
        if not self._waiting:
            raise UsageError("no open file came with the question")
        descriptor = self._waiting.popleft()
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UsageError("what came with the question is not a plain file")
        return descriptor

    def close(self) -> None:
        """Close those that nobody has taken."""
        while self._waiting:
            os.close(self._waiting.popleft())
