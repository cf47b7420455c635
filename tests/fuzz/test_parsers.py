"""Whatever comes in from outside, a parser gives a value or the error that it says it raises, and nothing else."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.config.addresses import parse_endpoint, parse_source
from cachefs.config.file import decode as decode_config
from cachefs.config.quantities import (
    parse_duration,
    parse_lifetime,
    parse_mode,
    parse_patience,
    parse_size,
    parse_space,
)
from cachefs.core import foreign, metadata
from cachefs.core.errors import Fault, InvalidName, UsageError
from cachefs.core.extents import ExtentMap
from cachefs.core.keys import component_of, name_of, path_shown
from cachefs.core.source import StoreKind
from cachefs.core.sums import PieceSums
from cachefs.core.types import Key, Listing, Name, ObjectInfo
from cachefs.engine.promise import Promise
from cachefs.remote import file_records, s3_values, swift_values
from tests.fuzz.pieces import spliced

FEW: Final = 60
MANY: Final = 1500

# ---- what comes in --------------------------------------------------------------------------

UNICODE = st.text(
    st.characters(), max_size=40
)  # half surrogate pairs included, as JSON can spell them
HEADER = st.text(st.characters(max_codepoint=0xFF), max_size=60)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**63, -1, 10**30, float("inf"), float("nan")])
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | UNICODE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(UNICODE, inner, max_size=4),
    max_leaves=12,
)


def with_odd_values(good: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """*good*, with some of its values replaced or taken away."""
    changes = st.dictionaries(st.sampled_from(sorted(good)), JSON, max_size=3)
    gone = st.sets(st.sampled_from(sorted(good)), max_size=2)
    return st.builds(
        lambda changed, without: {
            name: value for name, value in {**good, **changed}.items() if name not in without
        },
        changes,
        gone,
    )


PROMISE = Promise(Key("a/b"), None, "t" * 32, is_sealed=True, check=5).encode()  # type: ignore[arg-type]
CONFIG = (
    b'[remotes.a]\ntype = "s3"\nendpoint_url = "http://127.0.0.1:9000"\n'
    b'[mounts.b]\nsource = "a:photos"\nmountpoint = "/mnt"\ncache_size = "5GiB"\n'
)
RECORD = file_records.Record({"mode": "1"}, "text/plain", ((1, 2, 3, 4, 5),), "v").encode()
ROW = {
    "name": "a/b",
    "bytes": 3,
    "hash": "d41d8cd98f00b204e9800998ecf8427e",
    "last_modified": "2025-01-01T00:00:00.000000",
    "content_type": "text/plain",
    "slo_etag": '"x"',
    "subdir": "a/",
}
HEADERS = {
    "Content-Length": "3",
    "ETag": '"x"',
    "X-Timestamp": "1735689600.12345",
    "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT",
    "Content-Type": "text/plain",
    "X-Object-Meta-Mode": "33188",
}
ENTRY = {"Key": "a", "Size": 3, "ETag": '"x"', "LastModified": datetime(2025, 1, 1, tzinfo=UTC)}
SIZES = [b"10GiB", b"5%", b"1.5 MB", b"90m", b"1h30m", b"0644", b"minimal"]
SOURCES = [b"s3://bucket/prefix", b"swift://", b"file:///srv/a", b"name:bucket", b"cachefs#s3://b"]

texts = UNICODE | spliced(*SIZES, *SOURCES).map(lambda raw: raw.decode("latin-1"))
metas = st.dictionaries(
    st.sampled_from(sorted(foreign.NAMES)) | st.text(max_size=10),
    texts.filter(lambda text: _is_text(text)) | HEADER,
    max_size=6,
)
words = HEADER | spliced(
    b"=?UTF-8?B?aGVsbG8=?=", b"=?utf-16?Q?a=20?=", b"=?unicode_escape?Q?=5Cud800?="
).map(lambda raw: raw.decode("latin-1"))


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


# ---- what must come of it -------------------------------------------------------------------


@dataclass(frozen=True)
class Parser:
    """One parser, what it is given, the error that it may raise, and what holds of what it returns."""

    given: st.SearchStrategy[Any]
    parse: Callable[[Any], Any]
    error: type[Exception] | tuple[type[Exception], ...] = ()
    holds: Callable[[Any], bool] = lambda found: True
    known: tuple[Any, ...] = ()
    """What was too much for a parser once, or is for others: always tried."""


def can_be_kept(info: ObjectInfo) -> bool:
    """Whether the tables can hold it, and programs can be shown it."""
    posix = metadata.decode(info.meta or {}, info.content_type)
    times = (info.mtime_ns, posix.mtime_ns or 0, posix.atime_ns or 0, posix.ctime_ns or 0)
    return (
        _is_text(info.key)
        and bool(path_shown(info.key))
        and _is_text(info.etag)
        and 0 <= info.size < 2**63
        and all(-(2**63) <= when < 2**63 for when in times)
        and all(map(_is_text, (info.meta or {}).values()))
    )


def page_is_good(page: Listing) -> bool:
    return all(map(can_be_kept, page.objects)) and all(map(_is_text, page.prefixes))


def in_order(known: PieceSums) -> bool:
    pieces = [piece for piece, _ in known]
    return pieces == sorted(pieces) and known.decode(known.encode()) == known


def shows_and_undoes(name: Name) -> bool:
    component, shadowed = component_of(name)
    return name_of(component, shadowed=shadowed) == name and "/" not in component


def version_of(headers: Mapping[str, str]) -> ObjectInfo:
    return swift_values.version_of(Key("a"), "a", headers).info


PARSERS: dict[str, Parser] = {
    "a size": Parser(texts, parse_size, ValueError, lambda n: 0 <= n < 2**63),
    "an amount of disk": Parser(
        texts, parse_space, ValueError, lambda s: 0 <= s.of(1000) < 2**63, ("1e9999999%", "1/3%")
    ),
    "a duration": Parser(
        texts, parse_duration, ValueError, lambda s: 0 <= s < 1e11, (f"{'9' * 400}w", "9" * 400)
    ),
    "a lifetime": Parser(texts, parse_lifetime, ValueError, lambda s: 0 <= s < 1e11),
    "a patience": Parser(texts, parse_patience, ValueError, lambda s: 0 < s < 1e11),
    "a mode": Parser(texts, parse_mode, ValueError, lambda mode: 0 <= mode < 2**12),
    "an endpoint": Parser(texts, parse_endpoint, ValueError),
    "a source": Parser(texts, lambda text: parse_source(text, {"name": StoreKind.S3}), UsageError),
    "a configuration file": Parser(
        st.binary(max_size=60) | spliced(CONFIG),
        lambda raw: decode_config(raw, Path("config.toml")),
        UsageError,
        known=(b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000, b"\xff", b"a.b = 1\na = 2"),
    ),
    "a promise": Parser(
        st.binary(max_size=60) | spliced(PROMISE) | JSON.map(lambda v: json.dumps(v).encode()),
        Promise.decode,
        ValueError,
        lambda promise: Promise.decode(promise.encode()) == promise and _is_text(promise.key),
    ),
    "a promise with odd values": Parser(
        with_odd_values(json.loads(PROMISE)).map(lambda value: json.dumps(value).encode()),
        Promise.decode,
        ValueError,
        lambda promise: Promise.decode(promise.encode()) == promise and _is_text(promise.key),
    ),
    "extents": Parser(
        st.binary(max_size=40) | spliced(b"0-5,7-9,100-200"),
        ExtentMap.decode,
        ValueError,
        lambda here: ExtentMap.decode(here.encode()) == here,
    ),
    "sums": Parser(
        st.binary(max_size=100) | st.binary(min_size=40, max_size=40),
        PieceSums.decode,
        ValueError,
        in_order,
    ),
    "a name": Parser(
        st.binary(min_size=1, max_size=300)
        .filter(lambda raw: b"/" not in raw and b"\0" not in raw)
        .map(Name)
        | spliced(b"~cachefs~raw~%00a", b"a~cachefs~object", b"~cachefs~dot")
        .filter(lambda raw: b"/" not in raw and b"\0" not in raw and 0 < len(raw) < 256)
        .map(Name),
        lambda name: shows_and_undoes(name),
        InvalidName,
        lambda good: good is True,
    ),
    "metadata": Parser(
        metas, lambda meta: metadata.decode(meta, meta.get("content-type")), (), lambda _: True
    ),
    "S3 metadata": Parser(
        st.dictionaries(HEADER, words, max_size=4),
        s3_values.decode_meta,
        (),
        lambda meta: all(map(_is_text, meta.values())),
        tuple(
            {"a": f"=?{charset}?{form}?="}
            for charset in ("utf-16", "unicode_escape", "a\0b", "undefined", "idna", "hex", "")
            for form in ("Q?=5Cud800", "B?YQ", "B?=", "X?a")
        ),
    ),
    "a page of S3": Parser(
        with_odd_values(ENTRY).map(
            lambda entry: {"EncodingType": "url", "Contents": [as_botocore(entry)]}
        ),
        s3_values.page_of,
        Fault,
        page_is_good,
        tuple(
            {"EncodingType": "url", "Contents": [{**ENTRY, **odd}]}
            for odd in ({"Size": -1}, {"Size": "x"}, {"Size": 2**70}, {"ETag": ""})
        ),
    ),
    "a row of Swift": Parser(
        with_odd_values(ROW),
        lambda row: swift_values.row_of(row).info,
        Fault,
        can_be_kept,
        tuple(
            {**ROW, **odd}
            for odd in (
                {"bytes": float("inf")},
                {"bytes": -1},
                {"name": "\ud800"},
                {"content_type": 5},
                {"last_modified": "9999-12-31T23:59:59"},
            )
        ),
    ),
    "a directory of Swift": Parser(
        with_odd_values(ROW).filter(lambda row: "subdir" in row),
        swift_values.prefix_of,
        Fault,
        _is_text,
        ({"subdir": 5}, {"subdir": "\ud800"}, {"subdir": None}),
    ),
    "headers of Swift": Parser(
        st.dictionaries(
            st.sampled_from(sorted(HEADERS)) | HEADER.map(lambda text: f"X-Object-Meta-{text}"),
            words | st.sampled_from(sorted(HEADERS.values())) | NUMBERS.map(str),
            max_size=6,
        ).map(lambda changed: {**HEADERS, **changed}),
        version_of,
        Fault,
        can_be_kept,
        tuple(
            {**HEADERS, **odd}
            for odd in (
                {f"X-Object-Meta-A~{'9' * 5000}": "x"},
                {"X-Timestamp": "9" * 30},
                {"Content-Length": "-1"},
                {"X-Timestamp": "", "Last-Modified": "Mon, 01 Jan 99999 00:00:00 GMT"},
            )
        ),
    ),
    "a record beside a file": Parser(
        spliced(RECORD)
        | with_odd_values(json.loads(RECORD)).map(lambda v: json.dumps(v).encode()),
        file_records._decode,
        (),
        lambda record: (
            record is None or all(map(_is_text, (*record.meta.values(), record.version)))
        ),
    ),
}


def as_botocore(entry: dict[str, Any]) -> dict[str, Any]:
    """As the SDK hands it on: texts are texts and times are times, whatever they say."""
    for name, kind in (("Key", str), ("ETag", str), ("LastModified", datetime)):
        if not isinstance(entry.get(name), kind):
            entry.pop(name, None)
    return entry


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
@pytest.mark.parametrize("what", PARSERS)
@pytest.mark.timeout(600)
def test_anything_is_a_value_or_the_error_that_is_promised(what: str, examples: int) -> None:
    parser = PARSERS[what]

    def check(raw: object) -> None:
        try:
            found = parser.parse(raw)
        except parser.error:
            return
        assert parser.holds(found), ascii(raw)[:1000]

    for raw in parser.known:
        check(raw)
    settings(max_examples=examples)(given(parser.given)(check))()
