"""A cache held against itself: its database, its files and their checksums. Nothing is asked of the store.

It may be looked at beside its daemon: the tables are read over a connection that changes nothing, and nothing is said of
a file before its row was read once more.
"""

import errno
import os
import stat
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from cachefs.core.errors import CacheError
from cachefs.core.extents import Extent
from cachefs.core.intent import State
from cachefs.core.types import EntryId, ETag
from cachefs.local.cache import PROMISE_SUFFIX
from cachefs.local.tables import Row, Stopped, Tables
from cachefs.ops.events import Progress

_CHUNK: Final = 2**20
_DELETED_S: Final = 1.0
"""How long a daemon may take to delete a file whose row is gone."""
_UNREADABLE: Final = frozenset({errno.EIO, errno.EISDIR, errno.ELOOP, errno.EUCLEAN})


class Kind(StrEnum):
    """What is wrong."""

    DATABASE = "database"
    """The database, or a row of it."""
    MISSING = "missing"
    """A cache file is gone, or something else lies in its place."""
    SHORT = "short"
    """A cache file is shorter than its bytes."""
    ROTTED = "rotted"
    """Bytes are no longer what they were summed as."""
    STRAY = "stray"
    """A file of which the database knows nothing."""
    UNPROMISED = "unpromised"
    """Bytes that are owed to the store, and no file beside them that says so without the database."""


class Repair(StrEnum):
    """What was done about it."""

    DROPPED = "dropped"
    """The bytes were given up, and are fetched again when they are read."""
    REBUILT = "rebuilt"
    """The database was set aside, and a new one made."""
    TAKEN_UP = "taken_up"
    """It was taken up again, or removed if nobody needs it, as every start of a mount does."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong."""

    kind: Kind
    what: str
    """In words, which follow the path."""
    path: str = ""
    """Of the file in the mount; of a stray, its name below data/; empty: the database itself."""
    entry: EntryId | None = None
    etag: ETag | None = None
    is_owed: bool = False
    """The store does not have these bytes yet: they are never dropped."""
    repair: Repair | None = None
    advice: str = ""
    """What the operator can do, where nothing was done."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at."""

    names: int
    files: int
    bytes: int


class Mends(Protocol):
    """What can be done about flaws."""

    def drop(self, flaw: Flaw) -> bool:
        """Give up the clean bytes of a file. False: it is another version by now."""
        ...


Event = Flaw | Progress | Checked


class CacheCheck:
    """One cache directory, looked at once."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        is_served: bool,
        mends: Mends | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """*is_served*: a daemon works in it meanwhile."""
        self._database = cache_dir / "cachefs.sqlite3"
        self._data = cache_dir / "data"
        self._is_served = is_served
        self._mends = mends
        self._stop = stop

    def run(self) -> Generator[Event, None, None]:
        """Yield what is wrong, how far the check is, and at its end what was looked at.

        Raise ``CacheError`` where the database cannot be looked at, ``Stopped`` where it was told to stop.
        """
        if not self._database.exists():
            yield Flaw(Kind.DATABASE, "the database is gone")
            return
        is_sound = True
        with Tables(self._database, stop=self._stop) as tables:
            for what in tables.damage():
                is_sound = False
                yield Flaw(Kind.DATABASE, what)
            if is_sound:
                yield from self._files(tables)

    def _files(self, tables: Tables) -> Iterator[Event]:
        total, files, size = tables.count(), 0, 0
        yield Progress(0, 0, total_files=total)
        for row in tables.rows():
            if isinstance(row, str):
                yield Flaw(Kind.DATABASE, row)
                continue
            for flaw in self._confirmed(tables, row):
                yield self._mended(flaw)
            files += 1
            size += row.here.total
            yield Progress(files, size, total_files=max(total, files))
        yield from self._strays(tables)
        yield Checked(tables.names(), files, size)

    def _confirmed(self, tables: Tables, row: Row) -> list[Flaw]:
        """Return what is wrong with a file, if that is still so when its row is read once more."""
        flaws = list(self._look(row))
        if not flaws or not self._is_served:
            return flaws
        now = tables.row(row.id)
        if now is None:
            return []
        return [flaw for flaw in self._look(now) if flaw in flaws]

    def _mended(self, flaw: Flaw) -> Flaw:
        if flaw.is_owed:
            return replace(flaw, advice="it is never dropped: see cachefs recover")
        if self._mends is not None and self._mends.drop(flaw):
            return replace(flaw, repair=Repair.DROPPED)
        return flaw

    # ---- one file -------------------------------------------------------------------------------

    def _look(self, row: Row) -> Iterator[Flaw]:
        def flaw(kind: Kind, what: str) -> Flaw:
            return Flaw(kind, what, row.path, row.id, row.etag, is_owed=row.state is not None)

        if row.state is not None and not self._is_file(f"{row.id}{PROMISE_SUFFIX}"):
            yield flaw(Kind.UNPROMISED, "it is owed to the store, and only the database says so")
        path = self._data / str(row.id)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENOENT and error.errno not in _UNREADABLE:
                raise CacheError(f"cannot look at {path}: {error.strerror}") from error
            yield flaw(Kind.MISSING, f"its cache file {row.id} is gone: {error.strerror}")
            return
        try:
            yield from (flaw(kind, what) for kind, what in self._wrong_with(row, descriptor))
        finally:
            os.close(descriptor)

    def _wrong_with(self, row: Row, descriptor: int) -> Iterator[tuple[Kind, str]]:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            yield Kind.MISSING, f"in the place of its cache file {row.id} is no file"
            return
        if status.st_size < row.stop:
            yield Kind.SHORT, f"its cache file {row.id} has {status.st_size} of {row.stop} bytes"
            return
        if row.state is State.OPEN:  # being written: the sums are of what was acknowledged before
            return
        for piece, total in row.sums:
            if self._sum_of(descriptor, piece) != total:
                place = f"bytes {piece.start} to {piece.stop} of its cache file {row.id}"
                yield Kind.ROTTED, f"{place} changed on the disk"
                return

    def _is_file(self, name: str) -> bool:
        path = self._data / name
        return path.is_file() and not path.is_symlink()

    def _sum_of(self, descriptor: int, piece: Extent) -> int | None:
        """Return the sum of the bytes that the disk has there; None if it does not have them."""
        total, position = 0, piece.start
        while position < piece.stop:
            if self._stop():
                raise Stopped
            try:
                chunk = os.pread(descriptor, min(_CHUNK, piece.stop - position), position)
            except OSError:
                return None
            if not chunk:
                return None
            total = zlib.crc32(chunk, total)
            position += len(chunk)
        return total

    # ---- files that no row stands for -------------------------------------------------------------

    def _strays(self, tables: Tables) -> Iterator[Flaw]:
        found = self._unknown(tables)
        if found and self._is_served:
            # A daemon forgets the row first, and then deletes the file, in a thread.
            threading.Event().wait(_DELETED_S)
            found = [name for name in self._unknown(tables) if name in found]
        for name in found:
            what = "the database knows nothing of this file"
            yield Flaw(Kind.STRAY, what, name, is_owed=self._owes(name.partition(".")[0]))

    def _unknown(self, tables: Tables) -> list[str]:
        try:
            names = sorted(os.listdir(self._data))
        except FileNotFoundError:
            return []
        return [name for name in names if not self._is_known(tables, name.partition(".")[0])]

    @staticmethod
    def _is_known(tables: Tables, stem: str) -> bool:
        return stem.isdigit() and tables.has(EntryId(int(stem)))

    def _owes(self, stem: str) -> bool:
        return self._is_file(f"{stem}{PROMISE_SUFFIX}")
