"""A mount's control socket: JSON lines, one question after the other on each connection.

``{"verb": "status"}`` is answered by ``{"ok": true, "result": …}`` or by ``{"ok": false, "error": "one line",
"code": exit code, "errno": what a program would get}``. What takes long is answered by ``{"ok": true, "unfinished":
number}``, and asked for again by ``{"verb": "await", "job": number}``: it ends with the connection, as leases do that are
held. A file to be stored comes along as an open descriptor. Whoever may open the socket may ask everything: it is for the
user alone (mode 0600).
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import trio

from cachefs.core.errors import CachefsError, Fault, Refused, UsageError, errno_of
from cachefs.engine.cause import because
from cachefs.local.forks import in_child
from cachefs.server.controlled import Controlled
from cachefs.server.descriptors import ROOM, Descriptors
from cachefs.server.jobs import Jobs, Unfinished
from cachefs.server.paths import PathVerbs
from cachefs.server.questions import Question, number_of
from cachefs.server.verbs import ServiceVerbs

SOCKET_NAME: Final = "control.sock"
_LONGEST_QUESTION: Final = 2**20
_CHUNK: Final = 64 * 2**10
_MOST_CALLERS: Final = 1024
"""Connections at a time. For one more, the one that was heard of longest ago is closed."""
_MOST_SILENT: Final = 64
"""The same for those whose callers wait for nothing, and hold nothing."""
_SLOWEST_S: Final = 60.0
"""How long a caller may take to take an answer in."""
_LONG: Final = {"flush", "pin", "unpin", "refresh"}
"""Verbs, beside those on paths, whose callers are told to ask again where it takes long."""
_WORDS_OF_OTHERS: Final = {"error", "last_error", "outcome"}

_log = logging.getLogger(__name__)


async def serve_control(
    service: Controlled,
    cache_dir: Path,
    *,
    redact: Callable[[str], str] = str,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer at ``control.sock`` in *cache_dir* until cancelled; then take the socket away.

    The caller holds the lock of *cache_dir*, so a socket that is there already is a dead daemon's. *redact* takes
    secrets out of what the store has said.
    """
    path = cache_dir / SOCKET_NAME
    callers = _Callers()
    with _listening(path) as listener:
        callers.listener = listener
        in_child(callers, _Callers.let_go)

        async def answer(stream: trio.SocketStream) -> None:
            try:
                await callers.hold(_Conversation(service, stream, redact))
            except Exception:  # noqa: BLE001 - one caller's bad luck must not end the mount
                _log.exception("a conversation broke off")

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, answer, [listener])
            task_status.started()


def remove_socket(cache_dir: Path) -> None:
    """Take the socket away where the process ends without :func:`serve_control` doing so."""
    (cache_dir / SOCKET_NAME).unlink(missing_ok=True)


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


class _Callers:
    """The connections there are: never more than a few, whatever callers do."""

    def __init__(self) -> None:
        self._scopes: dict[_Conversation, trio.CancelScope] = {}
        self.listener: trio.SocketListener | None = None

    def let_go(self) -> None:
        """In a forked child: close what its parent's callers would take for the parent."""
        if self.listener is not None:
            with contextlib.suppress(OSError):
                os.close(self.listener.socket.fileno())
        for conversation in self._scopes:
            conversation.let_go()

    async def hold(self, conversation: "_Conversation") -> None:
        """Hold *conversation* to its end, or until others need its place."""
        silent = [each for each in self._scopes if not each.is_working]
        if len(silent) >= _MOST_SILENT:
            self._put_out(silent)
        elif len(self._scopes) >= _MOST_CALLERS:
            self._put_out(list(self._scopes))
        with trio.CancelScope() as scope:
            self._scopes[conversation] = scope
            try:
                await conversation.hold()
            finally:
                self._scopes.pop(conversation, None)

    def _put_out(self, some: "list[_Conversation]") -> None:
        longest = min(some, key=lambda each: each.heard_at)
        self._scopes.pop(longest).cancel()  # not counted, nor chosen again, while it ends


