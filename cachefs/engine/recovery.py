"""Carries out what :func:`cachefs.core.policy.remedy` says about a cache directory that a daemon has left."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cachefs.core.errors import UsageError
from cachefs.core.intent import Intent, State
from cachefs.core.keys import name_of
from cachefs.core.policy import Remains, Remedy, remedy
from cachefs.core.types import EntryId, Ino, Key, Kind
from cachefs.engine.conflict import beside
from cachefs.engine.promise import Promise
from cachefs.local.cache import PROMISE_SUFFIX, SEALED_SUFFIX, Cache, Entry
from cachefs.local.db import Database
from cachefs.local.directory import CacheDirectory, boot_id
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.local.journal import Journal

_log = logging.getLogger(__name__)

_ASIDE = "a program was writing this file when the daemon ended; what the store has keeps the name"
_UNSYNCED = "the machine stopped before these bytes were safe on the disk; the store keeps the version before"
_LOST = "the bytes promised to the store are gone from the cache directory"


@dataclass(frozen=True, slots=True)
class Disk:
    """The owners of what is on the disk, opened together."""

    db: Database
    inodes: InodeTable
    cache: Cache
    journal: Journal


def open_disk(directory: Path, *, limit: int, min_free: int, now_ns: int) -> Disk:
    """Open the tables of a cache directory whose lock the caller holds."""
    db = Database(directory)
    journal = Journal(db, boot=boot_id())
    inodes = InodeTable(db, is_dirty=journal.is_dirty)
    inodes.make_root(now_ns)
    cache = Cache(db, directory, limit=limit, min_free=min_free)
    if db.was_rebuilt:
        _log.error("%s was damaged; it was set aside and a new one begun", db.path)
    return Disk(db, inodes, cache, journal)


def recover(disk: Disk, *, now_ns: int) -> None:
    """Bring a cache directory into order after the last daemon, however it ended."""
    boot = boot_id()
    disk.cache.skip_numbers()
    for entry_id in disk.cache.all_ids():
        entry = disk.cache.load(entry_id)
        if entry is not None:
            verdict = remedy(_remains(disk, entry), boot=boot)
            with disk.db.transaction():
                _carry_out(disk, entry, verdict, now_ns)
    for ino in disk.inodes.detached():
        if disk.cache.find(ino) is None:
            disk.inodes.drop(ino)
    _adopt_strays(disk, now_ns)


def _remains(disk: Disk, entry: Entry) -> Remains:
    intent = disk.journal.of(entry.id)
    inode = disk.inodes.get(entry.ino)
    try:
        length = os.stat(disk.cache.path_of(entry.id)).st_size
    except FileNotFoundError:
        length = -1
    return Remains(
        has_file=length >= 0,
        is_named=inode is not None and inode.parent is not None,
        state=None if intent is None else intent.state,
        boot=None if intent is None else intent.boot,
        is_whole=length >= max((extent.stop for extent in entry.here), default=0),
    )


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
            _set_aside(disk, entry, _ASIDE, now_ns)
        case Remedy.PARK_UNSYNCED:
            _set_aside(disk, entry, _UNSYNCED, now_ns)
        case Remedy.PARK_LOST:
            _park(disk, entry.id, _LOST)
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
    disk.cache.take_whole(entry, is_acknowledged=is_acknowledged)
    disk.cache.drop_sealed(entry.id)
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


def _set_aside(disk: Disk, entry: Entry, reason: str, now_ns: int) -> None:
    """Keep the bytes for `cachefs recover`, and let the name stand for what the store has."""
    entry.sums.clear()
    disk.cache.take_whole(entry)
    _park(disk, entry.id, reason)
    inode = disk.inodes.get(entry.ino)
    disk.inodes.update(entry.ino, size=entry.size)
    disk.inodes.detach(entry.ino, now_ns)
    if inode is not None and inode.parent is not None and inode.name is not None:
        disk.inodes.forget_removed(inode)
        disk.inodes.update(inode.parent, listed_ns=None)


# ---- files without a row: the database was lost -----------------------------------------------


def _adopt_strays(disk: Disk, now_ns: int) -> None:
    promises: list[Path] = []
    for path in disk.cache.strays():
        stem = path.name.partition(".")[0]
        if path.name.endswith(PROMISE_SUFFIX):
            promises.append(path)
        elif not path.with_name(stem + PROMISE_SUFFIX).exists():
            disk.cache.remove_stray(path)
    for path in promises:
        with disk.db.transaction():
            _adopt(disk, path, now_ns)


def _adopt(disk: Disk, promise_path: Path, now_ns: int) -> None:
    content = promise_path.with_name(promise_path.name.removesuffix(PROMISE_SUFFIX))
    try:
        promise = Promise.decode(promise_path.read_bytes())
    except ValueError:
        _log.error("%s cannot be read; %s is left where it is", promise_path, content)
        return
    sealed = content.with_name(content.name + SEALED_SUFFIX)
    if sealed.exists():  # acknowledged content, which was being written again
        content, promise = sealed, replace(promise, is_sealed=True, check=None)
    if not content.exists():
        disk.cache.remove_stray(promise_path)
        return
    ino = _place(disk.inodes, promise.key, now_ns)
    if disk.cache.find(ino) is not None:
        _log.error("%s: %s has other bytes already; left where it is", content, ascii(promise.key))
        return
    if not _is_as_promised(content, promise):
        _log.error("%s: bytes of %s changed on its disk", content, ascii(promise.key))
        promise = replace(promise, is_sealed=False, check=None)
    entry = disk.cache.adopt(content, ino, etag=promise.base, now_ns=now_ns)
    if content == sealed:
        _remove_if_there(
            disk.cache, promise_path.with_name(promise_path.name.removesuffix(PROMISE_SUFFIX))
        )
    disk.inodes.update(ino, size=entry.size, etag=promise.base)
    disk.journal.restore(
        entry.id,
        promise.token,
        is_sealed=promise.is_sealed,
        error=None if promise.is_sealed else _ASIDE,
    )
    disk.cache.write_promise(entry.id, promise.encode())
    disk.cache.count_promise()
    if not promise.is_sealed:
        disk.inodes.detach(ino, now_ns)
    if promise_path != disk.cache.promise_path(entry.id):
        disk.cache.remove_stray(promise_path)
    _log.warning("found dirty bytes of %s without a database; taken up again", ascii(promise.key))


def _is_as_promised(content: Path, promise: Promise) -> bool:
    """Whether sealed bytes are those that were acknowledged, as far as the promise tells."""
    if promise.check is None or not promise.is_sealed:
        return True
    with content.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return Cache.summed(file.fileno(), size).check == promise.check


def _remove_if_there(cache: Cache, path: Path) -> None:
    if path.exists():
        cache.remove_stray(path)


def _place(inodes: InodeTable, key: Key, now_ns: int) -> Ino:
    """Return the inode of *key*, making the path to it where nothing is known of it."""
    parent = ROOT
    *directories, last = key.split("/")
    for component in directories:
        parent = _child(inodes, parent, component, Kind.DIR, now_ns).ino
    return _child(inodes, parent, last, Kind.FILE, now_ns).ino


def _child(inodes: InodeTable, parent: Ino, component: str, kind: Kind, now_ns: int) -> Inode:
    found = inodes.child(parent, name_of(component))
    if found is None:
        inodes.insert_seen(parent, name_of(component), component, kind, None, now_ns)
        found = inodes.child(parent, name_of(component))
    assert found is not None
    return found


# ---- what `cachefs recover` does where no daemon lives ----------------------------------------


def describe(disk: Disk, intent: Intent) -> dict[str, object]:
    """Return what the operator is told of one dirty entry."""
    entry = disk.cache.load(intent.entry)
    key = None if entry is None else disk.inodes.key_of(entry.ino)
    if key is None:
        key = _promised_key(disk.cache, intent.entry)
    path = None if entry is None else disk.inodes.path_of(entry.ino)
    return {
        "id": int(intent.entry),
        "key": key,
        "path": (path or b"").decode("utf-8", "surrogateescape") or key,
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


def _promised_key(cache: Cache, entry_id: EntryId) -> Key | None:
    try:
        return Promise.decode(cache.promise_path(entry_id).read_bytes()).key
    except (OSError, ValueError):
        return None


class StoppedCache:
    """A cache directory without a daemon, for ``cachefs recover``."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

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
    key = _promised_key(disk.cache, entry.id)
    if key is None:
        raise UsageError("nothing tells where these bytes belong — export them instead")
    intended = disk.inodes.get(_place(disk.inodes, key, now_ns))
    assert intended is not None and intended.parent is not None
    turn = 0
    while disk.inodes.child(intended.parent, beside(intended, turn)[0]) is not None:
        turn += 1
    name, component = beside(intended, turn)
    with disk.db.transaction():
        disk.cache.change(entry, etag=None)
        disk.inodes.move(entry.ino, intended.parent, name, component, now_ns)
        disk.inodes.update(entry.ino, etag=None)


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
        disk = open_disk(directory, limit=2**62, min_free=0, now_ns=time.time_ns())
        try:
            recover(disk, now_ns=time.time_ns())
            yield StoppedCache(disk)
        finally:
            disk.db.close()
    finally:
        lock.close()
