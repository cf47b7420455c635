"""Extended attributes ``user.*`` as object metadata.

What programs set goes under the key ``xattr`` as s3fs has it: JSON of names and base64 values, percent-encoded
(s3fs parses it by hand: no blanks, no ``\\u`` escapes). Other metadata keys of an object show as ``user.KEY``: so
geesefs stores them, percent-encoded, and rclone, as they are.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes

from cachefs.core import foreign
from cachefs.core.errors import NoAttribute
from cachefs.core.metadata import HEADER, LINE, TOKEN

KEY: Final = "xattr"
PREFIX: Final = b"user."
OWN: Final = b"user.cachefs."
"""Attributes that tell of the cache: never stored, never listed, for ``cp -a`` and ``rsync -X`` would copy them."""

_HIDDEN: Final = foreign.NAMES | {TOKEN, LINE, KEY}
_NAME_MAX: Final = 255
_PRINTABLE: Final = "".join(
    chr(code) for code in range(ord("!"), ord("~") + 1) if chr(code) != "%"
)


def decode(meta: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return every ``user.*`` attribute that *meta* holds, and that a program could have set."""
    return {
        name: value for name, value in (_plain(meta) | _packed(meta)).items() if _is_name(name)
    }


def _is_name(name: bytes) -> bool:
    return len(PREFIX) < len(name) <= _NAME_MAX and b"\0" not in name and not name.startswith(OWN)


def changed(meta: Mapping[str, str], name: bytes, value: bytes | None) -> dict[str, str]:
    """Return *meta* with one attribute set, or removed (*value* None: raise ``NoAttribute`` if there is none).

    One that is a metadata key of its own stays one while it can.
    """
    if value is None and name not in decode(meta):
        raise NoAttribute("no such attribute")
    rest = dict(meta)
    packed = _unpacked(rest.pop(KEY, ""))
    packed.pop(_to_text(name), None)
    if name in _plain(meta):
        key = _to_text(name.removeprefix(PREFIX))
        del rest[key]
        if value:
            rest[key] = quote(value, safe=_PRINTABLE)
            value = None
    if value is not None:
        packed[_to_text(name)] = base64.b64encode(value).decode("ascii")
    return rest | ({KEY: _pack(packed)} if packed else {})


def _plain(meta: Mapping[str, str]) -> dict[bytes, bytes]:
    return {
        PREFIX + _to_bytes(key): unquote_to_bytes(_to_bytes(value))
        for key, value in meta.items()
        if key not in _HIDDEN and not key.startswith(HEADER)
    }


def _packed(meta: Mapping[str, str]) -> dict[bytes, bytes]:
    return {
        raw: _value(value)
        for name, value in _unpacked(meta.get(KEY, "")).items()
        if (raw := _to_bytes(name)).startswith(PREFIX)
    }


def _unpacked(text: str) -> dict[str, str]:
    """Return names of any kind and their values as they are written; nothing for what makes no sense."""
    try:
        said = json.loads(unquote(text, errors="surrogateescape") or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {
        name: value
        for name, value in said.items()
        if isinstance(value, str) and _is_bytes(name) and _is_bytes(value)
    }


def _is_bytes(text: str) -> bool:
    try:
        return _to_bytes(text) is not None
    except UnicodeEncodeError:
        return False


def _pack(attributes: Mapping[str, str]) -> str:
    said = dict(sorted(attributes.items()))
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    return quote(text, safe="", errors="surrogateescape")


def _value(text: str) -> bytes:
    """Return the bytes of one value: base64, or (yas3fs) the text itself."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return _to_bytes(text)


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _to_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
