"""Content types by file name, as s3fs and web servers guess them."""

import mimetypes
from typing import Final

BYTES: Final = "application/octet-stream"
_GENERIC: Final = (BYTES, "binary/octet-stream")
_COMPRESSED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/x-brotli",
}


def guessed(component: str) -> str:
    """Return the type that the extension of *component* stands for; that of plain bytes if for none."""
    _, dot, extension = component.rpartition(".")
    if not dot:
        return BYTES
    # No more than the extension: guess_type() takes what it gets for a URL.
    kind, encoding = mimetypes.guess_type(f"x.{extension}")
    if encoding is not None:
        return _COMPRESSED.get(encoding, BYTES)
    return kind or BYTES


def retyped(content_type: str | None, old: str, new: str) -> str | None:
    """Return the type of an object whose component *old* becomes *new*; None: it keeps what it has.

    A type that somebody chose is kept, one that was only guessed from the old name is guessed again.
    """
    again = guessed(new)
    if content_type is None or content_type == again:
        return None
    return again if content_type in (*_GENERIC, guessed(old)) and again != BYTES else None
