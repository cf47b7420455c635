"""Verdicts: freshness, when to evict, the next try, and what a crash left behind."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.intent import State
from cachefs.core.policy import (
    HIGH_WATER,
    LOW_WATER,
    SECOND_NS,
    Remains,
    Remedy,
    is_due,
    is_fresh,
    next_try_ns,
    remedy,
)

moments = st.integers(0, 2**62)


# ---- freshness ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now_ns", "fresh"),
    [(99, False), (100, True), (109, True), (110, False), (0, False), (10**18, False)],
)
def test_what_was_seen_is_fresh_for_its_time_and_no_longer(now_ns: int, fresh: bool) -> None:
    assert is_fresh(100, 10, now_ns) is fresh


@given(moments, st.integers(0, 2**40), moments)
def test_a_clock_that_went_backwards_makes_nothing_fresh(
    checked_ns: int, ttl_ns: int, back_ns: int
) -> None:
    assert not is_fresh(checked_ns, ttl_ns, checked_ns - 1 - back_ns)


@given(moments, moments)
def test_without_a_time_to_live_nothing_is_fresh(checked_ns: int, now_ns: int) -> None:
    assert not is_fresh(checked_ns, 0, now_ns)


# ---- eviction ------------------------------------------------------------------------------


def test_eviction_ends_below_where_it_begins() -> None:
    assert 0 < LOW_WATER < HIGH_WATER < 1


# ---- the next try ---------------------------------------------------------------------------


@given(st.integers(0, 10**6), moments, st.floats(0, 1, exclude_max=True))
def test_the_next_try_is_within_half_a_second_and_a_minute(
    tries: int, now_ns: int, jitter: float
) -> None:
    wait_ns = next_try_ns(tries, now_ns, jitter) - now_ns
    assert SECOND_NS // 2 <= wait_ns <= 60 * SECOND_NS


@pytest.mark.parametrize(
    ("tries", "least_s", "most_s"), [(0, 0.5, 1), (1, 1, 2), (2, 2, 4), (5, 16, 32), (6, 30, 60)]
)
def test_the_wait_doubles_and_is_spread_over_its_second_half(
    tries: int, least_s: float, most_s: float
) -> None:
    assert next_try_ns(tries, 7, 0.0) == 7 + int(least_s * SECOND_NS)
    assert next_try_ns(tries, 7, 0.999999) == pytest.approx(7 + most_s * SECOND_NS, rel=1e-5)


@pytest.mark.parametrize(
    ("due_s", "due"), [(0, True), (1000, True), (1001, False), (1600, False), (1601, True)]
)
def test_what_was_put_off_comes_due_even_if_the_clock_goes_back(due_s: int, due: bool) -> None:
    assert is_due(due_s * SECOND_NS, 1000 * SECOND_NS, 600 * SECOND_NS) is due


@given(st.integers(0, 100), moments, st.floats(0, 1, exclude_max=True))
def test_no_wait_is_so_long_that_it_is_taken_for_a_clock_gone_back(
    tries: int, now_ns: int, jitter: float
) -> None:
    assert not is_due(next_try_ns(tries, now_ns, jitter), now_ns, 60 * SECOND_NS)


# ---- what a crash left ----------------------------------------------------------------------

BOOT, OTHER = "this boot", "an earlier boot"


def expected(remains: Remains) -> Remedy:
    """The verdict, told once more and from the other end: from what must never happen."""
    promised = remains.state is not None
    if not remains.is_named:  # nothing is owed, but what was given up on is still the operator's
        return Remedy.KEEP if remains.state is State.PARKED else Remedy.DISCARD
    if promised and not remains.has_file:
        return Remedy.PARK_LOST
    if remains.state is State.OPEN:
        return Remedy.SET_ASIDE
    if promised:
        return Remedy.PARK_UNSYNCED if remains.boot == OTHER else Remedy.QUEUE
    if not remains.has_file or not remains.is_whole:
        return Remedy.DROP
    return Remedy.KEEP


ALL_REMAINS = [
    Remains(has_file, is_named, state, boot, is_whole)
    for has_file, is_named, state, boot, is_whole in itertools.product(
        (True, False), (True, False), (None, *State), (None, BOOT, OTHER), (True, False)
    )
]


def test_every_entry_a_crash_can_leave_has_its_remedy() -> None:
    for remains in ALL_REMAINS:
        found = remedy(remains, boot=BOOT)
        assert found is expected(remains), remains


def test_promised_bytes_are_never_dropped_nor_taken_for_clean() -> None:
    for remains in ALL_REMAINS:
        found = remedy(remains, boot=BOOT)
        if remains.state is not None and remains.is_named:
            assert found not in {Remedy.DROP, Remedy.DISCARD, Remedy.KEEP}, remains


def test_bytes_that_lived_in_the_page_cache_of_a_lost_boot_are_never_uploaded() -> None:
    for remains in ALL_REMAINS:
        if remains.boot == OTHER:
            found = remedy(remains, boot=BOOT)
            assert found is not Remedy.QUEUE, remains


@pytest.mark.parametrize("boot", [None, BOOT, OTHER])
def test_clean_bytes_outlive_a_loss_of_power(boot: str | None) -> None:
    # Each piece is held against its sum before it is served.
    assert remedy(Remains(True, True, None, boot, True), boot=BOOT) is Remedy.KEEP
