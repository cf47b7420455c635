"""The contract that every object store keeps, and what a store can be asked about itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cachefs.core.errors import StoreFull
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo


class Support(StrEnum):
    """How a store treats a request that carries a condition, as the probe saw it."""

    ENFORCED = "enforced"
    IGNORED = "ignored"
    """It answers success whatever the condition says: the adapter checks by HEAD instead."""
    REFUSED = "refused"
    """It answers that it does not know the condition: the adapter checks by HEAD instead."""
    UNKNOWN = "unknown"
    """Not probed (a read-only mount, or no permission to write)."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the store was seen to do. The adapter acts on it; ``status`` shows it."""

    conditional_put: Support = Support.UNKNOWN
    conditional_create: Support = Support.UNKNOWN
    conditional_multipart: Support = Support.UNKNOWN
    conditional_delete: Support = Support.UNKNOWN
    conditional_copy: Support = Support.UNKNOWN
    copy: Support = Support.UNKNOWN
    writable: bool | None = None
    """None: not probed."""
    is_many: bool = False
    """Keys begin with the name of a bucket, and nothing can be copied from one bucket to another."""
    notes: tuple[str, ...] = field(default=())
    """Quirks found, in words for the operator (for instance: If-Match wants the ETag unquoted)."""


def not_tried(reason: StoreFull) -> str:
    """Return the note of a probe that could store nothing because of *reason*."""
    return f"what the store honours could not be tried, so each write is checked by HEAD: {reason}"


class Reader(Protocol):
    """A seekable, readable view of bytes; what SDKs accept as a body."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes, all that are left if *size* is negative."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to *offset* from the start, the position, or the end of the view."""
        ...

    def tell(self) -> int:
        """Return the position in the view."""
        ...


class Body(Protocol):
    """The bytes of one upload, readable from any thread and as often as needed."""

    @property
    def size(self) -> int:
        """Length in bytes, fixed while the upload runs."""
        ...

    @property
    def md5(self) -> str | None:
        """MD5 of all of it, in hexadecimal; None: not known."""
        ...

    def reader(self, extent: Extent) -> Reader:
        """Return a fresh view of *extent*, positioned at its start.

        Its ``read`` may raise :class:`UploadStopped`; the adapter lets that pass through untouched (never
        retried, never wrapped) after it has aborted what it began, unless it is :class:`UploadPaused`.
        """
        ...


class UploadStopped(BaseException):
    """The upload was called off from our side, because the program writes again or the mount ends.

    A BaseException, like a cancellation, so that no adapter's or SDK's ``except Exception`` takes it for a
    fault of the network and tries again.
    """


class UploadPaused(UploadStopped):
    """The upload was called off only because this daemon ends: what the store has of it waits for the next one."""


class Ledger(Protocol):
    """Where a store notes what a large upload or copy has there before it is an object.

    A *work* is a name for that in the store's own words. Called from the threads that upload.
    """

    def note(self, key: Key, work: str, *, replaces: str | None = None) -> None:
        """Keep *work*, meant for *key*, until it is struck. Returns when neither a kill nor a power cut loses it.

        *replaces*: another name of the same, struck in the same moment.
        Where this machine's disk does not take it, it is not kept, and nothing raised: the upload is worth more.
        """
        ...

    def strike(self, work: str) -> None:
        """Forget *work*. Nothing is wrong if it was never noted."""
        ...

    def noted(self, key: Key) -> Sequence[str]:
        """Return what is noted for *key*, the oldest first."""
        ...


class Sink(Protocol):
    """Where the bytes of a fetch go, in order."""

    def write(self, data: memoryview, /) -> None:
        """Take the next bytes. Whatever this raises ends the fetch and passes through untouched."""
        ...

    def restart(self) -> None:
        """Forget what was taken: the fetch begins again at the start of its extent."""
        ...


