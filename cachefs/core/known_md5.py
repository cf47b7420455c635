"""The MD5 of one version of one object, as it is kept where the store's own word does not tell it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from cachefs.core.fingerprint import is_md5
from cachefs.core.types import ETag

_LARGEST: Final = 2**63


class How(StrEnum):
    """How an MD5 came to be known."""

    UPLOADED = "uploaded"
    """Of bytes that this machine has sent, and that the store has confirmed."""
    READ = "read"
    """Of bytes that a mount has read, all of them."""
    TOLD = "told"
    """The store said so, or the metadata of whoever stored it."""
    MIGRATED = "migrated"
    """``cachefs cache migrate`` has read it."""
    GIVEN = "given"
    """A program has told it."""


@dataclass(frozen=True, slots=True)
class KnownMd5:
    """An MD5, and of what. It tells nothing of any other version of the object."""

    bucket: str
    """Bytes that are no UTF-8, as an object's key may have them too, as surrogate escapes."""
    key: str
    etag: ETag
    size: int
    md5: str
    """In hexadecimal."""
    how: How
    remote: str = ""
    """Which store; empty: that of the cache directory in which it is kept."""
    made_ns: int = 0
    """When it was first known of this version, since the epoch."""
    updated_ns: int = 0
    """When it was last said."""

    def is_of(self, etag: ETag | None, size: int) -> bool:
        """Whether it is the MD5 of that version."""
        return (self.etag, self.size) == (etag, size)

    def to_json(self) -> dict[str, object]:
        """Return it as the control socket has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "KnownMd5":
        """Return what :meth:`to_json` made. Raise ``ValueError``, ``KeyError`` or ``TypeError`` if it did not."""
        texts = {
            name: require_text(told[name]) for name in ("bucket", "key", "etag", "md5", "remote")
        }
        if not is_md5(texts["md5"]):
            raise ValueError("not an MD5 in hexadecimal")
        if not texts["etag"]:
            raise ValueError("an object's version is never empty")
        numbers = {name: told[name] for name in ("size", "made_ns", "updated_ns")}
        if not all(type(each) is int and 0 <= each < _LARGEST for each in numbers.values()):
            raise ValueError("not a size, or a time")
        return cls(
            bucket=texts["bucket"],
            key=texts["key"],
            etag=ETag(texts["etag"]),
            md5=texts["md5"],
            how=How(told["how"]),
            remote=texts["remote"],
            **numbers,
        )


def require_text(value: object) -> str:
    """Return *value*, which can be a bucket or a key. Raise ``TypeError`` or ``ValueError`` for anything else."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode("utf-8", "surrogateescape")  # a UnicodeError is a ValueError
    return value


@dataclass(frozen=True, slots=True)
class BucketStats:
    """What is recorded of the objects of one bucket."""

    remote: str
    bucket: str
    objects: int
    size: int
    """Bytes, in all."""
    with_md5: int
    """Objects whose MD5 is known, for the version that is known."""
    cached: int
    """Objects of which bytes are in the cache."""
    cached_bytes: int
    """What these take of its disk."""
    oldest_ns: int | None
    """When the record that is the oldest was last confirmed; None: there is none."""
    newest_ns: int | None
