"""Carries out what :func:`cachefs.core.policy.remedy` says about a cache directory that a daemon has left."""

import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cachefs.core.cached import CachedFile, CachedPieces, CacheUsage
from cachefs.core.errors import CacheError, Damaged, UsageError
from cachefs.core.eviction import Policy
from cachefs.core.heat import Presence
from cachefs.core.history import Accessed
from cachefs.core.intent import Intent, State
from cachefs.core.policy import Remains, Remedy, remedy
from cachefs.core.source import Source
from cachefs.core.types import EntryId, ETag, Ino, Key
from cachefs.engine import inventory, rebuild
from cachefs.engine.conflict import beside
from cachefs.engine.eviction import Evictions
from cachefs.engine.promise import read_promise
from cachefs.engine.rebuild import ASIDE, Disk
from cachefs.local.cache import Cache, Entry
from cachefs.local.db import Database
from cachefs.local.directory import CacheDirectory, Sessions, boot_id
from cachefs.local.history import History
from cachefs.local.inodes import ROOT, InodeTable
from cachefs.local.journal import Journal
from cachefs.local.md5s import Md5s

_log = logging.getLogger(__name__)

_UNSYNCED = "the machine stopped before these bytes were safe on the disk; the store keeps the version before"
_UNTOLD = "nothing beside these bytes says that the store is still owed them; the store keeps what it has"
_LOST = "the bytes promised to the store are gone from the cache directory"


def open_disk(
    directory: Path,
    *,
    limit: int,
    min_free: int,
    policy: Policy | None,
    check: Callable[[Database], None],
) -> Disk:
    """Open a cache directory whose lock the caller holds, and bring it into order after the last daemon.

    *policy* None: as the last mount had it. *check* may raise, which leaves everything as it is. A database that cannot be trusted is set aside, and what
    waits for upload is found without it.
    """
    db = Database(directory)
    try:
        check(db)
        if db.was_made and not Sessions(directory, db).is_first:
            _log.error("%s is gone: a new one is made from what lies beside it", db.path)
        elif not Sessions(directory, db).is_latest:
            db.give_up("it is older than what the last daemon has left beside it")
            check(db)

        def recovered() -> Disk:
            cache = Cache(db, directory, limit=limit, min_free=min_free, policy=policy)
            return _recovered(directory, db, cache)

        try:
            disk = recovered()
        except (Damaged, ValueError) as error:  # ValueError: a value that nobody can have written
            db.give_up(db.damage or error)
            check(db)
            disk = recovered()
        disk.sessions.begin()
    except BaseException:
        db.close()
        raise
    return disk


def close_disk(disk: Disk) -> None:
    """Close a cache directory at the end of all that is done in it."""
    try:
        disk.history.save_all()
        if not disk.inodes.is_making:
            disk.sessions.end()
    except CacheError:  # damaged, or locked by others: the next start finds out
        disk.db.close()
    else:
        disk.db.close_proven()


def _recovered(directory: Path, db: Database, cache: Cache) -> Disk:
    now_ns = time.time_ns()
    sessions = Sessions(directory, db)
    journal = Journal(db, boot=boot_id())
    inodes = InodeTable(db, is_dirty=journal.is_dirty)
    inodes.make_root(now_ns)
    disk = Disk(
        db,
        inodes,
        cache,
        journal,
        History(db),
        Md5s(db),
        sessions,
        was_cut_off=not sessions.ended_well or db.was_changed,
    )
    _recover(disk, now_ns)
    return disk


def _recover(disk: Disk, now_ns: int) -> None:
    boot = boot_id()
    if disk.sessions.may_be_ahead(now_ns):
        disk.inodes.distrust_future(now_ns)
        disk.cache.age_future(now_ns)
    disk.cache.skip_numbers()
    doubted = rebuild.doubtful(disk)
    rebuild.disbelieve_lies(disk, doubted)
    for entry_id in doubted:
        entry = disk.cache.load(entry_id)
        if entry is not None:
            with disk.db.transaction():
                rebuild.catch_up(disk, entry, now_ns)
                _carry_out(disk, entry, remedy(_remains(disk, entry), boot=boot), now_ns)
    for ino in disk.inodes.detached():
        if disk.cache.find(ino) is None:
            disk.inodes.drop(ino)
    if disk.was_cut_off:
        with disk.db.transaction():
            disk.inodes.forget_unmade()
    rebuild.adopt_strays(disk, now_ns)


