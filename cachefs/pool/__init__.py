"""The pool's door: local files for objects, to programs that speak the s3pool protocol.

A request is one line, a JSON array of strings; the answer is ``OK`` or ``ERROR`` on a line of its own and what
belongs to it, and then the connection is closed. Who sends ``["KEEPALIVE"]`` first may send any number of requests:
each answer then ends in a NUL byte. Who may connect may read and change everything that the store's credentials may:
TCP is for loopback alone, unless there is a token (``["AUTH", token]``, on a line before the request).
"""

import hmac
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from pathlib import Path
from typing import Final

import trio

import cachefs
from cachefs.core.errors import CachefsError, IsDirectory, NoEntry, NotDirectory, UsageError
from cachefs.core.policy import SECOND_NS
from cachefs.core.poolline import BadRequest, Request, parsed
from cachefs.core.types import ETag, ObjectInfo
from cachefs.engine.cause import because
from cachefs.engine.leases import LONGEST_S
from cachefs.engine.service import Service
from cachefs.local.views import Views
from cachefs.pool.line import LINE_S, SOCKET_NAME, Line, listening, remove_socket
from cachefs.pool.lists import KeyLists
from cachefs.pool.naming import Buckets, no_key
from cachefs.pool.settings import PoolSettings
from cachefs.pool.shown import Shown, View, quoted
from cachefs.remote import deadline

__all__ = ["SOCKET_NAME", "Pool", "PoolSettings", "listening", "remove_socket"]

_log = logging.getLogger(__name__)

_IDLE_S: Final = 300.0
"""How long a client that keeps its connection may take between two requests."""
_MOST_CLIENTS: Final = 4096


