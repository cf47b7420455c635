"""A part of a store as a store: what lies below a prefix."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.pages import mapped
from cachefs.remote.store import Body, Capabilities, Ledger, ObjectStore, Sink
from cachefs.remote.works import KeyedLedger


class Scoped:
    """What of *store* lies below *prefix* (which ends in ``/``), with the prefix taken off the keys.

    *origin* is the prefix of the sources of :meth:`copy`, where they lie in another bucket; None: *prefix*.
    """

    def __init__(self, store: ObjectStore, prefix: str, *, origin: str | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._origin = prefix if origin is None else origin

    @property
    def capabilities(self) -> Capabilities:
        """The store's own."""
        return self._store.capabilities

    @property
    def description(self) -> str:
        """The store's own, with the prefix."""
        return f"{self._prefix.rstrip('/')} in {self._store.description}"

    def check(self) -> None:
        """As the store's. A prefix below which nothing lies is fine."""
        self._store.check()

    def check_key(self, key: Key) -> None:
        """As the store's, below the prefix."""
        self._store.check_key(self._outer(key))

    def probe(self) -> Capabilities:
        """As the store's."""
        return self._store.probe()

    def head(self, key: Key) -> ObjectInfo:
        """As the store's."""
        return self._inner(self._store.head(self._outer(key)))

    def fingerprint(self, key: Key) -> Fingerprint:
        """As the store's."""
        found = self._store.fingerprint(self._outer(key))
        return replace(found, info=self._inner(found.info))

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        """As the store's. The marker of the prefix itself, which has no key in here, is left out."""
        return mapped(self._store.list(self._outer(prefix), deep=deep), self._listing)

    def overview(self, prefix: Key) -> Iterator[Listing]:
        """As the store's, like :meth:`list`."""
        return mapped(self._store.overview(self._outer(prefix)), self._listing)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """As the store's."""
        return self._inner(
            self._store.get_range(self._outer(key), extent, into, if_match=if_match)
        )

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """As the store's."""
        return self._inner(
            self._store.put(
                self._outer(key), body, meta=meta, content_type=content_type, if_match=if_match
            )
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
        """As the store's."""
        outer = self._outer
        return self._inner(
            self._store.copy(
                Key(self._origin + source),
                outer(target),
                if_match=if_match,
                replaces=replaces,
                content_type=content_type,
            )
        )

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """As the store's."""
        return self._inner(
            self._store.set_meta(
                self._outer(key), meta, content_type=content_type, if_match=if_match
            )
        )

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """As the store's."""
        self._store.delete(self._outer(key), if_match=if_match)

    def keep_ledger(self, ledger: Ledger) -> None:
        """As the store's; *ledger* gets keys without the prefix."""
        cut = len(self._prefix)
        self._store.keep_ledger(KeyedLedger(ledger, lambda key: Key(key[cut:])))

    def abandon(self, key: Key, work: str) -> None:
        """As the store's."""
        self._store.abandon(self._outer(key), work)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _outer(self, key: Key) -> Key:
        return Key(self._prefix + key)

    def _inner(self, info: ObjectInfo) -> ObjectInfo:
        return replace(info, key=Key(info.key.removeprefix(self._prefix)))

    def _listing(self, page: Listing) -> Listing:
        cut = len(self._prefix)
        return Listing(
            tuple(self._inner(info) for info in page.objects if len(info.key) > cut),
            tuple(Key(prefix[cut:]) for prefix in page.prefixes),
        )
