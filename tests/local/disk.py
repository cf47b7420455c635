"""A cache directory without a daemon: what the tests of this room and of the models share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachefs.core.eviction import Policy
from cachefs.core.extents import Extent
from cachefs.core.types import EntryId, Ino, Kind, Name
from cachefs.local.cache import SLACK, Cache, Doomed, Entry, blocks_of
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, InodeTable
from cachefs.local.journal import Journal

MIB = 2**20
BOOT = "this boot"


@dataclass
class Disk:
    """The rooms of a cache directory, opened together."""

    directory: Path
    db: Database
    journal: Journal
    inodes: InodeTable
    cache: Cache

    def mint(self, name: str) -> Ino:
        """Make an inode that an entry can belong to."""
        made = self.inodes.mint(
            ROOT, Name(name.encode()), name, Kind.FILE, now_ns=1, mode=0o644, uid=0, gid=0
        )
        self.inodes.made(made.ino)
        return made.ino

    def write(self, entry: Entry, offset: int, content: bytes) -> None:
        """Write into a pinned entry as the engine does: room first, then bytes, then the count."""
        extent = Extent(offset, offset + len(content))
        room = self.cache.reserve(blocks_of(extent) + SLACK)
        assert room is not None
        os.pwrite(entry.fd, content, offset)
        entry.here.add(extent)
        entry.size = max(entry.size, extent.stop)
        self.cache.account(entry)
        self.cache.release(room)

    def promise(self, entry: Entry, text: bytes = b"{}") -> None:
        """Promise an entry to the store: a row, and a file beside the bytes."""
        if self.journal.of(entry.id) is None:
            room = self.cache.reserve(4096)
            assert room is not None
            self.journal.begin(entry.id)
            self.cache.promise_made(room)
            self.cache.write_promise(entry.id, text)
        else:
            self.journal.begin(entry.id)

    def settle(self, entry_id: EntryId) -> None:
        """End a promise."""
        self.journal.settle(entry_id)
        self.cache.end_promise(entry_id)

    def delete(self, doomed: Doomed | None) -> None:
        """Delete a dropped entry's file, as a thread of the engine does."""
        if doomed is not None:
            self.cache.delete_file(doomed)
            self.cache.deleted(doomed)

    def disk_bytes(self) -> int:
        """What the files below data/ really take."""
        return sum(path.stat().st_blocks * 512 for path in self.cache.data.iterdir())

    def check(self) -> None:
        """Assert what holds whenever nothing is being written."""
        self.cache.check()
        assert self.cache.used - self.cache.reserved == self.disk_bytes()

    def close(self) -> None:
        """Close as a killed process does: nothing is saved."""
        for entry in list(self.cache._live.values()):
            os.close(entry.fd)
        self.cache._live.clear()
        self.db.close()


def open_disk(
    directory: Path,
    *,
    limit: int = 64 * MIB,
    min_free: int = 0,
    boot: str = BOOT,
    policy: Policy | None = None,
) -> Disk:
    db = Database(directory)
    journal = Journal(db, boot=boot)
    inodes = InodeTable(db, is_dirty=journal.is_dirty)
    inodes.make_root(1)
    cache = Cache(db, directory, limit=limit, min_free=min_free, policy=policy)
    return Disk(directory, db, journal, inodes, cache)


@contextmanager
def opened(directory: Path, *, limit: int = 64 * MIB, boot: str = BOOT) -> Iterator[Disk]:
    disk = open_disk(directory, limit=limit, boot=boot)
    try:
        yield disk
    finally:
        disk.close()
