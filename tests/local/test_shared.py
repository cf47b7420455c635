"""The MD5s' own connection: beside others, patient, and never mistaken about what the file is."""

import sqlite3
from pathlib import Path

import pytest

from cachefs.core.errors import CacheError, UsageError
from cachefs.local import shared
from cachefs.local.db import NAME, SCHEMA_VERSION, Database
from cachefs.local.shared import SharedDatabase

SCHEMAS = Path(__file__).parent / "schemas"


def names(db: SharedDatabase) -> list[str]:
    return [row[0] for row in db.all("SELECT name FROM meta WHERE name LIKE 'x%' ORDER BY name")]


def put(db: SharedDatabase, name: str) -> None:
    db.execute("INSERT INTO meta VALUES (?, '1')", (name,))


def test_what_is_written_is_there_for_the_next_one_who_opens_the_file(tmp_path: Path) -> None:
    with SharedDatabase(tmp_path / "sub" / "md5s") as db:
        db.executemany("INSERT INTO meta VALUES (?, '1')", [("x1",), ("x2",)])
        assert db.get_meta("schema") == str(SCHEMA_VERSION)
        assert db.get_meta("nothing") is None
    db.close()  # again

    with SharedDatabase(tmp_path / "sub" / "md5s") as db:
        assert names(db) == ["x1", "x2"]
        assert not db.is_directory


def test_a_block_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with SharedDatabase(tmp_path / "md5s") as db:

        def fail() -> None:
            with db.writing():
                put(db, "x1")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with db.writing(), db.reading():
            put(db, "x2")
        assert names(db) == ["x2"]


def test_a_block_reads_one_moment_whatever_others_write(tmp_path: Path) -> None:
    with SharedDatabase(tmp_path / "md5s") as one, SharedDatabase(tmp_path / "md5s") as other:
        put(one, "x1")
        with one.reading():
            assert names(one) == ["x1"]
            put(other, "x2")
            assert names(one) == ["x1"]
        assert names(one) == ["x1", "x2"]


def test_a_lock_that_is_never_let_go_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_BUSY_MS", 1)
    with SharedDatabase(tmp_path / "md5s") as one, SharedDatabase(tmp_path / "md5s") as other:
        with one.writing(), pytest.raises(CacheError, match="locked"):
            put(other, "x1")
        put(other, "x1")
        assert names(one) == ["x1"]


def test_the_file_that_has_taken_its_place_is_used(tmp_path: Path) -> None:
    path = tmp_path / "md5s"
    with SharedDatabase(path) as db:
        put(db, "x1")
        path.rename(tmp_path / "old")
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        with SharedDatabase(path) as new:
            put(new, "x2")
        assert names(db) == ["x2"]

        path.unlink()
        assert names(db) == []


def test_who_rests_lets_the_file_go_and_finds_it_again(tmp_path: Path) -> None:
    with SharedDatabase(tmp_path / "md5s") as db:
        put(db, "x1")
        db.rest()
        assert names(db) == ["x1"]


def test_a_file_is_shorter_once_it_is_written_anew(tmp_path: Path) -> None:
    with SharedDatabase(tmp_path / "md5s") as db:
        db.executemany(
            "INSERT INTO meta VALUES (?, ?)", [(f"x{n}", "y" * 900) for n in range(500)]
        )
        db.execute("DELETE FROM meta WHERE name LIKE 'x%'")

        before = db.compact()

        assert db.path.stat().st_size < before / 4


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE t (x)")
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 20)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    with pytest.raises(UsageError, match="no database of cachefs"):
        SharedDatabase(tmp_path / "other")
    for name in ("text", "link"):
        with pytest.raises(CacheError, match="cannot open"):
            SharedDatabase(tmp_path / name)


def test_a_file_of_a_newer_cachefs_is_refused(tmp_path: Path) -> None:
    with SharedDatabase(tmp_path / "md5s") as db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (SCHEMA_VERSION + 1,))

    with pytest.raises(UsageError, match="newer cachefs"):
        SharedDatabase(tmp_path / "md5s")


def test_what_cannot_be_read_is_told_of(tmp_path: Path) -> None:
    with SharedDatabase(tmp_path / "md5s") as db, pytest.raises(CacheError, match="no such table"):
        db.one("SELECT * FROM nowhere")


def test_the_tables_of_an_older_cache_directory_are_brought_up_to_date(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with sqlite3.connect(tmp_path / NAME) as older:
        older.executescript((SCHEMAS / "5.sql").read_text())
        older.execute("INSERT OR REPLACE INTO meta VALUES ('schema', '5')")

    with SharedDatabase(tmp_path) as db:
        assert db.is_directory
        assert db.get_meta("schema") == str(SCHEMA_VERSION)
        assert db.all("SELECT * FROM md5s") == []


def test_a_cache_directory_is_read_beside_its_daemon(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    database = Database(tmp_path)
    try:
        with SharedDatabase(tmp_path) as db:
            database.set_meta("x1", "1")
            assert names(db) == ["x1"]
    finally:
        database.close()
