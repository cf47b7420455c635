"""Which files are brought into the cache, in which order, and where that ends."""

import itertools
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachefs.core.errors import CachefsError, NoEntry, NoRoom, TimedOut, UsageError
from cachefs.core.heat import Heat, Heated, Presence
from cachefs.core.history import Accessed
from cachefs.local.sorting import Ordering
from cachefs.ops import preheat
from cachefs.ops.events import Failed, Progress
from cachefs.ops.globs import chosen
from cachefs.ops.manifest import Row
from cachefs.ops.preheat import Budget, By, Ready, Share, Stopped, Wanted

ALL = chosen()
SLICE = 10


@dataclass
class FakeCache:
    """A cache that fetches ``SLICE`` bytes for each question."""

    sizes: dict[str, int]
    room: int = 2**60
    errors: dict[str, CachefsError] = field(default_factory=dict)
    leaking: set[str] = field(default_factory=set)
    here: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self, path: str) -> Heated:
        if path not in self.sizes:
            raise NoEntry("no such file or directory")
        return Heated(Heat.PARTIAL, self.sizes[path], self.here.get(path, 0), 0)

    def heat(self, path: str, used_ns: int) -> Heated:
        with self.lock:
            self.asked.append(path)
            if path in self.errors:
                raise self.errors[path]
            size, here = self.look(path).size, self.here.get(path, 0)
            more = min(SLICE, size - here)
            if sum(self.here.values()) + more > self.room:
                return Heated(Heat.FULL, size, here, 0)
            self.used[path] = used_ns
            self.here[path] = 0 if path in self.leaking else here + more
            heat = Heat.CACHED if here + more == size else Heat.PARTIAL
            return Heated(heat, size, here + more, more)

    def end(self) -> None:
        self.ended = True


def ran(
    cache: FakeCache,
    paths: Iterable[str],
    *,
    bytes: int | None = None,  # noqa: A002 - the budget's own word
    files: int | None = None,
    seconds: float | None = None,
    threads: int = 1,
    ticks: Iterable[float] = itertools.repeat(0.0),
) -> list[preheat.Event]:
    clock = iter(ticks)
    wanted = (Wanted(path, used_ns=1000 - number) for number, path in enumerate(paths))
    found = preheat.preheat(
        wanted,
        cache,
        budget=Budget(bytes, files, seconds),
        threads=threads,
        clock=lambda: next(clock),
    )
    return [event for event in found if not isinstance(event, Progress)]


def test_files_come_in_their_order_whole_and_as_old_as_the_order_says() -> None:
    cache = FakeCache({"a": 25, "b": 5, "empty": 0})

    events = ran(cache, ["a", "b", "empty"])

    assert sorted(events, key=repr) == [
        Ready("a", 25, 25),
        Ready("b", 5, 5),
        Ready("empty", 0, 0),
    ]
    assert cache.asked[0] == "a"
    assert cache.used == {"a": 1000, "b": 999, "empty": 998}


def test_what_is_there_is_not_fetched_again() -> None:
    cache = FakeCache({"a": 25, "b": 5})
    ran(cache, ["a", "b"])

    again = ran(cache, ["a", "b"])

    assert sorted(again, key=repr) == [Ready("a", 25, 0), Ready("b", 5, 0)]


@pytest.mark.parametrize("threads", [1, 4])
def test_a_budget_of_bytes_is_never_passed_and_is_the_same_set_the_next_time(threads: int) -> None:
    sizes = {f"f{number}": 7 for number in range(40)}
    cache = FakeCache(sizes)

    events = ran(cache, sizes, bytes=100, threads=threads)
    again = ran(cache, sizes, bytes=100, threads=threads)

    ready = [event for event in events if isinstance(event, Ready)]
    assert sum(event.size for event in ready) == 98
    assert isinstance(events[-1], Stopped)
    assert not any(isinstance(event, Ready) and event.fetched for event in again)


