"""Brings bytes of objects into cache files: each range once, however many readers want it."""

import hashlib
import logging
import os
import time
from dataclasses import dataclass, field

import trio

from cachefs.core.errors import (
    CachefsError,
    Changed,
    DiskFailed,
    DiskFull,
    Fault,
    NotFound,
    Stale,
    TimedOut,
    disk_error,
)
from cachefs.core.extents import Extent
from cachefs.core.sums import Summing
from cachefs.core.types import ETag, FetchMode, Key, ObjectInfo
from cachefs.engine.background import Background
from cachefs.engine.names import Names
from cachefs.engine.reach import wait_for
from cachefs.engine.room import Room
from cachefs.engine.threads import Threads
from cachefs.engine.whole_reads import WholeReads
from cachefs.local.cache import BLOCK, SLACK, Cache, Entry, Reservation, blocks_of
from cachefs.remote import deadline
from cachefs.remote.store import ObjectStore

_log = logging.getLogger(__name__)

_WINDOW_PARTS = 8
"""How many parts, at most, are asked for ahead of a sequential reader."""
_RANDOM = 512 * 1024
"""Bytes fetched for a read that follows no other."""
_CHUNK = 2**18
_JUMP = 2**20
"""A read this close behind the last one still counts as sequential (the kernel reads ahead out of order)."""


class FetchStopped(BaseException):
    """The bytes are not wanted any more. Not an Exception, so that no adapter takes it for a fault."""


@dataclass(slots=True, eq=False)
class Fetch:
    """One request under way: the bytes of ``extent`` below ``reached`` are here."""

    extent: Extent
    reached: int
    reservation: Reservation
    moved: trio.Event = field(default_factory=trio.Event)
    is_stopped: bool = False
    error: CachefsError | None = None
    moved_at: float = field(default_factory=time.monotonic)
    """When bytes last came, on the monotonic clock."""

    def wake(self) -> None:
        """Wake everybody who waits for bytes of this fetch."""
        self.moved.set()
        self.moved = trio.Event()


@dataclass(slots=True, eq=False)
class Stream:
    """What the fetcher knows about one open file."""

    entry: Entry
    fetches: list[Fetch] = field(default_factory=list)
    window: int = 0
    expected: int = 0
    is_gone: bool = False
    """The store no longer has this version."""
    changes: int = 0
    """Changes of the bytes under way: no fetch may begin, for it could lay old bytes over new ones."""
    changed: trio.Event = field(default_factory=trio.Event)
    measured_ns: int = 0
    """Up to when, on the monotonic clock, the time that requests took is counted."""

    def begin_change(self) -> None:
        """Hold fetches back until :meth:`end_change`."""
        self.changes += 1

    def end_change(self) -> None:
        """Let fetches begin again."""
        self.changes -= 1
        self.changed.set()
        self.changed = trio.Event()

    def count(self, began_ns: int, ended_ns: int) -> None:
        """Add the time of a request that brought bytes, but for what another one is counted for."""
        self.entry.fetch_ns += max(0, ended_ns - max(began_ns, self.measured_ns))
        self.measured_ns = max(self.measured_ns, ended_ns)

    def over(self, position: int) -> Fetch | None:
        """Return the fetch under way that will bring the byte at *position*."""
        for fetch in self.fetches:
            if fetch.reached <= position < fetch.extent.stop and not fetch.is_stopped:
                return fetch
        return None

    def wanted(self, extent: Extent) -> list[Extent]:
        """Return the parts of *extent* that are neither here nor on their way."""
        gaps = self.entry.here.missing(extent)
        for fetch in self.fetches:
            if not fetch.is_stopped:
                coming = Extent(fetch.reached, fetch.extent.stop)
                gaps = [piece for gap in gaps for piece in _without(gap, coming)]
        return gaps


def _without(gap: Extent, taken: Extent) -> list[Extent]:
    if not gap.overlaps(taken):
        return [gap]
    pieces = (Extent(gap.start, taken.start), Extent(taken.stop, gap.stop))
    return [piece for piece in pieces if piece.start < piece.stop]


