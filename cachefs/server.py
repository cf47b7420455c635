"""A mount's control socket: JSON lines, one question after the other on each connection.

``{"verb": "status"}`` is answered by ``{"ok": true, "result": …}`` or by ``{"ok": false, "error": "one line",
"code": exit code}``. Whoever may open the socket may ask everything: it is for the user alone (mode 0600).
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

import cachefs
from cachefs.core.errors import CachefsError, Fault, Refused, UsageError

SOCKET_NAME: Final = "control.sock"
_LONGEST_QUESTION: Final = 2**20
_CHUNK: Final = 64 * 2**10
_LONGEST_DRAIN_S: Final = 7 * 86400.0

_log = logging.getLogger(__name__)


class Controlled(Protocol):
    """What the socket asks of the service behind a mount."""

    def status(self) -> Mapping[str, object]:
        """Return everything that ``cachefs status`` tells, fit for JSON."""
        ...

    async def flush(self, paths: Sequence[str], *, wait: bool) -> Mapping[str, object]:
        """Upload now what is dirty at or below *paths* (relative to the root; none: everything)."""
        ...

    async def drain(self, *, timeout_s: float) -> Sequence[Mapping[str, object]]:
        """Take no more writes, upload everything, and return what is left after *timeout_s*."""
        ...

    def resume(self) -> None:
        """Take writes again, after a drain that did not end in an unmount."""
        ...

    def dirty(self) -> Sequence[Mapping[str, object]]:
        """Return every file that waits for upload, with its id."""
        ...

    async def export(self, entry_id: int, target: Path, /) -> None:
        """Write the bytes of the waiting file *entry_id* to *target*, which must not exist."""
        ...

    async def discard(self, entry_id: int, /) -> None:
        """Give up the changes of the waiting file *entry_id*."""
        ...

    async def upload(self, entry_id: int, /) -> str:
        """Store the waiting file *entry_id*, under a name beside its own if it was set aside; return its path."""
        ...


async def serve_control(
    service: Controlled,
    cache_dir: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at ``control.sock`` in *cache_dir* until cancelled; then take the socket away.

    The caller holds the lock of *cache_dir*, so a socket that is there already is a dead daemon's.
    """
    path = cache_dir / SOCKET_NAME
    with _listening(path) as listener:

        async def answer(stream: trio.SocketStream) -> None:
            try:
                await _Conversation(service, stream).hold()
            except Exception:  # noqa: BLE001 - one caller's bad luck must not end the mount
                _log.exception("a conversation broke off")

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, answer, [listener])
            task_status.started()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[trio.SocketListener]:
    path.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The mode of the socket before bind is that of the file after it: never open, not for a moment.
        os.fchmod(plain.fileno(), 0o600)
        plain.bind(
            f"/proc/self/fd/{directory}/{path.name}"
        )  # however long the path of the directory is
        plain.listen(16)
        yield trio.SocketListener(trio.socket.from_stdlib_socket(plain))
    finally:
        plain.close()
        os.close(directory)
        path.unlink(missing_ok=True)


class _Conversation:
    """One connection. A drain that it asked for ends with it."""

    def __init__(self, service: Controlled, stream: trio.SocketStream) -> None:
        self._service = service
        self._stream = stream
        self._rest = bytearray()
        self._drained = False
        self._verbs: dict[str, Callable[[Mapping[str, object]], Awaitable[object]]] = {
            "status": self._status,
            "flush": self._flush,
            "drain": self._drain,
            "dirty": self._dirty,
            "export": self._export,
            "discard": self._discard,
            "upload": self._upload,
        }

    async def hold(self) -> None:
        """Answer until the other side hangs up."""
        try:
            async with self._stream:
                while (line := await self._line()) is not None:
                    answer = await self._answer_while_there(line)
                    if answer is None:
                        return
                    await self._stream.send_all(json.dumps(answer).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("a caller hung up before it had its answer")
        finally:
            if self._drained:
                self._service.resume()

    async def _line(self) -> bytes | None:
        while b"\n" not in self._rest:
            if len(self._rest) > _LONGEST_QUESTION:
                answer = _refusal("the question is too long", 2)
                await self._stream.send_all(json.dumps(answer).encode() + b"\n")
                return None
            data = await self._stream.receive_some(_CHUNK)
            if not data:
                return None
            self._rest += data
        line, _, rest = bytes(self._rest).partition(b"\n")
        self._rest = bytearray(rest)
        return line

    async def _answer_while_there(self, line: bytes) -> dict[str, object] | None:
        """Return the answer to *line*, or None if the caller hung up over it: then it is not worked on."""
        answer: dict[str, object] | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            answer = await self._answer(line)
            nursery.cancel_scope.cancel()
        return answer

    async def _watch(self, working: trio.CancelScope) -> None:
        while len(self._rest) <= _LONGEST_QUESTION:
            try:
                data = await self._stream.receive_some(_CHUNK)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                working.cancel()
                return
            self._rest += data

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            question = json.loads(line)
            verb = self._verbs[question["verb"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            return _refusal(
                f"not a question: one JSON object with a verb of {', '.join(self._verbs)}", 2
            )
        try:
            return {"ok": True, "result": await verb(question)}
        except CachefsError as error:
            return _refusal(" ".join(str(error).split()) or type(error).__name__, _code_of(error))
        except Exception:  # noqa: BLE001 - one caller's bad luck must not end the mount
            _log.exception("the question %s failed", question["verb"])
            return _refusal("unexpected error; the mount's log tells more", 1)

    async def _status(self, question: Mapping[str, object]) -> object:
        return {"version": cachefs.__version__, **self._service.status()}

    async def _flush(self, question: Mapping[str, object]) -> object:
        paths = question.get("paths", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise UsageError("flush: paths must be a list of strings")
        return await self._service.flush(paths, wait=question.get("wait") is True)

    async def _drain(self, question: Mapping[str, object]) -> object:
        timeout_s = question.get("timeout")
        if not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= _LONGEST_DRAIN_S:
            raise UsageError("drain: timeout must be a number of seconds")
        self._drained = True
        left = await self._service.drain(timeout_s=float(timeout_s))
        return {"left": left}

    async def _dirty(self, question: Mapping[str, object]) -> object:
        return self._service.dirty()

    async def _export(self, question: Mapping[str, object]) -> object:
        target = question.get("target")
        if not isinstance(target, str) or not target.startswith("/"):
            raise UsageError("export: target must be an absolute path")
        await self._service.export(_identity(question), Path(target))
        return {}

    async def _discard(self, question: Mapping[str, object]) -> object:
        await self._service.discard(_identity(question))
        return {}

    async def _upload(self, question: Mapping[str, object]) -> object:
        return {"path": await self._service.upload(_identity(question))}


def _identity(question: Mapping[str, object]) -> int:
    identity = question.get("id")
    if not isinstance(identity, int) or isinstance(identity, bool):
        raise UsageError("id must be a number")
    return identity


def _refusal(reason: str, code: int) -> dict[str, object]:
    return {"ok": False, "error": reason, "code": code}


def _code_of(error: CachefsError) -> int:
    if isinstance(error, UsageError):
        return error.exit_code
    if isinstance(error, Refused):
        return 3
    return 4 if isinstance(error, Fault) else 1
