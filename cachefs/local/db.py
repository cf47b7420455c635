"""The one SQLite connection of a cache directory: opened, migrated, checked, closed."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from cachefs.core.errors import CacheError, Damaged, DiskFailed, DiskFull, UsageError
from cachefs.local.migrations import MIGRATIONS
from cachefs.local.soundness import Finding, Soundness, Verdict

NAME: Final = "cachefs.sqlite3"
SCHEMA_VERSION: Final = 6
_BUSY_MS: Final = 5000
_STILL_BUSY_MS: Final = 50
"""How long a lock of another program is waited for that was not let go within ``_BUSY_MS``: nobody is served meanwhile."""
WAL_KEPT: Final = 2 * 2**20
"""Bytes of the write-ahead log that are taken from the disk at the start and kept: what makes room on a full disk (an
upload that ends, an entry that is dropped) is written here. Longer logs are cut to it."""
RESERVE_NAME: Final = "cachefs.reserve"
_RESERVE: Final = 4 * 2**20
"""Bytes kept in a file of no use, to be given up when the disk is full: the log is moved into the tables then, and they
may have to grow for it."""
_WAL_PRESSING: Final = 16 * WAL_KEPT
"""Bytes of log at which writers wait for a checkpoint to catch up with them."""
_CHECKED_FIRST: Final = 32 * 2**20
"""Bytes of the largest database that is checked as a whole before anything is served from it, where nothing proves it sound:
some 140,000 names, and a second."""
TABLES: Final = "tables"
"""Under this name the table ``meta`` has what :func:`sum_of_tables` tells."""
_OWED: Final = ("meta", "intents", "moves", "works")
"""The tables, all of them small, that tell what the store is owed."""
_STEPS: Final = 100_000
"""Of SQLite's virtual machine, between two looks whether a check is to stop."""
_FULL: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
_DISK_ERRORS: Final = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)
_DAMAGE: Final = re.compile(
    "malformed|no such (table|column)|unsupported file format|decode to UTF-8"
)
"""What SQLite says of a damaged file where it might as well be our mistake."""
_LATER: Final = "the next mount makes a new one from what lies beside it"
_PLAIN: Final = re.compile("malformed|not a database|unsupported file format|decode to UTF-8")
_INCREMENTAL: Final = 2
_LOCKED: Final = re.compile("is locked")

_log = logging.getLogger(__name__)


def _apply_pragmas(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses no committed row to a killed process; what must survive power loss is fsynced by sync_wal().
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT}")
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    connection.execute("PRAGMA temp_store = MEMORY")


