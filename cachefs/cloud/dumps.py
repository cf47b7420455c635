"""Dumps: what a cloud manager tells another of its files, as JSON."""

import json
import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from cachefs.core.errors import UsageError
from cachefs.local.catalogue import Copy, Known

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = "0.2"
_LARGEST_SIZE: Final = 2**53


def payload(known: Known, copies: Iterable[Copy]) -> dict[str, object]:
    """Return what a dump tells of a file."""
    moment = datetime.fromtimestamp(known.added_ns // 10**9, UTC)
    return {
        "version": _VERSION,
        "filename": known.name,
        "filesize": known.size,
        "filehash": known.hash,
        "datetime": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "uploads": [
            {"remote": copy.remote, "key": copy.key, "etag": copy.etag}
            for copy in copies
            if copy.state == "stored"
        ],
    }


def loaded(data: str, dump_id: str) -> list[tuple[Known, list[Copy]]]:
    """Return the files that a dump tells of, with their copies. Raise ``UsageError`` if it is none."""
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list):
        raise UsageError("what is to be loaded is no dump")
    return [_file(row, dump_id) for row in rows]


def _file(row: object, dump_id: str) -> tuple[Known, list[Copy]]:
    match row:
        case {
            "version": str(version),
            "filename": str(name),
            "filesize": int(size),
            "filehash": str(digest),
            "datetime": str(moment),
            "uploads": list(uploads),
        } if version == _VERSION and _HASH.fullmatch(digest) and 0 <= size < _LARGEST_SIZE:
            try:
                added_ns = int(datetime.fromisoformat(moment).timestamp()) * 10**9
            except (ValueError, OverflowError, OSError):
                raise UsageError(f"the dump has no moment for {digest}") from None
            return Known(digest, name, size, added_ns, dump_id), [
                _link(digest, each) for each in uploads
            ]
    raise UsageError(f"what is to be loaded has a row that is none of version {_VERSION}")


def _link(digest: str, upload: object) -> Copy:
    match upload:
        case {"remote": str(remote), "key": str(key), "etag": str() | None as etag}:
            return Copy(digest, remote, key, etag, "said", time.time_ns())
    raise UsageError(f"the dump has a link for {digest} that is none")