def _remains(disk: Disk, entry: Entry) -> Remains:
    intent = disk.journal.of(entry.id)
    inode = disk.inodes.get(entry.ino)
    length = _length(disk.cache.path_of(entry.id))
    return Remains(
        has_file=length >= 0,
        is_named=inode is not None and inode.parent is not None,
        state=None if intent is None else intent.state,
        boot=None if intent is None else intent.boot,
        is_whole=length >= max((extent.stop for extent in entry.here), default=0),
        # One that cannot be read stands for a debt as well: only its text was not safe when the power went.
        has_promise=intent is None or _length(disk.cache.promise_path(entry.id)) >= 0,
    )


def _length(path: Path) -> int:
    """Return the length of a cache file; -1 if there is none, or something else in its place."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _carry_out(disk: Disk, entry: Entry, verdict: Remedy, now_ns: int) -> None:
    is_dirty = disk.journal.of(entry.id) is not None
    match verdict:
        case Remedy.KEEP if not is_dirty:
            disk.cache.remeasure(entry)
        case Remedy.QUEUE:
            is_restored = _was_being_overwritten(disk.cache, entry)
            is_restored = is_restored and disk.cache.restore_sealed(entry)
            _queue(disk, entry, now_ns, is_acknowledged=not is_restored)
        case Remedy.SET_ASIDE | Remedy.PARK_UNSYNCED if disk.cache.restore_sealed(entry):
            # What was written after the last acknowledged close had not been acknowledged yet.
            _queue(disk, entry, now_ns, is_synced=True)
        case Remedy.SET_ASIDE:
            _set_aside(disk, entry, ASIDE, now_ns)
        case Remedy.PARK_UNSYNCED:
            _set_aside(disk, entry, _UNSYNCED, now_ns)
        case Remedy.PARK_UNTOLD:
            _set_aside(disk, entry, _UNTOLD, now_ns)
        case Remedy.PARK_LOST:
            _give_lost_up(disk, entry, now_ns)
        case Remedy.DROP:
            _drop(disk, entry)
        case Remedy.DISCARD:
            _disown(disk, entry)
            _drop(disk, entry)


def _was_being_overwritten(cache: Cache, entry: Entry) -> bool:
    """Whether the database lost the word that acknowledged bytes, of which a copy is kept, were being changed."""
    is_summed = entry.sums or not entry.size
    if not is_summed or not cache.has_sealed(entry.id):
        return False
    with cache.path_of(entry.id).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return Cache.summed(file.fileno(), size) != entry.sums


def _drop(disk: Disk, entry: Entry) -> None:
    doomed = disk.cache.drop(entry)
    if doomed is not None:
        disk.cache.delete_file(doomed)
        disk.cache.deleted(doomed)


def _disown(disk: Disk, entry: Entry) -> None:
    if disk.journal.of(entry.id) is not None:
        disk.journal.drop(entry.id)
        disk.cache.end_promise(entry.id)


def _queue(
    disk: Disk,
    entry: Entry,
    now_ns: int,
    *,
    is_synced: bool = False,
    is_acknowledged: bool = False,
) -> None:
    intent = disk.journal.of(entry.id)
    is_acknowledged = is_acknowledged and intent is not None and intent.boot is None
    is_acknowledged = is_acknowledged and rebuild.agrees_on_bytes(disk, entry)
    disk.cache.take_whole(entry, is_acknowledged=is_acknowledged)
    disk.db.when_done(lambda: disk.cache.drop_sealed(entry.id))
    disk.inodes.update(entry.ino, size=entry.size)
    if intent is not None and intent.state is State.UPLOADING:
        disk.journal.requeue(entry.id, due_ns=now_ns)
    if is_synced:
        disk.journal.seal(entry.id, due_ns=now_ns, is_synced=True)
    else:
        disk.journal.hurry(entry.id, now_ns)


def _park(disk: Disk, entry_id: EntryId, reason: str) -> None:
    intent = disk.journal.of(entry_id)
    if intent is not None and intent.state is not State.PARKED:
        disk.journal.park(entry_id, reason)
    _log.error("entry %s: %s", entry_id, reason)


def _give_lost_up(disk: Disk, entry: Entry, now_ns: int) -> None:
    """Say that promised bytes are gone.

    Where their promise is gone as well, the row may be older than their upload: the name stands for what the store has.
    """
    key = disk.inodes.key_of(entry.ino)
    _park(disk, entry.id, _LOST if key is None else f"{_LOST}: {key!a}")
    if read_promise(disk.cache.promise_path(entry.id)) is None:
        _unname(disk, entry, now_ns)


def _set_aside(disk: Disk, entry: Entry, reason: str, now_ns: int) -> None:
    """Keep the bytes for `cachefs recover`, and let the name stand for what the store has."""
    entry.sums.clear()
    disk.cache.take_whole(entry)
    _park(disk, entry.id, reason)
    disk.inodes.update(entry.ino, size=entry.size)
    _unname(disk, entry, now_ns)


def _unname(disk: Disk, entry: Entry, now_ns: int) -> None:
    inode = disk.inodes.get(entry.ino)
    disk.inodes.leave_pin(inode)
    disk.inodes.detach(entry.ino, now_ns)
    if inode is not None and inode.parent is not None and inode.name is not None:
        disk.inodes.forget_removed(inode)
        disk.inodes.update(inode.parent, listed_ns=None)


# ---- what `cachefs recover` does where no daemon lives ----------------------------------------


def describe(disk: Disk, intent: Intent) -> dict[str, object]:
    """Return what the operator is told of one dirty entry."""
    entry = disk.cache.load(intent.entry)
    key = None if entry is None else disk.inodes.key_of(entry.ino)
    return {
        "id": int(intent.entry),
        "key": inventory.promised_key(disk, intent.entry) if key is None else key,
        "path": inventory.path_of(disk, intent.entry, entry),
        "size": 0 if entry is None else entry.size,
        "state": str(intent.state),
        "mtime": _mtime(disk.cache, intent.entry),
        "tries": intent.tries,
        "error": intent.error,
    }


def _mtime(cache: Cache, entry_id: EntryId) -> float | None:
    """Return when the bytes were last written, seconds since the epoch."""
    try:
        return cache.path_of(entry_id).stat().st_mtime
    except FileNotFoundError:
        return None


class StoppedCache:
    """A cache directory without a daemon, for ``cachefs recover``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def entries(self) -> Iterator[CachedFile]:
        """Yield every file in the cache."""
        return inventory.everything(self._disk)

    def presence(self, paths: Sequence[str]) -> list[Presence]:
        """Return how much of each file is in the cache, as far as that is known without asking the store."""
        return [inventory.presence(self._disk, path) for path in paths]

    def history(self) -> Iterator[Accessed]:
        """Yield every file that programs have opened, as far as it is remembered."""
        after: int | None = 0
        while after is not None:
            found = inventory.history(self._disk, after)
            yield from found.files
            after = found.after

    def entry(self, entry_id: int) -> CachedPieces | None:
        """Return one of them as it is now, with its sums; None if it is gone."""
        return inventory.one(self._disk, entry_id)

    def usage(self) -> CacheUsage:
        """Tell how full the cache is."""
        limit = self._disk.db.get_meta("limit")
        return CacheUsage(
            self._disk.cache.used,
            None if limit is None else int(limit),
            self._disk.cache.order.policy,
        )

    def evict(self, files: Sequence[tuple[EntryId, int]]) -> list[int | str]:
        """Drop entries, each named with its last use. Return for each the bytes that are free now, or why it stays."""
        evictions = Evictions(self._disk)
        outcomes: list[int | str] = []
        for entry_id, used_ns in files:
            dropped = evictions.drop(entry_id, used_ns)
            if isinstance(dropped, str):
                outcomes.append(dropped)
                continue
            self._disk.cache.delete_file(dropped)
            self._disk.cache.deleted(dropped)
            outcomes.append(dropped.cost)
        return outcomes

    def give_up(self, entry_id: EntryId, etag: ETag | None) -> bool:
        """Drop the clean bytes of a file, whatever keeps them, if they still are of that version. Return whether it was done."""
        entry = self._disk.cache.load(entry_id)
        is_owed = self._disk.journal.of(entry_id) is not None
        if entry is None or entry.etag != etag or is_owed:
            return False
        _drop(self._disk, entry)
        return True

    def forget_names(self, bucket: str | None) -> int:
        """Forget the names of what is stored and not cached, of a bucket or of all. Return how many.

        Where a rename is unfinished none is forgotten: it is to be finished, or undone, by them.
        """
        source = Source.of_description(self._disk.db.get_meta("source") or "")
        top: Ino | None = ROOT
        if bucket is not None and source is not None:
            natural = source.inner(bucket, "" if not source.bucket else source.prefix)
            inode = None if natural is None else self._disk.inodes.find(Key(natural))
            top = None if inode is None else inode.ino
        if top is None or self._disk.journal.moves():
            return 0
        return self._disk.inodes.forget_clean(top)

    def dirty(self) -> list[dict[str, object]]:
        """Return every dirty entry: id, key, path, size, state, tries, error."""
        return [describe(self._disk, intent) for intent in self._disk.journal.all()]

    def export(self, entry_id: int, target: Path) -> None:
        """Copy the bytes of a dirty entry to *target*, which must not exist."""
        self._must(entry_id)
        export(self._disk.cache, EntryId(entry_id), target)

    def discard(self, entry_id: int) -> None:
        """Give the bytes of a dirty entry up, for good."""
        self._must(entry_id)
        discard(self._disk, EntryId(entry_id))

    def _must(self, entry_id: int) -> None:
        if self._disk.journal.of(EntryId(entry_id)) is None:
            raise UsageError(
                f"there is no dirty file with the number {entry_id} — see `cachefs recover list`"
            )