def test_a_budget_of_bytes_is_for_the_first_of_the_order_however_late_its_size_is_known() -> None:
    class LateCache(FakeCache):
        has_looked = threading.Event()

        def look(self, path: str) -> Heated:
            if path == "second":
                self.has_looked.set()
            elif path == "first":
                assert self.has_looked.wait(10)
            return super().look(path)

    events = ran(LateCache({"first": 10, "second": 10}), ["first", "second"], bytes=10, threads=2)

    assert events == [
        Ready("first", 10, 10),
        Stopped("the budget of bytes is used up", "second"),
    ]


def test_a_budget_of_files_takes_the_first_of_the_order() -> None:
    cache = FakeCache(dict.fromkeys("abcd", 1))

    ran(cache, "abcd", files=2)

    assert set(cache.here) == {"a", "b"}


def test_nothing_is_begun_when_the_time_is_over() -> None:
    cache = FakeCache(dict.fromkeys("abcdef", 1))

    events = ran(cache, "abcdef", seconds=5, ticks=itertools.count(0.0, 2.0))

    assert events[-1] == Stopped("the time is over")
    assert 0 < len(cache.here) < 6


def test_a_time_that_suffices_stops_nothing() -> None:
    events = ran(FakeCache({"a": 1}), "a", seconds=50, ticks=itertools.count(0.0, 2.0))

    assert events == [Ready("a", 1, 1)]


def test_a_full_cache_ends_it_at_the_first_file_that_does_not_fit() -> None:
    cache = FakeCache(dict.fromkeys("abcdef", 10), room=25)

    events = ran(cache, "abcdef")

    assert sorted(events[:2], key=repr) == [Ready("a", 10, 10), Ready("b", 10, 10)]
    assert events[-1] == Stopped("the cache is full", "c")
    assert cache.asked.count("f") == 0


def test_a_file_that_cannot_be_had_is_told_and_the_others_are_fetched() -> None:
    cache = FakeCache({"a": 1, "big": 99, "c": 1}, errors={"big": NoRoom("too large")})

    events = ran(cache, ["a", "gone", "big", "c"], bytes=200)

    assert {event.path for event in events if isinstance(event, Failed)} == {"gone", "big"}
    assert set(cache.here) == {"a", "c"}


def test_a_file_that_leaves_as_fast_as_it_comes_is_given_up() -> None:
    cache = FakeCache({"a": 100, "b": 1}, leaking={"a"})

    events = ran(cache, "ab")

    assert [type(event) for event in events if event != Ready("b", 1, 1)] == [Failed]


def test_a_store_that_does_not_answer_ends_it() -> None:
    names = [f"f{number}" for number in range(100)]
    cache = FakeCache({}, errors=dict.fromkeys(names, TimedOut("no answer")))

    with pytest.raises(TimedOut):
        ran(cache, names)

    assert len(cache.asked) < 20
    assert cache.ended


def test_faults_that_pass_end_nothing() -> None:
    names = [f"f{number}" for number in range(30)]
    faulty = {name: TimedOut("no answer") for name in names if not name.endswith("5")}
    cache = FakeCache(dict.fromkeys(names, 1), errors=dict(list(faulty.items())[:7]))

    events = ran(cache, names)

    assert len([event for event in events if isinstance(event, Ready)]) == 23


def test_whoever_leaves_early_wakes_those_that_wait() -> None:
    cache = FakeCache(dict.fromkeys("abcdef", 1))
    events = preheat.preheat(
        (Wanted(path, 1) for path in "abcdef"), cache, budget=Budget(), threads=1
    )
    next(events)

    events.close()

    assert cache.ended


# ---- orders ---------------------------------------------------------------------------------


def order_of(root: Path, **patterns: Sequence[str]) -> list[Wanted]:
    with Ordering() as ordering:
        assert list(preheat.tree(root, chosen(**patterns), ordering)) == []
        return list(preheat.in_order(ordering))


