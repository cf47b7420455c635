"""A client's connection to the pool: lines in, pieces of answers out; and the socket in the pool's directory."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Final

import trio

from cachefs.core.poolline import LONGEST_LINE, BadRequest

SOCKET_NAME: Final = "pool.sock"
LINE_S: Final = 5.0
"""How long a client may take to send its line."""
_CHUNK: Final = 64 * 2**10
_SLOWEST_S: Final = 60.0
"""How long a client may take to take in a piece of an answer."""


class Line:
    """One connection: lines in, pieces of answers out."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = bytearray()
        self.has_answered = False
        """A part of an answer is out, which cannot be taken back."""
        with contextlib.suppress(OSError):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def next(self, within_s: float) -> bytes:
        """Return the next line; empty: there is none, or not in time. Raise ``BadRequest`` if it does not end."""
        with trio.move_on_after(within_s):
            seen = 0
            while (end := self._rest.find(b"\n", seen)) < 0:
                seen = len(self._rest)
                if seen > LONGEST_LINE:
                    raise BadRequest("Request too long")
                data = await self._stream.receive_some(_CHUNK)
                if not data:
                    return b""
                self._rest += data
            line = bytes(self._rest[:end]).rstrip(b"\r")
            del self._rest[: end + 1]
            return line
        return b""

    async def begin(self, data: bytes) -> None:
        """Send the first piece of an answer of several."""
        await self.say(data)
        self.has_answered = True

    async def say(self, data: bytes) -> None:
        """Send a piece of an answer. Raise ``BrokenResourceError`` where the client does not take it in."""
        for start in range(0, len(data), _CHUNK):
            with trio.move_on_after(_SLOWEST_S) as patience:
                await self._stream.send_all(data[start : start + _CHUNK])
            if patience.cancelled_caught:
                raise trio.BrokenResourceError("the client does not take the answer in")

    async def end(self) -> None:
        """Close, so that the client gets what was sent although not all that it has sent was read."""
        with trio.move_on_after(LINE_S):
            await self._stream.send_eof()
            left = LONGEST_LINE
            while left > 0 and (data := await self._stream.receive_some(_CHUNK)):
                left -= len(data)


def listening(home: Path) -> trio.SocketListener:
    """Listen at the socket in *home*, which is for its user alone. The caller holds the lock of the cache in it."""
    path = home / SOCKET_NAME
    path.unlink(missing_ok=True)
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    directory = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # The mode of the socket before bind is that of the file after it: never open, not for a moment.
        os.fchmod(plain.fileno(), 0o600)
        plain.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        plain.listen(1024)
    except BaseException:
        plain.close()
        raise
    finally:
        os.close(directory)
    return trio.SocketListener(trio.socket.from_stdlib_socket(plain))


def remove_socket(home: Path) -> None:
    """Take the socket away."""
    (home / SOCKET_NAME).unlink(missing_ok=True)
