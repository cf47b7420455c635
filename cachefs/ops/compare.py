"""Whether bytes here are those of an object, found out at the least cost.

From the cheapest means to the dearest: what an earlier run has found; the ETag of the listing, if it is the MD5, or
that of parts whose sizes can be guessed; one request that tells of parts, checksums and metadata; with
``download``, the bytes. Whatever speaks against is confirmed by that request before it is believed: a listing may be
older than what the store has.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from cachefs.core import metadata
from cachefs.core.errors import NotFound
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import (
    CHECKSUMS,
    Digest,
    Fingerprint,
    PartMd5s,
    cut,
    is_md5,
    part_sizes,
    parts_in,
)
from cachefs.core.sums import PieceSums
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.local.cache import Cache
from cachefs.local.hashed import Hashed, Stamp
from cachefs.ops.throttle import Throttle
from cachefs.remote.store import ObjectStore

_CHUNK: Final = 2**18
_MOST_GUESSES: Final = 4
"""Sizes of parts that are tried in one reading of a file."""
NO_SUM: Final = "the store tells no MD5 and no checksum of it: --download compares by reading"


class Stopped(Exception):
    """The job ends: what was begun is not worth finishing."""


class Moved(Exception):
    """The file changes while it is read, or is another one by now."""


class Content(Protocol):
    """The bytes of a file here."""

    @property
    def name(self) -> str:
        """Under which it is remembered."""
        ...

    @property
    def stamp(self) -> Stamp:
        """Of the file that the bytes are of."""
        ...

    @property
    def is_link(self) -> bool:
        """Whether the bytes are the target of a symbolic link."""
        ...

    def chunks(self) -> Iterator[memoryview]:
        """Yield all bytes in order. Raise ``Moved`` unless they are of the file with that stamp."""
        ...


@dataclass(frozen=True, slots=True)
class FileContent:
    """The bytes of a file, or the target of a symbolic link, at *path*."""

    name: str
    path: bytes
    stamp: Stamp
    is_link: bool = False

    def require_unmoved(self) -> None:
        """Raise ``Moved`` unless the file is still the one with that stamp."""
        if Stamp.of(os.lstat(self.path)) != self.stamp:
            raise Moved

    def chunks(self) -> Iterator[memoryview]:
        """Yield the bytes."""
        if self.is_link:
            yield memoryview(os.readlink(self.path))
            self.require_unmoved()
            return
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if Stamp.of(os.fstat(descriptor)) != self.stamp:
                raise Moved
            if self.stamp.size <= _CHUNK:
                yield memoryview(os.read(descriptor, self.stamp.size + 1))
            else:
                yield from _chunks(descriptor)
            if Stamp.of(os.fstat(descriptor)) != self.stamp:
                raise Moved
        finally:
            os.close(descriptor)


def _chunks(descriptor: int) -> Iterator[memoryview]:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer = bytearray(_CHUNK)
    whole = memoryview(buffer)
    while size := os.readv(descriptor, [buffer]):
        yield whole[:size]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comparing has shown."""

    is_same: bool | None
    """None: nothing tells."""
    remote: ObjectInfo | None
    """The version that it is about; None: the store has none."""
    local_md5: str | None = None
    """None: it was not needed."""
    remote_md5: str | None = None
    """None: not told."""
    reason: str = ""


@dataclass(slots=True)
class Counts:
    """What comparing has cost so far."""

    hashed_files: int = 0
    hashed_bytes: int = 0
    downloaded_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Patience:
    """What of an earlier run is believed."""

    is_full: bool = False
    """Nothing."""
    older_than_ns: int | None = None
    """What was verified longer ago is not."""

    def believes(self, known: Hashed, now_ns: int) -> bool:
        """Whether *known* needs no second look."""
        if self.is_full:
            return False
        if self.older_than_ns is None:
            return True
        return known.verified_ns is not None and now_ns - known.verified_ns <= self.older_than_ns


