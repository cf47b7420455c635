"""The nouns that travel between the rooms: all frozen, all without behaviour of their own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

Ino = NewType("Ino", int)
"""An inode number: issued once by the inode table, never reused."""

Fh = NewType("Fh", int)
"""A handle: one open of one file or directory."""

EntryId = NewType("EntryId", int)
"""A cache entry, which is also the name of its file below ``data/``."""

Key = NewType("Key", str)
"""An object's key. Bytes that are not UTF-8 travel as surrogate escapes (PEP 383)."""

Name = NewType("Name", bytes)
"""One component of a path, as the kernel spells it."""

ETag = NewType("ETag", str)
"""A store's name for one version of one object: opaque, without quotes, never empty."""

Token = NewType("Token", str)
"""A random id that a promise carries from its birth to its end, stored as object metadata."""


class Kind(StrEnum):
    """What an inode is."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"


class ConflictPolicy(StrEnum):
    """What becomes of a write whose base is no longer what the store holds."""

    KEEP_BOTH = "keep-both"
    OURS = "ours"
    THEIRS = "theirs"
    FAIL = "fail"


class UploadMode(StrEnum):
    """When a close is answered."""

    CLOSE = "close"
    BACKGROUND = "background"


class FetchMode(StrEnum):
    """How much of an object an open asks for before a program does."""

    AHEAD = "ahead"
    WHOLE = "whole"
    DEMAND = "demand"


class AttributeMode(StrEnum):
    """Where a directory listing takes modes, owners and times from."""

    AUTO = "auto"
    EXACT = "exact"
    LISTING = "listing"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store said of one version of one object."""

    key: Key
    size: int
    etag: ETag
    mtime_ns: int
    """When the store took it in (Last-Modified), nanoseconds since the epoch."""
    content_type: str | None = None
    """None: a listing did not say."""
    meta: Mapping[str, str] | None = None
    """User metadata, names in lower case. None: a listing does not tell (which is not 'none set')."""
    line: tuple[str, ...] = ()
    """Which versions it grew from (:mod:`cachefs.core.descent`), where an adapter had to say so; else empty."""
    md5: str | None = None
    """MD5 of all bytes in hexadecimal, where the store was seen to tell it. Only from an answer that has bytes."""
    is_md5: bool = field(default=False, compare=False)
    """The ETag is the MD5 of all bytes, as far as the store can be believed; False: it is not, or nothing tells."""
    is_doubtful: bool = False
    """It looks empty in a listing, and may be more (Swift's dynamic large objects): only a HEAD tells."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a listing: objects and, when not deep, the prefixes below which more lie."""

    objects: tuple[ObjectInfo, ...] = ()
    prefixes: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class Attrs:
    """What ``stat`` shows of an inode, times in nanoseconds since the epoch."""

    kind: Kind
    size: int
    mode: int
    """Permission bits only; the kind holds the rest."""
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
