"""POSIX attributes as object metadata, in the form that s3fs writes and rclone and geesefs read.

``mode`` is the whole ``st_mode`` in decimal; ``uid`` and ``gid`` are decimal; times are seconds with exactly
nine digits of fraction, for s3fs takes the digits after the dot as a count of nanoseconds. Readers here accept
any number of digits and scale them.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from cachefs.core.types import Attrs, Kind, ObjectInfo, Token

TOKEN = "cachefs-token"
_OWN = ("mode", "uid", "gid", "mtime", "atime", "ctime")
_FORMAT = {Kind.FILE: stat.S_IFREG, Kind.DIR: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}
_BILLION = 10**9
_LATEST_S = 2**33
"""Seconds beyond which a time makes no sense: in nanoseconds it must fit in 64 bits."""
DIRECTORY_TYPE = "application/x-directory"


@dataclass(frozen=True, slots=True)
class Posix:
    """What metadata says of an object; None where it says nothing."""

    is_symlink: bool = False
    mode: int | None = None
    """Permission bits."""
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    ctime_ns: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether the metadata says anything at all."""
        return not all(
            field is None
            for field in (self.mode, self.uid, self.gid, self.mtime_ns, self.ctime_ns)
        )


def _integer(text: str | None) -> int | None:
    try:
        value = int(text) if text else None
    except ValueError:
        return None
    return value if value is None or 0 <= value < 2**32 else None


def parse_time(text: str | None) -> int | None:
    """Return nanoseconds for ``seconds[.fraction]``, or None for anything else."""
    try:
        when = Decimal(text.strip()) if text else None
    except InvalidOperation:
        return None
    if when is None or not when.is_finite() or abs(when) > _LATEST_S:
        return None
    return int(when.scaleb(9).to_integral_value())


def format_time(when_ns: int) -> str:
    """Return ``seconds.nnnnnnnnn``, exactly nine digits."""
    sign = "-" if when_ns < 0 else ""
    seconds, fraction = divmod(abs(when_ns), _BILLION)
    return f"{sign}{seconds}.{fraction:09d}"


def decode(meta: Mapping[str, str]) -> Posix:
    """Return what *meta* says. Values that make no sense count as absent."""
    mode = _integer(meta.get("mode"))
    return Posix(
        is_symlink=mode is not None and stat.S_ISLNK(mode),
        mode=None if mode is None else stat.S_IMODE(mode),
        uid=_integer(meta.get("uid")),
        gid=_integer(meta.get("gid")),
        mtime_ns=parse_time(meta.get("mtime")),
        atime_ns=parse_time(meta.get("atime")),
        ctime_ns=parse_time(meta.get("ctime")),
    )


def encode(attrs: Attrs, token: Token | None, foreign: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata to store for *attrs*; keys of *foreign* that are not ours survive."""
    meta = {key: value for key, value in foreign.items() if key not in _OWN and key != TOKEN}
    meta |= {
        "mode": str(_FORMAT[attrs.kind] | attrs.mode),
        "uid": str(attrs.uid),
        "gid": str(attrs.gid),
        "mtime": format_time(attrs.mtime_ns),
        "atime": format_time(attrs.atime_ns),
        "ctime": format_time(attrs.ctime_ns),
    }
    if token is not None:
        meta[TOKEN] = token
    return meta


def token_of(info: ObjectInfo) -> Token | None:
    """Return the promise that wrote this version, if it was one of ours."""
    token = (info.meta or {}).get(TOKEN)
    return Token(token) if token else None
