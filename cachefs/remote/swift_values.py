"""Names, headers and listing rows of Swift, and what they are in the contract's words."""

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, unquote

from cachefs.core import descent
from cachefs.core.errors import BadKey, Fault, TooMuchMetadata
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.remote.headers import as_text, in_range, is_text, marked, of_user, served

MARKER_TYPE: Final = "application/directory"
_MARKER_TYPES: Final = frozenset({MARKER_TYPE, "text/directory"})
_META: Final = "x-object-meta-"
_SERVED: Final = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-robots-tag",
)
"""What of an object, beside its type and metadata, Swift forgets when it is not sent again."""
_LONGEST_KEY: Final = 1024
_LONGEST_NAME, _LONGEST_VALUE, _MOST_ITEMS, _MOST_BYTES = 128, 256, 90, 4096
_EMPTY: Final = "%"  # nothing else is written as a lone percent sign
_PACKED: Final = "=?UTF-8?B?"
"""Begins a value in base64 (RFC 2047), which is shorter where much would have to be percent-encoded."""
_PIECE: Final = re.compile(r"(.+)~([0-9]{1,4})", re.DOTALL)
_MD5: Final = re.compile(r"[0-9a-f]{32}")
_EMPTY_MD5: Final = "d41d8cd98f00b204e9800998ecf8427e"
_SECOND_NS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one Swift object, as a HEAD tells it."""

    name: str
    info: ObjectInfo
    headers: Mapping[str, str]

    @property
    def stamp(self) -> str:
        """When it was written: of two versions, the later stands."""
        return self.headers.get("X-Timestamp") or self.headers.get("Last-Modified", "")

    @property
    def is_slo(self) -> bool:
        """Whether it is the manifest of a static large object."""
        return self.headers.get("X-Static-Large-Object", "").lower() == "true"

    @property
    def is_dlo(self) -> bool:
        """Whether it is the manifest of a dynamic large object."""
        return "X-Object-Manifest" in self.headers

    @property
    def is_directory(self) -> bool:
        """Whether it stands for a directory, without the slash in its name."""
        return is_directory(self.name, self.info.content_type, self.info.size)


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a listing."""

    name: str
    info: ObjectInfo
    may_be_manifest: bool
    """It looks empty; so do dynamic large objects, and symlinks."""

    @property
    def is_directory(self) -> bool:
        """As :attr:`Version.is_directory`."""
        return is_directory(self.name, self.info.content_type, self.info.size)


def require_bearable(key: Key) -> None:
    """Raise ``BadKey`` for what Swift cannot have as a name."""
    try:
        raw = key.encode("utf-8")
    except UnicodeEncodeError:
        raise BadKey(f"{key!r} is not UTF-8, as names in Swift must be") from None
    if not raw or b"\0" in raw:
        raise BadKey("an object needs a key" if not raw else f"{key!r} holds a NUL byte")
    if len(raw) > _LONGEST_KEY:
        raise BadKey(f"the key is longer than {_LONGEST_KEY} bytes")


def stem_of(key: Key) -> str | None:
    """Return the name that Swift's tools give to the marker *key*; None if it can only have its own."""
    stem = key.removesuffix("/")
    return stem if stem and stem != key and not stem.endswith("/") else None


def is_directory(name: str, content_type: str | None, size: int) -> bool:
    """Whether an object stands for a directory in the way of Swift's tools: empty, of that type, no slash."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    return kind in _MARKER_TYPES and size == 0 and not name.endswith("/")


def is_md5(etag: ETag) -> bool:
    """Whether *etag* can be the MD5 of the bytes."""
    return _MD5.fullmatch(etag) is not None


def version_of(
    key: Key, name: str, headers: Mapping[str, str], *, size: int | None = None
) -> Version:
    """Return what the headers of a HEAD (or of a GET, given the whole *size*) say."""
    if size is None:
        try:
            size = in_size(int(headers["Content-Length"]))
        except (KeyError, ValueError):
            raise Fault(f"{key!r}: the store does not say how long it is") from None
    when_ns = _when_ns(headers)
    # Without an ETag: a dynamic large object with more segments than Swift cares to hash.
    etag = bare(headers.get("ETag", "")) or f"{when_ns:x}-{size:x}"
    info = ObjectInfo(
        key=key,
        size=size,
        etag=ETag(etag),
        mtime_ns=when_ns,
        content_type=headers.get("Content-Type"),
        meta=decode_meta(headers) | served_of(headers),
    )
    version = Version(name, descent.read(info), headers)
    is_whole = not (version.is_slo or version.is_dlo)
    return replace(version, info=replace(version.info, is_md5=is_whole and is_md5(info.etag)))


def row_of(raw: Mapping[str, Any]) -> Row:
    """Return one object of a listing in JSON."""
    try:
        name, size = _text(raw["name"]), in_size(raw["bytes"])
        etag = bare(raw.get("slo_etag") or raw["hash"])
        when = datetime.fromisoformat(str(raw["last_modified"])).replace(tzinfo=UTC)
        is_link = "symlink_path" in raw
        may_be_manifest = size == 0 and (is_link or etag in (_EMPTY_MD5, ""))
        is_large = "slo_etag" in raw or may_be_manifest
        info = ObjectInfo(
            key=Key(name),
            size=size,
            etag=ETag(etag),
            is_md5=is_md5(ETag(etag)) and not is_large,
            mtime_ns=in_range(int(when.timestamp()) * _SECOND_NS + when.microsecond * 1000),
            content_type=None if raw.get("content_type") is None else _text(raw["content_type"]),
        )
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise Fault(f"a row of the listing makes no sense: {raw!a}") from error
    return Row(name, info, may_be_manifest)


def in_size(size: object) -> int:
    """Return *size*, a number of bytes. Raise ValueError for anything else."""
    if not isinstance(size, int) or not 0 <= size < 2**63:
        raise ValueError("not a number of bytes")
    return size


def _text(value: object) -> str:
    if not isinstance(value, str) or not is_text(value):
        raise ValueError("not a text")
    return value


def prefix_of(raw: Mapping[str, Any]) -> Key:
    """Return what a row of a listing in JSON says lies below."""
    try:
        return Key(_text(raw["subdir"]))
    except ValueError as error:
        raise Fault(f"a row of the listing makes no sense: {raw!a}") from error


def bare(etag: str) -> str:
    """Return *etag* without its quotes."""
    return etag.strip().strip('"')


def _when_ns(headers: Mapping[str, str]) -> int:
    stamp = headers.get("X-Timestamp", "").partition("_")[0]
    try:
        if stamp:
            seconds, _, fraction = stamp.partition(".")
            return in_range(int(seconds) * _SECOND_NS + int(f"{fraction:0<9}"[:9]))
        moment = parsedate_to_datetime(headers["Last-Modified"])
        return in_range(int(moment.timestamp()) * _SECOND_NS)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise Fault("the store does not say when it took the object in") from None


def decode_meta(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the user metadata among *headers*."""
    raw = {
        name.lower()[len(_META) :]: value
        for name, value in headers.items()
        if name.lower().startswith(_META)
    }
    whole: dict[str, str] = {}
    pieces: dict[str, dict[int, str]] = {}
    for name, value in raw.items():
        if match := _PIECE.fullmatch(name):
            pieces.setdefault(match[1], {})[int(match[2])] = value
        else:
            whole[name] = value
    for name, by_number in pieces.items():
        whole[name] = "".join(value for _, value in sorted(by_number.items()))
    return {unquote(name): _decode(value) for name, value in whole.items()}


