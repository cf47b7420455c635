"""Lists of files that one job writes and another takes: which form one has is seen at its beginning.

=============  =======================================================================================
plain          one path a line
NUL            paths that each end in a NUL byte (``find -print0``): the only plain form that bears every name
JSON lines     one object a line with at least ``path``: what ``cachefs verify --json`` writes
JSON object    ``{path: {"md5": …, "atime": …, "ctime": …, "mtime": …}}``, as fusepy-moodledata has it
=============  =======================================================================================

Paths are relative to the root of what the job is about. Bytes that are no UTF-8 travel in JSON as lone surrogates
(PEP 383), as ``json.dumps`` escapes them.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

from cachefs.core.errors import UsageError

_BLOCK: Final = 1 << 16
_FORMS: Final = "one path a line, paths that end in NUL, JSON lines with a path each, or a JSON object of paths"
_SHOWN: Final = 60
"""Characters of a path that a message shows."""
_LONGEST: Final = 1 << 20
"""Bytes of one entry: what is longer is no list of files."""


@dataclass(frozen=True, slots=True)
class Row:
    """One file that a list names, with what the list says of it. None: it does not say."""

    path: str
    """Relative, without ``.`` and ``..`` in it; bytes that are no UTF-8 as surrogates."""
    md5: str | None = None
    """Of the bytes here, in hexadecimal."""
    size: int | None = None
    mtime: float | None = None
    """Seconds since the epoch."""
    atime: float | None = None
    """Seconds since the epoch."""
    state: str | None = None
    """What ``verify`` found."""


def rows(stream: BinaryIO, *, name: str, null: bool = False) -> Iterator[Row]:
    """Yield the files that *stream* lists, in its order.

    *name* is what messages call it. *null*: paths end in NUL, whatever the beginning looks like.
    Raise ``UsageError``, which names the place, for what is no list of files and for paths that leave the root.
    A list is read as a stream, but for a JSON object, which is read whole.
    """
    head = stream.read(_BLOCK)
    if null or b"\0" in head:
        for number, raw in enumerate(_split(stream, head, b"\0", name), 1):
            yield Row(_relative(_text(raw), f"{name}, entry {number}"))
        return
    if head.lstrip()[:1] != b"{":
        for number, raw in enumerate(_split(stream, head, b"\n", name), 1):
            if line := raw.removesuffix(b"\r"):
                yield Row(_relative(_text(line), f"{name}, line {number}"))
        return
    yield from _json_rows(stream, head, name)


def _json_rows(stream: BinaryIO, head: bytes, name: str) -> Iterator[Row]:
    first, newline, _ = head.partition(b"\n")
    try:
        one = json.loads(first)
    except ValueError:
        one = None  # an object over several lines, or no JSON at all
    if isinstance(one, dict) and isinstance(one.get("path"), str):
        for number, raw in enumerate(_split(stream, head, b"\n", name), 1):
            if raw.strip():
                yield _row_of_line(raw, f"{name}, line {number}")
        return
    try:
        whole = one if one is not None and not newline else json.loads(head + stream.read())
    except ValueError as error:
        raise _no_list(name, f"its JSON is broken: {error}") from None
    for path, said in whole.items():
        where = f"{name}, {path!r}"
        if not isinstance(said, dict):
            raise _no_list(where, "what it says of the path is no object")
        yield _row(_relative(path, where), said, where)


def _row_of_line(raw: bytes, where: str) -> Row:
    try:
        said = json.loads(raw)
    except ValueError as error:
        raise _no_list(where, f"its JSON is broken: {error}") from None
    if not isinstance(said, dict) or not isinstance(said.get("path"), str):
        raise _no_list(where, "it has no path")
    return _row(_relative(said["path"], where), said, where)


def _row(path: str, said: Mapping[str, object], where: str) -> Row:
    md5 = said.get("local_md5", said.get("md5"))
    size, state = said.get("size"), said.get("state")
    if md5 is not None and not isinstance(md5, str):
        raise _no_list(where, "its MD5 is no text")
    return Row(
        path,
        md5=md5 or None,
        size=size if isinstance(size, int) else None,
        mtime=_moment(said.get("mtime"), where),
        atime=_moment(said.get("atime"), where),
        state=state if isinstance(state, str) else None,
    )


def _moment(said: object, where: str) -> float | None:
    if said is None:
        return None
    if isinstance(said, int | float) and not isinstance(said, bool) and abs(said) < 1e12:
        return float(said)
    raise _no_list(where, "its time is no number of seconds")


def _split(stream: BinaryIO, head: bytes, end: bytes, name: str) -> Iterator[bytes]:
    """Yield what stands between the *end*s of *head* and the rest of *stream*."""
    rest = b""
    block = head
    while block:
        *whole, rest = (rest + block).split(end)
        yield from whole
        if len(rest) > _LONGEST:
            raise _no_list(name, "an entry is longer than any path")
        block = stream.read(_BLOCK)
    if rest:
        yield rest


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _relative(path: str, where: str) -> str:
    """Return *path* as the job has it. Raise ``UsageError`` if it leads out of the root."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise _no_list(where, f"{path!a} stands for no bytes, and no file is called so") from None
    clean = path.removeprefix("./")
    if not clean or clean.startswith("/") or "\0" in clean or ".." in clean.split("/"):
        raise UsageError(
            f"{where}: {_shortened(path)} does not lie below the root — paths in a list are relative to it, without '..'"
        )
    return clean


def _shortened(path: str) -> str:
    """Return *path* in quotes, or the beginning of what is too long for a line."""
    return repr(path) if len(path) <= _SHOWN else f"{path[:_SHOWN]!r}…"


def _no_list(where: str, why: str) -> UsageError:
    return UsageError(f"{where} is no list of files: {why} — write {_FORMS}")
