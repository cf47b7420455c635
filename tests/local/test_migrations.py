"""A cache directory that an older cachefs left is taken over: its promises, numbers and all."""

import re
import sqlite3
from pathlib import Path

import pytest

from cachefs.local.db import NAME, SCHEMA_VERSION, Database

SCHEMAS = Path(__file__).parent / "schemas"
ROWS = """
INSERT INTO meta VALUES ('schema', '{version}'), ('volume', 'v');
INSERT INTO inodes (ino, parent, name, component, kind, size, atime_ns, mtime_ns, ctime_ns, checked_ns)
    VALUES (1, NULL, NULL, x'', 'dir', 0, 1, 2, 3, 4);
INSERT INTO inodes (ino, parent, name, component, kind, size, mode, atime_ns, mtime_ns, ctime_ns, etag,
    meta, checked_ns)
    VALUES (7, 1, x'ff61', x'ff61', 'symlink', 5, 420, 1, 2, 3, 'e', '{{"a":"b"}}', 4),
           (9, 1, x'62', x'62', 'file', 5, 420, 1, 2, 3, 'e', NULL, 4);
DELETE FROM inodes WHERE ino = 9;
INSERT INTO entries (id, ino, etag, size, extents, cost, used_ns) VALUES (3, 7, 'e', 5, x'', 4096, 1);
INSERT INTO intents (entry, token, state, boot, due_ns, tries, sent) VALUES (3, 't', 'queued', NULL, 0, 0, 0);
"""


def made_by(version: int, directory: Path) -> None:
    with sqlite3.connect(directory / NAME) as connection:
        connection.executescript((SCHEMAS / f"{version}.sql").read_text())
        connection.executescript(ROWS.format(version=version))
    connection.close()


def shape(database: Database) -> list[str]:
    """The tables and indices, without comments, quotes and layout."""
    rows = database.all("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name")
    bare = [re.sub(r"--.*", "", row[0]).replace('"', "") for row in rows]
    return [re.sub(r"\s*([,()])\s*|\s+", r"\1 ", text).strip() for text in bare]


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_every_earlier_version_becomes_this_one(version: int, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    made_by(version, tmp_path)

    old, new = Database(tmp_path), Database(fresh)

    assert not old.was_rebuilt
    assert shape(old) == shape(new)
    assert old.get_meta("schema") == str(SCHEMA_VERSION)
    assert old.one("SELECT name, kind, size, mode, etag, meta FROM inodes WHERE ino = 7") == (
        b"\xffa",
        "symlink",
        5,
        420,
        "e",
        '{"a":"b"}',
    )
    assert old.one("SELECT entry, token, state FROM intents") == (3, "t", "queued")
    # What was here before anybody counted was opened at least once, and has the place that its last use gives it.
    told = "SELECT used_ns, made_ns, hits, fetch_ns, pinned, score FROM entries"
    assert old.one(told) == ((1, 1, 1, 0, 0, 1e-9) if version < 4 else (1, 0, 0, 0, 0, 0))
    old.close()
    new.close()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_migration_gives_no_number_out_twice(version: int, tmp_path: Path) -> None:
    made_by(version, tmp_path)
    database = Database(tmp_path)
    columns = "parent, name, component, kind, size, atime_ns, mtime_ns, ctime_ns, checked_ns"
    cursor = database.execute(
        f"INSERT INTO inodes ({columns}) VALUES (1, x'63', x'63', 'fifo', 0, 1, 1, 1, 1)"
    )
    assert (cursor.lastrowid or 0) > 9
    database.close()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_promised_entry_is_still_held_by_its_promise(version: int, tmp_path: Path) -> None:
    made_by(version, tmp_path)
    database = Database(tmp_path)
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("DELETE FROM entries WHERE id = 3")
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("DELETE FROM inodes WHERE ino = 7")
    database.close()
