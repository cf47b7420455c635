"""What was hashed is known as long as the file is the same, and no longer."""

import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cachefs.core.errors import CacheError
from cachefs.core.types import EntryId, ETag
from cachefs.local.hashed import Hashed, HashMemory, Stamp, cached_path

_OLD = Stamp(size=3, mtime_ns=1_000, inode=7)
_NOW = 10**18


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "hashed.sqlite3"


def test_a_file_that_was_hashed_is_known_in_the_next_run(path: Path) -> None:
    with HashMemory(path) as memory:
        memory.note("caf\udce9/a", _OLD, "md5", now_ns=_NOW)
    with HashMemory(path) as memory:
        known = memory.known("caf\udce9/a", _OLD)
    assert known is not None
    assert (known.md5, known.etag) == ("md5", None)


@pytest.mark.parametrize("change", [{"size": 4}, {"mtime_ns": 1_001}, {"inode": 8}])
def test_another_size_time_or_inode_is_another_file(path: Path, change: dict[str, int]) -> None:
    with HashMemory(path) as memory:
        memory.note("a", _OLD, "md5", now_ns=_NOW)
        assert memory.known("a", replace(_OLD, **change)) is None


def test_a_file_that_was_changed_a_moment_ago_is_not_believed(path: Path) -> None:
    fresh = replace(_OLD, mtime_ns=_NOW - 10**9)
    with HashMemory(path) as memory:
        memory.note("a", fresh, "md5", now_ns=_NOW)
        assert memory.known("a", fresh) is None


def test_what_was_verified_holds_for_the_bytes_that_it_was_found_for(path: Path) -> None:
    with HashMemory(path) as memory:
        memory.note("a", _OLD, "md5", now_ns=_NOW)
        memory.verified("a", "other", ETag("wrong"), now_ns=_NOW)
        memory.verified("a", "md5", ETag("right"), now_ns=_NOW)
        known = memory.known("a", _OLD)
        assert known is not None
        assert (known.etag, known.verified_ns) == ("right", _NOW)
        memory.doubt("a")
        doubted = memory.known("a", _OLD)
        assert doubted is not None
        assert doubted.etag is None
        memory.verified("a", "md5", ETag("right"), now_ns=_NOW)
        memory.note("a", replace(_OLD, size=4), "new", now_ns=_NOW)
        (row,) = memory.all()
        assert (row.md5, row.etag) == ("new", None)
        memory.forget("a")
        assert list(memory.all()) == []


def test_all_comes_in_the_order_of_the_bytes(path: Path) -> None:
    names = ["b", "a/b", "a", "a-b", "\udcff", "é"]
    with HashMemory(path) as memory:
        for name in names:
            memory.note(name, _OLD, "md5", now_ns=_NOW)
        assert [row.path for row in memory.all()] == sorted(names, key=os.fsencode)


def test_a_killed_run_leaves_what_it_had_noted(path: Path) -> None:
    memory = HashMemory(path)
    for number in range(600):
        memory.note(f"{number}", _OLD, "md5", now_ns=_NOW)
    with HashMemory(path) as after:  # as if the first were gone
        assert len(list(after.all())) >= 512
    memory.close()


