"""A store in this process's memory: the verified fake, which passes the same suite as the real ones."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from cachefs.core.errors import BadKey, Changed, Fault, NotFound
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.pages import Pages
from cachefs.remote.store import Body, Capabilities, Ledger, Sink, Support

_ALL = Capabilities(
    conditional_put=Support.ENFORCED,
    conditional_create=Support.ENFORCED,
    conditional_multipart=Support.ENFORCED,
    conditional_delete=Support.ENFORCED,
    conditional_copy=Support.ENFORCED,
    copy=Support.ENFORCED,
    writable=True,
)
_CHUNK = 2**20
_LONGEST_KEY = 1024


@dataclass(frozen=True, slots=True)
class _Stored:
    content: bytes
    info: ObjectInfo


class MemoryStore:
    """Objects in a dictionary, gone with the process.

    ETags are the MD5 of the content, and times whole seconds, as S3 has them. Conditions are atomic.
    *page_size* is how many objects and prefixes a page of a listing holds.
    """

    def __init__(self, *, page_size: int = 1000, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._page_size = page_size
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._objects: dict[Key, _Stored] = {}
        self._requests: Counter[str] = Counter()
        self._capabilities = Capabilities()

    @property
    def capabilities(self) -> Capabilities:
        """All unknown until :meth:`probe` ran, and all enforced then."""
        return self._capabilities

    @property
    def description(self) -> str:
        """``memory://``."""
        return "memory://"

    @property
    def requests(self) -> Mapping[str, int]:
        """How often each operation was asked for (``list`` counts pages)."""
        with self._lock:
            return dict(self._requests)

    def check(self) -> None:
        """Do nothing: the bucket is always there."""
        self._count("check")

    def check_key(self, key: Key) -> None:
        """Raise ``BadKey`` for what is empty or too long."""
        _require_bearable(key)

    def probe(self) -> Capabilities:
        """Return what this store honours: everything."""
        self._count("probe")
        self._capabilities = _ALL
        return _ALL

    def head(self, key: Key) -> ObjectInfo:
        """Return what is at *key*."""
        self._count("head")
        with self._lock:
            return self._get(key).info

    def fingerprint(self, key: Key) -> Fingerprint:
        """Return what is at *key*, with its MD5, which is the ETag."""
        self._count("fingerprint")
        with self._lock:
            info = self._get(key).info
        return Fingerprint(info, md5=info.etag)

    def list(self, prefix: Key, *, deep: bool = False) -> Pages:
        """Yield the pages of the listing; each sees the store as it is when that page is asked for."""

        def fetch(after: str | None) -> tuple[Listing, str | None]:
            self._count("list")
            return self._page(prefix, after, deep=deep)

        return Pages(fetch)

    def overview(self, prefix: Key) -> Iterator[Listing]:
        """As :meth:`list`: it tells all."""
        return self.list(prefix, deep=True)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """Write the bytes of *extent* into *into*."""
        self._count("get_range")
        with self._lock:
            stored = self._get(key)
        if stored.info.etag != if_match:
            raise Changed(f"{key!r} is another version")
        if not 0 <= extent.start <= extent.stop <= stored.info.size:
            raise Fault(f"{key!r} does not reach so far")
        view = memoryview(stored.content)[extent.start : extent.stop]
        for start in range(0, len(view), _CHUNK):
            into.write(view[start : start + _CHUNK])
        return stored.info

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """Store *body*, read outside of the lock, in one step."""
        self._count("put")
        _require_bearable(key)
        content = _content(body)
        with self._lock:
            self._require(key, if_match)
            return self._store(key, content, meta, content_type)

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        """Copy in one step."""
        self._count("copy")
        _require_bearable(target)
        with self._lock:
            stored = self._get(source)
            self._require(source, if_match)
            self._require(target, replaces)
            info = stored.info
            kept = content_type or info.content_type
            return self._store(target, stored.content, info.meta or {}, kept)

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """Replace the metadata; the ETag, which is the content's, stays."""
        self._count("set_meta")
        with self._lock:
            stored = self._get(key)
            self._require(key, if_match)
            kept = content_type or stored.info.content_type
            return self._store(key, stored.content, meta, kept)

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """Remove the object; one that is not there is no error, unless a version was named."""
        self._count("delete")
        with self._lock:
            if if_match is not None:
                self._get(key)
                self._require(key, if_match)
            self._objects.pop(key, None)

    def keep_ledger(self, ledger: Ledger) -> None:
        """Do nothing: a put that ends early leaves nothing here."""

    def abandon(self, key: Key, work: str) -> None:
        """Do nothing: there are no works."""

    def close(self) -> None:
        """Do nothing: the objects stay as long as this object does."""

    def _count(self, operation: str) -> None:
        with self._lock:
            self._requests[operation] += 1

    def _get(self, key: Key) -> _Stored:
        if key not in self._objects:
            raise NotFound(f"{key!r} is not there")
        return self._objects[key]

    def _require(self, key: Key, etag: ETag | None) -> None:
        there = self._objects[key].info.etag if key in self._objects else None
        if there != etag:
            raise Changed(f"{key!r} is another version")

    def _store(
        self, key: Key, content: bytes, meta: Mapping[str, str], content_type: str | None
    ) -> ObjectInfo:
        info = ObjectInfo(
            key=key,
            size=len(content),
            etag=ETag(hashlib.md5(content, usedforsecurity=False).hexdigest()),
            mtime_ns=self._now_ns() // 10**9 * 10**9,
            content_type=content_type or "binary/octet-stream",
            meta=dict(meta),
            is_md5=True,
        )
        self._objects[key] = _Stored(content, info)
        return info

    def _page(self, prefix: Key, after: str | None, *, deep: bool) -> tuple[Listing, str | None]:
        objects: list[ObjectInfo] = []
        prefixes: list[Key] = []
        with self._lock:
            keys = sorted((key for key in self._objects if key.startswith(prefix)), key=_order)
            last = after
            for key in keys:
                slash = -1 if deep else key.find("/", len(prefix))
                shown = Key(key[: slash + 1]) if slash >= 0 else key
                if last is not None and _order(shown) <= _order(last):
                    continue
                if len(objects) + len(prefixes) == self._page_size:
                    return Listing(tuple(objects), tuple(prefixes)), last
                last = shown
                if slash >= 0:
                    prefixes.append(shown)
                else:
                    info = self._objects[key].info
                    objects.append(replace(info, content_type=None, meta=None))
        return Listing(tuple(objects), tuple(prefixes)), None


def _order(key: str) -> bytes:
    """Return the bytes by which listings are sorted."""
    return key.encode("utf-8", "surrogateescape")


def _require_bearable(key: Key) -> None:
    if not key:
        raise BadKey("an object needs a key")
    if len(key.encode("utf-8", "surrogateescape")) > _LONGEST_KEY:
        raise BadKey(f"the key is longer than {_LONGEST_KEY} bytes")


def _content(body: Body) -> bytes:
    reader = body.reader(Extent(0, body.size))
    chunks = []
    while chunk := reader.read(_CHUNK):
        chunks.append(chunk)
    content = b"".join(chunks)
    if len(content) != body.size:
        raise Fault(f"the body has {len(content)} bytes and not {body.size}")
    return content
