"""``cachefs explain``: where a file's bytes are, and why."""

import time
from collections.abc import Mapping
from pathlib import Path

from cachefs.cli.command import Call, Command, add_json
from cachefs.cli.failures import EXIT_DONE
from cachefs.cli.output import counted, human_size, say, say_json, table
from cachefs.cli.parser import Parser
from cachefs.client import ControlClient, ControlError
from cachefs.live import mount_containing

_MOST_RANGES = 5
_TIMEOUT_S = 75.0
"""More than the daemon takes for it."""

Told = Mapping[str, object]


def _configure(parser: Parser) -> None:
    parser.description = (
        "Tells where the bytes of a file in a mount are: in the cache (which of them), waiting for upload, or only at the\n"
        "store; its ETag and MD5, who has it open, whether it is pinned, when the store was last asked about it, and what\n"
        "the store says now. Nothing is fetched, and nothing about the file changes by it."
    )
    parser.add_argument("path", metavar="PATH", help="a file or directory in a mount")
    add_json(parser)


def _run(call: Call) -> int:
    running, relative = mount_containing(call.arguments.path, call.environment)
    with ControlClient(Path(running.socket), timeout_s=_TIMEOUT_S) as client:
        try:
            answer = client.ask("explain", path=relative)
        except ControlError as error:
            line = f"cannot explain {call.arguments.path}: {error}"
            raise ControlError(line, exit_code=error.exit_code) from error
    told: Told = answer if isinstance(answer, dict) else {}
    if call.as_json:
        say_json({"mountpoint": running.mountpoint, **told})
    else:
        say("\n".join([f"{running.mountpoint}/{relative}".rstrip("/"), *describe(told)]))
    return EXIT_DONE


def describe(told: Told) -> list[str]:
    """Return what the daemon told, in lines for a person."""
    rows = [("key", str(told.get("key") or "")), ("kind", str(told.get("kind")))]
    if told.get("kind") == "dir":
        rows += [
            ("asked", _asked(told)),
            ("listed", _ago(told.get("listed_s_ago"), "not yet, or forgotten")),
        ]
    else:
        rows += _of_file(told)
    return [f"  {line}" for line in table(rows)]


def _of_file(told: Told) -> list[tuple[str, str]]:
    rows = [
        ("state", str(told.get("state"))),
        ("size", _size(told.get("size"))),
        ("cached", _cached(told)),
        ("version", _version(told)),
        ("md5", str(told.get("md5") or "not told by the store")),
        ("at the store", _at_store(told)),
        ("asked", _asked(told)),
        (
            "open",
            f"{counted(_number(told, 'handles'), 'handle')}, {_number(told, 'writers')} of them for writing",
        ),
        ("pinned", "yes" if told.get("pinned") else "no"),
    ]
    if told.get("file"):
        rows += [
            ("cache file", f"{told['file']} ({_size(told.get('disk_bytes'))} on the disk)"),
            ("used", _used(told)),
            ("eviction", _eviction(told)),
        ]
    upload = told.get("upload")
    if isinstance(upload, dict):
        rows.append(("upload", _upload(upload)))
    return rows


def _eviction(told: Told) -> str:
    if told.get("pinned"):
        return "never: it is pinned"
    score = told.get("score")
    number = f"{score:.6g}" if isinstance(score, float) else "none"
    queue = "main" if told.get("queue") else "small"
    if told.get("policy") == "s3fifo":
        return f"s3fifo: place {number} in the {queue} queue, {_number(told, 'chances')} chances"
    return f"score {number} by {told.get('policy')}; the lowest goes first"


def _cached(told: Told) -> str:
    cached, size = _number(told, "cached_bytes"), _number(told, "size")
    if not cached:
        return "nothing"
    ranges = told.get("ranges")
    pieces = [f"{start}-{stop - 1}" for start, stop in ranges] if isinstance(ranges, list) else []
    if cached >= size:
        return "all of it"
    shown = ", ".join(pieces[:_MOST_RANGES])
    left = len(pieces) - _MOST_RANGES + _number(told, "more_ranges")
    more = f" and {left} more" if left > 0 else ""
    return f"{human_size(cached)} ({100 * cached // size}%): bytes {shown}{more}"


def _version(told: Told) -> str:
    known, cached = told.get("etag"), told.get("cached_etag")
    if known is None:
        return "never stored"
    if cached is not None and cached != known:
        return f"{known} (the cached bytes are of {cached})"
    return str(known)


def _at_store(told: Told) -> str:
    there = told.get("at_store")
    if not isinstance(there, dict):
        return "unknown"
    if "error" in there:
        return str(there["error"])
    if there.get("etag") == told.get("etag"):
        return "the same version"
    return f"another version: {there.get('etag')}, {_size(there.get('size'))}"


def _asked(told: Told) -> str:
    ago = _ago(told.get("checked_s_ago"), "not since it was forgotten")
    left = told.get("believed_for_s")
    if isinstance(left, int | float) and left > 0:
        return f"{ago}; believed for {left:.0f} s more"
    return f"{ago}; asked again when it is used"


def _ago(seconds: object, never: str) -> str:
    return f"{seconds:.0f} s ago" if isinstance(seconds, int | float) else never


def _used(told: Told) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_number(told, "used_ns") // 10**9))
    fetch_s = told.get("fetch_s")
    fetched = f"; fetching took {fetch_s:.2f} s" if isinstance(fetch_s, float) and fetch_s else ""
    return f"{moment}, {counted(_number(told, 'hits'), 'open')}{fetched}"


def _upload(upload: Told) -> str:
    told = f"{upload.get('state')}, {counted(_number(upload, 'tries'), 'attempt')} so far"
    due_s = upload.get("due_in_s")
    if upload.get("state") == "queued" and isinstance(due_s, int | float):
        told += f", next in {due_s:.0f} s"
    return told + (f": {upload['error']}" if upload.get("error") else "")


def _size(value: object) -> str:
    return f"{human_size(value)} ({value} bytes)" if isinstance(value, int) else "unknown"


def _number(told: Told, name: str) -> int:
    value = told.get(name)
    return int(value) if isinstance(value, int | float) else 0


COMMAND = Command(_configure, _run)
