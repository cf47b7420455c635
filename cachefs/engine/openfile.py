"""The bytes of one open inode, shared by all its handles.

A read waits for its range, no more. A write waits until nothing is in its way (an upload, a fetch, a missing
byte, a full cache), promises, and then writes.
"""

import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import trio

from cachefs.core.errors import (
    BytesLost,
    CacheError,
    DiskFull,
    Fault,
    NoRoom,
    Stale,
    TimedOut,
    TooLarge,
    Unreachable,
    disk_error,
)
from cachefs.core.extents import Extent, ExtentMap
from cachefs.core.intent import State
from cachefs.core.types import Ino
from cachefs.engine.fetch import Fetcher, Stream
from cachefs.engine.names import Names
from cachefs.engine.promise import Promise
from cachefs.engine.reach import wait_for
from cachefs.engine.room import Room
from cachefs.engine.second_look import SecondLooks
from cachefs.engine.threads import Threads
from cachefs.engine.through import PassThrough
from cachefs.engine.trace import Trace
from cachefs.engine.upload import Uploader
from cachefs.local.cache import BLOCK, SLACK, Cache, Entry, Lent, Reservation, blocks_of
from cachefs.local.db import Database
from cachefs.local.history import History
from cachefs.local.journal import Journal
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_REFETCHES = 6
"""So often bytes that the cache's disk does not give back are fetched again, before they pass the cache by."""
_SQUEEZES = 8
"""So often a change is tried again after others' bytes were evicted because the disk is full."""
_LARGEST = 5 * 2**40
"""Bytes in the largest object that S3 has always taken; Swift takes a little less with its own limits."""
_SAME_READ_S = 0.5
"""A read this soon after one that failed belongs to the same call of the program."""
_READ_BUFFER = 2**20
"""The largest read that the kernel sends."""


def _require_bearable(size: int) -> None:
    if size > _LARGEST:
        raise TooLarge("no object can be so large")