def export(cache: Cache, entry_id: EntryId, target: Path) -> None:
    """Copy the bytes of an entry to *target*, which must not exist. Blocks; any thread."""
    try:
        with cache.path_of(entry_id).open("rb") as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink)
            sink.flush()
            os.fsync(sink.fileno())
    except FileExistsError as error:
        raise UsageError(f"{target} exists already — name a file that does not") from error
    except OSError as error:
        raise UsageError(f"cannot export to {target}: {error.strerror}") from error


def put_beside(disk: Disk, entry: Entry, now_ns: int) -> None:
    """Give bytes that were set aside a name beside the file that they were meant for."""
    key = inventory.promised_key(disk, entry.id)
    if key is None:
        raise UsageError("nothing tells where these bytes belong — export them instead")
    intended = disk.inodes.get(rebuild.place(disk.inodes, key, now_ns))
    assert intended is not None and intended.parent is not None
    turn = 0
    while disk.inodes.child(intended.parent, beside(intended.component, turn)[0]) is not None:
        turn += 1
    name, component = beside(intended.component, turn)
    with disk.db.transaction():
        disk.cache.change(entry, etag=None)
        disk.inodes.move(entry.ino, intended.parent, name, component, now_ns)
        disk.inodes.update(entry.ino, etag=None)
    _promise_beside(disk, entry)


