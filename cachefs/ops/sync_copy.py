"""Copying one object from one bucket to another: inside of the server where one server has both, else through here.

Nothing is overwritten but the version that the target's listing showed, and nothing is copied but one version of the
source. A source that changes while it is copied is copied again.
"""

import hashlib
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from cachefs.core.errors import Changed, Fault, NotFound, StoreError, Unsupported
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint, stored_md5
from cachefs.core.mediatypes import guessed
from cachefs.core.metadata import DIRECTORY_TYPE
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.engine.body import BytesBody
from cachefs.ops.events import Failed
from cachefs.ops.sync_body import (
    IN_MEMORY,
    Collected,
    RemoteBody,
    SourceFailed,
    SourceFaulted,
    Throttled,
)
from cachefs.ops.sync_plan import Difference
from cachefs.ops.throttle import Throttle
from cachefs.remote.headers import of_user
from cachefs.remote.store import Body, ObjectStore, UploadPaused

_TRIES: Final = 5
"""So often a source may change while it is copied."""
_BOUND: Final = frozenset({":x-amz-storage-class", ":x-amz-tagging-count"})
"""Of how an object is served, what belongs to the store that it is in."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A source is at the target now."""

    key: Key
    size: int
    reason: str
    etag: ETag
    """Of the new version at the target."""


@dataclass(frozen=True, slots=True)
class Vanished:
    """A source that was listed is there no more. The next run finds what is left of it at the target."""

    key: Key


class _Moved(Exception):
    """The source is another version than the one that was to be copied, or gone."""


class Begun(Protocol):
    """Knows across kills which copies have begun. May be used from several threads."""

    def begin(self, key: Key) -> None:
        """Note that something is about to be stored under *key*."""
        ...

    def end(self, key: Key) -> None:
        """Forget that: the source still had the same afterwards."""
        ...


