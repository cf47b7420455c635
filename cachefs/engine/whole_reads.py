"""The MD5 of what was read wholly: found out beside the reading, from the bytes that have just come."""

import hashlib
import os
from typing import Final

import trio

from cachefs.core.errors import CacheError, DiskFailed
from cachefs.core.extents import Extent
from cachefs.core.known_md5 import How
from cachefs.engine.background import Background
from cachefs.engine.checksums import Checksums
from cachefs.engine.threads import Threads
from cachefs.local.cache import Entry
from cachefs.local.inodes import InodeTable
from cachefs.local.journal import Journal

_LARGEST: Final = 2**30
"""Of a longer file the first bytes have left memory when the last ones come: ``cachefs cache migrate`` reads it."""
_CHUNK: Final = 2**18


class WholeReads:
    """Hashes one file after the other, in a thread, when all of it is here and nothing tells its MD5."""

    def __init__(
        self,
        checksums: Checksums,
        inodes: InodeTable,
        journal: Journal,
        threads: Threads,
        background: Background,
    ) -> None:
        self._checksums = checksums
        self._inodes = inodes
        self._journal = journal
        self._threads = threads
        self._background = background
        self._turn = trio.Semaphore(1)

    def notice(self, entry: Entry) -> None:
        """Learn that bytes of *entry* have come. What came before this daemon, and nobody has vouched for, does not count."""
        whole = Extent(0, entry.size)
        if not (entry.here.covers(whole) and entry.trusted.covers(whole)) or entry.size > _LARGEST:
            return
        inode, key = self._inodes.get(entry.ino), self._inodes.key_of(entry.ino)
        if inode is None or key is None or inode.etag != entry.etag or inode.is_md5:
            return
        if self._journal.of(entry.id) is None and self._checksums.of(key, inode) is None:
            descriptor = os.dup(entry.fd)  # which outlives an eviction
            self._background.start("hash", lambda: self._hash(entry, descriptor))

    async def _hash(self, entry: Entry, descriptor: int) -> None:
        etag, size, damages = entry.etag, entry.size, entry.damages
        try:
            async with self._turn:
                md5 = await self._threads.disk(_md5_of, descriptor, size)
        except OSError as error:
            raise DiskFailed(f"cache file {entry.id} cannot be read: {error}") from error
        finally:
            os.close(descriptor)
        key = self._inodes.key_of(entry.ino)
        is_same = (entry.etag, entry.size, entry.damages) == (etag, size, damages)
        # A write promises before it changes a byte.
        if key is not None and etag is not None and is_same and self._journal.of(entry.id) is None:
            self._checksums.keep(key, etag, size, md5, How.READ)


def _md5_of(descriptor: int, size: int) -> str:
    digest, position = hashlib.md5(usedforsecurity=False), 0
    while position < size:
        chunk = os.pread(descriptor, min(_CHUNK, size - position), position)
        if not chunk:
            raise CacheError("the cache file is shorter than it was")
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()
