"""Checksums of pieces: what is kept of them is what was summed, whatever order the bytes came in."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.extents import Extent
from cachefs.core.sums import PIECE, PieceSums, Summing

spans = st.tuples(st.integers(0, 400), st.integers(1, 60)).map(lambda t: Extent(t[0], t[0] + t[1]))


@given(st.lists(st.tuples(st.booleans(), spans)))
def test_the_newest_sum_of_each_byte_is_the_one_that_is_known(
    steps: list[tuple[bool, Extent]],
) -> None:
    known, model = PieceSums(), dict[int, tuple[Extent, int]]()
    for number, (is_added, extent) in enumerate(steps):
        touched = {piece for at, (piece, _) in model.items() if extent.start <= at < extent.stop}
        model = {at: value for at, value in model.items() if value[0] not in touched}
        if is_added:
            known.add(extent, number)
            model |= dict.fromkeys(range(*extent), (extent, number))
        else:
            known.forget(extent)
    assert {at: (piece, total) for piece, total in known for at in range(*piece)} == model
    pieces = [piece for piece, _ in known]
    assert pieces == sorted(pieces)
    assert PieceSums.decode(known.encode()) == known


@given(st.lists(spans), spans)
def test_the_pieces_over_an_extent_are_those_that_share_a_byte(
    extents: list[Extent], asked: Extent
) -> None:
    known = PieceSums()
    for number, extent in enumerate(extents):
        known.add(extent, number)
    assert known.over(asked) == [(piece, t) for piece, t in known if piece.overlaps(asked)]


@given(st.integers(0, 3 * PIECE), st.lists(st.integers(0, PIECE + 5), max_size=6))
def test_bytes_are_summed_in_pieces_that_do_not_depend_on_how_they_came(
    start: int, lengths: list[int]
) -> None:
    content = bytes(range(256)) * (sum(lengths) // 256 + 1)
    summing, done, at = Summing(start), list[tuple[Extent, int]](), 0
    for length in lengths:
        done += summing.take(memoryview(content)[at : at + length])
        at += length
    done += summing.rest()
    position = start
    for piece, total in done:
        assert piece.start == position
        assert piece.start // PIECE == (piece.stop - 1) // PIECE
        assert total == zlib.crc32(content[piece.start - start : piece.stop - start])
        position = piece.stop
    assert position == start + sum(lengths)


def test_what_is_no_table_of_sums_is_refused() -> None:
    with pytest.raises(ValueError, match="not a table"):
        PieceSums.decode(b"123")