def test_several_threads_may_note_at_once(path: Path) -> None:
    with HashMemory(path) as memory:

        def note(thread: int) -> None:
            for number in range(200):
                memory.note(f"{thread}/{number}", _OLD, "md5", now_ns=_NOW)

        threads = [threading.Thread(target=note, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(memory.all())) == 800


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_file_that_is_no_database_is_begun_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with HashMemory(path) as memory:
        assert list(memory.all()) == []


def other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE files (a); INSERT INTO files VALUES (1)")


def picture(path: Path) -> None:
    path.write_bytes(b"\xff\xd8 a picture" * 100)


@pytest.mark.parametrize("make", [other_database, picture])
def test_what_the_user_names_and_is_something_else_is_left_alone(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    named = tmp_path / "named"
    make(named)
    before = named.read_bytes()

    with pytest.raises(CacheError, match="name another file"):
        HashMemory(named, is_named=True)

    assert os.listdir(tmp_path) == ["named"]
    assert named.read_bytes() == before


def test_what_the_user_names_serves_again(tmp_path: Path) -> None:
    for _ in range(2):
        with HashMemory(tmp_path / "named", is_named=True) as memory:
            memory.note("a", _OLD, "md5", now_ns=_NOW)
            assert memory.count() == 1


@pytest.mark.parametrize(
    ("stamp", "is_kept"),
    [
        (replace(_OLD, inode=2**64 - 5), True),  # as network file systems number theirs
        (replace(_OLD, mtime_ns=2**63 + 5), False),
        (replace(_OLD, mtime_ns=-(2**63) - 5), False),
    ],
)
def test_whatever_a_file_system_tells_of_a_file_can_be_kept_or_is_not(
    path: Path, stamp: Stamp, is_kept: bool
) -> None:
    with HashMemory(path) as memory:
        memory.keep([Hashed("kept", stamp, "md5", None, None)], now_ns=_NOW)
        memory.note("noted", stamp, "md5", now_ns=_NOW)
        assert [row.stamp for row in memory.all()] == [stamp, stamp] * is_kept
        assert (memory.known("kept", stamp) is not None) == is_kept


def test_two_runs_at_a_time_keep_what_they_have_hashed(path: Path) -> None:
    with HashMemory(path) as one, HashMemory(path) as other:
        one.keep([Hashed("a", _OLD, "md5", None, None)], now_ns=_NOW)
        other.keep([Hashed("b", _OLD, "md5", None, None)], now_ns=_NOW)
        assert one.count() == other.count() == 2


def test_what_the_disk_does_not_take_is_hashed_again(path: Path) -> None:
    with HashMemory(path) as memory:
        memory.note("a", _OLD, "md5", now_ns=_NOW)
        memory._connection.execute("PRAGMA max_page_count = 1")
        long = [Hashed(f"{number}" * 500, _OLD, "md5", None, None) for number in range(100)]
        memory.keep(long, now_ns=_NOW)
        assert [row.path for row in memory.all()] == ["a"]
        memory._connection.execute("PRAGMA max_page_count = 10000")
        memory.keep(long, now_ns=_NOW)
        assert memory.count() == 101


def test_where_it_is_damaged_inside_that_is_said_in_one_line(path: Path) -> None:
    with HashMemory(path) as memory:
        for number in range(100):
            memory.note(f"{number}" * 100, _OLD, "md5", now_ns=_NOW)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    with HashMemory(path) as memory:
        with pytest.raises(CacheError, match="remove that file"):
            memory.known_all({f"{number}" * 100: _OLD for number in range(100)})
        with pytest.raises(CacheError, match="remove that file"):
            list(memory.all())


def test_it_is_private_to_its_owner(path: Path) -> None:
    with HashMemory(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_where_it_cannot_be_made_that_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot be kept"):
        HashMemory(tmp_path / "file" / "below" / "hashed.sqlite3")


def test_many_are_known_at_once_as_one_by_one(path: Path) -> None:
    names = [f"{number}\udcff" for number in range(1200)]
    with HashMemory(path) as memory:
        rows = [Hashed(name, _OLD, "md5", ETag("e"), _NOW) for name in names]
        memory.keep(rows, now_ns=_NOW)
        asked = dict.fromkeys(names, _OLD) | {names[7]: replace(_OLD, size=9), "other": _OLD}

        known = memory.known_all(asked)

        assert known == {row.path: row for row in rows if row.path != names[7]}
        assert memory.count() == 1200
        memory.forget_all(names[:1000])
        assert memory.count() == 200


def test_what_is_kept_anew_replaces_what_was_and_what_just_changed_is_not_kept(path: Path) -> None:
    fresh = replace(_OLD, mtime_ns=_NOW - 10**9)
    with HashMemory(path) as memory:
        memory.keep([Hashed("a", _OLD, "md5", ETag("e"), _NOW)], now_ns=_NOW)
        memory.keep(
            [Hashed("a", _OLD, "md5", None, None), Hashed("b", fresh, "md5", ETag("e"), _NOW)],
            now_ns=_NOW,
        )
        assert [(row.path, row.etag) for row in memory.all()] == [("a", None)]


def test_the_bytes_of_a_cache_entry_are_kept_by_the_name_of_their_file() -> None:
    assert cached_path(EntryId(17)) == "data/17"
