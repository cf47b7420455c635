"""One file, link or directory on its way to the store: read in one piece, compared, stored on a condition."""

import errno
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from cachefs.core import metadata
from cachefs.core.errors import Changed, Denied, NotFound
from cachefs.core.fingerprint import is_md5
from cachefs.core.types import ETag, Key, Kind, ObjectInfo, Token
from cachefs.engine.body import BytesBody
from cachefs.local.hashed import Hashed, HashMemory, Stamp
from cachefs.local.pushed import PushMemory, Stored
from cachefs.ops.attributes import Attributes, attrs_of, tells_otherwise, type_kept, type_of
from cachefs.ops.compare import Comparer, Moved, Patience
from cachefs.ops.reading import Content, Reading
from cachefs.ops.steady import Altered
from cachefs.ops.throttle import Throttle
from cachefs.ops.tree import Found, Tree
from cachefs.remote.store import Body, ObjectStore, UploadPaused

_TRIES: Final = 4
_BY_READING: Final = ("atime",)
"""What of the metadata reading a file changes."""


class Compare(StrEnum):
    """By what the content of a file is taken to be what the store has."""

    CHECKSUM = "checksum"
    """Size and MD5; of an ETag that is none, the MD5 that is stored beside."""
    SIZE = "size"
    MTIME = "mtime"
    """Size, and that the store took it in later than the file was changed."""


class Action(StrEnum):
    """What was done, or would be."""

    SAME = "same"
    NEW = "new"
    CHANGED = "changed"
    ATTRIBUTES = "attributes"
    """The content is at the store; mode, owner, times or attributes were others."""
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Done:
    """One path is at the store as it is here, or gone as it is gone here."""

    path: str
    """Relative to the root, a directory's with a slash behind; bytes that are no UTF-8 as surrogates."""
    action: Action
    size: int = 0
    md5: str | None = None
    """Of a file that was hashed, or known, in hexadecimal."""
    etag: ETag | None = None
    """The version that the store has now; None: none, or (dry run) not yet."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that is not pushed, and no failure."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What a push is to do."""

    compare: Compare = Compare.CHECKSUM
    dry_run: bool = False
    xattrs: bool = True
    ask_attributes: bool = False
    """Ask the store (one HEAD each) for the attributes of what no push has stored or seen yet."""


