"""Which versions an object grew from: what tells two writers apart where the store itself cannot hold them apart.

An adapter that can only look (HEAD) before it writes puts a *line* among the object's metadata: an id of the new
version, then those of the versions before it as the writer saw them, the newest first. Who finds another version
than the one he stored sees from its line whether its writer knew his.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Final

from cachefs.core import metadata
from cachefs.core.types import ObjectInfo

LINE: Final = metadata.LINE
NOTHING: Final = "0"
"""Stands where there was no object before."""

Line = tuple[str, ...]
"""Ids of versions, the newest first."""

_KEPT: Final = 6
"""So many writes of others may come between two looks."""
ID_BYTES: Final = 5
"""Of a fresh id. Its line is compared with those of a few others, and of the same key."""
_ID: Final = re.compile(r"[0-9a-f]{10}|0")


def line_of(info: ObjectInfo) -> Line:
    """Return the line of a version as a HEAD shows it. One that says nothing of itself has an id alone."""
    return info.line or (_digest(f"{info.etag} {info.mtime_ns}")[: 2 * ID_BYTES],)


def read(info: ObjectInfo) -> ObjectInfo:
    """Return *info* with the line that its metadata tells where it belongs, and no longer among the metadata.

    Tools that write other bytes carry metadata on that they do not know: then it is no longer true, and dropped.
    """
    meta = info.meta
    if meta is None or LINE not in meta:
        return info
    text, _, proof = meta[LINE].partition("~")
    line = tuple(text.split("."))
    is_true = all(map(_ID.fullmatch, line)) and proof == _proof(text, info.size, meta)
    return replace(info, meta=without(meta), line=line if is_true else ())


def grown(meta: Mapping[str, str], size: int, before: Line, own: str) -> dict[str, str]:
    """Return *meta* with the line of a new version of *size* bytes, which replaces one that has the line *before*.

    *own*: a fresh id, so many random bytes (``ID_BYTES``) in hexadecimal.
    """
    return _with(meta, size, (own, *(before or (NOTHING,)))[:_KEPT])


def kept(meta: Mapping[str, str], info: ObjectInfo) -> dict[str, str]:
    """Return *meta*, the new metadata of the version *info*, with the line that this version has."""
    return _with(meta, info.size, line_of(info))


def was_passed_over(mine: Line, theirs: Line) -> bool:
    """Whether a version with the line *theirs* replaced mine although its writer had not seen mine.

    He had not, if his goes back to what mine grew from, and not to mine.
    """
    return bool(mine) and mine[0] not in theirs and not set(mine[1:]).isdisjoint(theirs)


def of_any_try(meta: Mapping[str, str]) -> dict[str, str]:
    """Return *meta* as it is the same for each try of one write: the line without the id of the version itself."""
    if LINE not in meta:
        return dict(meta)
    text, _, _ = meta[LINE].partition("~")
    return {**meta, LINE: text.partition(".")[2]}


def without(meta: Mapping[str, str] | None) -> dict[str, str]:
    """Return *meta* without the line."""
    return {key: value for key, value in (meta or {}).items() if key != LINE}


def _with(meta: Mapping[str, str], size: int, line: Sequence[str]) -> dict[str, str]:
    plain = without(meta)
    text = ".".join(line)
    found = {**plain, LINE: f"{text}~{_proof(text, size, plain)}"}
    # Where room is short, ours gives way.
    return found if metadata.size_of(found) <= metadata.META_MAX else plain


def _proof(text: str, size: int, meta: Mapping[str, str]) -> str:
    said = [text, str(size), *(meta.get(key, "") for key in ("mode", "mtime", "ctime"))]
    return _digest(" ".join(said))[:8]


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
