"""Cache directories that know a great many names, made in seconds: rows put into the tables by SQL."""

import time
from pathlib import Path
from typing import Final

from cachefs.core.eviction import Policy
from cachefs.engine.recovery import close_disk, open_disk
from cachefs.local.db import Database

FLAT: Final = 100_000
DIRECTORY: Final = 9_000
_ROWS: Final = (
    "WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2)"
    " INSERT INTO inodes (parent, name, component, kind, size, atime_ns, mtime_ns, ctime_ns, etag, stored_ns,"
    " checked_ns, listed_ns)"
)
_NAMED: Final = "CAST(printf('{}%08d', i) AS BLOB)"


def know(cache_dir: Path, count: int, *, source: str) -> None:
    """Make a cache directory of *source* that knows *count* files in directories of 9,000 and one of 100,000."""
    cache_dir.mkdir(mode=0o700, parents=True)
    disk = open_disk(
        cache_dir,
        limit=2**40,
        min_free=0,
        policy=Policy.GDSF,
        check=lambda db: db.set_meta("source", source),
    )
    _fill(disk.db, count, time.time_ns())
    close_disk(disk)


def _fill(db: Database, count: int, now_ns: int) -> None:
    indexes = db.all(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND tbl_name = 'inodes' AND sql IS NOT NULL"
    )
    flat = min(FLAT, count)
    directories = 1 + -(-(count - flat) // DIRECTORY)
    directory, file = _NAMED.format("directory-"), _NAMED.format("object-")
    with db.transaction():
        for name, _ in indexes:  # sorted once they are complete, they take a fraction of the time
            db.execute(f"DROP INDEX {name}")
        db.execute(
            f"{_ROWS} SELECT 1, {directory}, {directory}, 'dir', 0, ?3, ?3, ?3, NULL, NULL, ?3, ?3 FROM n",
            (0, directories, now_ns),
        )
        db.execute(
            f"{_ROWS} SELECT 2 + CASE WHEN i < ?4 THEN 0 ELSE 1 + (i - ?4) / {DIRECTORY} END, {file}, {file}, 'file',"
            " 1000 + i, ?3, ?3, ?3, '\"' || lower(hex(randomblob(16))) || '\"', ?3, ?3, NULL FROM n",
            (0, count, now_ns, flat),
        )
        db.execute("UPDATE inodes SET listed_ns = ? WHERE ino = 1", (now_ns,))
        for _, sql in indexes:
            db.execute(sql)
