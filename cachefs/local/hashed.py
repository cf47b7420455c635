"""What was hashed and verified in a directory, kept so that nothing unchanged is hashed again.

One SQLite file for each directory and store; of a cache directory it is ``MEMORY_NAME`` in there, and its paths
are those of :func:`cached_path`. Losing it costs a hash of everything, and nothing else.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from cachefs.core.errors import CacheError
from cachefs.core.types import EntryId, ETag

_log = logging.getLogger(__name__)

MEMORY_NAME: Final = "hashed.sqlite3"
_SCHEMA: Final = 1
_TABLE: Final = """
CREATE TABLE files (
    path        BLOB PRIMARY KEY,   -- relative to the root
    size        INTEGER NOT NULL,   -- these three: of the file that was hashed; another file has others
    mtime_ns    INTEGER NOT NULL,
    inode       INTEGER NOT NULL,
    md5         TEXT NOT NULL,
    etag        TEXT,               -- the version at the store that was found to be these bytes; NULL: none was
    verified_ns INTEGER             -- when that was
) STRICT, WITHOUT ROWID
"""
_MAGIC: Final = b"SQLite format 3\0"
_OURS: Final = 0x63667368
"""``PRAGMA application_id`` of such a file: in its header, by which it is told from anything else."""
_OURS_AT: Final = slice(68, 72)
_SETTLED_NS: Final = 2 * 10**9
"""A file that was changed so shortly before its hash may change again within the same tick of its clock."""
_AT_ONCE: Final = 500
"""Paths in one question: SQLite takes 999 parameters, or more."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """By what a file is known to be unchanged: any write, or another file in its place, changes one of these."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return that of the file that *status* is of."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class Hashed:
    """One file as it was when it was hashed."""

    path: str
    """Relative; bytes that are no UTF-8 as surrogates."""
    stamp: Stamp
    md5: str
    etag: ETag | None
    """The version at the store that had the same bytes; None: none was found."""
    verified_ns: int | None
    """When that was found, since the epoch."""


def cached_path(entry_id: EntryId) -> str:
    """Return under which path the bytes of a cache entry are kept, whose file no rename in the mount touches."""
    return f"data/{entry_id}"


