"""The tables of a database as they are at one moment, looked at and not changed, beside a daemon or without one."""

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from cachefs.core.errors import CacheError, Damaged
from cachefs.core.extents import ExtentMap
from cachefs.core.intent import State
from cachefs.core.sums import PieceSums
from cachefs.core.types import EntryId, ETag
from cachefs.local.db import SCHEMA_VERSION, TABLES, sum_of_tables
from cachefs.local.inodes import DEEPEST, ROOT

_MOST: Final = 100
"""Findings of one kind that are told; who has more needs no further ones."""
_STEPS: Final = 100_000
_BUSY_MS: Final = 5000
_PAGE: Final = 500
_NOT_DAMAGE: Final = re.compile("unable to open|is locked|disk I/O|readonly")

_SENSE: Final = {
    "there is no root": (
        f"SELECT 'inode {ROOT}' WHERE NOT EXISTS"
        f" (SELECT 1 FROM inodes WHERE ino = {ROOT} AND kind = 'dir' AND parent IS NULL)"
    ),
    "has a directory and no name, or a name and no directory": (
        "SELECT 'inode ' || ino FROM inodes WHERE (parent IS NULL) <> (name IS NULL)"
    ),
    "lies in what is no directory": (
        "SELECT 'inode ' || i.ino FROM inodes i JOIN inodes p ON p.ino = i.parent WHERE p.kind <> 'dir'"
    ),
    "has a name that is none": (
        "SELECT 'inode ' || ino FROM inodes WHERE name IS NOT NULL"
        " AND (length(name) = 0 OR instr(name, x'00') OR instr(name, x'2f'))"
    ),
    "has a length below zero": (
        "SELECT 'inode ' || ino FROM inodes WHERE size < 0"
        " UNION ALL SELECT 'cache file ' || id FROM entries WHERE size < 0 OR cost < 0"
    ),
    "lies in itself": (
        "WITH RECURSIVE tree(ino, depth) AS (SELECT ino, 0 FROM inodes WHERE parent IS NULL UNION ALL"
        f" SELECT c.ino, depth + 1 FROM inodes c JOIN tree ON c.parent = tree.ino WHERE depth < {DEEPEST})"
        " SELECT 'inode ' || ino FROM inodes WHERE ino NOT IN (SELECT ino FROM tree)"
    ),
    "is of a directory": (
        "SELECT 'cache file ' || id FROM entries JOIN inodes USING (ino) WHERE kind = 'dir'"
    ),
    "is pinned, or not, where its name is not, or is": (
        "SELECT 'cache file ' || id FROM entries e JOIN inodes i USING (ino) WHERE e.pinned <> i.pinned"
    ),
    "is both before and behind the point of no return": (
        "SELECT 'rename ' || batch FROM moves GROUP BY batch HAVING count(DISTINCT state) > 1"
    ),
}
"""What can be said against a row, and the rows of which it holds. No daemon lets any of it be committed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One cache file, as the tables tell of it."""

    id: EntryId
    etag: ETag | None
    size: int
    used_ns: int
    state: State | None
    """Of what the store is owed; None: nothing, it is clean."""
    here: ExtentMap
    sums: PieceSums
    path: str
    """In the mount; of one without a name, its number. Bytes that are no UTF-8 as surrogates."""

    @property
    def stop(self) -> int:
        """Where the last byte that is here ends."""
        return max((extent.stop for extent in self.here), default=0)


