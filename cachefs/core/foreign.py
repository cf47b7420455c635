"""What other tools put on objects, translated to the keys that we write.

=====================  ==============================================================================
s3fs                   the form that we write
geesefs, goofys        the same; ``--symlink-target``, percent-encoded, on an empty object
rclone                 ``mtime``; with ``--metadata`` also ``mode`` in octal, ``uid``, ``gid``, ``atime``
s3sync                 ``permissions``, ``owner``, ``group``
gsutil, gcsfuse        ``goog-reserved-posix-*``, ``goog-reserved-file-*``, ``gcsfuse_*``
cybera (Swift)         ``fs-mode``, ``fs-uid``, ``fs-gid``, ``fs-mtime`` …, ``fs-link-source``
svfs (Swift)           ``mtime``, ``symlink-target`` on an object of type ``application/link``
yas3fs                 ``attr``, JSON of ``st_mode`` …; links of type ``application/x-symlink``
=====================  ==============================================================================
"""

import json
import re
import stat
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Final
from urllib.parse import quote

TARGET: Final = "--symlink-target"
_LATEST_S: Final = 2**33
"""Seconds beyond which a time makes no sense: in nanoseconds it must fit in 64 bits."""
_ISO: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)?")

_SAME_FORM: Final = {
    "mode": ("permissions", "goog-reserved-posix-mode", "fs-mode"),
    "uid": ("owner", "goog-reserved-posix-uid", "fs-uid"),
    "gid": ("group", "goog-reserved-posix-gid", "fs-gid"),
    "mtime": ("goog-reserved-file-mtime", "gcsfuse_mtime", "gcsfuse-mtime", "fs-mtime"),
    "atime": ("goog-reserved-file-atime", "fs-atime"),
    "ctime": ("fs-ctime",),
}
_TARGETS: Final = (
    "gcsfuse_symlink_target",
    "gcsfuse-symlink-target",
    "fs-link-source",
    "symlink-target",
)
"""Keys whose value is the target as it stands; ours is percent-encoded. (radosgw makes ``_`` a ``-``.)"""
_LINK_TYPES: Final = ("application/x-symlink",)
"""Types of objects whose body is a target."""
NAMES: Final = frozenset(
    {TARGET, *_SAME_FORM, *(name for names in _SAME_FORM.values() for name in names), *_TARGETS}
    | {
        "attr",
        "goog-reserved-file-is-symlink",
        "rdev",
        "btime",
        "md5chksum",
        "content-type",
        "tier",
    }
)
"""Every key that is an attribute in some tool's form, so that it is no ``user.*`` attribute of its own."""


def translated(meta: Mapping[str, str], content_type: str | None) -> Mapping[str, str]:
    """Return *meta* with what other tools wrote under our keys, where ours are missing."""
    added = {
        key: meta[name] for key, names in _SAME_FORM.items() for name in names if name in meta
    }
    if added.get("mode", "") == meta.get("goog-reserved-posix-mode"):
        added["mode"] = f"0{added['mode']}"  # octal
    added.update(
        (TARGET, quote(meta[name], errors="surrogateescape")) for name in _TARGETS if name in meta
    )
    if "attr" in meta:
        added |= _yas3fs(meta["attr"])
    kind = (content_type or "").partition(";")[0]
    if kind in _LINK_TYPES or meta.get("goog-reserved-file-is-symlink") == "true":
        added.setdefault("mode", str(stat.S_IFLNK | 0o777))
        added.setdefault(TARGET, "")
    return {**added, **meta} if added else meta


def _yas3fs(text: str) -> dict[str, str]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {
        key: str(said[f"st_{key}"])
        for key in _SAME_FORM
        if isinstance(said.get(f"st_{key}"), int | float)
    }


def parse_id(text: str | None) -> int | None:
    """Return a uid or gid, or None for anything else."""
    value = _integer(text, 10)
    return value if value is not None and value < 2**32 else None


def parse_mode(text: str | None) -> int | None:
    """Return ``st_mode`` from decimal digits, or from octal ones where only that makes sense (rclone, gsutil)."""
    for base in (8, 10) if text and text.startswith("0") else (10, 8):
        mode = _integer(text, base)
        if mode is not None and mode < 2**16 and stat.S_IFMT(mode) in _FORMATS:
            return mode
    return None


_FORMATS: Final = (
    0,
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
)


def _integer(text: str | None, base: int) -> int | None:
    try:
        return int(text, base) if text and text.isascii() and text.isdigit() else None
    except ValueError:
        return None


def parse_time(text: str | None) -> int | None:
    """Return nanoseconds for ``seconds[.fraction]`` or an ISO 8601 moment, or None for anything else."""
    text = (text or "").strip()
    if moment := _ISO.fullmatch(text):
        return _iso_ns(moment)
    try:
        when = Decimal(text) if text else None
    except InvalidOperation:
        return None
    # The exponent first: arithmetic with a huge one fails, and a zero may have any.
    if when is None or not when.is_finite() or when.adjusted() > 20 or abs(when) > _LATEST_S:
        return None
    return int(when.scaleb(9).to_integral_value())


def _iso_ns(moment: re.Match[str]) -> int | None:
    day, time, fraction, zone = moment.groups()
    zone = "+00:00" if zone in (None, "Z", "z") else zone
    try:
        whole = datetime.fromisoformat(f"{day}T{time}{zone}")
    except ValueError:
        return None
    seconds = int(whole.timestamp())
    return (
        seconds * 10**9 + int(Decimal(fraction or 0).scaleb(9))
        if abs(seconds) <= _LATEST_S
        else None
    )