class ObjectStore(Protocol):
    """A flat set of named objects in one bucket (or below one prefix, or in all buckets).

    Every method blocks, and may be called from several threads at once. Each raises only ``StoreError``s:
    ``NotFound``, ``Changed``, ``Refused`` and its children (asking again will not help), ``Fault`` and its
    children (it may). ``NotFound`` is raised only on a definite answer of the store; a fault is never
    reported as absence, and a listing that fails half way raises, so that what was yielded before is never
    taken for the whole. No method retries; :class:`cachefs.remote.retry.Retrying` does.

    Names in ``meta`` that begin with a colon are headers that the object is served with, no user metadata
    (:mod:`cachefs.remote.headers`): :meth:`put` stores those it is given, :meth:`copy` and :meth:`set_meta`
    leave those that are there.

    Keys that end in ``/`` are directory markers. A store that spells markers otherwise (Swift's
    ``application/directory`` objects without the slash) translates in both directions.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What :meth:`probe` found; all unknown before it ran."""
        ...

    @property
    def description(self) -> str:
        """One phrase for messages, without secrets: ``s3://photos at http://127.0.0.1:9000``."""
        ...

    def check(self) -> None:
        """Raise unless the bucket exists and may be listed. One cheap request."""
        ...

    def check_key(self, key: Key) -> None:
        """Raise ``BadKey`` if this store can have no object under *key*. Asks nobody."""
        ...

    def probe(self) -> Capabilities:
        """Find out by a probe object what the store honours, remember it, and return it.

        Leaves nothing behind. Where writing is denied, returns with ``writable=False``; where there is no space
        for it, with all unknown, and a note.
        """
        ...

    def head(self, key: Key) -> ObjectInfo:
        """Return what is at *key*, with its metadata."""
        ...

    def fingerprint(self, key: Key) -> Fingerprint:
        """Return what is at *key*, with all that the store tells of its content.

        A HEAD; of what is made of parts, some more requests at most. No content is read.
        """
        ...

    def list(self, prefix: Key, *, deep: bool = False) -> Iterator[Listing]:
        """Yield what lies below *prefix* (empty, or ending in ``/``), a page at a time.

        Not deep: objects directly below (the marker ``prefix`` itself included, if it exists), and the
        prefixes (ending in ``/``) of the directories directly below. Deep: every object below.
        A prefix below which nothing lies yields no object.
        """
        ...

    def overview(self, prefix: Key) -> Iterator[Listing]:
        """Yield every object below *prefix*, as the listing alone has it: what that does not tell is doubtful.

        For those who look at all there is, and remember what they have found out.
        """
        ...

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """Write the bytes of *extent*, all of them and in order, into *into*.

        Raise ``Changed`` if the object is no longer the version *if_match* names, ``Fault`` if the body is
        shorter or longer than it must be. Returns what the answer's headers said, metadata included;
        ``size`` is that of the whole object.
        """
        ...

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """Store *body* as one new version, visible wholly or not at all.

        *if_match* names the version that it replaces; None: there must be none. Raise ``Changed``
        otherwise: where the store enforces conditions this is atomic, elsewhere it is checked by HEAD
        just before (see :class:`Capabilities`). The returned ETag is what a HEAD would say.
        """
        ...

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        """Copy within the store, bytes and metadata, of any size.

        *if_match* names the version of *source*; *replaces* that of *target* (None: must not exist), as in
        :meth:`put`. *content_type*: the copy's; None: as the source's.
        """
        ...

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """Replace the whole user metadata of *key*, leaving its bytes."""
        ...

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """Remove the object. Raise ``NotFound`` only if the store says so; many do not."""
        ...

    def keep_ledger(self, ledger: Ledger) -> None:
        """Note in *ledger* what uploads and copies have at the store before they are objects.

        Called before anything is written. Without it a store ends in :meth:`close` what is unfinished. With it,
        an upload that failed, was paused, or whose process was killed is continued by the next :meth:`put` of the
        same bytes and metadata to the same key; :meth:`put` ends those that are for other bytes.
        """
        ...

    def abandon(self, key: Key, work: str) -> None:
        """End *work*, which the ledger has for *key*: remove what it has at the store, and strike it.

        The object that it has become meanwhile stays. Nothing happens while this process goes on with it, and
        nothing as long as the store might still make an object of it. Raises what stands in the way.
        """
        ...

    def close(self) -> None:
        """Release connections. Nothing else may be called afterwards."""
        ...