class Pusher:
    """Brings single things to the store. May be used from several threads, for different things."""

    def __init__(
        self,
        tree: Tree,
        store: ObjectStore,
        hashes: HashMemory,
        memory: PushMemory,
        rules: Rules,
        *,
        throttle: Throttle,
        stop: threading.Event,
        first_pause_s: float,
        likely_parts: Sequence[int],
        large: int,
    ) -> None:
        """*first_pause_s*: how long a file that changes is left alone; the next time twice as long.

        *likely_parts*: sizes of parts in which an object may have been stored. *large*: bytes from which an upload may go
        in parts, and be continued by the next run.
        """
        self._large = large
        self._first_pause_s = first_pause_s
        self._tree = tree
        self._store = store
        self._hashes = hashes
        self._memory = memory
        self._rules = rules
        self._throttle = throttle
        self._reading = Reading(tree, throttle, stop)
        self._comparer = Comparer(
            store,
            throttle=Throttle(None),  # what is read here is sent nowhere
            patience=Patience(),
            now_ns=time.time_ns,
            likely_parts=likely_parts,
        )
        self._attributes = Attributes(tree, with_xattrs=rules.xattrs)
        self._stop = stop
        self._lock = threading.Lock()
        self._is_probed = False
        self.hashed_bytes = 0
        """Bytes of files that were read to be hashed."""
        self.sent_bytes = 0
        """Bytes of files that the store has taken."""

    # ---- what can be told without reading ---------------------------------------------------

    def glance(self, found: Found, theirs: ObjectInfo, *, md5: str | None = None) -> Done | None:
        """Return that *found* is at the store already, if what is known without reading or asking says so.

        *md5*: what a list says of the bytes.
        """
        known = self._known(found, theirs, md5)
        if known is None:
            return None
        if self._must_ask(found, theirs) or self._differs(found, theirs, known or None):
            return None
        return Done(found.path, Action.SAME, theirs.size, known or None, theirs.etag)

    def knows(self, found: Found, theirs: ObjectInfo) -> bool:
        """Whether an earlier push has stored that version, or found out what it is."""
        return self._stored(found, theirs) is not None

    def _known(self, found: Found, theirs: ObjectInfo, md5: str | None) -> str | None:
        """Return the MD5 of the content if it is known to be that at the store, empty if only that is known; else None."""
        if found.kind is Kind.DIR:
            return ""
        if found.status.st_size != theirs.size:
            return None
        if found.kind is Kind.SYMLINK:
            own, kept = _md5(self._attributes.target(found)), self._stored(found, theirs)
            return "" if own == theirs.etag or (kept and own == kept.md5) else None
        match self._rules.compare:
            case Compare.SIZE:
                return ""
            case Compare.MTIME:
                return "" if found.status.st_mtime_ns <= theirs.mtime_ns else None
        if md5 is not None and md5 == theirs.etag:
            return md5
        hashed = self._hashes.known(found.path, Stamp.of(found.status))
        if hashed is not None and theirs.etag in (hashed.md5, hashed.etag):
            return hashed.md5
        return None

    def _stored(self, found: Found, theirs: ObjectInfo) -> Stored | None:
        """Return what earlier pushes know of the version *theirs*."""
        kept = self._memory.stored(found.key)
        return kept if kept is not None and kept.etag == theirs.etag else None

    def _must_ask(self, found: Found, theirs: ObjectInfo) -> bool:
        return self._rules.ask_attributes and self._stored(found, theirs) is None

    def _differs(self, found: Found, theirs: ObjectInfo, md5: str | None) -> bool:
        """Whether the store has other attributes than *found*, as far as earlier pushes tell."""
        kept, own = self._stored(found, theirs), self._attributes.text(found)
        if kept is not None and kept.attributes != own:
            return True
        if not self._rules.dry_run and (kept is None or (md5 and md5 != kept.md5)):
            # From now on a change of them will show.
            self._memory.note_stored(found.key, Stored(theirs.etag, md5, own))
        return False

    # ---- one thing --------------------------------------------------------------------------

    def bring(
        self, found: Found, theirs: ObjectInfo | None, *, md5: str | None = None
    ) -> Done | Skipped:
        """Bring *found* to the store, in place of *theirs*, which was seen there; None: nothing was.

        *md5*: as in :meth:`glance`.
        A file that changes meanwhile is read again, a few times. Raise the ``CachefsError`` or ``OSError`` that says why
        it is not there; ``Changed`` where somebody else has written it meanwhile; ``UploadPaused`` when the job ends.
        """
        self._store.check_key(found.key)
        for number in range(_TRIES):
            try:
                return self._bring_once(found, theirs, md5)
            except _AlteredAfter as late:
                theirs = late.stored
            except (Altered, FileNotFoundError):
                pass
            if self._stop.wait(self._first_pause_s * 2**number):
                raise UploadPaused
            try:
                again = self._tree.look(found.path)
            except FileNotFoundError:
                return Skipped(found.path, "it has vanished")
            if not isinstance(again, Found):
                raise again.error
            if again.key != found.key:
                raise OSError(
                    errno.EBUSY, "it became a directory, or ceased to be one", found.path
                )
            found, md5 = again, None
        raise OSError(errno.EBUSY, f"it changed each time it was read, {_TRIES} times", found.path)

    def _bring_once(self, found: Found, theirs: ObjectInfo | None, md5: str | None) -> Done:
        if theirs is not None and (known := self._known(found, theirs, md5)) is not None:
            return self._bring_attributes(found, theirs, known or None)
        with self._read(found) as content:
            found, body = content.found, content.body
            if theirs is not None and self._has_content(theirs, content):
                return self._bring_attributes(found, theirs, content.md5)
            action = Action.NEW if theirs is None else Action.CHANGED
            if self._rules.dry_run:
                return Done(found.path, action, body.size, content.md5)
            info = self._put(found, theirs, body)
            with self._lock:
                self.sent_bytes += body.size
            if content.is_altered():
                raise _AlteredAfter(info)
        self._remember(found, content.md5, info)
        return Done(found.path, action, body.size, content.md5, info.etag)

    def _bring_attributes(self, found: Found, theirs: ObjectInfo, md5: str | None) -> Done:
        """Bring the attributes of *found*, whose content is that of *theirs*, if they differ."""
        same = Done(found.path, Action.SAME, theirs.size, md5, theirs.etag)
        if md5 is not None:
            self._hashes.verified(found.path, md5, theirs.etag, now_ns=time.time_ns())
        must_ask = self._must_ask(found, theirs)
        if not must_ask and not self._differs(found, theirs, md5):
            return same
        now = self._seen_again(found, theirs)
        meta = metadata.encode(attrs_of(found), None, self._attributes.others(found, now))
        if must_ask and not tells_otherwise(meta, now):
            self._remember(found, md5, theirs)
            return same
        done = replace(same, action=Action.ATTRIBUTES)
        if self._rules.dry_run:
            return done
        self._probe()
        info = self._store.set_meta(
            found.key, meta, content_type=now.content_type, if_match=theirs.etag
        )
        self._remember(found, md5, info)
        return replace(done, etag=info.etag)

    def _remember(self, found: Found, md5: str | None, info: ObjectInfo) -> None:
        if md5 is not None:
            self._hashes.verified(found.path, md5, info.etag, now_ns=time.time_ns())
        self._memory.note_stored(found.key, Stored(info.etag, md5, self._attributes.text(found)))

    # ---- content ----------------------------------------------------------------------------

    @contextmanager
    def _read(self, found: Found) -> Iterator[Content]:
        with self._reading.content(found) as content:
            if found.kind is Kind.FILE:
                stamp = Stamp.of(content.found.status)
                self._hashes.note(found.path, stamp, content.md5, now_ns=time.time_ns())
                with self._lock:
                    self.hashed_bytes += content.body.size
            yield content

    def _has_content(self, theirs: ObjectInfo, content: Content) -> bool:
        """Whether the store has these bytes. Asks it only where its ETag tells nothing, or asking is worth it."""
        found, body = content.found, content.body
        if found.kind is Kind.DIR:
            return True
        if theirs.size != body.size:
            return False
        if theirs.etag == body.md5:
            return True
        kept = self._stored(found, theirs)
        if kept is not None and kept.md5 is not None:
            return kept.md5 == body.md5
        if (
            is_md5(theirs.etag) and body.size < self._large
        ):  # a larger one may be the MD5 of segments' MD5s
            return False
        known = Hashed(content.name, content.stamp, content.md5, None, None)
        try:
            verdict, _ = self._comparer.compare(content, theirs, known)
        except Moved:
            raise Altered from None
        remote = verdict.remote
        return verdict.is_same is True and remote is not None and remote.etag == theirs.etag

    # ---- storing ----------------------------------------------------------------------------

    def _put(self, found: Found, theirs: ObjectInfo | None, body: Body) -> ObjectInfo:
        others: Mapping[str, str] = self._attributes.others(found, None)
        content_type: str | None = None
        if theirs is not None:
            now = self._seen_again(found, theirs)
            others, content_type = self._attributes.others(found, now), type_kept(found, now)
        self._probe()
        token = Token(secrets.token_hex(16))
        attrs = replace(attrs_of(found), size=body.size)
        meta = metadata.encode(attrs, token, others)
        if body.size >= self._large:
            meta = self._as_begun(found, meta)
        if isinstance(body, BytesBody):
            self._throttle.take(body.size)
        if self._stop.is_set():
            raise UploadPaused
        try:
            info = self._store.put(
                found.key,
                body,
                meta=meta,
                content_type=content_type or type_of(found),
                if_match=None if theirs is None else theirs.etag,
            )
        except Changed:
            info = self._own(found, meta, body.size)
        if body.size >= self._large:
            self._memory.end_begun(found.key)
        return info

    def _own(self, found: Found, meta: Mapping[str, str], size: int) -> ObjectInfo:
        """Return what is at the store if it is what we have just sent, whose answer was lost. Raise ``Changed`` else."""
        try:
            now = self._store.head(found.key)
        except NotFound:
            raise Changed(
                "it was deleted at the store meanwhile; it is pushed next time"
            ) from None
        # Where others' metadata left no room for a token, nothing tells that it is ours.
        is_marked = metadata.TOKEN in meta
        if is_marked and now.size == size and metadata.is_of_write(now.meta, meta):
            return now
        raise Changed("somebody else has written it at the store meanwhile; it is left as it is")

    def _seen_again(self, found: Found, theirs: ObjectInfo) -> ObjectInfo:
        """Return what the store has, with its metadata. Raise ``Changed`` unless it still is what was listed."""
        try:
            now = self._store.head(found.key)
        except NotFound:
            raise Changed(
                "it was deleted at the store meanwhile; it is pushed next time"
            ) from None
        if now.etag != theirs.etag:
            raise Changed(
                "somebody else has written it at the store meanwhile; it is left as it is"
            )
        return now

    def _as_begun(self, found: Found, meta: dict[str, str]) -> dict[str, str]:
        """Return the metadata of an upload that an earlier run has begun, if it differs only by what reading changes."""
        kept = self._memory.begun_with(found.key)
        if kept is not None and _but_for_reading(kept) == _but_for_reading(meta):
            return kept
        self._memory.note_begun(found.key, meta)
        return meta

    def _probe(self) -> None:
        """Find out, once and before the first write, what the store honours."""
        with self._lock:
            if not self._is_probed:
                if self._store.probe().writable is False:
                    raise NotWritable("the store lets itself be read and not written")
                self._is_probed = True

    def remove(self, key: Key, etag: ETag, path: str) -> Done:
        """Delete a version that the tree has nothing for. Raise ``Changed`` where another one is there by now."""
        self._probe()
        if self._stop.is_set():
            raise UploadPaused
        try:
            self._store.delete(key, if_match=etag)
        except Changed:
            raise Changed(
                "somebody else has written it at the store meanwhile; it stays"
            ) from None
        except NotFound:  # somebody was faster
            pass
        self._memory.forget(key)
        self._hashes.forget(path)
        return Done(path, Action.DELETED)


class NotWritable(Denied):
    """Nothing at all may be stored there."""


class _AlteredAfter(BaseException):
    """The file was written to while what it was before was stored."""

    def __init__(self, stored: ObjectInfo) -> None:
        super().__init__()
        self.stored = stored


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _but_for_reading(meta: Mapping[str, str]) -> dict[str, str]:
    left_out: tuple[str, ...] = (*_BY_READING, metadata.TOKEN)
    return {name: value for name, value in meta.items() if name not in left_out}
