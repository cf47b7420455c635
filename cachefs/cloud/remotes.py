"""Where the files of a cloud manager are uploaded to: objects named by their hashes, below a prefix of some store."""

import hashlib
import logging
import threading
from typing import BinaryIO

from cachefs.config import MountConfig, current, mount_config, read_config_file
from cachefs.core.errors import Changed, Damaged, Fault, UsageError
from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.engine.body import FileBody
from cachefs.local.catalogue import Copy, Known
from cachefs.local.holdings import Part
from cachefs.remote.open import open_store
from cachefs.remote.retry import Retrying

_CHUNK = 2**20
_log = logging.getLogger(__name__)


class Remote:
    """One place where files are uploaded to: opened when it is asked for something, by each process anew."""

    def __init__(self, text: str, timeout_s: float | None) -> None:
        self._environment = current()
        self._config: MountConfig = mount_config(
            text, None, (), file=read_config_file(self._environment), environment=self._environment
        )
        if not self._config.source.bucket:
            raise UsageError(f"the remote {text} names no bucket")
        self.timeout_s = self._config.timeout_s if timeout_s is None else timeout_s
        self.name = text.rstrip("/")
        self.error: str | None = None
        """Why it failed last; None: it did not since it last answered."""
        self._lock = threading.Lock()
        self._store: Retrying | None = None
        self._inherited: Retrying | None = None
        """A forked child's: the parent's, which it must neither use nor close."""
        self._is_probed = False
        self._is_closed = False
        self._bodies: set[FileBody] = set()

    def put(self, known: Known, file: BinaryIO) -> tuple[ETag, bool]:
        """Store the bytes of *file*, or find them there already. Return the version, and whether they were sent.

        Raise ``Damaged`` if they are not those of the hash, ``UploadStopped`` when :meth:`stop` was called.
        """
        body = FileBody(file.fileno(), known.size)
        body.md5 = _checked_md5(file, known)
        with self._lock:
            if self._is_closed:
                body.pause()
            self._bodies.add(body)
        try:
            return self._put(known, body)
        finally:
            with self._lock:
                self._bodies.discard(body)

    def _put(self, known: Known, body: FileBody) -> tuple[ETag, bool]:
        store, key, meta = self._writable(), Key(known.hash), {"sha256": known.hash}
        try:
            return store.put(key, body, meta=meta, if_match=None).etag, True
        except Changed:
            there = store.head(key)
        if there.size == known.size and _fetched_hash(store, key, there.etag, known) == known.hash:
            return there.etag, False
        _log.warning("%s has other bytes under %s: they are replaced", self.name, known.hash)
        return store.put(key, body, meta=meta, if_match=there.etag).etag, True

    def get(self, copy: Copy, known: Known, part: Part) -> ObjectInfo:
        """Fill *part* with a copy, unless it has another size. Return what there is. Raise ``NotFound`` if there is none."""
        part.restart()
        there = self._opened().head(Key(copy.key))
        if there.size == known.size and known.size:
            extent = Extent(0, known.size)
            self._opened().get_range(Key(copy.key), extent, part, if_match=there.etag)
        return there

    def _opened(self) -> Retrying:
        with self._lock:
            if self._is_closed:
                raise Fault("the cloud manager is closed")
            if self._store is None:
                self._store = open_store(
                    self._config.source,
                    self._config.store,
                    timeout_s=self.timeout_s,
                    environ=self._environment.variables,
                )
            return self._store

    def _writable(self) -> Retrying:
        """Return the store, of which is known how it is written to."""
        store = self._opened()
        with self._lock:
            if not self._is_probed:
                store.check()
                store.probe()
                self._is_probed = True
        return store

    def close(self) -> None:
        """Release the connections, and end waits and uploads."""
        with self._lock:
            self._is_closed = True
            for body in self._bodies:
                body.pause()
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def go_on_as_child(self) -> None:
        """Leave the connections to the parent, and make others."""
        self._lock, self._bodies = threading.Lock(), set()
        self._inherited, self._store, self._is_probed = self._store, None, False


class _Hashing:
    """A sink that only sums."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def write(self, data: memoryview, /) -> None:
        self.digest.update(data)

    def restart(self) -> None:
        self.digest = hashlib.sha256()


def _fetched_hash(store: Retrying, key: Key, etag: ETag, known: Known) -> str:
    """Return the hash of what the store has."""
    sink = _Hashing()
    if known.size:
        store.get_range(key, Extent(0, known.size), sink, if_match=etag)
    return sink.digest.hexdigest()


def _checked_md5(file: BinaryIO, known: Known) -> str:
    """Return the MD5 of a file in the storage. Raise ``Damaged`` if it is not what it is named for."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
        md5.update(chunk)
    if sha256.hexdigest() != known.hash:
        raise Damaged("its bytes in the storage are damaged")
    return md5.hexdigest()
