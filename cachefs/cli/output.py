"""How results and complaints are written: results to stdout, everything else to stderr."""

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence

_MOST_NAMES = 3
_WIDEST = 60
_STATES = {
    "open": "being written",
    "queued": "queued",
    "uploading": "uploading",
    "parked": "given up",
}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def complain(line: str) -> None:
    """Write *line* to standard error, as one line and without what would move the cursor, after the command's name.

    A mount may outlive the terminal that it was started from: then there is nobody to complain to.
    """
    flat = printable(f"cachefs: {' '.join(line.split())}")
    with contextlib.suppress(OSError):
        print(flat, file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Write a result."""
    print(printable(line), flush=True)


def say_json(document: object, *, stream: bool = False) -> None:
    """Write *document* as JSON: on one line if it is one of a stream."""
    print(json.dumps(document, indent=None if stream else 2, sort_keys=False), flush=True)


def printable(text: str) -> str:
    """Return *text* with what would not print, or would move the cursor, escaped; bytes that are no UTF-8 as ``\\xff``."""
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def on_one_line(path: str) -> str:
    """Return *path* with its newlines escaped."""
    return path.replace("\n", "\\n")


def human_size(size: int) -> str:
    """Return *size* in the largest unit that leaves at least 1."""
    value = float(size)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{size} B"


def counted(number: int, noun: str) -> str:
    """Return ``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def named(files: Sequence[Mapping[str, object]]) -> str:
    """Return the first of *files* that wait for upload, each with the reason, and how many more there are."""
    names = [
        f"{file.get('path')} ({file.get('error') or _STATES.get(str(file.get('state')))})"
        for file in files[:_MOST_NAMES]
    ]
    more = f" and {len(files) - _MOST_NAMES} more" if len(files) > _MOST_NAMES else ""
    return printable(", ".join(names)) + more


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return *rows* as lines with their columns aligned, but for cells that are too long for that."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        return []
    widths = [
        min(_WIDEST, max(len(row[at]) for row in cells if at < len(row)))
        for at in range(max(map(len, cells)))
    ]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in cells
    ]
