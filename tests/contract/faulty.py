"""A store that fails as it is told to, before it acts or after."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from cachefs.core.errors import Fault, StoreError
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.pages import Pages
from cachefs.remote.store import Body, Capabilities, Ledger, ObjectStore, Sink

_T = TypeVar("_T")


@dataclass
class Faulty:
    """What is to go wrong: each request takes the next error of its list, until there is none."""

    before: list[StoreError] = field(default_factory=list)
    """Raised in place of acting."""
    after: list[StoreError] = field(default_factory=list)
    """Raised although the store acted: the answer was lost."""
    each: int = 0
    """How often every single request fails first."""
    asked: list[str] = field(default_factory=list)
    """Every request, in order."""
    _left: int = 0

    @classmethod
    def times(cls, each: int) -> "Faulty":
        """A store of which every request fails so often before it succeeds."""
        return cls(each=each, _left=each)

    def run(self, operation: str, call: Callable[[], _T]) -> _T:
        """Do *call*, unless it is to fail."""
        self.asked.append(operation)
        if self.before:
            raise self.before.pop(0)
        if self._left:
            self._left -= 1
            raise Fault("told to fail")
        self._left = self.each
        result = call()
        if self.after:
            raise self.after.pop(0)
        return result


class FaultyStore:
    """*store*, with faults."""

    def __init__(self, store: ObjectStore, faulty: Faulty) -> None:
        self._store = store
        self._faulty = faulty

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    @property
    def description(self) -> str:
        return self._store.description

    def check(self) -> None:
        self._faulty.run("check", self._store.check)

    def check_key(self, key: Key) -> None:
        self._store.check_key(key)

    def probe(self) -> Capabilities:
        return self._faulty.run("probe", self._store.probe)

    def head(self, key: Key) -> ObjectInfo:
        return self._faulty.run("head", lambda: self._store.head(key))

    def fingerprint(self, key: Key) -> Fingerprint:
        return self._faulty.run("fingerprint", lambda: self._store.fingerprint(key))

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        return _FaultyPages(self._store.list(prefix, deep=deep), self._faulty)

    def overview(self, prefix: Key) -> Iterator[Listing]:
        return _FaultyPages(self._store.overview(prefix), self._faulty)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        return self._faulty.run(
            "get_range", lambda: self._store.get_range(key, extent, into, if_match=if_match)
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
        return self._faulty.run(
            "put",
            lambda: self._store.put(
                key, body, meta=meta, content_type=content_type, if_match=if_match
            ),
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
        return self._faulty.run(
            "copy",
            lambda: self._store.copy(
                source,
                target,
                if_match=if_match,
                replaces=replaces,
                content_type=content_type,
            ),
        )

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        return self._faulty.run(
            "set_meta",
            lambda: self._store.set_meta(key, meta, content_type=content_type, if_match=if_match),
        )

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        self._faulty.run("delete", lambda: self._store.delete(key, if_match=if_match))

    def keep_ledger(self, ledger: Ledger) -> None:
        self._store.keep_ledger(ledger)

    def abandon(self, key: Key, work: str) -> None:
        self._faulty.run("abandon", lambda: self._store.abandon(key, work))

    def close(self) -> None:
        self._store.close()


class _FaultyPages(Pages):
    def __init__(self, pages: Iterator[Listing], faulty: Faulty) -> None:
        self._pages, self._faulty = pages, faulty

    @property
    def done(self) -> bool:
        return isinstance(self._pages, Pages) and self._pages.done

    def __next__(self) -> Listing:
        return self._faulty.run("list", lambda: next(self._pages))
