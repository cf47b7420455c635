"""What an upload reads: a stretch of a cache file, which the program may want back at any moment."""

import hashlib
import os
import threading
import time

from cachefs.core.errors import BytesLost
from cachefs.core.extents import Extent, ExtentMap
from cachefs.core.sums import PieceSums, Summing
from cachefs.remote.store import UploadPaused, UploadStopped

_CHUNK = 2**18
_PASSES = 3
"""So often an adapter reads bytes to send them once: for a checksum, for the signature, and for the wire."""


class FileBody:
    """The bytes of one upload. ``stop`` may be called from the loop while adapters read in threads."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._stopped: type[UploadStopped] | None = None
        self.md5: str | None = None
        self.progress_at = time.monotonic()
        """When bytes were last read, on the monotonic clock: what tells a slow upload from a stuck one."""
        self.advanced_at = self.progress_at
        """As ``progress_at``, but bytes that are only sent once more do not count."""
        self._read = [ExtentMap() for _ in range(_PASSES)]
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def digest(self) -> PieceSums:
        """Read all of it once: learn its MD5, and return the sums of its pieces. Blocks; any thread."""
        known, summing, position = PieceSums(), Summing(0), 0
        md5 = hashlib.md5(usedforsecurity=False)
        while chunk := self.read_at(position, min(_CHUNK, self._size - position)):
            md5.update(chunk)
            self.advanced_at = self.progress_at
            position += len(chunk)
            for piece, total in summing.take(memoryview(chunk)):
                known.add(piece, total)
        for piece, total in summing.rest():
            known.add(piece, total)
        if position < self._size:
            raise BytesLost(f"{self._size - position} bytes promised to the store are gone")
        self.md5 = md5.hexdigest()
        return known

    def stop(self) -> None:
        """Make the next read raise ``UploadStopped``: what was sent is of no use any more."""
        self._stopped = UploadStopped

    def pause(self) -> None:
        """Make the next read raise ``UploadPaused``: the daemon ends."""
        self._stopped = self._stopped or UploadPaused

    def reader(self, extent: Extent) -> "_FileReader":
        """Return a fresh view of *extent*."""
        return _FileReader(self, extent)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes at *offset*."""
        if self._stopped is not None:
            raise self._stopped
        self.progress_at = time.monotonic()
        return os.pread(self._fd, size, offset)

    def send_at(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes at *offset*, which are about to be sent."""
        chunk = self.read_at(offset, size)
        extent = Extent(offset, offset + len(chunk))
        with self._lock:  # the parts of an upload are read by several threads
            fresh = next((each for each in self._read if not each.covers(extent)), None)
            if fresh is not None:
                fresh.add(extent)
                self.advanced_at = self.progress_at
        return chunk


class _FileReader:
    def __init__(self, body: FileBody, extent: Extent) -> None:
        self._body = body
        self._extent = extent
        self._position = extent.start

    def __len__(self) -> int:
        return self._extent.length

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._extent.stop - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        chunks: list[bytes] = []
        while wanted > 0 and (chunk := self._body.send_at(self._position, wanted)):
            chunks.append(chunk)
            self._position += len(chunk)
            wanted -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = (self._extent.start, self._position, self._extent.stop)[whence]
        self._position = max(self._extent.start, base + offset)
        return self.tell()

    def tell(self) -> int:
        return self._position - self._extent.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class BytesBody:
    """A short body that is in memory: markers and symbolic links."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self._content)

    @property
    def md5(self) -> str:
        """MD5 of the content, in hexadecimal."""
        return hashlib.md5(self._content, usedforsecurity=False).hexdigest()

    def reader(self, extent: Extent) -> "_BytesReader":
        """Return a fresh view of *extent*."""
        return _BytesReader(self._content[extent.start : extent.stop])


class _BytesReader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def __len__(self) -> int:
        return len(self._content)

    def read(self, size: int | None = -1, /) -> bytes:
        stop = len(self._content) if size is None or size < 0 else self._position + size
        chunk = self._content[self._position : stop]
        self._position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._position = (0, self._position, len(self._content))[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class SummingSink:
    """Sums the bytes of a fetch from the start of an object on, and keeps none of them."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what was taken."""
        self._known, self._summing = PieceSums(), Summing(0)

    def write(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        for piece, total in self._summing.take(data):
            self._known.add(piece, total)

    def sums(self) -> PieceSums:
        """Return the sums, when all was taken."""
        for piece, total in self._summing.rest():
            self._known.add(piece, total)
        return self._known
