"""The pool's door: local files for objects, to programs that speak the s3pool protocol.

A request is one line, a JSON array of strings; the answer is ``OK`` or ``ERROR`` on a line of its own and what
belongs to it, and then the connection is closed. Who sends ``["KEEPALIVE"]`` first may send any number of requests:
each answer then ends in a NUL byte. Who may connect may read and change everything that the store's credentials may:
TCP is for loopback alone, unless there is a token (``["AUTH", token]``, on a line before the request).
"""

import contextlib
import hmac
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import BinaryIO, Final

import trio

import cachefs
from cachefs.core.errors import CachefsError, IsDirectory, NoEntry, NotDirectory, UsageError
from cachefs.core.keyglob import literal_start, matcher
from cachefs.core.keys import name_of, path_shown
from cachefs.core.policy import SECOND_NS
from cachefs.core.poolline import LONGEST_LINE, BadRequest, Request, parsed
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.engine.cause import because
from cachefs.engine.leases import LONGEST_S, Leased
from cachefs.engine.service import Service
from cachefs.local.views import Views
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

SOCKET_NAME: Final = "pool.sock"
_CHUNK: Final = 64 * 2**10
_LINE_S: Final = 5.0
"""How long a client may take to send its line."""
_IDLE_S: Final = 300.0
"""The same between two requests of a client that keeps its connection."""
_SLOWEST_S: Final = 60.0
"""How long a client may take to take in a piece of an answer."""
_MOST_CLIENTS: Final = 4096
_MINUTE_S: Final = 60.0
_LINES: Final = 20_000
"""Keys that are matched in one go, in a thread."""


@dataclass(slots=True)
class PoolSettings:
    """What the pool is told, some of which clients may change by SET."""

    bucket: str | None
    """The one bucket there is; None: the first part of each path names one."""
    master: str
    """Where it listens, for STATUS."""
    prefix: str = ""
    """Of the one bucket, what of it there is: keys that begin so, of which the tree has the rest."""
    lease_s: float = 300.0
    push_from: tuple[Path, ...] = ()
    """Directories, without links, from which files may be pushed."""
    readers: int = 0o400
    token: str | None = None
    is_prefix_glob: bool = False
    """GLOB goes by what is in front of the first star or question mark, and by no more, as s3pool's does."""
    pull_concurrency: int = 20
    refresh_interval: int = 5
    """Minutes after which a list is made anew."""
    verbose: int = 0


@dataclass(slots=True, eq=False)
class _View:
    """A file that clients were shown."""

    path: Path
    leased: Leased
    until: float
    turn: int
    """A file that was leased later is newer."""
    holds: int = 0
    """Answers in the making that name it: its time begins when they are sent."""
    is_left: bool = False
    """Its lease is over, and it is there until the cache needs the room."""


@dataclass(slots=True, eq=False)
class _Keys:
    """What is known of the keys of one bucket."""

    listed_at: float = float("-inf")
    making: trio.Event | None = None
    error: CachefsError | None = None
    pushed: set[str] = field(default_factory=set)
    """What was stored since the list was begun."""


