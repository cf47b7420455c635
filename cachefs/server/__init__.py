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
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol

import trio

import cachefs
from cachefs.core.errors import CachefsError, Fault, Refused, UsageError, errno_of
from cachefs.core.known_md5 import KnownMd5
from cachefs.core.types import EntryId
from cachefs.engine.cause import because
from cachefs.engine.leases import Leased
from cachefs.engine.paths import Paths
from cachefs.local.forks import in_child
from cachefs.server.descriptors import ROOM, Descriptors
from cachefs.server.jobs import SLICE_S, Jobs, Unfinished
from cachefs.server.paths import PathVerbs
from cachefs.server.questions import (
    Question,
    bucket_of,
    etag_of,
    identity_of,
    is_named_use,
    is_path,
    lease_of,
    number_of,
    path_of,
    seconds_of,
    text_of,
)

SOCKET_NAME: Final = "control.sock"
_LONGEST_QUESTION: Final = 2**20
_CHUNK: Final = 64 * 2**10
_LONGEST_DRAIN_S: Final = 7 * 86400.0
_MOST_CALLERS: Final = 64
"""Connections at a time. For one more, the one that has been silent for longest is closed."""
_SLOWEST_S: Final = 60.0
"""How long a caller may take to take an answer in."""
_LONG: Final = {"flush"}
"""Verbs, beside those on paths, whose callers are told to ask again where it takes long."""
_WORDS_OF_OTHERS: Final = {"error", "last_error", "outcome"}

_log = logging.getLogger(__name__)


class Controlled(Protocol):
    """What the socket asks of the service behind a mount."""

    @property
    def paths(self) -> Paths:
        """Operations on files and directories by their paths."""
        ...

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

    def entries(self, after: int) -> Sequence[Mapping[str, object]]:
        """Return some files in the cache whose numbers follow *after*; none: there are no more."""
        ...

    def entry(self, entry_id: int, /) -> Mapping[str, object] | None:
        """Return one of them as it is now, with the sums of its bytes; None: it is gone."""
        ...

    async def refetch(self, entry_id: int, etag: str, /) -> bool:
        """Give up the clean bytes of a file if they are still of version *etag*, so that they are fetched anew."""
        ...

    async def store_anew(self, entry_id: int, etag: str, /) -> bool:
        """Queue the clean bytes of a file, if they are still of version *etag*, whose object is gone."""
        ...

    async def vacuum(self) -> Mapping[str, object]:
        """Give back what is unused in the database; tell its size before and after, and whether it is possible."""
        ...

    def keep_md5s(self, found: Sequence[KnownMd5], /) -> None:
        """Keep MD5s of versions of objects of this store."""
        ...

    def remove_md5(self, bucket: str, key: str, /) -> int:
        """Forget what is kept of an object, by the key that the store has. Return how much that was."""
        ...

    def forget_md5s(self, bucket: str | None, /) -> int:
        """Forget some of the MD5s of a bucket, or of all. Return how many: none when nothing is left."""
        ...

    def presence(self, paths: Sequence[str]) -> Sequence[tuple[int | None, int]]:
        """Return size (None: not known) and cached bytes of each of *paths*, without asking the store."""
        ...

    async def explain(self, path: str, /) -> Mapping[str, object]:
        """Return all that is known of *path* (relative to the root), and what the store says of it now."""
        ...

    async def refresh(self, path: str, /) -> int:
        """Forget, here and in the kernel, what is known of *path* and below. Return of how many names."""
        ...

    async def look(self, path: str, /) -> Mapping[str, object]:
        """Tell how much of the file *path* is here, and fetch nothing."""
        ...

    async def preheat(
        self, path: str, /, *, used_ns: int, may_evict: bool
    ) -> Mapping[str, object]:
        """Fetch some of what is missing of the file *path*, which counts as last used at *used_ns*."""
        ...

    async def survey(self, path: str, /) -> Mapping[str, object]:
        """Make known all that is below the directory *path*, by one listing; tell how far that is."""
        ...

    def history(self, after: int) -> Mapping[str, object]:
        """Return what is remembered of the opens of some files that follow *after*, and where to go on."""
        ...

    async def lease(
        self, path: str, /, *, seconds: float, patience_s: float, only_here: bool
    ) -> Leased | None:
        """Give the whole file *path* out, to be read at a path for so many seconds. None: it is not here in time."""
        ...

    def renew(self, lease: str, /, *, seconds: float) -> None:
        """Let a lease last for so many seconds from now."""
        ...

    async def release(self, lease: str, /) -> None:
        """End a lease, which may be over already."""
        ...

    async def pin(self, path: str, /) -> Mapping[str, object]:
        """Keep the file *path*, or all files at or below the directory *path*; fetch them beside the serving."""
        ...

    async def unpin(self, path: str, /) -> Mapping[str, object]:
        """Let the file *path*, or all files at or below the directory *path*, be evicted like any other."""
        ...

    async def pins(self, turn: int, /) -> Mapping[str, object]:
        """Tell how far the fetching of pinned files is: when *turn* is over, or a little later."""
        ...

    async def evict(self, files: Sequence[tuple[EntryId, int]], /) -> Sequence[int | str]:
        """Drop cached files, each named by its number and its last use, unless anybody needs them.

        Return for each the bytes that are free now, or why it stays.
        """
        ...

    async def give_up(self, path: str, /) -> None:
        """Drop the cached bytes of the file *path*. Raise ``UsageError`` with the reason where somebody needs them."""
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
            os.close(self.listener.socket.fileno())
        for conversation in self._scopes:
            conversation.let_go()

    async def hold(self, conversation: "_Conversation") -> None:
        """Hold *conversation* to its end, or until others need its place."""
        if len(self._scopes) >= _MOST_CALLERS:
            self._make_place()
        with trio.CancelScope() as scope:
            self._scopes[conversation] = scope
            try:
                await conversation.hold()
            finally:
                self._scopes.pop(conversation, None)

    def _make_place(self) -> None:
        silent = [each for each in self._scopes if not each.is_working] or list(self._scopes)
        longest = min(silent, key=lambda each: each.heard_at)
        self._scopes.pop(longest).cancel()  # not counted, nor chosen again, while it ends


