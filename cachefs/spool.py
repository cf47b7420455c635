"""The file objects that programs get: real files, whose bytes are a leased cache file's, or become an object's at the close."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from errno import EINVAL
from types import TracebackType
from typing import Any, Final

_BUFFER: Final = 2**20
_LARGEST_PIECE: Final = 4 * 2**20


class LeasedReader(io.BufferedReader):
    """A file of the cache, open to be read. The lease on it ends when it is closed."""

    def __init__(self, descriptor: int, path: str, end: Callable[[], None]) -> None:
        self._end = end
        super().__init__(_named(descriptor, path, "rb"), _BUFFER)

    def close(self) -> None:
        """Close the file, and end the lease. Safe to call twice."""
        if not self.closed:
            try:
                super().close()
            finally:
                self._end()

    def __del__(self) -> None:
        with suppress(AttributeError, ValueError):  # of one that was never open
            self.close()


class PiecewiseReader(io.RawIOBase):
    """One version of a file, of which no more is fetched than is read. It has no descriptor."""

    def __init__(self, path: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """*read* returns bytes, by offset and count: as many as there are, but for the end of the file."""
        super().__init__()
        self.name: Final = path
        self._size = size
        self._read = read
        self._offset = 0

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def seekable(self) -> bool:
        """Whether it has places: it has."""
        return True

    def readinto(self, into: Any, /) -> int:  # noqa: ANN401 - any buffer that can be written to
        """Read some bytes; none: this is the end."""
        view = memoryview(into).cast("B")
        count = min(len(view), max(0, self._size - self._offset), _LARGEST_PIECE)
        found = self._read(self._offset, count) if count else b""
        view[: len(found)] = found
        self._offset += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to another place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(EINVAL, "a place before the beginning", self.name)
        self._offset = base + offset
        return self._offset

    def tell(self) -> int:
        """Return where it is."""
        return self._offset


class SpooledWriter(io.BufferedRandom):
    """A file of its own, whose bytes are stored when it is closed: all of them, or, where the ``with`` block raises, none."""

    def __init__(self, descriptor: int, path: str, store: Callable[[int], None]) -> None:
        self._store: Callable[[int], None] | None = store
        self._deferred: Callable[[int], None] | None = None
        self._kept = -1
        super().__init__(_named(descriptor, path, "r+b"), _BUFFER)

    def defer(self) -> None:
        """Store nothing at the close, but by :meth:`commit`."""
        self._deferred, self._store = self._store, self._keep

    def _keep(self, descriptor: int) -> None:
        self._kept = os.dup(descriptor)

    def commit(self) -> None:
        """Store what was closed, and kept for that."""
        descriptor, self._kept = self._kept, -1
        if descriptor >= 0 and self._deferred is not None:
            try:
                self._deferred(descriptor)
            finally:
                os.close(descriptor)

    def discard(self) -> None:
        """Close the file, and store nothing, whether or not it was closed already and kept."""
        self._store = None
        self.close()
        descriptor, self._kept = self._kept, -1
        if descriptor >= 0:
            os.close(descriptor)

    def close(self) -> None:
        """Store what was written, and close the file, whether or not it could be stored. Safe to call twice."""
        if self.closed:
            return
        store, self._store = self._store, None
        try:
            if store is not None:
                self.flush()
                store(self.fileno())
        finally:
            super().close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._store = None
        self.close()

    def __del__(self) -> None:
        # What was never closed was never said to be complete.
        with suppress(AttributeError, ValueError):  # of one that was never open
            self.discard()


class SpooledText(io.TextIOWrapper):
    """The same for text."""

    def __init__(
        self,
        file: SpooledWriter,
        *,
        encoding: str | None,
        errors: str | None,
        newline: str | None,
    ) -> None:
        self._file = file
        super().__init__(file, encoding=encoding, errors=errors, newline=newline)

    def discard(self) -> None:
        """Close the file, and store nothing."""
        self._file.discard()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.discard()
        self.close()


def _named(descriptor: int, name: str, mode: str) -> io.FileIO:
    """Return an open file that is called as programs know it."""
    file = io.FileIO(descriptor, mode)
    file.name = name
    return file


def copied(source: int, target: int) -> None:
    """Copy all of an open file to the end of another; within one file system that can, by sharing its blocks."""
    size, offset = os.fstat(source).st_size, 0
    while offset < size:
        try:
            count = os.copy_file_range(source, target, size - offset, offset)
        except OSError:  # between these two file systems it is not done
            count = os.sendfile(target, source, offset, size - offset)
        if not count:
            return
        offset += count
