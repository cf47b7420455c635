"""The audit log: what was done to the bytes and objects of a mount, each with its cause, as JSON lines."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

from cachefs.core.errors import StoreError
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.engine import cause
from cachefs.engine.linefile import LineFile
from cachefs.engine.threads import Threads
from cachefs.remote.store import Body, Capabilities, Ledger, ObjectStore, Sink

_T = TypeVar("_T")
_MILLION: Final = 10**6

Line = Mapping[str, object]


def encode(line: Line) -> str:
    """Return *line* as JSON on one line; ``time_ns`` becomes ``time``, in UTC."""
    time_ns = int(str(line["time_ns"]))
    seconds, rest = divmod(time_ns, 10**9)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    told = {name: value for name, value in line.items() if name != "time_ns"}
    return json.dumps({"time": f"{moment}.{rest // _MILLION:03d}Z", **told})


class Audit(LineFile[Line]):
    """The file that ``--audit`` names; None: nothing is recorded."""

    def __init__(self, path: Path | None, threads: Threads) -> None:
        super().__init__(path, threads, name="audit log", of="events", encode=encode)

    def record(self, event: str, key: str | None, **more: object) -> None:
        """Record that *event* happened to the object *key*, now and because of what is being done. Any thread."""
        if self.is_on:
            self.note(
                {
                    "time_ns": time.time_ns(),
                    "event": event,
                    "key": key,
                    "cause": cause.current() or None,
                    **more,
                }
            )

    def conflict(self, key: Key, outcome: str) -> None:
        """Record a conflict, and what came of it."""
        self.record("conflict", key, outcome=outcome)


class AuditedStore:
    """*store*, with what changes objects, or brings their bytes, recorded in *audit*: failures, too.

    Of an error its kind is recorded and not its words, which may hold what the store said.
    """

    def __init__(self, store: ObjectStore, audit: Audit) -> None:
        self._store = store
        self._audit = audit

    @property
    def capabilities(self) -> Capabilities:
        """The store's own."""
        return self._store.capabilities

    @property
    def description(self) -> str:
        """The store's own."""
        return self._store.description

    def check(self) -> None:
        """As the store's."""
        self._store.check()

    def check_key(self, key: Key) -> None:
        """As the store's."""
        self._store.check_key(key)

    def probe(self) -> Capabilities:
        """As the store's."""
        return self._store.probe()

    def head(self, key: Key) -> ObjectInfo:
        """As the store's."""
        return self._store.head(key)

    def fingerprint(self, key: Key) -> Fingerprint:
        """As the store's."""
        return self._store.fingerprint(key)

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        """As the store's."""
        return self._store.list(prefix, deep=deep)

    def overview(self, prefix: Key) -> Iterator[Listing]:
        """As the store's."""
        return self._store.overview(prefix)

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """As the store's: a fetch."""
        return self._recorded(
            lambda: self._store.get_range(key, extent, into, if_match=if_match),
            "fetch",
            key,
            etag=if_match,
            start=extent.start,
            bytes=extent.length,
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
        """As the store's: an upload."""
        return self._recorded(
            lambda: self._store.put(
                key, body, meta=meta, content_type=content_type, if_match=if_match
            ),
            "upload",
            key,
            replaces=if_match,
            bytes=body.size,
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
        return self._recorded(
            lambda: self._store.copy(
                source, target, if_match=if_match, replaces=replaces, content_type=content_type
            ),
            "copy",
            target,
            source=source,
            replaces=replaces,
        )

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """As the store's: a change of attributes."""
        return self._recorded(
            lambda: self._store.set_meta(key, meta, content_type=content_type, if_match=if_match),
            "attributes",
            key,
            replaces=if_match,
        )

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """As the store's."""
        self._recorded(
            lambda: self._store.delete(key, if_match=if_match), "delete", key, etag=if_match
        )

    def keep_ledger(self, ledger: Ledger) -> None:
        """As the store's."""
        self._store.keep_ledger(ledger)

    def abandon(self, key: Key, work: str) -> None:
        """As the store's."""
        self._store.abandon(key, work)

    def close(self) -> None:
        """As the store's."""
        self._store.close()

    def _recorded(self, call: Callable[[], _T], event: str, key: Key, **more: object) -> _T:
        began = time.monotonic()
        try:
            result = call()
        except StoreError as error:
            self._audit.record(event, key, **more, **_took(began), error=type(error).__name__)
            raise
        except BaseException:  # called off from this side
            self._audit.record(event, key, **more, **_took(began), error="stopped")
            raise
        if isinstance(result, ObjectInfo) and event != "fetch":
            more["etag"] = result.etag
        self._audit.record(event, key, **more, **_took(began))
        return result


def _took(began: float) -> dict[str, object]:
    return {"seconds": round(time.monotonic() - began, 3)}
