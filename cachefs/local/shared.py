"""The MD5s of a cache directory, or of a file of their own, used beside whoever else uses the same database.

A daemon's connection is :mod:`cachefs.local.db`. This one reads beside it (a reader and a writer of a write-ahead log
are in nobody's way), and writes where no daemon lives. Its transactions are short, and wait for those of others.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from cachefs.core.errors import CacheError, UsageError
from cachefs.local.db import NAME, SCHEMA_VERSION, Database
from cachefs.local.directory import CacheDirectory
from cachefs.local.migrations import MIGRATIONS

T = TypeVar("T")

_log = logging.getLogger(__name__)

_BUSY_MS: Final = 10_000
_TRIES: Final = 3
"""How often a lock of others is waited for, each time for ``_BUSY_MS``. Theirs last for milliseconds."""
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_KIND: Final = "md5s"
"""``meta.kind`` of a file that holds nothing but MD5s."""
_OLDEST_WITH_MD5S: Final = 6


class SharedDatabase:
    """One connection, which may be used by several threads: one after the other, each as long as its block.

    Where the file is replaced meanwhile (a daemon has set a damaged one aside), the new one is used.
    """

    def __init__(self, path: Path) -> None:
        """Open *path*: a cache directory, or a file of MD5s, which is made if there is none.

        Raise ``CacheError`` if it cannot be used, ``UsageError`` if it is something else, or of a newer cachefs.
        """
        self.is_directory = path.is_dir() or path.name == NAME
        """Whether it is that of a cache directory."""
        self.path = path / NAME if path.is_dir() else path
        self._lock = threading.RLock()
        self._depth = 0
        self._connection = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it. Safe to call twice."""
        with self._lock:
            self._connection.close()

    # ---- statements ----------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Have all that is read in the block be of one moment."""
        with self._lock, self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make what is written in the block one commit, or none of it."""
        with self._lock, self._transaction("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        if self._depth:
            yield
            return
        self._follow()
        self._patiently(lambda: self._connection.execute(begin))
        self._depth = 1
        try:
            yield
            self._patiently(lambda: self._connection.execute("COMMIT"))
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        finally:
            self._depth = 0

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement that writes."""
        with self.writing():
            return self._patiently(lambda: self._connection.execute(sql, values))

    def executemany(self, sql: str, rows: Sequence[Sequence[object]], /) -> None:
        """Run one statement for each of *rows*, all or none."""
        with self.writing():
            self._patiently(lambda: self._connection.executemany(sql, rows))

    def one(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        found = self.all(sql, values)
        return found[0] if found else None

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return every row."""
        with self._lock:
            if not self._depth:
                self._follow()
            return self._patiently(lambda: self._connection.execute(sql, values).fetchall())

    def get_meta(self, name: str) -> str | None:
        """Return what holds for the whole database under *name*."""
        row = self.one("SELECT value FROM meta WHERE name = ?", (name,))
        return None if row is None else str(row[0])

    def rest(self) -> None:
        """Let go of the file until it is used next."""
        with self._lock:
            self._connection.close()
            self._identity = (0, 0)

    def compact(self) -> int:
        """Write the file anew, without what is unused in it. Others wait meanwhile. Return how long it was."""
        move_log = "PRAGMA wal_checkpoint(TRUNCATE)"
        with self._lock:
            self._follow()
            self._patiently(lambda: self._connection.execute(move_log).fetchall())
            before = self.path.stat().st_size
            self._patiently(lambda: self._connection.execute("VACUUM"))
            self._patiently(lambda: self._connection.execute(move_log).fetchall())
        return before

    def _patiently(self, act: Callable[[], T]) -> T:
        """Do *act*, however often others have the file locked. Raise ``CacheError`` in the end."""
        for left in reversed(range(_TRIES)):
            try:
                return act()
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", 0)
                if code & 0xFF not in _BUSY or not left:
                    raise CacheError(f"{self.path} cannot be used: {error}") from error
        raise AssertionError("unreachable")

    # ---- opening ---------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Open the file anew where another has taken its place."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            now = None
        else:
            now = status.st_dev, status.st_ino
        if now != self._identity:
            self._connection.close()
            self._connection = self._opened()

    def _opened(self) -> sqlite3.Connection:
        try:
            if self.is_directory:
                self._be_current()
            else:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(
                    os.open(
                        self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
                    )
                )
            status = os.stat(self.path)
            self._identity = status.st_dev, status.st_ino
            return self._connected()
        except OSError as error:
            raise CacheError(f"cannot open {self.path}: {error.strerror}") from error
        except sqlite3.DatabaseError as error:
            raise CacheError(f"cannot open {self.path}: {error}") from error

    def _connected(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            timeout=_BUSY_MS / 1000,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        is_empty = not self.is_directory and os.stat(self.path).st_size == 0
        if is_empty:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA temp_store = MEMORY")
        if not self.is_directory:
            self._make(connection)
        version = self._version(connection)
        if version > SCHEMA_VERSION:
            raise UsageError(
                f"{self.path} was written by a newer cachefs (schema {version}, this one knows {SCHEMA_VERSION})"
                " — upgrade cachefs"
            )

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return that of the tables. Raise ``UsageError`` where they are none of cachefs."""
        try:
            found = connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
            return int(found[0])
        except (sqlite3.OperationalError, TypeError, ValueError):
            raise UsageError(
                f"{self.path} is no database of cachefs — name another file, or move it away"
            ) from None

    @staticmethod
    def _make(connection: sqlite3.Connection) -> None:
        """Make the tables of a file of MD5s, unless another process has."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                tables = MIGRATIONS[_OLDEST_WITH_MD5S - 1].split(";")
                table = next(each for each in tables if "CREATE TABLE md5s" in each)
                connection.execute(
                    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID"
                )
                connection.execute(table)
                connection.executemany(
                    "INSERT INTO meta VALUES (?, ?)",
                    [("schema", str(SCHEMA_VERSION)), ("kind", _KIND)],
                )
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _be_current(self) -> None:
        """See that a cache directory has its database, with this version's tables.

        Raise ``CacheError`` where an older cachefs has it in use.
        """
        if self._has_md5s():
            return
        lock = CacheDirectory(self.path.parent)
        try:
            Database(self.path.parent).close()
        finally:
            lock.close()

    def _has_md5s(self) -> bool:
        if not self.path.exists() or not self.path.stat().st_size:
            return False
        connection = sqlite3.connect(self.path, timeout=_BUSY_MS / 1000)
        try:
            return self._version(connection) >= _OLDEST_WITH_MD5S
        except UsageError:
            return False
        finally:
            connection.close()
