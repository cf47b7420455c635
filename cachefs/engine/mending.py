"""Mends what verifying has found: bytes that rotted here are fetched anew, what the store has lost is stored anew."""

import logging

import trio

from cachefs.core.errors import ReadOnly
from cachefs.core.extents import Extent, ExtentMap
from cachefs.core.types import EntryId, ETag, Ino
from cachefs.engine.handles import OpenFiles
from cachefs.engine.openfile import OpenFile, Rooms
from cachefs.local.cache import Entry
from cachefs.local.inodes import InodeTable

_log = logging.getLogger(__name__)


class Mender:
    """Each deed names the entry and its version: of one that has changed since it was looked at, nothing is done."""

    def __init__(
        self, rooms: Rooms, inodes: InodeTable, files: OpenFiles, *, is_read_only: bool
    ) -> None:
        self._rooms = rooms
        self._inodes = inodes
        self._files = files
        self._is_read_only = is_read_only

    async def refetch(self, entry_id: EntryId, etag: ETag) -> bool:
        """Give up the clean bytes of an entry, so that the next read gets them from the store.

        Whoever has the file open, and may have read damaged bytes, gets an error and has to open it again.
        Return whether that was done.
        """
        entry = self._clean(entry_id, etag)
        if entry is None:
            return False
        _log.warning("the bytes of cache file %d are given up, and fetched again", entry.id)
        self._files.forget_pages(entry.ino)
        if not entry.pins:
            await self._rooms.room.delete(self._rooms.cache.drop(entry))
        else:
            entry.here.cut(0)
            entry.trusted.cut(0)
            entry.sums.clear()
            entry.damages += 1
        return True

    async def store_anew(self, entry_id: EntryId, etag: ETag) -> bool:
        """Queue the clean bytes of an entry, all of which are here, for an upload to a key that has no object.

        Where it has one by then, both are kept, as after every conflict. Return whether that was done. Raise
        ``ReadOnly`` where nothing may be stored.
        """
        if self._is_read_only:
            raise ReadOnly("the mount is read-only")
        entry = self._clean(entry_id, etag)
        if entry is None:
            return False
        file = await self._files.acquire(entry.ino)
        try:
            return await self._promised(file, entry_id, etag)
        finally:
            with trio.CancelScope(shield=True):
                await self._files.give_back(file)

    async def _promised(self, file: OpenFile, entry_id: EntryId, etag: ETag) -> bool:
        entry, mtime_ns, ctime_ns = file.entry, file.mtime_ns, file.ctime_ns
        if entry.id != entry_id or not await self._is_sound(entry):
            return False
        if self._clean(entry_id, etag) is None:  # written while its sums were made
            return False
        generation = file.generation
        await file.begin()
        if (
            file.generation != generation + 1
        ):  # written meanwhile, and perhaps stored: its own upload goes on
            return False
        file.mtime_ns, file.ctime_ns = mtime_ns, ctime_ns
        with self._rooms.db.transaction():
            self._rooms.cache.change(entry, etag=None)
            self._inodes.update(entry.ino, etag=None)
        return True

    async def _is_sound(self, entry: Entry) -> bool:
        """Whether every byte is here, and is what it was when it came."""
        pieces = list(entry.sums)
        summed = ExtentMap(piece for piece, _ in pieces)
        if not (entry.is_whole and summed.covers(Extent(0, entry.size))):
            return False
        return not await self._rooms.threads.disk(self._rooms.cache.rotten, entry.fd, pieces)

    def _clean(self, entry_id: EntryId, etag: ETag) -> Entry | None:
        """Return the entry if it still is that version, nothing is owed for it, and it has a name."""
        entry = self._rooms.cache.load(entry_id)
        if entry is None or entry.etag != etag or self._rooms.journal.of(entry_id) is not None:
            return None
        return entry if self._has_name(entry.ino) else None

    def _has_name(self, ino: Ino) -> bool:
        inode = self._inodes.get(ino)
        return inode is not None and inode.parent is not None
