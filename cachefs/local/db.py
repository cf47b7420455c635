"""The one SQLite connection of a cache directory: opened, migrated, checked, closed."""

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

from cachefs.core.errors import CacheError, UsageError
from cachefs.local.migrations import MIGRATIONS

NAME: Final = "cachefs.sqlite3"
SCHEMA_VERSION: Final = 3
_BUSY_MS: Final = 5000
_DAMAGE: Final = re.compile(
    "malformed|no such (table|column)|unsupported file format|decode to UTF-8"
)
"""What SQLite says of a damaged file where it might as well be our mistake."""


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
        (``was_rebuilt`` tells). Raise ``UsageError`` if a newer cachefs wrote it.
        """
        self.path = directory / NAME
        self.was_rebuilt = False
        try:
            self._connection = self._open()
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: damaged text
            if isinstance(error, sqlite3.OperationalError) and not _DAMAGE.search(str(error)):
                raise CacheError(f"cannot open {self.path}: {error}") from error
            self._set_aside()
            self.was_rebuilt = True
            self._connection = self._open()
        self._depth = 0

    def _open(self) -> sqlite3.Connection:
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
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

    def _set_aside(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        broken = self.path.with_name(f"{NAME}.broken-{stamp}-{uuid.uuid4().hex[:6]}")
        for suffix in ("", "-wal", "-shm"):
            part = Path(f"{self.path}{suffix}")
            if part.exists():
                part.rename(f"{broken}{suffix}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make what is executed inside one commit, or none of it. Inner ones join the outer one."""
        if self._depth:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
        except BaseException:
            # Where the disk is full SQLite itself has taken it back.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        else:
            self._connection.execute("COMMIT")
        finally:
            self._depth = 0

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        return self._connection.execute(sql, values)

    def executemany(
        self, sql: str, rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]
    ) -> None:
        """Run one statement for each of *rows*."""
        self._connection.executemany(sql, rows)

    def one(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        row: tuple[Any, ...] | None = self.execute(sql, values).fetchone()
        return row

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return every row."""
        return self.execute(sql, values).fetchall()

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
        except sqlite3.OperationalError:
            pass  # somebody reads: the next one will do
        finally:
            connection.close()

    def close(self) -> None:
        """Write everything back and close. Safe to call twice."""
        self._connection.close()
