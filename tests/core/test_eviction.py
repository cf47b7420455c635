"""Who goes first, by each policy; and what S3-FIFO does, against its paper's own words."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.eviction import (
    MAIN,
    MOST_CHANCES,
    SMALL,
    Candidate,
    Facts,
    FetchTimes,
    Policy,
    Standing,
    choose_victims,
    s3fifo_victims,
    score,
)
from cachefs.core.types import EntryId, Ino

MIB = 2**20
S = 10**9
USUAL = Facts(size=MIB, made_ns=1000 * S, used_ns=2000 * S, hits=3, fetch_ns=S)

# ---- how many ------------------------------------------------------------------------------

candidates = st.lists(
    st.integers(0, 100).map(lambda cost: Candidate(EntryId(1), cost, 0.0, SMALL, 0, Ino(1)))
)


@given(candidates, st.integers(-10, 600))
def test_the_first_go_enough_of_them_and_not_one_more(entries: list[Candidate], need: int) -> None:
    victims = choose_victims(iter(entries), need)
    freed = sum(victim.cost for victim in victims)
    assert victims == entries[: len(victims)]
    assert freed >= need or len(victims) == len(entries)
    if victims:
        assert freed - victims[-1].cost < need


# ---- scores --------------------------------------------------------------------------------


def goes_first(policy: Policy, one: Facts, other: Facts) -> bool:
    return score(policy, one, fetch_s=one.fetch_ns / S) < score(
        policy, other, fetch_s=other.fetch_ns / S
    )


@pytest.mark.parametrize(
    ("policy", "change"),
    [
        (Policy.GDSF, {"size": 2 * MIB}),
        (Policy.GDSF, {"hits": 2}),
        (Policy.GDSF, {"fetch_ns": S // 2}),
        (Policy.LRU, {"used_ns": 1999 * S}),
        (Policy.LFU, {"hits": 2, "used_ns": 2**33 * S}),
        (Policy.LFU, {"used_ns": 1990 * S}),
        (Policy.SIZE, {"size": MIB + 1}),
        (Policy.AGE, {"made_ns": 999 * S, "used_ns": 9000 * S}),
    ],
)
def test_who_has_the_least_of_what_a_policy_looks_at_goes_first(
    policy: Policy, change: dict[str, int]
) -> None:
    worse = replace(USUAL, **change)
    assert goes_first(policy, worse, USUAL)
    assert not goes_first(policy, USUAL, worse)


def test_gdsf_saves_waiting_time_for_each_byte_and_ages_by_what_was_evicted() -> None:
    assert score(Policy.GDSF, USUAL, fetch_s=1) == pytest.approx(3 / MIB)
    assert score(Policy.GDSF, USUAL, fetch_s=1, inflation=7) == pytest.approx(7 + 3 / MIB)
    often_long_ago = score(Policy.GDSF, replace(USUAL, hits=50), fetch_s=1, inflation=0)
    once_now = score(Policy.GDSF, replace(USUAL, hits=1), fetch_s=1, inflation=often_long_ago)
    assert often_long_ago < once_now


def test_an_empty_file_is_no_worth_without_end() -> None:
    assert score(Policy.GDSF, replace(USUAL, size=0), fetch_s=1) == pytest.approx(3 / 4096)


# ---- what fetching takes -------------------------------------------------------------------


@given(st.floats(0.001, 2), st.floats(1e5, 1e9))
def test_what_fetching_takes_is_learnt_from_what_it_took(first_s: float, rate: float) -> None:
    times = FetchTimes()
    for turn in range(300):
        size = (turn % 7) * 4 * MIB
        times.learn(size, first_s + size / rate)
    for size in (0, MIB, 20 * MIB):
        assert times.estimate(size) == pytest.approx(
            first_s + size / rate, rel=0.1, abs=0.01 + MIB / rate
        )


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.floats(0, 1e4)), max_size=30),
    st.integers(0, 2**40),
)
def test_an_estimate_is_some_time_and_never_less_for_more_bytes(
    seen: list[tuple[int, float]], size: int
) -> None:
    times = FetchTimes()
    for bytes_, seconds in seen:
        times.learn(bytes_, seconds)
    assert 0 < times.estimate(size) <= times.estimate(2 * size)


# ---- S3-FIFO -------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    name: str
    cost: int
    queue: int = SMALL
    chances: int = 0


class InMemory:
    """The two queues as they are drawn in the paper."""

    def __init__(self, files: list[File]) -> None:
        self.queues = {q: deque(file for file in files if file.queue == q) for q in (SMALL, MAIN)}

    def small_bytes(self) -> int:
        return sum(file.cost for file in self.queues[SMALL])

    def first(self, queue: int) -> File | None:
        return self.queues[queue].popleft() if self.queues[queue] else None

    def append(self, file: File, chances: int) -> None:
        self.queues[MAIN].append(replace(file, queue=MAIN, chances=chances))


def names(files: Iterator[File]) -> str:
    return "".join(file.name for file in files)


@pytest.mark.parametrize(
    ("files", "size", "order"),
    [
        # What is new and was not used again goes first, in the order in which it came.
        ([File("a", 10), File("b", 10), File("m", 10, MAIN)], 100, "abm"),
        # Used once more is not enough, twice is; that goes to the end of the main queue.
        ([File("a", 10, chances=2), File("b", 10, chances=1), File("m", 10, MAIN)], 100, "bma"),
        # The new ones may take a tenth: below that, the main queue has to give.
        ([File("a", 9), File("m", 45, MAIN), File("n", 45, MAIN)], 100, "mna"),
        # Each use in the main queue is one more round.
        ([File("m", 50, MAIN, 2), File("n", 50, MAIN, 1), File("o", 50, MAIN)], 100, "onm"),
    ],
)
def test_s3fifo_takes_them_as_the_paper_says(files: list[File], size: int, order: str) -> None:
    assert names(s3fifo_victims(InMemory(files), size)) == order


@given(
    st.lists(
        st.tuples(
            st.integers(0, 50), st.sampled_from([SMALL, MAIN]), st.integers(0, MOST_CHANCES)
        ),
        max_size=12,
    )
)
def test_s3fifo_comes_to_everybody_in_the_end_and_to_nobody_twice(
    drawn: list[tuple[int, int, int]],
) -> None:
    files = [File(str(number), *each) for number, each in enumerate(drawn)]
    gone = list(s3fifo_victims(InMemory(files), 100))
    assert sorted(file.name for file in gone) == sorted(file.name for file in files)


def test_hits_are_counted_to_three() -> None:
    standing = Standing()
    for _ in range(5):
        standing = standing.hit()
    assert standing.chances == MOST_CHANCES == 3
