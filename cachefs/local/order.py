"""In which order cached files go: where each stands by the mount's policy, and who is first.

While an entry is in use its standing is in memory, and ``Cache`` writes it with the row. What moves without being used
(S3-FIFO's second chances, a change of the policy) this module writes: the columns queue, score and chances of
``entries``, and of ``meta`` policy and inflation.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from cachefs.core.errors import DiskFull
from cachefs.core.eviction import (
    GHOST_SHARE,
    MAIN,
    MOST_CHANCES,
    SMALL,
    Candidate,
    Facts,
    FetchTimes,
    Policy,
    Standing,
    s3fifo_victims,
    score,
)
from cachefs.core.policy import SECOND_NS
from cachefs.core.types import EntryId, Ino
from cachefs.local.db import Database

_PAGE: Final = 64
_MOST_GHOSTS: Final = 2**18
"""However small they were: about 30 MB of memory."""
_SUM_EVERY: Final = 1024
_MAY_GO: Final = "pinned = 0 AND id NOT IN (SELECT entry FROM intents)"


class Order:
    """The order in which entries go.

    INVARIANT: the standing of every entry that is not in use is by ``policy``.
    """

    def __init__(self, db: Database, *, policy: Policy | None, limit: int) -> None:
        """*limit*: bytes that the cache may take. *policy* None: the one that the last mount had."""
        self._db = db
        self._limit = limit
        known = db.get_meta("policy")
        self.policy = policy or Policy(known or Policy.GDSF)
        self.inflation = float(db.get_meta("inflation") or 0)
        """GDSF's clock."""
        if not math.isfinite(self.inflation):
            raise ValueError("no clock has this value")
        self._saved_inflation = self.inflation
        self._times = FetchTimes()
        self._ghosts: OrderedDict[Ino, int] = OrderedDict()
        self._ghost_bytes = 0
        self._walks = self._small = 0
        if known != self.policy:
            self.rank_anew()
        last = db.one("SELECT max(score) FROM entries")
        self._last = 0.0 if last is None or last[0] is None else float(last[0])

    def fetch_s(self, facts: Facts) -> float:
        """Return the seconds that fetching a file again would take: what it took, or what others let expect."""
        return facts.fetch_ns / SECOND_NS if facts.fetch_ns else self._times.estimate(facts.size)

    def learn(self, facts: Facts) -> None:
        """Take in what fetching a file took."""
        self._times.learn(facts.size, facts.fetch_ns / SECOND_NS)

    # ---- where a file stands ----------------------------------------------------------------

    def arrived(self, ino: Ino, facts: Facts) -> Standing:
        """Return where a new file begins."""
        if self.policy is not Policy.S3FIFO:
            return self.placed(facts, Standing())
        cost = self._ghosts.pop(ino, None)
        self._ghost_bytes -= cost or 0
        return Standing(SMALL if cost is None else MAIN, self._next())

    def placed(self, facts: Facts, standing: Standing) -> Standing:
        """Return where a file stands as it is given back."""
        if self.policy is Policy.S3FIFO:
            return standing
        return replace(standing, queue=SMALL, score=self._score(facts))

    def _score(self, facts: Facts) -> float:
        return score(self.policy, facts, fetch_s=self.fetch_s(facts), inflation=self.inflation)

    def _next(self) -> float:
        self._last += 1
        return self._last

    def rank_anew(self) -> None:
        """Bring every standing in line with the policy. All or none: a crash leaves what was there."""
        with self._db.transaction():
            after = 0
            while rows := self._db.all(
                "SELECT id, cost, made_ns, used_ns, hits, fetch_ns FROM entries WHERE id > ?"
                " ORDER BY id LIMIT 1000",
                (after,),
            ):
                after = rows[-1][0]
                ranked = [
                    (self._score(facts), max(0, min(MOST_CHANCES, facts.hits - 1)), entry_id)
                    for entry_id, facts in ((row[0], Facts(*row[1:])) for row in rows)
                ]
                self._db.executemany(
                    "UPDATE entries SET queue = 0, score = ?, chances = ? WHERE id = ?", ranked
                )
            self._db.set_meta("policy", self.policy)

    # ---- who goes ---------------------------------------------------------------------------

    def victims(self, in_use: Collection[EntryId]) -> Iterator[Candidate]:
        """Yield entries that are clean, not pinned, and not *in_use*, the first to go first.

        For one step of the loop: nothing else may change meanwhile but that they are dropped.
        """
        if self.policy is Policy.S3FIFO:
            self._add_up()
            cursors = {queue: _Cursor(self._db, queue, in_use) for queue in (SMALL, MAIN)}
            queues = _EntryQueues(cursors, self._small, self._append)
            yield from s3fifo_victims(queues, self._limit)
            return
        yield from _Cursor(self._db, SMALL, in_use)

    def grew(self, standing: Standing, size: int) -> None:
        """Count that a file takes so many bytes more than it did."""
        if standing.queue == SMALL:
            self._small += size

    def _add_up(self) -> None:
        """Add up the small queue once in a while: of a million files that takes 15 ms, and what is counted may drift."""
        if self._walks % _SUM_EVERY == 0:
            row = self._db.one(
                "SELECT coalesce(sum(cost), 0) FROM entries WHERE pinned = 0 AND queue = ?",
                (SMALL,),
            )
            self._small = int(row[0]) if row else 0
        self._walks += 1

    def _append(self, file: Candidate, chances: int) -> Candidate | None:
        """Move a file to the end of the main queue. Return it as it would be there, where a full disk does not take it."""
        moved = replace(file, queue=MAIN, score=self._next(), chances=chances)
        try:
            self._db.execute(
                "UPDATE entries SET queue = ?, score = ?, chances = ? WHERE id = ?",
                (moved.queue, moved.score, moved.chances, moved.entry),
            )
        except DiskFull:
            return moved
        self.grew(Standing(file.queue), -file.cost)
        return None

    def went(self, candidate: Candidate) -> None:
        """Take in that a candidate was evicted."""
        if self.policy is Policy.GDSF:
            self.inflation = max(self.inflation, candidate.score)
        elif self.policy is Policy.S3FIFO and candidate.queue == SMALL:
            self._ghosts[candidate.ino] = candidate.cost
            self._ghost_bytes += candidate.cost
            while (
                self._ghost_bytes > self._limit * GHOST_SHARE or len(self._ghosts) > _MOST_GHOSTS
            ):
                self._ghost_bytes -= self._ghosts.popitem(last=False)[1]

    def save(self) -> None:
        """Keep what later sessions need. Where the disk is full, the next time does."""
        if self.inflation != self._saved_inflation:
            with suppress(DiskFull):
                self._db.set_meta("inflation", repr(self.inflation))
                self._saved_inflation = self.inflation


