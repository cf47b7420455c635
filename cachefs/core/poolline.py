"""The lines of the pool's protocol: one JSON array of strings each, of which the first is the command."""

import json
from dataclasses import dataclass
from typing import Final

from cachefs.core.errors import CachefsError

LONGEST_LINE: Final = 2**20
_COUNTS: Final = {
    "GLOB": (2, 2, "expects 2 arguments for GLOB"),
    "PULL": (2, None, "Expected at least 2 arguments for PULL"),
    "PUSH": (3, 3, "Expected 3 arguments for PUSH"),
    "REFRESH": (1, 1, "Expected 1 argument for REFRESH"),
    "SET": (2, 2, "Expected 2 arguments for SET"),
    "STATUS": (0, 0, "Expected 0 arguments for STATUS"),
    "STAT": (2, 2, "Expected 2 arguments for STAT"),
    "EVICT": (2, 2, "Expected 2 arguments for EVICT"),
    "PIN": (2, 2, "Expected 2 arguments for PIN"),
    "UNPIN": (2, 2, "Expected 2 arguments for UNPIN"),
    "LEASE": (3, 3, "Expected 3 arguments for LEASE"),
    "AUTH": (1, 1, "Expected 1 argument for AUTH"),
    "KEEPALIVE": (0, 0, "Expected 0 arguments for KEEPALIVE"),
}


class BadRequest(CachefsError):
    """What came is no request; the text is what its sender is told."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    command: str
    """In capitals."""
    arguments: tuple[str, ...]


def parsed(line: bytes) -> Request:
    """Return the request in *line*. Raise ``BadRequest``."""
    try:
        words = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequest("Invalid JSON in request") from None
    if not isinstance(words, list) or not words or not all(map(_is_word, words)):
        raise BadRequest("Invalid JSON in request")
    spelled, *rest = map(str, words)
    command = spelled.upper()
    if command not in _COUNTS:
        raise BadRequest(f"Bad command: {_shown(spelled)}")
    least, most, complaint = _COUNTS[command]
    if len(rest) < least or (most is not None and len(rest) > most):
        raise BadRequest(complaint)
    return Request(command, tuple(rest))


def _is_word(value: object) -> bool:
    """Whether *value* can be a word; of numbers that are to be set, some clients send the number itself."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 10**18
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _shown(word: str) -> str:
    """Return *word* so that it is one line, and not a long one."""
    return ascii(word)[1:-1][:200]
