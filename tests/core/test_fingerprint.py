"""What tells the content of an object without its bytes."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.fingerprint import (
    Crc32,
    PartMd5s,
    cut,
    is_md5,
    part_sizes,
    parts_in,
    stored_md5,
)
from cachefs.core.types import ETag

MIB = 2**20
_HELLO = hashlib.md5(b"hello").hexdigest()


@pytest.mark.parametrize(
    ("meta", "md5"),
    [
        ({"md5chksum": base64.b64encode(bytes.fromhex(_HELLO)).decode()}, _HELLO),
        ({"md5chksum": _HELLO.upper()}, _HELLO),
        ({"s3cmd-attrs": f"atime:1/ctime:2/md5:{_HELLO}/mode:33188"}, _HELLO),
        ({"s3cmd-attrs": f"md5:{_HELLO}"}, _HELLO),
        ({"s3cmd-attrs": f"xmd5:{_HELLO}"}, None),
        ({"md5chksum": "not base64!"}, None),
        ({"md5chksum": base64.b64encode(b"short").decode()}, None),
        ({}, None),
    ],
)
def test_the_md5_that_other_tools_keep_in_metadata_is_found(
    meta: dict[str, str], md5: str | None
) -> None:
    assert stored_md5(meta) == md5


def test_an_etag_of_parts_tells_how_many() -> None:
    assert parts_in(ETag(f"{_HELLO}-17")) == 17
    assert parts_in(ETag(_HELLO)) is None
    assert parts_in(ETag(f"{_HELLO}-0")) is None
    assert is_md5(_HELLO)
    assert not is_md5(f"{_HELLO}-17")


def test_the_etag_of_parts_is_the_one_that_s3_makes() -> None:
    data = b"\0" * 5 * MIB + b"\1" * MIB
    parts = PartMd5s([5 * MIB, MIB])

    parts.update(memoryview(data))

    digests = [hashlib.md5(data[: 5 * MIB]).digest(), hashlib.md5(data[5 * MIB :]).digest()]
    assert parts.s3 == f"{hashlib.md5(b''.join(digests)).hexdigest()}-2"
    joined = "".join(digest.hex() for digest in digests)
    assert parts.swift == hashlib.md5(joined.encode()).hexdigest()


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 40), st.data())
def test_parts_do_not_depend_on_how_the_bytes_come(
    sizes: list[int], step: int, data: st.DataObject
) -> None:
    content = data.draw(st.binary(min_size=sum(sizes), max_size=sum(sizes)))
    parts = PartMd5s(sizes)

    for start in range(0, len(content), step):
        parts.update(memoryview(content)[start : start + step])

    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    assert parts.md5s == tuple(
        hashlib.md5(content[start : start + size]).hexdigest()
        for start, size in zip(starts, sizes, strict=True)
    )
    with pytest.raises(ValueError, match="more bytes"):
        parts.update(memoryview(b"x"))


@given(st.integers(1, 2**42), st.integers(1, 10_000))
def test_part_sizes_cut_a_file_into_exactly_so_many_parts(size: int, parts: int) -> None:
    for one in part_sizes(size, parts, likely=(8 * MIB,)):
        pieces = cut(size, one) if one > size // 100_000 else None
        assert pieces is None or (len(pieces), sum(pieces)) == (parts, size)


@pytest.mark.parametrize("usual", [5, 8, 10, 15, 16, 64])
def test_the_sizes_that_tools_use_are_tried(usual: int) -> None:
    size = 3 * usual * MIB - 7
    assert usual * MIB in part_sizes(size, 3)


def test_a_crc_is_written_as_s3_has_it() -> None:
    crc = Crc32()
    crc.update(memoryview(b"hello"))
    assert crc.hexdigest() == "3610a686"
