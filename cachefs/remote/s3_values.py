"""How S3 spells what we pass: ETags, metadata, keys in listings, objects in answers."""

import base64
import codecs
import re
from collections.abc import Mapping
from datetime import datetime
from email.errors import HeaderParseError
from email.header import decode_header
from typing import Any
from urllib.parse import unquote_plus

from cachefs.core import descent
from cachefs.core.errors import BadKey, Fault
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote.headers import in_range, is_text, of_user
from cachefs.remote.s3_client import said
from cachefs.remote.s3_served import served_of

_PLAIN = re.compile(r"[!-~]([ -~]*[!-~])?")
_LONGEST_KEY = 1024
_LARGEST = 2**63 - 1
"""Bytes: more than any store has, and what the tables hold."""
_OF_SOURCE = {"unicode_escape", "raw_unicode_escape"}
"""Charsets of program text, which no header is in; they warn of what they cannot read."""
_MD5 = re.compile(r"[0-9a-f]{32}")


def require_bearable(key: Key) -> None:
    """Raise ``BadKey`` if no S3 takes *key*."""
    try:
        length = len(key.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise BadKey("S3 takes only keys that are UTF-8") from error
    if "\0" in key:
        raise BadKey("S3 takes no keys with a NUL byte")
    if not 0 < length <= _LONGEST_KEY:
        raise BadKey(f"S3 takes keys of 1 to {_LONGEST_KEY} bytes, and this has {length}")


def bare(etag: object) -> ETag:
    """Return *etag* without quotes. Raise ``Fault`` if there is none."""
    text = str(etag or "").removeprefix("W/").strip('"')
    if not text:
        raise Fault("the store's answer has no ETag")
    return ETag(text)


def quoted(etag: ETag) -> str:
    """Return *etag* as HTTP wants it in a condition."""
    return f'"{etag}"'


def in_base64(md5: str) -> str:
    """Return *md5*, which is hexadecimal, as Content-MD5 has it."""
    return base64.b64encode(bytes.fromhex(md5)).decode("ascii")


def in_hexadecimal(text: str) -> str | None:
    """Return what *text* has in base64; None: it is none (that of parts ends in their number)."""
    try:
        return base64.b64decode(text, validate=True).hex() or None
    except ValueError:
        return None


def looks_like_md5(etag: ETag) -> bool:
    """Whether it could be the MD5 of the content."""
    return _MD5.fullmatch(etag) is not None


def encode_meta(meta: Mapping[str, str]) -> dict[str, str]:
    """Return the user's of *meta* as headers can carry it: RFC 2047 for what is not plain ASCII."""
    return {name: _encode(value) for name, value in of_user(meta).items()}


def decode_meta(meta: Mapping[str, str]) -> dict[str, str]:
    """Return what :meth:`encode_meta`, or another program, stored, with names in lower case."""
    return {name.lower(): _decode(value) for name, value in meta.items()}


def seconds_ns(moment: datetime) -> int:
    """Return *moment* in whole seconds, as nanoseconds: a HEAD does not say more, though a listing may."""
    try:
        return in_range(int(moment.timestamp()) * 10**9)
    except (OverflowError, ValueError, OSError):
        raise Fault(f"the store says a time that makes no sense: {moment}") from None


def object_of(key: Key, answer: Mapping[str, Any], *, size: int) -> ObjectInfo:
    """Return what the answer to a HEAD or GET says."""
    return descent.read(
        ObjectInfo(
            key=key,
            size=size,
            etag=bare(answer.get("ETag")),
            mtime_ns=seconds_ns(answer["LastModified"]) if "LastModified" in answer else 0,
            content_type=answer.get("ContentType"),
            meta=decode_meta(answer.get("Metadata", {})) | served_of(answer),
        )
    )


def page_of(answer: Mapping[str, Any], *, md5_etags: bool = False) -> Listing:
    """Return the page of a listing. *md5_etags*: what is stored in one piece is named by its MD5."""
    encoded = answer.get("EncodingType") == "url"
    return Listing(
        tuple(
            _listed(entry, encoded=encoded, md5_etags=md5_etags)
            for entry in answer.get("Contents", ())
        ),
        tuple(
            _key(said(entry, "Prefix"), encoded=encoded)
            for entry in answer.get("CommonPrefixes", ())
        ),
    )


def _listed(entry: Mapping[str, Any], *, encoded: bool, md5_etags: bool) -> ObjectInfo:
    size = said(entry, "Size")
    if not isinstance(size, int) or not 0 <= size <= _LARGEST:
        raise Fault(f"the listing says a size that no object has: {size!r}")
    etag = bare(entry.get("ETag"))
    return ObjectInfo(
        key=_key(said(entry, "Key"), encoded=encoded),
        size=size,
        etag=etag,
        mtime_ns=seconds_ns(entry["LastModified"]) if "LastModified" in entry else 0,
        is_md5=md5_etags and looks_like_md5(etag),
    )


def _key(text: str, *, encoded: bool) -> Key:
    key = unquote_plus(text, errors="surrogateescape") if encoded else text
    if not is_text(key):
        raise Fault(f"the listing says a key that none can be: {key!a}")
    return Key(key)


def _encode(value: str) -> str:
    if not value or (_PLAIN.fullmatch(value) and "=?" not in value):
        return value
    word = base64.b64encode(value.encode("utf-8", "surrogateescape")).decode("ascii")
    return f"=?UTF-8?B?{word}?="


def _decode(value: str) -> str:
    if not value.isascii():
        try:
            # http.client takes headers for Latin-1; a store that sends them raw means UTF-8.
            return value.encode("latin-1").decode("utf-8")
        except UnicodeError:
            return value
    if "=?" not in value:
        return value
    try:
        parts = decode_header(value)
    except (HeaderParseError, ValueError, LookupError, AssertionError):
        return value
    return "".join(_text(word, charset) for word, charset in parts)


def _text(word: bytes | str, charset: str | None) -> str:
    if isinstance(word, str):
        return word
    try:
        codec = codecs.lookup(charset or "latin-1").name
        text = word.decode("latin-1" if codec in _OF_SOURCE else codec, "surrogateescape")
        text.encode("utf-8", "surrogateescape")  # some charsets hold what nothing else can
    except (LookupError, ValueError):
        return word.decode("latin-1")
    return text
