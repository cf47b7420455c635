"""The database of a cloud manager: its files, where their copies live, and what is in its storage.

Many processes and threads at once may have one open. Every statement and every transaction is short.
"""

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from cachefs.core.errors import CacheError, DiskFull, UsageError

_BUSY_MS: Final = 30_000
_TRIES: Final = 100
_PAUSE_S: Final = 0.05
_TABLES: Final = {"files", "copies", "held", "parts", "traffic"}

_COUNTS: Final = (
    "(c.state = 'stored' OR"
    " c.state = 'said' AND NOT EXISTS (SELECT 1 FROM held AS h WHERE h.hash = c.hash))"
)
"""Whether nothing is to be done about a copy: what a dump says is made sure of when the bytes are here anyway."""


@dataclass(frozen=True, slots=True)
class Known:
    """A file that was uploaded, or will be."""

    hash: str
    name: str
    size: int
    added_ns: int
    dump: str | None


@dataclass(frozen=True, slots=True)
class Copy:
    """An object that has the bytes of a file, or was found not to have them."""

    hash: str
    remote: str
    key: str
    etag: str | None
    state: str
    """``stored``, ``damaged`` or ``missing``, as it was seen last; ``said``: by a dump, and not seen yet."""
    stored_ns: int


class Catalogue:
    """The tables of ``catalogue.sql``. For any number of threads; goes on in a forked child."""

    def __init__(self, path: Path) -> None:
        """Open the database, or make it. Raise ``UsageError`` for a file that is no such database."""
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self._is_closed = False
        try:
            self._connection: sqlite3.Connection | None = self._opened()
        except (sqlite3.Error, OSError) as error:
            raise UsageError(f"cannot open the database {path}: {error}") from error
        _survive_forks(self)

    def _opened(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000
        )
        try:
            self._use_log(connection)
            connection.execute("PRAGMA synchronous = FULL")  # what is acknowledged stays
            connection.execute("PRAGMA foreign_keys = ON")
            self._make_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _use_log(connection: sqlite3.Connection) -> None:
        """Let readers and a writer work beside each other. Others who open the file now may be doing the same."""
        for tries_left in reversed(range(_TRIES)):
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if not tries_left or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                threading.Event().wait(_PAUSE_S)
            else:
                return

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        there = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        if there and not there & _TABLES:
            raise UsageError(
                f"{self.path} is a database of something else — name another file for this one"
            )
        if not there >= _TABLES:
            schema = files("cachefs.local").joinpath("catalogue.sql").read_text("utf-8")
            connection.executescript(f"BEGIN IMMEDIATE; {schema}; COMMIT;")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Have the tables to oneself: what the block executes stays as a whole, or not at all. Inner ones join.

        Raise ``CacheError`` if others keep them for half a minute.
        """
        with self._lock, self._explained():
            if self._depth:
                yield
                return
            connection = self._here()
            connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement. Return how many rows it has changed."""
        with self._lock, self._explained():
            return self._here().execute(sql, values).rowcount

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return every row."""
        with self._lock, self._explained():
            return self._here().execute(sql, values).fetchall()

    def number(self, sql: str, values: Sequence[object] = ()) -> int:
        """Return the one number that *sql* asks for."""
        return int(self.all(sql, values)[0][0] or 0)

    def _here(self) -> sqlite3.Connection:
        if self._is_closed:
            raise CacheError(f"the database {self.path} is closed")
        if self._connection is None:
            self._connection = self._opened()
        return self._connection

    def before_fork(self) -> None:
        """Let the file go, when no thread is using it: SQLite's locks are in disorder where a child inherits them."""
        self._lock.acquire()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def after_fork(self) -> None:
        """Go on, in the parent and in the child: the file is opened again when it is used."""
        self._lock.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            is_full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            kind = DiskFull if is_full else CacheError
            raise kind(f"the database {self.path}: {error}") from error

    def close(self) -> None:
        """Let the database go."""
        with self._lock:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ---- files and their copies -------------------------------------------------------------

    def known(self, digest: str) -> Known | None:
        """Return what is known of a file."""
        rows = self.all(
            "SELECT hash, name, size, added_ns, dump FROM files WHERE hash = ?", (digest,)
        )
        return Known(*rows[0]) if rows else None

    def add(self, file: Known) -> None:
        """Know of *file* from now on. Nothing changes if it is known."""
        self.execute(
            "INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?, ?)",
            (file.hash, file.name, file.size, file.added_ns, file.dump),
        )

    def copies(self, digest: str) -> list[Copy]:
        """Return where a file lives, by the names of the remotes."""
        rows = self.all(
            "SELECT hash, remote, key, etag, state, stored_ns FROM copies WHERE hash = ? ORDER BY remote",
            (digest,),
        )
        return [Copy(*row) for row in rows]

    def note_copy(self, copy: Copy) -> None:
        """Keep what is known of *copy* now."""
        self.execute(
            "INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?, ?, ?)",
            (copy.hash, copy.remote, copy.key, copy.etag, copy.state, copy.stored_ns),
        )

    def lacking(self, remote: str, after: tuple[int, str], limit: int) -> list[Known]:
        """Return some files that *remote* does not have, those that came first before the others.

        *after* is the time and hash of the last one that is known already.
        """
        rows = self.all(
            "SELECT hash, name, size, added_ns, dump FROM files AS f"
            " WHERE (added_ns, hash) > (?, ?) AND NOT EXISTS"
            f" (SELECT 1 FROM copies AS c WHERE c.hash = f.hash AND remote = ? AND {_COUNTS})"
            " ORDER BY added_ns, hash LIMIT ?",
            (*after, remote, limit),
        )
        return [Known(*row) for row in rows]

    def lacking_any(self, remotes: Sequence[str]) -> tuple[int, int]:
        """Return number and size of the files that one of *remotes* at least does not have."""
        marks = ",".join("?" * len(remotes))
        rows = self.all(
            "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM files AS f WHERE"
            f" (SELECT COUNT(*) FROM copies AS c WHERE c.hash = f.hash AND {_COUNTS}"
            f" AND remote IN ({marks})) < ?",
            (*remotes, len(remotes)),
        )
        return int(rows[0][0]), int(rows[0][1])

    def states(self, remote: str) -> dict[str, int]:
        """Return how many files *remote* has, and of how many it has lost or damaged the copy."""
        counted = dict(
            self.all(
                "SELECT state, COUNT(*) FROM copies WHERE remote = ? GROUP BY state", (remote,)
            )
        )
        return {state: int(counted.get(state, 0)) for state in ("stored", "damaged", "missing")}

    def undumped(self) -> list[Known]:
        """Return every file that was loaded from no dump, the oldest first."""
        rows = self.all(
            "SELECT hash, name, size, added_ns, dump FROM files WHERE dump IS NULL ORDER BY added_ns, hash"
        )
        return [Known(*row) for row in rows]

    def count_traffic(self, month: str, direction: str, size: int) -> None:
        """Add *size* bytes to what went in *direction*."""
        self.execute(
            "INSERT INTO traffic VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes",
            (month, direction, size),
        )