class Comparer:
    """Compares; may be called from several threads. :meth:`stop` ends what is under way."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        throttle: Throttle,
        patience: Patience,
        now_ns: Callable[[], int],
        is_downloading: bool = False,
        end_waiting: Callable[[], None] = lambda: None,
        likely_parts: Sequence[int] = (),
    ) -> None:
        """*likely_parts*: sizes of parts that are tried first. *is_downloading*: read what nothing else tells.

        *end_waiting* makes requests that wait for their next try give up, because the job ends.
        """
        self._store = store
        self._throttle = throttle
        self._patience = patience
        self._now_ns = now_ns
        self._is_downloading = is_downloading
        self._end_waiting = end_waiting
        self._likely_parts = tuple(likely_parts)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.counts = Counts()

    def stop(self) -> None:
        """Have everything under way raise :class:`Stopped`."""
        self._stopped.set()
        self._throttle.end()
        self._end_waiting()

    def believed(self, known: Hashed | None) -> Hashed | None:
        """Return *known* if it need not be found out anew."""
        return (
            known if known is not None and self._patience.believes(known, self._now_ns()) else None
        )

    def recall(self, content: Content, listed: ObjectInfo, known: Hashed | None) -> Verdict | None:
        """Return what earlier hashing says of *listed*, for nothing; None: it must be compared."""
        known = self.believed(known)
        if known is None or content.stamp.size != listed.size:
            return None
        is_md5_of_it = known.md5 == listed.etag and not listed.is_doubtful
        return _same(listed, known.md5) if known.etag == _version(listed) or is_md5_of_it else None

    def compare(
        self, content: Content, listed: ObjectInfo, known: Hashed | None
    ) -> tuple[Verdict, Hashed | None]:
        """Hold *content* against an object of a listing.

        Returns what to remember, too. Raise ``Moved``, ``Stopped``, ``OSError`` or ``StoreError``.
        """
        known = self.believed(known)
        md5 = known.md5 if known is not None else None
        # Other ETags tell nothing of the bytes: whether hashing them helps, the store is asked first.
        is_telling = (is_md5(listed.etag) or parts_in(listed.etag)) and not listed.is_doubtful
        if content.stamp.size == listed.size and is_telling:
            if md5 is None or parts_in(listed.etag):
                md5, etags = self.hashed(content, listed.etag)
                if any(etag == listed.etag for etag in etags):
                    return self._found(content, _same(listed, md5))
            if md5 == listed.etag:
                return self._found(content, _same(listed, md5))
        verdict, row = self.asked(content, listed.key, md5)
        if listed.is_doubtful and row is not None and row.etag == listed.etag:
            row = replace(row, etag=_version(listed))  # so that it need not be asked about again
        return verdict, row

    def hash(self, content: Content, *digests: Digest) -> None:
        """Read all of *content* into *digests*."""
        size = 0
        for chunk in content.chunks():
            if self._stopped.is_set():
                raise Stopped
            self._throttle.take(len(chunk))
            for digest in digests:
                digest.update(chunk)
            size += len(chunk)
        if size != content.stamp.size:
            raise Moved
        with self._lock:
            self.counts.hashed_files += 1
            self.counts.hashed_bytes += size

    def md5_of(self, content: Content) -> str:
        """Return the MD5 of all of it."""
        return self._hashed(content, ())[0]

    def hashed(self, content: Content, etag: ETag) -> tuple[str, list[ETag]]:
        """Return the MD5 of *content*, and the ETags that it may have in as many parts as *etag* says."""
        return self._hashed(content, self._guesses(content.stamp.size, etag))

    def sound_pieces(self, path: bytes, sums: PieceSums) -> Iterator[tuple[Extent, int, bool]]:
        """Yield each piece of a cache file that *sums* knows, its sum, and whether it has that."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for piece, total in sums:
                if self._stopped.is_set():
                    raise Stopped
                self._throttle.take(piece.length)
                yield piece, total, not Cache.rotten(descriptor, [(piece, total)])
                with self._lock:
                    self.counts.hashed_bytes += piece.length
        finally:
            os.close(descriptor)
        with self._lock:
            self.counts.hashed_files += 1

    def confirmed(self, key: Key) -> Fingerprint | None:
        """Return what the store has at *key* now; None: nothing."""
        if self._stopped.is_set():
            raise Stopped
        try:
            return self._store.fingerprint(key)
        except NotFound:
            return None

    # ---- the steps ---------------------------------------------------------------------------

    def _guesses(self, size: int, etag: ETag) -> list[int]:
        parts = parts_in(etag)
        if parts is None:
            return []
        return part_sizes(size, parts, likely=self._likely_parts)[:_MOST_GUESSES]

    def _hashed(self, content: Content, part_lengths: Iterable[int]) -> tuple[str, list[ETag]]:
        md5 = hashlib.md5(usedforsecurity=False)
        parted = [PartMd5s(cut(content.stamp.size, length)) for length in part_lengths]
        self.hash(content, md5, *parted)
        return md5.hexdigest(), [each.s3 for each in parted]

    def asked(self, content: Content, key: Key, md5: str | None) -> tuple[Verdict, Hashed | None]:
        """Compare *content*, whose MD5 may be known, by all that the store tells of what it has at *key* now."""
        told = self.confirmed(key)
        if told is None:
            return Verdict(None, None, md5, reason="the store has no such object"), None
        if content.is_link and _points(told.info, b"".join(content.chunks())):
            return Verdict(True, told.info, md5), None
        if told.info.size != content.stamp.size:
            reason = f"{content.stamp.size} bytes here, {told.info.size} at the store"
            verdict = Verdict(False, told.info, md5, told.md5 or told.stored_md5, reason)
            return self._found(content, verdict)
        if not (self._is_downloading or _tells(told)):
            return self._found(content, Verdict(None, told.info, md5, reason=NO_SUM))
        if md5 is None:
            md5 = self.md5_of(content)
        return self._found(content, self._judged(content, told, md5))

    def _judged(self, content: Content, told: Fingerprint, md5: str) -> Verdict:
        """Return the verdict of the first means that has one."""
        info = told.info
        if told.md5 is not None:
            return _by_md5(info, md5, told.md5)
        if told.parts:
            parts = PartMd5s([each.size for each in told.parts])
            self.hash(content, parts)
            is_same = parts.md5s == tuple(each.md5 for each in told.parts)
            return _same(info, md5) if is_same else _differs(info, md5)
        if self._is_put_together(content, told):
            return _same(info, md5)
        for name, checksum in told.checksums.items():
            digest = CHECKSUMS[name]()
            self.hash(content, digest)
            return _same(info, md5) if digest.hexdigest() == checksum else _differs(info, md5)
        if told.stored_md5 is not None:
            return _by_md5(info, md5, told.stored_md5)
        if self._is_downloading:
            return _by_md5(info, md5, self._downloaded(info))
        return Verdict(None, info, md5, reason=NO_SUM)

    def _is_put_together(self, content: Content, told: Fingerprint) -> bool:
        """Whether the ETag is that of the bytes here, cut into parts of some likely size."""
        size, etag = told.info.size, told.info.etag
        if told.part_size is not None:
            return etag in self._hashed(content, [told.part_size])[1]
        if not (told.is_joined and is_md5(etag)):
            return False
        lengths = [length for length in self._likely_parts if length < size]
        parted = [PartMd5s(cut(size, length)) for length in lengths]
        if parted:
            self.hash(content, *parted)
        return any(each.swift == etag for each in parted)

    def _downloaded(self, info: ObjectInfo) -> str:
        sink = _Md5Sink(self._throttle, self._stopped)
        if info.size:
            self._store.get_range(info.key, Extent(0, info.size), sink, if_match=info.etag)
        with self._lock:
            self.counts.downloaded_bytes += info.size
        return sink.hexdigest()

    def _found(self, content: Content, verdict: Verdict) -> tuple[Verdict, Hashed | None]:
        """Return *verdict*, and what is to be remembered of it."""
        if verdict.local_md5 is None:
            return verdict, None
        is_proven = verdict.is_same is True and verdict.remote is not None
        return verdict, Hashed(
            content.name,
            content.stamp,
            verdict.local_md5,
            verdict.remote.etag if is_proven and verdict.remote is not None else None,
            self._now_ns() if is_proven else None,
        )