class Copier:
    """Copies objects from *source* to *target*; may be used from several threads.

    *is_within*: the target's own ``copy`` takes its sources from the source. *hash_first*: the source is so near that
    its large objects are read once more beforehand, for the sake of their MD5.
    """

    def __init__(
        self,
        source: ObjectStore,
        target: ObjectStore,
        *,
        is_within: bool,
        hash_first: bool = False,
        throttle: Throttle,
        begun: Begun,
    ) -> None:
        self._source = source
        self._begun = begun
        self._target = target
        self._is_within = is_within
        self._hash_first = hash_first
        self._throttle = throttle
        self._ended = threading.Event()

    def stop(self) -> None:
        """Have every copy that is under way end soon. What the target has of large ones stays there for the next run."""
        self._ended.set()
        self._throttle.end()

    def copied(self, wanted: Difference) -> Copied | Vanished | Failed | None:
        """Make the target's version of one key that of the source. None: the job was stopped before it was done."""
        assert wanted.source is not None
        version, replaces = wanted.source, wanted.target
        self._begun.begin(wanted.key)
        try:
            for _ in range(_TRIES):
                try:
                    stored = self._once(wanted.key, version, wanted.size, replaces)
                except _Moved:
                    stored = None
                try:
                    now = self._source.head(wanted.key)
                except NotFound:
                    # Whatever is at the target was listed as the source's, or is a copy of a version that was there.
                    self._begun.end(wanted.key)
                    return Vanished(wanted.key)
                if stored is not None and now.etag == version:
                    self._begun.end(wanted.key)
                    return Copied(wanted.key, now.size, wanted.reason, stored.etag)
                version, replaces = now.etag, stored.etag if stored else replaces
                wanted = _resized(wanted, now)
        except UploadPaused:
            return None
        except StoreError as error:
            return Failed(wanted.key, error)
        return Failed(wanted.key, Changed(f"it changed {_TRIES} times while it was copied"))

    def _once(self, key: Key, version: ETag, size: int, replaces: ETag | None) -> ObjectInfo:
        """Copy one version over another. Raise :class:`_Moved` if it is not the source's any more."""
        if self._is_within:
            with suppress(Unsupported):  # a large object that this server only joins as it is read
                return self._within(key, version, replaces)
        if size > IN_MEMORY:
            return self._streamed(key, version, replaces)
        sink = Collected()
        try:
            info = self._source.get_range(
                key,
                Extent(0, size),
                Throttled(sink, self._throttle, self._ended),
                if_match=version,
            )
        except (Changed, NotFound) as error:
            raise _Moved from error
        if info.size != size:
            raise _Moved
        body = BytesBody(bytes(sink.content))
        return self._put(body, info, replaces)

    def _within(self, key: Key, version: ETag, replaces: ETag | None) -> ObjectInfo:
        try:
            return self._target.copy(key, key, if_match=version, replaces=replaces)
        except (Changed, NotFound) as error:
            self._require_same(key, version, error)
            there = self._overtaken(key, error)
            # An answer was lost, and the request repeated: it found its own work.
            if there.etag == version and there.etag != replaces:
                return there
            raise _overtaken(key) from error

    def _streamed(self, key: Key, version: ETag, replaces: ETag | None) -> ObjectInfo:
        try:
            told = self._source.fingerprint(key)
        except NotFound as error:
            raise _Moved from error
        if told.info.etag != version:
            raise _Moved
        body = self._body(told)
        if self._hash_first and body.md5 is None:
            body.md5 = hashed(self._body(told))
        try:
            stored = self._put(body, told.info, replaces)
        except SourceFaulted as failure:
            raise failure.error from None
        except SourceFailed as failure:
            if isinstance(failure.error, Changed | NotFound):
                raise _Moved from None
            raise failure.error from None
        self._prove(stored, body)
        return stored

    def _body(self, told: Fingerprint) -> RemoteBody:
        return RemoteBody(self._source, told, throttle=self._throttle, ended=self._ended)

    def _put(self, body: Body, info: ObjectInfo, replaces: ETag | None) -> ObjectInfo:
        meta = {name: value for name, value in (info.meta or {}).items() if name not in _BOUND}
        kind = info.content_type or _usual_type(info.key)
        try:
            return self._target.put(
                info.key, body, meta=meta, content_type=kind, if_match=replaces
            )
        except Changed as error:
            there = self._overtaken(info.key, error)
            if _is_it(there, body, meta) and there.etag != replaces:
                return there
            raise _overtaken(info.key) from error

    def _require_same(self, key: Key, version: ETag, error: StoreError) -> None:
        """Raise :class:`_Moved` unless the source is still that version."""
        try:
            now = self._source.head(key)
        except NotFound:
            raise _Moved from error
        if now.etag != version:
            raise _Moved from error

    def _overtaken(self, key: Key, error: StoreError) -> ObjectInfo:
        """Return what is at the target, where something else was expected."""
        try:
            return self._target.head(key)
        except NotFound:
            raise _overtaken(key) from error

    def _prove(self, stored: ObjectInfo, body: RemoteBody) -> None:
        """Raise ``Fault``, and take away what was stored, if it is not what the source says of its content."""
        is_right = body.is_as_told()
        if (
            is_right is None and body.md5 is not None
        ):  # too far out of order to be summed on its way
            there = Fingerprint(stored)
            is_right = body.md5 == hashed(
                RemoteBody(self._target, there, throttle=self._throttle, ended=self._ended)
            )
        if is_right is False:
            with suppress(StoreError):
                self._target.delete(stored.key, if_match=stored.etag)
            raise Fault(f"{stored.key!r} came otherwise than its source says, and was not kept")


def _usual_type(key: Key) -> str:
    """Return the type of what has none: a file that another program wrote into a directory, or the directory."""
    return DIRECTORY_TYPE if key.endswith("/") else guessed(key.rpartition("/")[2])


def hashed(body: RemoteBody) -> str:
    """Return the MD5 of all bytes of *body*, read one after the other."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        for start in range(0, body.size, IN_MEMORY):
            reader = body.reader(Extent(start, min(start + IN_MEMORY, body.size)))
            digest.update(reader.read())
    except (SourceFaulted, SourceFailed) as failure:
        raise failure.error from None
    return digest.hexdigest()


def _is_it(there: ObjectInfo, body: Body, meta: Mapping[str, str]) -> bool:
    """Whether what is at the target can only be what was put there: its answer was lost, and the put repeated."""
    told = there.meta or {}
    if body.md5 is None or there.size != body.size:
        return False
    is_same = there.etag == body.md5 or stored_md5(told) == body.md5
    return is_same and all(told.get(name) == value for name, value in of_user(meta).items())


def _overtaken(key: Key) -> Changed:
    return Changed(
        f"{key!r} was changed at the target meanwhile, and left as it is — compare again"
    )


def _resized(wanted: Difference, now: ObjectInfo) -> Difference:
    return Difference(wanted.kind, wanted.key, now.size, now.etag, wanted.target, wanted.reason)