class Stored:
    """Tells which files are uploaded, so that they may be removed here: *copies* of *remotes* have a copy of each."""

    def __init__(self, catalogue: Catalogue, remotes: Sequence[str], copies: int) -> None:
        self._catalogue = catalogue
        self._sql = (
            "(SELECT COUNT(*) FROM copies AS c WHERE c.hash = h.hash AND c.state = 'stored'"
            f" AND c.remote IN ({','.join('?' * len(remotes))})) >= ?"
        )
        self._values = (*remotes, copies)

    def has(self, digest: str) -> bool:
        """Whether a file is uploaded."""
        sql = f"SELECT 1 FROM (SELECT ? AS hash) AS h WHERE {self._sql}"
        return bool(self._catalogue.all(sql, (digest, *self._values)))

    def removable(self) -> list[tuple[str, int]]:
        """Return hash and size of every file that is held and uploaded."""
        sql = f"SELECT h.hash, h.size FROM held AS h WHERE {self._sql}"
        return [
            (str(digest), int(size)) for digest, size in self._catalogue.all(sql, self._values)
        ]


def _survive_forks(catalogue: Catalogue) -> None:
    """Have *catalogue* told of forks as long as anybody uses it."""
    reference = weakref.ref(catalogue)
    held: list[
        Catalogue
    ] = []  # from before the fork until after it, so that what is locked is let go

    def before() -> None:
        found = reference()
        if found is not None:
            found.before_fork()
            held.append(found)

    def after() -> None:
        while held:
            held.pop().after_fork()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)
