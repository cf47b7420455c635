"""What is remembered of opens: all of it for the last days, bounded, and gone with the file."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.core.types import Ino
from cachefs.local import history as module
from cachefs.local.history import DAYS, History
from tests.local.disk import Disk, opened

NOON = datetime(2026, 3, 28, 12)  # as the clock on the wall has it
TODAY = NOON.toordinal()


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def made(disk: Disk, number: int) -> list[Ino]:
    columns = "parent, name, component, kind, size, atime_ns, mtime_ns, ctime_ns, checked_ns"
    found = []
    for each in range(number):
        name = b"%d" % each
        cursor = disk.db.execute(
            f"INSERT INTO inodes ({columns}) VALUES (1, ?, ?, 'file', 1, 0, 0, 0, 0)", (name, name)
        )
        found.append(Ino(cursor.lastrowid or 0))
    return found


def told(history: History) -> dict[Ino, tuple[int, int, dict[int, int]]]:
    return {each.ino: (each.opens, each.used_ns, each.days) for each in history.page(0, 10**6)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.booleans()), max_size=40))
def test_opens_are_counted_by_file_and_day_whenever_they_are_written(
    tmp_path_factory: pytest.TempPathFactory, opens: list[tuple[int, int, bool]]
) -> None:
    with opened(tmp_path_factory.mktemp("d")) as disk:
        inos = made(disk, 4)
        history = History(disk.db)
        moments = [NOON + timedelta(hours=step * 12) for step in range(13)]
        model: dict[Ino, tuple[int, int, dict[int, int]]] = {}
        for which, step, is_saved in sorted(opens, key=lambda each: each[1]):
            ino, moment = inos[which], moments[step]
            history.note(ino, ns(moment))
            count, _, days = model.get(ino, (0, 0, {}))
            day = moment.toordinal()
            model[ino] = count + 1, ns(moment), {**days, day: days.get(day, 0) + 1}
            if is_saved:
                history.save_all()

        assert told(history) == model


def test_an_open_costs_no_commit_and_survives_the_end_once_written(disk: Disk) -> None:
    (ino,) = made(disk, 1)
    history = History(disk.db)
    before = disk.db.one("SELECT total_changes()")

    for _ in range(1000):
        history.note(ino, ns(NOON))

    assert disk.db.one("SELECT total_changes()") == before
    history.save_all()
    assert told(History(disk.db)) == {ino: (1000, ns(NOON), {TODAY: 1000})}


def test_a_removed_file_is_forgotten(disk: Disk) -> None:
    kept, gone, gone_before = made(disk, 3)
    history = History(disk.db)
    for ino in (kept, gone, gone_before):
        history.note(ino, ns(NOON))
    disk.db.execute("DELETE FROM inodes WHERE ino = ?", (gone_before,))
    history.save_all()

    disk.db.execute("DELETE FROM inodes WHERE ino = ?", (gone,))

    assert set(told(history)) == {kept}
    assert disk.db.all("SELECT ino FROM access_days") == [(kept,)]


def test_what_replaces_a_file_inherits_its_history(disk: Disk) -> None:
    old, new = made(disk, 2)
    history = History(disk.db)
    history.note(old, ns(NOON - timedelta(days=1)))
    history.save_all()
    history.note(old, ns(NOON))
    history.note(new, ns(NOON))

    history.inherit(new, old)

    assert told(history) == {new: (3, ns(NOON), {TODAY - 1: 1, TODAY: 2})}


def test_days_that_are_over_are_forgotten_and_the_sum_is_kept(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STEP", 2)
    inos = made(disk, 3)
    history = History(disk.db)
    for ago in range(DAYS + 3):
        for ino in inos:
            history.note(ino, ns(NOON - timedelta(days=ago)))
    history.save_all()

    steps = 0
    while history.tidy(ns(NOON)):
        steps += 1

    assert steps >= 4  # a little at a time
    days = dict.fromkeys(range(TODAY - DAYS + 1, TODAY + 1), 1)
    assert told(history) == {ino: (DAYS + 3, ns(NOON), days) for ino in inos}
    assert not history.tidy(ns(NOON))


def test_the_files_that_were_not_opened_for_longest_make_place(disk: Disk) -> None:
    inos = made(disk, 7)
    history = History(disk.db, most_files=4)
    for minute, ino in enumerate(inos):
        history.note(ino, ns(NOON + timedelta(minutes=minute)))
    history.save_all()

    while history.tidy(ns(NOON + timedelta(hours=1))):
        pass

    assert set(told(history)) == set(inos[3:])


def test_files_that_become_too_many_later_make_place_on_the_same_day(disk: Disk) -> None:
    inos = made(disk, 8)
    history = History(disk.db, most_files=4)
    for minute, ino in enumerate(inos):
        history.note(ino, ns(NOON + timedelta(minutes=minute)))
        history.save_all()
        while history.tidy(ns(NOON + timedelta(minutes=minute))):
            pass

    assert set(told(history)) == set(inos[4:])


def test_a_clock_that_was_ahead_keeps_nothing_for_longer(disk: Disk) -> None:
    (ino,) = made(disk, 1)
    history = History(disk.db)
    history.note(ino, ns(NOON + timedelta(days=3650)))
    history.save_all()

    while history.tidy(ns(NOON)):
        pass

    assert told(history) == {ino: (1, ns(NOON), {})}


def test_memory_is_bounded_where_nothing_can_be_written(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_PENDING", 3)
    inos = made(disk, 5)
    history = History(disk.db)
    for ino in inos * 2:
        history.note(ino, ns(NOON))

    assert told(history) == {ino: (2, ns(NOON), {TODAY: 2}) for ino in inos[:3]}


def test_what_the_disk_does_not_take_is_kept_for_the_next_time(disk: Disk) -> None:
    (ino,) = made(disk, 1)
    history = History(disk.db)
    history.note(ino, ns(NOON))
    disk.db.execute("PRAGMA query_only = ON")
    with pytest.raises(Exception, match="readonly"):
        history.save()
    disk.db.execute("PRAGMA query_only = OFF")

    history.save_all()

    assert told(history) == {ino: (1, ns(NOON), {TODAY: 1})}


def test_pages_go_on_where_the_last_one_ended(disk: Disk) -> None:
    inos = made(disk, 5)
    history = History(disk.db)
    for ino in inos:
        history.note(ino, ns(NOON))
    found, after = [], 0
    while page := history.page(after, 2):
        found += [each.ino for each in page]
        after = page[-1].ino

    assert found == inos