class HashMemory:
    """The table of one directory. May be used from several threads; what was noted survives a kill.

    What the disk does not take, or another run keeps from being written, is not noted, and hashed again next time.
    Reading raises ``CacheError`` where the file is damaged.
    """

    def __init__(self, path: Path, *, is_named: bool = False) -> None:
        """Open or create it, private to the user. One that cannot be read is begun anew.

        *is_named*: by the user, so that what is there and is nothing of this kind is left alone. Raise ``CacheError``
        then, and where the file can be neither read nor made.
        """
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._is_foreign():
                if is_named:
                    raise CacheError(
                        f"{path} is not what an earlier run has remembered — name another file, or move it away"
                    )
                self._set_aside()
            self._connection = self._opened()
        except (OSError, sqlite3.Error) as error:
            raise CacheError(
                f"what was hashed cannot be kept in {path}: {error} — free it, or name another file"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def known(self, path: str, stamp: Stamp) -> Hashed | None:
        """Return what is kept of *path*, if the file is still the one that was hashed."""
        return self.known_all({path: stamp}).get(path)

    def known_all(self, files: Mapping[str, Stamp]) -> dict[str, Hashed]:
        """Return by path what is kept of those of *files* that are still the ones that were hashed."""
        found: dict[str, Hashed] = {}
        paths = [os.fsencode(path) for path in files]
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._read(f"SELECT * FROM files WHERE path IN ({marks})", some)
            for row in map(_hashed, rows):
                if row.stamp == files[row.path]:
                    found[row.path] = row
        return found

    def keep(self, rows: Iterable[Hashed], *, now_ns: int) -> None:
        """Keep *rows*, but for those of files that were changed a moment ago, as :meth:`note` has it."""
        settled = [
            (
                os.fsencode(row.path),
                row.stamp.size,
                row.stamp.mtime_ns,
                _signed(row.stamp.inode),
                row.md5,
                row.etag,
                row.verified_ns,
            )
            for row in rows
            if _is_settled(row.stamp, now_ns)
        ]
        if settled:
            self._write_all("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", settled)

    def forget_all(self, paths: Iterable[str]) -> None:
        """Forget files."""
        doomed = [(os.fsencode(path),) for path in paths]
        if doomed:
            self._write_all("DELETE FROM files WHERE path = ?", doomed)

    def count(self) -> int:
        """Return how many files are kept."""
        ((number,),) = self._read("SELECT count(*) FROM files")
        return int(number)

    def note(self, path: str, stamp: Stamp, md5: str, *, now_ns: int) -> None:
        """Keep the MD5 of a file, unless it was changed a moment ago: then a later change might not show."""
        if not _is_settled(stamp, now_ns):
            return
        values = (os.fsencode(path), stamp.size, stamp.mtime_ns, _signed(stamp.inode), md5)
        self._write(
            "INSERT INTO files (path, size, mtime_ns, inode, md5) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns,"
            " inode = excluded.inode, md5 = excluded.md5, etag = NULL, verified_ns = NULL",
            values,
        )

    def verified(self, path: str, md5: str, etag: ETag, *, now_ns: int) -> None:
        """Keep that version *etag* at the store has the bytes whose MD5 is *md5*."""
        self._write(
            "UPDATE files SET etag = ?, verified_ns = ? WHERE path = ? AND md5 = ?",
            (etag, now_ns, os.fsencode(path), md5),
        )

    def doubt(self, path: str) -> None:
        """Forget that a version at the store was found right."""
        self._write(
            "UPDATE files SET etag = NULL, verified_ns = NULL WHERE path = ?", (os.fsencode(path),)
        )

    def forget(self, path: str) -> None:
        """Forget a file."""
        self._write("DELETE FROM files WHERE path = ?", (os.fsencode(path),))

    def all(self) -> Iterator[Hashed]:
        """Yield all that is kept, in the order of the bytes of the paths, on a connection of its own."""
        try:
            with closing(sqlite3.connect(self._path)) as connection:
                for row in connection.execute("SELECT * FROM files ORDER BY path"):
                    yield _hashed(row)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _read(self, question: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(question, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> CacheError:
        return CacheError(
            f"what was hashed cannot be read in {self._path}: {error} — remove that file: all is hashed once more"
        )

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        self._write_all(statement, [values])

    def _write_all(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Write, and commit at once: another run that writes is kept waiting for a moment only."""
        try:
            with self._lock, self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(statement, rows)
        except sqlite3.OperationalError as error:
            _log.info("what was hashed cannot be noted in %s: %s", self._path, error)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _is_foreign(self) -> bool:
        """Whether the file is there and was not made here."""
        try:
            with self._path.open("rb") as file:
                head = file.read(100)
        except FileNotFoundError:
            return False
        is_ours = head[_OURS_AT] == _OURS.to_bytes(4, "big")
        return bool(head) and not (head.startswith(_MAGIC) and is_ours)

    def _set_aside(self) -> None:
        os.replace(self._path, self._path.with_name(f"{self._path.name}.broken"))

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._set_aside()
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            # Before the log is used, so that it is in the file itself at once.
            if connection.execute("PRAGMA application_id").fetchone() != (_OURS,):
                connection.execute(f"PRAGMA application_id = {_OURS}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA:
                connection.execute("DROP TABLE IF EXISTS files")
                connection.execute(_TABLE)
                connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        except BaseException:
            connection.close()
            raise
        return connection


def _is_settled(stamp: Stamp, now_ns: int) -> bool:
    """Whether a later change of the file is sure to show, and SQLite can hold its time."""
    return -(2**63) <= stamp.mtime_ns <= now_ns - _SETTLED_NS


def _signed(inode: int) -> int:
    """Return *inode*, which has 64 bits, as SQLite has integers."""
    return inode - 2**64 if inode >= 2**63 else inode


def _hashed(row: tuple[bytes, int, int, int, str, str | None, int | None]) -> Hashed:
    path, size, mtime_ns, inode, md5, etag, verified_ns = row
    return Hashed(
        os.fsdecode(path),
        Stamp(size, mtime_ns, inode % 2**64),
        md5,
        None if etag is None else ETag(etag),
        verified_ns,
    )