class _Cursor:
    """The entries of one queue that may go, from its beginning on."""

    def __init__(self, db: Database, queue: int, in_use: Collection[EntryId]) -> None:
        self._db = db
        self._queue = queue
        self._in_use = in_use
        self._after = (float("-inf"), 0)
        self._page: list[Candidate] = []

    def __iter__(self) -> Iterator[Candidate]:
        return self

    def __next__(self) -> Candidate:
        while not self._page:
            self._turn()
        return self._page.pop()

    def _turn(self) -> None:
        rows = self._db.all(
            f"SELECT id, cost, score, queue, chances, ino FROM entries WHERE queue = ? AND {_MAY_GO}"
            " AND (score, id) > (?, ?) ORDER BY score, id LIMIT ?",
            (self._queue, *self._after, _PAGE),
        )
        if not rows:
            raise StopIteration
        self._after = (rows[-1][2], rows[-1][0])
        found = (Candidate(*row) for row in reversed(rows))
        self._page = [each for each in found if each.entry not in self._in_use]


class _EntryQueues:
    """S3-FIFO's queues, as the rows have them."""

    def __init__(
        self,
        cursors: Mapping[int, Iterator[Candidate]],
        small_bytes: int,
        append: Callable[[Candidate, int], Candidate | None],
    ) -> None:
        self._cursors = cursors
        self._small_bytes = small_bytes
        self._append = append
        self._unwritten: deque[Candidate] = deque()

    def small_bytes(self) -> int:
        return self._small_bytes

    def first(self, queue: int) -> Candidate | None:
        found = next(self._cursors[queue], None)
        if found is None and queue == MAIN and self._unwritten:
            return self._unwritten.popleft()
        return found

    def append(self, file: Candidate, chances: int) -> None:
        moved = self._append(file, chances)
        if moved is not None:
            self._unwritten.append(moved)