class Pool:
    """Answers requests. Belongs to the loop; everything that waits has a bound."""

    def __init__(self, service: Service, views: Views, settings: PoolSettings) -> None:
        self._service = service
        self._views = views
        self._settings = settings
        self._began = time.time()
        self._shown: dict[tuple[str, str], _View] = {}
        self._turns = 0
        self._keys: dict[str, _Keys] = {}
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
        self.counts = dict.fromkeys(("glob", "pull", "pull_hit", "push", "refresh"), 0)
        """How many requests there were."""

    def status(self) -> dict[str, object]:
        """Return what ``cachefs status`` shows."""
        return {
            "address": self.master,
            "clients": self.clients,
            "shown": len(self._shown),
            "requests": dict(self.counts),
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
            nursery.start_soon(self._expire)
            nursery.start_soon(self._monitor)
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
        self._is_ending = True
        for accepting in self._accepting:
            accepting.cancel()
        with trio.move_on_after(within_s):
            await self._is_idle.wait()

    def _answerer(self, is_guarded: bool) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def answer(stream: trio.SocketStream) -> None:
            self.clients += 1
            try:
                async with stream:
                    await self._converse(_Line(stream), is_guarded)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                _log.debug("a client hung up before it had its answer")
            except Exception:  # noqa: BLE001 - one client's bad luck must not end the pool
                _log.exception("a conversation broke off")
            finally:
                self.clients -= 1

        return answer

    async def _converse(self, line: "_Line", is_guarded: bool) -> None:
        if self.clients > _MOST_CLIENTS:
            await line.say(b"ERROR\nToo many connections")
            return
        is_known = not is_guarded or self._settings.token is None
        keeps = False
        try:
            while text := await line.next(_IDLE_S if keeps else _LINE_S):
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

    async def _answer(self, line: "_Line", request: Request, end: bytes) -> None:
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

    async def _carry_out(self, line: "_Line", request: Request) -> None:
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
        self.counts["pull"] += 1
        for key in keys:
            self._check(bucket, key)
        found: dict[str, _View | CachefsError] = {}

        async def pull(key: str) -> None:
            try:
                async with self._pulling:
                    found[key] = await self._held(bucket, key)
            except CachefsError as error:
                found[key] = error

        try:
            async with trio.open_nursery() as nursery:
                for key in dict.fromkeys(keys):
                    nursery.start_soon(pull, key)
            return b"".join(_path_of(found[key]) for key in keys)
        finally:
            for view in found.values():
                if isinstance(view, _View):
                    self._let_go(view, self._settings.lease_s)

    async def _glob(self, line: "_Line", bucket: str, pattern: str) -> None:
        self.counts["glob"] += 1
        self._check(bucket)
        oldest = trio.current_time() - self._settings.refresh_interval * _MINUTE_S
        keys = self._keys.get(bucket)
        if keys is None or keys.listed_at < oldest:
            keys = await self._list(bucket, oldest)
        start = literal_start(pattern)
        if self._settings.is_prefix_glob:
            start = pattern.partition("*")[0].partition("?")[0]
        matches = _startswith(start) if self._settings.is_prefix_glob else matcher(pattern)
        new = {key for key in keys.pushed | self._waiting(bucket) if matches(key)}
        with await self._opened_list(bucket) as file:
            await line.begin(b"OK\n")
            is_over = False
            while not is_over:
                chunk, seen, is_over = await self._service.aside(
                    _matching, file, start, matches, new
                )
                new -= seen
                await line.say(chunk)
            await line.say(b"".join(_as_line(key) for key in sorted(new)))

    async def _opened_list(self, bucket: str) -> BinaryIO:
        try:
            return await self._service.aside(self._views.open_list, bucket)
        except CachefsError:  # somebody has taken it away
            await self._list(bucket, trio.current_time())
            return await self._service.aside(self._views.open_list, bucket)

    def _waiting(self, bucket: str) -> set[str]:
        """Return the keys of what other doors have taken in, and the store does not have yet."""
        if self._settings.bucket is not None:
            return {self._settings.prefix + key for key in self._service.unstored()}
        head = f"{bucket}/"
        return {key[len(head) :] for key in self._service.unstored() if key.startswith(head)}

    async def _refresh(self, bucket: str) -> bytes:
        self.counts["refresh"] += 1
        self._check(bucket)
        await self._service.refresh(self._tree_path(bucket, None))
        await self._list(bucket, trio.current_time())
        return b"\n"

    async def _push(self, bucket: str, key: str, source: str) -> bytes:
        self.counts["push"] += 1
        if not source.startswith("/") or "\0" in source:
            raise BadRequest("Path parameter must be an absolute path")
        self._check(bucket, key)
        path = self._tree_path(bucket, key)
        with deadline.limited(self._service.timeout_s):
            await self._service.objects.put(
                self._key(bucket, key), Path(source), self._settings.push_from, shown=path
            )
        if bucket in self._keys and _as_line(key):
            self._keys[bucket].pushed.add(key)
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
        self._check(bucket, key)
        path, info = await self._described(bucket, key)
        etag, cached = self._service.objects.cached(path)
        view = self._shown.get((bucket, key))
        left = max(0.0, view.until - trio.current_time()) if view else 0.0
        told: dict[str, object] = {
            "cached": cached if (etag or "") == info.etag else 0,
            "etag": _quoted(info.etag),
            "last_modified": formatdate(info.mtime_ns / SECOND_NS, usegmt=True),
            "leased": int(left),
            "pinned": int(self._service.objects.is_pinned(path)),
            "size": info.size,
        }
        return _table(told)

    async def _described(self, bucket: str, key: str) -> tuple[str, ObjectInfo]:
        for is_shadowed in (False, True):
            path = self._tree_path(bucket, key, is_shadowed=is_shadowed)
            try:
                looked = await self._service.look_up(path)
            except (NoEntry, NotDirectory, IsDirectory):
                continue
            info = await self._service.objects.describe(path, self._key(bucket, key), looked.etag)
            if info is None and looked.etag is None:  # the store does not have it yet
                info = ObjectInfo(self._key(bucket, key), looked.size, ETag(""), looked.mtime_ns)
            if info is not None:
                return path, info
        raise _no_key(key)

    async def _evict(self, bucket: str, key: str) -> bytes:
        self._check(bucket, key)
        view = self._shown.get((bucket, key))
        if view is not None and not view.is_left:
            left = view.until - trio.current_time()
            raise UsageError(f"it is leased, for {max(1, round(left))} seconds more")
        for is_shadowed in (False, True):
            await self._service.objects.evict(
                self._tree_path(bucket, key, is_shadowed=is_shadowed)
            )
        return b"\n"

    async def _pin(self, bucket: str, key: str) -> bytes:
        self._check(bucket, key)
        path, _ = await self._described(bucket, key)
        await self._service.pin(path)
        return b"\n"

    async def _unpin(self, bucket: str, key: str) -> bytes:
        self._check(bucket, key)
        path, _ = await self._described(bucket, key)
        await self._service.unpin(path)
        return b"\n"

    async def _lease(self, bucket: str, key: str, seconds: str) -> bytes:
        self._check(bucket, key)
        if not (seconds.isascii() and seconds.isdigit() and 0 < int(seconds[:9]) <= LONGEST_S):
            raise BadRequest(f"A lease lasts for 1 to {LONGEST_S:.0f} seconds")
        view = await self._held(bucket, key)
        self._let_go(view, float(seconds))
        return _path_of(view)

    async def _keepalive(self) -> bytes:
        return b"\n"

    # ---- names ------------------------------------------------------------------------------

    def _check(self, bucket: str, key: str | None = None) -> None:
        """Raise unless *bucket* can be one of ours, and *key* an object in it."""
        mine = self._settings.bucket
        is_odd = bucket in ("", ".", "..") or any(each in bucket for each in "/\n\0")
        if is_odd or (mine is not None and bucket != mine):
            raise NoEntry(f"no such bucket: {ascii(bucket)[1:-1][:200]}")
        if key is None:
            return
        if not key or key.endswith("/"):
            raise UsageError("a key that is empty or ends in a slash is no file")
        if "\0" in key or any(part in (".", "..") for part in key.split("/")):
            raise UsageError("a key must not climb out of its bucket, nor hold a NUL")
        if not key.startswith(self._settings.prefix):
            raise NoEntry(
                f"{_no_key(key)}: there is what lies below {self._settings.prefix} alone"
            )

    def _key(self, bucket: str, key: str) -> Key:
        if self._settings.bucket is None:
            return Key(f"{bucket}/{key}")
        return Key(key.removeprefix(self._settings.prefix))

    def _tree_path(self, bucket: str, key: str | None, *, is_shadowed: bool = False) -> str:
        """Return the path that shows *key* (None: the bucket) in the tree."""
        shown = [] if self._settings.bucket is not None else [path_shown(Key(bucket))]
        if key is not None:
            above, slash, last = key.removeprefix(self._settings.prefix).rpartition("/")
            shown += [path_shown(Key(above))] if slash else []
            shown.append(bytes(name_of(last, shadowed=is_shadowed)))
        return b"/".join(shown).decode("utf-8", "surrogateescape")

    # ---- files ------------------------------------------------------------------------------

    async def _held(self, bucket: str, key: str) -> _View:
        """Lease the object, and show it until :meth:`_let_go` and for some time after."""
        with deadline.limited(self._service.timeout_s):
            tree_path, leased, was_here = await self._leased(bucket, key)
            self._turns += 1
            turn = self._turns
            self.counts["pull_hit"] += was_here
            view = self._shown.get((bucket, key))
            try:
                if view is None or view.is_left or view.leased.path != leased.path:
                    meta = await self._meta(bucket, key, tree_path, leased)
                    view = self._place(bucket, key, leased, turn, meta)
            except BaseException:
                await self._release(leased)
                raise
        view.holds += 1
        spare = view.leased
        if spare.path == leased.path:
            view.leased = leased
        else:
            spare = leased  # something newer is shown by now
        if spare is not view.leased:
            await self._release(spare)
        return view

    def _let_go(self, view: _View, seconds: float) -> None:
        view.holds -= 1
        view.until = max(view.until, trio.current_time() + seconds)

    def _place(self, bucket: str, key: str, leased: Leased, turn: int, meta: bytes) -> _View:
        """Show *leased*, unless what is shown by now is newer or the same."""
        view = self._shown.get((bucket, key))
        if view is not None and view.is_left:
            self._service.leases.reclaim(self._views.names(view.path))
        elif view is not None and (view.turn > turn or view.leased.path == leased.path):
            return view
        path = self._views.place(bucket, key, leased.path, meta)
        if view is not None and view.path != path:
            self._views.remove(view.path)
        if view is not None and not view.is_left:
            self._service.background.start("release", lambda: self._release(view.leased))
        made = self._shown[bucket, key] = _View(path, leased, 0.0, turn)
        return made

    async def _leased(self, bucket: str, key: str) -> tuple[str, Leased, bool]:
        """Return the path in the tree, the lease, and whether nothing had to be fetched for it."""
        path = self._tree_path(bucket, key)
        try:
            return await self._take(path)
        except IsDirectory:
            pass
        except (NoEntry, NotDirectory):
            raise _no_key(key) from None
        try:
            return await self._take(self._tree_path(bucket, key, is_shadowed=True))
        except (NoEntry, NotDirectory, IsDirectory):
            raise _no_key(key) from None

    async def _take(self, path: str) -> tuple[str, Leased, bool]:
        size, cached = self._service.presence([path])[0]
        leased = await self._service.leases.take(
            path, seconds=LONGEST_S, readers=self._settings.readers
        )
        return path, leased, size == cached == leased.size

    async def _release(self, leased: Leased) -> None:
        with trio.CancelScope(shield=True):
            await self._service.release(leased.lease)

    async def _meta(self, bucket: str, key: str, tree_path: str, leased: Leased) -> bytes:
        """Return what stands in ``KEY__meta__``."""
        info = await self._service.objects.describe(tree_path, self._key(bucket, key), leased.etag)
        modified_ns = leased.mtime_ns if info is None else info.mtime_ns
        meta = {} if info is None or info.meta is None else dict(info.meta)
        told = {
            "LastModified": formatdate(modified_ns / SECOND_NS, usegmt=True),
            "ETag": _quoted(leased.etag),
            "ContentLength": leased.size,
            "ContentType": (info and info.content_type) or "binary/octet-stream",
            "Metadata": {name: value for name, value in meta.items() if name[:1] != ":"},
            "AcceptRanges": "bytes",
        }
        return json.dumps(told, indent=4).encode() + b"\n"

    async def _expire(self) -> None:
        """Leave each view to the cache when its lease is over, and forget those that it has removed, for ever."""
        while True:
            await trio.sleep(min(1.0, self._settings.lease_s / 4))
            now = trio.current_time()
            for name, view in [each for each in self._shown.items() if each[1].until <= now]:
                if self._shown.get(name) is not view or view.holds or view.until > now:
                    continue
                if not view.is_left:
                    await self._leave(name, view)
                elif not self._service.leases.is_left(view.path):
                    del self._shown[name]
                    self._views.remove(view.path)  # with directories that are empty now

    async def _leave(self, name: tuple[str, str], view: _View) -> None:
        leased = view.leased
        view.is_left = self._service.leases.leave(leased.lease, self._views.names(view.path))
        if not view.is_left:  # a copy that only the lease keeps
            del self._shown[name]
            self._views.remove(view.path)
        await self._release(leased)

    # ---- lists of keys ----------------------------------------------------------------------

    async def _list(self, bucket: str, since: float) -> _Keys:
        """See that the list of *bucket* tells what the store had at *since* or later; others' work does as well."""
        keys = self._keys.get(bucket)
        if keys is None:
            await self._require_bucket(bucket)
            keys = self._keys.setdefault(bucket, _Keys())
        while keys.making is not None and keys.listed_at < since:
            await keys.making.wait()
            if keys.error is not None:
                raise keys.error
        if keys.listed_at < since:
            await self._list_now(bucket, keys)
        return keys

    async def _list_now(self, bucket: str, keys: _Keys) -> None:
        making = keys.making = trio.Event()
        keys.error = None
        pushed, keys.pushed = keys.pushed, set()
        began = trio.current_time()
        try:
            await self._write_list(bucket)
            keys.listed_at = began
        except CachefsError as error:
            keys.error = error
            raise
        finally:
            if keys.listed_at < began:
                keys.pushed |= pushed
            keys.making = None
            making.set()

    async def _require_bucket(self, bucket: str) -> None:
        if self._settings.bucket is None:
            try:
                await self._service.look_up(self._tree_path(bucket, None))
            except IsDirectory:
                return
            except NoEntry:
                pass
            raise NoEntry(f"no such bucket: {ascii(bucket)[1:-1][:200]}")

    async def _write_list(self, bucket: str) -> None:
        left_out = 0

        def lines(keys: Iterator[str]) -> Iterator[bytes]:
            nonlocal left_out
            for key in keys:
                if self._is_ending:
                    raise UsageError("the pool is ending")
                text = _as_line(self._settings.prefix + key)
                left_out += "\n" in key
                if text:
                    yield text

        prefix = Key("" if self._settings.bucket is not None else f"{bucket}/")
        with deadline.limited(self._service.timeout_s):
            await self._service.objects.keys(
                prefix, lambda keys: self._views.write_list(bucket, lines(keys))
            )
        if left_out:
            _log.warning(
                "keys of %a that hold a newline, and so are in no list: %d", bucket, left_out
            )

    async def _monitor(self) -> None:
        """Make each list anew that is older than it should be, for ever."""
        while True:
            await trio.sleep(1.0)
            for bucket, keys in list(self._keys.items()):
                age = trio.current_time() - keys.listed_at
                if age < self._settings.refresh_interval * _MINUTE_S:
                    continue
                try:
                    with because("pool list monitor"):
                        await self._list(bucket, trio.current_time())
                except CachefsError as error:
                    _log.warning("the keys of %a cannot be listed: %s", bucket, error)
                    # The list that there is stays; it is tried again when it would be next.
                    keys.listed_at = trio.current_time()
                except OSError as error:
                    _log.error("the keys of %a: %s", bucket, error)


class _Line:
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
        with trio.move_on_after(_LINE_S):
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


def _matching(
    file: Iterator[bytes], start: str, matches: Callable[[str], bool], new: set[str]
) -> tuple[bytes, set[str], bool]:
    """Return those of the next lines that match, which of *new* are among them, and whether that was the end."""
    head = start.encode("utf-8", "surrogateescape")
    found: list[bytes] = []
    seen: set[str] = set()
    for _ in range(_LINES):
        line = next(file, None)
        if line is None:
            return b"".join(found), seen, True
        if not line.startswith(head):
            continue
        key = line[:-1].decode("utf-8", "surrogateescape")
        if matches(key):
            found.append(line)
            if key in new:
                seen.add(key)
    return b"".join(found), seen, False


def _path_of(outcome: _View | CachefsError) -> bytes:
    if isinstance(outcome, CachefsError):
        raise outcome
    return os.fsencode(outcome.path) + b"\n"


def _require_known(is_known: bool) -> None:
    if not is_known:
        raise BadRequest("Authentication required")


def _no_key(key: str) -> NoEntry:
    return NoEntry(f"no such key: {ascii(key)[1:-1][:1100]}")


def _startswith(start: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(start)


def _as_line(key: str) -> bytes:
    """Return *key* as a line of a list; empty: it is in none."""
    if key.endswith("/") or "\n" in key or not key:
        return b""
    return key.encode("utf-8", "surrogateescape") + b"\n"


def _table(told: dict[str, object]) -> bytes:
    return "".join(f"{name} {value}\n" for name, value in sorted(told.items())).encode()


def _quoted(etag: str | None) -> str:
    return f'"{(etag or "").strip(chr(34))}"'


def _said(error: CachefsError) -> bytes:
    return (" ".join(str(error).split()) or type(error).__name__).encode("utf-8", "replace")
