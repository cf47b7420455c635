"""What a push remembers of a directory and a store from one run to the next, beside the hashes.

One SQLite file, in the hands of one process at a time. Losing it costs requests, attributes that are taken for stored,
and large uploads that begin anew (their parts stay at the store); no bytes.
"""

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Self

from cachefs.core.errors import CacheError, InUse
from cachefs.core.types import ETag, Key

_SCHEMA: Final = 1
_TABLES: Final = """
CREATE TABLE stored (
    key   BLOB PRIMARY KEY,
    etag  TEXT NOT NULL,      -- the version that all this is about
    md5   TEXT,               -- of its bytes; NULL: not known
    attributes TEXT NOT NULL  -- mode, owner, times, …: in the words of who compares them
) STRICT, WITHOUT ROWID;
CREATE TABLE works (          -- what large uploads have at the store before they are objects
    id    INTEGER PRIMARY KEY,
    key   BLOB NOT NULL,
    work  TEXT NOT NULL UNIQUE
) STRICT;
CREATE INDEX works_by_key ON works (key);
CREATE TABLE begun (          -- the metadata that a large upload was begun with: only with the same does it go on
    key   BLOB PRIMARY KEY,
    meta  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""
_OF_RUN: Final = """
CREATE TEMP TABLE named (key BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TEMP TABLE doomed (key BLOB PRIMARY KEY, etag TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""
_DROPPED: Final = ("stored", "works", "begun")
_COMMIT_EVERY: Final = 256
_COMMIT_AFTER_S: Final = 1.0
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Stored:
    """One version at the store, and what a push knows of it."""

    etag: ETag
    md5: str | None
    """Of its bytes, in hexadecimal; None: not known."""
    attributes: str
    """Mode, owner, times and the like, in the words of who compares them."""


class PushMemory:
    """The tables of one push. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        """Open or create it, private to the user. One that cannot be read is begun anew.

        Raise ``InUse`` where another process has it, ``CacheError`` where it can be neither read nor made.
        """
        self._path = path
        self._lock = threading.Lock()
        self._pending = 0
        self._begun_at = 0.0
        """When the transaction was begun, on the monotonic clock."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = _held(path.with_name(f"{path.name}.lock"))
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            self._connection = self._opened()
        except (OSError, sqlite3.Error) as error:
            os.close(self._held)
            raise _unusable(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @contextmanager
    def _tables(self) -> Iterator[sqlite3.Connection]:
        """Hold the tables. Raise ``CacheError`` for what the disk does not take."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise _unusable(self._path, error) from error

    # ---- what the store has -----------------------------------------------------------------

    def stored(self, key: Key) -> Stored | None:
        """Return what was stored, or found, under *key* last."""
        with self._tables() as tables:
            row = tables.execute(
                "SELECT etag, md5, attributes FROM stored WHERE key = ?", (_blob(key),)
            ).fetchone()
        return None if row is None else Stored(ETag(row[0]), row[1], row[2])

    def note_stored(self, key: Key, stored: Stored) -> None:
        """Keep what the store has under *key*. A kill may lose those of the last second."""
        self._write(
            "INSERT OR REPLACE INTO stored VALUES (?, ?, ?, ?)",
            (_blob(key), stored.etag, stored.md5, stored.attributes),
        )

    def forget(self, key: Key) -> None:
        """Keep nothing of an object that is gone."""
        self._write("DELETE FROM stored WHERE key = ?", (_blob(key),))

    # ---- large uploads: the ledger of the store --------------------------------------------

    def note(self, key: Key, work: str, *, replaces: str | None = None) -> None:
        """Keep *work*, meant for *key*, durably, as far as the disk takes it; *replaces* is struck in the same moment."""
        with suppress(CacheError), self._tables() as tables:
            self._begin()
            if replaces is not None:
                tables.execute("DELETE FROM works WHERE work = ?", (replaces,))
            tables.execute(
                "INSERT OR IGNORE INTO works (key, work) VALUES (?, ?)", (_blob(key), work)
            )
            self._commit()

    def strike(self, work: str) -> None:
        """Forget *work*. One that a full disk keeps is struck again when it is found to be gone."""
        with suppress(CacheError), self._tables() as tables:
            self._begin()
            tables.execute("DELETE FROM works WHERE work = ?", (work,))
            self._commit()

    def noted(self, key: Key) -> Sequence[str]:
        """Return what is noted for *key*, the oldest first."""
        with self._tables() as tables:
            rows = tables.execute(
                "SELECT work FROM works WHERE key = ? ORDER BY id", (_blob(key),)
            ).fetchall()
        return [str(work) for (work,) in rows]

    def works(self) -> list[tuple[Key, str]]:
        """Return everything that is noted, with the keys."""
        with self._tables() as tables:
            rows = tables.execute("SELECT key, work FROM works ORDER BY id").fetchall()
        return [(_key(key), str(work)) for key, work in rows]

    def begun_with(self, key: Key) -> dict[str, str] | None:
        """Return the metadata that a large upload to *key* was begun with."""
        with self._tables() as tables:
            row = tables.execute("SELECT meta FROM begun WHERE key = ?", (_blob(key),)).fetchone()
        return None if row is None else json.loads(row[0])

    def note_begun(self, key: Key, meta: Mapping[str, str]) -> None:
        """Keep, durably, the metadata that a large upload is about to begin with."""
        with self._tables() as tables:
            self._begin()
            tables.execute(
                "INSERT OR REPLACE INTO begun VALUES (?, ?)", (_blob(key), json.dumps(dict(meta)))
            )
            self._commit()

    def end_begun(self, key: Key) -> None:
        """Forget that one was begun."""
        self._write("DELETE FROM begun WHERE key = ?", (_blob(key),))

    # ---- one run ----------------------------------------------------------------------------

    def is_first(self, key: Key) -> bool:
        """Whether *key* is named for the first time in this run."""
        with self._tables() as tables:
            return bool(
                tables.execute("INSERT OR IGNORE INTO named VALUES (?)", (_blob(key),)).rowcount
            )

    def doom(self, key: Key, etag: ETag) -> None:
        """Note, for this run, that version *etag* of *key* is to be deleted."""
        with self._tables() as tables:
            tables.execute("INSERT OR REPLACE INTO doomed VALUES (?, ?)", (_blob(key), etag))

    def doomed_count(self) -> int:
        """Return how many objects are to be deleted."""
        with self._tables() as tables:
            (count,) = tables.execute("SELECT count(*) FROM doomed").fetchone()
        return int(count)

    def doomed(self) -> Iterator[tuple[Key, ETag]]:
        """Yield what is to be deleted, what is in a directory before its marker."""
        before: bytes | None = None
        while page := self._doomed_page(before):
            yield from ((_key(key), ETag(etag)) for key, etag in page)
            before = page[-1][0]

    def _doomed_page(self, before: bytes | None) -> list[tuple[bytes, str]]:
        condition, values = ("", ()) if before is None else ("WHERE key < ?", (before,))
        with self._tables() as tables:
            return tables.execute(
                f"SELECT key, etag FROM doomed {condition} ORDER BY key DESC LIMIT {_PAGE}", values
            ).fetchall()

    def close(self) -> None:
        """Keep all that was noted, and let go of the file. Safe to call twice."""
        with self._lock:
            if self._held < 0:
                return
            held, self._held = self._held, -1
            try:
                self._commit()
                self._connection.close()
            except sqlite3.Error as error:
                raise _unusable(self._path, error) from error
            finally:
                os.close(held)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with self._tables() as tables:
            self._begin()
            tables.execute(statement, values)
            self._pending += 1
            if self._pending >= _COMMIT_EVERY or monotonic() > self._begun_at + _COMMIT_AFTER_S:
                self._commit()

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN")
            self._begun_at = monotonic()

    def _commit(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        self._pending = 0

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            os.replace(self._path, self._path.with_name(f"{self._path.name}.broken"))
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # What is in the ledger must outlast a loss of power; the rest is committed so rarely that it costs nothing.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA temp_store = FILE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA:
                for table in _DROPPED:
                    connection.execute(f"DROP TABLE IF EXISTS {table}")
                connection.executescript(f"{_TABLES} PRAGMA user_version = {_SCHEMA};")
            connection.executescript(_OF_RUN)
        except BaseException:
            connection.close()
            raise
        return connection


def _held(path: Path) -> int:
    """Return the descriptor that holds the lock *path*. Raise ``InUse`` if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InUse(
            "a push of this directory to this place is under way — wait for its end"
        ) from None
    return descriptor


def _unusable(path: Path, error: Exception) -> CacheError:
    return CacheError(f"what a push remembers cannot be kept in {path}: {error} — free it")


def _blob(key: Key) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _key(blob: bytes) -> Key:
    return Key(blob.decode("utf-8", "surrogateescape"))
