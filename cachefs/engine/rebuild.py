"""Dirty bytes whose row is gone or lies: the promise beside them says what they are owed to.

The database is one file, and whatever harms it harms all of it. The promises are as many files as there are dirty
entries, so where a row and a promise cannot both be true, the row goes.
"""

import logging
import os
import secrets
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from cachefs.core import metadata
from cachefs.core.errors import Damaged
from cachefs.core.intent import State
from cachefs.core.keys import MARK, name_of
from cachefs.core.types import EntryId, Ino, Key, Kind, Name, ObjectInfo, Token
from cachefs.engine.promise import Promise, read_promise
from cachefs.local.cache import PROMISE_SUFFIX, Cache, Entry
from cachefs.local.db import Database
from cachefs.local.directory import Sessions
from cachefs.local.history import History
from cachefs.local.inodes import DEEPEST, ROOT, Inode, InodeTable
from cachefs.local.journal import Journal
from cachefs.local.md5s import Md5s

_log = logging.getLogger(__name__)

ASIDE = "a program was writing this file when the daemon ended; what the store has keeps the name"
_CHANGED = (
    "the bytes changed on the cache's disk after they were acknowledged: they are kept, not stored"
)
_TWICE = "newer bytes that wait for upload have this name; these are older"
_ILLEGIBLE = "the file that says where these bytes belong cannot be read"


@dataclass(frozen=True, slots=True)
class Disk:
    """The owners of what is on the disk, opened together."""

    db: Database
    inodes: InodeTable
    cache: Cache
    journal: Journal
    history: History
    md5s: Md5s
    sessions: Sessions
    was_cut_off: bool
    """The last daemon did not come to its end, or some program has changed the tables since: what was known of the store last, they may not tell."""


# ---- rows that lie --------------------------------------------------------------------------


def doubtful(disk: Disk) -> list[EntryId]:
    """Return the rows that have to be looked at one by one: whatever is owed, and what cannot be as its row says.

    What is clean has to be looked at only where nothing proves that the tables are as the last daemon left them, and
    where its file is gone.
    """
    owed = {intent.entry for intent in disk.journal.all()}
    owed |= disk.cache.promised_ids() | disk.cache.sealed_ids()
    if disk.db.is_proven:
        entries = (disk.cache.find(ino) for ino in disk.inodes.detached())
        odd = {entry.id for entry in entries if entry is not None} | disk.cache.fileless_ids()
    else:
        odd = disk.cache.look_over(but=owed)
    return sorted((owed | odd) & set(disk.cache.all_ids()))


def disbelieve_lies(disk: Disk, doubted: Collection[EntryId]) -> None:
    """Forget each of the rows that cannot be true beside the promise of its file, and those that cannot be read.

    Raise ``Damaged`` where the indexes of tables that nobody has checked tell of other rows than the tables.
    """
    promised = disk.cache.promised_ids()
    for entry_id in doubted:
        if disk.db.is_unchecked:
            _hold_against_indexes(disk, entry_id)
        with disk.db.transaction():
            if _is_true(disk, entry_id, is_promised=entry_id in promised):
                continue
            _log.error(
                "what the database says of cache file %d is not true; its promise is believed",
                entry_id,
            )
            was_promised = disk.journal.of(entry_id) is not None
            disk.journal.discard(entry_id)
            disk.cache.disbelieve(entry_id, was_promised=was_promised)


def _hold_against_indexes(disk: Disk, entry_id: EntryId) -> None:
    """See that what is owed is found by every way on which it is looked for."""
    row = disk.db.one("SELECT ino FROM entries WHERE id = ?", (entry_id,))
    entry = disk.cache.load(entry_id)
    is_found = row is not None and entry is not None and entry.id == entry_id
    intent = disk.journal.of(entry_id)
    is_found = is_found and (intent is None or disk.journal.has(intent.token))
    inode = None if row is None else disk.inodes.get(row[0])
    for _ in range(DEEPEST):
        if inode is None or inode.parent is None or inode.name is None:
            break
        named = disk.inodes.child(inode.parent, inode.name)
        is_found = is_found and named is not None and named.ino == inode.ino
        is_found = is_found and disk.inodes.has_component(inode)
        inode = disk.inodes.get(inode.parent)
    if not is_found:
        raise Damaged("an index tells of other rows than its table")


