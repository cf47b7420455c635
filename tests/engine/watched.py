"""A store that a test can watch, hold back, and make fail at an exact moment."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.pages import Pages
from cachefs.remote.store import Body, Capabilities, Ledger, ObjectStore, Sink

_T = TypeVar("_T")
_PATIENCE_S = 20


class Gate:
    """Holds the worker thread that comes to it until the test opens it."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        trio.from_thread.run_sync(self.reached.set)
        assert self._opened.wait(_PATIENCE_S), "nobody opened the gate"

    def open(self) -> None:
        """Let everybody through, now and later."""
        self._opened.set()


@dataclass
class Rule:
    """*act* runs in the worker thread, *moment* a matching request, the next *times* of them."""

    moment: str
    operation: str
    act: Callable[[], None]
    key: str | None = None
    times: int = 1


@dataclass(frozen=True)
class Call:
    """One request as it came in."""

    operation: str
    key: str
    if_match: str | None = None
    extent: Extent | None = None


@dataclass
class WatchedStore:
    """*store*, with every request noted, and rules for what happens ``before``, ``during`` and ``after`` one.

    ``during`` is once for each chunk of a fetch, after the file got it.
    """

    store: ObjectStore
    calls: list[Call] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def on(
        self,
        moment: str,
        operation: str,
        act: Callable[[], None],
        *,
        key: str | None = None,
        times: int = 1,
    ) -> None:
        """Have *act* run at that moment."""
        self.rules.append(Rule(moment, operation, act, key, times))

    def fail(
        self,
        moment: str,
        operation: str,
        error: Exception,
        *,
        key: str | None = None,
        times: int = 1,
    ) -> None:
        """Raise *error* at that moment: ``before`` it acts, or ``after``, when only the answer is lost."""

        def raise_it() -> None:
            raise error

        self.on(moment, operation, raise_it, key=key, times=times)

    def gate(self, moment: str, operation: str, *, key: str | None = None, times: int = 1) -> Gate:
        """Return a gate that holds such a request back."""
        gate = Gate()
        self.on(moment, operation, gate, key=key, times=times)
        return gate

    def of(self, operation: str, key: str | None = None) -> list[Call]:
        """Return the requests of that kind so far."""
        with self._lock:
            return [
                call
                for call in self.calls
                if call.operation == operation and key in (None, call.key)
            ]

    def count(self) -> dict[str, int]:
        """Return how many requests of each kind came in since :meth:`forget`."""
        with self._lock:
            kinds = [call.operation for call in self.calls]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self.calls.clear()

    def _meet(self, moment: str, operation: str, key: str) -> None:
        with self._lock:
            matching = [
                rule
                for rule in self.rules
                if rule.times
                and (rule.moment, rule.operation) == (moment, operation)
                and rule.key in (None, key)
            ]
            for rule in matching[:1]:
                rule.times -= 1
        for rule in matching[:1]:
            rule.act()

    def _run(self, call: Call, act: Callable[[], _T]) -> _T:
        with self._lock:
            self.calls.append(call)
        self._meet("before", call.operation, call.key)
        result = act()
        self._meet("after", call.operation, call.key)
        return result

    @property
    def capabilities(self) -> Capabilities:
        return self.store.capabilities

    @property
    def description(self) -> str:
        return self.store.description

    def check(self) -> None:
        self._run(Call("check", ""), self.store.check)

    def check_key(self, key: Key) -> None:
        self.store.check_key(key)

    def probe(self) -> Capabilities:
        return self._run(Call("probe", ""), self.store.probe)

    def head(self, key: Key) -> ObjectInfo:
        return self._run(Call("head", key), lambda: self.store.head(key))

    def fingerprint(self, key: Key) -> Fingerprint:
        return self._run(Call("fingerprint", key), lambda: self.store.fingerprint(key))

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        return _WatchedPages(
            self.store.list(prefix, deep=deep),
            lambda turn: self._run(Call("list", prefix), turn),
        )

    def overview(self, prefix: Key) -> Iterator[Listing]:
        return _WatchedPages(
            self.store.overview(prefix),
            lambda turn: self._run(Call("list", prefix), turn),
        )

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        sink = _WatchedSink(into, lambda: self._meet("during", "get_range", key))
        return self._run(
            Call("get_range", key, if_match, extent),
            lambda: self.store.get_range(key, extent, sink, if_match=if_match),
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
        return self._run(
            Call("put", key, if_match),
            lambda: self.store.put(
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
        return self._run(
            Call("copy", source, if_match),
            lambda: self.store.copy(
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
        return self._run(
            Call("set_meta", key, if_match),
            lambda: self.store.set_meta(key, meta, content_type=content_type, if_match=if_match),
        )

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        self._run(Call("delete", key), lambda: self.store.delete(key, if_match=if_match))

    def keep_ledger(self, ledger: Ledger) -> None:
        self.store.keep_ledger(ledger)

    def abandon(self, key: Key, work: str) -> None:
        self._run(Call("abandon", key), lambda: self.store.abandon(key, work))

    def close(self) -> None:
        self.store.close()


class _WatchedPages(Pages):
    def __init__(
        self,
        pages: Iterator[Listing],
        run: Callable[[Callable[[], Listing]], Listing],
    ) -> None:
        self._pages, self._run = pages, run

    @property
    def done(self) -> bool:
        return isinstance(self._pages, Pages) and self._pages.done

    def __next__(self) -> Listing:
        if self.done:
            raise StopIteration
        return self._run(lambda: next(self._pages))


class _WatchedSink:
    def __init__(self, sink: Sink, seen: Callable[[], None]) -> None:
        self._sink, self._seen = sink, seen

    def write(self, data: memoryview, /) -> None:
        self._sink.write(data)
        self._seen()

    def restart(self) -> None:
        self._sink.restart()