class _Md5Sink:
    """Takes in a download, and keeps its MD5 only."""

    def __init__(self, throttle: Throttle, stopped: threading.Event) -> None:
        self._throttle = throttle
        self._stopped = stopped
        self.restart()

    def write(self, data: memoryview, /) -> None:
        if self._stopped.is_set():
            raise Stopped
        self._throttle.take(len(data))
        self._digest.update(data)

    def restart(self) -> None:
        self._digest = hashlib.md5(usedforsecurity=False)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _version(listed: ObjectInfo) -> ETag:
    """Return what stands for the version of an object: of what may only look empty, with the time that it is of."""
    return ETag(f"{listed.etag}@{listed.mtime_ns}") if listed.is_doubtful else listed.etag


def _tells(told: Fingerprint) -> bool:
    """Whether anything in *told* may tell the content."""
    means = (told.md5, told.parts, told.part_size, told.is_joined, told.checksums, told.stored_md5)
    return any(means)


def _points(info: ObjectInfo, target: bytes) -> bool:
    """Whether *info* is an empty object that stands for a symbolic link to *target*, as geesefs has it."""
    return not info.size and metadata.decode(info.meta or {}, info.content_type).target == target


def _same(info: ObjectInfo, md5: str | None) -> Verdict:
    return Verdict(True, info, md5, md5)


def _differs(info: ObjectInfo, md5: str) -> Verdict:
    return Verdict(False, info, md5, reason="other bytes than at the store")


def _by_md5(info: ObjectInfo, md5: str, told: str) -> Verdict:
    if md5 == told:
        return _same(info, md5)
    return Verdict(False, info, md5, told, reason="other bytes than at the store")
