"""An ExtentMap is a set of byte positions: every operation agrees with a plain set."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.extents import Extent, ExtentMap

TOP = 60
extents = st.builds(Extent, st.integers(0, TOP), st.integers(0, TOP))
some = st.lists(extents, max_size=12)


def bytes_of(*parts: Extent) -> set[int]:
    return {byte for part in parts for byte in range(*part)}


def assert_sound(here: ExtentMap) -> None:
    """The invariant of the class: sorted, non-empty, and no two touch."""
    parts = list(here)
    assert all(part.start < part.stop for part in parts)
    assert all(left.stop < right.start for left, right in itertools.pairwise(parts))
    assert len(here) == len(parts)


@given(some)
def test_a_map_holds_exactly_what_was_added(added: list[Extent]) -> None:
    here = ExtentMap(added)
    assert bytes_of(*here) == bytes_of(*added)
    assert here.total == len(bytes_of(*added))
    assert_sound(here)


@given(some, extents)
def test_missing_is_the_set_difference(added: list[Extent], asked: Extent) -> None:
    gaps = ExtentMap(added).missing(asked)
    assert bytes_of(*gaps) == bytes_of(asked) - bytes_of(*added)
    assert_sound(ExtentMap(gaps))
    assert list(ExtentMap(gaps)) == gaps


@given(some, extents)
def test_a_map_covers_an_extent_when_nothing_of_it_is_missing(
    added: list[Extent], asked: Extent
) -> None:
    assert ExtentMap(added).covers(asked) == (bytes_of(asked) <= bytes_of(*added))


@given(some, st.integers(0, TOP))
def test_a_cut_forgets_every_byte_from_the_size_on(added: list[Extent], size: int) -> None:
    here = ExtentMap(added)
    here.cut(size)
    assert bytes_of(*here) == {byte for byte in bytes_of(*added) if byte < size}
    assert_sound(here)


@given(some)
def test_maps_are_equal_when_their_bytes_are(added: list[Extent]) -> None:
    assert ExtentMap(added) == ExtentMap(reversed(added))
    assert ExtentMap(added) != ExtentMap([*added, Extent(TOP + 1, TOP + 2)])


@given(some, extents)
def test_a_copy_has_a_life_of_its_own(added: list[Extent], more: Extent) -> None:
    here = ExtentMap(added)
    twin = here.copy()
    twin.add(more)
    twin.cut(TOP // 2)
    assert bytes_of(*here) == bytes_of(*added)


@given(some)
def test_the_database_gives_back_what_was_put_in(added: list[Extent]) -> None:
    here = ExtentMap(added)
    assert ExtentMap.decode(here.encode()) == here


def test_the_form_in_the_database_is_pinned() -> None:
    # A change here makes every cache unreadable: it needs a new schema version.
    here = ExtentMap([Extent(10, 20), Extent(0, 5), Extent(2**40, 2**40 + 1)])
    assert here.encode() == b"0-5,10-20,1099511627776-1099511627777"
    assert ExtentMap().encode() == b""


@pytest.mark.parametrize("text", [b"x", b"1", b"1-2-3", b"1-x", b"1-2;3-4", b"\xff"])
def test_what_was_not_written_by_encode_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"unpack|invalid literal|ascii"):
        ExtentMap.decode(text)


@given(extents, extents)
def test_extents_overlap_when_they_share_a_byte(left: Extent, right: Extent) -> None:
    if left.length > 0 and right.length > 0:
        assert left.overlaps(right) == bool(bytes_of(left) & bytes_of(right))
        assert left.overlaps(right) == right.overlaps(left)


def test_a_map_shows_its_extents_and_is_equal_to_nothing_else() -> None:
    assert repr(ExtentMap([Extent(0, 5)])) == "ExtentMap([Extent(start=0, stop=5)])"
    assert ExtentMap() != [Extent(0, 5)]
    with pytest.raises(TypeError):
        hash(ExtentMap())