def _is_true(disk: Disk, entry_id: EntryId, *, is_promised: bool) -> bool:
    try:
        entry = disk.cache.load(entry_id)
        intent = disk.journal.of(entry_id)
    except ValueError:
        return False
    promise = read_promise(disk.cache.promise_path(entry_id)) if is_promised else None
    if entry is None or promise is None:
        return entry is not None
    inode = disk.inodes.get(entry.ino)
    if intent is None:
        if inode is None or _stored_token(inode) != promise.token:
            return False
        disk.cache.remove_leftover(entry_id)
        return True
    key = disk.inodes.key_of(entry.ino)
    is_here = key is None or key in (promise.key, promise.target)
    return is_here and intent.token == promise.token


def _stored_token(inode: Inode) -> Token | None:
    """Return the promise that wrote the version which *inode* stands for, as far as its row tells."""
    if inode.etag is None:
        return None
    return metadata.token_of(ObjectInfo(Key(""), inode.size, inode.etag, 0, meta=inode.meta))


def is_as_promised(path: Path, promise: Promise) -> bool:
    """Whether a file has exactly the bytes that were summed when they were acknowledged."""
    if not promise.is_sealed or promise.check is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return Cache.summed(descriptor, os.fstat(descriptor).st_size).check == promise.check
    except OSError:
        return False
    finally:
        os.close(descriptor)


# ---- files without a row --------------------------------------------------------------------


def adopt_strays(disk: Disk, now_ns: int) -> None:
    """Take up again what is promised and has no row, the newest first, and delete what nobody is owed."""
    promised: set[EntryId] = set()
    others: list[Path] = []
    for path in disk.cache.strays():
        stem, _, suffix = path.name.partition(".")
        if f".{suffix}" == PROMISE_SUFFIX and stem.isdigit():
            promised.add(EntryId(int(stem)))
        else:
            others.append(path)
    for path in others:
        stem = path.name.partition(".")[0]
        if not (stem.isdigit() and int(stem) in promised):
            disk.cache.remove_stray(path)
    for entry_id in sorted(promised, reverse=True):
        with disk.db.transaction():
            _adopt(disk, entry_id, now_ns)


def _adopt(disk: Disk, entry_id: EntryId, now_ns: int) -> None:
    promise = read_promise(disk.cache.promise_path(entry_id))
    promise, reason = _choose_content(disk, entry_id, promise)
    if not disk.cache.path_of(entry_id).is_file():
        disk.cache.remove_stray(disk.cache.promise_path(entry_id))
        _log.error("the bytes promised as %s are gone from the cache directory", _told(promise))
        return
    if promise is None or disk.journal.has(promise.token):
        ino = _place_aside(disk.inodes, None, entry_id, now_ns)
        _take_up(disk, entry_id, ino, None, _ILLEGIBLE, now_ns)
    elif reason is None and (ino_of := _free_place(disk, promise.key, now_ns)) is not None:
        _take_up(disk, entry_id, ino_of, promise, None, now_ns)
    else:
        ino = _place_aside(disk.inodes, promise.key, entry_id, now_ns)
        _take_up(disk, entry_id, ino, promise, reason or _TWICE, now_ns)


def _choose_content(
    disk: Disk, entry_id: EntryId, promise: Promise | None
) -> tuple[Promise | None, str | None]:
    """Put the content in place that was acknowledged last. Return its promise, and why it is not to be stored, if so."""
    content = disk.cache.path_of(entry_id)
    if promise is None:
        return None, _ILLEGIBLE
    if is_as_promised(content, promise):
        disk.cache.drop_sealed(entry_id)
        return promise, None
    if not disk.cache.sealed_path(entry_id).is_file():
        if promise.is_sealed and promise.check is None:
            return promise, None
        return promise, _CHANGED if promise.is_sealed else ASIDE
    # Acknowledged content, which was being written again. Of what it is summed as, the promise tells no more.
    kept = replace(promise, is_sealed=True, check=None)
    disk.cache.write_promise(entry_id, kept.encode())
    disk.cache.take_sealed(entry_id)
    return kept, None