def _raise_unless_ok(connection: sqlite3.Connection, pragma: str) -> None:
    verdict = connection.execute(pragma).fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _raise_if_dangling(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise sqlite3.DatabaseError("rows refer to rows that are not there")


def sum_of_tables(ask: Callable[[str], Iterable[Any]]) -> str:
    """Return what stands for how the tables and indexes are made, by the rows that *ask* returns for a query.

    SQLite believes the words that they were made with, which lie in the file, and its own checks go by them.
    """
    sql = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%' ORDER BY name"
    made = repr(list(ask(sql)))
    return hashlib.sha256(made.encode("utf-8", "surrogateescape")).hexdigest()


def _note_tables(connection: sqlite3.Connection) -> None:
    words = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
    connection.execute(words, (TABLES, sum_of_tables(connection.execute)))


class Database:
    """The tables of ``schema.sql``. Belongs to the thread that opened it, save for the class methods.

    Where the disk is full everything that writes raises ``DiskFull``, where it fails ``DiskFailed``. What is held in
    memory beside a row goes back with it by :meth:`if_undone`, and what cannot be taken back waits by :meth:`when_done`.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the database in *directory*.

        A file that is not a sound database is set aside as ``cachefs.sqlite3.broken-TIME`` and a new one begun
        (``was_rebuilt`` tells). Raise ``UsageError`` if a newer cachefs wrote it, ``CacheError`` if another
        program has it locked.
        """
        self.path = directory / NAME
        self._reserve = directory / RESERVE_NAME
        self._soundness = Soundness(self.path)
        self.was_rebuilt = False
        self.was_made = not self.path.exists()
        """Whether there was none."""
        self.was_changed = False
        """Whether some program has written to it since the last session ended."""
        self.is_proven = False
        """Whether it has exactly the bytes that it had at the end of the last session."""
        self.is_unchecked = False
        """Whether it is too large to be checked before it is used, and nothing proves it sound; :meth:`examine` does."""
        self.damage: str | None = None
        """What is wrong with it, as far as that is known: the next start sets it aside."""
        self._busy_ms = _BUSY_MS
        self._has_said = False
        found = self._soundness.judge()
        try:
            self._connection = self._open(found)
        except (sqlite3.DatabaseError, ValueError) as error:  # ValueError: damaged text
            if isinstance(error, sqlite3.OperationalError) and not _DAMAGE.search(str(error)):
                kind = DiskFull if error.sqlite_errorcode in _FULL else CacheError
                raise kind(self._cannot_open(error)) from error
            self._begin_anew(error)
        self._depth = 0
        self._is_full = False
        self._undo: list[Callable[[], None]] = []
        self._afterwards: list[Callable[[], None]] = []

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
        self._connection = self._open(Finding(Verdict.UNTOLD))
        self.was_rebuilt = True
        self.damage = None
        self._has_said = False

    def give_up(self, reason: object) -> None:
        """Set the file aside, although it can be read, and begin a new one."""
        self._connection.close()
        self._begin_anew(reason)

    def _open(self, found: Finding) -> sqlite3.Connection:
        if found.verdict is Verdict.DAMAGED:
            raise sqlite3.DatabaseError(found.reason)
        is_new = not self.path.exists() or self.path.stat().st_size == 0
        self.was_changed = found.verdict is Verdict.CHANGED
        self.is_proven = found.verdict is Verdict.PROVEN
        self._refuse_links()
        connection = sqlite3.connect(self.path, isolation_level=None, cached_statements=256)
        try:
            if is_new:  # before anything is written: later only a VACUUM could change it
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _apply_pragmas(connection)
            if is_new:
                self._create(connection)
            self._check(connection)
            self._soundness.forget()
            self._set_room_aside()
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

    def _set_room_aside(self) -> None:
        """Take blocks for what must be written when the disk is full, as far as it has them.

        SQLite takes a log of zeros for none at all.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        for path, size in ((f"{self.path}-wal", WAL_KEPT), (self._reserve, _RESERVE)):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, flags, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, size)
                finally:
                    os.close(descriptor)

    @staticmethod
    def _create(connection: sqlite3.Connection) -> None:
        schema = files("cachefs.local").joinpath("schema.sql").read_text("utf-8")
        connection.executescript(f"BEGIN; {schema}; COMMIT;")
        connection.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        connection.execute("INSERT INTO meta VALUES ('volume', ?)", (uuid.uuid4().hex,))
        _note_tables(connection)

    def _check(self, connection: sqlite3.Connection) -> None:
        self.is_unchecked = not self.is_proven and self.path.stat().st_size > _CHECKED_FIRST
        if self.is_unchecked:
            for table in _OWED:
                _raise_unless_ok(connection, f"PRAGMA integrity_check('{table}')")
        elif not self.is_proven:
            _raise_unless_ok(connection, "PRAGMA quick_check(1)")
            _raise_if_dangling(connection)
        said = dict(connection.execute("SELECT name, value FROM meta"))
        version = said.get("schema")
        if version is None:
            raise sqlite3.DatabaseError("no schema version")
        if said.get(TABLES, tables := sum_of_tables(connection.execute)) != tables:
            raise sqlite3.DatabaseError("its tables are not made as cachefs makes them")
        if int(version) > SCHEMA_VERSION:
            raise UsageError(
                f"{self.path} was written by a newer cachefs (schema {version}, this one knows {SCHEMA_VERSION})"
                " — upgrade cachefs, or use another --cache-dir"
            )
        for older in range(int(version), SCHEMA_VERSION):
            self._migrate(connection, older)
        if TABLES not in said or int(version) < SCHEMA_VERSION:
            with contextlib.suppress(
                sqlite3.OperationalError
            ):  # a full disk: the next start will do
                _note_tables(connection)
        if not self.is_proven and not self.is_unchecked:
            self._check_promises(connection)

    def _is_promised(self) -> bool:
        """Whether a promise lies beside a cache file: tables that are damaged may hide that the store is owed anything."""
        try:
            names = os.listdir(self.path.parent / "data")
        except OSError:
            return False
        return any(name.endswith(".promise") for name in names)

    def _check_promises(self, connection: sqlite3.Connection) -> None:
        """Where the store is owed anything, see that the indexes tell of the same rows as the tables.

        That takes more than twice as long as the quick check, and without promises nothing can come of it but a
        name that is looked up once more.
        """
        sql = "SELECT EXISTS (SELECT 1 FROM intents) OR EXISTS (SELECT 1 FROM moves)"
        if self._is_promised() or connection.execute(sql).fetchone()[0]:
            _raise_unless_ok(connection, "PRAGMA integrity_check(1)")

    @staticmethod
    def _migrate(connection: sqlite3.Connection, older: int) -> None:
        """Bring the tables from version *older* to the next, or leave them as they were."""
        # A table that others refer to can only be replaced while nobody minds.
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[older]};"
            f" UPDATE meta SET value = '{older + 1}' WHERE name = 'schema';"
            f" DELETE FROM meta WHERE name = '{TABLES}'; COMMIT;"
        )
        connection.execute("PRAGMA foreign_keys = ON")
        _raise_if_dangling(connection)

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
        self._run("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        else:
            done, self._undo, self._afterwards = self._afterwards, [], []
        finally:
            self._depth = 0
        with contextlib.ExitStack() as all_of_it:
            for act in reversed(done):
                all_of_it.callback(act)

    def _roll_back(self) -> None:
        try:
            # Where the disk is full SQLite itself may have taken it back.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        finally:
            with contextlib.ExitStack() as all_of_it:
                for act in self._undo:
                    all_of_it.callback(act)
                self._undo, self._afterwards = [], []

    def if_undone(self, act: Callable[[], None]) -> None:
        """Do *act* if the transaction that is under way is taken back. Without one, what was executed stands."""
        if self._depth:
            self._undo.append(act)

    def when_done(self, act: Callable[[], None]) -> None:
        """Do *act* once the transaction that is under way is committed: now, if there is none."""
        if self._depth:
            self._afterwards.append(act)
        else:
            act()

    def _run(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            if self._is_full and not self._connection.in_transaction:
                self._begin_log_anew()
            cursor = self._connection.execute(sql, values)
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise
        if self._busy_ms != _BUSY_MS:
            self._wait_for_locks(_BUSY_MS)
        return cursor

    def _begin_log_anew(self) -> None:
        """Move the log into the tables, so that the blocks it has are written again: a full disk has no others.

        Where the tables grow by that, they take of the reserve.
        """
        self._is_full = False
        with contextlib.suppress(OSError):
            os.close(
                os.open(self._reserve, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
            )
        with contextlib.suppress(sqlite3.Error):  # even so: the next one, then
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._set_room_aside()

    def _explain(self, error: sqlite3.DatabaseError) -> None:
        """Raise what *error* means, where that is a word of ours."""
        code = getattr(error, "sqlite_errorcode", 0)
        if code in _FULL:
            self._is_full = True
            raise DiskFull("the disk of the cache directory is full") from error
        if _PLAIN.search(str(error)):
            said = f"{self.path} is damaged ({error}); {_LATER}"
            self._say_once(said)
            self.condemn(str(error))
            raise Damaged(said) from error
        if code & 0xFF in _DISK_ERRORS:
            said = f"{self.path} cannot be read or written: {error}"
            self._say_once(said)
            raise DiskFailed(said) from error
        if _LOCKED.search(str(error)):
            self._wait_for_locks(_STILL_BUSY_MS)
            raise CacheError(f"{self.path} is locked by another program") from error

    def condemn(self, reason: str) -> None:
        """Have the next start set the file aside: it was found damaged. What can be read of it is served until then."""
        if self.damage is None:
            self.damage = reason
            self._soundness.condemn(reason)

    def examined(self, found: str | None) -> None:
        """Take in what :meth:`examine` has found."""
        self.is_unchecked = False
        if found is not None:
            self._say_once(f"{self.path} is damaged ({found}); {_LATER}")
            self.condemn(found)

    def state(self) -> dict[str, str]:
        """Return what ``status`` shows: the state (sound, unchecked, damaged), and the reason of damage."""
        if self.damage is not None:
            return {"state": "damaged", "reason": self.damage}
        return {"state": "unchecked" if self.is_unchecked else "sound"}

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
            return self._run(sql, values)
        except DiskFull:
            if self._depth:
                raise
            return self._run(sql, values)  # the log begins anew first

    def executemany(
        self, sql: str, rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]
    ) -> None:
        """Run one statement for each of *rows*, all or none."""
        with self.transaction():
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

    def each(self, sql: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield every row, one at a time. Nothing else may be done to the same tables meanwhile."""
        try:
            yield from self._connection.execute(sql, values)
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

    @property
    def gives_room_back(self) -> bool:
        """Whether the file can be made shorter a little at a time: those of an older cachefs only as a whole."""
        row = self.one("PRAGMA auto_vacuum")
        return row is not None and row[0] == _INCREMENTAL

    def shorten(self, pages: int) -> bool:
        """Give up to *pages* unused pages back. Return whether there are more of them."""
        try:
            # As a script: a statement whose rows have no columns is otherwise left after the first, which is one page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise
        row = self.one("PRAGMA freelist_count")
        return row is not None and row[0] > 0

    def compact(self) -> int:
        """Write the file anew, without what is unused in it, and so that :meth:`shorten` works from then on.

        Nobody else may use it. Needs as much room once more as the file takes. Return how long it was.
        """
        self.all("PRAGMA wal_checkpoint(TRUNCATE)")
        before = self.path.stat().st_size
        self.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self.execute("VACUUM")
        self.all("PRAGMA wal_checkpoint(TRUNCATE)")
        return before

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
    def checkpoint(cls, path: Path) -> bool:
        """Move the write-ahead log into the database, over a connection of its own. Blocks; any thread.

        Writers go on meanwhile. Where they are so busy that the log never comes to an end, they wait for the rest of
        it, once: else it would grow for ever. Return False where it has grown too long and somebody keeps it from beginning
        anew: who reads a moment that is long past, or moves it as well.
        """
        connection = sqlite3.connect(path, isolation_level=None)
        is_kept = False
        try:
            connection.execute("PRAGMA busy_timeout = 1000")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            if os.stat(f"{path}-wal").st_size > _WAL_PRESSING:
                row = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
                is_kept = bool(row[0])
        except sqlite3.DatabaseError:
            # The disk is full, or fails: the next one will do. Damage shows where rows are read, and is said there.
            pass
        finally:
            connection.close()
        return not is_kept

    @classmethod
    def examine(cls, path: Path, stop: threading.Event) -> str | None:
        """Check all of a database, over a connection of its own that changes nothing. Blocks; any thread.

        Return what is wrong with it first; None if nothing is, or *stop* was set meanwhile. Raise ``CacheError`` where
        it cannot be looked at.
        """
        try:
            with contextlib.closing(
                sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)
            ) as connection:
                connection.set_progress_handler(lambda: int(stop.is_set()), _STEPS)
                connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
                _raise_unless_ok(connection, "PRAGMA integrity_check(1)")
                _raise_if_dangling(connection)
        except (sqlite3.DatabaseError, ValueError) as error:
            if stop.is_set():
                return None
            if isinstance(error, sqlite3.OperationalError) and not _DAMAGE.search(str(error)):
                raise CacheError(f"cannot look at {path}: {error}") from error
            return " ".join(str(error).split())
        return None

    def close(self) -> None:
        """Write everything back and close. Safe to call twice."""
        self._connection.close()

    def close_proven(self) -> None:
        """As :meth:`close`, and note what the file is then, by which the next start knows it again."""
        self.close()
        if self.damage is None and not self.is_unchecked:
            self._soundness.prove()
