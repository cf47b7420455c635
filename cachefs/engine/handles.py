"""The open files: who has which inode open, and what becomes of its bytes at a close."""

import contextlib
import logging
from dataclasses import dataclass
from typing import Final

import trio
from cachetools import LRUCache

from cachefs.core.errors import CacheError, DiskFull, Fault, Stale, StoreError, TimedOut
from cachefs.core.policy import SECOND_NS
from cachefs.core.traceline import TraceLine
from cachefs.core.types import ETag, Fh, Ino, UploadMode
from cachefs.engine.openfile import OpenFile, Rooms
from cachefs.engine.reach import wait_for
from cachefs.engine.told import Unaware
from cachefs.engine.upload import Before
from cachefs.local.cache import Entry
from cachefs.local.db import Database
from cachefs.local.inodes import Inode, InodeTable
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_OPENS_REMEMBERED: Final = 65536
_REWRITES: Final = 100
"""How often a close waits anew because another handle has written meanwhile."""
_LATE_FIRST_S: Final = 0.5
_LATE_LONGEST_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Handle:
    """One open of a file."""

    file: OpenFile
    is_writer: bool
    damages: int
    """Those of the entry when it was opened: what was read through an older handle may have been wrong."""
    opened_ns: int
    """When, by the clock on the wall."""
    was_whole: bool
    """Whether every byte was here when it was opened."""
    fetch_ns: int
    """What fetching had taken by then."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What an open gives the kernel."""

    fh: Fh
    keep_cache: bool
    """The pages that the kernel holds are of the same version."""


@dataclass(frozen=True, slots=True)
class Closing:
    """When a close is answered, and how long what it began may wait."""

    upload: UploadMode
    upload_delay_s: float


