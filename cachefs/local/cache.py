"""Cached bytes: entries, their files, their pins, and what they take of the disk.

Only this module creates and deletes the files below ``data/``. A file is named by its entry's number, so that
no rename ever touches one. The row is made before the file and deleted before the file: a file without a row
is harmless.
"""

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import resource
import signal
import stat
import threading
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cachefs.core.errors import CacheError, NoHandles, UsageError, disk_error, naming_shortages
from cachefs.core.eviction import Candidate, Facts, Policy, Standing
from cachefs.core.extents import Extent, ExtentMap
from cachefs.core.sums import PieceSums, Summing
from cachefs.core.types import EntryId, ETag, Ino
from cachefs.local.db import Database
from cachefs.local.order import Order

_log = logging.getLogger(__name__)

BLOCK: Final = 4096
SLACK: Final = 2 * BLOCK
"""Bytes of disk that one write may take beyond its own blocks: the file system's own extent blocks."""
PROMISE_SUFFIX: Final = ".promise"
SEALED_SUFFIX: Final = ".sealed"
_CHUNK: Final = 2**18
_HANDLES_LEFT: Final = 256
"""Descriptors that cache files leave to everything else; of few, half."""
_COLUMNS: Final = "id, ino, etag, size, extents, cost, used_ns, sums, made_ns, hits, fetch_ns, queue, score, chances"
_READABLE: Final = 0o444
_WRITABLE: Final = 0o222
_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): share the blocks of another file."""


def blocks_of(extent: Extent) -> int:
    """Return the bytes of disk that writing *extent* can take at most."""
    first = extent.start // BLOCK
    last = -(-extent.stop // BLOCK)
    return (last - first) * BLOCK


@dataclass(slots=True)
class Entry:
    """The bytes of one version of one object, while somebody uses them.

    Belongs to the loop thread; worker threads get ``fd`` and numbers.
    """

    id: EntryId
    ino: Ino
    etag: ETag | None
    size: int
    here: ExtentMap
    cost: int
    used_ns: int
    sums: PieceSums = field(default_factory=PieceSums)
    """Of a clean entry: of every byte that is here. Of a dirty one: of what was acknowledged, or nothing."""
    trusted: ExtentMap = field(default_factory=ExtentMap)
    """What is here and was put there, or held against its sum, since the start."""
    fd: int = -1
    pins: int = 0
    dropped: bool = False
    """Its row is gone; the file goes when the last pin does."""
    made_ns: int = 0
    """When it was made, empty."""
    hits: int = 0
    """How often programs have opened it since."""
    fetch_ns: int = 0
    """For how long requests brought its bytes, those side by side counted once; 0: none of these bytes was fetched."""
    standing: Standing = field(default_factory=Standing)
    placed_cost: int = 0
    """Bytes of disk that the order of eviction counts for it."""
    is_learnt: bool = False
    """The order of eviction knows what fetching it took."""
    damages: int = 0
    """How often all bytes were given up since the start, because together they were not those of the object."""
    was_lent: bool = False
    """Programs may have its file open, which they were given to read: its bytes must not change there."""

    @property
    def is_ghost(self) -> bool:
        """Whether it has neither row nor file, because the disk had no room for them: no byte is ever here."""
        return not self.id

    @property
    def facts(self) -> Facts:
        """What the policies of eviction know of it."""
        return Facts(self.cost, self.made_ns, self.used_ns, self.hits, self.fetch_ns)

    def hit(self) -> None:
        """Count that a program has opened it."""
        if self.hits:
            self.standing = self.standing.hit()
        self.hits += 1

    @property
    def is_whole(self) -> bool:
        """Whether every byte from 0 to size is here."""
        return self.here.covers(Extent(0, self.size))


@dataclass(slots=True)
class Reservation:
    """Room taken before bytes are fetched or written. Give it back with :meth:`Cache.release`."""

    left: int


@dataclass(frozen=True, slots=True)
class Doomed:
    """A file whose row is gone, to be deleted in a thread."""

    path: Path
    cost: int
    fd: int = -1
    entry: EntryId | None = None
    """Whose file it was."""


@dataclass(slots=True, eq=False)
class Lent:
    """A file that programs were given to read: another name of an entry's file, or a copy."""

    path: Path
    entry: EntryId | None
    """Whose file it is; None: nobody's any more, so that only this name keeps it."""
    cost: int = 0
    """Bytes of disk that are free when this name goes: those of an entry's file are counted with the entry."""
    readers: int = 0o400
    """Who may open it, as the bits of a mode."""


@dataclass(slots=True)
class _Usage:
    entries: int = 0
    reserved: int = 0
    doomed: int = 0

    @property
    def total(self) -> int:
        return self.entries + self.reserved + self.doomed


def _sum_of(fd: int, piece: Extent) -> int | None:
    """Return the sum of the bytes that the disk has there; None if it does not have them."""
    try:
        found = os.pread(fd, piece.length, piece.start)
    except OSError:
        return None
    return zlib.crc32(found) if len(found) == piece.length else None


def _numbers(names: Iterable[str], suffix: str) -> Iterator[EntryId]:
    """Yield the numbers before *suffix*."""
    stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
    return (EntryId(int(stem)) for stem in stems if stem.isdigit())


def _reaches(extents: bytes, sums: bytes, length: int) -> bool:
    """Whether a file of that length can have what its row tells, and the row can be read at all."""
    try:
        PieceSums.decode(sums)
        here = ExtentMap.decode(extents)
    except ValueError:
        return False
    return length >= max((extent.stop for extent in here), default=0)