class Tables:
    """A connection of its own to the database *path*, that changes nothing. For one thread.

    Raises ``CacheError`` where the file cannot be looked at, and ``Damaged`` where it cannot be read.
    """

    def __init__(self, path: Path, *, stop: Callable[[], bool] = lambda: False) -> None:
        """*stop*: asked again and again whether to end; what is under way then raises ``Stopped``."""
        self._path = path
        self._stop = stop
        # Whoever may only read cannot take away the files of the log that he had to make; whoever may write moves into
        # the tables a log that is there already.
        mode = "ro" if os.path.lexists(f"{path}-wal") else "rw"
        with self._explained():
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None
            )
        self._connection.set_progress_handler(lambda: int(stop()), _STEPS)
        self._connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        self._connection.execute("PRAGMA query_only = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            # An interrupt that comes while SQLite is at work reaches nobody but as an error of its own.
            if self._stop() or "interrupted" in str(error):
                raise Stopped from error
            if isinstance(error, sqlite3.Error) and _NOT_DAMAGE.search(str(error)):
                raise CacheError(f"cannot look at {self._path}: {error}") from error
            raise Damaged(" ".join(str(error).split())) from error

    def _all(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._connection.execute(sql, values).fetchall()

    # ---- the file as a whole ------------------------------------------------------------------

    def damage(self) -> Iterator[str]:
        """Yield what SQLite finds wrong with the file, and what no daemon can have written."""
        try:
            yield from self._by_sqlite()
            yield from self._by_sense()
        except Damaged as error:
            yield str(error)

    def _by_sqlite(self) -> Iterator[str]:
        for (verdict,) in self._all(f"PRAGMA integrity_check({_MOST})"):
            if verdict != "ok":
                yield " ".join(str(verdict).split())
        for table, row, other, _ in self._all("PRAGMA foreign_key_check")[:_MOST]:
            yield f"row {row} of {table} refers to a row of {other} that is not there"

    def _by_sense(self) -> Iterator[str]:
        said = dict(self._all("SELECT name, value FROM meta"))
        version = said.get("schema")
        if version is None or not str(version).isdigit():
            yield "it does not tell the version of its tables"
            return
        if int(version) != SCHEMA_VERSION:
            raise CacheError(
                f"{self._path} has tables of version {version}, this cachefs knows {SCHEMA_VERSION}: "
                + ("mount it once" if int(version) < SCHEMA_VERSION else "upgrade cachefs")
            )
        if said.get(TABLES, tables := sum_of_tables(self._all)) != tables:
            yield "its tables are not made as cachefs makes them"
        for what, sql in _SENSE.items():
            for (which,) in self._all(f"{sql} LIMIT {_MOST}"):
                yield f"{which} {what}"

    def names(self) -> int:
        """Return how many files and directories are known."""
        return int(self._all("SELECT count(*) FROM inodes")[0][0])

    # ---- the cache files ------------------------------------------------------------------------

    def count(self) -> int:
        """Return how many rows :meth:`rows` would yield."""
        return int(self._all("SELECT count(*) FROM entries")[0][0])

    def rows(self) -> Iterator[Row | str]:
        """Yield every cache file, some at a time; of one whose row cannot be read, what is wrong with it."""
        after = 0
        while ids := self._all(
            "SELECT id FROM entries WHERE id > ? ORDER BY id LIMIT ?", (after, _PAGE)
        ):
            for (entry_id,) in ids:
                after = entry_id
                try:
                    row = self.row(EntryId(entry_id))
                except Damaged as error:
                    yield f"cache file {entry_id}: {error}"
                    continue
                if row is not None:
                    yield row

    def has(self, entry_id: EntryId) -> bool:
        """Whether there is a row of that number, whatever is in it."""
        return bool(self._all("SELECT 1 FROM entries WHERE id = ?", (entry_id,)))

    def row(self, entry_id: EntryId) -> Row | None:
        """Return one of them as it is now; None: there is none."""
        found = self._all(
            "SELECT etag, size, used_ns, state, extents, sums, ino FROM entries LEFT JOIN intents ON entry = id"
            " WHERE id = ?",
            (entry_id,),
        )
        if not found:
            return None
        etag, size, used_ns, state, extents, sums, ino = found[0]
        with self._explained():
            return Row(
                entry_id,
                etag,
                size,
                used_ns,
                None if state is None else State(state),
                ExtentMap.decode(extents),
                PieceSums.decode(sums),
                self._path_of(ino) or f"cache file {entry_id}",
            )

    def _path_of(self, ino: int) -> str | None:
        parts: list[bytes] = []
        while ino != ROOT:
            found = self._all("SELECT parent, name FROM inodes WHERE ino = ?", (ino,))
            if not found or found[0][0] is None or len(parts) > DEEPEST:
                return None
            parts.append(found[0][1])
            ino = found[0][0]
        return b"/".join(reversed(parts)).decode("utf-8", "surrogateescape")


class Stopped(Exception):
    """Told to stop."""
