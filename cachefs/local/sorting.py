"""Putting more things in order than memory should hold: tables in temporary files, which go with their connection."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from cachefs.core.errors import CacheError

_BATCH: Final = 500


class _Table:
    """A table that nobody else sees. For one thread."""

    def __init__(self, definition: str) -> None:
        """Raise ``CacheError`` where no temporary file can be made."""
        with _written():
            self._connection = sqlite3.connect("", isolation_level=None)
            self._connection.executescript(
                f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {definition}; BEGIN"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    def _rows(self, question: str) -> Iterator[tuple[Any, ...]]:
        with _written():
            cursor = self._connection.execute(question)
            while rows := cursor.fetchmany(_BATCH):
                yield from rows


class Sorted(_Table):
    """Rows in the order of the bytes of their keys; of rows with one key, the last that was added. For one thread."""

    def __init__(self) -> None:
        """Raise ``CacheError`` where no temporary file can be made."""
        super().__init__("CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def add_all(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take up rows, each a key and what belongs to it."""
        with _written():
            self._connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", rows)

    def __len__(self) -> int:
        (number,) = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return int(number)

    def __iter__(self) -> Iterator[bytes]:
        for (value,) in self._rows("SELECT value FROM rows ORDER BY key"):
            yield value


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


class Ordering(_Table):
    """Files, highest rank first; those of one rank in the order in which they were added. For one thread."""

    def __init__(self) -> None:
        """Raise ``CacheError`` where no temporary file can be made."""
        super().__init__(
            "CREATE TABLE files (number INTEGER PRIMARY KEY, rank INTEGER, path BLOB, size INTEGER, used_ns INTEGER)"
        )

    def add(self, file: Ordered) -> None:
        """Take *file* up."""
        with _written():
            self._connection.execute(
                "INSERT INTO files (rank, path, size, used_ns) VALUES (?, ?, ?, ?)",
                (file.rank, os.fsencode(file.path), file.size, file.used_ns),
            )

    def totals(self) -> tuple[int, int]:
        """Return how many files there are, and the bytes of those whose size is known."""
        row = self._connection.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM files"
        ).fetchone()
        return int(row[0]), int(row[1])

    def __iter__(self) -> Iterator[Ordered]:
        with _written():
            self._connection.execute(
                "CREATE INDEX IF NOT EXISTS by_rank ON files (rank DESC, number)"
            )
        question = "SELECT path, rank, size, used_ns FROM files ORDER BY rank DESC, number"
        for path, rank, size, used_ns in self._rows(question):
            yield Ordered(os.fsdecode(path), rank, size, used_ns)


@contextmanager
def _written() -> Iterator[None]:
    """Raise ``CacheError``, which says what to do, for what the disk does not take."""
    try:
        yield
    except sqlite3.Error as error:
        raise CacheError(
            f"the files cannot be put in order on the disk: {error} — make room in $TMPDIR, or set SQLITE_TMPDIR"
        ) from error