class _FileSink:
    """Writes a fetch's bytes into the cache file, and tells the loop how far it got.

    A whole object is checked against its ETag when all of it is here: nobody may read it before that. Of a part,
    the last bytes are told by whoever began the fetch, when the answer proved to be good to its end. Bytes are summed as they come, so that they can be told from what the disk makes of them later.
    """

    def __init__(self, fetch: Fetch, entry: Entry) -> None:
        self._fetch = fetch
        self._entry = entry
        self._fd = entry.fd
        self._is_whole = fetch.extent == Extent(0, entry.size)
        self._position = fetch.extent.start
        self._summing = Summing(fetch.extent.start)
        self._summed: list[tuple[Extent, int]] = []
        self.began_ns = 0
        """When the request went, on the monotonic clock: not while it waited for a place."""
        self._token = trio.lowlevel.current_trio_token()

    def write(self, data: memoryview, /) -> None:
        if self._fetch.is_stopped:
            raise FetchStopped
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self._position + written)
        except OSError as error:  # which an adapter would take for the network's
            raise disk_error(error) from error
        self._fetch.moved_at = time.monotonic()
        start, self._position = self._position, self._position + written
        self._summed += self._summing.take(data)
        if not self._is_whole and self._position < self._fetch.extent.stop:
            self._token.run_sync_soon(self._advance, Extent(start, self._position))

    def restart(self) -> None:
        if self._fetch.is_stopped:  # nobody waits any more, but for the end
            raise FetchStopped
        self._position = self._fetch.extent.start
        self._summing = Summing(self._position)
        self._summed.clear()

    def finish(self) -> None:
        """Keep the sums of what came. On the loop, when no thread writes any more."""
        for piece, total in self._summed + self._summing.rest():
            self._entry.sums.add(piece, total)

    def _advance(self, extent: Extent) -> None:
        if not self._fetch.is_stopped:
            self._entry.here.add(extent)
            self._entry.trusted.add(extent)
            self._fetch.reached = max(self._fetch.reached, extent.stop)
            self._fetch.wake()


