"""What is in the cache, some files at a time, for those who look after it."""

from collections.abc import Iterator

from cachefs.core.cached import CachedFile, CachedPieces
from cachefs.core.heat import Presence
from cachefs.core.history import Accessed, HistoryPage
from cachefs.core.keys import path_shown
from cachefs.core.types import EntryId, Key, Kind, Name
from cachefs.engine.promise import read_promise
from cachefs.engine.rebuild import Disk
from cachefs.local.cache import Entry
from cachefs.local.history import Accesses
from cachefs.local.inodes import ROOT, Inode

_PAGE = 500
"""Files that are told of at a time, so that the loop serves between two."""


def page(disk: Disk, after: int) -> list[CachedFile]:
    """Return some files whose numbers follow *after*, the lowest first; an empty list if there are no more."""
    return [_told(disk, entry) for entry in disk.cache.entries_after(EntryId(after), _PAGE)]


def one(disk: Disk, entry_id: int) -> CachedPieces | None:
    """Return the file with that number as it is now, with its sums; None if there is none any more."""
    entry = disk.cache.load(EntryId(entry_id))
    return None if entry is None else CachedPieces(_told(disk, entry), entry.sums)


def everything(disk: Disk) -> Iterator[CachedFile]:
    """Yield every file."""
    after = 0
    while found := page(disk, after):
        yield from found
        after = found[-1].id


def path_of(disk: Disk, entry_id: EntryId, entry: Entry | None) -> str:
    """Return the path of an entry in the mount; of one without a name, that for which it was meant."""
    path = None if entry is None else disk.inodes.path_of(entry.ino)
    if path is None:
        key = promised_key(disk, entry_id)
        path = f"unknown-{entry_id}".encode() if key is None else path_shown(key)
    return path.decode("utf-8", "surrogateescape")


def promised_key(disk: Disk, entry_id: EntryId) -> Key | None:
    """Return the key that the promise beside an entry names."""
    promise = read_promise(disk.cache.promise_path(entry_id))
    return None if promise is None else promise.key


def presence(disk: Disk, path: str) -> Presence:
    """Return how much of the file *path* (relative to the root) is here, without asking the store."""
    inode: Inode | None = disk.inodes.get(ROOT)
    for part in path.encode("utf-8", "surrogateescape").split(b"/"):
        inode = None if inode is None else disk.inodes.child(inode.ino, Name(part))
    if inode is None or inode.kind is not Kind.FILE:
        return Presence(None, 0)
    entry = disk.cache.find(inode.ino)
    if entry is None:
        return Presence(inode.size, 0)
    is_dirty = disk.journal.of(entry.id) is not None
    if not is_dirty and (entry.etag != inode.etag or entry.size != inode.size):
        return Presence(inode.size, 0)
    return Presence(entry.size, entry.here.total)


def history(disk: Disk, after: int) -> HistoryPage:
    """Return what is remembered of the opens of some files whose inodes' numbers follow *after*."""
    found = disk.history.page(after, _PAGE)
    files = [told for each in found if (told := _remembered(disk, each)) is not None]
    return HistoryPage(files, found[-1].ino if found else None)


def _remembered(disk: Disk, accesses: Accesses) -> Accessed | None:
    """Return it with the file's path; None: it has none any more."""
    inode, path = disk.inodes.get(accesses.ino), disk.inodes.path_of(accesses.ino)
    if inode is None or path is None:
        return None
    entry = disk.cache.find(accesses.ino)
    return Accessed(
        path.decode("utf-8", "surrogateescape"),
        inode.size if entry is None else entry.size,
        accesses.opens,
        accesses.used_ns,
        accesses.days,
        fetch_ns=0 if entry is None else entry.fetch_ns,
    )


def _told(disk: Disk, entry: Entry) -> CachedFile:
    inode, intent = disk.inodes.get(entry.ino), disk.journal.of(entry.id)
    return CachedFile(
        id=entry.id,
        path=path_of(disk, entry.id, entry),
        key=disk.inodes.key_of(entry.ino),
        size=entry.size,
        cached=entry.here.total,
        cost=entry.cost,
        etag=entry.etag,
        used_ns=entry.used_ns,
        made_ns=entry.made_ns,
        hits=entry.hits,
        fetch_ns=entry.fetch_ns,
        fetch_s=disk.cache.order.fetch_s(entry.facts),
        standing=entry.standing,
        is_pinned=inode is not None and inode.is_pinned,
        mtime_ns=0 if inode is None else inode.mtime_ns,
        state=None if intent is None else intent.state,
        pins=entry.pins,
    )
