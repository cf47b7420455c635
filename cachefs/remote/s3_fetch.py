"""The answer to a ranged GET, held against what was asked for, and its bytes handed on."""

import hashlib

from botocore.response import StreamingBody

from cachefs.core.errors import Fault, Unsupported
from cachefs.core.extents import Extent
from cachefs.remote.s3_client import Answer
from cachefs.remote.s3_errors import SDK_ERRORS, status_of, translate
from cachefs.remote.store import Sink

_CHUNK = 2**18
"""Small enough to stay in the processor's cache between the socket and the file."""


def size_of_whole(answer: Answer, extent: Extent) -> int:
    """Return the size of the object that the answer is a part of. Raise unless it is the part asked for."""
    length = int(answer.get("ContentLength", -1))
    if status_of(answer) != 206:
        if extent.start == 0 and length == extent.length:
            return length
        if length < 0:
            raise Fault("the store's answer has neither a range nor a length")
        raise Unsupported("the store sends whole objects where a range was asked for")
    said = str(answer.get("ContentRange", ""))
    span, _, total = said.removeprefix("bytes ").partition("/")
    if span != f"{extent.start}-{extent.stop - 1}" or not total.isdigit():
        raise Fault(
            f"the store sent the range {said!r} in place of {extent.start}-{extent.stop - 1}"
        )
    if length not in (-1, extent.length):
        raise Fault(f"the store announced {length} bytes in place of {extent.length}")
    return int(total)


def is_encrypted(answer: Answer) -> bool:
    """Whether the store encrypted the object, so that its ETag may be no MD5."""
    return "ServerSideEncryption" in answer or "SSECustomerAlgorithm" in answer


def pour(body: StreamingBody, length: int, into: Sink, *, check: bool) -> str | None:
    """Write exactly *length* bytes into *into*; return their MD5, if it is to be checked."""
    digest = hashlib.md5(usedforsecurity=False) if check else None
    left = length
    while left:
        chunk = _read(body, min(left, _CHUNK))
        if not chunk:
            raise Fault(f"the store sent {length - left} bytes in place of {length}")
        if digest is not None:
            digest.update(chunk)
        into.write(memoryview(chunk))
        left -= len(chunk)
    if _read(body, 1):
        raise Fault(f"the store sent more than the {length} bytes asked for")
    return None if digest is None else digest.hexdigest()


def _read(body: StreamingBody, size: int) -> bytes:
    try:
        chunk: bytes = body.read(size)
    except SDK_ERRORS as error:
        raise translate(error, "get_object") from error
    return chunk
