"""The database of a cache directory: whole transactions, and a damaged file is never believed nor deleted."""

import contextlib
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.errors import CacheError, DiskFull, UsageError
from cachefs.local.db import NAME, RESERVE_NAME, SCHEMA_VERSION, WAL_KEPT, Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.close()


def names(database: Database) -> list[str]:
    """What the test itself has written, in order."""
    rows = database.all("SELECT name FROM meta WHERE name LIKE 'test-%' ORDER BY name")
    return [row[0] for row in rows]


def reopened(directory: Path) -> tuple[bool, list[str]]:
    """Open the database anew: whether it was rebuilt, and what of the test's is in it."""
    database = Database(directory)
    try:
        return database.was_rebuilt, names(database)
    finally:
        database.close()


def broken_files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"{NAME}.broken-*"))


# ---- transactions ---------------------------------------------------------------------------


def test_a_transaction_commits_as_a_whole(db: Database, tmp_path: Path) -> None:
    with db.transaction():
        db.set_meta("test-1", "a")
        db.set_meta("test-2", "b")
        assert reopened(tmp_path) == (False, [])
    assert reopened(tmp_path) == (False, ["test-1", "test-2"])


def test_a_transaction_that_fails_leaves_nothing(db: Database) -> None:
    def work() -> None:
        with db.transaction():
            db.set_meta("test-1", "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert names(db) == []
    db.set_meta("test-2", "b")
    assert names(db) == ["test-2"]


@pytest.mark.parametrize("fails", ["inner", "outer", "nothing"])
def test_an_inner_transaction_joins_the_outer_one(db: Database, fails: str) -> None:
    def work() -> None:
        with db.transaction():
            db.set_meta("test-1", "a")
            with db.transaction():
                db.set_meta("test-2", "b")
                if fails == "inner":
                    raise ZeroDivisionError
            if fails == "outer":
                raise ZeroDivisionError

    if fails == "nothing":
        work()
        assert names(db) == ["test-1", "test-2"]
    else:
        with pytest.raises(ZeroDivisionError):
            work()
        assert names(db) == []


def test_a_full_disk_is_reported_as_such_and_takes_the_whole_transaction_back(
    db: Database,
) -> None:
    def fill(count: int) -> None:
        with db.transaction():
            for number in range(count):
                db.set_meta(f"test-{number}", "x" * 1000)

    (pages,) = db.one("PRAGMA page_count") or (0,)
    db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(DiskFull):
        fill(99)
    assert names(db) == []
    db.execute(f"PRAGMA max_page_count = {pages + 100}")
    fill(2)
    assert names(db) == ["test-0", "test-1"]


# ---- what is in it --------------------------------------------------------------------------


def test_meta_is_kept_and_replaced_and_outlives_the_connection(tmp_path: Path) -> None:
    db = Database(tmp_path)
    volume = db.get_meta("volume")
    assert db.get_meta("source") is None
    db.set_meta("source", "s3://a")
    db.set_meta("source", "s3://b")
    db.close()
    db = Database(tmp_path)
    assert db.get_meta("source") == "s3://b"
    assert volume
    assert db.get_meta("volume") == volume
    db.close()


def test_two_cache_directories_have_different_volumes(tmp_path: Path) -> None:
    volumes = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        db = Database(tmp_path / name)
        volumes.add(db.get_meta("volume"))
        db.close()
    assert len(volumes) == 2


def test_only_the_owner_can_read_the_database(db: Database) -> None:
    assert db.path.stat().st_mode & 0o777 == 0o600


def test_foreign_keys_are_enforced(db: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(
            "INSERT INTO entries (ino, size, extents, cost, used_ns) VALUES (999, 0, x'', 0, 0)"
        )


def test_a_second_connection_sees_what_is_committed_and_can_write(
    db: Database, tmp_path: Path
) -> None:
    second = Database(tmp_path)
    db.set_meta("test-1", "a")
    second.set_meta("test-2", "b")
    assert names(db) == names(second) == ["test-1", "test-2"]
    second.close()


def test_close_can_be_called_twice(tmp_path: Path) -> None:
    db = Database(tmp_path)
    db.close()
    db.close()


# ---- the write-ahead log --------------------------------------------------------------------


def test_a_killed_process_loses_no_committed_row(db: Database, tmp_path: Path) -> None:
    db.set_meta("test-1", "a")
    image = tmp_path / "image"
    image.mkdir()
    for suffix in ("", "-wal"):
        source = Path(f"{db.path}{suffix}")
        (image / source.name).write_bytes(source.read_bytes())
    assert reopened(image) == (False, ["test-1"])


def test_a_checkpoint_moves_the_log_into_the_database(db: Database) -> None:
    for number in range(100):
        db.set_meta(f"test-{number}", "x" * 500)
    grown = db.wal_bytes()
    assert grown > 0
    Database.checkpoint(db.path)
    db.set_meta("test-after", "a")
    assert db.wal_bytes() == grown  # written from its beginning again
    assert b"x" * 500 in db.path.read_bytes()
    assert len(names(db)) == 101


def test_a_checkpoint_gives_way_to_a_writer(db: Database) -> None:
    with db.transaction():
        db.set_meta("test-1", "a")
        Database.checkpoint(db.path)
        assert names(db) == ["test-1"]
    assert names(db) == ["test-1"]


def test_a_reader_of_what_is_long_past_keeps_a_long_log_and_nothing_else_does(
    db: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("cachefs.local.db._WAL_PRESSING", 4096)
    with contextlib.closing(sqlite3.connect(db.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchall()
        for number in range(100):
            db.set_meta(f"test-{number}", "x" * 500)
        assert not Database.checkpoint(db.path)
    assert Database.checkpoint(db.path)
    (tmp_path / "garbage").write_bytes(b"no database" * 1000)
    assert Database.checkpoint(tmp_path / "garbage")


def test_the_log_can_be_synced_and_moved_from_another_thread(db: Database) -> None:
    db.set_meta("test-1", "a")
    errors: list[BaseException] = []

    def work() -> None:
        try:
            Database.sync_wal(db.path)
            Database.checkpoint(db.path)
        except BaseException as error:  # noqa: BLE001  # told below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert names(db) == ["test-1"]


def test_without_a_log_there_is_nothing_to_sync(tmp_path: Path) -> None:
    db = Database(tmp_path)
    db.close()
    assert not Path(f"{db.path}-wal").exists()
    Database.sync_wal(db.path)
    assert db.wal_bytes() == 0


# ---- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"garbage" * 1000, id="garbage"),
        pytest.param(b"SQLite format 3\0", id="a bare signature"),
    ],
)
def test_a_file_that_is_no_database_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert reopened(tmp_path) == (True, [])
    (aside,) = broken_files(tmp_path)
    assert aside.read_bytes() == content
    assert reopened(tmp_path) == (False, [])


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    assert reopened(tmp_path) == (False, [])
    assert broken_files(tmp_path) == []


def test_a_log_without_its_database_is_not_believed(tmp_path: Path) -> None:
    db = Database(tmp_path)
    db.set_meta("test-1", "a")
    log = Path(f"{db.path}-wal").read_bytes()
    db.close()
    db.path.unlink()
    Path(f"{db.path}-wal").write_bytes(log)
    assert reopened(tmp_path)[1] == []
    assert reopened(tmp_path)[0] is False


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param([], id="before the tables"),
        pytest.param(
            ["CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT)"], id="before the version"
        ),
    ],
)
def test_a_database_whose_making_was_cut_short_is_made_anew(
    tmp_path: Path, statements: list[str]
) -> None:
    connection = sqlite3.connect(tmp_path / NAME, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    for statement in statements:
        connection.execute(statement)
    connection.close()
    assert (tmp_path / NAME).stat().st_size > 0
    assert reopened(tmp_path) == (True, [])
    assert len(broken_files(tmp_path)) == 1


def test_words_that_sqlite_believes_of_the_tables_are_not_taken_for_ours_when_they_changed(
    tmp_path: Path,
) -> None:
    Database(tmp_path).close()
    content = (tmp_path / NAME).read_bytes()
    assert content.count(b"'uploading', 'parked'") == 1
    (tmp_path / NAME).write_bytes(
        content.replace(b"'uploading', 'parked'", b"'uploading', 'parket'")
    )
    database = Database(tmp_path)
    assert database.was_rebuilt
    database.close()
    database = Database(tmp_path)
    assert not database.was_rebuilt
    database.close()


def test_two_broken_databases_are_both_kept(tmp_path: Path) -> None:
    for content in (b"first" * 100, b"second" * 100):
        (tmp_path / NAME).write_bytes(content)
        assert reopened(tmp_path)[0]
    kept = {path.read_bytes() for path in broken_files(tmp_path)}
    assert kept == {b"first" * 100, b"second" * 100}


def test_nothing_of_a_broken_database_reaches_the_new_one(tmp_path: Path) -> None:
    db = Database(tmp_path)
    db.set_meta("test-1", "a")
    db.close()
    db.path.write_bytes(b"garbage" * 1000)
    Path(f"{db.path}-wal").write_bytes(b"damaged too" * 1000)
    assert reopened(tmp_path) == (True, [])
    assert reopened(tmp_path) == (False, [])


def test_damage_anywhere_ends_in_a_sound_database_and_loses_no_file(tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    sound.mkdir()
    db = Database(sound)
    for number in range(50):
        db.set_meta(f"test-{number}", "x" * 100)
    db.close()
    content = (sound / NAME).read_bytes()
    dice = random.Random(20)
    header = [(at, 1) for at in range(100)]
    anywhere = [(dice.randrange(len(content)), dice.choice((4, 64, 4096))) for _ in range(150)]
    rebuilt = 0
    for turn, (at, count) in enumerate(header + anywhere):
        directory = tmp_path / str(turn)
        directory.mkdir()
        damaged = bytearray(content)
        damaged[at : at + count] = dice.randbytes(len(damaged[at : at + count]))
        (directory / NAME).write_bytes(damaged)
        opened = Database(directory)
        assert opened.get_meta("volume")
        assert opened.one("PRAGMA quick_check(1)") == ("ok",)
        assert [path.read_bytes() for path in broken_files(directory)] == [damaged] * (
            opened.was_rebuilt
        )
        rebuilt += opened.was_rebuilt
        opened.close()
    assert rebuilt > 50


def change_behind_index(directory: Path, index: str, statement: str) -> None:
    """Change a table without one of its indexes, which tells of the rows before from then on."""

    def do(*statements: str, values: tuple[object, ...] = ()) -> tuple[object, ...]:
        connection = sqlite3.connect(directory / NAME, isolation_level=None)
        connection.execute("PRAGMA writable_schema = ON")
        found = [connection.execute(each, values).fetchone() for each in statements]
        connection.close()
        return found[0] or ()

    hidden = do(
        f"SELECT * FROM sqlite_schema WHERE name = '{index}'",
        f"DELETE FROM sqlite_schema WHERE name = '{index}'",
    )
    do(statement)
    do("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", values=hidden)


@pytest.mark.parametrize("is_owed", [True, False])
def test_an_index_that_tells_of_other_rows_is_found_where_the_store_is_owed_anything(
    tmp_path: Path, is_owed: bool
) -> None:
    db = Database(tmp_path)
    db.execute(
        "INSERT INTO inodes (ino, component, kind, size, atime_ns, mtime_ns, ctime_ns, checked_ns)"
        " VALUES (1, x'', 'dir', 0, 0, 0, 0, 0)"
    )
    db.execute("INSERT INTO entries (ino, size, extents, cost, used_ns) VALUES (1, 0, x'', 0, 1)")
    if is_owed:
        db.execute("INSERT INTO intents VALUES (1, 'token', 'queued', NULL, 0, 0, 0, NULL)")
    db.close()
    change_behind_index(tmp_path, "entries_by_score", "UPDATE entries SET score = 2")

    assert reopened(tmp_path)[0] is is_owed


def test_a_database_of_a_newer_cachefs_is_refused_and_left_alone(tmp_path: Path) -> None:
    db = Database(tmp_path)
    db.set_meta("schema", str(SCHEMA_VERSION + 1))
    db.close()
    before = db.path.read_bytes()
    with pytest.raises(UsageError, match="newer cachefs"):
        Database(tmp_path)
    assert db.path.read_bytes() == before
    assert broken_files(tmp_path) == []


def test_a_database_that_cannot_be_opened_now_is_not_taken_for_a_broken_one(
    tmp_path: Path,
) -> None:
    db = Database(tmp_path)
    db.set_meta("test-1", "a")
    db.close()
    in_the_way = Path(f"{db.path}-wal")
    in_the_way.mkdir()
    with pytest.raises(CacheError, match="cannot open"):
        Database(tmp_path)
    in_the_way.rmdir()
    assert reopened(tmp_path) == (False, ["test-1"])


# ---- a disk that is full, or fails ------------------------------------------------------------


class CommitsFail:
    """A connection on which a commit fails, and leaves the transaction open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:  # noqa: ANN401
        if sql == "COMMIT":
            raise sqlite3.OperationalError("database is locked")
        return self._connection.execute(sql, values)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction


def test_a_commit_that_fails_takes_everything_back_and_the_next_one_is_its_own(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory: list[str] = []

    def work() -> None:
        with db.transaction():
            db.set_meta("test-lost", "x")
            db.if_undone(lambda: memory.append("undone first"))
            db.if_undone(lambda: memory.append("undone last"))
            db.when_done(lambda: memory.append("done"))

    with monkeypatch.context() as patch:
        patch.setattr(db, "_connection", CommitsFail(db._connection))
        with pytest.raises(CacheError, match="locked"):
            work()
    assert memory == ["undone last", "undone first"]
    assert names(db) == []
    work()
    assert memory == ["undone last", "undone first", "done"]
    assert names(db) == ["test-lost"]


def test_without_a_transaction_what_waits_for_its_end_is_done_at_once(db: Database) -> None:
    memory: list[str] = []
    db.when_done(lambda: memory.append("done"))
    db.if_undone(lambda: memory.append("undone"))
    assert memory == ["done"]


def test_room_is_set_aside_for_a_full_disk(db: Database, tmp_path: Path) -> None:
    assert db.wal_bytes() >= WAL_KEPT
    taken = (tmp_path / RESERVE_NAME).stat().st_blocks * 512
    assert taken >= 4 * 2**20


def test_a_link_in_the_place_of_the_reserve_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"not ours")
    directory = tmp_path / "cache"
    directory.mkdir()
    (directory / RESERVE_NAME).symlink_to(precious)
    db = Database(directory)
    db._is_full = True  # as after a commit that found no room
    db.set_meta("test", "x")
    assert precious.read_bytes() == b"not ours"
    db.close()


# ---- room that is given back ----------------------------------------------------------------


def test_what_is_unused_is_given_back_a_little_at_a_time(db: Database) -> None:
    with db.transaction():
        for number in range(600):
            db.set_meta(f"test-{number}", "x" * 900)
    db.execute("DELETE FROM meta WHERE name LIKE 'test-%'")
    assert db.gives_room_back
    Database.checkpoint(db.path)
    before = db.path.stat().st_size

    steps = 1
    while db.shorten(16):
        steps += 1
    Database.checkpoint(db.path)

    assert steps > 5
    assert db.path.stat().st_size < before / 2


def test_a_file_that_cannot_be_made_shorter_in_steps_can_once_it_was_written_anew(
    tmp_path: Path,
) -> None:
    Database(tmp_path).close()
    with sqlite3.connect(tmp_path / NAME, isolation_level=None) as older:
        older.execute("PRAGMA auto_vacuum = NONE")
        older.execute("VACUUM")
    older.close()
    database = Database(tmp_path)
    with database.transaction():
        for number in range(600):
            database.set_meta(f"test-{number}", "x" * 900)
    database.execute("DELETE FROM meta WHERE name LIKE 'test-%'")
    was = database.gives_room_back

    before = database.compact()

    assert (was, database.gives_room_back) == (False, True)
    assert database.path.stat().st_size < before / 2
    database.close()


def test_what_cannot_be_asked_is_an_error_in_every_way_of_asking(db: Database) -> None:
    for ask in (db.one, db.all, lambda sql: list(db.each(sql))):
        with pytest.raises(sqlite3.DatabaseError, match="nowhere"):
            ask("SELECT * FROM nowhere")