def served_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Return how an object is served, as it travels among metadata."""
    lower = {name.lower(): value for name, value in headers.items()}
    return marked({name: as_text(lower[name]) for name in _SERVED if name in lower})


def served_headers(meta: Mapping[str, str]) -> dict[str, str]:
    """Return what :func:`served_of` found, for an object that is stored anew."""
    return {name.title(): value for name, value in served(meta).items() if name in _SERVED}


def _decode(value: str) -> str:
    # http.client reads header bytes as Latin-1; other tools write UTF-8 there.
    text = value.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
    if text.startswith(_PACKED) and text.endswith("?="):
        with suppress(ValueError):
            raw = b64decode(text.removeprefix(_PACKED).removesuffix("?="), validate=True)
            return raw.decode("utf-8", "surrogateescape")
    return "" if text == _EMPTY else unquote(text, errors="surrogateescape")


def encode_meta(meta: Mapping[str, str]) -> dict[str, str]:
    """Return the user's of *meta* as headers, undone by :func:`decode_meta`.

    What a header cannot bear is percent-encoded, as Swift's own client does; a value that is too long
    goes on in ``name~1``, ``name~2``… Raise ``TooMuchMetadata`` for what breaks Swift's limits in the densest
    form, too.
    """
    user = of_user(meta)
    headers = _headers(user, _encode)
    if _size(headers) > _MOST_BYTES:
        headers = _headers(user, _densest)
    if len(headers) > _MOST_ITEMS or _size(headers) > _MOST_BYTES:
        raise TooMuchMetadata(
            f"{len(headers)} items and {_size(headers)} bytes of metadata: "
            f"Swift takes {_MOST_ITEMS} and {_MOST_BYTES}"
        )
    if any(len(name) > len(_META) + _LONGEST_NAME for name in headers):
        raise TooMuchMetadata(f"a name of metadata is longer than Swift's {_LONGEST_NAME} bytes")
    return headers


def _size(headers: Mapping[str, str]) -> int:
    return sum(len(name) - len(_META) + len(value) for name, value in headers.items())


def _headers(meta: Mapping[str, str], encode: Callable[[str], str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in meta.items():
        # An underscore would be dropped on the way, without a word.
        sent = quote(name.lower(), safe="-.").replace("_", "%5F").replace("~", "%7E")
        text = encode(value)
        pieces = [text[at : at + _LONGEST_VALUE] for at in range(0, len(text), _LONGEST_VALUE)]
        if len(pieces) == 1:
            headers[_META + sent] = text
        else:
            headers |= {f"{_META}{sent}~{number}": piece for number, piece in enumerate(pieces)}
    return headers


def _encode(value: str) -> str:
    """Return *value* as Swift's own client reads it, unless it is too long for that."""
    if not value:
        return _EMPTY
    is_plain = value.isascii() and value.isprintable() and value == value.strip()
    if is_plain and "%" not in value and not value.startswith(_PACKED):
        return value
    quoted = quote(
        value, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~", errors="surrogateescape"
    ).replace(" ", "%20")
    if quoted.startswith(_PACKED):
        quoted = quoted.replace("=", "%3D", 1)
    return quoted if len(quoted) <= _LONGEST_VALUE else _packed(value, quoted)


def _densest(value: str) -> str:
    plain = _encode(value)
    return plain if plain == value else _packed(value, plain)


def _packed(value: str, quoted: str) -> str:
    raw = value.encode("utf-8", "surrogateescape")
    packed = f"{_PACKED}{b64encode(raw).decode('ascii')}?="
    return min(quoted, packed, key=len)
