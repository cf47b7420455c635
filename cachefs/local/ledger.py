"""The ledger of a job that stores objects without a mount.

It knows what of large ones is at the store and no object yet, and which copies have begun that are not known to be of
what the source has now.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from cachefs.core.errors import CacheError, InUse
from cachefs.core.types import Key

_SCHEMA: Final = 1
_TABLE: Final = """
CREATE TABLE works (
    id   INTEGER PRIMARY KEY,   -- the order in which they were begun
    key  BLOB NOT NULL,         -- of the object that it is to become
    work TEXT NOT NULL UNIQUE   -- in the store's own words
) STRICT
"""

_BEGUN: Final = "CREATE TABLE IF NOT EXISTS begun (key BLOB PRIMARY KEY) STRICT, WITHOUT ROWID"


class FileLedger:
    """A :class:`cachefs.remote.store.Ledger` in the file *path*, for one process at a time.

    May be used from several threads. What was noted survives a kill and a power cut; that a copy has begun, which is
    noted for each, a kill: no disk is waited for.
    """

    def __init__(self, path: Path, *, job: str) -> None:
        """Open or create it, private to the user; one that cannot be read is begun anew.

        *job* is what messages call it. Raise ``InUse`` where another process has it, and ``CacheError`` where it can
        be neither read nor made.
        """
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self._guard = os.open(path.with_suffix(".lock"), flags, 0o600)
            try:
                fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._connection = _opened(path)
                self._hasty = _connected(path, synchronous="NORMAL")
            except BaseException:
                os.close(self._guard)
                raise
        except BlockingIOError:
            raise InUse(f"{job} is running already — wait until it ends") from None
        except (OSError, sqlite3.Error) as error:
            raise CacheError(
                f"uploads cannot be noted in {path}: {error} — free it, or set XDG_STATE_HOME"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def note(self, key: Key, work: str, *, replaces: str | None = None) -> None:
        """Keep *work*, in place of *replaces*. A full disk keeps nothing, and raises nothing."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.execute("DELETE FROM works WHERE work = ?", (replaces,))
                self._connection.execute(
                    "INSERT OR IGNORE INTO works (key, work) VALUES (?, ?)", (_blob(key), work)
                )
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._connection.execute("ROLLBACK")

    def strike(self, work: str) -> None:
        """Forget *work*."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.execute("DELETE FROM works WHERE work = ?", (work,))

    def noted(self, key: Key) -> Sequence[str]:
        """Return what is noted for *key*, the oldest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT work FROM works WHERE key = ? ORDER BY id", (_blob(key),)
            ).fetchall()
        return [str(work) for (work,) in rows]

    def all(self) -> Sequence[tuple[Key, str]]:
        """Return everything, with its key, the oldest first."""
        with self._lock:
            rows = self._connection.execute("SELECT key, work FROM works ORDER BY id").fetchall()
        return [(Key(os.fsdecode(key)), str(work)) for key, work in rows]

    # ---- copies that have begun --------------------------------------------------------------

    def begin(self, key: Key) -> None:
        """Note that something is about to be stored under *key*, which the source may change meanwhile."""
        with self._lock, suppress(sqlite3.Error):
            self._hasty.execute("INSERT OR IGNORE INTO begun VALUES (?)", (_blob(key),))

    def end(self, key: Key) -> None:
        """Forget that: what was stored is what the source still had afterwards."""
        with self._lock, suppress(sqlite3.Error):
            self._hasty.execute("DELETE FROM begun WHERE key = ?", (_blob(key),))

    def end_all(self) -> None:
        """Forget it of every key."""
        with self._lock, suppress(sqlite3.Error):
            self._hasty.execute("DELETE FROM begun")

    def begun(self) -> frozenset[Key]:
        """Return the keys of which it was not forgotten: those that earlier runs were cut off at, or failed with."""
        with self._lock:
            rows = self._hasty.execute("SELECT key FROM begun").fetchall()
        return frozenset(Key(os.fsdecode(key)) for (key,) in rows)

    def close(self) -> None:
        """Close the file, and let others have it."""
        with self._lock:
            self._hasty.close()
            self._connection.close()
        os.close(self._guard)


def _opened(path: Path) -> sqlite3.Connection:
    try:
        return _connected(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        os.replace(path, path.with_name(f"{path.name}.broken"))
        return _connected(path)


def _connected(path: Path, *, synchronous: str = "FULL") -> sqlite3.Connection:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != _SCHEMA:
            connection.execute("DROP TABLE IF EXISTS works")
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        connection.execute(_BEGUN)
    except BaseException:
        connection.close()
        raise
    return connection


def _blob(key: Key) -> bytes:
    return key.encode("utf-8", "surrogateescape")