def _make_own(data: Path) -> None:
    with contextlib.suppress(FileExistsError):
        data.mkdir(mode=0o700)
    status = os.lstat(data)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UsageError(
            f"{data} is not a directory of yours — take it away, or use another --cache-dir"
        )


def _covered(sums: PieceSums) -> ExtentMap:
    return ExtentMap(piece for piece, _ in sums)


def _believe_only_summed(entry: Entry) -> None:
    """Count bytes that nothing can be held against as missing."""
    known = _covered(entry.sums)
    for extent in list(entry.here):
        for gap in known.missing(extent):
            entry.here.remove(gap)


class Cache:
    """Every cache entry, and the limit on what they take together.

    INVARIANT: used <= limit, where used counts the blocks of every file below data/, deleted ones until they
    are really gone, and every reservation.
    INVARIANT: a pinned entry is in ``_live`` with an open descriptor; an unpinned one is only a row, or waits in
    ``_unsaved`` until the disk takes its row.
    """

    def __init__(
        self,
        db: Database,
        directory: Path,
        *,
        limit: int,
        min_free: int,
        policy: Policy | None = None,
    ) -> None:
        """*limit* and *min_free* in bytes: the most that files below data/ take, and what their disk keeps free.

        policy: by what is evicted; None: as the last mount had it.
        """
        self._db = db
        self.order = Order(db, policy=policy, limit=limit)
        self.data = directory / "data"
        _make_own(self.data)
        self.limit = limit
        self.min_free = min_free
        names = os.listdir(self.data)
        for half_made in (name for name in names if ".new-" in name):
            self._unlink(self.data / half_made)
        self.lent = directory / "leased"
        """Where programs find the files that they are given to read."""
        _make_own(self.lent)
        for leftover in self.lent.iterdir():
            self._unlink(leftover)
        # Each lent file that is an entry's, by the entry's number.
        self._lent: dict[EntryId, Lent] = {}
        # Further names of entries' files, outside of our directories: they go before the file does, or changes.
        self._left: dict[EntryId, set[Path]] = {}
        self._left_to: dict[Path, EntryId] = {}
        self._live: dict[EntryId, Entry] = {}
        self._by_ino: dict[Ino, Entry] = {}
        self._unsaved: dict[EntryId, Entry] = {}
        self._fileless: set[EntryId] = set()
        # Bytes of disk of the copies of acknowledged content that is being written again.
        self._sealed = {
            entry_id: self.sealed_path(entry_id).stat().st_blocks * 512
            for entry_id in _numbers(names, SEALED_SUFFIX)
        }
        self._superseded: set[EntryId] = set()
        self._trusted: set[EntryId] = set()
        self.has_removed = False
        """Whether a kept copy was removed since :meth:`sync_removed`: it must not be there for the next promise."""
        self._usage = _Usage(entries=self._counted())

    # ---- room -------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes taken and reserved."""
        return self._usage.total

    @property
    def reserved(self) -> int:
        """Bytes reserved and not yet written."""
        return self._usage.reserved

    def short_of(self, need: int) -> int:
        """Return how many bytes are lacking before *need* more may be taken; 0 if none."""
        lacking = self.used + need - self.limit
        if self.min_free:
            disk = os.statvfs(self.data)
            lacking = max(
                lacking,
                self._usage.reserved + need + self.min_free - disk.f_bavail * disk.f_frsize,
            )
        return max(0, lacking)

    def reserve(self, need: int) -> Reservation | None:
        """Take room for *need* bytes, or return None if there is not enough."""
        if self.short_of(need):
            return None
        self._usage.reserved += need
        return Reservation(need)

    def release(self, reservation: Reservation) -> None:
        """Give back what is left of a reservation. Safe to call twice."""
        self._usage.reserved -= reservation.left
        reservation.left = 0

    def account(self, entry: Entry) -> None:
        """Measure what the entry's file takes of the disk now."""
        cost = os.fstat(entry.fd).st_blocks * 512
        if entry.dropped:
            self._usage.doomed += cost - entry.cost
        else:
            self._usage.entries += cost - entry.cost
        entry.cost = cost

    def estimate(self, entry: Entry, reservation: Reservation) -> None:
        """Count a reservation as taken by the entry, until :meth:`account` measures it.

        For a fetch that ends while another still writes into the same file, whose blocks cannot be told apart.
        """
        entry.cost += reservation.left
        if entry.dropped:
            self._usage.doomed += reservation.left
        else:
            self._usage.entries += reservation.left
        self._usage.reserved -= reservation.left
        reservation.left = 0

    # ---- entries ----------------------------------------------------------------------------

    def path_of(self, entry_id: EntryId) -> Path:
        """Return the entry's file."""
        return self.data / str(entry_id)

    def promise_path(self, entry_id: EntryId) -> Path:
        """Return the file that tells, without the database, what a dirty entry is owed to."""
        return self.data / f"{entry_id}{PROMISE_SUFFIX}"

    def find(self, ino: Ino) -> Entry | None:
        """Return the entry of an inode, unpinned, or None."""
        live = self._by_ino.get(ino)
        if live is not None:
            return live
        row = self._db.one(f"SELECT {_COLUMNS} FROM entries WHERE ino = ?", (ino,))
        if row is None:
            return None
        return Entry(
            id=EntryId(row[0]),
            ino=Ino(row[1]),
            etag=row[2],
            size=row[3],
            here=ExtentMap.decode(row[4]),
            cost=row[5],
            used_ns=row[6],
            sums=PieceSums.decode(row[7]),
            made_ns=row[8],
            hits=row[9],
            fetch_ns=row[10],
            standing=Standing(*row[11:]),
            placed_cost=row[5],
            is_learnt=row[10] > 0,
        )

    def load(self, entry_id: EntryId) -> Entry | None:
        """Return the entry with that number, unpinned, or None."""
        row = self._db.one("SELECT ino FROM entries WHERE id = ?", (entry_id,))
        return None if row is None else self.find(Ino(row[0]))

    def _require_handle(self) -> None:
        """Leave descriptors to the store's connections, the tables and the control socket: raise ``NoHandles``."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._live) >= max(allowed // 2, allowed - _HANDLES_LEFT):
            raise NoHandles("as many files are open as the daemon has descriptors for")

    def create(self, ino: Ino, *, etag: ETag | None, size: int, now_ns: int) -> Entry:
        """Make an empty entry for *ino*, which must have none, and pin it."""
        self._require_handle()
        entry = Entry(EntryId(0), ino, etag, size, ExtentMap(), 0, now_ns, made_ns=now_ns)
        entry.standing = self.order.arrived(ino, entry.facts)
        cursor = self._db.execute(
            "INSERT INTO entries (ino, etag, size, extents, cost, used_ns, made_ns, queue, score)"
            " VALUES (?, ?, ?, x'', 0, ?, ?, ?, ?)",
            (ino, etag, size, now_ns, now_ns, entry.standing.queue, entry.standing.score),
        )
        entry.id = EntryId(cursor.lastrowid or 0)
        try:
            with naming_shortages():
                entry.fd = os.open(
                    self.path_of(entry.id),
                    os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o600,
                )
        except BaseException:
            with contextlib.suppress(
                CacheError
            ):  # a row without a file is found out by the next pin
                self._db.execute("DELETE FROM entries WHERE id = ?", (entry.id,))
            raise
        entry.pins = 1
        self._live[entry.id] = self._by_ino[ino] = entry
        return entry

    @staticmethod
    def ghost(ino: Ino, *, etag: ETag | None, size: int, now_ns: int) -> Entry:
        """Return an entry that keeps nothing, where the disk has no room for one: what is read passes it by."""
        return Entry(EntryId(0), ino, etag, size, ExtentMap(), 0, now_ns, pins=1)

    def pin(self, entry: Entry, now_ns: int) -> Entry | None:
        """Pin an entry that :meth:`find` returned: it will not be evicted, and has a descriptor.

        Return None if its file is gone, cannot be opened, is none, or is shorter than its bytes, which then must
        not be believed.
        """
        live = self._live.get(entry.id)
        if live is not None:
            live.pins += 1
            return live
        self._require_handle()
        is_promised = self._is_promised(entry.id)
        try:
            with naming_shortages():
                entry.fd = self._open_own(self.path_of(entry.id))
        except OSError as error:
            if error.errno == errno.EIO and is_promised:
                raise disk_error(
                    error
                ) from error  # nothing but the file has these bytes: it is tried again
            return None
        last = max((extent.stop for extent in entry.here), default=0)
        status = os.fstat(entry.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size < last:
            os.close(entry.fd)
            entry.fd = -1
            return None
        entry.was_lent = not status.st_mode & _WRITABLE
        if entry.id in self._trusted:
            entry.trusted = entry.here.copy()
        elif not is_promised:
            _believe_only_summed(entry)
        entry.pins, entry.used_ns = 1, now_ns
        self._live[entry.id] = self._by_ino[entry.ino] = entry
        return entry

    @staticmethod
    def _open_own(path: Path) -> int:
        """Open an entry's file, also where its mode keeps everybody from writing into it, because it was lent."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(path, flags)
        except PermissionError:  # not root's, to whom modes mean nothing
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                raise
            os.chmod(path, 0o600)
            try:
                return os.open(path, flags)
            finally:
                os.chmod(path, stat.S_IMODE(status.st_mode))

    def unpin(self, entry: Entry, now_ns: int) -> Doomed | None:
        """Take one pin away; with the last one the row is brought up to date and the descriptor closed.

        Returns the file to delete, where the entry was dropped meanwhile.
        """
        entry.pins -= 1
        if entry.pins or entry.is_ghost:
            return None
        del self._live[entry.id]
        if entry.dropped:
            return self._doom(entry)
        entry.used_ns = now_ns
        if all(entry.trusted.covers(extent) for extent in entry.here):
            self._trusted.add(entry.id)
        try:
            self.account(entry)
            self._place(entry)
        finally:
            os.close(entry.fd)
            entry.fd = -1
            self._unsaved[entry.id] = entry
        with contextlib.suppress(CacheError):
            self._save_late(entry)
        return None

    def _place(self, entry: Entry) -> None:
        """Give an entry its place in the order of eviction, as it is given back."""
        if entry.fetch_ns and not entry.is_learnt:
            self.order.learn(entry.facts)
            entry.is_learnt = True
        self.order.grew(entry.standing, entry.cost - entry.placed_cost)
        entry.placed_cost = entry.cost
        entry.standing = self.order.placed(entry.facts, entry.standing)

    def save_late(self) -> None:
        """Bring the rows in line that a full disk did not take when they were to change."""
        for entry in list(self._unsaved.values()):
            self._save_late(entry)
        for entry_id in list(self._fileless):
            fileless = self.load(entry_id)
            if fileless is not None and not fileless.pins and not self._is_promised(entry_id):
                doomed = self.drop(fileless)
                if doomed is not None:
                    self.deleted(doomed)
            self._fileless.discard(entry_id)

    def _save_late(self, entry: Entry) -> None:
        self.save(entry)
        del self._unsaved[entry.id]
        if not entry.pins:
            del self._by_ino[entry.ino]

    def change(self, entry: Entry, *, etag: ETag | None, sums: PieceSums | None = None) -> None:
        """Give an entry another version, and new *sums*: it and its row, or neither."""
        before = entry.etag, entry.sums

        def undo() -> None:
            entry.etag, entry.sums = before

        entry.etag, entry.sums = etag, entry.sums if sums is None else sums
        try:
            self.save(entry)
        except BaseException:
            undo()
            raise
        self._db.if_undone(undo)

    def save(self, entry: Entry) -> None:
        """Bring the row in line with the entry."""
        self._db.execute(
            "UPDATE entries SET etag = ?, size = ?, extents = ?, cost = ?, used_ns = ?, sums = ?,"
            " hits = ?, fetch_ns = ?, queue = ?, score = ?, chances = ? WHERE id = ?",
            (
                entry.etag,
                entry.size,
                entry.here.encode(),
                entry.cost,
                entry.used_ns,
                entry.sums.encode(),
                entry.hits,
                entry.fetch_ns,
                entry.standing.queue,
                entry.standing.score,
                entry.standing.chances,
                entry.id,
            ),
        )

    def age(self, ino: Ino, used_ns: int) -> None:
        """Take the entry of *ino*, if it has one and nobody has it pinned, for last used at *used_ns*."""
        entry = None if ino in self._by_ino else self.find(ino)
        if entry is not None:
            entry.used_ns = used_ns
            entry.standing = self.order.placed(entry.facts, entry.standing)
            self.save(entry)

    def drop(self, entry: Entry) -> Doomed | None:
        """Forget the entry; SQLite refuses (IntegrityError) if its bytes are promised to the store.

        Returns the file to delete, or None while a pin holds it: then the last unpin returns it.
        """
        self._db.execute("DELETE FROM entries WHERE id = ?", (entry.id,))
        self._forget_row(entry)
        return None if entry.pins else self._doom(entry)

    def _forget_row(self, entry: Entry) -> None:
        cost, was_live = entry.cost, self._by_ino.get(entry.ino) is entry
        was_unsaved = entry.id in self._unsaved
        was_fileless = entry.id in self._fileless

        def undo() -> None:
            entry.dropped = False
            self.order.grew(entry.standing, entry.placed_cost)
            self._usage.entries += cost
            self._usage.doomed -= cost
            if was_live:
                self._by_ino[entry.ino] = entry
            if was_unsaved:
                self._unsaved[entry.id] = entry
            if was_fileless:
                self._fileless.add(entry.id)

        self._take_names(entry.id)
        entry.dropped = True
        self.order.grew(entry.standing, -entry.placed_cost)
        self._trusted.discard(entry.id)
        self._usage.entries -= cost
        self._usage.doomed += cost
        self._unsaved.pop(entry.id, None)
        self._fileless.discard(entry.id)
        if was_live:
            del self._by_ino[entry.ino]
        self._db.if_undone(undo)

    def give_up_file(self, entry: Entry) -> bool:
        """Delete the file of a clean, unpinned entry before its row, because the disk has no room to forget the row.

        Return whether there was a file. The row tells of bytes that are gone, as :meth:`pin` finds, until
        :meth:`save_late` removes it.
        """
        if entry.pins or entry.id in self._lent or self._is_promised(entry.id):
            return False
        self._take_names(entry.id)
        try:
            os.unlink(self.path_of(entry.id))
        except FileNotFoundError:
            return False
        self._fileless.add(entry.id)
        return True

    def _doom(self, entry: Entry) -> Doomed:
        return Doomed(self.path_of(entry.id), entry.cost, entry.fd, entry.id)

    @staticmethod
    def delete_file(doomed: Doomed) -> None:
        """Delete a dropped entry's file and close its descriptor. Blocks; any thread."""
        try:
            Cache._unlink(doomed.path)
        finally:
            if doomed.fd >= 0:
                os.close(doomed.fd)

    def deleted(self, doomed: Doomed) -> None:
        """Count the room of a file that :meth:`delete_file` has removed as free, unless it is lent: then at the end of that."""
        lent = self._lent.pop(doomed.entry, None) if doomed.entry else None
        if lent is None:
            self._usage.doomed -= doomed.cost
        else:
            lent.entry, lent.cost = None, doomed.cost

    def evictable(self, limit: int) -> Iterator[Candidate]:
        """Yield up to *limit* entries that are clean, and pinned neither by the operator nor by anybody's use.

        Lent ones are in use.

        In the order in which they go; what is taken may be dropped at once, and nothing else be done meanwhile.
        """
        yield from itertools.islice(
            self.order.victims({*self._live, *self._lent} if self._lent else self._live), limit
        )

    def entries_after(self, entry_id: EntryId, limit: int) -> list[Entry]:
        """Return up to *limit* entries, unpinned, whose numbers follow *entry_id*, the lowest first."""
        rows = self._db.all(
            "SELECT ino FROM entries WHERE id > ? ORDER BY id LIMIT ?", (entry_id, limit)
        )
        found = (self.find(Ino(ino)) for (ino,) in rows)
        return [entry for entry in found if entry is not None]

    def all_ids(self) -> list[EntryId]:
        """Return the numbers of all entries."""
        return [EntryId(row[0]) for row in self._db.all("SELECT id FROM entries")]

    def _is_promised(self, entry_id: EntryId) -> bool:
        return self._db.one("SELECT 1 FROM intents WHERE entry = ?", (entry_id,)) is not None

    # ---- files that programs are given to read ----------------------------------------------

    def lent_of(self, entry_id: EntryId) -> Lent | None:
        """Return the name under which the file of an entry is lent; None: it is not."""
        return self._lent.get(entry_id)

    def lend(self, entry: Entry, name: bytes, *, readers: int = 0o400) -> Lent:
        """Give the file of a pinned entry, which is whole and clean, another name: for others, to read.

        It is not evicted before :meth:`take_back`. *name* goes below :attr:`lent`; *readers*: who may open it, as
        the bits of a mode, beside those who may already if it is lent.
        """
        lent = self._lent.get(entry.id)
        if lent is not None:
            self.let_read(lent, readers)
            return lent
        lent = Lent(self.lent / os.fsdecode(name), entry.id, readers=readers & _READABLE)
        try:
            # Before anybody can open it: no program is to write where the cache reads.
            os.fchmod(entry.fd, lent.readers)
            entry.was_lent = True
            os.link(self.path_of(entry.id), lent.path)
        except OSError as error:
            raise disk_error(error) from error
        self._lent[entry.id] = lent
        return lent

    def let_read(self, lent: Lent, readers: int) -> None:
        """Let *readers* open a lent file too, beside those who may already."""
        wider = lent.readers | readers & _READABLE
        if wider == lent.readers:
            return
        try:
            os.chmod(lent.path, wider)
        except OSError as error:
            raise disk_error(error) from error
        lent.readers = wider

    def write_lent(self, fd: int, size: int, name: bytes, *, readers: int = 0o400) -> Lent:
        """Copy bytes for others to read; :meth:`lent_made` counts them. Blocks; any thread."""
        path = self.lent / os.fsdecode(name)
        try:
            cost = self._copy(fd, size, path)
            os.chmod(path, readers & _READABLE)
        except BaseException as error:
            self._unlink(path)
            if isinstance(error, OSError):
                raise disk_error(error) from error
            raise
        return Lent(path, None, cost, readers & _READABLE)

    def lent_made(self, lent: Lent) -> None:
        """Count the copy that :meth:`write_lent` made."""
        self._usage.doomed += lent.cost

    def take_back(self, lent: Lent) -> Doomed | None:
        """Remove the name of a lent file. Return the file, to be deleted, where nothing else keeps it.

        Whoever has it open can go on reading.
        """
        if lent.entry is None:
            return Doomed(lent.path, lent.cost)
        self._lent.pop(lent.entry, None)
        self._unlink(lent.path)
        return None

    def leave_names(self, lent: Lent, names: Iterable[Path]) -> bool:
        """Let further names of a lent file, and of what belongs to it, stay although nobody leases it any more.

        They are removed when its entry is dropped, evicted or about to change, unless they are reclaimed before. Return
        False where it is no entry's file, or that of one that is dropped already: then they must go.
        """
        entry_id = lent.entry
        if entry_id is None or not self._db.one("SELECT 1 FROM entries WHERE id = ?", (entry_id,)):
            return False
        for name in names:
            self.reclaim_name(name)
            self._left.setdefault(entry_id, set()).add(name)
            self._left_to[name] = entry_id
        return True

    def reclaim_name(self, name: Path) -> None:
        """Have a name to oneself again: the cache does not remove it any more."""
        entry_id = self._left_to.pop(name, None)
        if entry_id is not None:
            self._left[entry_id].discard(name)

    def left_to(self, name: Path) -> EntryId | None:
        """Return whose file a name was left to; None: it was not, or is not there any more."""
        return self._left_to.get(name)

    def _take_names(self, entry_id: EntryId) -> None:
        """Remove the further names of an entry's file. At once: somebody else may take them for another file."""
        for name in self._left.pop(entry_id, ()):
            del self._left_to[name]
            try:
                self._unlink(name)
            except OSError as error:
                _log.warning("%s cannot be removed: %s", name, error)

    def forget_lent(self) -> None:
        """Remove the names of all lent files: nothing is served any more."""
        for path in self.lent.iterdir():
            self._unlink(path)
        for entry_id in list(self._left):
            self._take_names(entry_id)

    def is_read_by_others(self, entry: Entry) -> bool:
        """Whether programs may have the file of a pinned entry open. Where they cannot any more, it may change again.

        For it is about to: names that were left to it go.
        """
        self._take_names(entry.id)
        if entry.id in self._lent:
            return True
        if not entry.was_lent:
            return False
        try:
            # The kernel gives a lease of its own only where nobody else has the file open. Who opens it while we
            # have that lease, which nobody can who does not rummage in our directory, causes a signal: an ignored one.
            fcntl.fcntl(entry.fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(entry.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(entry.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.fchmod(entry.fd, 0o600)
        except OSError:
            return True
        entry.was_lent = False
        return False

    def write_own(self, entry_id: EntryId, fd: int, size: int) -> int:
        """Copy the bytes of an entry for :meth:`take_own`. Return the copy's descriptor. Blocks; any thread."""
        path = self._own_path(entry_id)
        try:
            self._copy(fd, size, path)
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except BaseException as error:
            self._unlink(path)
            if isinstance(error, OSError):
                raise disk_error(error) from error
            raise

    def take_own(self, entry: Entry, copy: int) -> None:
        """Go on with the copy that :meth:`write_own` made: what programs have open stays as it is.

        Who is reading by the entry's descriptor at this moment gets the same bytes from either file.
        """
        try:
            os.rename(self._own_path(entry.id), self.path_of(entry.id))
            os.dup2(copy, entry.fd, inheritable=False)
        except OSError as error:
            raise disk_error(error) from error
        finally:
            os.close(copy)
        entry.was_lent = False
        lent = self._lent.pop(entry.id, None)
        if lent is not None:
            lent.entry, lent.cost = None, entry.cost
            self._usage.doomed += entry.cost
        self.account(entry)

    def _own_path(self, entry_id: EntryId) -> Path:
        return self.data / f"{entry_id}.new-own"

    # ---- bytes that rot ---------------------------------------------------------------------

    def forget_sums(self, entry: Entry) -> None:
        """Note that the entry's bytes are about to change: neither their sums nor what it took to fetch them is known."""
        self._db.execute("UPDATE entries SET sums = x'', fetch_ns = 0 WHERE id = ?", (entry.id,))
        known, entry.sums = entry.sums, PieceSums()
        took_ns, entry.fetch_ns = entry.fetch_ns, 0

        def undo() -> None:
            entry.sums, entry.fetch_ns = known, took_ns

        self._db.if_undone(undo)

    @staticmethod
    def summed(fd: int, size: int) -> PieceSums:
        """Return the sums of a file's bytes as they are on the disk now. Blocks; any thread."""
        known, summing, position = PieceSums(), Summing(0), 0
        while position < size and (chunk := os.pread(fd, min(_CHUNK, size - position), position)):
            position += len(chunk)
            for piece, total in summing.take(memoryview(chunk)):
                known.add(piece, total)
        for piece, total in summing.rest():
            known.add(piece, total)
        return known

    @staticmethod
    def rotten(fd: int, pieces: list[tuple[Extent, int]]) -> set[Extent]:
        """Return the pieces whose bytes are no longer what they were summed as. Blocks; any thread."""
        return {piece for piece, total in pieces if _sum_of(fd, piece) != total}

    # ---- promises beside the files ----------------------------------------------------------

    def write_promise(self, entry_id: EntryId, text: bytes, *, durably: bool = False) -> None:
        """Keep *text* beside the entry's file, whole or not at all. Blocks; any thread.

        Takes one block, which :meth:`promise_made` counts. *durably*: no loss of power brings back what stood there.
        """
        path = self.promise_path(entry_id)
        # Two closes of one file may be here at once, each in its thread.
        temporary = path.with_suffix(f".new-{threading.get_ident()}")
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            left = memoryview(text)
            while left:
                left = left[os.write(descriptor, left) :]
            if durably:
                os.fsync(descriptor)
            os.rename(temporary, path)
            if durably:
                self._sync(path.parent)
        except BaseException:
            self._unlink(temporary)
            raise
        finally:
            os.close(descriptor)

    def end_promise(self, entry_id: EntryId) -> None:
        """Remove what stood beside a dirty entry: its promise file, and its sealed copy. Once for each promise.

        In a transaction, when that is committed.
        """

        def end() -> None:
            self._usage.entries -= BLOCK
            self._unlink(self.promise_path(entry_id))
            self.drop_sealed(entry_id)

        self._db.when_done(end)

    @staticmethod
    def _unlink(path: Path) -> None:
        """Delete a file. What somebody else has put in its place is left to :meth:`strays`."""
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(path)

    def sync(self, entry_id: EntryId, fd: int, text: bytes) -> None:
        """Put the entry's bytes, and *text* as its promise, on the disk. Blocks; any thread.

        The promise is written first, so that one commit of the file system's journal takes both.
        """
        self.write_promise(entry_id, text)
        os.fdatasync(fd)
        self._sync(self.promise_path(entry_id))
        self._sync(self.data)

    @staticmethod
    def _sync(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def promise_made(self, reservation: Reservation) -> None:
        """Turn one reserved block into the block of a promise file, once the promise is committed."""

        def count() -> None:
            reservation.left -= BLOCK
            self._usage.reserved -= BLOCK
            self._usage.entries += BLOCK

        self._db.when_done(count)

    def count_promise(self) -> None:
        """Count the block of a promise file for which none was reserved: recovery's."""
        self._usage.entries += BLOCK

    # ---- acknowledged content that is being written again ------------------------------------

    def sealed_path(self, entry_id: EntryId) -> Path:
        """Return where the last acknowledged content of an entry is kept while a program writes it again."""
        return self.data / f"{entry_id}{SEALED_SUFFIX}"

    def has_sealed(self, entry_id: EntryId) -> bool:
        """Whether :meth:`write_sealed` has kept the content that was acknowledged last."""
        return entry_id in self._sealed and entry_id not in self._superseded

    def write_sealed(self, entry_id: EntryId, fd: int, size: int) -> int:
        """Copy the entry's file (sharing blocks where the file system can) and put the copy on the disk.

        Return the bytes of disk it takes. Blocks; any thread.
        """
        path = self.sealed_path(entry_id)
        temporary = path.with_suffix(".new-sealed")
        try:
            cost = self._copy(fd, size, temporary)
            os.rename(temporary, path)
            # Or the bytes that it stands in for could change on the disk before it has its name.
            self._sync(self.data)
        except BaseException:
            self._unlink(temporary)
            self._unlink(path)
            raise
        return cost

    @staticmethod
    def _copy(fd: int, size: int, target: Path) -> int:
        copy = os.open(
            target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                fcntl.ioctl(copy, _FICLONE, fd)
            except OSError:
                offset = 0
                while offset < size and (count := os.sendfile(copy, fd, offset, size - offset)):
                    offset += count
            os.fsync(copy)
            return os.fstat(copy).st_blocks * 512
        finally:
            os.close(copy)

    def sealed_made(self, entry_id: EntryId, cost: int) -> None:
        """Count the copy that :meth:`write_sealed` made."""
        self._usage.entries += cost - self._sealed.get(entry_id, 0)
        self._sealed[entry_id] = cost
        self._superseded.discard(entry_id)

    def supersede_sealed(self, entry_id: EntryId) -> None:
        """Note that newer content is acknowledged from now on; :meth:`drop_superseded` follows when it is safe."""
        if entry_id in self._sealed:
            self._superseded.add(entry_id)

    def drop_superseded(self, entry_id: EntryId) -> None:
        """Remove the kept copy, unless a newer one has taken its place meanwhile."""
        if entry_id in self._superseded:
            self.drop_sealed(entry_id)

    def drop_sealed(self, entry_id: EntryId) -> None:
        """Remove the kept copy: newer content is safe. Safe to call when there is none."""
        self._superseded.discard(entry_id)
        self.has_removed |= entry_id in self._sealed
        self._usage.entries -= self._sealed.pop(entry_id, 0)
        self._unlink(self.sealed_path(entry_id))

    def sync_removed(self) -> None:
        """See that no kept copy that was removed can come back after a loss of power. Blocks; any thread."""
        self.has_removed = False
        self._sync(self.data)

    def restore_sealed(self, entry: Entry) -> bool:
        """Put the acknowledged content back in the place of what was written after it. Return whether there was any."""
        cost = self._sealed.pop(entry.id, None)
        if cost is None:
            return False
        # Under both names until the tables are committed: where they cannot be, the next start finds it again.
        link = self.sealed_path(entry.id).with_suffix(".new-link")
        os.link(self.sealed_path(entry.id), link)
        os.rename(link, self.path_of(entry.id))
        self._unlink(link)  # which a rename of a file onto itself leaves
        self._db.when_done(lambda: self._unlink(self.sealed_path(entry.id)))
        entry.sums.clear()  # which of the two they are of, nothing tells
        self._usage.entries -= cost
        return True

    # ---- what a stopped daemon left ---------------------------------------------------------

    def skip_numbers(self) -> None:
        """Make sure that no new entry gets the number of a file that is there already."""
        stems = (name.partition(".")[0] for name in os.listdir(self.data))
        highest = max((int(stem) for stem in stems if stem.isdigit()), default=0)
        row = self._db.one("SELECT seq FROM sqlite_sequence WHERE name = 'entries'")
        if row is None:
            self._db.execute("INSERT INTO sqlite_sequence VALUES ('entries', ?)", (highest,))
        elif row[0] < highest:
            self._db.execute(
                "UPDATE sqlite_sequence SET seq = ? WHERE name = 'entries'", (highest,)
            )

    def take_whole(self, entry: Entry, *, is_acknowledged: bool = False) -> None:
        """Believe the file of a dirty entry rather than its row: a dirty entry is whole.

        *is_acknowledged*: the row tells of bytes that were synced, so what the file has behind them was not.
        """
        path = self.path_of(entry.id)
        if is_acknowledged and (entry.sums or not entry.size):
            summed = max((piece.stop for piece, _ in entry.sums), default=0)
            if os.stat(path).st_size > summed:
                os.truncate(path, summed)
        status = os.stat(path)
        self._usage.entries += status.st_blocks * 512 - entry.cost
        entry.size, entry.cost = status.st_size, status.st_blocks * 512
        summed = max((piece.stop for piece, _ in entry.sums), default=0)
        # Shorter than what was acknowledged: pin() will find that bytes are gone.
        entry.size = max(entry.size, summed)
        entry.here = ExtentMap([Extent(0, entry.size)])
        self.save(entry)

    def take_summed(self, entry: Entry) -> None:
        """Believe the file of a dirty entry, which has just been held against its promise."""
        descriptor = os.open(self.path_of(entry.id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            entry.sums = self.summed(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        self.take_whole(entry)

    def remeasure(self, entry: Entry) -> None:
        """Measure what an unpinned entry's file takes of the disk."""
        cost = os.stat(self.path_of(entry.id)).st_blocks * 512
        self._usage.entries += cost - entry.cost
        entry.cost = cost
        self.save(entry)

    def strays(self) -> Iterator[Path]:
        """Yield the files below data/ that no row stands for. What is no file was not put there by cachefs."""
        known = set(self.all_ids())
        for name in sorted(os.listdir(self.data)):
            stem = name.partition(".")[0]
            is_known = stem.isdigit() and int(stem) in known
            if not is_known and stat.S_ISREG(os.lstat(self.data / name).st_mode):
                yield self.data / name

    def promised_ids(self) -> set[EntryId]:
        """Return the numbers of which a promise file is there, whatever the rows say."""
        return set(_numbers(os.listdir(self.data), PROMISE_SUFFIX))

    def sealed_ids(self) -> set[EntryId]:
        """Return the numbers of which acknowledged content is kept beside what was written after it."""
        return set(self._sealed)

    def fileless_ids(self) -> set[EntryId]:
        """Return the numbers of the rows whose file is not there."""
        return set(self.all_ids()) - set(_numbers(os.listdir(self.data), ""))

    def look_over(self, *, but: Collection[EntryId]) -> set[EntryId]:
        """Hold every row (*but* those) against its file, and count what the files take of the disk.

        Return the numbers of those whose row makes no sense, whose file is not what it says, or that have no name.
        """
        wrong: set[EntryId] = set()
        costs: list[tuple[int, EntryId]] = []
        rows = self._db.each(
            "SELECT id, extents, sums, cost, parent IS NOT NULL FROM entries LEFT JOIN inodes USING (ino)"
        )
        for entry_id, extents, sums, cost, is_named in rows:
            if entry_id in but:
                continue
            length, found = self._measured(entry_id)
            if not is_named or not _reaches(extents, sums, length):
                wrong.add(EntryId(entry_id))
            elif found != cost:
                costs.append((found, EntryId(entry_id)))
                self._usage.entries += found - cost
        self._db.executemany("UPDATE entries SET cost = ? WHERE id = ?", costs)
        return wrong

    def _measured(self, entry_id: int) -> tuple[int, int]:
        """Return length and bytes of disk of a file; -1 and 0: there is none, or something else in its place."""
        try:
            status = os.lstat(f"{self.data}/{entry_id}")
        except FileNotFoundError:
            return -1, 0
        if not stat.S_ISREG(status.st_mode):
            return -1, 0
        return status.st_size, status.st_blocks * 512

    def remove_stray(self, path: Path) -> None:
        """Delete a file that no row stands for."""
        os.unlink(path)

    def age_future(self, now_ns: int) -> None:
        """Let nothing be kept for longer because a clock that was ahead says that it was used after *now_ns*."""
        ahead = self._db.execute(
            "UPDATE entries SET used_ns = min(used_ns, ?1), made_ns = min(made_ns, ?1)"
            " WHERE used_ns > ?1 OR made_ns > ?1",
            (now_ns,),
        )
        if ahead.rowcount and self.order.policy.goes_by_time:
            self.order.rank_anew()

    def remove_leftover(self, entry_id: EntryId) -> None:
        """Delete what stood beside an entry that is clean: its promise was kept just before the end."""
        self._unlink(self.promise_path(entry_id))
        self.drop_sealed(entry_id)

    def disbelieve(self, entry_id: EntryId, *, was_promised: bool) -> None:
        """Forget a row that cannot be true, and leave its files: they are strays then.

        *was_promised*: there was a promise of it, which is no more.
        """
        row = self._db.one("SELECT cost FROM entries WHERE id = ?", (entry_id,))
        if row is not None:
            self._usage.entries -= row[0] + (BLOCK if was_promised else 0)
            self._db.execute("DELETE FROM entries WHERE id = ?", (entry_id,))

    def adopt(self, entry_id: EntryId, ino: Ino, *, etag: ETag | None, now_ns: int) -> Entry:
        """Make an entry of a dirty file that has no row, keeping its bytes and its number. Unpinned."""
        status = os.lstat(self.path_of(entry_id))
        self._db.execute(
            "INSERT INTO entries (id, ino, etag, size, extents, cost, used_ns, made_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                entry_id,
                ino,
                etag,
                status.st_size,
                ExtentMap([Extent(0, status.st_size)]).encode(),
                status.st_blocks * 512,
                now_ns,
                now_ns,
            ),
        )
        self._usage.entries += status.st_blocks * 512
        found = self.load(entry_id)
        assert found is not None
        return found

    def take_sealed(self, entry_id: EntryId) -> None:
        """Put the acknowledged content of a file that has no row in the place of what was written after it."""
        self._usage.entries -= self._sealed.pop(entry_id, 0)
        os.rename(self.sealed_path(entry_id), self.path_of(entry_id))

    def _counted(self) -> int:
        """Return what the rows and the files beside them say is taken."""
        row = self._db.one("SELECT coalesce(sum(cost), 0) FROM entries")
        promised = self._db.one("SELECT count(*) FROM intents")
        assert row is not None and promised is not None
        return int(row[0]) + BLOCK * int(promised[0]) + sum(self._sealed.values())

    def check(self) -> None:
        """Assert every invariant; tests call this after each step."""
        unsaved = sum(
            entry.cost - self._saved_cost(entry)
            for entry in {**self._live, **self._unsaved}.values()
            if not entry.dropped
        )
        assert self._usage.entries == self._counted() + unsaved
        assert self.used <= self.limit
        for entry in self._live.values():
            assert entry.pins > 0 and entry.fd >= 0

    def _saved_cost(self, entry: Entry) -> int:
        row = self._db.one("SELECT cost FROM entries WHERE id = ?", (entry.id,))
        return int(row[0]) if row else 0

    def statistics(self) -> dict[str, int]:
        """Return what ``status`` shows: limit, used, reserved, entries, in bytes and counts."""
        row = self._db.one("SELECT count(*) FROM entries")
        return {
            "limit": self.limit,
            "used": self.used,
            "reserved": self._usage.reserved,
            "entries": int(row[0]) if row else 0,
            "pinned": len(self._live),
        }
