"""The answer to a ranged GET, held against what was asked for, and its bytes handed on."""

import hashlib

from botocore.response import StreamingBody

from cachefs.core.errors import Fault, Unsupported
from cachefs.core.extents import Extent
from cachefs.remote.s3_client import Answer, said
from cachefs.remote.s3_errors import SDK_ERRORS, status_of, translate
from cachefs.remote.store import Sink

_CHUNK = 2**18
"""Small enough to stay in the processor's cache between the socket and the file."""


def size_of_whole(answer: Answer, extent: Extent, *, knows_ranges: bool = False) -> int:
    """Return the size of the object that the answer is a part of. Raise unless it is the part asked for.

    *knows_ranges*: the store has sent ranges before, so that an answer without one is no word on what it can.
    """
    length = int(answer.get("ContentLength", -1))
    if status_of(answer) != 206:
        said(
            answer, "ETag"
        )  # what has none is no object, but an error that calls itself a success
        if extent.start == 0 and length == extent.length:
            return length
        if length < 0:
            raise Fault("the store's answer has neither a range nor a length")
        if knows_ranges:
            raise Fault(f"the store sent {length} bytes where a range was asked for")
        raise Unsupported("the store sends whole objects where a range was asked for")
    told = str(answer.get("ContentRange", ""))
    span, _, total = told.removeprefix("bytes ").partition("/")
    if span != f"{extent.start}-{extent.stop - 1}" or not total.isdigit():
        raise Fault(
            f"the store sent the range {told!r} in place of {extent.start}-{extent.stop - 1}"
        )
    if length not in (-1, extent.length):
        raise Fault(f"the store announced {length} bytes in place of {extent.length}")
    return int(total)


class Sums:
    """What is known of a store's ETags: whether they are the MD5 sums that they look like.

    Bytes that agree with theirs prove it. Until some do, bytes that came otherwise twice, and alike, are taken
    for those of a store whose ETags are something else: damage does not repeat itself.
    """

    def __init__(self) -> None:
        self.are_md5 = False
        # The version that came last and did not agree, and the sum that its bytes had.
        self._last: tuple[str, str] | None = None

    def require(self, etag: str, digest: str, *, proven: bool) -> None:
        """Raise ``Fault`` unless bytes of the sum *digest* may be those that *etag* stands for."""
        if digest == etag:
            self.are_md5 = True
            return
        if not proven and not self.are_md5 and self._last == (etag, digest):
            return
        self._last = (etag, digest)
        raise Fault("the content is not what its ETag says: damaged on the way, or at the store")


def is_encrypted(answer: Answer) -> bool:
    """Whether the store encrypted the object, so that its ETag may be no MD5."""
    return "ServerSideEncryption" in answer or "SSECustomerAlgorithm" in answer


def hides_md5(answer: Answer) -> bool:
    """Whether the store encrypted the object in a way in which its ETag is surely no MD5."""
    kind = str(answer.get("ServerSideEncryption", ""))
    return kind.startswith("aws:kms") or "SSECustomerAlgorithm" in answer


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