def _promise_beside(disk: Disk, entry: Entry) -> None:
    """Bring the promise in line with the name beside the file that the bytes have now."""
    promise, key = read_promise(disk.cache.promise_path(entry.id)), disk.inodes.key_of(entry.ino)
    if promise is not None and key is not None:
        promise = replace(promise, key=key, base=None, target=None)
        disk.cache.write_promise(entry.id, promise.encode())


def discard(disk: Disk, entry_id: EntryId) -> None:
    """Give the bytes of an entry that nobody has open up, for good."""
    entry = disk.cache.load(entry_id)
    with disk.db.transaction():
        disk.journal.discard(entry_id)
        disk.cache.end_promise(entry_id)
        if entry is None:
            return
        inode = disk.inodes.get(entry.ino)
        doomed = disk.cache.drop(entry)
        disk.inodes.leave_pin(inode)
        disk.inodes.detach(entry.ino, time.time_ns())
        if inode is not None and inode.parent is not None and inode.name is not None:
            disk.inodes.forget_removed(inode)
            disk.inodes.update(inode.parent, listed_ns=None)
        if not entry.pins:
            disk.inodes.drop(entry.ino)
    if doomed is not None:
        disk.cache.delete_file(doomed)
        disk.cache.deleted(doomed)


@contextmanager
def open_cache(directory: Path) -> Iterator[StoppedCache]:
    """Open a cache directory that no daemon uses. Raise ``InUse`` if one does."""
    if not directory.is_dir():
        raise UsageError(f"there is no cache directory {directory}")
    lock = CacheDirectory(directory)
    try:
        disk = open_disk(directory, limit=2**62, min_free=0, policy=None, check=lambda db: None)
        try:
            yield StoppedCache(disk)
        finally:
            close_disk(disk)
    finally:
        lock.close()
