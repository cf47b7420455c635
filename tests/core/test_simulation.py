"""A cache without bytes does what one with bytes would."""

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.core.eviction import Policy
from cachefs.core.simulation import MOUNT, PLAIN, Rules, SimulatedCache

KIB = 1024
OPENS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 60), st.booleans()), min_size=1, max_size=80
)
POLICIES = pytest.mark.parametrize("policy", Policy)


@settings(max_examples=20)
@POLICIES
@pytest.mark.parametrize("rules", [MOUNT, PLAIN], ids=["mount", "plain"])
@given(opens=OPENS)
def test_the_limit_holds_and_what_was_just_read_is_there(
    policy: Policy, rules: Rules, opens: list[tuple[int, int, bool]]
) -> None:
    limit = 160 * KIB
    cache = SimulatedCache(policy, limit, rules)
    for at, (key, kib, is_write) in enumerate(opens):
        size = kib * KIB
        if is_write:
            cache.write(key, size, time_ns=at)
        else:
            cache.read(key, size, time_ns=at, fetch_s=0.01)
            assert cache.read(key, size, time_ns=at, fetch_s=0.01)
        assert cache.used <= limit


@settings(max_examples=50)
@given(opens=OPENS)
def test_lru_is_the_textbooks(opens: list[tuple[int, int, bool]]) -> None:
    sizes = {key: 1 + kib for key, kib, _ in opens}
    limit, model = 70, OrderedDict[int, int]()
    cache = SimulatedCache(Policy.LRU, limit, PLAIN)
    for at, (key, _, _) in enumerate(opens):
        size = sizes[key]
        expected = key in model
        if expected:
            model.move_to_end(key)
        else:
            while sum(model.values()) + size > limit:
                model.popitem(last=False)
            model[key] = size

        assert cache.read(key, size, time_ns=at, fetch_s=None) == expected


def after(policy: Policy, opens: str, *, fetch_s: dict[str, float] | None = None) -> set[str]:
    """What is in a cache of three files after *opens*; a capital is a file of twice the size."""
    cache = SimulatedCache(policy, 3 * 4096, PLAIN)
    for at, name in enumerate(opens):
        took = 0.01 if fetch_s is None else fetch_s[name]
        cache.read(ord(name), 8192 if name.isupper() else 4096, time_ns=at, fetch_s=took)
    return {chr(key) for key in cache._files}


@pytest.mark.parametrize(
    ("policy", "opens", "left"),
    [
        (Policy.LRU, "abcad", "acd"),
        (Policy.LFU, "aabbcd", "abd"),
        (Policy.SIZE, "aBc", "ac"),
        (Policy.AGE, "abcaaad", "bcd"),
        (Policy.GDSF, "aabbcd", "abd"),
        (Policy.GDSF, "Aab", "ab"),
        (Policy.S3FIFO, "aaabcd", "acd"),
    ],
)
def test_the_policies_choose_as_their_names_say(policy: Policy, opens: str, left: str) -> None:
    assert after(policy, opens) == set(left)


def test_gdsf_keeps_what_takes_long_to_fetch() -> None:
    slow = {"a": 5.0, "b": 0.01, "c": 0.01, "d": 0.01}

    assert "a" in after(Policy.GDSF, "abcdbcdbcd", fetch_s=slow)
    assert "a" not in after(Policy.GDSF, "abcdbcdbcd")


def test_s3fifo_brings_what_comes_back_into_the_main_queue() -> None:
    cache = SimulatedCache(Policy.S3FIFO, 10 * 4096, PLAIN)
    for at, key in enumerate([*range(11), 0]):  # 0 is evicted, and comes back
        cache.read(key, 4096, time_ns=at, fetch_s=None)
    for at, key in enumerate(range(20, 40)):  # read once
        cache.read(key, 4096, time_ns=100 + at, fetch_s=None)

    assert cache.read(0, 4096, time_ns=200, fetch_s=None)


def test_another_version_is_another_file() -> None:
    cache = SimulatedCache(Policy.LRU, 10**6, MOUNT)
    assert not cache.read(1, 100, time_ns=1, fetch_s=None)
    assert not cache.read(1, 200, time_ns=2, fetch_s=None)
    assert cache.read(1, 200, time_ns=3, fetch_s=None)
    assert len(cache) == 1


def test_what_is_larger_than_the_cache_passes_by_or_takes_all_of_it() -> None:
    for rules, is_kept in ((PLAIN, True), (MOUNT, False)):
        cache = SimulatedCache(Policy.LRU, 2**20, rules)
        cache.read(1, 4096, time_ns=1, fetch_s=None)
        assert not cache.read(2, 2**21, time_ns=2, fetch_s=None)
        assert not cache.read(2, 2**21, time_ns=3, fetch_s=None)
        assert cache.read(1, 4096, time_ns=4, fetch_s=None) is is_kept


def test_reads_leave_the_writers_share() -> None:
    cache = SimulatedCache(Policy.LRU, 160 * 4096, MOUNT)
    for key in range(400):
        cache.read(key, 4096, time_ns=key, fetch_s=None)

    assert cache.used == (160 - 160 // 16 - 2) * 4096
