"""Several stores as one: every bucket that the credentials may list is a top directory."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from cachefs.core.errors import NoBucket, NotFound, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.pages import mapped
from cachefs.remote.store import Body, Capabilities, Ledger, ObjectStore, Sink
from cachefs.remote.works import KeyedLedger

_NOTE = "each bucket is probed before the first write to it"


class Buckets:
    """Keys are ``bucket/key``; each bucket has a marker ``bucket/``, which cannot be changed.

    *names* asks which buckets there are, *open_bucket* opens one. A bucket that is not there (any more) is a
    directory that is not there: ``NotFound``, and an empty listing. Nothing can be stored beside the
    buckets, and nothing copied from one to the other: ``Unsupported``.
    """

    def __init__(
        self,
        names: Callable[[], Sequence[str]],
        open_bucket: Callable[[str], ObjectStore],
        *,
        description: str,
    ) -> None:
        self._names = names
        self._open_bucket = open_bucket
        self._description = description
        self._lock = threading.Lock()
        self._stores: dict[str, ObjectStore] = {}
        self._probed: set[str] = set()
        self._ledger: Ledger | None = None

    @property
    def capabilities(self) -> Capabilities:
        """Unknown as a whole: buckets may differ."""
        return Capabilities(is_many=True, notes=(_NOTE,))

    @property
    def description(self) -> str:
        """What was given."""
        return self._description

    def check(self) -> None:
        """Raise unless the buckets may be listed."""
        self._names()

    def check_key(self, key: Key) -> None:
        """As the bucket's, if it was opened before: it takes a request to find out about any other."""
        name, inner = _split(key)
        with self._lock:
            store = self._stores.get(name)
        if store is not None and inner:
            store.check_key(inner)

    def probe(self) -> Capabilities:
        """Ask nothing: each bucket is probed when it is first written to."""
        return self.capabilities

    def head(self, key: Key) -> ObjectInfo:
        """As the bucket's."""
        name, inner = _split(key)
        store = self._bucket(name) if "/" in key else None
        if store is None:
            raise NotFound(f"{key!r} is not there")
        return self._outer(name, store.head(inner)) if inner else _marker(name)

    def fingerprint(self, key: Key) -> Fingerprint:
        """As the bucket's."""
        name, inner = _split(key)
        store = self._bucket(name) if inner else None
        if store is None:
            raise NotFound(f"{key!r} is not there")
        found = store.fingerprint(inner)
        return replace(found, info=self._outer(name, found.info))

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        """As the bucket's; at the root, the buckets."""
        if not prefix:
            return self._root(deep=deep)
        name, inner = _split(prefix)
        store = self._bucket(name)
        if store is None:
            return iter(())
        pages = mapped(store.list(inner, deep=deep), lambda page: self._outer_listing(name, page))
        return pages if inner else _with_marker(name, pages)

    def overview(self, prefix: Key) -> Iterator[Listing]:
        """As each bucket's, one after the other in the order of their keys; without the buckets themselves."""
        wanted = [_split(prefix)] if prefix else [(name, Key("")) for name in self._in_order()]
        for name, inner in wanted:
            store = self._bucket(name)
            if store is not None:
                for page in store.overview(inner):
                    yield self._outer_listing(name, page)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """As the bucket's."""
        name, inner = _split(key)
        store = self._bucket(name) if inner else None
        if store is None:
            raise NotFound(f"{key!r} is not there")
        return self._outer(name, store.get_range(inner, extent, into, if_match=if_match))

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """As the bucket's."""
        name, inner, store = self._writable(key)
        return self._outer(
            name,
            store.put(inner, body, meta=meta, content_type=content_type, if_match=if_match),
        )

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        """As the bucket's, within one bucket."""
        name, inner, store = self._writable(target)
        origin, from_key = _split(source)
        if origin != name or not from_key:
            raise Unsupported("nothing can be copied from one bucket to another")
        return self._outer(
            name,
            store.copy(
                from_key, inner, if_match=if_match, replaces=replaces, content_type=content_type
            ),
        )

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """As the bucket's."""
        name, inner, store = self._writable(key)
        return self._outer(
            name, store.set_meta(inner, meta, content_type=content_type, if_match=if_match)
        )

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """As the bucket's."""
        _, inner, store = self._writable(key)
        store.delete(inner, if_match=if_match)

    def keep_ledger(self, ledger: Ledger) -> None:
        """As each bucket's; *ledger* gets keys with the bucket's name."""
        self._ledger = ledger

    def abandon(self, key: Key, work: str) -> None:
        """As the bucket's. With a bucket that is gone its works are."""
        name, inner = _split(key)
        store = self._bucket(name)
        if store is not None:
            store.abandon(inner, work)
        elif self._ledger is not None:
            self._ledger.strike(work)

    def close(self) -> None:
        """Close every bucket that was opened."""
        with self._lock:
            stores = list(self._stores.values())
        for store in stores:
            store.close()

    def _bucket(self, name: str) -> ObjectStore | None:
        with self._lock:
            if name in self._stores:
                return self._stores[name]
        if name not in self._names():
            return None
        with self._lock:
            if name not in self._stores:
                self._stores[name] = self._opened(name)
            return self._stores[name]

    def _opened(self, name: str) -> ObjectStore:
        store = self._open_bucket(name)
        if self._ledger is not None:
            store.keep_ledger(KeyedLedger(self._ledger, lambda key: Key(f"{name}/{key}")))
        return store

    def _writable(self, key: Key) -> tuple[str, Key, ObjectStore]:
        name, inner = _split(key)
        if not inner:
            raise Unsupported("beside the buckets nothing can be stored, changed or removed")
        store = self._bucket(name)
        if store is None:
            raise NoBucket(f"there is no bucket {name!r}")
        # Where writing is refused nothing can be found out: the next write tries again.
        if name not in self._probed and store.probe().writable:
            self._probed.add(name)
        return name, inner, store

    def _root(self, *, deep: bool) -> Iterator[Listing]:
        if not deep:
            yield Listing(prefixes=tuple(Key(f"{name}/") for name in self._names()))
            return
        for name in self._in_order():
            yield from self.list(Key(f"{name}/"), deep=True)

    def _in_order(self) -> Sequence[str]:
        """Return the names of the buckets in the order that their keys have."""
        return sorted(self._names(), key=lambda name: f"{name}/".encode())

    def _outer(self, name: str, info: ObjectInfo) -> ObjectInfo:
        return replace(info, key=Key(f"{name}/{info.key}"))

    def _outer_listing(self, name: str, page: Listing) -> Listing:
        return Listing(
            tuple(self._outer(name, info) for info in page.objects),
            tuple(Key(f"{name}/{prefix}") for prefix in page.prefixes),
        )


def _split(key: Key) -> tuple[str, Key]:
    name, _, inner = key.partition("/")
    return name, Key(inner)


def _marker(name: str) -> ObjectInfo:
    return ObjectInfo(
        key=Key(f"{name}/"),
        size=0,
        etag=ETag("bucket"),
        mtime_ns=0,
        content_type="application/x-directory",
        meta={},
    )


def _with_marker(name: str, pages: Iterator[Listing]) -> Iterator[Listing]:
    """Return the pages of a bucket's listing, its marker the first object of the first."""
    is_first = True

    def change(page: Listing) -> Listing:
        nonlocal is_first
        if not is_first:
            return page
        is_first = False
        return replace(page, objects=(_marker(name), *page.objects))

    return mapped(pages, change)