class ReadBuffer:
    """One buffer for all reads that the page cache can answer, for allocating one each time costs more than the read.

    What it returns is valid until the caller awaits: the next read overwrites it.
    """

    def __init__(self) -> None:
        self._view = memoryview(bytearray(_READ_BUFFER))

    def read_now(self, fd: int, size: int, offset: int) -> memoryview | None:
        """Return bytes that the page cache holds; None if the disk would have to be asked."""
        if size > _READ_BUFFER:
            return None
        view = self._view[:size]
        try:
            count = os.preadv(fd, [view], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise
        return view if count == size else None


@dataclass(frozen=True, slots=True)
class Rooms:
    """Who an open file works with."""

    cache: Cache
    journal: Journal
    names: Names
    room: Room
    fetcher: Fetcher
    through: PassThrough
    uploader: Uploader
    second: SecondLooks
    threads: Threads
    buffer: ReadBuffer
    timeout_s: float
    db: Database
    history: History
    trace: Trace


def _pwrite_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _pread_all(fd: int, size: int, offset: int) -> bytes:
    chunks: list[bytes] = []
    while size and (chunk := os.pread(fd, size, offset)):
        chunks.append(chunk)
        size, offset = size - len(chunk), offset + len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class OpenFile:
    """One open inode: its entry, pinned, and what is going on with it.

    INVARIANT: a dirty entry is whole.
    INVARIANT: the promise exists before the first byte changes.
    """

    def __init__(
        self, ino: Ino, entry: Entry, rooms: Rooms, *, mtime_ns: int, ctime_ns: int
    ) -> None:
        """Take over *entry*, which is pinned; :meth:`close` gives the pin back."""
        self.ino = ino
        self.entry = entry
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.handles = 0
        self.writers = 0
        self.is_detached = False
        """Unlinked: what is written now is owed to nobody."""
        self.generation = 0
        """Counts changes of the bytes: two equal readings mean that nothing came between."""
        self.is_altered = False
        """Size or times differ from the inode's row."""
        self._stream = Stream(entry)
        self._failed_at, self._failure = -math.inf, Fault()
        self._holds = 0
        self._let_go = trio.Event()
        self._preparing = trio.Lock()
        """Held by the one writer that keeps a copy or promises, while the others wait for it."""
        self.flushing = trio.Lock()
        """Held by the one close that makes the bytes durable, while the others wait for it."""
        self._rooms = rooms
        intent = rooms.journal.of(entry.id)
        self._is_promised = intent is not None and intent.state is State.OPEN
        self._owes_file = False
        """The row of the promise stands, and the file beside the bytes could not be written."""
        self._has_only_promised = False
        """It was clean, was promised, and no change of its bytes has begun."""
        self._is_ragged = False
        """A write failed, and may have left bytes behind the end of the file."""

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return self.entry.size

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make whoever is about to change bytes wait until this is over."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self._let_go.set()
            self._let_go = trio.Event()

    async def _wait_let_go(self, *, is_holding: bool) -> None:
        while self._holds and not is_holding:
            await wait_for(self._let_go, "the end of a close or a truncation")

    def opened(self) -> None:
        """Begin to fetch, where that is wanted."""
        if not self.entry.is_whole:
            self._rooms.fetcher.opened(self._stream)

    # ---- reading ----------------------------------------------------------------------------

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return the bytes of the range, fewer only at the end of the file.

        What is returned is valid until the caller awaits anything.
        """
        extent = Extent(offset, min(offset + size, self.entry.size))
        if extent.start >= extent.stop:
            return b""
        entry = self.entry
        for _ in range(_REFETCHES):
            if not entry.here.covers(extent) or not entry.is_whole:
                self._rooms.fetcher.notice(self._stream, extent)
                if not await self._bring(extent):
                    return await self._read_through(extent)
            if not entry.trusted.covers(extent):
                await self._vouch(extent)
                continue
            try:
                cached = self._rooms.buffer.read_now(entry.fd, extent.length, extent.start)
                if cached is not None:
                    return cached
                found = await self._rooms.threads.disk(
                    _pread_all, entry.fd, extent.length, extent.start
                )
            except OSError as error:
                _log.error("cache file %d: %s", entry.id, error)
                found = b""
            if len(found) == extent.length or entry.size < extent.stop:
                return found
            entry.trusted.remove(extent)
        if self._is_dirty():
            raise BytesLost(f"cache file {entry.id} has lost bytes that the store has not")
        return await self._read_through(extent)

    async def _bring(self, extent: Extent) -> bool:
        """Wait until the bytes are here. Return False if the cache has no room for them.

        The kernel asks for a page that its reading ahead did not get once more, at once: where it took long to
        find out, it gets the same answer.
        """
        began = time.monotonic()
        is_here = self.entry.here.covers(extent)
        if not is_here and began < self._failed_at + _SAME_READ_S:
            kind = Unreachable if isinstance(self._failure, Unreachable) else TimedOut
            raise kind(f"the same bytes could not be had just now: {self._failure}")
        try:
            return await self._rooms.fetcher.ensure(self._stream, extent)
        except Fault as fault:
            failed_at = time.monotonic()
            if failed_at - began >= _SAME_READ_S:
                self._failed_at, self._failure = failed_at, fault
            raise

    def _is_dirty(self) -> bool:
        return self._rooms.journal.of(self.entry.id) is not None

    async def _vouch(self, extent: Extent) -> None:
        """Hold cached bytes against their sums. Those that are others by now count as missing from then on."""
        entry = self.entry
        pieces = [
            (piece, total)
            for piece, total in entry.sums.over(extent)
            if not entry.trusted.covers(piece)
        ]
        rotten = await self._rooms.threads.disk(self._rooms.cache.rotten, entry.fd, pieces)
        still_so = set(entry.sums.over(extent))
        summed = ExtentMap(piece for piece, _ in entry.sums.over(extent))
        for gap in summed.missing(extent):  # of a dirty file, whose sums are not known
            entry.trusted.add(gap)
        for piece, total in pieces:
            if (piece, total) not in still_so:
                continue  # written meanwhile
            if piece not in rotten:
                entry.trusted.add(piece)
                continue
            what = (
                f"cache file {entry.id}: bytes {piece.start} to {piece.stop} changed on its disk"
            )
            if self._is_dirty():
                _log.error("%s, and the store has not got them", what)
                raise BytesLost(what)
            _log.error("%s; they are fetched again", what)
            entry.here.remove(piece)
            entry.sums.forget(piece)

    async def _read_through(self, extent: Extent) -> bytes:
        names, entry = self._rooms.names, self.entry
        while True:
            key, etag = await names.settled_key(self.ino), entry.etag
            if key is None or etag is None:
                raise Stale("this version of the object is gone from the store")
            try:
                return await self._rooms.through.read(key, etag, entry.size, extent)
            except Stale:
                # Renamed, or given other attributes: the same bytes under another key or version.
                if (await names.settled_key(self.ino), entry.etag) == (key, etag):
                    raise

    # ---- writing ----------------------------------------------------------------------------

    async def write(self, offset: int, data: bytes) -> int:
        """Write *data* at *offset*; dirty from the moment before the first byte. Return its length.

        Where the disk is full the file is as long as it was; of *data* there may be a part, within that length.
        """
        if not data:
            return 0
        extent = Extent(offset, offset + len(data))
        _require_bearable(extent.stop)
        need = blocks_of(extent) + SLACK
        await self._squeezing(need, lambda: self._write(extent, data, need))
        return len(data)

    async def _write(self, extent: Extent, data: bytes, need: int) -> None:
        reservation = await self._get_ready(need, keep=self.entry.size)
        # No await from _get_ready's last look to here: nothing has come between.
        old_size = self.entry.size
        self._begin_change(reservation)
        try:
            await self._rooms.threads.disk(_pwrite_all, self.entry.fd, data, extent.start)
            self._now_here(Extent(min(old_size, extent.start), extent.stop))
            self.entry.size = max(self.entry.size, extent.stop)
        except BaseException:
            self._is_ragged = True
            raise
        finally:
            self._end_change(reservation)

    async def truncate(self, size: int) -> None:
        """Set the length; bytes beyond the old end read as zeros."""
        _require_bearable(size)
        with self.held():  # a write that is under way would give the file its old length again
            await self._squeezing(SLACK, lambda: self._truncate(size))

    async def _truncate(self, size: int) -> None:
        while True:
            keep = min(size, self.entry.size)
            reservation = await self._get_ready(SLACK + BLOCK, keep=keep, is_holding=True)
            if not self.is_changing:
                break
            self._rooms.cache.release(reservation)
            self._rooms.room.freed()
            await self.wait_still()
        old_size, has_only_promised = self.entry.size, self._has_only_promised
        self._begin_change(reservation)
        try:
            try:
                await self._rooms.threads.disk(os.ftruncate, self.entry.fd, size)
            except BaseException:
                self._has_only_promised = has_only_promised  # what is to go need not be here
                raise
            self.entry.here.cut(size)
            self.entry.trusted.cut(size)
            self._now_here(Extent(min(old_size, size), size))
            self.entry.size = size
        finally:
            self._end_change(reservation)

    async def _squeezing(self, need: int, change: Callable[[], Awaitable[None]]) -> None:
        """Do *change*; where the disk is full, again, as long as evicting what others left gives it room."""
        for _ in range(_SQUEEZES):
            try:
                if self.entry.is_ghost:
                    await self._take_shape()
                await change()
            except DiskFull:
                if not await self._rooms.room.squeeze(need):
                    raise
            else:
                return
        raise DiskFull("the disk of the cache directory is full as soon as there is room")

    def _cut_what_failed(self) -> None:
        """Remove what a failed write has left behind the end: what is written there later must not show it."""
        if not self._is_ragged or self.is_changing:
            return
        try:
            if os.fstat(self.entry.fd).st_size > self.entry.size:
                os.ftruncate(self.entry.fd, self.entry.size)
        except OSError as error:
            raise disk_error(error) from error
        self._is_ragged = False

    def _now_here(self, extent: Extent) -> None:
        self.entry.here.add(extent)
        self.entry.trusted.add(extent)

    def _begin_change(self, reservation: Reservation) -> None:
        try:
            self._cut_what_failed()
        except BaseException:
            self._rooms.cache.release(reservation)
            raise
        self._has_only_promised = False
        self.entry.sums.clear()
        self._rooms.uploader.begin_write(self.entry.id)
        self._stream.begin_change()

    def _end_change(self, reservation: Reservation) -> None:
        self._stream.end_change()
        with contextlib.suppress(CacheError):  # the next change tries again
            self._cut_what_failed()
        self._changed(reservation)
        self._rooms.uploader.end_write(self.entry.id)

    def _changed(self, reservation: Reservation) -> None:
        self.mtime_ns = self.ctime_ns = self._rooms.names.wall_ns()
        self.generation += 1
        self.is_altered = True
        self._rooms.cache.account(self.entry)
        self._rooms.cache.release(reservation)

    async def _get_ready(self, need: int, *, keep: int, is_holding: bool = False) -> Reservation:
        """Wait until nothing is in the way of a change, and promise it. Return the room for it.

        *is_holding*: it is the caller who makes others wait.
        *keep*: how many bytes from the start must be here first, because they stay.
        """
        reservation: Reservation | None = None
        try:
            while True:
                await self._wait_let_go(is_holding=is_holding)
                keep = min(keep, self.entry.size)
                if await self._has_stopped(keep):
                    continue
                if not self.entry.here.covers(Extent(0, keep)):
                    await self._fetch_kept(keep)
                elif not self.entry.trusted.covers(Extent(0, keep)):
                    await self._vouch(Extent(0, keep))
                elif self._rooms.cache.is_read_by_others(self.entry):
                    await self._part_from_readers()
                elif self._is_acknowledged() or reservation is None:
                    reservation = await self._reserve(need, reservation)
                elif self._is_unpromised and not self.is_detached:
                    await self._promise(reservation)
                else:
                    return reservation
        except BaseException:
            if reservation is not None:
                self._rooms.cache.release(reservation)
                self._rooms.room.freed()
            raise

    async def _has_stopped(self, keep: int) -> bool:
        """Stop an upload, or fetches of which nothing is to stay. Return whether there were any."""
        if self._rooms.uploader.is_uploading(self.entry.id):
            await self._rooms.uploader.stop(self.entry.id)
            return True
        if self._stream.fetches and (not keep or self.entry.here.covers(Extent(0, keep))):
            await self._rooms.fetcher.stop(self._stream)
            return True
        return False

    async def _part_from_readers(self) -> None:
        """Go on with a copy: programs that were given the file to read have its bytes as they are."""
        async with self._preparing:
            if not self._rooms.cache.is_read_by_others(self.entry):
                return
            room = await self._rooms.room.wait(
                blocks_of(Extent(0, self.entry.size)) + SLACK,
                self._rooms.timeout_s,
                self._rooms.uploader.hurry_all,
            )
            try:
                await self._copy_own()
            finally:
                self._rooms.cache.release(room)
                self._rooms.room.freed()

    async def _copy_own(self) -> None:
        cache, entry = self._rooms.cache, self.entry
        if entry.dropped:
            raise Stale("the file is gone")
        if self._stream.changes:
            await wait_for(self._stream.changed, "the end of a write")
            return  # the caller looks again
        if self._stream.fetches:
            return
        self._stream.begin_change()  # which holds fetches back
        try:
            with trio.CancelScope(shield=True):
                copy = await self._rooms.threads.disk(
                    cache.write_own, entry.id, entry.fd, entry.size
                )
            cache.take_own(entry, copy)
        finally:
            self._stream.end_change()

    async def _take_shape(self) -> None:
        """Get a row and a file for what had none: a change needs both."""
        cache, ghost = self._rooms.cache, self.entry
        stale = cache.find(self.ino)
        doomed = cache.drop(stale) if stale is not None else None
        try:
            self.entry = cache.create(
                self.ino, etag=ghost.etag, size=ghost.size, now_ns=self._rooms.names.now_ns()
            )
            self._stream = Stream(self.entry)
        finally:
            await self._rooms.room.delete(doomed)

    @property
    def _is_unpromised(self) -> bool:
        return not self._is_promised or self._owes_file

    def _is_acknowledged(self) -> bool:
        """Whether a close was answered for bytes that only this disk has, and no copy of them is kept yet."""
        if self._is_promised or self.is_detached:
            return False
        intent = self._rooms.journal.of(self.entry.id)
        return (
            intent is not None
            and intent.boot is None
            and not self._rooms.cache.has_sealed(self.entry.id)
        )

    async def _keep_sealed(self) -> None:
        """Keep a copy of acknowledged bytes before they change: a crash must find them, not a mixture.

        Where there is no room for a copy, the store gets them first.
        """
        cache, entry = self._rooms.cache, self.entry
        room = await self._rooms.room.make(blocks_of(Extent(0, entry.size)) + SLACK)
        if room is None:
            await self._store_first()
            return
        try:
            cost = await self._rooms.threads.disk(
                cache.write_sealed, entry.id, entry.fd, entry.size
            )
        except DiskFull:
            await self._store_first()
            return
        finally:
            cache.release(room)
        if self._rooms.journal.of(entry.id) is None:  # stored meanwhile: nothing is owed any more
            cache.drop_sealed(entry.id)
        else:
            cache.sealed_made(entry.id, cost)

    async def _store_first(self) -> None:
        before = self._rooms.uploader.hurry(self.entry.id)
        await self._rooms.uploader.wait_settled(self.entry.id, before)

    async def _fetch_kept(self, keep: int) -> None:
        if keep > self._rooms.cache.limit:
            raise NoRoom("to change a file it must fit in the cache")
        fetcher, kept = self._rooms.fetcher, Extent(0, keep)
        if not await fetcher.ensure(self._stream, kept, is_for_write=True):
            gap = blocks_of(self.entry.here.missing(Extent(0, keep))[0]) + SLACK
            room = await self._rooms.room.wait(
                min(gap, self._rooms.cache.limit),
                self._rooms.timeout_s,
                self._rooms.uploader.hurry_all,
            )
            self._rooms.cache.release(room)

    async def _reserve(self, need: int, reservation: Reservation | None) -> Reservation:
        async with self._preparing:
            if self._is_acknowledged():
                await self._keep_sealed()
        return reservation or await self._rooms.room.wait(
            need + BLOCK, self._rooms.timeout_s, self._rooms.uploader.hurry_all
        )

    async def _promise(self, reservation: Reservation) -> None:
        """Promise first: the row on the loop, then the file beside the bytes, then the bytes."""
        async with self._preparing:
            if self._is_unpromised:
                await self._promise_once(reservation)

    async def _promise_once(self, reservation: Reservation) -> None:
        if self._rooms.cache.has_removed:
            await self._rooms.threads.disk(self._rooms.cache.sync_removed)
        key = await self._rooms.names.settled_key(self.ino)
        if key is None and not self.is_detached:
            raise Stale("another version, or nothing, has taken this file's place at the store")
        if self._rooms.uploader.is_uploading(self.entry.id) or key is None:
            return
        with self._rooms.db.transaction():
            is_new = self._rooms.journal.of(self.entry.id) is None
            intent = self._rooms.journal.begin(self.entry.id)
            # Not before: queued bytes that nothing sums could not be told from what a cut left of newer ones.
            self._rooms.cache.forget_sums(self.entry)
            if is_new:
                self._rooms.cache.promise_made(reservation)
        self._rooms.second.forget(self.ino)
        self._has_only_promised = is_new or self.is_untouched
        promise = Promise(key, self.entry.etag, intent.token)
        self._owes_file = True
        try:
            await self._state(promise, partial(self._rooms.cache.write_promise, self.entry.id))
            self._owes_file = False
        finally:
            self._is_promised = True  # the row stands, so somebody must seal it

    async def _state(self, promise: Promise, write: Callable[[bytes], None]) -> None:
        """Have *write* put the promise beside the bytes: anew where they were renamed meanwhile, for the upload goes by it."""
        while True:
            await self._rooms.threads.disk(write, promise.encode())
            key = await self._rooms.names.settled_key(self.ino)
            if key in (None, promise.key):
                return
            promise = replace(promise, key=key, base=self.entry.etag)

    async def bring(self, extent: Extent, *, may_evict: bool) -> bool:
        """Fetch what is missing of *extent*. Return False if the cache has no room for it; see ``Fetcher.bring``."""
        return await self._rooms.fetcher.bring(self._stream, extent, may_evict=may_evict)

    async def make_sound(self) -> bool:
        """Have every byte here, and held against its sum. Return False if the cache has no room for the file."""
        for _ in range(_REFETCHES):
            whole = Extent(0, self.entry.size)
            if self.entry.is_ghost or not await self.bring(whole, may_evict=True):
                return False
            if not self.entry.trusted.covers(whole):
                await self._vouch(whole)
            elif self.entry.is_whole:
                return True
        raise Fault("the cache's disk does not keep the bytes of this file")

    async def lend(self, name: bytes, *, readers: int) -> Lent:
        """Give the file, which is sound, out to be read: itself, or a copy where it waits for upload."""
        cache = self._rooms.cache
        if self.is_detached:
            raise Stale("the file is gone")
        if not self._is_dirty():
            return cache.lend(self.entry, name, readers=readers)
        while True:
            need = blocks_of(Extent(0, self.size)) + SLACK
            room = await self._rooms.room.wait(
                need, self._rooms.timeout_s, self._rooms.uploader.hurry_all
            )
            try:
                with self.held(), trio.CancelScope(shield=True):
                    await self.wait_still()
                    if blocks_of(Extent(0, self.size)) + SLACK <= need:
                        return await self._lend_copy(name, readers)
            finally:
                cache.release(room)
                self._rooms.room.freed()

    async def _lend_copy(self, name: bytes, readers: int) -> Lent:
        cache, entry = self._rooms.cache, self.entry
        copying = partial(cache.write_lent, entry.fd, entry.size, name, readers=readers)
        lent = await self._rooms.threads.disk(copying)
        cache.lent_made(lent)
        return lent

    async def make_whole(self) -> None:
        """Fetch what is missing, if the cache has room for it."""
        await self._rooms.fetcher.ensure(self._stream, Extent(0, self.entry.size))

    async def begin(self) -> None:
        """Promise the file as it stands: something new, which must reach the store even if it stays empty."""
        await self._squeezing(BLOCK, self._begin)

    async def _begin(self) -> None:
        reservation = await self._get_ready(BLOCK, keep=self.entry.size)
        self._has_only_promised = False
        self._changed(reservation)

    # ---- ends -------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Put the bytes, and the word that they are complete, on the disk."""
        await self._squeezing(BLOCK, self._sync)

    async def _sync(self) -> None:
        key = await self._rooms.names.settled_key(self.ino)
        intent = self._rooms.journal.of(self.entry.id)
        if key is None or intent is None:
            return
        generation = self.generation
        sums = await self._rooms.threads.disk(
            self._rooms.cache.summed, self.entry.fd, self.entry.size
        )
        if generation == self.generation and not self.is_changing:
            self.entry.sums = sums
        promise = Promise(key, self.entry.etag, intent.token, is_sealed=True, check=sums.check)
        await self._state(promise, partial(self._rooms.cache.sync, self.entry.id, self.entry.fd))

    def alter(self) -> None:
        """Note that the inode's row is not as the file is."""
        self.is_altered = True

    @property
    def is_untouched(self) -> bool:
        """Whether it was promised for a change that then failed: what it holds is what the store has, or a part of it."""
        return self._is_promised and self._has_only_promised

    def sealed(self) -> None:
        """Note that the promise left the state ``open``: the next write promises anew."""
        self._is_promised = self._has_only_promised = False

    @property
    def is_promised(self) -> bool:
        """Whether bytes were written that nobody has sealed yet."""
        return self._is_promised

    @property
    def is_changing(self) -> bool:
        """Whether bytes are being written at this moment."""
        return self._stream.changes > 0

    async def wait_still(self) -> None:
        """Wait until no bytes are being written, nor just being promised for that."""
        while self._stream.changes or self._preparing.locked():
            if self._stream.changes:
                await wait_for(self._stream.changed, "the end of a write")
            else:
                async with self._preparing:
                    pass

    async def close(self) -> None:
        """End its fetches and give the pin back."""
        with deadline.unlimited():
            await self._rooms.fetcher.stop(self._stream)
        doomed = self._rooms.cache.unpin(self.entry, self._rooms.names.now_ns())
        await self._rooms.room.delete(doomed)
        self._rooms.room.freed()
