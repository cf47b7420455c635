"""Putting more files in order than memory should hold: a table in a temporary file, which goes with its connection."""

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from cachefs.core.errors import CacheError

_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Ordered:
    """One file and its place in the order."""

    path: str
    """Bytes that are no UTF-8 as surrogates."""
    rank: int
    """The higher, the earlier."""
    size: int | None = None
    used_ns: int | None = None
    """When it was last used, since the epoch."""


class Ordering:
    """Files, highest rank first; those of one rank in the order in which they were added. For one thread."""

    def __init__(self) -> None:
        """Raise ``CacheError`` where no temporary file can be made."""
        try:
            self._connection = sqlite3.connect("", isolation_level=None)
            self._connection.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                " CREATE TABLE files (number INTEGER PRIMARY KEY, rank INTEGER, path BLOB, size INTEGER,"
                " used_ns INTEGER); BEGIN"
            )
        except sqlite3.Error as error:
            raise _unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    def add(self, file: Ordered) -> None:
        """Take *file* up."""
        try:
            self._connection.execute(
                "INSERT INTO files (rank, path, size, used_ns) VALUES (?, ?, ?, ?)",
                (file.rank, os.fsencode(file.path), file.size, file.used_ns),
            )
        except sqlite3.Error as error:
            raise _unwritable(error) from error

    def totals(self) -> tuple[int, int]:
        """Return how many files there are, and the bytes of those whose size is known."""
        row = self._connection.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM files"
        ).fetchone()
        return int(row[0]), int(row[1])

    def __iter__(self) -> Iterator[Ordered]:
        try:
            self._connection.execute(
                "CREATE INDEX IF NOT EXISTS by_rank ON files (rank DESC, number)"
            )
            cursor = self._connection.execute(
                "SELECT path, rank, size, used_ns FROM files ORDER BY rank DESC, number"
            )
            while rows := cursor.fetchmany(_BATCH):
                for path, rank, size, used_ns in rows:
                    yield Ordered(os.fsdecode(path), rank, size, used_ns)
        except sqlite3.Error as error:
            raise _unwritable(error) from error


def _unwritable(error: sqlite3.Error) -> CacheError:
    return CacheError(
        f"the files cannot be put in order on the disk: {error} — make room in $TMPDIR, or set SQLITE_TMPDIR"
    )
