"""The files of a cache in the order in which they go, on the disk: a table in a temporary file.

It goes with its connection, and memory does not grow with the number of files.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

from cachefs.core.cached import CachedFile
from cachefs.core.errors import CacheError
from cachefs.core.eviction import MAIN, SMALL, Standing, s3fifo_victims

_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Ranked:
    """One file and where it stands."""

    file: CachedFile
    standing: Standing

    @property
    def cost(self) -> int:
        """Bytes of disk that it takes."""
        return self.file.cost

    @property
    def queue(self) -> int:
        """S3-FIFO's queue."""
        return self.standing.queue

    @property
    def chances(self) -> int:
        """Hits since it came into its queue."""
        return self.standing.chances


class Ranking:
    """Files, the lowest score first; those of one score in the order of their numbers. For one thread."""

    def __init__(self) -> None:
        """Raise ``CacheError`` where no temporary file can be made."""
        try:
            self._connection = sqlite3.connect("", isolation_level=None)
            self._connection.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                " CREATE TABLE files (queue INTEGER, score REAL, id INTEGER, chances INTEGER, cost INTEGER, file TEXT,"
                " PRIMARY KEY (queue, score, id)) WITHOUT ROWID; BEGIN"
            )
        except sqlite3.Error as error:
            raise _unwritable(error) from error
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.close()

    def add(self, ranked: Ranked) -> None:
        """Take a file up."""
        standing = ranked.standing
        self._last = max(self._last, standing.score)
        try:
            self._connection.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)",
                (
                    standing.queue,
                    standing.score,
                    ranked.file.id,
                    standing.chances,
                    ranked.cost,
                    json.dumps(ranked.file.to_json()),
                ),
            )
        except sqlite3.Error as error:
            raise _unwritable(error) from error

    def in_order(self) -> Iterator[Ranked]:
        """Yield the files, by their scores alone."""
        return _Walk(self._connection, SMALL)

    def by_s3fifo(self, cache_size: int) -> Iterator[Ranked]:
        """Yield the files as S3-FIFO would evict them from a cache of *cache_size* bytes that nobody uses."""
        walks = {queue: _Walk(self._connection, queue) for queue in (SMALL, MAIN)}
        return s3fifo_victims(_Queues(self, walks), cache_size)

    def small_bytes(self) -> int:
        """Return the bytes of disk of the files in the small queue."""
        row = self._connection.execute(
            "SELECT coalesce(sum(cost), 0) FROM files WHERE queue = ?", (SMALL,)
        ).fetchone()
        return int(row[0])

    def append(self, file: Ranked, chances: int) -> None:
        """Put a file, once more, at the end of the main queue."""
        self._last += 1
        self.add(replace(file, standing=Standing(MAIN, self._last, chances)))


class _Walk:
    """The files of one queue, from its beginning on; at its end, those that were appended meanwhile."""

    def __init__(self, connection: sqlite3.Connection, queue: int) -> None:
        self._connection = connection
        self._queue = queue
        self._after = (float("-inf"), 0)
        self._page: list[Ranked] = []

    def __iter__(self) -> Iterator[Ranked]:
        return self

    def __next__(self) -> Ranked:
        if not self._page:
            self._turn()
        return self._page.pop()

    def _turn(self) -> None:
        try:
            rows = self._connection.execute(
                "SELECT score, id, chances, file FROM files WHERE queue = ? AND (score, id) > (?, ?)"
                " ORDER BY score, id LIMIT ?",
                (self._queue, *self._after, _BATCH),
            ).fetchall()
        except sqlite3.Error as error:
            raise _unwritable(error) from error
        if not rows:
            raise StopIteration
        self._after = (rows[-1][0], rows[-1][1])
        self._page = [
            Ranked(CachedFile.from_json(json.loads(file)), Standing(self._queue, score, chances))
            for score, _, chances, file in reversed(rows)
        ]


class _Queues:
    """S3-FIFO's queues, as the table has them."""

    def __init__(self, ranking: Ranking, walks: Mapping[int, Iterator[Ranked]]) -> None:
        self._ranking = ranking
        self._walks = walks

    def small_bytes(self) -> int:
        return self._ranking.small_bytes()

    def first(self, queue: int) -> Ranked | None:
        return next(self._walks[queue], None)

    def append(self, file: Ranked, chances: int) -> None:
        self._ranking.append(file, chances)


def _unwritable(error: sqlite3.Error) -> CacheError:
    return CacheError(
        f"the files cannot be put in order on the disk: {error} — make room in $TMPDIR, or set SQLITE_TMPDIR"
    )