class _Conversation:
    """One connection, and what its caller has begun."""

    def __init__(
        self, service: Controlled, stream: trio.SocketStream, redact: Callable[[str], str]
    ) -> None:
        self._stream = stream
        self._redact = redact
        self._rest = bytearray()
        self._verbs = ServiceVerbs(service)
        self._descriptors = Descriptors()
        self._paths = PathVerbs(lambda: service.paths, self._descriptors)
        self.is_working = False
        """Whether a question is being worked on, or something lasts until the caller hangs up."""
        self.heard_at = trio.current_time()

    async def hold(self) -> None:
        """Answer until the other side hangs up."""
        try:
            async with self._stream, trio.open_nursery() as nursery:
                try:
                    await self._converse(Jobs(nursery))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    _log.debug("a caller hung up before it had its answer")
                nursery.cancel_scope.cancel()
        finally:
            self._descriptors.close()
            await self._verbs.end()

    def let_go(self) -> None:
        """In a forked child: close the connection, which goes on in the parent."""
        with contextlib.suppress(OSError):
            os.close(self._stream.socket.fileno())

    async def _converse(self, jobs: Jobs) -> None:
        while (line := await self._line()) is not None:
            self.heard_at = trio.current_time()
            self.is_working = True
            answer = await self._answer_while_there(line, jobs)
            if answer is None or not await self._say(answer):
                return
            self.is_working = self._verbs.is_lasting

    async def _line(self) -> bytes | None:
        while b"\n" not in self._rest:
            if len(self._rest) > _LONGEST_QUESTION:
                await self._say(_refusal("the question is too long", 2))
                return None
            data = await self._receive()
            if not data:
                return None
            self._rest += data
        end = self._rest.index(b"\n")
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    async def _receive(self) -> bytes:
        """Return what the caller says next, and keep the open files that come along; empty: it hung up."""
        try:
            data, ancillary, _, _ = await self._stream.socket.recvmsg(
                _CHUNK, ROOM, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise trio.BrokenResourceError from error
        self._descriptors.add(ancillary)
        return data

    async def _say(self, answer: Mapping[str, object]) -> bool:
        """Send *answer*. Return whether the caller took it in."""
        text = json.dumps(_without_secrets(answer, self._redact)).encode() + b"\n"
        with trio.move_on_after(_SLOWEST_S) as patience:
            await self._stream.send_all(text)
        return not patience.cancelled_caught

    async def _answer_while_there(self, line: bytes, jobs: Jobs) -> dict[str, object] | None:
        """Return the answer to *line*, or None if the caller hung up over it: then it is not worked on."""
        answer: dict[str, object] | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, nursery.cancel_scope)
            answer = await self._answer(line, jobs)
            nursery.cancel_scope.cancel()
        return answer

    async def _watch(self, working: trio.CancelScope) -> None:
        while len(self._rest) <= _LONGEST_QUESTION:
            try:
                data = await self._receive()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                working.cancel()
                return
            self._rest += data

    async def _answer(self, line: bytes, jobs: Jobs) -> dict[str, object]:
        try:
            question = json.loads(line)
            work = self._work(question, jobs)
        except (ValueError, TypeError, KeyError, RecursionError):
            verbs = ", ".join([*self._verbs.table, *self._paths.table, "await"])
            return _refusal(f"not a question: one JSON object with a verb of {verbs}", 2)
        try:
            with because(f"cachefs {question['verb']}"):
                result = await work()
        except CachefsError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return {**_refusal(reason, _code_of(error)), "errno": errno_of(error)}
        except Exception:  # noqa: BLE001 - one caller's bad luck must not end the mount
            _log.exception("the question %s failed", question["verb"])
            return _refusal("unexpected error; the mount's log tells more", 1)
        if isinstance(result, Unfinished):
            return {"ok": True, "unfinished": result.job}
        return {"ok": True, "result": result}

    def _work(self, question: Question, jobs: Jobs) -> Callable[[], Awaitable[object]]:
        """Return what a question asks for. Raise where it is none."""
        verb = str(question["verb"])
        if verb == "await":
            return lambda: jobs.wait(number_of(question, "job"))
        ask = self._paths.table.get(verb) or self._verbs.table[verb]
        if verb in self._paths.table or verb in _LONG:
            return lambda: jobs.begin(lambda: ask(question))
        return lambda: ask(question)


def _without_secrets(value: object, redact: Callable[[str], str]) -> object:
    """Return *value* with its errors redacted: they may hold words of the store. Paths stay as they are."""
    if isinstance(value, Mapping):
        return {
            name: redact(each)
            if name in _WORDS_OF_OTHERS and isinstance(each, str)
            else _without_secrets(each, redact)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(each, redact) for each in value]
    return value


def _refusal(reason: str, code: int) -> dict[str, object]:
    return {"ok": False, "error": reason, "code": code}


def _code_of(error: CachefsError) -> int:
    if isinstance(error, UsageError):
        return error.exit_code
    if isinstance(error, Refused):
        return 3
    return 4 if isinstance(error, Fault) else 1
