"""What tells the content of an object without its bytes: MD5s in ETags, of parts and in metadata; other checksums.

=================  =========================================================================================
S3, one request    the ETag is the MD5 (not with SSE-KMS and SSE-C, and with no other store that says so)
S3, multipart      ``MD5-N``: the MD5 of the N parts' MD5s, joined as bytes
Swift              the ETag is the MD5
Swift, SLO, DLO    the MD5 of the segments' MD5s, joined in hexadecimal; the manifest tells the segments
rclone             metadata ``md5chksum``: the MD5 in base64, of what it sent in parts; so does cachefs
s3cmd              metadata ``s3cmd-attrs``: ``…/md5:HEX/…``
S3's checksums     ``x-amz-checksum-*``, where their type is ``FULL_OBJECT``
=================  =========================================================================================
"""

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from cachefs.core import metadata
from cachefs.core.types import ETag, ObjectInfo

MD5_NAME: Final = "md5chksum"
"""The name in an object's metadata under which rclone and cachefs keep the MD5 of its bytes, in base64."""
_MIB: Final = 2**20
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_PARTED: Final = re.compile(r"[0-9a-f]{32}-([1-9][0-9]{0,4})")
_OF_S3CMD: Final = re.compile(r"(?:^|/)md5:([0-9a-f]{32})(?:/|$)")
_USUAL: Final = tuple(
    size * _MIB
    for size in (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 200, 250, 256, 500, 512, 1000)
) + tuple(size * 1024 * _MIB for size in (1, 2, 4, 5))
"""Part sizes that tools have for a default: goofys, rclone, mc 5 MiB and 16; aws, boto3 8; s3fs 10; s3cmd 15; s5cmd 50."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an object, and what the store says of them."""

    size: int
    md5: str
    """In hexadecimal."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that a store tells of the content of one version. What is empty, it does not tell."""

    info: ObjectInfo
    """With metadata."""
    md5: str | None = None
    """Of all bytes, in hexadecimal, by the store's own word."""
    parts: tuple[Part, ...] = ()
    """All parts, in order."""
    part_size: int | None = None
    """Bytes of the first part, where nothing is told of the others but their number."""
    is_joined: bool = False
    """The ETag, although it looks like an MD5, is that of the MD5s of segments that the store does not tell."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Of all bytes, by algorithm (those of ``CHECKSUMS``), in hexadecimal."""

    @property
    def stored_md5(self) -> str | None:
        """The MD5 that whoever stored it has put into the metadata.

        Tools that write other bytes carry metadata on that they do not know: where we stored a proof, it tells.
        """
        meta = self.info.meta or {}
        if metadata.TOKEN in meta and metadata.token_of(self.info) is None:
            return None
        return stored_md5(meta)


def is_md5(text: str) -> bool:
    """Whether *text* looks like an MD5 in hexadecimal."""
    return _MD5.fullmatch(text) is not None


def parts_in(etag: ETag) -> int | None:
    """Return of how many parts S3 says that it put the object together; None: it does not say so."""
    found = _PARTED.fullmatch(etag)
    return int(found[1]) if found else None


def stored_md5(meta: Mapping[str, str]) -> str | None:
    """Return the MD5, in hexadecimal, that rclone, s3cmd or cachefs has put into metadata."""
    text = meta.get(MD5_NAME, "").strip()
    if is_md5(text.lower()):
        return text.lower()
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) == hashlib.md5(usedforsecurity=False).digest_size:
        return raw.hex()
    found = _OF_S3CMD.search(meta.get("s3cmd-attrs", ""))
    return found[1] if found else None


def with_md5(meta: Mapping[str, str], md5: str) -> dict[str, str]:
    """Return *meta* that tells that the MD5 of the content, in hexadecimal, is *md5*."""
    return {**meta, MD5_NAME: base64.b64encode(bytes.fromhex(md5)).decode("ascii")}


def part_sizes(size: int, parts: int, *, likely: Iterable[int] = ()) -> list[int]:
    """Return the sizes of parts, *likely* ones first, that cut *size* bytes into exactly that many."""
    if parts == 1:
        return [max(size, 1)]
    even = -(-size // parts)
    rounded = -(-even // _MIB) * _MIB  # of tools that make parts as large as they must be
    candidates = dict.fromkeys((*likely, *_USUAL, rounded, even))
    return [one for one in candidates if one > 0 and -(-size // one) == parts]


def cut(size: int, part_size: int) -> list[int]:
    """Return the sizes of the parts of *size* bytes, all but the last of *part_size*."""
    return [min(part_size, size - start) for start in range(0, size, part_size)]


class Digest(Protocol):
    """What is made of bytes that come in order. hashlib's are such."""

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        ...

    def hexdigest(self) -> str:
        """Return it of what came so far."""
        ...


class Crc32:
    """The CRC-32 of bytes, as a digest; S3 writes it in four bytes, the highest first."""

    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        self._sum = zlib.crc32(data, self._sum)

    def hexdigest(self) -> str:
        """Return it of what came so far."""
        return f"{self._sum:08x}"


CHECKSUMS: Final[Mapping[str, Callable[[], Digest]]] = {
    "sha256": hashlib.sha256,
    "sha1": hashlib.sha1,
    "crc32": Crc32,
}
"""Checksums of S3 that this machine makes at the speed of its disk, the surest first."""


class PartMd5s:
    """The MD5s of parts of bytes that come in order, and what S3 and Swift make of them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """*sizes* of the parts, which together are all that will come."""
        self._sizes: Iterator[int] = iter(sizes)
        self._left = 0
        self._current = hashlib.md5(usedforsecurity=False)
        self._digests: list[bytes] = []
        self._begin()

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""
        while data:
            if not self._left:
                raise ValueError("more bytes than the parts have")
            piece, data = data[: self._left], data[self._left :]
            self._current.update(piece)
            self._left -= len(piece)
            if not self._left:
                self._digests.append(self._current.digest())
                self._current = hashlib.md5(usedforsecurity=False)
                self._begin()

    @property
    def md5s(self) -> tuple[str, ...]:
        """Those of the parts that are whole, in hexadecimal."""
        return tuple(digest.hex() for digest in self._digests)

    @property
    def s3(self) -> ETag:
        """The ETag of a multipart upload of these parts."""
        joined = hashlib.md5(b"".join(self._digests), usedforsecurity=False).hexdigest()
        return ETag(f"{joined}-{len(self._digests)}")

    @property
    def swift(self) -> ETag:
        """The ETag of a large object of these segments."""
        text = "".join(self.md5s).encode("ascii")
        return ETag(hashlib.md5(text, usedforsecurity=False).hexdigest())

    def hexdigest(self) -> str:
        """Return :attr:`s3`."""
        return self.s3

    def _begin(self) -> None:
        self._left = next(self._sizes, 0)
