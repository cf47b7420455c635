"""Bodies to put and sinks to fetch into, as the engine has them but in memory."""

import hashlib
import io
import threading
from collections.abc import Callable

from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key
from cachefs.remote.store import ObjectStore, UploadStopped


class BytesBody:
    """Bytes to be stored."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def md5(self) -> str | None:
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()

    def reader(self, extent: Extent) -> io.BytesIO:
        return io.BytesIO(self.content[extent.start : extent.stop])


class StoppedBody(BytesBody):
    """A body that calls the upload off as soon as *after* bytes were read, by all readers together."""

    def __init__(self, content: bytes, *, after: int) -> None:
        super().__init__(content)
        self._left = after
        self._lock = threading.Lock()

    def reader(self, extent: Extent) -> io.BytesIO:
        return _StoppingReader(super().reader(extent).read(), self._take)

    def _take(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise UploadStopped


class _StoppingReader(io.BytesIO):
    def __init__(self, content: bytes, take: Callable[[int], None]) -> None:
        super().__init__(content)
        self._take = take

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self._take(len(chunk))
        return chunk


class BytesSink:
    """Where fetched bytes go."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.restarts = 0

    def write(self, data: memoryview, /) -> None:
        self.content += data

    def restart(self) -> None:
        self.content.clear()
        self.restarts += 1


def fetched(store: ObjectStore, key: Key, extent: Extent, etag: ETag) -> bytes:
    """The bytes of *extent*."""
    sink = BytesSink()
    store.get_range(key, extent, sink, if_match=etag)
    return bytes(sink.content)
