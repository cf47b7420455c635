"""Pruning: who goes, in which order, and that what was explained is what goes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.cached import CachedFile, CacheUsage
from cachefs.core.eviction import MAIN, SMALL, Policy, Standing
from cachefs.core.expression import Expression, parse
from cachefs.core.intent import State
from cachefs.core.types import EntryId, ETag, Key
from cachefs.ops.prune import Ended, Event, Kept, Planned, Removed, Spared, Which, prune

S = 10**9
NOW = 10**9 * S
PLAIN = CachedFile(
    id=EntryId(1),
    path="f1",
    key=Key("f1"),
    size=100,
    cached=100,
    cost=100,
    etag=ETag("v"),
    used_ns=NOW - 60 * S,
    made_ns=NOW - 3600 * S,
    hits=1,
    fetch_ns=S,
    fetch_s=1.0,
    standing=Standing(),
    is_pinned=False,
    mtime_ns=0,
    state=None,
    pins=0,
)


class FakeCache:
    """A cache of which others make use at the moments that a test says."""

    def __init__(self, files: Sequence[CachedFile], policy: Policy = Policy.LRU) -> None:
        self.files = {file.id: file for file in files}
        self.policy = policy
        self.evicted: list[str] = []
        self.meanwhile: Callable[[FakeCache], None] = lambda cache: None

    def entries(self) -> Iterator[CachedFile]:
        yield from list(self.files.values())

    def usage(self) -> CacheUsage:
        return CacheUsage(sum(file.cost for file in self.files.values()), 1000, self.policy)

    def evict(self, files: Sequence[tuple[EntryId, int]]) -> Sequence[int | str]:
        self.meanwhile(self)
        self.meanwhile = lambda cache: None
        return [self._evict(*each) for each in files]

    def _evict(self, entry_id: EntryId, used_ns: int) -> int | str:
        file = self.files[entry_id]
        if file.pins or file.state is not None or file.is_pinned or file.used_ns != used_ns:
            return "is in use"
        del self.files[entry_id]
        self.evicted.append(file.path)
        return file.cost


def made(**fields: object) -> list[CachedFile]:
    """Files that differ in each of *fields*, which are sequences."""
    count = len(next(iter(fields.values())))  # type: ignore[arg-type]
    return [
        replace(
            PLAIN,
            id=EntryId(at + 1),
            path=f"f{at + 1}",
            **{name: values[at] for name, values in fields.items()},  # type: ignore[index]
        )
        for at in range(count)
    ]


def to(level: int) -> Callable[[CacheUsage], int]:
    return lambda usage: usage.used - level


def run(
    cache: FakeCache,
    by: Policy | Expression = Policy.LRU,
    *,
    level: int = 0,
    is_dry: bool = False,
    **which: object,
) -> list[Event]:
    chosen = Which(by, NOW, **which)  # type: ignore[arg-type]
    return list(prune(cache, chosen, to(level), cache_size=None, is_dry=is_dry))


def order(events: Sequence[Event]) -> str:
    return " ".join(
        event.victim.file.path for event in events if isinstance(event, Planned | Removed)
    )


DIFFERENT = made(
    cost=[300, 100, 200],
    used_ns=[NOW - 10 * S, NOW - 30 * S, NOW - 20 * S],
    made_ns=[NOW - 90 * S, NOW - 80 * S, NOW - 99 * S],
    hits=[5, 2, 1],
    fetch_s=[1.0, 4000.0, 1.0],
    fetch_ns=[S, 4000 * S, S],
)


@pytest.mark.parametrize(
    ("by", "goes"),
    [
        (Policy.LRU, "f2 f3 f1"),
        (Policy.LFU, "f3 f2 f1"),
        (Policy.SIZE, "f1 f3 f2"),
        (Policy.AGE, "f3 f1 f2"),
        (Policy.GDSF, "f3 f1 f2"),
        (Policy.S3FIFO, "f3 f2 f1"),
        (parse("size * idle"), "f3 f1 f2"),
        (parse("-size"), "f2 f3 f1"),
        (parse("1 / (hits - 2)"), "f1 f3 f2"),
    ],
)
def test_files_go_in_the_order_of_what_was_asked_for(by: Policy | Expression, goes: str) -> None:
    cache = FakeCache(DIFFERENT, Policy.LRU if by is not Policy.LRU else Policy.AGE)
    assert order(run(cache, by)) == goes
    assert " ".join(cache.evicted) == goes


def test_by_the_mounts_own_policy_they_go_as_the_mount_would_let_them_go() -> None:
    files = made(
        standing=[
            Standing(MAIN, 1, 2),
            Standing(SMALL, 5, 0),
            Standing(MAIN, 2, 0),
            Standing(SMALL, 6, 2),
        ]
    )
    assert order(run(FakeCache(files, Policy.S3FIFO), Policy.S3FIFO)) == "f2 f3 f4 f1"
    aged = made(standing=[Standing(score=9.0), Standing(score=7.0), Standing(score=8.0)])
    assert order(run(FakeCache(aged, Policy.GDSF), Policy.GDSF)) == "f2 f3 f1"


policies = st.sampled_from([*Policy, parse("size * idle"), parse("log(hits - 2)")])
drawn_files = st.lists(
    st.builds(
        replace,
        st.just(PLAIN),
        cost=st.integers(0, 300),
        used_ns=st.integers(0, 5).map(lambda at: NOW - at * S),
        hits=st.integers(0, 5),
        pins=st.sampled_from([0, 0, 0, 1]),
        state=st.sampled_from([None, None, None, State.QUEUED]),
        is_pinned=st.sampled_from([False, False, False, True]),
        standing=st.builds(
            Standing,
            st.sampled_from([SMALL, MAIN]),
            st.integers(0, 9).map(float),
            st.integers(0, 3),
        ),
    ),
    max_size=15,
).map(
    lambda files: [
        replace(file, id=EntryId(at), path=f"f{at}") for at, file in enumerate(files, 1)
    ]
)


@given(drawn_files, policies, st.sampled_from(list(Policy)), st.integers(0, 2000))
def test_what_goes_is_exactly_what_was_explained_and_never_what_anybody_needs(
    files: list[CachedFile], by: Policy | Expression, own: Policy, level: int
) -> None:
    if own is not Policy.S3FIFO:
        files = [replace(file, standing=Standing(score=file.standing.score)) for file in files]
    cache = FakeCache(files, own)
    planned = run(cache, by, level=level, is_dry=True)
    assert not cache.evicted
    done = run(cache, by, level=level)
    assert cache.evicted == order(planned).split() == order(done).split()
    needed = {f.path for f in files if f.pins or f.state is not None or f.is_pinned}
    assert not needed & set(cache.evicted)
    free = sum(f.cost for f in files if f.path not in needed)
    need = sum(f.cost for f in files) - level
    assert (
        cache.usage().used <= level
        or sum(f.cost for f in files if f.path in cache.evicted) == free
    )
    if cache.evicted:  # and not one more than needed
        last = next(f for f in files if f.path == cache.evicted[-1])
        assert sum(f.cost for f in files if f.path in cache.evicted) - last.cost < need


@pytest.mark.parametrize(
    ("which", "stays", "why"),
    [
        ({"unused_for_s": 25.0}, "f1 f3", "was used too lately"),
        ({"larger_than": 200}, "f2 f3", "is too small"),
        ({"verified": {DIFFERENT[1]}}, "f1 f3", "was not verified"),
    ],
)
def test_what_was_not_asked_for_stays_and_is_said(
    which: dict[str, Any], stays: str, why: str
) -> None:
    cache = FakeCache(DIFFERENT)
    events = run(cache, **which)
    assert " ".join(file.path for file in cache.files.values()) == stays
    size = sum(file.cost for file in cache.files.values())
    assert Spared(why, 2, size) in events


def test_what_came_into_use_meanwhile_stays_and_others_go_for_it() -> None:
    cache = FakeCache(made(used_ns=[NOW - 30 * S, NOW - 20 * S, NOW - 10 * S]))

    def open_first(cache: FakeCache) -> None:
        cache.files[EntryId(1)] = replace(cache.files[EntryId(1)], pins=1)

    cache.meanwhile = open_first
    events = run(cache, level=200)
    assert order(events) == "f2"
    assert [event.victim.file.path for event in events if isinstance(event, Kept)] == ["f1"]


def test_a_cache_that_fills_meanwhile_is_brought_down_all_the_same() -> None:
    cache = FakeCache(made(used_ns=[NOW - 30 * S, NOW - 20 * S, NOW - 10 * S]))

    def fill(cache: FakeCache) -> None:
        cache.files[EntryId(9)] = replace(PLAIN, id=EntryId(9), path="new", used_ns=NOW)

    cache.meanwhile = fill
    run(cache, level=200)
    assert cache.usage().used <= 200
    assert cache.evicted[:2] == ["f1", "f2"]
    assert "new" not in cache.evicted


def test_it_ends_where_nothing_more_may_go() -> None:
    cache = FakeCache(made(pins=[1, 1, 0]))
    events = run(cache)
    assert order(events) == "f3"
    assert events[-1] == Ended(200)
    assert not run(FakeCache([]), level=0)


@pytest.mark.parametrize("is_dry", [True, False])
def test_whether_the_target_was_met_is_told_in_the_end(is_dry: bool) -> None:
    assert run(FakeCache(made(pins=[1, 1, 0])), level=200, is_dry=is_dry)[-1] == Ended(0)
    assert run(FakeCache(made(pins=[1, 1, 0])), level=150, is_dry=is_dry)[-1] == Ended(50)
