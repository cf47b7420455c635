"""Cached bytes: never more than the limit, never believed when they are not there, never dropped while promised."""

import os
import resource
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import NoHandles, UsageError
from cachefs.core.eviction import Policy
from cachefs.core.extents import Extent, ExtentMap
from cachefs.core.types import EntryId, ETag, Ino
from cachefs.local.cache import BLOCK, SLACK, Cache, Entry, blocks_of
from tests.local.disk import MIB, Disk, open_disk, opened

WHOLE = b"0123456789" * 1000


def create(disk: Disk, name: str = "a", content: bytes = b"") -> Entry:
    """Make a pinned entry with *content*."""
    entry = disk.cache.create(disk.mint(name), etag=ETag("v1"), size=0, now_ns=1)
    if content:
        disk.write(entry, 0, content)
    return entry


def stored(disk: Disk, name: str = "a", content: bytes = WHOLE, *, used_ns: int = 1) -> Entry:
    """Make an entry with *content* that nobody uses any more."""
    entry = create(disk, name, content)
    assert disk.cache.unpin(entry, used_ns) is None
    return entry


# ---- room -----------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_blocks_of_an_extent_are_those_it_touches(start: int, length: int) -> None:
    touched = {start // BLOCK, (start + length - 1) // BLOCK}
    assert blocks_of(Extent(start, start + length)) == (max(touched) - min(touched) + 1) * BLOCK


def test_a_reservation_counts_as_used_until_it_is_released(disk: Disk) -> None:
    room = disk.cache.reserve(10 * BLOCK)
    assert room is not None
    assert disk.cache.used == disk.cache.reserved == 10 * BLOCK
    disk.cache.release(room)
    disk.cache.release(room)
    assert disk.cache.used == disk.cache.reserved == 0


def test_a_row_that_a_full_disk_did_not_let_go_goes_when_there_is_room(disk: Disk) -> None:
    given_up, kept = stored(disk, "given up"), stored(disk, "kept")
    assert disk.cache.give_up_file(given_up)
    assert not disk.cache.give_up_file(given_up)
    disk.cache.save_late()
    assert disk.cache.all_ids() == [kept.id]
    assert disk.cache.used == disk.cache.path_of(kept.id).stat().st_blocks * 512
    disk.cache.check()


def test_the_limit_is_reserved_to_its_last_byte_and_no_further(tmp_path: Path) -> None:
    with opened(tmp_path, limit=100) as disk:
        first = disk.cache.reserve(60)
        assert first is not None
        assert disk.cache.reserve(41) is None
        assert disk.cache.short_of(41) == 1
        second = disk.cache.reserve(40)
        assert second is not None
        assert disk.cache.short_of(0) == 0
        disk.cache.release(first)
        assert disk.cache.used == 40


def test_the_free_space_of_the_disk_is_respected(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    disk = open_disk(tmp_path, limit=2**60, min_free=free // 2)
    assert disk.cache.reserve(free) is None
    room = disk.cache.reserve(free // 4)
    assert room is not None
    # What is reserved is not written yet, so the disk does not show it.
    assert disk.cache.short_of(free // 2) > free // 8
    disk.cache.release(room)
    disk.close()


def test_used_is_what_the_files_take_and_what_is_reserved(disk: Disk) -> None:
    entry = create(disk)
    disk.write(entry, 0, b"a" * 10_000)
    disk.write(entry, MIB, b"b")  # a hole takes nothing
    disk.check()
    assert disk.cache.used == disk.disk_bytes() < MIB // 2
    room = disk.cache.reserve(BLOCK)
    assert room is not None
    assert disk.cache.used == disk.disk_bytes() + BLOCK
    disk.check()
    disk.cache.release(room)
    disk.cache.unpin(entry, 2)


def test_an_estimate_counts_until_the_file_is_measured(disk: Disk) -> None:
    entry = create(disk)
    room = disk.cache.reserve(BLOCK + SLACK)
    assert room is not None
    os.pwrite(entry.fd, b"a" * BLOCK, 0)
    disk.cache.estimate(entry, room)
    assert disk.cache.reserved == 0
    assert disk.cache.used == BLOCK + SLACK
    disk.cache.check()
    disk.cache.release(room)
    disk.cache.account(entry)
    disk.check()
    disk.cache.unpin(entry, 2)


def test_statistics_tell_the_operator_what_is_taken(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    stored(disk, "b")
    room = disk.cache.reserve(BLOCK)
    assert room is not None
    assert disk.cache.statistics() == {
        "limit": disk.cache.limit,
        "used": disk.disk_bytes() + BLOCK,
        "reserved": BLOCK,
        "entries": 2,
        "pinned": 1,
    }
    disk.cache.release(room)
    disk.cache.unpin(entry, 1)


# ---- entries and pins -----------------------------------------------------------------------


def test_an_unknown_inode_has_no_entry(disk: Disk) -> None:
    assert disk.cache.find(Ino(999)) is None
    assert disk.cache.load(EntryId(999)) is None


def test_an_inode_has_one_entry_at_most(disk: Disk) -> None:
    entry = create(disk)
    with pytest.raises(sqlite3.IntegrityError):
        disk.cache.create(entry.ino, etag=None, size=0, now_ns=1)


def test_a_cache_file_is_its_owners_alone(disk: Disk) -> None:
    entry = create(disk)
    assert disk.cache.path_of(entry.id).stat().st_mode & 0o777 == 0o600
    assert disk.cache.data.stat().st_mode & 0o777 == 0o700


def test_what_is_pinned_is_one_object_for_all_who_use_it(disk: Disk) -> None:
    entry = create(disk)
    assert disk.cache.find(entry.ino) is entry
    assert disk.cache.load(entry.id) is entry
    assert disk.cache.pin(entry, 2) is entry
    assert entry.pins == 2
    assert disk.cache.unpin(entry, 3) is None
    assert entry.fd >= 0
    disk.cache.check()
    assert disk.cache.unpin(entry, 4) is None
    assert entry.fd < 0
    found = disk.cache.find(entry.ino)
    assert found is not None
    assert found is not entry
    assert found.used_ns == 4


def test_one_who_found_an_entry_before_another_pinned_it_gets_the_pinned_one(disk: Disk) -> None:
    entry = stored(disk)
    first, second = disk.cache.find(entry.ino), disk.cache.find(entry.ino)
    assert first is not None
    assert second is not None
    assert disk.cache.pin(first, 2) is first
    assert disk.cache.pin(second, 2) is first
    assert first.pins == 2
    disk.cache.unpin(first, 3)
    disk.cache.unpin(first, 3)


def test_the_last_unpin_makes_the_bytes_outlive_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        entry = create(disk)
        disk.write(entry, 0, b"abc")
        disk.write(entry, 10_000, b"def")
        disk.cache.unpin(entry, 7)
        used = disk.cache.used
    with opened(tmp_path) as disk:
        assert disk.cache.used == used == disk.disk_bytes()
        found = disk.cache.load(entry.id)
        assert found is not None
        assert (found.etag, found.size, found.used_ns) == ("v1", 10_003, 7)
        assert found.here == ExtentMap([Extent(0, 3), Extent(10_000, 10_003)])
        assert not found.is_whole
        pinned = disk.cache.pin(found, 8)
        assert pinned is not None
        assert os.pread(pinned.fd, 3, 10_000) == b"def"
        disk.cache.unpin(pinned, 9)


@pytest.mark.parametrize(
    ("size", "extents", "is_whole"),
    [
        (0, [], True),
        (5, [Extent(0, 5)], True),
        (5, [Extent(0, 9)], True),
        (5, [Extent(0, 4)], False),
        (5, [Extent(1, 5)], False),
        (5, [Extent(0, 2), Extent(3, 5)], False),
    ],
)
def test_an_entry_is_whole_when_every_byte_is_here(
    size: int, extents: list[Extent], is_whole: bool
) -> None:
    entry = Entry(EntryId(1), Ino(2), None, size, ExtentMap(extents), 0, 0)
    assert entry.is_whole is is_whole


@pytest.mark.parametrize("damage", ["gone", "shorter", "a symlink"])
def test_a_file_that_lacks_its_bytes_is_not_believed(
    disk: Disk, tmp_path: Path, damage: str
) -> None:
    entry = stored(disk)
    path = disk.cache.path_of(entry.id)
    if damage == "shorter":
        os.truncate(path, len(WHOLE) - 1)
    else:
        path.unlink()
        if damage == "a symlink":
            (tmp_path / "elsewhere").write_bytes(WHOLE)
            path.symlink_to(tmp_path / "elsewhere")
    found = disk.cache.find(entry.ino)
    assert found is not None
    assert disk.cache.pin(found, 2) is None
    assert found.fd < 0
    disk.delete(disk.cache.drop(found))
    assert disk.cache.find(entry.ino) is None
    assert disk.cache.used == 0
    assert not path.exists()


@pytest.mark.parametrize("has_any", [False, True], ids=["none at all", "all are taken"])
def test_a_file_that_cannot_be_opened_just_now_is_not_taken_for_lost(
    disk: Disk, has_any: bool
) -> None:
    entry = stored(disk)
    found = disk.cache.find(entry.ino)
    assert found is not None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(next_free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free if has_any else 0, limits[1]))
    try:
        with pytest.raises(NoHandles):
            disk.cache.pin(found, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found.fd < 0
    assert found.pins == 0
    assert disk.cache.pin(found, 2) is found
    disk.cache.unpin(found, 3)


@pytest.mark.parametrize("what", ["a directory", "a fifo", "a link"])
def test_what_was_put_in_the_place_of_a_file_is_not_taken_for_it(
    disk: Disk, what: str, tmp_path: Path
) -> None:
    entry = stored(disk)
    path = disk.cache.path_of(entry.id)
    elsewhere = path.rename(tmp_path / "elsewhere")
    if what == "a directory":
        path.mkdir()
    elif what == "a fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere)
    found = disk.cache.find(entry.ino)
    assert found is not None
    assert disk.cache.pin(found, 2) is None
    disk.delete(disk.cache.drop(found))
    assert disk.cache.used == 0
    assert list(disk.cache.strays()) == []
    assert elsewhere.exists()
    if what == "a directory":  # is left to whoever made it
        path.rmdir()


def test_a_file_that_ends_in_a_hole_is_believed(disk: Disk) -> None:
    entry = create(disk, "a", b"abc")
    entry.size = 10_000  # its end was not fetched
    disk.cache.unpin(entry, 1)
    found = disk.cache.find(entry.ino)
    assert found is not None
    assert disk.cache.pin(found, 2) is found
    disk.cache.unpin(found, 3)


# ---- dropping -------------------------------------------------------------------------------


def test_a_dropped_file_counts_until_it_is_really_gone(disk: Disk) -> None:
    entry = stored(disk)
    used = disk.cache.used
    doomed = disk.cache.drop(entry)
    assert doomed is not None
    assert disk.cache.find(entry.ino) is None
    assert disk.cache.used == used == disk.disk_bytes()
    disk.cache.delete_file(doomed)
    assert disk.cache.used == used
    disk.cache.deleted(doomed)
    assert disk.cache.used == disk.disk_bytes() == 0


def test_a_dropped_entry_can_be_read_until_its_last_pin_goes(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.cache.pin(entry, 1)
    assert disk.cache.drop(entry) is None
    assert os.pread(entry.fd, 10, 0) == WHOLE[:10]
    replacing = disk.cache.create(entry.ino, etag=ETag("v2"), size=0, now_ns=2)
    assert replacing.id != entry.id
    assert disk.cache.unpin(entry, 2) is None
    doomed = disk.cache.unpin(entry, 2)
    assert doomed is not None
    assert disk.cache.find(entry.ino) is replacing
    fd = doomed.fd
    disk.delete(doomed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    disk.check()
    disk.cache.unpin(replacing, 3)


@pytest.mark.parametrize("how", ["account", "estimate"])
def test_what_is_written_into_a_dropped_file_still_counts(disk: Disk, how: str) -> None:
    entry = create(disk, "a", WHOLE)
    assert disk.cache.drop(entry) is None
    room = disk.cache.reserve(BLOCK + SLACK)
    assert room is not None
    os.pwrite(entry.fd, b"x" * BLOCK, MIB)
    if how == "estimate":
        disk.cache.estimate(entry, room)
        assert disk.cache.used >= disk.disk_bytes()
    disk.cache.account(entry)
    disk.cache.release(room)
    assert disk.cache.used == disk.disk_bytes()
    disk.delete(disk.cache.unpin(entry, 2))
    assert disk.cache.used == disk.disk_bytes() == 0


def test_names_are_left_to_a_file_until_it_is_dropped_and_never_after(
    disk: Disk, tmp_path: Path
) -> None:
    entry = stored(disk)
    pinned = disk.cache.pin(entry, now_ns=2)
    assert pinned is not None
    lent = disk.cache.lend(pinned, b"lent")
    name = tmp_path / "name"
    os.link(lent.path, name)
    assert disk.cache.leave_names(lent, [name])
    disk.cache.reclaim_name(name)
    assert disk.cache.left_to(name) is None
    assert disk.cache.leave_names(lent, [name])
    assert disk.cache.left_to(name) == entry.id

    assert disk.cache.drop(pinned) is None  # it is pinned, and its row is gone
    assert not name.exists()
    assert not disk.cache.leave_names(lent, [name])
    assert disk.cache.left_to(name) is None
    disk.cache.take_back(lent)
    doomed = disk.cache.unpin(pinned, 3)
    assert doomed is not None
    disk.delete(doomed)


def test_promised_bytes_cannot_be_dropped(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry)
    with pytest.raises(sqlite3.IntegrityError):
        disk.cache.drop(entry)
    assert disk.cache.find(entry.ino) is entry
    disk.cache.unpin(entry, 2)
    with pytest.raises(sqlite3.IntegrityError):
        disk.cache.drop(entry)
    disk.check()
    assert disk.cache.path_of(entry.id).read_bytes() == WHOLE
    disk.settle(entry.id)
    disk.delete(disk.cache.drop(entry))


def test_to_delete_a_file_that_is_gone_already_is_no_error(disk: Disk) -> None:
    doomed = disk.cache.drop(stored(disk))
    disk.delete(doomed)
    assert doomed is not None
    disk.cache.delete_file(doomed)


def test_only_what_is_clean_and_unpinned_is_offered_for_eviction(disk: Disk) -> None:
    disk.cache.order.policy = Policy.LRU
    clean = [stored(disk, f"clean{at}", used_ns=10 - at) for at in range(3)]
    dirty = create(disk, "dirty", WHOLE)
    disk.promise(dirty)
    disk.cache.unpin(dirty, 1)
    pinned = create(disk, "pinned", WHOLE)
    offered = list(disk.cache.evictable(10))
    assert [each.entry for each in offered] == [clean[2].id, clean[1].id, clean[0].id]
    assert {each.cost for each in offered} == {clean[0].cost}
    assert [each.entry for each in disk.cache.evictable(1)][:1] == [clean[2].id]
    assert sorted(disk.cache.all_ids()) == sorted(
        [*(each.id for each in clean), dirty.id, pinned.id]
    )
    disk.cache.unpin(pinned, 2)


def test_what_the_operator_has_pinned_is_not_offered_whether_it_came_before_the_pin_or_after(
    disk: Disk,
) -> None:
    here, coming = stored(disk, "here"), disk.mint("coming")
    other = stored(disk, "other")
    disk.inodes.update(here.ino, pinned=1)
    disk.inodes.update(coming, pinned=1)
    disk.cache.unpin(disk.cache.create(coming, etag=None, size=0, now_ns=1), 1)
    assert [each.entry for each in disk.cache.evictable(10)] == [other.id]
    disk.inodes.update(here.ino, pinned=0)
    assert {each.entry for each in disk.cache.evictable(10)} == {here.id, other.id}


def test_victims_are_read_from_an_index_whatever_the_number_of_entries(disk: Disk) -> None:
    plans: list[str] = []
    ask = disk.db.all

    def explained(sql: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        plans.extend(str(row[3]) for row in ask(f"EXPLAIN QUERY PLAN {sql}", values))
        return ask(sql, values)

    disk.db.all = explained  # type: ignore[method-assign]
    list(disk.cache.evictable(10))
    assert any("USING INDEX entries_by_score" in step for step in plans)
    assert not any("TEMP B-TREE" in step for step in plans)


# ---- promises beside the files --------------------------------------------------------------


def test_a_promise_lies_beside_its_bytes_and_goes_with_its_end(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry, b'{"key": "a"}')
    path = disk.cache.promise_path(entry.id)
    assert path.read_bytes() == b'{"key": "a"}'
    assert path.stat().st_mode & 0o777 == 0o600
    disk.check()
    disk.cache.write_promise(entry.id, b"newer")
    assert path.read_bytes() == b"newer"
    disk.check()
    disk.settle(entry.id)
    assert not path.exists()
    disk.cache.unpin(entry, 2)


def test_a_synced_entry_has_its_bytes_and_its_promise(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry)
    disk.cache.sync(entry.id, entry.fd, b"synced")
    assert disk.cache.promise_path(entry.id).read_bytes() == b"synced"
    disk.cache.unpin(entry, 2)
    disk.settle(entry.id)


def test_two_closes_at_once_leave_one_whole_promise(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry)
    texts = [str(at).encode() * 500 for at in range(4)]

    def work(text: bytes) -> None:
        for _ in range(20):
            disk.cache.write_promise(entry.id, text)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert disk.cache.promise_path(entry.id).read_bytes() in texts
    assert list(disk.cache.data.glob("*.new-*")) == []
    disk.cache.unpin(entry, 2)
    disk.settle(entry.id)


def test_a_promise_found_by_recovery_is_counted_too(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.journal.begin(entry.id)
    disk.cache.write_promise(entry.id, b"{}")
    disk.cache.count_promise()
    disk.check()
    disk.settle(entry.id)
    disk.cache.unpin(entry, 2)


# ---- acknowledged content that is being written again ---------------------------------------


def seal(disk: Disk, entry: Entry) -> None:
    cost = disk.cache.write_sealed(entry.id, entry.fd, entry.size)
    disk.cache.sealed_made(entry.id, cost)


@pytest.mark.parametrize("size", [0, 1, 10_000, 3 * MIB])
def test_the_acknowledged_content_is_kept_and_put_back(disk: Disk, size: int) -> None:
    entry = create(disk, "a", b"a" * size)
    disk.promise(entry)
    assert not disk.cache.has_sealed(entry.id)
    seal(disk, entry)
    assert disk.cache.has_sealed(entry.id)
    disk.check()
    disk.write(entry, 0, b"half of something newer")
    disk.cache.unpin(entry, 2)
    disk.check()
    assert disk.cache.restore_sealed(entry)
    disk.cache.take_whole(entry)
    assert disk.cache.path_of(entry.id).read_bytes() == b"a" * size
    found = disk.cache.load(entry.id)
    assert found is not None
    assert (found.size, found.is_whole) == (size, True)
    assert not disk.cache.has_sealed(entry.id)
    disk.settle(entry.id)


def test_without_kept_content_there_is_nothing_to_put_back(disk: Disk) -> None:
    entry = stored(disk)
    assert not disk.cache.restore_sealed(entry)
    disk.cache.drop_sealed(entry.id)
    assert disk.cache.path_of(entry.id).read_bytes() == WHOLE


def test_the_end_of_a_promise_takes_the_kept_content_with_it(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry)
    seal(disk, entry)
    disk.settle(entry.id)
    assert not disk.cache.has_sealed(entry.id)
    assert not disk.cache.sealed_path(entry.id).exists()
    disk.cache.unpin(entry, 2)


def test_kept_content_outlives_a_restart_and_is_counted(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        entry = create(disk, "a", WHOLE)
        disk.promise(entry)
        seal(disk, entry)
        disk.cache.unpin(entry, 2)
        used = disk.cache.used
    with opened(tmp_path) as disk:
        assert disk.cache.used == used
        assert disk.cache.has_sealed(entry.id)
        disk.check()


def test_content_that_is_kept_again_replaces_what_was_kept(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry)
    seal(disk, entry)
    disk.write(entry, 0, b"X" * 50_000)
    seal(disk, entry)
    assert disk.cache.sealed_path(entry.id).read_bytes() == b"X" * 50_000
    disk.check()
    disk.settle(entry.id)
    disk.cache.unpin(entry, 2)


def test_superseded_content_goes_unless_newer_was_kept_meanwhile(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry)
    disk.cache.supersede_sealed(entry.id)
    seal(disk, entry)
    assert disk.cache.has_sealed(entry.id)
    disk.cache.supersede_sealed(entry.id)
    assert not disk.cache.has_sealed(entry.id)
    disk.check()
    seal(disk, entry)
    disk.cache.drop_superseded(entry.id)
    assert disk.cache.has_sealed(entry.id)
    disk.cache.supersede_sealed(entry.id)
    disk.cache.drop_superseded(entry.id)
    assert not disk.cache.sealed_path(entry.id).exists()
    disk.check()
    disk.settle(entry.id)
    disk.cache.unpin(entry, 2)


def test_a_copy_that_fails_leaves_nothing_behind(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.cache.write_sealed(entry.id, 9999, entry.size)
    assert list(disk.cache.data.glob("*.new-*")) == []
    assert not disk.cache.has_sealed(entry.id)
    disk.cache.unpin(entry, 2)


# ---- what a stopped daemon left -------------------------------------------------------------


def test_half_made_files_are_gone_at_the_next_start(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        entry = create(disk, "a", WHOLE)
        disk.promise(entry)
        disk.cache.unpin(entry, 1)
        for half_made in ("1.new-123", "1.new-sealed", "77.new-5"):
            (disk.cache.data / half_made).write_bytes(b"half")
    with opened(tmp_path) as disk:
        assert sorted(path.name for path in disk.cache.data.iterdir()) == ["1", "1.promise"]
        disk.check()


def test_a_new_entry_never_gets_the_number_of_a_file_that_is_there(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        for stray in ("7", "12.promise", "9.sealed", "notes.txt"):
            (disk.cache.data / stray).write_bytes(b"left")
        disk.cache.skip_numbers()
        assert create(disk, "a").id == 13
        disk.cache.skip_numbers()
        assert create(disk, "b").id == 14
        (disk.cache.data / "40").write_bytes(b"left")
        disk.cache.skip_numbers()
        assert create(disk, "c").id == 41


def test_numbers_are_not_used_again_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        first = stored(disk)
        disk.delete(disk.cache.drop(first))
    with opened(tmp_path) as disk:
        disk.cache.skip_numbers()
        assert create(disk, "b").id > first.id


def test_files_without_a_row_are_strays_and_can_be_removed(disk: Disk) -> None:
    entry = create(disk, "a", WHOLE)
    disk.promise(entry)
    for stray in ("900", "900.promise", "notes.txt"):
        (disk.cache.data / stray).write_bytes(b"left")
    strays = list(disk.cache.strays())
    assert [path.name for path in strays] == ["900", "900.promise", "notes.txt"]
    for path in strays:
        disk.cache.remove_stray(path)
    assert list(disk.cache.strays()) == []
    disk.settle(entry.id)
    disk.cache.unpin(entry, 2)


def test_a_dirty_file_is_believed_rather_than_its_row(disk: Disk) -> None:
    entry = stored(disk)
    disk.cache.path_of(entry.id).write_bytes(b"longer than its row says " * 1000)
    disk.cache.take_whole(entry)
    found = disk.cache.find(entry.ino)
    assert found is not None
    assert (found.size, found.is_whole) == (25_000, True)
    disk.check()


def test_a_file_that_grew_unseen_is_measured_again(disk: Disk) -> None:
    entry = stored(disk)
    with disk.cache.path_of(entry.id).open("ab") as file:
        file.write(b"x" * MIB)
    disk.cache.remeasure(entry)
    disk.check()
    found = disk.cache.find(entry.ino)
    assert found is not None
    assert found.cost == entry.cost > MIB
    assert found.here == ExtentMap([Extent(0, len(WHOLE))])


@pytest.mark.parametrize("name", ["500", "500.sealed"])
def test_a_file_that_lost_its_row_is_adopted_with_its_bytes(tmp_path: Path, name: str) -> None:
    with opened(tmp_path) as disk:
        (disk.cache.data / name).write_bytes(WHOLE)
    with opened(tmp_path) as disk:
        disk.cache.skip_numbers()
        ino = disk.mint("a")
        if name != "500":
            disk.cache.take_sealed(EntryId(500))
        entry = disk.cache.adopt(EntryId(500), ino, etag=ETag("base"), now_ns=5)
        assert (entry.id, entry.ino, entry.etag, entry.size) == (500, ino, "base", len(WHOLE))
        assert entry.is_whole
        assert disk.cache.path_of(entry.id).read_bytes() == WHOLE
        assert not disk.cache.has_sealed(EntryId(500))
        disk.check()
        pinned = disk.cache.pin(entry, 6)
        assert pinned is not None
        disk.cache.unpin(pinned, 7)
        disk.check()


def test_a_row_that_is_not_believed_leaves_its_file_as_a_stray(disk: Disk) -> None:
    entry = stored(disk)
    for _ in range(2):
        disk.cache.disbelieve(entry.id, was_promised=False)
        assert disk.cache.used == 0
        assert list(disk.cache.strays()) == [disk.cache.path_of(entry.id)]
    disk.cache.remove_stray(disk.cache.path_of(entry.id))


@pytest.mark.parametrize("what", ["a symlink", "a file"])
def test_a_data_directory_that_is_none_of_ours_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    data = tmp_path / "cache" / "data"
    if what == "a symlink":
        data.symlink_to(tmp_path / "elsewhere")
    else:
        data.touch()
    with pytest.raises(UsageError, match="not a directory of yours"), opened(tmp_path / "cache"):
        pass


def test_a_lost_count_is_found_by_the_check(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        stored(disk)
        disk.cache.check()
        disk.db.execute("UPDATE entries SET cost = cost + 1")
        with pytest.raises(AssertionError):
            disk.cache.check()
    with opened(tmp_path, limit=BLOCK) as disk, pytest.raises(AssertionError):
        disk.cache.check()


def test_the_data_directory_is_made_once_and_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        stored(disk)
        again = Cache(disk.db, tmp_path, limit=64 * MIB, min_free=0)
        assert again.used == disk.cache.used
