"""Sorting on the disk."""

from hypothesis import given
from hypothesis import strategies as st

from cachefs.local.sorting import Sorted


@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=2))))
def test_rows_come_in_the_order_of_their_keys_the_last_of_each(
    rows: list[tuple[bytes, bytes]],
) -> None:
    with Sorted() as table:
        half = len(rows) // 2
        table.add_all(rows[:half])
        table.add_all(iter(rows[half:]))

        assert len(table) == len(dict(rows))
        assert list(table) == [value for _, value in sorted(dict(rows).items())]


def test_more_rows_than_are_read_at_a_time_come_all() -> None:
    with Sorted() as table:
        table.add_all((b"%05d" % number, b"%d" % number) for number in range(3000, 0, -1))
        assert list(table) == [b"%d" % number for number in range(1, 3001)]
