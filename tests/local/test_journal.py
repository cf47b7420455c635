"""Promises: begun before the first byte changes, ended in three ways only, and kept across restarts."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.core.intent import State
from cachefs.core.types import EntryId, ETag, Ino, Key, ObjectInfo, Token
from tests.local.disk import BOOT, Disk, opened


def entry_of(disk: Disk, name: str = "a") -> EntryId:
    entry = disk.cache.create(disk.mint(name), etag=None, size=0, now_ns=1)
    return entry.id


def ended(disk: Disk, *entries: EntryId) -> None:
    """End what a test began, so that the count of promise files is right at its end."""
    for entry in entries:
        disk.journal.settle(entry)


def state_of(disk: Disk, entry: EntryId) -> State | None:
    intent = disk.journal.of(entry)
    return None if intent is None else intent.state


# ---- the life of a promise ------------------------------------------------------------------


def test_an_entry_is_clean_until_it_is_promised_and_after_it_is_settled(disk: Disk) -> None:
    ino = disk.mint("a")
    entry = disk.cache.create(ino, etag=None, size=0, now_ns=1).id
    assert disk.journal.of(entry) is None
    assert not disk.journal.is_dirty(ino)
    assert disk.journal.count() == 0
    disk.journal.begin(entry)
    assert state_of(disk, entry) is State.OPEN
    assert disk.journal.is_dirty(ino)
    assert disk.journal.count() == 1
    disk.journal.settle(entry)
    assert disk.journal.of(entry) is None
    assert not disk.journal.is_dirty(ino)


def test_a_promise_keeps_its_token_for_life(disk: Disk) -> None:
    entry = entry_of(disk)
    token = disk.journal.begin(entry).token
    disk.journal.seal(entry, due_ns=5, is_synced=False)
    assert disk.journal.begin(entry).token == token
    disk.journal.seal(entry, due_ns=5, is_synced=False)
    claimed = disk.journal.claim(entry)
    assert claimed is not None
    assert claimed.token == token
    disk.journal.settle(entry)
    assert disk.journal.begin(entry).token != token
    ended(disk, entry)


def test_two_promises_never_have_one_token(disk: Disk) -> None:
    entries = [entry_of(disk, str(number)) for number in range(20)]
    assert len({disk.journal.begin(entry).token for entry in entries}) == 20
    ended(disk, *entries)


def test_only_a_complete_promise_is_claimed_and_only_once(disk: Disk) -> None:
    entry = entry_of(disk)
    assert disk.journal.claim(entry) is None
    disk.journal.begin(entry)
    assert disk.journal.claim(entry) is None
    disk.journal.seal(entry, due_ns=5, is_synced=False)
    claimed = disk.journal.claim(entry)
    assert claimed is not None
    assert claimed.state is State.UPLOADING
    assert disk.journal.claim(entry) is None
    ended(disk, entry)


def test_it_is_known_from_the_claim_on_that_the_store_may_have_the_bytes(disk: Disk) -> None:
    entry = entry_of(disk)
    assert not disk.journal.begin(entry).was_sent
    disk.journal.seal(entry, due_ns=0, is_synced=True)
    sealed = disk.journal.of(entry)
    assert sealed is not None
    assert not sealed.was_sent
    disk.journal.claim(entry)
    disk.journal.postpone(entry, due_ns=9, error="cut")
    disk.journal.begin(entry)
    again = disk.journal.of(entry)
    assert again is not None
    assert again.was_sent
    ended(disk, entry)


def test_a_write_during_an_upload_takes_the_promise_back_to_open(disk: Disk) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    disk.journal.seal(entry, due_ns=5, is_synced=True)
    disk.journal.claim(entry)
    disk.journal.begin(entry)
    intent = disk.journal.of(entry)
    assert intent is not None
    assert intent.state is State.OPEN
    assert intent.boot == BOOT  # newer bytes are in the page cache only
    ended(disk, entry)


@pytest.mark.parametrize(("is_synced", "boot"), [(True, None), (False, BOOT)])
def test_a_seal_tells_whether_the_bytes_are_on_the_disk(
    disk: Disk, is_synced: bool, boot: str | None
) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    disk.journal.seal(entry, due_ns=5, is_synced=is_synced)
    intent = disk.journal.of(entry)
    assert intent is not None
    assert (intent.state, intent.boot, intent.due_ns) == (State.QUEUED, boot, 5)
    ended(disk, entry)


def test_a_failed_upload_waits_and_counts_its_tries(disk: Disk) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    disk.journal.seal(entry, due_ns=0, is_synced=True)
    for tries in (1, 2):
        disk.journal.claim(entry)
        disk.journal.postpone(entry, due_ns=100 * tries, error=f"cut {tries}")
        intent = disk.journal.of(entry)
        assert intent is not None
        assert (intent.state, intent.due_ns) == (State.QUEUED, 100 * tries)
        assert (intent.tries, intent.error) == (tries, f"cut {tries}")
    ended(disk, entry)


def test_an_upload_without_an_answer_is_begun_anew_and_counts_no_try(disk: Disk) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    disk.journal.seal(entry, due_ns=0, is_synced=True)
    disk.journal.claim(entry)
    disk.journal.requeue(entry, due_ns=7)
    intent = disk.journal.of(entry)
    assert intent is not None
    assert (intent.state, intent.due_ns, intent.tries) == (State.QUEUED, 7, 0)
    ended(disk, entry)


def test_a_parked_promise_tells_why_and_waits_for_a_word(disk: Disk) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    disk.journal.seal(entry, due_ns=0, is_synced=True)
    disk.journal.park(entry, "denied")
    intent = disk.journal.of(entry)
    assert intent is not None
    assert (intent.state, intent.error) == (State.PARKED, "denied")
    assert disk.journal.next_due() is None
    assert disk.journal.claim(entry) is None
    disk.journal.hurry(entry, 3)
    intent = disk.journal.of(entry)
    assert intent is not None
    assert (intent.state, intent.due_ns, intent.tries) == (State.QUEUED, 3, 0)
    ended(disk, entry)


def test_to_hurry_moves_the_time_of_what_waits_and_nothing_else(disk: Disk) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    disk.journal.hurry(entry, 3)
    assert state_of(disk, entry) is State.OPEN
    disk.journal.seal(entry, due_ns=50, is_synced=True)
    disk.journal.hurry(entry, 3)
    due = disk.journal.next_due()
    assert due is not None
    assert due.due_ns == 3
    disk.journal.claim(entry)
    disk.journal.hurry(entry, 4)
    assert state_of(disk, entry) is State.UPLOADING
    ended(disk, entry)


ILLEGAL: list[tuple[str, Callable[[Disk, EntryId], object]]] = [
    ("postpone", lambda disk, entry: disk.journal.postpone(entry, due_ns=1, error="x")),
    ("requeue", lambda disk, entry: disk.journal.requeue(entry, due_ns=1)),
]


@pytest.mark.parametrize(("what", "act"), ILLEGAL)
def test_an_illegal_move_raises_and_changes_nothing(
    disk: Disk, what: str, act: Callable[[Disk, EntryId], object]
) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    before = disk.journal.of(entry)
    with pytest.raises(ValueError, match="open cannot fault"):
        act(disk, entry)
    assert disk.journal.of(entry) == before, what
    ended(disk, entry)


UNPROMISED: list[tuple[str, Callable[[Disk, EntryId], object]]] = [
    ("seal", lambda disk, entry: disk.journal.seal(entry, due_ns=1, is_synced=True)),
    ("hurry", lambda disk, entry: disk.journal.hurry(entry, 1)),
    ("park", lambda disk, entry: disk.journal.park(entry, "x")),
    *ILLEGAL,
]


@pytest.mark.parametrize(("what", "act"), UNPROMISED)
def test_what_was_never_promised_cannot_move(
    disk: Disk, what: str, act: Callable[[Disk, EntryId], object]
) -> None:
    entry = entry_of(disk)
    with pytest.raises(LookupError, match="no promise"):
        act(disk, entry)
    assert disk.journal.all() == [], what


@pytest.mark.parametrize("way", ["settle", "drop", "discard"])
@pytest.mark.parametrize("state", State)
def test_a_promise_ends_in_three_ways_from_any_state(disk: Disk, way: str, state: State) -> None:
    entry = entry_of(disk)
    disk.journal.begin(entry)
    disk.db.execute("UPDATE intents SET state = ?", (str(state),))
    getattr(disk.journal, way)(entry)
    assert disk.journal.count() == 0


def test_bytes_that_are_not_cached_cannot_be_promised(disk: Disk) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        disk.journal.begin(EntryId(999))


# ---- whose turn it is -----------------------------------------------------------------------


def test_what_is_due_first_is_next_and_the_older_of_two(disk: Disk) -> None:
    entries = [entry_of(disk, name) for name in "abcd"]
    for entry, due_ns in zip(entries, (30, 10, 10, 5), strict=True):
        disk.journal.begin(entry)
        disk.journal.seal(entry, due_ns=due_ns, is_synced=True)
    disk.journal.begin(entries[3])  # written again: not complete, so not next
    order: list[EntryId] = []
    while (due := disk.journal.next_due(excluding=order)) is not None:
        order.append(due.entry)
    assert order == [entries[1], entries[2], entries[0]]
    assert [intent.entry for intent in disk.journal.all()] == entries
    ended(disk, *entries)


# ---- restarts -------------------------------------------------------------------------------


def test_a_promise_survives_a_restart_as_it_stood(tmp_path: Path) -> None:
    with opened(tmp_path) as disk:
        entry = entry_of(disk)
        disk.journal.begin(entry)
        disk.journal.seal(entry, due_ns=5, is_synced=False)
        before = disk.journal.all()
    with opened(tmp_path, boot="the next boot") as disk:
        assert disk.journal.all() == before
        assert before[0].boot == BOOT


@pytest.mark.parametrize(("is_sealed", "state"), [(True, State.QUEUED), (False, State.PARKED)])
def test_a_promise_found_beside_its_bytes_is_put_back(
    disk: Disk, is_sealed: bool, state: State
) -> None:
    entry = entry_of(disk)
    disk.journal.restore(entry, Token("t0ken"), is_sealed=is_sealed, error="found")
    intent = disk.journal.of(entry)
    assert intent is not None
    assert (intent.token, intent.state, intent.error) == ("t0ken", state, "found")
    assert intent.boot is None
    assert intent.was_sent  # who knows: the store is asked
    ended(disk, entry)


# ---- renames --------------------------------------------------------------------------------


def test_a_rename_is_promised_as_a_whole_and_goes_one_way(tmp_path: Path) -> None:
    pairs = [
        (Key("d/a"), Key("e/a"), ETag("1"), None),
        (Key("d/\udcff"), Key("e/\udcff"), ETag("2"), ETag("9")),
    ]
    with opened(tmp_path) as disk:
        batch = disk.journal.begin_moves(pairs)
        other = disk.journal.begin_moves([(Key("x"), Key("y"), ETag("3"), None)])
        seen = [ObjectInfo(Key(key), 1, ETag("1"), 1) for key in ("d/\udcff", "e/\udcff", "x")]
        assert disk.journal.staying(seen) == tuple(seen)
    with opened(tmp_path) as disk:
        moves = [move for move in disk.journal.moves() if move.batch == batch]
        assert [(m.source, m.target, m.etag, m.replaces) for m in moves] == pairs
        assert {move.state for move in moves} == {"copying"}
        disk.journal.note_copy(moves[0].id, ETag("3"))
        made = [move.made for move in disk.journal.moves() if move.batch == batch]
        assert made == ["3", None]
        disk.journal.copied(batch)
        assert disk.journal.is_leaving(Key("d/\udcff"))
        assert disk.journal.staying(seen) == tuple(seen[1:])
        disk.journal.end_move(moves[0].id)
        assert not disk.journal.is_leaving(Key("d/a"))
        assert [m.source for m in disk.journal.moves()] == ["d/\udcff", "x"]
        disk.journal.end_move(moves[1].id)
        assert [m.batch for m in disk.journal.moves()] == [other]


def test_half_a_rename_is_never_promised(disk: Disk) -> None:
    bad: tuple[Key, Key, ETag, None] = (Key("b"), Key("c"), None, None)  # type: ignore[assignment]
    with pytest.raises(sqlite3.IntegrityError):
        disk.journal.begin_moves([(Key("a"), Key("b"), ETag("1"), None), bad])
    assert disk.journal.moves() == []


# ---- conflicts ------------------------------------------------------------------------------


def test_the_newest_thousand_conflicts_are_kept(disk: Disk) -> None:
    for number in range(1010):
        disk.journal.note_conflict(Key(f"\udcff{number}"), "kept both", number)
    kept = disk.journal.conflicts()
    assert [each.when_ns for each in kept] == list(range(10, 1010))
    assert (kept[0].key, kept[0].outcome) == ("\udcff10", "kept both")


def test_an_inode_without_cached_bytes_is_not_dirty(disk: Disk) -> None:
    assert not disk.journal.is_dirty(Ino(12345))


# ---- works ----------------------------------------------------------------------------------


def test_a_work_is_kept_for_its_key_until_it_is_struck(disk: Disk) -> None:
    odd = Key("a\udcff/b")
    assert disk.journal.note_work(odd, "one")
    assert disk.journal.note_work(odd, "one")
    assert disk.journal.note_work(Key("c"), "two")
    assert disk.journal.works() == [(odd, "one"), (Key("c"), "two")]
    assert disk.journal.works_of(odd) == ["one"]
    assert disk.journal.note_work(odd, "one, and more", replaces="one")
    assert disk.journal.works_of(odd) == ["one, and more"]
    disk.journal.strike_work("two")
    disk.journal.strike_work("never noted")
    assert disk.journal.works() == [(odd, "one, and more")]


def test_a_full_disk_keeps_no_work_and_no_upload_from_going_on(disk: Disk) -> None:
    assert disk.journal.note_work(Key("a"), "noted while there was room")
    disk.db.execute("PRAGMA max_page_count = 1")  # it becomes what the file has already
    works = [f"{number}" * 4000 for number in range(200)]

    noted = [disk.journal.note_work(Key("a"), work) for work in works]
    disk.journal.strike_work("noted while there was room")

    assert not noted[-1]
    assert disk.journal.works_of(Key("a")) == [
        work for work, kept in zip(works, noted, strict=True) if kept
    ]
