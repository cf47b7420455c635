"""The bytes of a file that others may be writing to: what is sent is what was hashed, or nothing is."""

import hashlib
import os
import threading
import zlib
from array import array
from typing import Final

from cachefs.core.extents import Extent, ExtentMap
from cachefs.ops.throttle import Throttle
from cachefs.remote.store import UploadPaused, UploadStopped

_PIECE: Final = 2**20
_CHUNK: Final = 2**18


class Altered(UploadStopped):
    """The file is no longer what was hashed. An upload of it has been called off."""


class SteadyBody:
    """A file as it was when :meth:`digest` read it; whoever then reads other bytes gets :class:`Altered`.

    Each piece of 1 MiB that a reader reads from its beginning to its end is held against its CRC-32, so that parts of an
    object are of one moment. *throttle* is asked for each byte when it is read first. *stop*: set where the job ends;
    readers raise ``UploadPaused`` then. May be read by several threads.
    """

    def __init__(self, fd: int, size: int, *, throttle: Throttle, stop: threading.Event) -> None:
        self._fd = fd
        self._size = size
        self._throttle = throttle
        self._stop = stop
        self._sums = array("L")
        self._lock = threading.Lock()
        self._taken = ExtentMap()
        self.md5: str | None = None

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def digest(self) -> str:
        """Read all of it, and return its MD5 in hexadecimal. Raise ``Altered`` if it is shorter or longer by now."""
        md5, sums, total, position = hashlib.md5(usedforsecurity=False), array("L"), 0, 0
        # Pieces are whole numbers of chunks. One byte more than there should be tells that it grew.
        while chunk := self.read_at(position, min(_CHUNK, self._size + 1 - position)):
            md5.update(chunk)
            total = zlib.crc32(chunk, total)
            position += len(chunk)
            if position > self._size:
                raise Altered
            if position % _PIECE == 0 or position == self._size:
                sums.append(total)
                total = 0
        if position < self._size:
            raise Altered
        self._sums, self.md5 = sums, md5.hexdigest()
        return self.md5

    def reader(self, extent: Extent) -> "_Reader":
        """Return a fresh view of *extent*."""
        return _Reader(self, extent)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset*, fewer only at the end of the file."""
        if self._stop.is_set():
            raise UploadPaused
        chunk = os.pread(self._fd, size, offset)
        while (
            chunk
            and len(chunk) < size
            and (more := os.pread(self._fd, size - len(chunk), offset + len(chunk)))
        ):
            chunk += more
        return chunk

    def send_at(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset*, which are about to be sent."""
        extent = Extent(offset, offset + size)
        with self._lock:
            is_fresh = not self._taken.covers(extent)
            self._taken.add(extent)
        if is_fresh:
            self._throttle.take(size)
        chunk = self.read_at(offset, size)
        if len(chunk) != size:
            raise Altered
        return chunk

    def check(self, piece: int, total: int) -> None:
        """Raise ``Altered`` unless *total* is the sum of that piece."""
        if self._sums and self._sums[piece] != total:
            raise Altered


class _Reader:
    def __init__(self, body: SteadyBody, extent: Extent) -> None:
        self._body = body
        self._extent = extent
        self._position = extent.start
        self._total: int | None = None
        """Of what was read of the present piece; None: not from its beginning."""

    def __len__(self) -> int:
        return self._extent.length

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._extent.stop - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        chunks: list[bytes] = []
        while wanted > 0:
            chunk = self._next(min(wanted, _CHUNK))
            chunks.append(chunk)
            wanted -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _next(self, most: int) -> bytes:
        """Return the next bytes, none of them beyond the piece that the first is of."""
        piece = self._position // _PIECE
        end = min((piece + 1) * _PIECE, self._body.size)
        chunk = self._body.send_at(self._position, min(most, end - self._position))
        if self._position % _PIECE == 0:
            self._total = 0
        if self._total is not None:
            self._total = zlib.crc32(chunk, self._total)
        self._position += len(chunk)
        if self._position == end and self._total is not None:
            self._body.check(piece, self._total)
        return chunk

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = (self._extent.start, self._position, self._extent.stop)[whence]
        target = max(self._extent.start, base + offset)
        if target != self._position:
            self._position, self._total = target, None
        return self.tell()

    def tell(self) -> int:
        return self._position - self._extent.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
