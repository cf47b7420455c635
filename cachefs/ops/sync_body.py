"""An object at one store as the body of an upload to another: fetched as it is sent, a window at a time.

Adapters read a part up to three times (for its checksum, for the signature, for the wire): a window is fetched once,
and kept while somebody reads it. So an object goes over the network once, whatever its size, and what is kept is
bounded by the number of parts under way.
"""

import hashlib
import tempfile
import threading
import weakref
from typing import IO, Final

from cachefs.core.errors import Fault, StoreError
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint, PartMd5s
from cachefs.ops.throttle import Throttle
from cachefs.remote.store import ObjectStore, UploadPaused, UploadStopped

IN_MEMORY: Final = 8 * 2**20
"""Bytes of a window that is kept in memory; a longer one is in a file without a name."""
_LONGEST: Final = 256 * 2**20
"""A stretch up to this is one window: as much as an adapter sends at a time in parts."""
_MOST_PENDING: Final = 16
"""Windows that wait for one before them to be summed. Beyond that the sum is given up, not the memory."""
_GLANCE: Final = Extent(0, 1)
"""What whoever waits to try again reads, only to see whether the upload was called off."""
_CHUNK: Final = 2**20


class SourceFailed(UploadStopped):
    """The source cannot be read as that version: for good, or not as it was listed."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(str(error))
        self.error = error


class SourceFaulted(UploadPaused):
    """The source does not answer at present. What the target has of the upload waits."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(str(error))
        self.error = error