class Fetcher:
    """Starts requests, and lets readers wait for just the bytes that they need."""

    def __init__(
        self,
        store: ObjectStore,
        cache: Cache,
        room: Room,
        names: Names,
        threads: Threads,
        background: Background,
        whole: WholeReads,
        *,
        part_size: int,
        mode: FetchMode,
    ) -> None:
        self._store = store
        self._cache = cache
        self._room = room
        self._names = names
        self._threads = threads
        self._background = background
        self._whole = whole
        self._part_size = part_size
        self._mode = mode
        self.fetched = 0
        """Bytes that came from the store since the start."""

    def opened(self, stream: Stream) -> None:
        """Ask for the first bytes (or, with ``--fetch whole``, for all) before anybody reads."""
        size = stream.entry.size
        if self._mode is FetchMode.DEMAND or not size:
            return
        stream.window = self._part_size
        reach = size if self._mode is FetchMode.WHOLE else min(size, self._part_size)
        self._run_ahead(stream, Extent(0, reach))

    def notice(self, stream: Stream, extent: Extent) -> None:
        """Learn from a read, and ask for what a sequential reader will want next."""
        is_sequential = -_JUMP <= extent.start - stream.expected <= _JUMP
        stream.expected = max(extent.stop, stream.expected) if is_sequential else extent.stop
        if self._mode is FetchMode.DEMAND:
            return
        if not is_sequential:
            stream.window = 0
            return
        stream.window = min(
            max(stream.window * 2, self._part_size), self._part_size * _WINDOW_PARTS
        )
        reach = min(stream.entry.size, stream.expected + stream.window)
        if self._mode is FetchMode.WHOLE:
            reach = stream.entry.size
        self._run_ahead(stream, Extent(extent.stop, reach))

    def _run_ahead(self, stream: Stream, extent: Extent) -> None:
        """Start fetches for what is missing of *extent*, as long as there is room without evicting."""
        entry = stream.entry
        if stream.changes or entry.dropped or entry.is_ghost or self._room.is_disk_full:
            return
        for gap in stream.wanted(extent):
            start = gap.start
            while start < gap.stop and len(stream.fetches) < _WINDOW_PARTS:
                part = Extent(
                    start, min(gap.stop, (start // self._part_size + 1) * self._part_size)
                )
                if (
                    part.length < self._part_size
                    and part.stop < stream.entry.size
                    and stream.fetches
                ):
                    return  # the tail of a window: wait until a whole part fits in it
                reservation = self._room.try_reserve(
                    blocks_of(part) + SLACK, spare=self._room.writers_share
                )
                if reservation is None:
                    return
                self._begin(stream, part, reservation)
                start = part.stop

    async def bring(self, stream: Stream, extent: Extent, *, may_evict: bool) -> bool:
        """Fetch what is missing of *extent*, several parts at a time. Return False if there is no room for it.

        *may_evict*: other files may go for it.
        """
        stream.window = self._part_size
        self._run_ahead(stream, extent)
        return await self.ensure(stream, extent, may_evict=may_evict)

    async def ensure(
        self,
        stream: Stream,
        extent: Extent,
        *,
        is_for_write: bool = False,
        may_evict: bool = True,
    ) -> bool:
        """Wait until all of *extent* is here. Return False if the cache, or its disk, has no room for it.

        *is_for_write*: the bytes are to be changed, so the writers' share of the room is theirs.
        *may_evict*: other files may go for it.

        Raise ``Stale`` if the store no longer has this version, or the store's error.
        """
        if stream.entry.is_ghost:
            return not extent.length
        while gaps := stream.entry.here.missing(
            Extent(extent.start, min(extent.stop, stream.entry.size))
        ):
            if stream.is_gone or stream.entry.dropped:
                raise Stale("this version of the object is gone from the store")
            if stream.changes:
                await wait_for(stream.changed, "the end of a write")
                continue
            running = stream.over(gaps[0].start)
            if running is None:
                spare = 0 if is_for_write else self._room.writers_share
                if not await self._ask_for(
                    stream, gaps[0], extent, spare=spare, may_evict=may_evict
                ):
                    return False
                continue
            await _wait_moved(running)
            if running.error is not None and not stream.entry.here.covers(gaps[0]):
                if isinstance(running.error, DiskFull | DiskFailed) and not is_for_write:
                    await self._room.squeeze(blocks_of(running.extent))
                    return False
                raise running.error
        return True

    async def _ask_for(
        self, stream: Stream, gap: Extent, extent: Extent, *, spare: int, may_evict: bool
    ) -> bool:
        """Start the fetch of *gap* and as much behind it as seems right.

        Return False if there is no room for it that leaves *spare* bytes.
        """
        if spare and self._room.is_disk_full:
            return False
        ahead = max(self._part_size if stream.window else _RANDOM, extent.stop - gap.start)
        start = gap.start // BLOCK * BLOCK
        stop = min(stream.entry.size, start + min(ahead, self._part_size))
        if self._mode is FetchMode.DEMAND:
            stop = min(stream.entry.size, -(-gap.stop // BLOCK) * BLOCK)
        for reach in (stop, min(stream.entry.size, max(gap.stop, start + BLOCK))):
            # Not for what is on its way already: others would be evicted for nothing.
            first = stream.wanted(Extent(start, min(reach, stream.entry.size)))[:1]
            extent = first[0] if first else Extent(start, reach)
            need = blocks_of(extent) + SLACK
            reservation = (
                await self._room.make(need, spare=spare)
                if may_evict
                else self._room.try_reserve(need, spare=spare)
            )
            if reservation is None:
                continue
            # Others may have asked meanwhile: fetch only what is still missing of it.
            wanted = stream.wanted(Extent(extent.start, min(extent.stop, stream.entry.size)))
            if wanted and not stream.entry.dropped and not stream.changes:
                self._begin(stream, wanted[0], reservation)
            else:
                self._cache.release(reservation)
                await trio.lowlevel.checkpoint()
            return True
        return False

    def _begin(self, stream: Stream, extent: Extent, reservation: Reservation) -> None:
        fetch = Fetch(extent, extent.start, reservation)
        stream.fetches.append(fetch)
        stream.entry.pins += 1
        self._background.start("fetch", lambda: self._run(stream, fetch))

    async def _run(self, stream: Stream, fetch: Fetch) -> None:
        try:
            await self._get(stream, fetch)
        except FetchStopped:
            pass
        except (NotFound, Changed):
            stream.is_gone = True
            fetch.error = Stale("this version of the object is gone from the store")
            self._names.doubt(stream.entry.ino)
        except CachefsError as error:
            fetch.error = error
        except BaseException as error:
            fetch.error = Fault(f"the fetch broke off: {error!r}")
            raise
        finally:
            await self._end(stream, fetch)

    async def _get(self, stream: Stream, fetch: Fetch) -> None:
        """Get the bytes, following the object to its new key if it is renamed meanwhile."""
        while True:
            asked = await self._names.settled_key(stream.entry.ino)
            etag = stream.entry.etag
            if asked is None or etag is None:
                raise NotFound("the object has no name any more")
            sink = _FileSink(fetch, stream.entry)
            try:
                try:
                    info = await self._threads.transfer(
                        self._timed, asked, fetch.extent, sink, if_match=etag
                    )
                finally:
                    sink.finish()
            except (NotFound, Changed):
                if (await self._names.settled_key(stream.entry.ino), stream.entry.etag) == (
                    asked,
                    etag,
                ):
                    raise
            else:
                self.fetched += fetch.extent.length
                stream.count(sink.began_ns, time.monotonic_ns())
                if info.size != stream.entry.size:
                    self._names.doubt(stream.entry.ino)
                    raise Fault(
                        f"the store sends an object of {info.size} bytes that it said has {stream.entry.size}"
                    )
                if info.md5 is not None and not fetch.is_stopped:
                    await self._prove(stream, fetch, info.md5)
                if not fetch.is_stopped:
                    stream.entry.here.add(fetch.extent)
                    stream.entry.trusted.add(fetch.extent)
                    fetch.reached = fetch.extent.stop
                    if info.md5 is None:
                        self._whole.notice(stream.entry)
                return

    def _timed(self, key: Key, extent: Extent, sink: _FileSink, *, if_match: ETag) -> ObjectInfo:
        sink.began_ns = time.monotonic_ns()
        return self._store.get_range(key, extent, sink, if_match=if_match)

    async def _prove(self, stream: Stream, fetch: Fetch, md5: str) -> None:
        """Hold the object against *md5* if this fetch brings the last of it; raise ``Fault`` if it is another.

        The last bytes are held back for it: who reads all learns of damage before the end.
        """
        entry, here = stream.entry, fetch.extent
        gaps = entry.here.missing(Extent(0, entry.size))
        is_alone = here == Extent(0, entry.size)  # which has been checked where it came from
        if is_alone or any(gap.start < here.start or gap.stop > here.stop for gap in gaps):
            return
        try:
            found = await self._threads.disk(_md5_of, entry.fd, entry.size)
        except OSError as error:
            raise disk_error(error) from error
        if found == md5 or fetch.is_stopped:
            return
        _log.error(
            "what came of cache file %d is not the object that its ETag stands for: all of it is fetched again; "
            "what programs have read of it since it was opened may be wrong",
            entry.id,
        )
        entry.here.cut(0)
        entry.trusted.cut(0)
        entry.sums.clear()
        entry.damages += 1
        raise Fault("the content is not what its ETag says: damaged on the way, or at the store")

    async def _end(self, stream: Stream, fetch: Fetch) -> None:
        stream.fetches.remove(fetch)
        if stream.fetches:
            self._cache.estimate(stream.entry, fetch.reservation)
        else:
            self._cache.account(stream.entry)
            self._cache.release(fetch.reservation)
        fetch.wake()
        await self._room.delete(self._cache.unpin(stream.entry, self._names.now_ns()))
        self._room.freed()

    async def stop(self, stream: Stream) -> None:
        """End every fetch of this file and wait until none writes into its cache file any more."""
        for fetch in stream.fetches:
            fetch.is_stopped = True
        while stream.fetches:
            await wait_for(stream.fetches[0].moved, "the end of a fetch")

    async def through(self, key: Key, etag: ETag, size: int, extent: Extent) -> bytes:
        """Return bytes of an object of *size* bytes that the cache has no room for, straight from the store."""
        sink = _MemorySink(extent.length)
        try:
            info = await self._threads.transfer(
                self._store.get_range, key, extent, sink, if_match=etag
            )
        except (NotFound, Changed) as error:
            raise Stale("this version of the object is gone from the store") from error
        self.fetched += extent.length
        if info.size != size:
            raise Fault(f"the store sends an object of {info.size} bytes that it said has {size}")
        return bytes(sink.data)


async def _wait_moved(fetch: Fetch) -> None:
    """Wait until *fetch* has brought bytes or has ended: for the operation's time, anew whenever some came."""
    whole = deadline.current()
    if whole is None:
        await fetch.moved.wait()
        return
    seen = fetch.moved_at
    while whole.left_s:
        with trio.move_on_after(whole.left_s):
            await fetch.moved.wait()
            if fetch.error is None:
                whole.answered()
            return
        if fetch.moved_at > seen:  # of a whole object nobody is told before all of it is here
            whole.answered(fetch.moved_at - seen)
            seen = fetch.moved_at
    raise TimedOut("the store did not send the bytes in time")


def _md5_of(fd: int, size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    position = 0
    while position < size and (chunk := os.pread(fd, min(_CHUNK, size - position), position)):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


class _MemorySink:
    def __init__(self, size: int) -> None:
        self.data = bytearray()
        self._size = size

    def write(self, data: memoryview, /) -> None:
        self.data += data

    def restart(self) -> None:
        self.data.clear()
