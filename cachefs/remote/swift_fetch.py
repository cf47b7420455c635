"""Reading a range of an object: exactly its bytes, or a fault."""

import hashlib
from typing import Any

from cachefs.core.errors import Fault
from cachefs.core.extents import Extent
from cachefs.core.types import Key
from cachefs.remote.store import Sink
from cachefs.remote.swift_errors import transporting

_CHUNK = 2**20


def whole_size(key: Key, response: Any, extent: Extent) -> int:  # noqa: ANN401  # of requests
    """Return how long the object is. Raise ``Fault`` if the answer is not about *extent*, all of it."""
    headers = response.headers
    length, content_range = headers.get("Content-Length"), headers.get("Content-Range")
    if length != str(extent.length):
        raise Fault(f"reading {key!r}: {length} bytes came, and {extent.length} were asked for")
    if response.status_code != 206 or content_range is None:
        if extent.start:
            raise Fault(f"reading {key!r}: the store does not give ranges")
        return extent.length
    span, _, size = content_range.removeprefix("bytes ").partition("/")
    if span != f"{extent.start}-{extent.stop - 1}" or not size.isdecimal():
        raise Fault(f"reading {key!r}: the answer is about {content_range}")
    return int(size)


def pour(response: Any, length: int, into: Sink, what: str, *, check: bool) -> str | None:  # noqa: ANN401
    """Hand the content to *into*; return its MD5 if that is to be checked."""
    digest = hashlib.md5(usedforsecurity=False) if check else None
    buffer = memoryview(bytearray(min(_CHUNK, length)))
    left = length
    while left:
        with transporting(what):
            count = response.raw.readinto(buffer[: min(_CHUNK, left)])
        if not count:
            raise Fault(f"{what}: the content ended {left} bytes early")
        into.write(buffer[:count])
        if digest:
            digest.update(buffer[:count])
        left -= count
    with transporting(what):
        if response.raw.read(1):
            raise Fault(f"{what}: more came than was asked for")
    return digest.hexdigest() if digest else None
