"""Where in a directory tree the object of each key lies, so that every key has a place and none leaves the root."""

from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from cachefs.core.errors import BadKey
from cachefs.core.types import Key

HIDDEN = b".cachefs-store"
"""The directory in the root that holds what is ours: never listed, never an object."""
ODD = (HIDDEN, b"odd")
_LONGEST_KEY = 1024
_LONGEST_NAME = 255
_PIECE = 240
_MORE = "+"  # quote() never emits it, so a piece that goes on can never be one that ends


@dataclass(frozen=True, slots=True)
class Spot:
    """One name in one directory below the root."""

    parents: tuple[bytes, ...]
    name: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """The spots where the object of a key may lie, the preferred one first."""

    key: Key
    is_marker: bool
    """The key ends in a slash: the preferred spot is a directory."""
    plain: Spot | None
    """Where ordinary tools look for it. None: the key cannot be a path."""
    odd: Spot
    """Where it lies if it cannot lie there, or if something else does."""


def order(key: str) -> bytes:
    """Return the bytes by which listings are sorted."""
    return key.encode("utf-8", "surrogateescape")


def text(name: bytes) -> str:
    """Return *name* as a part of a key."""
    return name.decode("utf-8", "surrogateescape")


def parts_of(path: str) -> tuple[bytes, ...] | None:
    """Return the components of *path*, or None if no file can have it or it is ours."""
    parts = tuple(order(path).split(b"/"))
    if parts[0] == HIDDEN or any(
        part in (b"", b".", b"..") or b"\0" in part or len(part) > _LONGEST_NAME for part in parts
    ):
        return None
    return parts


def place_of(key: Key) -> Place:
    """Return where *key* lies. Raise ``BadKey`` for one that no object store would bear."""
    try:
        raw = order(key)
    except UnicodeEncodeError:
        raise BadKey(f"the key {key!r} stands for no bytes") from None
    if not raw:
        raise BadKey("an object needs a key")
    if len(raw) > _LONGEST_KEY:
        raise BadKey(f"the key is longer than {_LONGEST_KEY} bytes")
    parts = parts_of(key.removesuffix("/"))
    return Place(
        key=key,
        is_marker=key.endswith("/"),
        plain=Spot(parts[:-1], parts[-1]) if parts else None,
        odd=_odd_spot(raw),
    )


def _odd_spot(raw: bytes) -> Spot:
    quoted = quote(raw, safe="").replace(".", "%2E")
    pieces = [quoted[at : at + _PIECE] for at in range(0, len(quoted), _PIECE)]
    parents = [(piece + _MORE).encode() for piece in pieces[:-1]]
    return Spot((*ODD, *parents), pieces[-1].encode())


def odd_key(pieces: tuple[bytes, ...]) -> Key:
    """Return the key whose odd spot is *pieces* below the odd directory."""
    quoted = b"".join(piece.removesuffix(_MORE.encode()) for piece in pieces)
    return Key(text(unquote_to_bytes(quoted)))
