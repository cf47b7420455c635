"""Two listings side by side, and walks of directories in the order of keys."""

import os
import tracemalloc
from collections.abc import Iterator
from itertools import count, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.types import ETag, Key, Kind, Listing, ObjectInfo
from cachefs.ops.merge import (
    OutOfOrder,
    byte_order,
    files,
    in_order,
    merged,
    objects,
)
from cachefs.ops.tree import Found, Tree
from cachefs.remote.file import FileStore
from cachefs.remote.memory import MemoryStore
from tests.contract.bodies import BytesBody

_keys = st.text(
    st.sampled_from("a/-.0\x7f\u00e4\uffee\U0001f600\udc80\udcff"), min_size=1, max_size=6
)
_sides = st.sets(_keys).map(lambda keys: sorted(keys, key=byte_order))


def _merged(left: list[str], right: list[str]) -> list[tuple[str | None, str | None]]:
    return list(merged(left, right, left_key=str, right_key=str))


def _info(key: str) -> ObjectInfo:
    return ObjectInfo(Key(key), 1, ETag("e"), 0)


@given(_sides, _sides)
def test_each_key_comes_once_with_what_each_side_has(left: list[str], right: list[str]) -> None:
    pairs = _merged(left, right)

    assert [ours for ours, _ in pairs if ours is not None] == left
    assert [theirs for _, theirs in pairs if theirs is not None] == right
    assert {ours for ours, theirs in pairs if ours == theirs} == set(left) & set(right)
    assert len(pairs) == len(set(left) | set(right))


@given(_sides, st.lists(_keys, min_size=2))
def test_a_side_that_is_not_sorted_is_refused(left: list[str], right: list[str]) -> None:
    in_bytes = [byte_order(key) for key in right]
    if all(a < b for a, b in pairwise(in_bytes)):
        right.append(right[0])

    with pytest.raises(OutOfOrder, match="at the store is not sorted"):
        _merged(left, right)
    with pytest.raises(OutOfOrder, match="here is not sorted"):
        _merged(right, left)


def test_memory_does_not_grow_with_the_number_of_keys() -> None:
    def keys(step: int) -> Iterator[str]:
        return (f"{number:012}" for number in count(0, step))

    pairs = merged(keys(2), keys(3), left_key=str, right_key=str)
    next(pairs)
    tracemalloc.start()
    try:
        for _ in islice(pairs, 100_000):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


@given(st.sets(_keys.map(lambda key: key.strip("/")).filter(bool)), st.data())
def test_swifts_markers_come_in_their_place(names: set[str], data: st.DataObject) -> None:
    directories = data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    as_swift_lists = [
        _info(f"{name}/" if name in directories else name)
        for name in sorted(names, key=byte_order)
    ]

    found = [info.key for info in in_order(as_swift_lists)]

    assert found == sorted((info.key for info in as_swift_lists), key=byte_order)


def test_markers_wait_only_for_what_may_sort_before_them() -> None:
    def listed() -> Iterator[ObjectInfo]:
        for number in count():
            yield _info(f"{number:09}/")

    held_back = 0
    read = 0

    def counted() -> Iterator[ObjectInfo]:
        nonlocal read
        for info in listed():
            read += 1
            yield info

    for told in islice(enumerate(in_order(counted()), 1), 10_000):
        held_back = max(held_back, read - told[0])
    assert held_back <= 1


def test_files_are_listed_without_markers_and_objects_with_them() -> None:
    pages = [Listing((_info("a/"), _info("a-b"))), Listing((_info("a/b"),))]

    assert [info.key for info in files(pages)] == ["a-b", "a/b"]
    assert [info.key for info in objects(pages)] == ["a-b", "a/", "a/b"]


_names = st.sampled_from(
    [
        b"a",
        b"a-",
        b"a.b",
        b"a0",
        b"b",
        b"\xc3\xa4",
        b"\x80",
        b"\xff",
        b"\xf0\x9f\x98\x80",
        b"\xef\xbf\xae",
    ]
)


@given(st.sets(st.lists(_names, min_size=1, max_size=3).map(tuple), max_size=12))
def test_a_walk_has_the_order_of_every_stores_listing(
    tmp_path_factory: pytest.TempPathFactory, paths: set[tuple[bytes, ...]]
) -> None:
    root = tmp_path_factory.mktemp("walk")
    memory = MemoryStore(page_size=2)
    for parts in sorted(paths, key=len):
        path = os.path.join(os.fsencode(root), *parts)
        if any(parts[:length] in paths for length in range(1, len(parts))) or os.path.isdir(path):
            continue  # a file stands where the directory should be
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
        memory.put(Key(os.fsdecode(b"/".join(parts))), BytesBody(b"x"), meta={}, if_match=None)

    walked = [
        found.key
        for found in Tree(str(root)).walk()
        if isinstance(found, Found) and found.kind is Kind.FILE
    ]

    assert walked == [info.key for info in files(FileStore(str(root)).list(Key(""), deep=True))]
    assert walked == [info.key for info in files(memory.list(Key(""), deep=True))]
