"""The file objects that programs get: real files, whose bytes are a leased cache file's, or become an object's at the close."""

import io
import os
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final

_BUFFER: Final = 2**20


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
