"""The one SQLite connection of a cache directory: opened, migrated, checked, closed."""

import errno
import logging
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from cachefs.core.errors import CacheError, Damaged, UsageError
from cachefs.local.migrations import MIGRATIONS

NAME: Final = "cachefs.sqlite3"
SCHEMA_VERSION: Final = 3
_BUSY_MS: Final = 5000
_STILL_BUSY_MS: Final = 50
"""How long a lock of another program is waited for that was not let go within ``_BUSY_MS``: nobody is served meanwhile."""
_DAMAGE: Final = re.compile(
    "malformed|no such (table|column)|unsupported file format|decode to UTF-8"
)
"""What SQLite says of a damaged file where it might as well be our mistake."""
_PLAIN: Final = re.compile("malformed|not a database|unsupported file format|decode to UTF-8")
_LOCKED: Final = re.compile("is locked")
_UNREADABLE: Final = re.compile("disk I/O error")

_log = logging.getLogger(__name__)


def _apply_pragmas(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses no committed row to a killed process; what must survive power loss is fsynced by sync_wal().
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    connection.execute("PRAGMA temp_store = MEMORY")


class Database:
    """The tables of ``schema.sql``. Belongs to the thread that opened it, save for the two class methods."""

    def __init__(self, directory: Path) -> None:
        """Open or create the database in *directory*.

        A file that is not a sound database is set aside as ``cachefs.sqlite3.broken-TIME`` and a new one begun
        (``was_rebuilt`` tells). Raise ``UsageError`` if a newer cachefs wrote it, ``CacheError`` if another
        program has it locked.
        """
        self.path = directory / NAME
        self.was_rebuilt = False
        self._busy_ms = _BUSY_MS
        self._has_said = False
        try:
            self._connection = self._open()
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: damaged text
            if isinstance(error, sqlite3.OperationalError) and not _DAMAGE.search(str(error)):
                raise CacheError(self._cannot_open(error)) from error
            self._begin_anew(error)
        self._depth = 0

    def _cannot_open(self, error: sqlite3.Error) -> str:
        if _LOCKED.search(str(error)):
            return f"{self.path} is locked by another program — end that program, and try again"
        return f"cannot open {self.path}: {error}"

    def _begin_anew(self, reason: object) -> None:
        broken = self._set_aside()
        _log.error(
            "%s cannot be trusted (%s): it is set aside as %s, and a new one made from what lies beside it",
            self.path,
            " ".join(str(reason).split()),
            broken.name,
        )
        self._connection = self._open()
        self.was_rebuilt = True
        self._has_said = False

    def give_up(self, reason: object) -> None:
        """Set the file aside, although it can be read, and begin a new one."""
        self._connection.close()
        self._begin_anew(reason)

    def _open(self) -> sqlite3.Connection:
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        self._refuse_links()
        connection = sqlite3.connect(self.path, isolation_level=None, cached_statements=256)
        try:
            _apply_pragmas(connection)
            if is_new:
                self._create(connection)
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse_links(self) -> None:
        """Make the file if need be. Raise unless it and those that SQLite keeps beside it are files of their own."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.close(os.open(self.path, flags | os.O_CREAT, 0o600))
        except OSError as error:
            reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise CacheError(f"cannot open {self.path}: {reason}") from error
        for suffix in ("-wal", "-shm"):
            if os.path.islink(f"{self.path}{suffix}"):
                raise CacheError(f"cannot open {self.path}{suffix}: it is a symbolic link")

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        schema = files("cachefs.local").joinpath("schema.sql").read_text("utf-8")
        connection.executescript(f"BEGIN; {schema}; COMMIT;")
        connection.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        connection.execute("INSERT INTO meta VALUES ('volume', ?)", (uuid.uuid4().hex,))

    def _check(self, connection: sqlite3.Connection) -> None:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise sqlite3.DatabaseError("rows refer to rows that are not there")
        version = dict(connection.execute("SELECT name, value FROM meta")).get("schema")
        if version is None:
            raise sqlite3.DatabaseError("no schema version")
        if int(version) > SCHEMA_VERSION:
            raise UsageError(
                f"{self.path} was written by a newer cachefs (schema {version}, this one knows {SCHEMA_VERSION})"
                " — upgrade cachefs, or use another --cache-dir"
            )
        for older in range(int(version), SCHEMA_VERSION):
            self._migrate(connection, older)
        self._check_promises(connection)

    @staticmethod
    def _check_promises(connection: sqlite3.Connection) -> None:
        """Where the store is owed anything, see that the indexes tell of the same rows as the tables.

        That takes more than twice as long as the quick check, and without promises nothing can come of it but a
        name that is looked up once more.
        """
        sql = "SELECT EXISTS (SELECT 1 FROM intents) OR EXISTS (SELECT 1 FROM moves)"
        if connection.execute(sql).fetchone()[0]:
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)

    @staticmethod
    def _migrate(connection: sqlite3.Connection, older: int) -> None:
        """Bring the tables from version *older* to the next, or leave them as they were."""
        # A table that others refer to can only be replaced while nobody minds.
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[older]};"
            f" UPDATE meta SET value = '{older + 1}' WHERE name = 'schema'; COMMIT;"
        )
        connection.execute("PRAGMA foreign_keys = ON")
        if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise sqlite3.DatabaseError("rows refer to rows that are not there")

    def _set_aside(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        broken = self.path.with_name(f"{NAME}.broken-{stamp}-{uuid.uuid4().hex[:6]}")
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{broken}{suffix}")
        return broken

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what is executed inside one commit, or none of it. Inner ones join the outer one."""
        if self._depth:
            yield
            return
        self.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            # Where the disk is full SQLite itself has taken it back.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        finally:
            self._depth = 0

    def _explain(self, error: sqlite3.DatabaseError) -> None:
        """Raise what *error* means, where that is a word of ours."""
        if _PLAIN.search(str(error)):
            said = f"{self.path} is damaged ({error}); the next mount makes a new one from what lies beside it"
            self._say_once(said)
            raise Damaged(said) from error
        if _UNREADABLE.search(str(error)):
            said = f"{self.path} cannot be read or written: {error}"
            self._say_once(said)
            raise CacheError(said) from error
        if _LOCKED.search(str(error)):
            self._wait_for_locks(_STILL_BUSY_MS)
            raise CacheError(f"{self.path} is locked by another program") from error

    def _say_once(self, said: str) -> None:
        if not self._has_said:
            self._has_said = True
            _log.error("%s", said)

    def _wait_for_locks(self, busy_ms: int) -> None:
        if busy_ms < self._busy_ms:
            _log.error("%s is locked by another program", self.path)
        self._busy_ms = busy_ms
        self._connection.execute(f"PRAGMA busy_timeout = {busy_ms}")

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement. Raise ``Damaged`` if the file turns out to be, ``CacheError`` if it is locked."""
        try:
            cursor = self._connection.execute(sql, values)
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise
        if self._busy_ms != _BUSY_MS:
            self._wait_for_locks(_BUSY_MS)
        return cursor

    def executemany(
        self, sql: str, rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]
    ) -> None:
        """Run one statement for each of *rows*."""
        try:
            self._connection.executemany(sql, rows)
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise

    def one(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        try:
            row: tuple[Any, ...] | None = self._connection.execute(sql, values).fetchone()
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise
        return row

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return every row."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise

    def get_meta(self, name: str) -> str | None:
        """Return what holds for the whole cache directory under *name*."""
        row = self.one("SELECT value FROM meta WHERE name = ?", (name,))
        return None if row is None else str(row[0])

    def set_meta(self, name: str, value: str) -> None:
        """Record what holds for the whole cache directory under *name*."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def wal_bytes(self) -> int:
        """Return the length of the write-ahead log."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    @classmethod
    def sync_wal(cls, path: Path) -> None:
        """Put every committed row on the disk. Blocks; any thread.

        What a checkpoint has moved into the database is there already: SQLite syncs it.
        """
        try:
            descriptor = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @classmethod
    def checkpoint(cls, path: Path) -> None:
        """Move the write-ahead log into the database, over a connection of its own. Blocks; any thread."""
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA busy_timeout = 1000")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.DatabaseError:
            pass  # somebody reads: the next one will do. Damage shows where rows are read, and is said there
        finally:
            connection.close()

    def close(self) -> None:
        """Write everything back and close. Safe to call twice."""
        self._connection.close()
