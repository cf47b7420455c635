"""The headers that an object is served with, as they travel among its metadata: ``:cache-control``, say.

A web server's headers, a storage class or tags are no user metadata, but whoever rewrites an object that has
them must send them again. In ``ObjectInfo.meta`` they stand beside the user's keys, under the header's name in
lower case and a colon in front, which no key of the user's can have: what was read with an object goes back
with its next version, and nobody in between needs to know.
"""

from collections.abc import Mapping

from cachefs.core.metadata import HEADER


def of_user(meta: Mapping[str, str]) -> dict[str, str]:
    """Return what of *meta* is the user's."""
    return {name: value for name, value in meta.items() if not name.startswith(HEADER)}


def served(meta: Mapping[str, str]) -> dict[str, str]:
    """Return the headers in *meta*, by their names in lower case."""
    return {
        name.removeprefix(HEADER): value for name, value in meta.items() if name.startswith(HEADER)
    }


def marked(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers*, by their names in lower case, as they travel among metadata."""
    return {HEADER + name: value for name, value in headers.items()}


def is_text(text: str) -> bool:
    """Whether *text* stands for bytes: half a surrogate pair, which JSON can spell, does not."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def in_range(when_ns: int) -> int:
    """Return a time that the tables can hold. Raise ValueError for any other."""
    if not -(2**63) <= when_ns < 2**63:
        raise ValueError("a time beyond all times")
    return when_ns


def as_text(value: str) -> str:
    """Return a header's *value*, which http.client took for Latin-1, as the UTF-8 that programs send."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value