class Window:
    """A stretch of the object, fetched when it is first read."""

    def __init__(self, extent: Extent) -> None:
        self.extent = extent
        self.lock = threading.Lock()
        self.is_here = False
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        if extent.length > IN_MEMORY:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with the window
            weakref.finalize(self, self._file.close)

    def restart(self) -> None:
        """Forget what was taken."""
        self._memory.clear()
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()

    def write(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        if self._file is None:
            self._memory += data
        else:
            self._file.write(data)

    def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes at *offset* of the object."""
        at = offset - self.extent.start
        if self._file is None:
            return bytes(memoryview(self._memory)[at : at + size])
        with self.lock:
            self._file.seek(at)
            return self._file.read(size)


class RemoteBody:
    """The bytes of the version at *store* of which *told* is known.

    Readers raise :class:`SourceFailed` or :class:`SourceFaulted` for what goes wrong at the source, and
    ``UploadPaused`` once *ended* is set.
    """

    def __init__(
        self,
        store: ObjectStore,
        told: Fingerprint,
        *,
        throttle: Throttle,
        ended: threading.Event,
    ) -> None:
        self._store = store
        self._told = told
        self._throttle = throttle
        self._ended = ended
        self.md5 = told.md5 or told.stored_md5
        self._lock = threading.Lock()
        self._windows: weakref.WeakValueDictionary[Extent, Window] = weakref.WeakValueDictionary()
        self._glanced: Window | None = None
        self._sums = InOrder(told)

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._told.info.size

    def reader(self, extent: Extent) -> "_Reader":
        """Return a fresh view of *extent*."""
        return _Reader(self, extent)

    def is_as_told(self) -> bool | None:
        """Return whether all bytes, as they were read, are what the source says of its content.

        None: it says nothing of use, or they were read too far out of order.
        """
        return self._sums.agree(self.md5)

    def require_going(self) -> None:
        """Raise ``UploadPaused`` if the job ends."""
        if self._ended.is_set():
            raise UploadPaused

    def window(self, extent: Extent) -> Window:
        """Return *extent*, its bytes here."""
        with self._lock:
            window = self._windows.get(extent)
            if window is None:
                window = self._windows[extent] = Window(extent)
            if extent == _GLANCE:
                self._glanced = window  # looked at four times a second
        with window.lock:
            if not window.is_here:
                self._fetch(window)
                window.is_here = True
                fetched = True
            else:
                fetched = False
        if fetched and extent != _GLANCE:
            self._sums.take(window)
        return window

    def _fetch(self, window: Window) -> None:
        self.require_going()
        window.restart()
        sink = Throttled(window, self._throttle, self._ended)
        info = self._told.info
        try:
            self._store.get_range(info.key, window.extent, sink, if_match=info.etag)
        except Fault as error:
            raise SourceFaulted(error) from error
        except StoreError as error:
            raise SourceFailed(error) from error


class _Reader:
    def __init__(self, body: RemoteBody, extent: Extent) -> None:
        self._body = body
        self._extent = extent
        self._position = extent.start
        self._window: Window | None = None

    def __len__(self) -> int:
        return self._extent.length

    def read(self, size: int | None = -1, /) -> bytes:
        self._body.require_going()
        left = self._extent.stop - self._position
        wanted = left if size is None or size < 0 else min(size, left)
        chunks: list[bytes] = []
        while wanted > 0:
            window = self._at(self._position)
            count = min(wanted, window.extent.stop - self._position)
            chunks.append(window.read(self._position, count))
            self._position += count
            wanted -= count
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _at(self, position: int) -> Window:
        if self._window is not None and position in range(*self._window.extent):
            return self._window
        extent = self._extent
        if extent.length > _LONGEST:
            start = position - (position - extent.start) % IN_MEMORY
            extent = Extent(start, min(start + IN_MEMORY, extent.stop))
        self._window = None  # before the next one is there
        self._window = self._body.window(extent)
        return self._window

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


class Throttled:
    """*sink*, no faster than *throttle* lets it, until *ended* is set: then it raises ``UploadPaused``."""

    def __init__(
        self, sink: "Window | Collected", throttle: Throttle, ended: threading.Event
    ) -> None:
        self._sink = sink
        self._throttle = throttle
        self._ended = ended

    def write(self, data: memoryview, /) -> None:
        """Take the next bytes, when they may come."""
        self._throttle.take(len(data))
        if self._ended.is_set():
            raise UploadPaused
        self._sink.write(data)

    def restart(self) -> None:
        """Forget what was taken."""
        self._sink.restart()


class Collected:
    """A small object as it comes in."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        self.content += data

    def restart(self) -> None:
        """Forget what was taken."""
        self.content.clear()


class InOrder:
    """Sums of windows that come in out of order, as those of an object sent by several threads do."""

    def __init__(self, told: Fingerprint) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._md5 = hashlib.md5(usedforsecurity=False)
        # Not by the ETag of an S3 multipart upload: of its parts only the first's length is told.
        sizes = [part.size for part in told.parts]
        self._parts = PartMd5s(sizes) if sizes and sum(sizes) == told.info.size else None
        self._done = 0
        self._pending: dict[int, Window] | None = {}
        """By where they begin; None: given up."""

    def take(self, window: Window) -> None:
        """Sum *window*, now or when all before it are summed. One that was summed before is not again."""
        with self._lock:
            if self._pending is None or window.extent.start < self._done:
                return
            self._pending[window.extent.start] = window
            while (following := self._pending.pop(self._done, None)) is not None:
                self._add(following)
            if len(self._pending) > _MOST_PENDING:
                self._pending = None

    def agree(self, md5: str | None) -> bool | None:
        """Return whether the sums are what is known of the object, *md5* among it; None: there is nothing to compare."""
        told = self._told
        with self._lock:
            if self._done != told.info.size:
                return None
            if md5 is not None:
                return self._md5.hexdigest() == md5
            if self._parts is None:
                return None
            return self._parts.md5s == tuple(part.md5 for part in told.parts)

    def _add(self, window: Window) -> None:
        extent = window.extent
        while self._done < extent.stop:
            chunk = memoryview(window.read(self._done, min(_CHUNK, extent.stop - self._done)))
            self._md5.update(chunk)
            if self._parts is not None:
                self._parts.update(chunk)
            self._done += len(chunk)
