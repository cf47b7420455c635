"""A store that cannot hold two writers apart, as a mount's adapter for such a store uses it."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from cachefs.core import descent
from cachefs.core.errors import Changed, NotFound
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.engine.service import open_service
from cachefs.remote.lines import Lines
from cachefs.remote.memory import MemoryStore, _content
from cachefs.remote.pages import Pages
from cachefs.remote.retry import Retrying
from cachefs.remote.store import Body, Capabilities, Ledger, Sink, Support
from tests.engine.rig import SETTINGS, HurriedTime, Rig
from tests.engine.watched import WatchedStore


class WeakStore:
    """One client of *memory*: it looks before it writes, and then writes whatever is there by then."""

    def __init__(self, memory: MemoryStore) -> None:
        self.memory = memory
        self.in_between: Callable[[], None] | None = None
        """What others do, once, between the look and the write that it is for."""
        self._lines = Lines()

    @property
    def capabilities(self) -> Capabilities:
        return replace(
            self.memory.capabilities,
            conditional_put=Support.IGNORED,
            conditional_create=Support.IGNORED,
            conditional_copy=Support.IGNORED,
            conditional_delete=Support.IGNORED,
        )

    @property
    def description(self) -> str:
        return self.memory.description

    def check(self) -> None:
        self.memory.check()

    def check_key(self, key: Key) -> None:
        self.memory.check_key(key)

    def probe(self) -> Capabilities:
        self.memory.probe()
        return self.capabilities

    def head(self, key: Key) -> ObjectInfo:
        return descent.read(self.memory.head(key))

    def fingerprint(self, key: Key) -> Fingerprint:
        return self.memory.fingerprint(key)

    def list(self, prefix: Key, *, deep: bool = False) -> Pages:
        return self.memory.list(prefix, deep=deep)

    def overview(self, prefix: Key) -> Iterator[Listing]:
        return self.memory.overview(prefix)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        return descent.read(self.memory.get_range(key, extent, into, if_match=if_match))

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        meta = self._lines.grown(key, meta, body.size, self._looked(key, if_match))
        self._let_others()
        with self.memory._lock:
            return descent.read(self.memory._store(key, _content(body), meta, content_type))

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        there = self._looked(target, replaces)
        self._let_others()
        with self.memory._lock:
            found = self.memory._get(source)
            self.memory._require(source, if_match)
            meta = descent.without(found.info.meta)
            meta = self._lines.grown(target, meta, found.info.size, there)
            kind = content_type or found.info.content_type
            return descent.read(self.memory._store(target, found.content, meta, kind))

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        meta = descent.kept(meta, self.head(key))
        found = self.memory.set_meta(key, meta, content_type=content_type, if_match=if_match)
        return descent.read(found)

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        self._lines.removed(key, self.head(key))
        self.memory.delete(key, if_match=if_match)

    def keep_ledger(self, ledger: Ledger) -> None:
        self.memory.keep_ledger(ledger)

    def abandon(self, key: Key, work: str) -> None:
        self.memory.abandon(key, work)

    def close(self) -> None:
        self.memory.close()

    def _looked(self, key: Key, if_match: ETag | None) -> ObjectInfo | None:
        try:
            found = self.head(key)
        except NotFound:
            if if_match is not None:
                raise Changed("it is gone") from None
            return None
        if found.etag != if_match:
            raise Changed("it is another version")
        return found

    def _let_others(self) -> None:
        act, self.in_between = self.in_between, None
        if act is not None:
            act()


@asynccontextmanager
async def weakly_serving(
    cache_dir: Path, memory: MemoryStore, **settings: object
) -> AsyncIterator[tuple[Rig, WeakStore]]:
    """Run a service in front of a weak store; nothing that was said is believed the next time."""
    weak = WeakStore(memory)
    watched = WatchedStore(weak)
    retrying = Retrying(watched, timeout_s=30, pace=HurriedTime().pace())
    chosen = {"metadata_ttl_s": 0, "negative_ttl_s": 0, "timeout_s": 3600, **settings}
    full = replace(SETTINGS, cache_dir=cache_dir, **chosen)  # type: ignore[arg-type]
    async with open_service(full, retrying) as service:
        yield Rig(service, memory, watched, full), weak
