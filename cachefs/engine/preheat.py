"""Brings whole files into the cache before programs ask for them: a slice at each question, so that each has an end."""

from typing import Final

import trio

from cachefs.core.errors import IsDirectory, NoRoom, TreeError
from cachefs.core.extents import Extent
from cachefs.core.heat import Heat, Heated
from cachefs.core.types import Kind, Name
from cachefs.engine.handles import OpenFiles
from cachefs.engine.names import Names
from cachefs.engine.openfile import OpenFile, Rooms
from cachefs.local.inodes import ROOT, Inode

_SLICE: Final = 64 * 2**20
"""Bytes that one question fetches at most."""
_SLICE_S: Final = 20.0
"""Seconds after which a question is answered with what is here by then."""


class Preheater:
    """Fetches files as opening and reading them would, without a program, and without counting as a use."""

    def __init__(self, names: Names, files: OpenFiles, rooms: Rooms) -> None:
        self._names = names
        self._files = files
        self._rooms = rooms

    async def look(self, path: str) -> Heated:
        """Tell how much of the file *path* (relative to the root) is here, and fetch nothing.

        Raise ``NoEntry`` and the like, or the store's error, if there is no such file.
        """
        return self._told(await self.find(path), fetched=0)

    async def heat(self, path: str, *, used_ns: int, may_evict: bool) -> Heated:
        """Fetch some of what is missing of the file *path* (relative to the root).

        *used_ns*: when it was last used, since the epoch. It counts as that old, so that what is fetched first is
        not evicted first; no moment to come counts. *may_evict*: other files may go for it; else what finds no free room is not fetched.
        Raise ``NoRoom`` for what can never fit, ``NoEntry`` and the like, or the store's error.
        """
        inode = await self.find(path)
        told = self._told(inode, fetched=0)
        if told.heat is Heat.CACHED:
            return told
        self.require_fit(inode.size)
        if not may_evict and not self._fits(inode.size - told.cached):
            return Heated(Heat.FULL, told.size, told.cached, 0)
        before = self._rooms.cache.find(inode.ino)
        file = await self._files.acquire(inode.ino)
        is_alone = file.handles == 1
        try:
            heated = await self._fetch(file, may_evict=may_evict)
        finally:
            with trio.CancelScope(shield=True):
                await self._files.give_back(file)
        used_ns = min(used_ns, self._names.now_ns())
        if is_alone and self._files.find(inode.ino) is None:
            self._rooms.cache.age(
                inode.ino, used_ns if before is None else max(used_ns, before.used_ns)
            )
        return heated

    async def find(self, path: str) -> Inode:
        """Return the file *path* (relative to the root) as the store has it, as an open would.

        Raise ``NoEntry`` and the like, or the store's error.
        """
        ino = ROOT
        inode: Inode | None = None
        for part in path.encode("utf-8", "surrogateescape").split(b"/"):
            inode = await self._names.lookup(ino, Name(part))
            ino = inode.ino
        if inode is None or inode.is_dir:
            raise IsDirectory("it is a directory")
        if inode.kind is not Kind.FILE:
            raise TreeError(f"it is a {inode.kind.value}, which has no bytes to fetch")
        return await self._names.revalidate(ino, for_open=True)

    def _told(self, inode: Inode, *, fetched: int) -> Heated:
        entry = self._rooms.cache.find(inode.ino)
        if entry is None:
            heat = Heat.PARTIAL if inode.size else Heat.CACHED
            return Heated(heat, inode.size, 0, fetched)
        is_dirty = self._rooms.journal.of(entry.id) is not None
        if not is_dirty and (entry.etag != inode.etag or entry.size != inode.size):
            return Heated(Heat.PARTIAL, inode.size, 0, fetched)
        heat = Heat.CACHED if entry.is_whole else Heat.PARTIAL
        return Heated(heat, entry.size, entry.here.total, fetched)

    def require_fit(self, size: int) -> None:
        """Raise ``NoRoom`` for a file that the cache can never hold."""
        room = self._rooms.room
        if size + room.writers_share > self._rooms.cache.limit:
            raise NoRoom(f"its {size} bytes are more than the cache has for reading")

    def _fits(self, missing: int) -> bool:
        room = self._rooms.room
        return not room.is_disk_full and not self._rooms.cache.short_of(
            missing + room.writers_share
        )

    async def _fetch(self, file: OpenFile, *, may_evict: bool) -> Heated:
        before = file.entry.here.total
        has_room = True
        with trio.move_on_after(_SLICE_S):
            gaps = file.entry.here.missing(Extent(0, file.size))
            if gaps:
                start = gaps[0].start
                reach = Extent(start, min(file.size, start + _SLICE))
                has_room = await file.bring(reach, may_evict=may_evict)
        here = file.entry.here.total
        fetched = max(0, here - before)
        if here >= file.size:
            return Heated(Heat.CACHED, file.size, here, fetched)
        return Heated(Heat.PARTIAL if has_room else Heat.FULL, file.size, here, fetched)
