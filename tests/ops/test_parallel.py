"""The same done to many things at a time."""

import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from cachefs.ops.parallel import in_parallel


def test_each_thing_is_done_once() -> None:
    assert sorted(in_parallel(lambda n: n * 2, range(1000), threads=4)) == list(range(0, 2000, 2))


def test_no_more_is_read_ahead_than_twice_the_threads() -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    results = in_parallel(lambda n: n, endless(), threads=3)
    list(islice(results, 10))
    assert read <= 10 + 6
    results.close()


def test_several_are_done_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=30)
    assert len(list(in_parallel(lambda _: together.wait(), range(4), threads=4))) == 4


def test_what_one_raises_ends_all_and_the_others_are_told_to_stop() -> None:
    stopped = threading.Event()

    def do(number: int) -> None:
        if number == 0:
            raise ValueError("the first")
        assert stopped.wait(30)

    with pytest.raises(ValueError, match="the first"):
        list(in_parallel(do, range(3), threads=3, stop=stopped.set))


def test_leaving_early_tells_those_under_way_to_stop() -> None:
    stopped = threading.Event()

    def do(number: int) -> int:
        if number:
            assert stopped.wait(30)
        return number

    results = in_parallel(do, range(8), threads=2, stop=stopped.set)
    assert next(results) == 0
    results.close()
    assert stopped.is_set()
