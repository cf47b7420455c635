"""Sorting more rows than memory should hold: a table in a temporary file, which goes with its connection."""

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final, Self

from cachefs.core.errors import CacheError

_BATCH: Final = 500


class Sorted:
    """Rows in the order of the bytes of their keys; of rows with one key, the last that was added. For one thread."""

    def __init__(self) -> None:
        """Raise ``CacheError`` where no temporary file can be made."""
        try:
            self._connection = sqlite3.connect("", isolation_level=None)
            self._connection.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                " CREATE TABLE rows (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID; BEGIN"
            )
        except sqlite3.Error as error:
            raise _unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    def add_all(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take up rows, each a key and what belongs to it."""
        try:
            self._connection.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise _unwritable(error) from error

    def __len__(self) -> int:
        (number,) = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return int(number)

    def __iter__(self) -> Iterator[bytes]:
        try:
            cursor = self._connection.execute("SELECT value FROM rows ORDER BY key")
            while rows := cursor.fetchmany(_BATCH):
                for (value,) in rows:
                    yield value
        except sqlite3.Error as error:
            raise _unwritable(error) from error


def _unwritable(error: sqlite3.Error) -> CacheError:
    return CacheError(
        f"the files cannot be put in order on the disk: {error} — make room in $TMPDIR, or set SQLITE_TMPDIR"
    )
