"""Drains the journal: each promise is put to the store, on the condition that its base still stands there."""

import logging
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import trio

from cachefs.core import mediatypes, metadata
from cachefs.core.errors import (
    BytesLost,
    CacheError,
    CachefsError,
    Changed,
    Denied,
    Fault,
    NotFound,
    Refused,
    TimedOut,
    disk_error,
)
from cachefs.core.extents import Extent
from cachefs.core.intent import Intent, State
from cachefs.core.known_md5 import How
from cachefs.core.policy import SECOND_NS, is_due, is_final, next_try_ns
from cachefs.core.sums import PieceSums
from cachefs.core.types import Attrs, EntryId, ETag, Ino, Key, ObjectInfo
from cachefs.engine import cause
from cachefs.engine.background import Background
from cachefs.engine.body import FileBody, SummingSink
from cachefs.engine.cause import because
from cachefs.engine.checksums import Checksums
from cachefs.engine.conflict import (
    Conflicts,
    GivenUp,
    KeptBeside,
    Parked,
    Rebased,
    Stored,
    Verdict,
)
from cachefs.engine.names import Names
from cachefs.engine.promise import Promise, read_promise
from cachefs.engine.reach import Reach, wait_for
from cachefs.engine.room import Room
from cachefs.engine.second_look import SecondLooks
from cachefs.engine.threads import Threads
from cachefs.local.cache import Cache, Entry
from cachefs.local.db import Database
from cachefs.local.inodes import Inode, InodeTable
from cachefs.local.journal import Journal
from cachefs.remote import deadline
from cachefs.remote.store import ObjectStore, UploadStopped

_log = logging.getLogger(__name__)

_AT_ONCE = 8
_ITS_TIME = "due"
"""The cause of an upload that an earlier daemon left, or that is tried again by itself."""
_LONGEST_BACKOFF_S = 60
_DISK_RETRY_S = 1.0
"""How long the loop waits when the tables cannot be changed."""
_AFTER_STOP_NS = 200_000_000
"""An upload that was called off waits this long: whoever called it off is about to change what it would send."""


