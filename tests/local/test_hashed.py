"""What was hashed is known as long as the file is the same, and no longer."""

import os
import stat
import threading
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