def test_a_tree_is_ordered_by_the_last_access(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, atime_ns in (("old", 10), ("d/new\udc80", 30), ("mid", 20)):
        (tmp_path / name).write_bytes(name.encode(errors="surrogateescape"))
        os.utime(tmp_path / name, ns=(atime_ns, 99))
    (tmp_path / "link").symlink_to("old")

    assert order_of(tmp_path) == [
        Wanted("d/new\udc80", 30, 6),
        Wanted("mid", 20, 3),
        Wanted("old", 10, 3),
    ]
    assert [each.path for each in order_of(tmp_path, exclude=["/d"])] == ["mid", "old"]


def test_a_time_beyond_all_that_can_be_counted_comes_first_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(b"a")
    lstat = os.lstat

    class Far:
        st_mode, st_size, st_atime_ns = lstat(tmp_path / "tree" / "a").st_mode, 1, 2**64

    rows = [Row("b", size=2**70, atime=1e9), Row("c", atime=9e11)]
    with Ordering() as ordering:
        monkeypatch.setattr(os, "lstat", lambda path: Far)
        assert list(preheat.tree(tmp_path / "tree", ALL, ordering)) == []
        monkeypatch.undo()
        preheat.listed_by_access(rows, ALL, ordering)

        assert [each.path for each in preheat.in_order(ordering)] == ["a", "c", "b"]


def test_a_tree_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a directory"):
        order_of(tmp_path / "none")


def test_a_list_is_taken_in_its_order_each_a_little_older_than_the_one_before() -> None:
    rows = [Row("b", size=3), Row("skip.tmp"), Row("a", atime=5.0)]

    wanted = list(preheat.listed(rows, chosen((), ("*.tmp",)), now_ns=100))

    assert wanted == [Wanted("b", 100, 3), Wanted("a", 99)]


def test_a_list_with_times_of_access_can_be_ordered_by_them() -> None:
    rows = [Row("old", atime=1.0), Row("never"), Row("new", atime=2.5)]

    with Ordering() as ordering:
        preheat.listed_by_access(rows, ALL, ordering)
        found = [(each.path, each.used_ns) for each in preheat.in_order(ordering)]

    assert found == [("new", 2_500_000_000), ("old", 1_000_000_000), ("never", 0)]


@pytest.mark.parametrize(
    ("by", "order"),
    [
        (By.LAST, ["new", "often", "old", "once"]),
        (By.FREQUENCY, ["often", "old", "new", "once"]),
        (By.YESTERDAY, ["old", "once"]),
    ],
)
def test_the_history_is_ordered_by_last_use_by_frequency_or_by_what_was_hot_yesterday(
    by: By, order: list[str]
) -> None:
    second = 10**9
    history = [
        Accessed("once", 1, 1, 10 * second, {99: 1}),
        Accessed("old", 2, 5, 20 * second, {99: 3, 97: 2}),
        Accessed("new", 3, 4, 50 * second, {100: 4}),
        Accessed("often", 4, 9, 40 * second, {100: 1, 98: 8}),
        Accessed("left.tmp", 4, 99, 60 * second, {99: 99}),
    ]

    with Ordering() as ordering:
        preheat.remembered(history, by, chosen((), ("*.tmp",)), ordering, today=100)
        found = list(preheat.in_order(ordering))

    assert [each.path for each in found] == order
    used = {each.path: (each.used_ns, each.size) for each in found}
    assert used["old"] == (20 * second, 2)


# ---- what is there --------------------------------------------------------------------------


def test_the_share_counts_whole_files_and_the_bytes_of_all() -> None:
    there = {"whole": Presence(10, 10), "part": Presence(10, 4), "empty": Presence(0, 0)}
    wanted = [Wanted(path, 0, size) for path, size in
              (("whole", None), ("part", 99), ("empty", None), ("new", 5), ("unknown", None))]  # fmt: skip

    def found(**budget: int) -> preheat.Share | Progress:
        presences = lambda paths: [there.get(path, Presence(None, 0)) for path in paths]  # noqa: E731
        *_, last = preheat.share(wanted, presences, Budget(**budget))
        return last

    assert found() == Share(files=5, cached_files=2, bytes=25, cached_bytes=14, unknown=1)
    assert found(files=2) == Share(files=2, cached_files=1, bytes=20, cached_bytes=14)
    assert found(bytes=19) == Share(files=1, cached_files=1, bytes=10, cached_bytes=10)
