"""What is sent of a file is what was hashed, or nothing is."""

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefs.core.extents import Extent
from cachefs.ops.steady import Altered, SteadyBody
from cachefs.ops.throttle import Throttle
from cachefs.remote.store import UploadPaused

MIB = 2**20
SIZE = 2 * MIB + 12_345


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def path(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


@pytest.fixture
def body(path: Path) -> Iterator[SteadyBody]:
    descriptor = os.open(path, os.O_RDONLY)
    yield SteadyBody(descriptor, SIZE, throttle=Throttle(None), stop=threading.Event())
    os.close(descriptor)


def test_the_digest_is_the_md5(body: SteadyBody, content: bytes) -> None:
    assert body.digest() == hashlib.md5(content, usedforsecurity=False).hexdigest() == body.md5


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    start=st.integers(0, SIZE),
    length=st.integers(0, SIZE),
    steps=st.lists(st.one_of(st.integers(1, 700_000), st.just(-1)), max_size=12),
    again_from=st.integers(0, SIZE),
)
def test_a_reader_gives_its_extent_however_it_is_read(
    body: SteadyBody, content: bytes, start: int, length: int, steps: list[int], again_from: int
) -> None:
    if body.md5 is None:
        body.digest()
    expected = content[start : min(start + length, SIZE)]
    reader = body.reader(Extent(start, start + len(expected)))

    taken = b"".join(reader.read(step) for step in steps)
    assert expected.startswith(taken)
    assert reader.tell() == len(taken)
    reader.seek(min(again_from, len(expected)))
    assert reader.read() == expected[again_from:]


def test_a_byte_that_changed_after_the_hash_is_never_sent_to_the_end(
    body: SteadyBody, path: Path
) -> None:
    body.digest()
    with path.open("r+b") as file:
        file.seek(MIB + 7)
        file.write(b"\0\0\0\0\0\0\0\0")
    with pytest.raises(Altered):
        body.reader(Extent(0, SIZE)).read()
    with pytest.raises(Altered):
        body.reader(Extent(MIB, 2 * MIB)).read()
    body.reader(Extent(0, MIB)).read()


@pytest.mark.parametrize("size", [SIZE - 1, 0, SIZE + 1, SIZE + MIB])
def test_another_length_is_another_file(body: SteadyBody, path: Path, size: int) -> None:
    os.truncate(path, size)
    with pytest.raises(Altered):
        body.digest()


def test_a_file_that_was_cut_after_the_hash_is_not_sent_short(
    body: SteadyBody, path: Path
) -> None:
    body.digest()
    os.truncate(path, SIZE - 5)
    with pytest.raises(Altered):
        body.reader(Extent(2 * MIB, SIZE)).read()


def test_a_job_that_ends_pauses_the_upload(path: Path) -> None:
    stop = threading.Event()
    with path.open("rb") as file:
        body = SteadyBody(file.fileno(), SIZE, throttle=Throttle(None), stop=stop)
        reader = body.reader(Extent(0, SIZE))
        reader.read(10)
        stop.set()
        with pytest.raises(UploadPaused):
            reader.read(10)


class CountingThrottle(Throttle):
    def __init__(self) -> None:
        super().__init__(None)
        self.taken = 0

    def take(self, size: int) -> None:
        self.taken += size


def test_each_byte_counts_once_towards_the_rate_however_often_it_is_read(path: Path) -> None:
    throttle = CountingThrottle()
    with path.open("rb") as file:
        body = SteadyBody(file.fileno(), SIZE, throttle=throttle, stop=threading.Event())
        body.digest()
        for _ in range(2):
            body.reader(Extent(0, MIB)).read()
            body.reader(Extent(MIB, SIZE)).read()
    assert throttle.taken == SIZE