class OpenFiles:
    """Every open inode, each once, and the handles that programs hold on them.

    INVARIANT: an inode is in ``held`` exactly while it is open, or being opened or closed.

    A file that the tables have no room for when its last handle goes stays open, as it is in memory, until they have.
    """

    def __init__(
        self, db: Database, inodes: InodeTable, rooms: Rooms, closing: Closing, *, held: set[Ino]
    ) -> None:
        """*held* is kept equal to the set of inodes that are open."""
        self._db = db
        self._inodes = inodes
        self._rooms = rooms
        self._names = rooms.names
        self._closing = closing
        self._held = held
        self._files: dict[Ino, OpenFile] = {}
        self._opening: dict[Ino, trio.Event] = {}
        self._handles: dict[Fh, Handle] = {}
        # Open without a handle: the disk did not take what is to be noted of them.
        self._late: dict[Ino, OpenFile] = {}
        # Without a name and not open: the disk did not let them be forgotten.
        self._unburied: set[Ino] = set()
        self._is_late = trio.Event()
        self._next_fh = 1
        # The version whose pages the kernel may still hold, for each inode it has had open.
        self._kernel_has: LRUCache[Ino, str] = LRUCache(_OPENS_REMEMBERED)
        self.opens = self.opens_cached = self.bytes_read = 0
        """Since the start; an open counts as cached when every byte was here."""

    def find(self, ino: Ino) -> OpenFile | None:
        """Return the open file of *ino*, if it is open."""
        return self._files.get(ino)

    def of(self, fh: Fh) -> OpenFile:
        """Return the open file behind a handle."""
        return self._handles[fh].file

    # ---- opening and closing ----------------------------------------------------------------

    def opened(self, file: OpenFile, *, is_writer: bool) -> Opened:
        """Give out a handle on *file*, and tell whether the kernel may keep the pages it has."""
        self.opens += 1
        self.count(file)
        self.opens_cached += file.entry.is_whole
        version = _version(file.entry)
        keep = self._kernel_has.get(file.ino) == version
        self._kernel_has[file.ino] = version
        return Opened(self._hand_out(file, is_writer), keep)

    def created(self, file: OpenFile) -> Opened:
        """Give out a handle on a file that has just been made."""
        self.count(file)
        self._kernel_has[file.ino] = _version(file.entry)
        return Opened(self._hand_out(file, True), keep_cache=False)

    def count(self, file: OpenFile) -> None:
        """Note that a program begins to use *file*."""
        file.entry.hit()
        self._rooms.history.note(file.ino, self._names.wall_ns())

    def forget_pages(self, ino: Ino) -> None:
        """Have the kernel give up, at the next open, the pages that it holds: they may be damaged."""
        self._kernel_has.pop(ino, None)

    def follow(self, entry: Entry, etag: ETag | None) -> None:
        """Give an entry another version with the same bytes; the kernel's pages stay good."""
        had = self._kernel_has.get(entry.ino) == _version(entry)
        self._rooms.cache.change(entry, etag=etag)
        if had:
            self._kernel_has[entry.ino] = _version(entry)

    def require_told(self, inode: Inode) -> None:
        """Raise ``Unaware`` unless the kernel knows how long the file is: before it is opened as it is.

        Its word for where the end is cannot be overruled later: it reads no further, and pages that it writes back
        from a mapping come through the same handle as what it appends, and belong where they are. What it took an
        inode to be that has been open ever since has stayed true.
        """
        file = self._files.get(inode.ino)
        length = inode.size if file is None else file.size
        told = self._names.told.of(inode.ino)
        if told != length and not (told is None and file is not None):
            raise Unaware(inode.ino)

    def _hand_out(self, file: OpenFile, is_writer: bool) -> Fh:
        fh = Fh(self._next_fh)
        self._next_fh += 1
        file.writers += is_writer
        entry = file.entry
        self._handles[fh] = Handle(
            file,
            is_writer,
            entry.damages,
            self._names.wall_ns(),
            entry.is_whole,
            entry.fetch_ns,
        )
        return fh

    def _trace(self, handle: Handle) -> None:
        """Note an open that is over; of one whose name has gone there is nothing to tell."""
        trace, file = self._rooms.trace, handle.file
        key = self._inodes.key_of(file.ino) if trace.is_on else None
        if key is not None:
            took_ns = max(0, file.entry.fetch_ns - handle.fetch_ns)
            trace.note(
                TraceLine(
                    handle.opened_ns,
                    key,
                    file.size,
                    handle.was_whole,
                    took_ns,
                    handle.is_writer,
                )
            )

    async def acquire(self, ino: Ino) -> OpenFile:
        """Return the open file of *ino*, opening it if need be, with one more handle counted."""
        while (busy := self._opening.get(ino)) is not None:
            await wait_for(busy, "the opening or closing of the same file")
        if ino in self._unburied:
            await self._bury(ino)
            raise Stale("the file is gone")
        file = self._files.get(ino)
        if file is None:
            self._opening[ino] = trio.Event()
            self._held.add(ino)
            try:
                file = self._files[ino] = await self._load(ino)
            except BaseException:
                self._held.discard(ino)
                raise
            finally:
                self._opening.pop(ino).set()
        file.handles += 1
        return file

    async def _load(self, ino: Ino) -> OpenFile:
        """Pin the entry of the version that the inode stands for, or make one."""
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        try:
            pinned = await self._pinned(inode)
        except DiskFull as full:
            _log.info("inode %s is read past the cache: %s", ino, full)
            pinned = self._rooms.cache.ghost(
                ino, etag=inode.etag, size=inode.size, now_ns=self._names.now_ns()
            )
        return OpenFile(ino, pinned, self._rooms, mtime_ns=inode.mtime_ns, ctime_ns=inode.ctime_ns)

    async def _pinned(self, inode: Inode) -> Entry:
        cache, ino = self._rooms.cache, inode.ino
        entry = cache.find(ino)
        is_dirty = entry is not None and self._rooms.journal.of(entry.id) is not None
        if (
            entry is not None
            and not is_dirty
            and (entry.etag != inode.etag or entry.size != inode.size)
        ):
            await self._rooms.second.before_drop(ino)
            outdated = cache.find(ino)
            await self._rooms.room.delete(cache.drop(outdated) if outdated else None)
            entry = None
        pinned = cache.pin(entry, self._names.now_ns()) if entry is not None else None
        if pinned is None and entry is not None:
            if is_dirty:
                self._rooms.uploader.hurry(entry.id)  # which parks it as lost, and says so
                raise Stale("the bytes of this file are gone from the cache directory")
            await self._rooms.room.delete(cache.drop(entry))
        if pinned is None:
            pinned = cache.create(
                ino, etag=inode.etag, size=inode.size, now_ns=self._names.now_ns()
            )
        return pinned

    async def release(self, fh: Fh) -> None:
        """Close a handle. What was written and not flushed is sealed for upload."""
        handle = self._handles.pop(fh)
        handle.file.writers -= handle.is_writer
        self._trace(handle)
        try:
            if handle.is_writer and not handle.file.writers:
                await self._seal(handle.file, delay_s=self._closing.upload_delay_s)
        except CacheError as error:
            self._be_late(handle.file, error)
        finally:
            await self.give_back(handle.file)

    async def give_back(self, file: OpenFile) -> None:
        """Count one handle less; after the last one the file is closed, and forgotten if it has no name."""
        file.handles -= 1
        if file.handles or file.ino in self._late:
            return
        try:
            # Where a change failed after it was promised, no close has sealed it.
            await self._seal(file, delay_s=self._closing.upload_delay_s)
            self.save(file)
        except CacheError as error:
            self._be_late(file, error)
        else:
            await self._close(file)

    async def _close(self, file: OpenFile) -> None:
        busy = self._opening[file.ino] = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                await file.close()
            if file.is_detached or self._inodes.key_of(file.ino) is None:
                await self.bury(file.ino)
        finally:
            if file.entry.damages:  # which a new look at the row does not tell
                self._kernel_has.pop(file.ino, None)
            del self._files[file.ino]
            self._held.discard(file.ino)
            del self._opening[file.ino]
            busy.set()

    def _be_late(self, file: OpenFile, error: CacheError) -> None:
        """Keep a file open until the disk takes what is to be noted of it."""
        if file.ino not in self._late:
            _log.warning("inode %s stays open for now: %s", file.ino, error)
        self._late[file.ino] = file
        self._is_late.set()

    async def close_late(self) -> None:
        """Close what the disk had no room for, as soon as it has; for ever."""
        wait_s = _LATE_FIRST_S
        while True:
            await self._is_late.wait()
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LATE_LONGEST_S)
            try:
                await self._close_late()
            except CacheError as error:
                _log.debug("not yet: %s", error)
            else:
                self._is_late = trio.Event()
                wait_s = _LATE_FIRST_S

    async def _close_late(self) -> None:
        for file in list(self._late.values()):
            if not file.writers:
                await self._seal(file, delay_s=0)
            self.save(file)
            del self._late[file.ino]
            if not file.handles:
                await self._close(file)
        for ino in list(self._unburied):
            await self._bury(ino)

    async def bury(self, ino: Ino) -> None:
        """Forget an inode that nobody has open and whose name is gone, or goes with it. Where it cannot be now, later."""
        try:
            await self._bury(ino)
        except CacheError as error:
            _log.info("inode %s is forgotten later: %s", ino, error)
            self._is_late.set()

    async def _bury(self, ino: Ino) -> None:
        # Not to be opened from here on, whether or not it can be forgotten now.
        self._unburied.add(ino)
        await self._rooms.second.before_drop(ino)
        entry = self._rooms.cache.find(ino)
        doomed = None
        with self._db.transaction():
            self._inodes.detach(ino, self._names.now_ns())
            if entry is not None:
                self._rooms.uploader.forget(entry.id)
                doomed = self._rooms.cache.drop(entry)
            self._inodes.drop(ino)
        self._unburied.discard(ino)
        await self._rooms.room.delete(doomed)
        self._kernel_has.pop(ino, None)

    def save(self, file: OpenFile) -> None:
        """Bring the inode's row in line with the open file."""
        if not file.is_altered:
            return
        with self._db.transaction():
            self._inodes.update(
                file.ino, size=file.size, mtime_ns=file.mtime_ns, ctime_ns=file.ctime_ns
            )
            self._rooms.cache.save(file.entry)
            file.is_altered = False
            self._db.if_undone(file.alter)

    # ---- bytes ------------------------------------------------------------------------------

    async def read(self, fh: Fh, offset: int, size: int) -> bytes | memoryview:
        """Return bytes of an open file, fewer only at its end; valid until the caller awaits anything."""
        handle = self._handles[fh]
        found = await handle.file.read(offset, size)
        if handle.damages != handle.file.entry.damages:
            raise Fault("other bytes of this file were damaged on their way — open it again")
        self.bytes_read += len(found)
        return found

    async def write(self, fh: Fh, offset: int, data: bytes) -> int:
        """Write to an open file. Return how many bytes: all of them."""
        file = self._handles[fh].file
        count = await file.write(offset, data)
        self._names.told.tell(file.ino, file.size)
        return count

    async def flush(self, fh: Fh) -> None:
        """Answer a close: with ``--upload close`` after the object is stored, else once it is safe here."""
        handle = self._handles[fh]
        if not handle.is_writer:
            return
        if self._closing.upload is UploadMode.CLOSE:
            await self._store_now(handle.file)
        else:
            await self._seal_durably(handle.file)

    async def fsync(self, fh: Fh) -> None:
        """Return after the object is stored."""
        await self._store_now(self._handles[fh].file)

    async def complete(self, file: OpenFile) -> None:
        """Treat a change that no close will follow as a close would."""
        if self._closing.upload is UploadMode.CLOSE:
            await self._store_now(file)
        else:
            await self._seal_durably(file)

    async def _store_now(self, file: OpenFile) -> None:
        """Wait until the store has the file as it is. Raise why it has not, if it could not be stored."""
        for _ in range(_REWRITES):
            if file.is_detached:
                return
            await file.wait_still()
            before: Before | None = None
            if file.is_promised:
                await self._seal(file, delay_s=0)
            else:
                before = self._rooms.uploader.hurry(file.entry.id)
            if await self._rooms.uploader.wait_settled(file.entry.id, before):
                return
        raise TimedOut("the file is written to without a pause; it stays queued")

    async def _seal(self, file: OpenFile, *, delay_s: float, is_synced: bool = False) -> None:
        """Say that the bytes are complete as they stand."""
        if not file.is_promised or file.is_detached:
            return
        if file.is_untouched:
            self._rooms.uploader.forget(file.entry.id)
            file.sealed()
            return
        due_ns = self._names.now_ns() + int(delay_s * SECOND_NS)
        with self._db.transaction():
            self.save(file)
            self._rooms.cache.save(file.entry)
            self._rooms.journal.seal(file.entry.id, due_ns=due_ns, is_synced=is_synced)
        file.sealed()
        self._rooms.uploader.note_cause(file.entry.id)
        self._rooms.uploader.kick()

    async def _seal_durably(self, file: OpenFile) -> None:
        """Put bytes and promise on the disk, so that they outlive even a loss of power."""
        async with file.flushing:
            if not file.is_promised:
                return
            generation = -1
            with contextlib.ExitStack() as stack:
                while generation != file.generation or file.is_changing:
                    if generation >= 0:
                        stack.enter_context(
                            file.held()
                        )  # or a writer without a pause would make this endless
                    await file.wait_still()
                    generation = file.generation
                    await file.sync()
            await self._seal(file, delay_s=self._closing.upload_delay_s, is_synced=True)
            self._rooms.cache.supersede_sealed(file.entry.id)
            await self._rooms.threads.disk(self._db.sync_wal, self._db.path)
            self._rooms.cache.drop_superseded(file.entry.id)

    # ---- names that go ----------------------------------------------------------------------

    async def keep_whole(self, ino: Ino) -> None:
        """Fetch the rest of an open file whose object is about to go, as far as the cache has room.

        It leaves some of its time to the operation that it is done for.
        """
        file = self._files.get(ino)
        if file is not None:
            with (
                deadline.limited(self._rooms.timeout_s / 2),
                contextlib.suppress(StoreError, CacheError),
            ):
                await file.make_whole()

    async def unname(self, ino: Ino) -> None:
        """Take an inode out of the tree; forget it unless it is open."""
        self._rooms.second.forget(ino)
        file = self._files.get(ino)
        entry = self._rooms.cache.find(ino)
        with self._db.transaction():
            self._inodes.detach(ino, self._names.now_ns())
            if entry is not None:
                self._rooms.uploader.forget(entry.id)
        if file is not None:
            file.is_detached = True
            file.sealed()
        else:
            await self.bury(ino)

    async def seal_closed(self) -> None:
        """Seal what nobody is writing any more, because the mount ends.

        A file that a program is in the middle of writing is not stored half done: its bytes stay in the
        journal.
        """
        for file in list(self._files.values()):
            if not file.writers:
                try:
                    await self._seal(file, delay_s=0)
                except CacheError as error:
                    _log.error("inode %s cannot be made ready for upload: %s", file.ino, error)

    @property
    def open_handles(self) -> int:
        """How many handles programs hold."""
        return len(self._handles)


def _version(entry: Entry) -> str:
    """Return what tells one content of a cache entry from another."""
    return f"{entry.id}:{entry.etag}:{entry.damages}"