@dataclass(slots=True, eq=False)
class Upload:
    """One upload under way."""

    entry_id: EntryId
    key: Key | None = None
    body: FileBody | None = None
    is_stopped: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    began_at: float = field(default_factory=time.monotonic)

    @property
    def moved_at(self) -> float:
        """When bytes of it were last taken, on the monotonic clock."""
        return -math.inf if self.body is None else self.body.progress_at


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is stored for a file whose owner or mode nobody has set."""

    uid: int
    gid: int
    file_mode: int
    dir_mode: int

    def attrs(self, inode: Inode) -> Attrs:
        """Return what ``stat`` shows of *inode*."""
        mode = inode.mode
        if mode is None:
            mode = self.dir_mode if inode.is_dir else self.file_mode
        return Attrs(
            kind=inode.kind,
            size=inode.size,
            mode=mode,
            uid=self.uid if inode.uid is None else inode.uid,
            gid=self.gid if inode.gid is None else inode.gid,
            atime_ns=inode.atime_ns,
            mtime_ns=inode.mtime_ns,
            ctime_ns=inode.ctime_ns,
        )


@dataclass(frozen=True, slots=True)
class Before:
    """The tries to upload an entry that there were when somebody asked for it."""

    failed: int
    is_under_way: bool = False
    """There was one whose failure, if it fails, tells nothing of what is now."""


class Uploader:
    """Runs uploads, several at once, never two of one entry."""

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        cache: Cache,
        journal: Journal,
        inodes: InodeTable,
        names: Names,
        room: Room,
        threads: Threads,
        reach: Reach,
        background: Background,
        conflicts: Conflicts,
        second: SecondLooks,
        checksums: Checksums,
        defaults: Defaults,
        *,
        timeout_s: float,
        longest_delay_s: float,
    ) -> None:
        self._store = store
        self._db = db
        self._cache = cache
        self._journal = journal
        self._inodes = inodes
        self._names = names
        self._room = room
        self._threads = threads
        self._reach = reach
        self._background = background
        self._conflicts = conflicts
        self._second = second
        self._checksums = checksums
        self._defaults = defaults
        self._timeout_s = timeout_s
        self._longest_wait_ns = int((longest_delay_s + _LONGEST_BACKOFF_S) * SECOND_NS)
        self._running: dict[EntryId, Upload] = {}
        self._writing: Counter[EntryId] = Counter()
        self._kicked = trio.Event()
        self._outcome = trio.Event()
        # How often an upload of the entry has failed, and why at last: each waiter tells its own failure by the count.
        self._failures: dict[EntryId, tuple[int, CachefsError]] = {}
        self._denied: set[EntryId] = set()
        """What waits because access was denied, and not yet been hurried because somebody had access again."""
        self._causes: dict[EntryId, str] = {}
        """Why an entry is to be uploaded, until that begins."""
        self._has_stranded = False
        self.uploaded = 0
        """Objects stored since the start."""
        # On the monotonic clock: when the store last took an object, and when an upload failed first after that.
        self._settled_at = self._failed_at = -math.inf

    # ---- what writers need ------------------------------------------------------------------

    def is_uploading(self, entry_id: EntryId) -> bool:
        """Whether an upload of the entry is under way."""
        return entry_id in self._running

    def is_putting(self, entry_id: EntryId) -> bool:
        """Whether bytes of the entry are on their way to the store."""
        upload = self._running.get(entry_id)
        return upload is not None and upload.body is not None

    def begin_write(self, entry_id: EntryId) -> None:
        """Note that the entry's bytes are changing: no upload begins until :meth:`end_write`."""
        self._writing[entry_id] += 1

    def end_write(self, entry_id: EntryId) -> None:
        """Note that one change of the entry's bytes is over."""
        self._writing[entry_id] -= 1
        if not self._writing[entry_id]:
            del self._writing[entry_id]
            self._kicked.set()
            self._tell()  # who waits for the bytes before it must say that these are complete

    async def stop(self, entry_id: EntryId) -> None:
        """Call off the upload of an entry and wait until it is over, one way or the other."""
        upload = self._running.get(entry_id)
        if upload is not None:
            upload.is_stopped = True
            if upload.body is not None:
                upload.body.stop()
            await wait_for(upload.done, "the end of an upload that was called off")

    def kick(self) -> None:
        """Look at the journal now."""
        self._kicked.set()

    def hurry(self, entry_id: EntryId) -> Before:
        """Upload an entry now rather than when it is due; a parked one gets another chance.

        Return what :meth:`wait_settled` needs to tell the tries from now on from those before.
        """
        before = self._before(entry_id)
        if self._journal.of(entry_id) is not None and entry_id not in self._running:
            self._journal.hurry(entry_id, self._names.now_ns())
            self.note_cause(entry_id)
        self._kicked.set()
        self._reach.look()
        return before

    def note_cause(self, entry_id: EntryId) -> None:
        """Note that what is being done now is why the entry is to be uploaded."""
        self._causes[entry_id] = cause.current()

    def _before(self, entry_id: EntryId) -> Before:
        return Before(self._failed(entry_id)[0], is_under_way=entry_id in self._running)

    def store_is_back(self, was_missed: bool) -> None:
        """Begin uploads again; what failed while the store was missed has waited long enough."""
        self._kicked.set()
        now_ns = self._names.now_ns()
        for intent in self._journal.all() if was_missed else ():
            if intent.state is State.QUEUED and intent.tries:
                self._journal.hurry(intent.entry, now_ns)

    def forget(self, entry_id: EntryId) -> None:
        """End the promise of an entry, if it has one: the user removed its name. No upload may be running."""
        entry = self._cache.load(entry_id)
        if entry is not None and self._journal.of(entry_id) is not None:
            self._forget(entry)
            self._causes.pop(entry_id, None)
            self._tell()

    def hurry_all(self) -> None:
        """Upload everything that is queued now: somebody needs the room."""
        for intent in self._journal.all():
            if intent.state is State.QUEUED and not intent.tries:
                self._journal.hurry(intent.entry, self._names.now_ns())
        self._kicked.set()

    async def wait_settled(self, entry_id: EntryId, before: Before | None = None) -> bool:
        """Wait until the store has confirmed the entry. Return False if it was written again meanwhile.

        Raise the error of a try that began after *before* (None: now) and put the upload off or ended it, or
        ``TimedOut`` when nothing has moved for as long as ``--timeout``; the promise stays in the journal. While
        the store is offline nothing moves: it is looked at anew.
        """
        self._reach.look()
        before = self._before(entry_id) if before is None else before
        waiting_since = time.monotonic()
        while (intent := self._journal.of(entry_id)) is not None:
            failed, error = self._failed(entry_id)
            if failed > before.failed and error is not None:
                if not before.is_under_way or await self._reach.is_lost():
                    raise error
                before = Before(failed)
                self.hurry(entry_id)
                continue
            if intent.state is State.OPEN:
                return False
            if intent.state is State.PARKED:
                raise error or Refused(intent.error or "given up")
            outcome = self._outcome
            with trio.move_on_after(self._patience_left_s(waiting_since)):
                await outcome.wait()
                continue
            if not self._patience_left_s(waiting_since):
                raise TimedOut("the store did not take the file in time; it stays queued")
        if (whole := deadline.current()) is not None:
            whole.answered()
        return True

    @property
    def advanced_at(self) -> float:
        """When the store last took something that it had not been sent before, on the monotonic clock.

        What is handed to the network may never arrive: once an upload has failed, one that begins afterwards
        counts only when it is stored.
        """
        doubted_from = self._failed_at if self._failed_at > self._settled_at else math.inf
        bodies = (each.body for each in self._running.values() if each.began_at < doubted_from)
        return max([self._settled_at, *(body.advanced_at for body in bodies if body is not None)])

    def _patience_left_s(self, waiting_since: float) -> float:
        """Return for how long who has waited since then may wait until he looks again; zero: not at all."""
        whole = deadline.current()
        left_s = (
            waiting_since + self._timeout_s - time.monotonic() if whole is None else whole.left_s
        )
        if not self._reach.is_offline:
            # Uploads take turns: while any of them moves, a queued one is not stuck.
            latest = max((each.moved_at for each in self._running.values()), default=-math.inf)
            left_s = max(left_s, latest + self._timeout_s - time.monotonic())
        return max(0.0, left_s)

    def _failed(self, entry_id: EntryId) -> tuple[int, CachefsError | None]:
        return self._failures.get(entry_id, (0, None))

    def _note_failure(self, entry_id: EntryId, error: CachefsError) -> None:
        self._failures[entry_id] = (self._failed(entry_id)[0] + 1, error)

    # ---- the loop ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Start uploads as they become due, for ever."""
        self._has_stranded = True  # a failure of this loop may have left some behind
        while True:
            self._kicked = trio.Event()
            try:
                self._requeue_stranded()
                wait_s = self._launch_due()
            except CacheError as error:
                _log.warning("no upload can begin: %s", error)
                await trio.sleep(_DISK_RETRY_S)
                continue
            with trio.move_on_after(wait_s):
                await self._kicked.wait()

    def _requeue_stranded(self) -> None:
        """Queue again what stands as being uploaded and is not."""
        if not self._has_stranded:
            return
        for entry_id in self._journal.uploading():
            if entry_id not in self._running:
                self._journal.requeue(entry_id, due_ns=self._names.now_ns())
        self._has_stranded = False

    def _launch_due(self) -> float:
        """Start what is due. Return for how many seconds there is nothing more to do."""
        if self._reach.is_offline:
            return 60  # its return kicks
        busy = {*self._running, *self._writing}
        while len(self._running) < _AT_ONCE:
            intent = self._journal.next_due(excluding=busy)
            if intent is None:
                return 60
            now_ns = self._names.now_ns()
            if not is_due(intent.due_ns, now_ns, self._longest_wait_ns):
                return min(60, (intent.due_ns - now_ns) / SECOND_NS)
            busy.add(intent.entry)
            if self._is_moving(intent.entry):
                continue  # whoever renames it will kick
            try:
                if self._journal.claim(intent.entry) is None:
                    return 1
            except CacheError as error:
                self._note_failure(intent.entry, error)
                self._tell()
                raise
            upload = Upload(intent.entry)
            self._running[intent.entry] = upload
            with because(self._causes.pop(intent.entry, "") or _ITS_TIME):
                self._background.start("upload", lambda upload=upload: self._carry(upload))  # type: ignore[misc]
        return 60

    def _is_moving(self, entry_id: EntryId) -> bool:
        entry = self._cache.load(entry_id)
        key = self._inodes.key_of(entry.ino) if entry is not None else None
        return key is not None and (self._names.is_moving(key) or self._names.is_unsettled(key))

    def stop_all(self) -> None:
        """Call off every upload, because the service ends; what is not stored stays in the journal.

        What the store has of large ones stays there, for the next daemon to go on with.
        """
        for upload in self._running.values():
            upload.is_stopped = True
            if upload.body is not None:
                upload.body.pause()

    async def _carry(self, upload: Upload) -> None:
        pinned: Entry | None = None
        try:
            entry = self._cache.load(upload.entry_id)
            pinned = self._cache.pin(entry, self._names.now_ns()) if entry is not None else None
            if pinned is None:
                await self._give_lost_up(upload, entry)
            else:
                await self._attempt(upload, pinned)
        except UploadStopped:
            self._put_back(upload, delay_ns=_AFTER_STOP_NS)
        except CachefsError as error:
            if is_final(error):
                self._give_up(upload, error)
            else:
                self._put_off(upload, error)
        except Exception as error:
            self._put_off(upload, Fault(f"the upload broke off: {error!r}"))
            raise
        finally:
            try:
                self._end(upload)
            finally:
                if pinned is not None:
                    await self._room.delete(self._cache.unpin(pinned, self._names.now_ns()))
                self._room.freed()

    def _end(self, upload: Upload) -> None:
        try:
            self._put_back(upload, delay_ns=SECOND_NS)
        finally:
            del self._running[upload.entry_id]
            upload.done.set()
            self._tell()
            self._kicked.set()

    def _put_back(self, upload: Upload, *, delay_ns: int) -> None:
        with self._or_later(upload):
            intent = self._journal.of(upload.entry_id)
            if intent is not None and intent.state is State.UPLOADING:
                self._journal.requeue(upload.entry_id, due_ns=self._names.now_ns() + delay_ns)

    @contextmanager
    def _or_later(self, upload: Upload) -> Iterator[None]:
        """Leave what the tables do not take, because the disk is full, say, to :meth:`_requeue_stranded`."""
        is_noted = False
        try:
            yield
            is_noted = True
        except CacheError as error:
            _log.warning("how the upload of %s ended is not noted: %s", ascii(upload.key), error)
        finally:
            self._has_stranded |= not is_noted

    def _tell(self) -> None:
        self._outcome.set()
        self._outcome = trio.Event()

    def _give_up(self, upload: Upload, error: CachefsError) -> None:
        self._note_failure(upload.entry_id, error)
        with self._or_later(upload):
            if self._journal.of(upload.entry_id) is None:
                return  # nothing is owed any more: its name was removed meanwhile
            self._journal.park(upload.entry_id, str(error))
        _log.error("upload of %s is parked: %s", ascii(upload.key), error)

    def _put_off(self, upload: Upload, error: CachefsError) -> None:
        self._note_failure(upload.entry_id, error)
        if self._failed_at <= self._settled_at:
            self._failed_at = time.monotonic()
        with self._or_later(upload):
            intent = self._journal.of(upload.entry_id)
            if intent is not None:
                due_ns = next_try_ns(intent.tries, self._names.now_ns(), random.random())
                self._journal.postpone(upload.entry_id, due_ns=due_ns, error=str(error))
        if isinstance(error, Denied):
            self._denied.add(upload.entry_id)
        _log.warning("upload of %s is put off: %s", ascii(upload.key), error)

    # ---- one attempt ------------------------------------------------------------------------

    async def _attempt(self, upload: Upload, entry: Entry) -> None:
        key = upload.key = await self._names.settled_key(entry.ino)
        inode = self._inodes.get(entry.ino)
        intent = self._journal.of(entry.id)
        if intent is None:
            return
        if upload.is_stopped:
            raise UploadStopped
        if key is None or inode is None:
            self._forget(entry)
            return
        if inode.meta_json is None and entry.etag is not None:
            inode = await self._describe(inode, key)
            # Whoever renames or removes it stops uploads that have a body: this one had none yet.
            if self._names.is_moving(key) or self._inodes.key_of(entry.ino) != key:
                raise UploadStopped
            if upload.is_stopped:
                raise UploadStopped
        if inode.content_type is None:
            inode = replace(inode, content_type=mediatypes.guessed(inode.component))
        body = upload.body = _body_of(entry)
        sums = await self._vouch(body, key, intent, entry)
        if sums is None:
            await self._give_rot_up(key, intent, entry)
            return
        attrs = replace(self._defaults.attrs(inode), size=body.size)
        meta = metadata.encode(attrs, intent.token, inode.meta or {})
        try:
            info = await self._threads.transfer(
                self._store.put,
                key,
                body,
                meta=meta,
                content_type=inode.content_type,
                if_match=entry.etag,
            )
        except Changed:
            verdict = await self._conflicts.resolve(inode, intent, entry.etag, key, body, meta)
            self._apply(verdict, upload, entry, meta, sums)
            return
        self._settle(entry, info, meta, sums, body.md5)

    async def _vouch(
        self, body: FileBody, key: Key, intent: Intent, entry: Entry
    ) -> PieceSums | None:
        """Return the sums of the bytes; None if they are not those that were acknowledged or tried, or some are gone.

        Raise ``Refused`` if the promise beside them says that they belong elsewhere.
        """
        sums, promise = await self._threads.transfer(self._look, body, entry.id)
        if promise is not None and not _is_of(promise, key, intent):
            raise Refused(
                "the database says that these bytes belong here, and the promise beside them says otherwise:"
                " they are kept, not stored"
            )
        if sums is not None and not entry.sums:
            entry.sums = sums  # should this try fail, the next one sends these bytes or none
        return None if entry.sums != sums else sums

    def _look(self, body: FileBody, entry_id: EntryId) -> tuple[PieceSums | None, Promise | None]:
        """Return the sums of the bytes, None if some are gone, and the promise beside them. Blocks; any thread."""
        promise = read_promise(self._cache.promise_path(entry_id))
        try:
            return body.digest(), promise
        except BytesLost:
            return None, promise
        except OSError as error:
            raise disk_error(error) from error

    async def _is_stored(self, key: Key, intent: Intent, entry: Entry) -> bool:
        """Whether the store has what was acknowledged already, and only the word of it was lost.

        The token alone does not tell: an earlier write of the same promise has it, too.
        """
        try:
            found = await self._threads.ask(self._store.head, key)
        except NotFound:
            return False
        if metadata.token_of(found) != intent.token:
            return False
        return await self._threads.transfer(self._sums_of, key, found) == entry.sums

    def _sums_of(self, key: Key, info: ObjectInfo) -> PieceSums:
        """Return the sums of what the store has. Blocks; any thread."""
        sink = SummingSink()
        if info.size:
            self._store.get_range(key, Extent(0, info.size), sink, if_match=info.etag)
        return sink.sums()

    async def _give_lost_up(self, upload: Upload, entry: Entry | None) -> None:
        """Park a promise whose bytes are gone, unless the store has them."""
        intent = self._journal.of(upload.entry_id)
        key = None if entry is None else await self._names.settled_key(entry.ino)
        if (
            entry is None
            or intent is None
            or key is None
            or not await self._is_stored(key, intent, entry)
        ):
            reason = "the bytes promised to the store are gone from the cache"
            self._give_up(upload, BytesLost(reason))
            return
        with self._db.transaction():
            self._journal.discard(entry.id)
            self._cache.end_promise(entry.id)
            self._drop_name(entry.ino)
            doomed = self._cache.drop(entry)
            self._inodes.drop(entry.ino)
        await self._room.delete(doomed)

    async def _give_rot_up(self, key: Key, intent: Intent, entry: Entry) -> None:
        """Forget bytes that are not those that were acknowledged, if the store has those; else raise ``Refused``."""
        if await self._is_stored(key, intent, entry):
            self._yield_to_theirs(entry)
            return
        raise Refused(
            "the bytes changed on the cache's disk after they were written: they are kept, not stored"
        )

    async def _describe(self, inode: Inode, key: Key) -> Inode:
        """Learn the metadata that only a listing hid: what others put on the object survives our rewrite."""
        try:
            found = await self._threads.ask(self._store.head, key)
        except NotFound:
            return inode
        meta = dict(found.meta or {})
        posix = metadata.decode(meta)
        known = {"mode": posix.mode, "uid": posix.uid, "gid": posix.gid}
        columns = {name: value for name, value in known.items() if getattr(inode, name) is None}
        self._inodes.update(inode.ino, meta=meta, content_type=found.content_type, **columns)
        return self._inodes.get(inode.ino) or inode

    def _forget(self, entry: Entry) -> None:
        """End the promise of a file whose name the user removed."""
        with self._db.transaction():
            self._journal.drop(entry.id)
            self._cache.end_promise(entry.id)

    def _settle(
        self,
        entry: Entry,
        info: ObjectInfo,
        meta: dict[str, str],
        sums: PieceSums,
        md5: str | None,
    ) -> None:
        """Make the entry clean: the store has confirmed exactly these bytes, whose MD5 is *md5*."""
        now_ns = self._names.now_ns()
        with self._db.transaction():
            self._journal.settle(entry.id)
            self._cache.end_promise(entry.id)
            self._cache.change(entry, etag=info.etag, sums=sums)
            columns: dict[str, object] = {
                "etag": info.etag,
                "stored_ns": info.mtime_ns or None,
                "meta": meta if info.meta is None else info.meta,
                "size": entry.size,
                "checked_ns": now_ns,
                "is_md5": int(info.is_md5 or info.etag == md5),
            }
            if info.content_type is not None:
                columns["content_type"] = info.content_type
            self._inodes.update(entry.ino, **columns)
            self._db.when_done(lambda: self._settled(entry, info, md5))

    def _settled(self, entry: Entry, info: ObjectInfo, md5: str | None) -> None:
        entry.trusted = entry.here.copy()
        self._failures.pop(entry.id, None)
        self._settled_at = time.monotonic()
        self.uploaded += 1
        if entry.id in self._denied:
            self._hurry_denied()
        inode, key = self._inodes.get(entry.ino), self._inodes.key_of(entry.ino)
        if inode is not None and key is not None:
            self._second.remember(inode, key, info)
        if key is not None and md5 is not None:
            self._checksums.keep(key, info.etag, entry.size, md5, How.UPLOADED)

    def _hurry_denied(self) -> None:
        """Try at once whatever was denied access: what has just been stored had been denied it, too."""
        waiting, self._denied = self._denied, set()
        for entry_id in waiting:
            intent = self._journal.of(entry_id)
            if intent is not None and intent.state is State.QUEUED:
                self._journal.hurry(entry_id, self._names.now_ns())
        self._kicked.set()

    def _apply(
        self,
        verdict: Verdict,
        upload: Upload,
        entry: Entry,
        meta: dict[str, str],
        sums: PieceSums,
    ) -> None:
        md5 = None if upload.body is None else upload.body.md5
        match verdict:
            case Rebased(base):
                with self._db.transaction():
                    self._rebase(entry, base)
                    self._journal.requeue(entry.id, due_ns=self._names.now_ns())
            case Stored(info):
                self._settle(entry, info, meta, sums, md5)
            case KeptBeside():
                self._move_beside(verdict, entry, meta, sums, md5)
            case GivenUp():
                self._yield_to_theirs(entry)
            case Parked(reason):
                self._give_up(upload, Refused(reason))

    def _rebase(self, entry: Entry, base: ETag | None) -> None:
        self._cache.change(entry, etag=base)
        self._inodes.update(entry.ino, etag=base)

    def _move_beside(
        self,
        verdict: KeptBeside,
        entry: Entry,
        meta: dict[str, str],
        sums: PieceSums,
        md5: str | None,
    ) -> None:
        """Give our inode the conflict name; the old name stands for what the store has there."""
        inode = self._inodes.get(entry.ino)
        now_ns = self._names.now_ns()
        with self._db.transaction():
            if inode is not None and inode.parent is not None and inode.name is not None:
                other = self._inodes.child(inode.parent, verdict.name)
                if other is not None:
                    self._inodes.detach(other.ino, now_ns)
                self._inodes.move(
                    entry.ino,
                    inode.parent,
                    verdict.name,
                    verdict.component,
                    now_ns,
                    wall_ns=self._names.wall_ns(),
                )
                self._inodes.insert_seen(
                    inode.parent,
                    inode.name,
                    inode.component,
                    inode.kind,
                    verdict.theirs,
                    now_ns,
                    pinned=inode.pinned,
                )
            self._settle(entry, verdict.info, meta, sums, md5)
        if inode is not None and inode.parent is not None and inode.name is not None:
            self._names.tell_kernel(inode.parent, inode.name)
            self._names.tell_kernel(inode.parent, verdict.name)

    def _yield_to_theirs(self, entry: Entry) -> None:
        """Give our bytes up; the next open gets theirs."""
        with self._db.transaction():
            self._journal.discard(entry.id)
            self._cache.end_promise(entry.id)
            self._drop_name(entry.ino)
            if entry.pins == 1:  # nobody has it open: the pin is this upload's
                self._cache.drop(entry)
                self._inodes.drop(entry.ino)

    def _drop_name(self, ino: Ino) -> None:
        """Take the name from an inode whose content lost, so that a lookup finds the winner."""
        inode = self._inodes.get(ino)
        self._inodes.leave_pin(inode)
        self._inodes.detach(ino, self._names.now_ns())
        if inode is not None and inode.parent is not None and inode.name is not None:
            self._inodes.forget_removed(inode)
            parent = self._inodes.get(inode.parent)
            if parent is not None:
                self._inodes.update(parent.ino, listed_ns=None)
            self._names.tell_kernel(inode.parent, inode.name)


def _is_of(promise: Promise, key: Key, intent: Intent) -> bool:
    """Whether a promise file tells of the same as the rows."""
    return promise.token == intent.token and key in (promise.key, promise.target)


def _body_of(entry: Entry) -> FileBody:
    if not entry.is_whole:
        raise Refused("not all of its bytes are in the cache: what there is is kept, not stored")
    return FileBody(entry.fd, entry.size)
