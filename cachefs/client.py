"""The caller's end of a mount's control socket: one question, one answer, never an endless wait."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from errno import ETIMEDOUT
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cachefs.core.errors import CachefsError

_LONGEST_ANSWER: Final = 64 * 2**20
_CHUNK: Final = 64 * 2**10
_CONNECT_TIMEOUT_S: Final = 5.0
_LONGEST_SLICE_S: Final = 60.0
"""A daemon answers a question for a lease sooner, if only by asking for patience."""


class ControlError(CachefsError):
    """The daemon said no. ``exit_code`` is what a command should end with."""

    def __init__(self, reason: str, *, exit_code: int = 1, errno: int | None = None) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.errno = errno
        """What a program would get for it; None: the daemon did not say."""


class NoDaemon(ControlError):
    """Nobody listens at the socket."""


@dataclass(frozen=True, slots=True)
class LeasedFile:
    """A local file with the bytes of one version of an object, to be read only.

    Its path is good until the lease ends; whoever has opened it by then can go on reading.
    """

    lease: str
    path: Path
    size: int
    etag: str | None
    """None: the store does not have these bytes yet."""
    mtime_ns: int
    seconds: float
    """How long the lease lasts, unless it is renewed."""


class ControlClient:
    """One connection to a daemon. Blocking; for one thread."""

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        """Connect to the socket at *path*. Raise NoDaemon if nobody listens there.

        *timeout_s* bounds each answer, unless the question has its own bound.
        """
        self._timeout_s = timeout_s
        self._rest = b""
        self._is_unanswered = False
        self._socket = _connected(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, verb: str, *, timeout_s: float | None = None, **arguments: object) -> object:
        """Return the daemon's result of *verb*. Raise ControlError with its reason if it has none.

        What takes the daemon long is asked for until it is done; *timeout_s* bounds each of its answers. Once a question was
        given up before its answer came, nothing more can be asked: ``NoDaemon``.
        """
        return self._ask({"verb": verb, **arguments}, timeout_s, None)

    def put(
        self, path: str, source: int, conditions: Mapping[str, object] | None = None
    ) -> object:
        """Store the plain file *source*, an open descriptor, as *path*, whole or not at all. Return what ``stat`` would.

        *conditions*: ``replace`` False: nothing may be there; ``grown_from``: just that version (etag, size, mtime_ns).
        """
        return self._ask({"verb": "put", "path": path, **(conditions or {})}, None, source)

    def _ask(
        self, question: dict[str, object], timeout_s: float | None, descriptor: int | None
    ) -> object:
        answer = self._exchange(question, timeout_s, descriptor)
        while (job := answer.get("unfinished")) is not None:
            answer = self._exchange({"verb": "await", "job": job}, timeout_s, None)
        return answer.get("result")

    def _exchange(
        self, question: dict[str, object], timeout_s: float | None, descriptor: int | None
    ) -> dict[str, object]:
        if self._is_unanswered:  # that answer may come yet, and would be taken for this question's
            raise NoDaemon("the daemon has left an earlier question unanswered", exit_code=4)
        self._is_unanswered = True
        self._socket.settimeout(self._timeout_s if timeout_s is None else timeout_s)
        try:
            self._send(json.dumps(question).encode() + b"\n", descriptor)
            line = self._line()
        except TimeoutError:
            raise ControlError(
                "the daemon does not answer", exit_code=4, errno=ETIMEDOUT
            ) from None
        except OSError as error:
            raise NoDaemon(f"the daemon is gone: {error.strerror}") from None
        self._is_unanswered = False
        return _answer(line)

    def _send(self, data: bytes, descriptor: int | None) -> None:
        sent = 0 if descriptor is None else socket.send_fds(self._socket, [data], [descriptor])
        self._socket.sendall(data[sent:])

    @property
    def is_over(self) -> bool:
        """Whether the daemon has hung up, as far as that can be seen without asking it anything."""
        try:
            self._socket.settimeout(0)
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self._is_unanswered
        except OSError:
            return True

    def lease(
        self, path: str, *, seconds: float | None = None, timeout_s: float | None = None
    ) -> "LeasedFile":
        """Return the whole file *path* (relative to the root of the mount) as a local file, fetched if need be.

        It may be opened for as long as the lease lasts (None: five minutes), and be read for as long as it is open.
        *timeout_s*: how long to wait for it in all; None: as long as bytes come. Raise ControlError.
        """
        arguments: dict[str, object] = {} if seconds is None else {"seconds": seconds}
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            found = self.ask("lease", timeout_s=_LONGEST_SLICE_S, path=path, **arguments)
            if isinstance(found, dict) and found.get("lease") is not None:
                return _leased(found)
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise ControlError(f"{path} is not here in time", exit_code=4)

    def renew(self, lease: str, *, seconds: float | None = None, hold: bool = False) -> None:
        """Let a lease last for *seconds* (None: five minutes) from now. Raise ControlError where it is over.

        *hold*: it ends, too, when this connection does.
        """
        self.ask(
            "renew", lease=lease, hold=hold, **({} if seconds is None else {"seconds": seconds})
        )

    def release(self, lease: str) -> None:
        """End a lease, which may be over already. The file can be read on by whoever has it open."""
        self.ask("release", lease=lease)

    def wait_end(self, *, timeout_s: float) -> bool:
        """Return whether the daemon closes this connection, as it does at its end, within *timeout_s*."""
        self._socket.settimeout(timeout_s)
        try:
            return not self._socket.recv(1)
        except TimeoutError:
            return False
        except OSError:
            return True

    def wake(self) -> None:
        """Let whoever is waiting for an answer in another thread go, by ``NoDaemon``. Nothing can be asked any more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            data = self._socket.recv(_CHUNK)
            if not data:
                raise NoDaemon("the daemon ended before it answered")
            self._rest += data
            if len(self._rest) > _LONGEST_ANSWER:
                raise ControlError("the daemon's answer is longer than any can be")
        line, _, self._rest = self._rest.partition(b"\n")
        return line


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """Yield an address of the socket *path* that is short enough, however long *path* is.

    The kernel takes 107 bytes; a cache directory may lie deeper than that.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        with reachable(path) as address:
            connection.connect(address)
    except PermissionError:
        connection.close()
        raise ControlError(f"{path} belongs to another user", exit_code=2) from None
    except OSError as error:
        connection.close()
        raise NoDaemon(f"no daemon listens at {path}: {error.strerror or error}") from None
    except BaseException:  # Ctrl-C
        connection.close()
        raise
    return connection


def _leased(found: dict[str, object]) -> LeasedFile:
    try:
        return LeasedFile(
            lease=str(found["lease"]),
            path=Path(str(found["path"])),
            size=int(str(found["size"])),
            etag=None if found["etag"] is None else str(found["etag"]),
            mtime_ns=int(str(found["mtime_ns"])),
            seconds=float(str(found["seconds"])),
        )
    except (KeyError, ValueError):
        raise ControlError("the daemon's answer is not a lease") from None


def _answer(line: bytes) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except ValueError:
        raise ControlError("the daemon's answer is not JSON") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise ControlError("the daemon's answer is not one")
    if answer["ok"]:
        return answer
    code, errno = answer.get("code"), answer.get("errno")
    raise ControlError(
        str(answer.get("error")),
        exit_code=code if isinstance(code, int) else 1,
        errno=errno if isinstance(errno, int) else None,
    )
