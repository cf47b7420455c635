"""A store in memory that tells of chosen objects what other stores would: ETags that are no MD5, parts, checksums."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.memory import MemoryStore
from cachefs.remote.store import Sink
from tests.contract.bodies import BytesBody


@dataclass(frozen=True)
class Told:
    """What the store has to say of one object."""

    etag: ETag
    said: dict[str, Any]
    """Fields of :class:`Fingerprint`."""


class TellingStore(MemoryStore):
    """Lists in pages of two, so that every test with more files sees several."""

    def __init__(self) -> None:
        super().__init__(page_size=2)
        self.told: dict[str, Told] = {}
        self.before_list: Callable[[], None] = lambda: None
        self.before_fingerprint: Callable[[Key], None] = lambda _: None

    def add(self, key: str, content: bytes, meta: dict[str, str] | None = None) -> ObjectInfo:
        """Put an object, whatever is there."""
        self.delete(Key(key))
        return self.put(Key(key), BytesBody(content), meta=meta or {}, if_match=None)

    def tell(self, key: str, etag: str, **said: object) -> None:
        """Have *etag* and *said* told of the object."""
        self.told[key] = Told(ETag(etag), said)

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:  # type: ignore[override]
        self.before_list()
        for page in super().list(prefix, deep=deep):
            yield replace(page, objects=tuple(map(self._seen, page.objects)))

    def head(self, key: Key) -> ObjectInfo:
        return self._seen(super().head(key))

    def fingerprint(self, key: Key) -> Fingerprint:
        self.before_fingerprint(key)
        found = super().fingerprint(key)
        if key not in self.told:
            return found
        return replace(Fingerprint(self._seen(found.info)), **self.told[key].said)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        told = self.told.get(key)
        wanted = super().head(key).etag if told is not None and if_match == told.etag else if_match
        return super().get_range(key, extent, into, if_match=wanted)

    def _seen(self, info: ObjectInfo) -> ObjectInfo:
        told = self.told.get(info.key)
        return info if told is None else replace(info, etag=told.etag)
