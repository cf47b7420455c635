"""The client's end of the pool's protocol: one connection for all requests, or one for each."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cachefs.client import ControlError, NoDaemon, reachable
from cachefs.core.closing import Closing

_CHUNK: Final = 64 * 2**10


class PoolError(ControlError):
    """The pool said no."""


class Pool(Closing):
    """Local files for objects, from a running ``cachefs pool``. Blocking; for one thread.

    >>> with Pool(port=9999) as pool:                      # doctest: +SKIP
    ...     with open(pool.pull("photos", "2024/a.jpg")[0], "rb") as file:
    ...         ...
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        host: str = "127.0.0.1",
        home: str | os.PathLike[str] | None = None,
        token: str | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        """Connect to *port* of *host*, or to the socket in the pool's directory *home*. Raise ``NoDaemon``.

        *timeout_s*: how long any one answer may take to begin, or to go on.
        """
        self._rest = b""
        self._is_over = False
        self._socket = _connected(host, port, home)
        self._socket.settimeout(timeout_s)
        self._hello = b"" if token is None else _line(["AUTH", token])
        self._hello += _line(["KEEPALIVE"])
        self._is_new = True

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def pull(self, bucket: str, *keys: str) -> list[Path]:
        """Return a local file for each of *keys*, of the version that the store has now; to be opened within the lease."""
        return [Path(os.fsdecode(line)) for line in self._lines("PULL", bucket, *keys)]

    def push(self, bucket: str, key: str, path: str | os.PathLike[str]) -> None:
        """Store the file *path*, which must lie where the pool lets files be pushed from."""
        self._all("PUSH", bucket, key, os.fspath(path))

    def glob(self, bucket: str, pattern: str) -> Iterator[str]:
        """Yield the keys that match *pattern*. Read it to its end before anything else is asked."""
        for line in self._lines("GLOB", bucket, pattern):
            yield line.decode("utf-8", "surrogateescape")

    def refresh(self, bucket: str) -> None:
        """Have the store asked anew about *bucket*."""
        self._all("REFRESH", bucket)

    def status(self) -> dict[str, str]:
        """Return what the pool tells of itself."""
        return self._table("STATUS")

    def set(self, name: str, value: int) -> None:
        """Change a setting: ``verbose``, ``refresh_interval`` (minutes) or ``pull_concurrency``."""
        self._all("SET", name, str(value))

    def stat(self, bucket: str, key: str) -> dict[str, str]:
        """Return what is known of an object: size, etag, last_modified, and cached, leased and pinned."""
        return self._table("STAT", bucket, key)

    def lease(self, bucket: str, key: str, seconds: int) -> Path:
        """Do as :meth:`pull`; the path is good for so many seconds at least."""
        paths = [os.fsdecode(line) for line in self._lines("LEASE", bucket, key, str(seconds))]
        return Path(paths[0])

    def evict(self, bucket: str, key: str) -> None:
        """Give the cached bytes of an object up. Raise ``PoolError`` where somebody needs them."""
        self._all("EVICT", bucket, key)

    def pin(self, bucket: str, key: str) -> None:
        """Keep an object in the cache."""
        self._all("PIN", bucket, key)

    def unpin(self, bucket: str, key: str) -> None:
        """Let an object go like any other."""
        self._all("UNPIN", bucket, key)

    # ---- the wire ---------------------------------------------------------------------------

    def _table(self, *words: str) -> dict[str, str]:
        pairs = (line.decode("utf-8", "replace").partition(" ") for line in self._lines(*words))
        return {name: value for name, _, value in pairs}

    def _all(self, *words: str) -> None:
        for _ in self._lines(*words):
            pass

    def _lines(self, *words: str) -> Iterator[bytes]:
        """Send a request; yield the lines of its answer as they come."""
        if self._is_over:
            raise NoDaemon("an earlier answer was not read to its end", exit_code=4)
        self._is_over = True
        try:
            if self._is_new:
                self._socket.sendall(self._hello + _line(words))
                self._is_new = False
                self._read_answer_of_keepalive()
            else:
                self._socket.sendall(_line(words))
            yield from self._answer()
        except TimeoutError:
            raise PoolError("the pool does not answer", exit_code=4) from None
        except OSError as error:
            raise NoDaemon(f"the pool is gone: {error.strerror}", exit_code=4) from None
        self._is_over = False

    def _read_answer_of_keepalive(self) -> None:
        for _ in self._answer():
            pass

    def _answer(self) -> Iterator[bytes]:
        verdict = self._until(b"\n")
        if verdict != b"OK":
            raise PoolError(self._message())
        while True:
            while b"\n" not in self._rest and b"\0" not in self._rest:
                self._receive()
            if b"\n" not in self._rest or 0 <= self._rest.find(b"\0") < self._rest.index(b"\n"):
                self._until(b"\0")
                return
            line = self._until(b"\n")
            if line:
                yield line

    def _message(self) -> str:
        """Return why the pool says no. The connection is good for more, unless the request was none."""
        try:
            message = self._until(b"\0")
        except NoDaemon:
            message, self._rest = self._rest, b""
        else:
            self._is_over = False
        return message.decode("utf-8", "replace") or "the pool refused without a word"

    def _until(self, end: bytes) -> bytes:
        while end not in self._rest:
            self._receive()
        found, _, self._rest = self._rest.partition(end)
        return found

    def _receive(self) -> None:
        data = self._socket.recv(_CHUNK)
        if not data:
            raise NoDaemon("the pool hung up before it had answered", exit_code=4)
        self._rest += data


def _line(words: "list[str] | tuple[str, ...]") -> bytes:
    return json.dumps(list(words)).encode() + b"\n"


def _connected(host: str, port: int | None, home: str | os.PathLike[str] | None) -> socket.socket:
    try:
        if home is None:
            if port is None:
                raise ValueError("Pool() needs a port, or the pool's directory")
            return socket.create_connection((host, port), timeout=5)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(5)
            with reachable(Path(home) / "pool.sock") as address:
                connection.connect(address)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        where = f"{host}:{port}" if home is None else os.fspath(home)
        raise NoDaemon(
            f"no pool answers at {where}: {error.strerror or error}", exit_code=4
        ) from None
    return connection
