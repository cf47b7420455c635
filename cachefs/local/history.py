"""Which files programs have opened, how often and when: remembered when the bytes have long been evicted.

Only this module writes the tables ``accesses`` and ``access_days``. An open is counted in memory, and written down
later, many at a time: a crash costs the last seconds of the history, and an open no commit.
"""

from dataclasses import dataclass
from datetime import date
from typing import Final

from cachefs.core.errors import CacheError
from cachefs.core.types import Ino
from cachefs.local.db import Database

DAYS: Final = 8
"""Days of which the opens are known one by one, today among them."""
MOST_FILES: Final = 1_000_000
"""Files that are remembered. Beyond it those are forgotten that were not opened for longest."""
_MOST_PENDING: Final = 65_536
"""Files whose opens wait to be written. Where the disk takes nothing, those of further files are not counted."""
_STEP: Final = 100
"""Rows that are written or deleted at a time, in 5 ms or so: the loop serves between two."""
_SAME_DAY_NS: Final = 15 * 60 * 10**9
"""A day ends at a multiple of this, in every time zone."""


@dataclass(slots=True)
class _Opens:
    count: int
    used_ns: int


@dataclass(frozen=True, slots=True)
class Accesses:
    """What is remembered of one inode."""

    ino: Ino
    opens: int
    used_ns: int
    days: dict[int, int]


class History:
    """The opens of this cache directory. Belongs to the loop thread."""

    def __init__(self, db: Database, *, most_files: int = MOST_FILES) -> None:
        self._db = db
        self._most_files = most_files
        self._pending: dict[tuple[Ino, int], _Opens] = {}
        self._day = self._quarter = 0
        self._tidied = (0, 0)
        """For which day, and after how many new files, the tables were last tidied up."""
        self._new_files = 0

    def note(self, ino: Ino, wall_ns: int) -> None:
        """Count an open at *wall_ns*, since the epoch."""
        if wall_ns // _SAME_DAY_NS != self._quarter:
            self._quarter = wall_ns // _SAME_DAY_NS
            self._day = _day_of(wall_ns)
        known = self._pending.get((ino, self._day))
        if known is not None:
            known.count += 1
            known.used_ns = wall_ns
        elif len(self._pending) < _MOST_PENDING:
            self._pending[ino, self._day] = _Opens(1, wall_ns)

    def save(self) -> bool:
        """Write some of what was counted. Return whether there is more.

        Raise ``CacheError`` where the disk does not take it: it is kept for the next time.
        """
        batch = list(self._pending.items())[:_STEP]
        with self._db.transaction():
            for (ino, day), opens in batch:
                self._save(ino, day, opens)
        for key, _ in batch:
            del self._pending[key]
        return bool(self._pending)

    def save_all(self) -> None:
        """Write all that was counted."""
        while self.save():
            pass

    def _save(self, ino: Ino, day: int, opens: _Opens) -> None:
        # The file may have been removed since.
        changed = self._db.execute(
            "INSERT INTO accesses (ino, opens, used_ns) SELECT ino, ?2, ?3 FROM inodes WHERE ino = ?1"
            " ON CONFLICT (ino) DO UPDATE SET opens = opens + excluded.opens, used_ns = max(used_ns, excluded.used_ns)"
            " RETURNING opens",
            (ino, opens.count, opens.used_ns),
        ).fetchone()
        if changed is None:
            return
        self._new_files += changed[0] == opens.count
        self._db.execute(
            "INSERT INTO access_days (ino, day, opens) VALUES (?, ?, ?)"
            " ON CONFLICT (ino, day) DO UPDATE SET opens = opens + excluded.opens",
            (ino, day, opens.count),
        )

    def tidy(self, wall_ns: int) -> bool:
        """Forget some of the days that are over, and of the files that are too many. Return whether there is more."""
        today = _day_of(wall_ns)
        # A look at all rows: only when a day has passed, or there may be one file in a hundred too many.
        if (today, self._new_files * 100 // self._most_files) == self._tidied:
            return False
        # Of a clock that was ahead.
        gone = self._db.execute(
            "UPDATE accesses SET used_ns = ?1 WHERE ino IN (SELECT ino FROM accesses WHERE used_ns > ?1 LIMIT ?2)",
            (wall_ns, _STEP),
        ).rowcount
        gone += self._db.execute(
            "DELETE FROM access_days WHERE (ino, day) IN"
            " (SELECT ino, day FROM access_days WHERE day <= ?1 OR day > ?2 LIMIT ?3)",
            (today - DAYS, today, _STEP),
        ).rowcount
        count = self._count()
        if count > self._most_files:
            gone += self._db.execute(
                "DELETE FROM accesses WHERE ino IN (SELECT ino FROM accesses ORDER BY used_ns LIMIT ?)",
                (min(_STEP, count - self._most_files),),
            ).rowcount
        if not gone:
            self._new_files = 0
            self._tidied = (today, 0)
        return gone > 0

    def _count(self) -> int:
        row = self._db.one("SELECT count(*) FROM accesses")
        return 0 if row is None else int(row[0])

    def inherit(self, ino: Ino, other: Ino) -> None:
        """Give *ino* what is remembered of *other*, whose name it has taken: what is under a name is what people reopen."""
        for (noted, day), opens in list(self._pending.items()):
            if noted == other:
                del self._pending[noted, day]
                known = self._pending.setdefault((ino, day), _Opens(0, 0))
                known.count += opens.count
                known.used_ns = max(known.used_ns, opens.used_ns)
        with self._db.transaction():
            self._db.execute(
                "INSERT INTO accesses (ino, opens, used_ns) SELECT ?1, opens, used_ns FROM accesses WHERE ino = ?2"
                " ON CONFLICT (ino) DO UPDATE SET opens = opens + excluded.opens,"
                " used_ns = max(used_ns, excluded.used_ns)",
                (ino, other),
            )
            self._db.execute(
                "INSERT INTO access_days (ino, day, opens) SELECT ?1, day, opens FROM access_days WHERE ino = ?2"
                " ON CONFLICT (ino, day) DO UPDATE SET opens = opens + excluded.opens",
                (ino, other),
            )
            self._db.execute("DELETE FROM accesses WHERE ino = ?", (other,))

    def page(self, after: int, limit: int) -> list[Accesses]:
        """Return what is remembered of up to *limit* inodes whose numbers follow *after*, the lowest first."""
        self._save_what_goes()
        rows = self._db.all(
            "SELECT ino, opens, used_ns FROM accesses WHERE ino > ? ORDER BY ino LIMIT ?",
            (after, limit),
        )
        found = {ino: Accesses(Ino(ino), opens, used_ns, {}) for ino, opens, used_ns in rows}
        if found:
            days = self._db.all(
                "SELECT ino, day, opens FROM access_days WHERE ino BETWEEN ? AND ?",
                (min(found), max(found)),
            )
            for ino, day, opens in days:
                found[ino].days[day] = opens
        return list(found.values())

    def _save_what_goes(self) -> None:
        try:
            self.save_all()
        except CacheError:
            return  # the disk is full: what it has taken before is told


def _day_of(wall_ns: int) -> int:
    return date.fromtimestamp(wall_ns // 10**9).toordinal()
