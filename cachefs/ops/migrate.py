"""The MD5s that are missing of the objects of a store: found out, and kept, each as soon as it is known.

From the cheapest means to the dearest: the listing, where an ETag is the MD5; what is kept already; one request that
tells of metadata and segments; the bytes. A run that is cut off is simply run again: it goes on where it was.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

from cachefs.core.errors import CachefsError, Changed, NotFound
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint, is_md5
from cachefs.core.known_md5 import How, KnownMd5
from cachefs.core.source import Source
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.ops.compare import Stopped
from cachefs.ops.events import Failed, Progress
from cachefs.ops.merge import files
from cachefs.ops.parallel import ahead, in_parallel
from cachefs.ops.verify import Losses
from cachefs.remote.store import ObjectStore

_TRIES: Final = 3
_SMALL: Final = 8 * 2**20
"""An object of so many bytes at most is read to see whether the store names objects by their MD5."""


class Md5Book(Protocol):
    """Where MD5s are kept. Called from one thread."""

    def find(self, bucket: str, key: str, /) -> KnownMd5 | None:
        """Return what is kept of an object, of whatever version."""
        ...

    def keep(self, found: KnownMd5, /) -> None:
        """Keep an MD5. When this returns, a kill does not lose it."""
        ...


@dataclass(slots=True)
class Counts:
    """What a run has come to so far."""

    objects: int = 0
    """Looked at, in all."""
    known: int = 0
    """Of which nothing had to be found out."""
    told: int = 0
    """Of which the store or the metadata told the MD5."""
    read: int = 0
    """Read, or to be read, for it."""
    read_bytes: int = 0
    changed: int = 0
    """Whose version was replaced, again and again, while it was read."""
    failed: int = 0


@dataclass(frozen=True, slots=True)
class _Found:
    """What has become of one object."""

    listed: ObjectInfo
    info: ObjectInfo | None = None
    """The version that it is about; None: it is gone."""
    md5: str | None = None
    how: How = How.TOLD
    error: Exception | None = None
    has_read: bool = False


class Migration:
    """One run over what lies below a prefix. :meth:`stop`, from any thread, ends it."""

    def __init__(
        self,
        store: ObjectStore,
        source: Source,
        book: Md5Book,
        *,
        prefix: Key,
        threads: int,
        is_dry: bool = False,
        end_waiting: Callable[[], None] = lambda: None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """*is_dry*: find out what would be read, and neither read nor keep anything."""
        self._store = store
        self._source = source
        self._book = book
        self._prefix = prefix
        self._threads = threads
        self._is_dry = is_dry
        self._end_waiting = end_waiting
        self._now_ns = now_ns
        self._stopped = threading.Event()
        self._losses = Losses()
        self._lock = threading.Lock()
        self._streamed = 0
        self._names_md5: bool | None = None
        """Whether an ETag that looks like an MD5 is one; None: it was not held against an object yet."""
        self.counts = Counts()

    def stop(self) -> None:
        """Have everything under way end soon."""
        self._stopped.set()
        self._end_waiting()

    def run(self) -> Generator[Failed | Progress, None, None]:
        """Yield how far it is, and what could not be found out.

        Raise ``StoreError`` if the listing fails, or the store is not there any more: what was found is kept.
        """
        found = in_parallel(self._find_out, self._missing(), threads=self._threads, stop=self.stop)
        with closing(found):
            for each in found:
                yield from self._noted(each)
                yield Progress(self.counts.objects, self._streamed)
        yield Progress(self.counts.objects, self._streamed)

    # ---- what is missing -----------------------------------------------------------------------

    def _missing(self) -> Iterator[ObjectInfo]:
        for info in files(ahead(self._store.overview(self._prefix))):
            self.counts.objects += 1
            if self._is_known(info):
                self.counts.known += 1
            else:
                yield info

    def _is_known(self, info: ObjectInfo) -> bool:
        if info.is_md5 or info.is_doubtful:
            return info.is_md5
        kept = self._book.find(*self._source.natural(info.key))
        is_kept = kept is not None and kept.is_of(info.etag, info.size)
        if not is_md5(info.etag):
            return is_kept
        if self._names_md5 is None and kept is not None and is_kept:
            # An earlier run has held it against the bytes. Of a large object of Swift it is something else.
            self._names_md5 = kept.md5 == info.etag or None
        elif self._names_md5 is None and info.size <= _SMALL:
            self._names_md5 = self._is_named_by_md5(info)
        return is_kept or self._names_md5 is True

    def _is_named_by_md5(self, info: ObjectInfo) -> bool | None:
        """Hold an ETag that looks like an MD5 against the bytes, once for all of them. None: it does not tell."""
        try:
            said = self._store.fingerprint(info.key)
            if said.info.etag != info.etag or said.md5 is None:
                return None
            if not self._is_dry and self._read(said.info) != said.md5:
                return False
        except CachefsError:
            return None
        if not self._is_dry:
            self._keep(said.info, said.md5, How.MIGRATED)
        return True

    # ---- one object, in a thread -------------------------------------------------------------------

    def _find_out(self, listed: ObjectInfo) -> _Found:
        try:
            for _ in range(_TRIES):
                if self._stopped.is_set():
                    raise Stopped
                said = self._store.fingerprint(listed.key)
                self._losses.forget()
                md5 = _told(said)
                if md5 is not None or self._is_dry:
                    return _Found(listed, said.info, md5)
                try:
                    md5 = self._read(said.info)
                except Changed:
                    continue
                return _Found(listed, said.info, md5, How.MIGRATED, has_read=True)
        except NotFound:
            return _Found(listed)
        except CachefsError as error:
            self._losses.bear(error)
            return _Found(listed, error=error)
        return _Found(listed, error=Changed("it is written again and again while it is read"))

    def _read(self, info: ObjectInfo) -> str:
        sink = _Md5Sink(self._stopped, self._count)
        if info.size:
            self._store.get_range(info.key, Extent(0, info.size), sink, if_match=info.etag)
        return sink.hexdigest()

    def _count(self, size: int) -> None:
        with self._lock:
            self._streamed += size

    # ---- what was found --------------------------------------------------------------------------

    def _noted(self, found: _Found) -> Iterator[Failed]:
        counts = self.counts
        if found.error is not None:
            counts.failed += 1
            counts.changed += isinstance(found.error, Changed)
            yield Failed(found.listed.key, found.error)
        elif found.info is None:
            counts.objects -= 1  # it is gone
        elif found.md5 is None or found.has_read:
            counts.read += 1
            counts.read_bytes += found.info.size
        else:
            counts.told += 1
        if found.info is not None and found.md5 is not None and not self._is_dry:
            self._keep(found.info, found.md5, found.how)

    def _keep(self, info: ObjectInfo, md5: str, how: How) -> None:
        bucket, key = self._source.natural(info.key)
        now_ns = self._now_ns()
        self._book.keep(
            KnownMd5(
                bucket,
                key,
                ETag(info.etag),
                info.size,
                md5,
                how,
                made_ns=now_ns,
                updated_ns=now_ns,
            )
        )


def _told(said: Fingerprint) -> str | None:
    """Return the MD5 that the store tells of all bytes, without reading any."""
    if len(said.parts) == 1 and said.parts[0].size == said.info.size:
        return said.parts[0].md5
    return said.md5 or said.stored_md5


class _Md5Sink:
    """Takes in an object, and keeps its MD5 only."""

    def __init__(self, stopped: threading.Event, count: Callable[[int], None]) -> None:
        self._stopped = stopped
        self._count = count
        self._size = 0
        self._digest = hashlib.md5(usedforsecurity=False)

    def write(self, data: memoryview, /) -> None:
        if self._stopped.is_set():
            raise Stopped
        self._digest.update(data)
        self._size += len(data)
        self._count(len(data))

    def restart(self) -> None:
        self._count(-self._size)
        self._size = 0
        self._digest = hashlib.md5(usedforsecurity=False)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