def _take_up(
    disk: Disk,
    entry_id: EntryId,
    ino: Ino,
    promise: Promise | None,
    reason: str | None,
    now_ns: int,
) -> None:
    base = None if promise is None else promise.base
    token = Token(secrets.token_hex(16)) if promise is None else promise.token
    entry = disk.cache.adopt(entry_id, ino, etag=base, now_ns=now_ns)
    disk.inodes.update(ino, size=entry.size, etag=base)
    disk.journal.restore(entry_id, token, is_sealed=reason is None, error=reason)
    disk.cache.count_promise()
    if reason is None:
        _log.warning("found dirty bytes of %s without a database; taken up again", _told(promise))
        return
    disk.inodes.detach(ino, now_ns)
    _log.error("cache file %d, %s: %s", entry_id, _told(promise), reason)


def _told(promise: Promise | None) -> str:
    return "something unknown" if promise is None else ascii(promise.key)


# ---- places in the tree ---------------------------------------------------------------------


def _free_place(disk: Disk, key: Key, now_ns: int) -> Ino | None:
    """Return the inode of *key* for dirty bytes; None if others that are dirty, too, have it."""
    ino = place(disk.inodes, key, now_ns)
    found = disk.cache.find(ino)
    if found is None:
        return ino
    if disk.journal.of(found.id) is not None:
        return None
    doomed = disk.cache.drop(found)
    if doomed is not None:
        disk.cache.delete_file(doomed)
        disk.cache.deleted(doomed)
    return ino


def place(inodes: InodeTable, key: Key, now_ns: int) -> Ino:
    """Return the inode of *key*, making the path to it where nothing is known of it."""
    parent, last = _above(inodes, key, now_ns)
    return _child(inodes, parent, last, Kind.FILE, now_ns).ino


def _place_aside(inodes: InodeTable, key: Key | None, entry_id: EntryId, now_ns: int) -> Ino:
    """Return a new inode for bytes that cannot have the name they were meant for."""
    parent, component = ROOT, f"unknown-{entry_id}"
    if key is not None:
        parent, component = _above(inodes, key, now_ns)
    passing = Name(f"{MARK}aside-{entry_id}".encode())  # it is taken away again at once
    inodes.insert_seen(parent, passing, component, Kind.FILE, None, now_ns)
    made = inodes.child(parent, passing)
    assert made is not None
    return made.ino


def _above(inodes: InodeTable, key: Key, now_ns: int) -> tuple[Ino, str]:
    """Return the directory in which *key* lies, and its last component."""
    parent = ROOT
    *directories, last = key.split("/")
    for component in directories:
        parent = _child(inodes, parent, component, Kind.DIR, now_ns).ino
    return parent, last


def _child(inodes: InodeTable, parent: Ino, component: str, kind: Kind, now_ns: int) -> Inode:
    name = _name_for(inodes, parent, component, kind)
    found = inodes.child(parent, name)
    if found is None:
        inodes.insert_seen(parent, name, component, kind, None, now_ns)
        found = inodes.child(parent, name)
    assert found is not None
    return found


def _name_for(inodes: InodeTable, parent: Ino, component: str, kind: Kind) -> Name:
    """Return the name that shows it, where an object and a directory of one component lie side by side."""
    plain, shadowed = name_of(component), name_of(component, shadowed=True)
    holder = inodes.child(parent, plain)
    if holder is None or holder.is_dir == (kind is Kind.DIR):
        return plain
    if kind is not Kind.DIR:
        return shadowed
    inodes.rename_shown(holder.ino, shadowed)
    return plain


# ---- rows that say less than the promise ----------------------------------------------------


def catch_up(disk: Disk, entry: Entry, now_ns: int) -> None:
    """Bring a row in line with a promise that sums other bytes, where the file has exactly these: they are newer."""
    intent = disk.journal.of(entry.id)
    promise = read_promise(disk.cache.promise_path(entry.id))
    is_aside = disk.inodes.key_of(entry.ino) is None
    if intent is None or promise is None or is_aside:
        return
    is_behind = intent.state is State.OPEN or promise.check != entry.sums.check
    path = disk.cache.path_of(entry.id)
    if not is_behind or not is_as_promised(path, promise):
        return
    disk.cache.take_summed(entry)
    if intent.state is State.UPLOADING:
        disk.journal.requeue(entry.id, due_ns=now_ns)
    disk.journal.seal(entry.id, due_ns=now_ns, is_synced=True)


def agrees_on_bytes(disk: Disk, entry: Entry) -> bool:
    """Whether the promise tells of the same complete bytes as the row, as far as it sums them."""
    promise = read_promise(disk.cache.promise_path(entry.id))
    return promise is not None and promise.is_sealed and promise.check in (None, entry.sums.check)
