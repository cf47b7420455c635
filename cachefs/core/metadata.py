"""POSIX attributes as object metadata, in the form that s3fs writes and rclone and geesefs read.

``mode`` is the whole ``st_mode`` in decimal; ``uid`` and ``gid`` are decimal; times are seconds with exactly
nine digits of fraction, for s3fs takes the digits after the dot as a count of nanoseconds. Readers here accept
any number of digits and scale them. A symbolic link has its target as body, as s3fs has it, and under
``--symlink-target``, as geesefs has it. What others write is translated first (``foreign.py``).
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cachefs.core import foreign
from cachefs.core.errors import NoSpace
from cachefs.core.types import Attrs, Kind, ObjectInfo, Token

TOKEN: Final = "cachefs-token"
LINE: Final = "cachefs-line"
"""Where an adapter says which versions an object grew from (``descent.py``). True of one version only."""
TARGET: Final = foreign.TARGET
DIRECTORY_TYPE: Final = "application/x-directory"
HEADER: Final = ":"
"""Begins the names under which adapters put standard headers (``:cache-control``) among an object's metadata."""
META_MAX: Final = 2048
"""Bytes of names and values together that S3 bears, and hence all that we ask of any store."""

_OWN: Final = ("mode", "uid", "gid", "mtime", "atime", "ctime")
_LEAST_USED: Final = (TARGET, "atime", "ctime", "gid", "uid", "mtime", "mode", TOKEN)
"""What is left out, in this order, where what others put on the object leaves no room."""
_OF_WRITE: Final = (TOKEN, "mode", "mtime", "ctime")
"""Tell one version of ours from another."""
_OF_CONTENT: Final = ("md5chksum", "s3cmd-attrs")
"""Keys by which rclone and s3cmd compare the content: untrue of any other."""
_FORMAT: Final = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIR: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
_KIND: Final = {bits: kind for kind, bits in _FORMAT.items() if kind is not Kind.DIR}
_ENCODED: Final = "=?UTF-8?B??="
_BILLION: Final = 10**9
_PROOF_LENGTH: Final = 8
_TOKEN_LENGTH: Final = 32 + 1 + _PROOF_LENGTH


@dataclass(frozen=True, slots=True)
class Posix:
    """What metadata says of an object; None where it says nothing."""

    kind: Kind = Kind.FILE
    """Never ``DIR``: whether an object is a directory is a matter of its key."""
    mode: int | None = None
    """Permission bits."""
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    ctime_ns: int | None = None
    target: bytes | None = None
    """Of a symbolic link; None: it is the object's body."""

    @property
    def is_known(self) -> bool:
        """Whether the metadata says anything at all."""
        return self.kind is not Kind.FILE or not all(
            field is None
            for field in (self.mode, self.uid, self.gid, self.mtime_ns, self.ctime_ns)
        )


def format_time(when_ns: int) -> str:
    """Return ``seconds.nnnnnnnnn``, exactly nine digits."""
    sign = "-" if when_ns < 0 else ""
    seconds, fraction = divmod(abs(when_ns), _BILLION)
    return f"{sign}{seconds}.{fraction:09d}"


def decode(meta: Mapping[str, str], content_type: str | None = None) -> Posix:
    """Return what *meta* says. Values that make no sense count as absent."""
    said = foreign.translated(meta, content_type)
    mode = foreign.parse_mode(said.get("mode"))
    target = said.get(TARGET)
    kind = _KIND.get(stat.S_IFMT(mode or 0), Kind.FILE)
    return Posix(
        kind=Kind.SYMLINK if target is not None else kind,
        mode=None if mode is None else stat.S_IMODE(mode),
        uid=foreign.parse_id(said.get("uid")),
        gid=foreign.parse_id(said.get("gid")),
        mtime_ns=foreign.parse_time(said.get("mtime")),
        atime_ns=foreign.parse_time(said.get("atime")),
        ctime_ns=foreign.parse_time(said.get("ctime")),
        target=unquote_to_bytes(target.encode("utf-8", "surrogateescape")) if target else None,
    )


def encode(attrs: Attrs, token: Token | None, others: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata to store for *attrs*; keys of *others* that are not ours survive.

    *token* is that of the promise which puts new content, ``attrs.size`` bytes; None: the content stays. Where
    room is short, ours give way.
    """
    stale = (*_OWN, TOKEN, LINE, *(_OF_CONTENT if token is not None else ()))
    meta = {key: value for key, value in others.items() if key not in stale}
    meta |= {
        "mode": str(_FORMAT[attrs.kind] | attrs.mode),
        "uid": str(attrs.uid),
        "gid": str(attrs.gid),
        "mtime": format_time(attrs.mtime_ns),
        "atime": format_time(attrs.atime_ns),
        "ctime": format_time(attrs.ctime_ns),
    }
    if token is not None:
        meta[TOKEN] = f"{token}.{'0' * _PROOF_LENGTH}"
    for key in _LEAST_USED:
        if size_of(meta) <= META_MAX:
            break
        meta.pop(key, None)
    if TOKEN in meta:
        meta[TOKEN] = f"{token}.{_proof(attrs.size, meta)}"
    return meta


def pointing_to(target: bytes) -> dict[str, str]:
    """Return the metadata by which a symbolic link is read without its body."""
    return {TARGET: quote_from_bytes(target)}


def size_of(meta: Mapping[str, str]) -> int:
    """Return how many bytes of names and values *meta* takes, as S3 counts them (headers do not count)."""
    return sum(
        _length(key) + _length(value) for key, value in meta.items() if not key.startswith(HEADER)
    )


def _length(text: str) -> int:
    """Return how long a header makes it: what is not ASCII travels in base64 (RFC 2047)."""
    raw = text.encode("utf-8", "surrogateescape")
    return len(raw) if text.isascii() else len(_ENCODED) + 4 * -(-len(raw) // 3)


def require_room(attrs: Attrs, others: Mapping[str, str]) -> None:
    """Raise ``NoSpace`` unless *others* and all of ours fit on one object."""
    full = encode(attrs, None, others)
    if size_of(full) + len(TOKEN) + _TOKEN_LENGTH > META_MAX or any(
        key not in full for key in _OWN
    ):
        raise NoSpace(f"an object has room for {META_MAX} bytes of metadata")


def is_of_write(told: Mapping[str, str] | None, meta: Mapping[str, str]) -> bool:
    """Whether metadata that the store tells is of the very write that sent *meta*.

    A promise that was written again keeps its token: then the times tell the versions apart.
    """
    found = told or {}
    return all(found.get(name) == meta.get(name) for name in _OF_WRITE)


def token_of(info: ObjectInfo) -> Token | None:
    """Return the promise that wrote this version, if it was one of ours.

    Tools that write other bytes carry foreign metadata on, the token with it, and set a size or times of their
    own: then it is no longer true.
    """
    meta = info.meta or {}
    token, _, proof = meta.get(TOKEN, "").partition(".")
    return Token(token) if token and proof == _proof(info.size, meta) else None


def _proof(size: int, meta: Mapping[str, str]) -> str:
    said = [str(size), *(meta.get(key, "") for key in ("mode", "mtime", "ctime"))]
    return sha256(" ".join(said).encode("utf-8", "surrogateescape")).hexdigest()[:_PROOF_LENGTH]