class Pool:
    """Answers requests. Belongs to the loop; everything that waits has a bound."""

    def __init__(self, service: Service, views: Views, settings: PoolSettings) -> None:
        self._service = service
        self._settings = settings
        self._began = time.time()
        self._buckets = Buckets(settings.bucket, settings.prefix)
        self._shown = Shown(service, views, self._buckets, settings)
        self._lists = KeyLists(service, views, self._buckets, settings)
        self._pulling = trio.CapacityLimiter(settings.pull_concurrency)
        self.clients = 0
        """Connections there are."""
        self._is_idle = trio.Event()
        self._is_idle.set()
        self._is_ending = False
        self._working = 0
        self._accepting: list[trio.CancelScope] = []
        self.master = settings.master
        """Where clients find it."""
        self._counts = dict.fromkeys(("glob", "pull", "push", "refresh"), 0)

    @property
    def counts(self) -> dict[str, int]:
        """How many requests there were, and how many objects were here when they were pulled."""
        return {**self._counts, "pull_hit": self._shown.hits}

    def status(self) -> dict[str, object]:
        """Return what ``cachefs status`` shows."""
        return {
            "address": self.master,
            "clients": self.clients,
            "shown": len(self._shown),
            "requests": self.counts,
        }

    # ---- connections ------------------------------------------------------------------------

    async def serve(
        self,
        listeners: Iterable[tuple[trio.SocketListener, bool]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer at *listeners*, each with whether its clients must know the token, until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener, is_guarded in listeners:
                nursery.start_soon(self._accept, listener, is_guarded, nursery)
            nursery.start_soon(self._shown.expire)
            nursery.start_soon(self._lists.monitor)
            task_status.started()

    async def _accept(
        self, listener: trio.SocketListener, is_guarded: bool, nursery: trio.Nursery
    ) -> None:
        with trio.CancelScope() as accepting:
            self._accepting.append(accepting)
            await trio.serve_listeners(
                self._answerer(is_guarded), [listener], handler_nursery=nursery
            )

    async def wait_idle(self, within_s: float) -> None:
        """Take no further connection nor request, and wait for the end of those that are worked on."""
        self._is_ending = self._lists.is_ending = True
        for accepting in self._accepting:
            accepting.cancel()
        with trio.move_on_after(within_s):
            await self._is_idle.wait()

    def _answerer(self, is_guarded: bool) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def answer(stream: trio.SocketStream) -> None:
            self.clients += 1
            try:
                async with stream:
                    await self._converse(Line(stream), is_guarded)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                _log.debug("a client hung up before it had its answer")
            except Exception:  # noqa: BLE001 - one client's bad luck must not end the pool
                _log.exception("a conversation broke off")
            finally:
                self.clients -= 1

        return answer

    async def _converse(self, line: Line, is_guarded: bool) -> None:
        if self.clients > _MOST_CLIENTS:
            await line.say(b"ERROR\nToo many connections")
            return
        is_known = not is_guarded or self._settings.token is None
        keeps = False
        try:
            while text := await line.next(_IDLE_S if keeps else LINE_S):
                request = parsed(text)
                if request.command == "AUTH":
                    is_known = self._check_token(request.arguments[0])
                    continue
                _require_known(is_known)
                keeps = keeps or request.command == "KEEPALIVE"
                await self._answer(line, request, b"\0" if keeps else b"")
                if not keeps or self._is_ending:
                    break
        except BadRequest as wrong:
            await line.say(b"ERROR\n" + str(wrong).encode() + (b"\0" if keeps else b""))
        await line.end()

    def _check_token(self, given: str) -> bool:
        wanted = self._settings.token
        if wanted is None:
            return True
        spelled = given.encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(spelled, wanted.encode("utf-8", "surrogateescape")):
            raise BadRequest("Wrong token")
        return True

    async def _answer(self, line: Line, request: Request, end: bytes) -> None:
        if self._is_ending:
            raise BadRequest("The pool is ending")
        self._work(1)
        try:
            with because(f"pool {request.command}"):
                await self._carry_out(line, request)
            await line.say(end)
        except CachefsError as error:
            if (
                line.has_answered
            ):  # in the middle of a list: the client must not take it for all there is
                _log.warning("GLOB broke off: %s", error)
                raise trio.BrokenResourceError from error
            await line.say(b"ERROR\n" + _said(error) + end)
        finally:
            self._work(-1)
            line.has_answered = False

    def _work(self, change: int) -> None:
        was_idle = not self._working
        self._working += change
        if not self._working:
            self._is_idle.set()
        elif was_idle:
            self._is_idle = trio.Event()

    async def _carry_out(self, line: Line, request: Request) -> None:
        words = request.arguments
        if self._settings.verbose:
            _log.info("%s %s", request.command, ascii(words))
        if request.command == "GLOB":
            await self._glob(line, *words)
            return
        answers: dict[str, Callable[..., Awaitable[bytes]]] = {
            "PULL": self._pull,
            "PUSH": self._push,
            "REFRESH": self._refresh,
            "SET": self._set,
            "STATUS": self._status,
            "STAT": self._stat,
            "EVICT": self._evict,
            "PIN": self._pin,
            "UNPIN": self._unpin,
            "LEASE": self._lease,
            "KEEPALIVE": self._keepalive,
        }
        answer = await answers[request.command](*words)
        await line.say(b"OK\n" + answer)

    # ---- the six requests of s3pool ---------------------------------------------------------

    async def _pull(self, bucket: str, *keys: str) -> bytes:
        self._counts["pull"] += 1
        for key in keys:
            self._buckets.check(bucket, key)
        found: dict[str, View | CachefsError] = {}

        async def pull(key: str) -> None:
            try:
                async with self._pulling:
                    found[key] = await self._shown.held(bucket, key)
            except CachefsError as error:
                found[key] = error

        try:
            async with trio.open_nursery() as nursery:
                for key in dict.fromkeys(keys):
                    nursery.start_soon(pull, key)
            return b"".join(_path_of(found[key]) for key in keys)
        finally:
            for view in found.values():
                if isinstance(view, View):
                    self._shown.let_go(view, self._settings.lease_s)

    async def _glob(self, line: Line, bucket: str, pattern: str) -> None:
        self._counts["glob"] += 1
        self._buckets.check(bucket)

        async def say(data: bytes) -> None:
            await (line.say(data) if line.has_answered else line.begin(b"OK\n" + data))

        await self._lists.tell(bucket, pattern, say)

    async def _refresh(self, bucket: str) -> bytes:
        self._counts["refresh"] += 1
        self._buckets.check(bucket)
        await self._service.refresh(self._buckets.tree_path(bucket, None))
        await self._lists.made(bucket, trio.current_time())
        return b"\n"

    async def _push(self, bucket: str, key: str, source: str) -> bytes:
        self._counts["push"] += 1
        if not source.startswith("/") or "\0" in source:
            raise BadRequest("Path parameter must be an absolute path")
        self._buckets.check(bucket, key)
        path = self._buckets.tree_path(bucket, key)
        with deadline.limited(self._service.timeout_s):
            await self._service.objects.put(
                self._buckets.key(bucket, key), Path(source), self._settings.push_from, shown=path
            )
        self._lists.pushed(bucket, key)
        return b"\n"

    async def _set(self, name: str, value: str) -> bytes:
        least = {"verbose": 0, "refresh_interval": 2, "pull_concurrency": 5}
        if name not in least:
            raise BadRequest(f"Unknown setting; those that can be set: {', '.join(least)}")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise BadRequest(f"{name} must be a whole number")
        if int(value) < least[name]:
            raise BadRequest(f"{name} must be at least {least[name]}")
        setattr(self._settings, name, int(value))
        if name == "pull_concurrency":
            self._pulling.total_tokens = int(value)
        return b"\n"

    async def _status(self) -> bytes:
        settings = self._settings
        told = {
            **{f"count_{name}": count for name, count in self.counts.items()},
            "is_master": 1,
            "master": settings.master,
            "pull_concurrency": settings.pull_concurrency,
            "refresh_interval": settings.refresh_interval,
            "revision": cachefs.__version__,
            "standby": "",
            "up_since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "verbose": settings.verbose,
        }
        return _table(told)

    # ---- what s3pool does not have ----------------------------------------------------------

    async def _stat(self, bucket: str, key: str) -> bytes:
        self._buckets.check(bucket, key)
        path, info = await self._described(bucket, key)
        etag, cached = self._service.objects.cached(path)
        told: dict[str, object] = {
            "cached": cached if (etag or "") == info.etag else 0,
            "etag": quoted(info.etag),
            "last_modified": formatdate(info.mtime_ns / SECOND_NS, usegmt=True),
            "leased": int(self._shown.left_s(bucket, key)),
            "pinned": int(self._service.objects.is_pinned(path)),
            "size": info.size,
        }
        return _table(told)

    async def _described(self, bucket: str, key: str) -> tuple[str, ObjectInfo]:
        for is_shadowed in (False, True):
            path = self._buckets.tree_path(bucket, key, is_shadowed=is_shadowed)
            try:
                looked = await self._service.look_up(path)
            except (NoEntry, NotDirectory, IsDirectory):
                continue
            info = await self._service.objects.describe(
                path, self._buckets.key(bucket, key), looked.etag
            )
            if info is None and looked.etag is None:  # the store does not have it yet
                info = ObjectInfo(
                    self._buckets.key(bucket, key), looked.size, ETag(""), looked.mtime_ns
                )
            if info is not None:
                return path, info
        raise no_key(key)

    async def _evict(self, bucket: str, key: str) -> bytes:
        self._buckets.check(bucket, key)
        if self._shown.is_leased(bucket, key):
            left = self._shown.left_s(bucket, key)
            raise UsageError(f"it is leased, for {max(1, round(left))} seconds more")
        for is_shadowed in (False, True):
            await self._service.objects.evict(
                self._buckets.tree_path(bucket, key, is_shadowed=is_shadowed)
            )
        return b"\n"

    async def _pin(self, bucket: str, key: str) -> bytes:
        self._buckets.check(bucket, key)
        path, _ = await self._described(bucket, key)
        await self._service.pin(path)
        return b"\n"

    async def _unpin(self, bucket: str, key: str) -> bytes:
        self._buckets.check(bucket, key)
        path, _ = await self._described(bucket, key)
        await self._service.unpin(path)
        return b"\n"

    async def _lease(self, bucket: str, key: str, seconds: str) -> bytes:
        self._buckets.check(bucket, key)
        if not (seconds.isascii() and seconds.isdigit() and 0 < int(seconds[:9]) <= LONGEST_S):
            raise BadRequest(f"A lease lasts for 1 to {LONGEST_S:.0f} seconds")
        view = await self._shown.held(bucket, key)
        self._shown.let_go(view, float(seconds))
        return _path_of(view)

    async def _keepalive(self) -> bytes:
        return b"\n"


def _path_of(outcome: View | CachefsError) -> bytes:
    if isinstance(outcome, CachefsError):
        raise outcome
    return os.fsencode(outcome.path) + b"\n"


def _require_known(is_known: bool) -> None:
    if not is_known:
        raise BadRequest("Authentication required")


def _table(told: dict[str, object]) -> bytes:
    return "".join(f"{name} {value}\n" for name, value in sorted(told.items())).encode()


def _said(error: CachefsError) -> bytes:
    return (" ".join(str(error).split()) or type(error).__name__).encode("utf-8", "replace")
