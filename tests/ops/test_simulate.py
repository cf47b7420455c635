"""What policies make of a trace, held against the library that others trust."""

import math
import random
from array import array
from itertools import accumulate

import pytest

from cachefs.core.eviction import Policy
from cachefs.core.simulation import PLAIN, SimulatedCache
from cachefs.ops import libcachesim
from cachefs.ops.events import Progress
from cachefs.ops.simulate import BOUND, FOREIGN, Outcome, is_known, simulate
from cachefs.ops.traces import Trace

MIB = 2**20


def traced(opens: list[tuple[int, int, float, bool]]) -> Trace:
    """Opens of (key, size, seconds, is_write), a second apart."""
    trace = Trace()
    for at, (key, size, seconds, is_write) in enumerate(opens):
        trace.add(at * 10**9, key, size, seconds, is_write=is_write)
    trace.files = max(key for key, *_ in opens) + 1
    return trace


def zipf(opens: int, files: int, exponent: float = 0.9, seed: int = 1) -> Trace:
    chance = random.Random(seed)
    weights = list(accumulate(1 / (rank + 1) ** exponent for rank in range(files)))
    sizes = [chance.randrange(4096, 400_000) for _ in range(files)]
    keys = chance.choices(range(files), cum_weights=weights, k=opens)
    return traced([(key, sizes[key], math.nan, False) for key in keys])


def outcomes(trace: Trace, *policies: str, limits: tuple[int, ...] = (MIB,)) -> list[Outcome]:
    return [each for each in simulate(trace, policies, limits) if not isinstance(each, Progress)]


def test_hits_bytes_and_waiting_are_of_the_opens_that_read() -> None:
    nan = math.nan
    trace = traced(
        [
            (0, 1000, 0.5, False),  # waits half a second
            (1, 3000, 2.0, False),
            (0, 1000, nan, False),  # a hit
            (2, 500, nan, True),  # not counted
            (2, 500, nan, False),  # here because it was written here
            (1, 4000, 3.0, False),  # another version
        ]
    )

    (found,) = outcomes(trace, "lru")

    assert found == Outcome("lru", MIB, 5, 2, 9500, 1500, 5.5)
    assert found.hit_ratio == pytest.approx(0.4)
    assert found.byte_hit_ratio == pytest.approx(1500 / 9500)


def test_a_file_takes_what_it_took_last_and_others_what_their_size_lets_expect() -> None:
    opens = [(key, 10 * MIB, 1.0, False) for key in range(200)]
    trace = traced([*opens, (200, 10 * MIB, math.nan, False), (3, 10 * MIB, math.nan, False)])

    (found,) = outcomes(trace, "lru")

    assert found.waited_s == pytest.approx(202, rel=0.02)


def test_no_policy_beats_a_cache_in_which_everything_fits() -> None:
    trace = zipf(3000, 200)
    everything = trace.footprint() * 2

    *own, bound = outcomes(trace, *Policy, BOUND, limits=(everything,))

    assert bound.hits == 3000 - len(set(trace.keys))
    assert {each.hits for each in own} == {bound.hits}


def test_a_larger_cache_has_more_hits() -> None:
    small, middle, large = outcomes(zipf(4000, 400), "gdsf", limits=(4 * MIB, 8 * MIB, 16 * MIB))

    assert small.hits < middle.hits < large.hits


def test_how_far_it_is_is_told_of_all_runs_together() -> None:
    trace = zipf(100, 10)
    events = list(simulate(trace, ["lru", "lfu"], [MIB, 2 * MIB]))
    progress = [each for each in events if isinstance(each, Progress)]

    assert [each.files for each in progress] == [0, 100, 200, 300]
    assert {each.total_files for each in progress} == {400}


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [
        (Policy.LRU, 0),
        (Policy.SIZE, 0),
        (Policy.AGE, 0),
        (Policy.LFU, 0.002),
        (Policy.GDSF, 0.01),
        (Policy.S3FIFO, 0.01),
    ],
)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_our_policies_agree_with_the_librarys(
    policy: Policy, tolerance: float, share: float
) -> None:
    pytest.importorskip("libcachesim")
    trace = zipf(4000, 800)
    limit = int(trace.footprint() * share)
    name = "fifo" if policy is Policy.AGE else policy.value
    theirs = list(libcachesim.hits(name, limit, trace.keys, trace.sizes, trace.next_uses()))

    # The library's GDSF takes every fetch for equally long.
    cache = SimulatedCache(policy, limit, PLAIN)
    ours = [
        cache.read(key, size, time_ns=at, fetch_s=1.0)
        for at, (key, size) in enumerate(zip(trace.keys, trace.sizes, strict=True))
    ]

    if policy is Policy.S3FIFO and share < 0.1:
        tolerance = (
            0.04  # its small queue holds one or two files: whether one more goes is all there is
        )
    assert abs(sum(ours) - sum(theirs)) <= tolerance * len(trace)
    if not tolerance:
        assert ours == theirs


def test_nobody_who_does_not_know_the_future_beats_who_does() -> None:
    pytest.importorskip("libcachesim")
    chance = random.Random(5)
    keys = [chance.randrange(60) for _ in range(3000)]
    trace = traced([(key, 65536, math.nan, False) for key in keys])  # all equally large

    belady, *others = outcomes(
        trace, "belady", *Policy, f"{FOREIGN}lru", "arc", limits=(20 * 65536,)
    )

    assert all(each.hits < belady.hits for each in others)


@pytest.mark.parametrize("policy", sorted(libcachesim.POLICIES))
def test_each_of_the_librarys_policies_bears_files_larger_than_the_cache(policy: str) -> None:
    pytest.importorskip("libcachesim")
    trace = zipf(2000, 300, seed=2)
    trace.add(10**15, 0, 10**10, math.nan, is_write=False)
    trace.add(10**15, 1, 0, math.nan, is_write=False)

    (found,) = outcomes(trace, f"{FOREIGN}{policy}", limits=(3 * MIB,))

    assert 0 < found.hits < found.opens
    assert is_known(policy)


def test_the_numbers_of_an_empty_simulation_are_zero() -> None:
    trace = Trace(files=1)
    trace.add(0, 0, 10, math.nan, is_write=True)
    (found,) = outcomes(trace, "lru")

    assert (found.hit_ratio, found.byte_hit_ratio) == (0.0, 0.0)
    assert isinstance(trace.keys, array)
