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


# ---- every column of every row ------------------------------------------------------------------

_NODE = {"atime_ns": 11, "mtime_ns": -12, "ctime_ns": 2**62, "checked_ns": 13}
FULL: dict[str, list[dict[str, object]]] = {
    "meta": [{"name": "volume", "value": "v"}, {"name": "source", "value": "s3://a%_\u00e4"}],
    "inodes": [
        {**_NODE, "ino": 1, "component": b"", "kind": "dir", "size": 0, "listed_ns": 5},
        {
            **_NODE,
            "ino": 2,
            "parent": 1,
            "name": b"d%_",
            "component": b"d%_",
            "kind": "dir",
            "size": 0,
            "mode": 0o700,
            "uid": 0,
            "gid": 2**31,
            "etag": "e/2",
            "content_type": "t",
            "meta": "{}",
            "stored_ns": 7,
            "listed_ns": 0,
        },
        {
            **_NODE,
            "ino": 5,
            "parent": 2,
            "name": b"\xff\n",
            "component": b"\xff\n",
            "kind": "file",
            "size": 2**40,
            "mode": 0,
            "uid": 1,
            "gid": 1,
            "etag": '"q"',
            "meta": '{"\u00e4":"\\u0000"}',
            "content_type": "text/plain",
            "stored_ns": 2**61,
            "pinned": 1,
            "is_md5": 1,
        },
        {
            **_NODE,
            "ino": 6,
            "parent": 1,
            "name": b"l",
            "component": b"l",
            "kind": "symlink",
            "size": 3,
        },
        {**_NODE, "ino": 9, "component": b"unlinked", "kind": "file", "size": 1},
    ],
    "entries": [
        {
            "id": 3,
            "ino": 5,
            "etag": '"q"',
            "size": 2**40,
            "extents": b"0-5,9-12",
            "cost": 4096,
            "used_ns": 2**60,
            "sums": b"\0" * 20,
            "made_ns": 3,
            "hits": 7,
            "fetch_ns": 8,
            "pinned": 1,
            "queue": 1,
            "score": 2.5,
            "chances": 3,
        },
        {"id": 8, "ino": 9, "size": 1, "extents": b"0-1", "cost": 4096, "used_ns": 17},
    ],
    "accesses": [{"ino": 5, "opens": 3, "used_ns": 2**60}, {"ino": 6, "opens": 1, "used_ns": 1}],
    "access_days": [
        {"ino": 5, "day": 738_000, "opens": 2},
        {"ino": 5, "day": 738_001, "opens": 1},
    ],
    "intents": [
        {
            "entry": 3,
            "token": "t1",
            "state": "parked",
            "boot": "b",
            "due_ns": 2**60,
            "tries": 4,
            "sent": 1,
            "error": "why %_ \u00e4",
        },
        {"entry": 8, "token": "t2", "state": "open", "due_ns": 0, "tries": 0, "sent": 0},
    ],
    "moves": [
        {
            "id": 4,
            "batch": "b",
            "state": "deleting",
            "source": b"\xff%",
            "target": b"t",
            "etag": "e",
            "replaces": "r",
            "made": "m",
        },
        {"id": 6, "batch": "c", "state": "copying", "source": b"s", "target": b"u", "etag": "e"},
    ],
    "works": [{"id": 2, "key": b"k\xff", "work": "w"}],
    "conflicts": [{"id": 11, "when_ns": 2**60, "key": b"k%", "outcome": "kept \u00e4"}],
}
"""Rows that use every column there ever was; each version gets those that it has."""


def rows_of(path: Path) -> dict[str, list[dict[str, object]]]:
    """Every row of every table, its columns by their names."""
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    tables = [
        row[0]
        for row in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_stat%'"
        )
    ]
    found = {
        table: sorted(
            (dict(row) for row in connection.execute(f"SELECT * FROM {table}")),
            key=lambda row: repr(min(row.items())) + repr(row),
        )
        for table in tables
    }
    connection.close()
    return found


def filled(version: int, directory: Path) -> None:
    """A database as that version left it, with rows that use all its columns."""
    connection = sqlite3.connect(directory / NAME)
    connection.executescript((SCHEMAS / f"{version}.sql").read_text())
    known = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    for table, rows in FULL.items():
        if table not in known:
            continue
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        used: set[str] = set()
        for row in rows:
            told = {name: value for name, value in row.items() if name in columns}
            used |= told.keys()
            marks = ", ".join("?" * len(told))
            connection.execute(
                f"INSERT INTO {table} ({', '.join(told)}) VALUES ({marks})", tuple(told.values())
            )
        assert used == columns, f"{table} has columns that no row here uses: {columns - used}"
    connection.execute("INSERT INTO meta VALUES ('schema', ?)", (str(version),))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_every_column_of_every_row_outlives_every_migration(version: int, tmp_path: Path) -> None:
    filled(version, tmp_path)
    before = rows_of(tmp_path / NAME)
    database = Database(tmp_path)
    assert not database.was_rebuilt
    database.close()
    after = rows_of(tmp_path / NAME)

    for table, rows in before.items():
        if table == "meta":
            kept = {row["name"]: row["value"] for row in after[table]}
            told = {row["name"]: row["value"] for row in rows}
            assert kept.pop("tables")
            assert kept == {**told, "schema": str(SCHEMA_VERSION)}
            continue
        names = list(rows[0])
        kept_rows = [{name: row[name] for name in names} for row in after[table]]
        assert sorted(map(repr, kept_rows)) == sorted(map(repr, rows)), table
    filled_later = {table for table in after if after[table]} - before.keys()
    assert filled_later <= {"sqlite_sequence"}


def test_the_rows_for_it_use_every_column_of_the_tables_of_today(tmp_path: Path) -> None:
    Database(tmp_path).close()
    connection = sqlite3.connect(tmp_path / NAME)
    tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    for (table,) in connection.execute(tables).fetchall():
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if table in FULL:
            assert columns == set().union(*(row.keys() for row in FULL[table])), table
        else:
            assert (
                not (SCHEMAS / f"{SCHEMA_VERSION - 1}.sql")
                .read_text()
                .count(f"CREATE TABLE {table} ")
            ), f"rows of {table} are missing here"
    connection.close()