class _Conversation:
    """One connection. A drain that it asked for ends with it."""

    def __init__(
        self, service: Controlled, stream: trio.SocketStream, redact: Callable[[str], str]
    ) -> None:
        self._service = service
        self._stream = stream
        self._redact = redact
        self._rest = bytearray()
        self._drained = False
        self._held: set[str] = set()
        """Leases that end when the caller hangs up."""
        self._descriptors = Descriptors()
        self._paths = PathVerbs(lambda: service.paths, self._descriptors)
        self.is_working = False
        """Whether a question is being worked on, or something lasts until the caller hangs up."""
        self.heard_at = trio.current_time()
        self._verbs: dict[str, Callable[[Question], Awaitable[object]]] = {
            "status": self._status,
            "flush": self._flush,
            "drain": self._drain,
            "entries": self._entries,
            "history": self._history,
            "entry": self._entry,
            "refetch": self._refetch,
            "store_anew": self._store_anew,
            "vacuum": self._vacuum,
            "keep_md5s": self._keep_md5s,
            "remove_md5": self._remove_md5,
            "forget_md5s": self._forget_md5s,
            "presence": self._presence,
            "explain": self._explain,
            "refresh": self._refresh,
            "look": self._look,
            "preheat": self._preheat,
            "survey": self._survey,
            "lease": self._lease,
            "renew": self._renew,
            "release": self._release,
            "prune": self._prune,
            "evict": self._evict,
            "pin": self._pin,
            "unpin": self._unpin,
            "pins": self._pins,
            "dirty": self._dirty,
            "export": self._export,
            "discard": self._discard,
            "upload": self._upload,
        }

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
            if self._drained:
                self._service.resume()
            with trio.CancelScope(shield=True):
                for lease in self._held:
                    await self._service.release(lease)

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
            self.is_working = self._drained or bool(self._held)

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
            verbs = ", ".join([*self._verbs, *self._paths.table, "await"])
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
        ask = self._paths.table.get(verb) or self._verbs[verb]
        if verb in self._paths.table or verb in _LONG:
            return lambda: jobs.begin(lambda: ask(question))
        return lambda: ask(question)

    async def _status(self, question: Question) -> object:
        return {"version": cachefs.__version__, **self._service.status()}

    async def _flush(self, question: Question) -> object:
        paths = question.get("paths", [])
        if not isinstance(paths, list) or not all(map(is_path, paths)):
            raise UsageError("flush: paths must be a list of paths")
        return await self._service.flush(paths, wait=question.get("wait") is True)

    async def _drain(self, question: Question) -> object:
        timeout_s = question.get("timeout")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
            raise UsageError("drain: timeout must be a number of seconds")
        if not 0 <= timeout_s <= _LONGEST_DRAIN_S:
            raise UsageError("drain: timeout must be a number of seconds")
        self._drained = True
        left = await self._service.drain(timeout_s=float(timeout_s))
        return {"left": left}

    async def _entries(self, question: Question) -> object:
        return self._service.entries(number_of(question, "after"))

    async def _history(self, question: Question) -> object:
        return self._service.history(number_of(question, "after"))

    async def _entry(self, question: Question) -> object:
        return self._service.entry(identity_of(question))

    async def _refetch(self, question: Question) -> object:
        return await self._service.refetch(identity_of(question), etag_of(question))

    async def _store_anew(self, question: Question) -> object:
        return await self._service.store_anew(identity_of(question), etag_of(question))

    async def _vacuum(self, question: Question) -> object:
        return await self._service.vacuum()

    async def _keep_md5s(self, question: Question) -> object:
        rows: Any = question.get("md5s")
        try:
            found = [KnownMd5.from_json(row) for row in rows]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"keep_md5s: md5s must be a list of records: {error}") from None
        self._service.keep_md5s(found)
        return len(found)

    async def _remove_md5(self, question: Question) -> object:
        return self._service.remove_md5(text_of(question, "bucket"), text_of(question, "key"))

    async def _forget_md5s(self, question: Question) -> object:
        return self._service.forget_md5s(bucket_of(question))

    async def _presence(self, question: Question) -> object:
        paths = question.get("paths")
        if not isinstance(paths, list) or not all(map(is_path, paths)):
            raise UsageError("presence: paths must be a list of paths")
        return self._service.presence(paths)

    async def _explain(self, question: Question) -> object:
        return await self._service.explain(path_of(question))

    async def _refresh(self, question: Question) -> object:
        return {"forgotten": await self._service.refresh(path_of(question))}

    async def _look(self, question: Question) -> object:
        return await self._service.look(path_of(question))

    async def _preheat(self, question: Question) -> object:
        return await self._service.preheat(
            path_of(question),
            used_ns=number_of(question, "used_ns"),
            may_evict=question.get("evict") is True,
        )

    async def _survey(self, question: Question) -> object:
        return await self._service.survey(path_of(question))

    async def _pin(self, question: Question) -> object:
        return await self._service.pin(path_of(question))

    async def _unpin(self, question: Question) -> object:
        return await self._service.unpin(path_of(question))

    async def _pins(self, question: Question) -> object:
        return await self._service.pins(number_of(question, "turn"))

    async def _lease(self, question: Question) -> object:
        """Answer without a path where it takes long: the caller asks again. With ``cached`` nothing is fetched."""
        path, seconds = path_of(question), seconds_of(question)
        leased = await self._service.lease(
            path,
            seconds=seconds,
            patience_s=SLICE_S,
            only_here=question.get("cached") is True,
        )
        return {"lease": None} if leased is None else {**asdict(leased), "path": str(leased.path)}

    async def _renew(self, question: Question) -> object:
        """Let a lease last from now on; with ``hold`` it ends, too, when the caller hangs up."""
        lease = lease_of(question)
        self._service.renew(lease, seconds=seconds_of(question))
        if question.get("hold") is True:
            self._held.add(lease)
        return {}

    async def _release(self, question: Question) -> object:
        lease = lease_of(question)
        self._held.discard(lease)
        await self._service.release(lease)
        return {}

    async def _prune(self, question: Question) -> object:
        files = question.get("files")
        if not isinstance(files, list) or not all(map(is_named_use, files)):
            raise UsageError(
                "prune: files must be a list of pairs: a file's number, and when it was last used"
            )
        return await self._service.evict([(EntryId(each[0]), each[1]) for each in files])

    async def _evict(self, question: Question) -> object:
        await self._service.give_up(path_of(question))
        return {}

    async def _dirty(self, question: Question) -> object:
        return self._service.dirty()

    async def _export(self, question: Question) -> object:
        target = question.get("target")
        if not isinstance(target, str) or not is_path(target) or not target.startswith("/"):
            raise UsageError("export: target must be an absolute path")
        await self._service.export(identity_of(question), Path(target))
        return {}

    async def _discard(self, question: Question) -> object:
        await self._service.discard(identity_of(question))
        return {}

    async def _upload(self, question: Question) -> object:
        return {"path": await self._service.upload(identity_of(question))}


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
