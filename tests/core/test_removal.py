"""Which files make room, and in which order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.removal import choose_removals, fits

FILES = {"a": 10, "b": 30, "c": 20, "d": 30, "e": 0}


@pytest.mark.parametrize(
    ("needed", "chosen"),
    [
        (-5, []),
        (0, []),
        (1, ["a"]),
        (10, ["a"]),
        (11, ["c"]),
        (30, ["b"]),
        (31, ["b", "d"]),
        (61, ["b", "d", "c"]),
        (90, ["b", "d", "c", "a"]),
        (91, None),
    ],
)
def test_one_that_is_large_enough_goes_first_then_the_smaller_ones_from_the_largest(
    needed: int, chosen: list[str] | None
) -> None:
    assert choose_removals(FILES.items(), needed) == chosen


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 50)), st.integers(0, 300))
def test_no_file_goes_without_need(files: dict[str, int], needed: int) -> None:
    chosen = choose_removals(files.items(), needed)

    if chosen is None:
        assert sum(files.values()) < needed
        return
    freed = sum(files[name] for name in chosen)
    assert len(set(chosen)) == len(chosen)
    assert freed >= needed
    assert all(freed - files[name] < needed for name in chosen[-1:])


@pytest.mark.parametrize(
    ("size", "fit"), [(0, True), (90, True), (91, False), (100, False), (101, False)]
)
def test_a_file_may_take_nine_tenths_of_the_capacity(size: int, fit: bool) -> None:
    assert fits(size, 100) is fit
