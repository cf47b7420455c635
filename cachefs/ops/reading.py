"""Reading what is in a tree, so that what is sent is of one moment."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from cachefs.core.extents import Extent
from cachefs.core.types import Kind
from cachefs.engine.body import BytesBody
from cachefs.local.hashed import Stamp
from cachefs.ops.steady import Altered, SteadyBody
from cachefs.ops.throttle import Throttle
from cachefs.ops.tree import Found, Tree

_SMALL: Final = 2**20
"""Bytes up to which a file is held in memory while it is sent: one read, and of one moment."""
_CHUNK: Final = 2**20


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of something in the tree."""

    found: Found
    """With the attributes of the file that was opened."""
    body: BytesBody | SteadyBody
    md5: str
    descriptor: int | None = None
    """Of a file."""

    @property
    def name(self) -> str:
        """Under which it is remembered."""
        return self.found.path

    @property
    def stamp(self) -> Stamp:
        """Of the file that the bytes are of."""
        return Stamp.of(self.found.status)

    @property
    def is_link(self) -> bool:
        """Whether the bytes are the target of a symbolic link."""
        return self.found.kind is Kind.SYMLINK

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes once more."""
        if isinstance(self.body, BytesBody):
            yield memoryview(self.body.reader(Extent(0, self.body.size)).read())
            return
        position = 0
        while chunk := self.body.read_at(position, _CHUNK):
            yield memoryview(chunk)
            position += len(chunk)

    def is_altered(self) -> bool:
        """Whether the file was written to since it was opened."""
        if self.descriptor is None:
            return False
        return _moment(os.fstat(self.descriptor)) != _moment(self.found.status)


class Reading:
    """Reads files, links and directories of *tree*."""

    def __init__(self, tree: Tree, throttle: Throttle, stop: threading.Event) -> None:
        self._tree = tree
        self._throttle = throttle
        self._stop = stop

    @contextmanager
    def content(self, found: Found) -> Iterator[Content]:
        """Yield the bytes of *found*, which has content or is a directory, as they are at one moment.

        Raise :class:`Altered` if a file is written to meanwhile, or is no file any more; ``OSError`` if it cannot be read.
        """
        path = self._tree.full(found.path)
        if found.kind in (Kind.DIR, Kind.SYMLINK):
            body = BytesBody(b"" if found.kind is Kind.DIR else os.readlink(path))
            yield Content(found, body, body.md5)
            return
        descriptor = _opened(path, follow=self._tree.follow)
        try:
            yield self._read(found, descriptor)
        finally:
            os.close(descriptor)

    def _read(self, found: Found, descriptor: int) -> Content:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Altered
        body: BytesBody | SteadyBody
        if status.st_size <= _SMALL:
            read = _read_whole(descriptor, status.st_size + 1)
            if len(read) != status.st_size:
                raise Altered
            body = BytesBody(read)
            md5 = body.md5
        else:
            body = SteadyBody(descriptor, status.st_size, throttle=self._throttle, stop=self._stop)
            md5 = body.digest()
        content = Content(replace(found, status=status), body, md5, descriptor)
        if content.is_altered():
            raise Altered
        return content


def _moment(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _opened(path: bytes, *, follow: bool) -> int:
    """Open a file for reading: nothing that waits for a writer, and its time of access untouched if we may."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        try:
            return os.open(path, flags | os.O_NOATIME)
        except PermissionError:
            return os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link by now, or a socket
            raise Altered from error
        raise


def _read_whole(descriptor: int, most: int) -> bytes:
    chunks, position = [], 0
    while position < most and (chunk := os.pread(descriptor, most - position, position)):
        chunks.append(chunk)
        position += len(chunk)
    return b"".join(chunks)
