"""Patterns of keys, as shells have them: ``*`` and ``?`` stop at a slash, ``**`` does not, ``[a-z]`` and ``[!a-z]``."""

import re
from collections.abc import Callable


def matcher(pattern: str) -> Callable[[str], bool]:
    r"""Return what tells whether a whole key matches *pattern*.

    ``**/`` also stands for nothing, so that ``**/a`` takes ``a``. A bracket that is never closed, or holds nothing,
    stands for itself; a backslash takes the character after it as it is.
    """
    return re.compile(_regex(pattern), re.DOTALL).fullmatch  # type: ignore[return-value]


def literal_start(pattern: str) -> str:
    """Return what every key that matches begins with."""
    return re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]


def _regex(pattern: str) -> str:
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        part, at = _next(pattern, at)
        if not (parts and part == parts[-1] and part in (_ANY, _WITHIN)):
            parts.append(
                part
            )  # of two stars in a row the second says nothing, and would cost much
    return "".join(parts)


_ANY = ".*"
_WITHIN = "[^/]*"


def _next(pattern: str, at: int) -> tuple[str, int]:
    """Return the expression for what begins at *at*, and where it ends."""
    character = pattern[at]
    if pattern.startswith("**", at):
        stars = len(pattern) - len(pattern[at:].lstrip("*")) - at
        begins = at == 0 or pattern[at - 1] == "/"
        if begins and pattern.startswith("/", at + stars):
            return "(?:.*/)?", at + stars + 1
        return _ANY, at + stars
    if character == "*":
        return _WITHIN, at + 1
    if character == "?":
        return "[^/]", at + 1
    if character == "[":
        return _bracket(pattern, at)
    if character == "\\" and at + 1 < len(pattern):
        return re.escape(pattern[at + 1]), at + 2
    return re.escape(character), at + 1


def _bracket(pattern: str, at: int) -> tuple[str, int]:
    first = at + 1
    is_negated = pattern[first : first + 1] in ("!", "^")
    first += is_negated
    end = pattern.find("]", first + 1)
    if end < 0:
        return re.escape("["), at + 1
    members: list[str] = []
    inner, position = pattern[first:end], 0
    while position < len(inner):
        low, high = inner[position], inner[position + 2 : position + 3]
        if inner[position + 1 : position + 2] == "-" and high:
            if low <= high:  # a range that is none holds nothing
                members.append(f"{re.escape(low)}-{re.escape(high)}")
            position += 3
        else:
            members.append(re.escape(low))
            position += 1
    if not members:
        return "[^/]" if is_negated else r"(?!)", end + 1
    held = "".join(members)
    return (f"[^/{held}]" if is_negated else f"(?!/)[{held}]"), end + 1
