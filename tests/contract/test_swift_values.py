"""Names, headers, rows and answers of Swift, without a Swift."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import (
    Changed,
    Denied,
    Fault,
    NotFound,
    ObjectTooLarge,
    Refused,
    StoreError,
    TooMuchMetadata,
    Unsupported,
    errno_of,
)
from cachefs.core.metadata import HEADER, META_MAX, size_of
from cachefs.core.types import Key
from cachefs.remote.swift_errors import verdict
from cachefs.remote.swift_session import quoted_path
from cachefs.remote.swift_values import decode_meta, encode_meta, row_of, stem_of, version_of

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("%~ \n\r\0_"),
    ),
    max_size=60,
)


@given(
    st.dictionaries(
        TEXT.map(str.lower).filter(
            lambda name: name == name.lower() and name[:1] not in {"", HEADER}
        ),
        TEXT,
        max_size=4,
    )
)
def test_metadata_survives_its_way_through_headers(meta: dict[str, str]) -> None:
    try:
        headers = encode_meta(meta)
    except Refused:
        return
    for name, value in headers.items():
        assert name.isascii()
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
        assert value
        assert "_" not in name
    shown = {name.title(): value for name, value in headers.items()}
    assert decode_meta(shown) == meta


def test_bytes_that_are_no_text_survive_too() -> None:
    meta = {"a": "\udcff\udc80", "b": "x" * 1000}
    assert decode_meta(encode_meta(meta)) == meta


@pytest.mark.parametrize("value", ["=?UTF-8?B?eA==?=", "=?UTF-8?B?", "=?UTF-8?B?ü", "%7B%22" * 99])
def test_what_looks_encoded_stays_what_it_is(value: str) -> None:
    assert decode_meta(encode_meta({"a": value})) == {"a": value}


@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=8, max_size=12),
        st.text("aü日\udc80%", max_size=2048),
        max_size=20,
    )
)
def test_what_s3_bears_swift_bears_too(meta: dict[str, str]) -> None:
    while size_of(meta) > META_MAX:
        name, value = max(meta.items(), key=lambda item: len(item[1]))
        meta[name] = value[: len(value) // 2]
    assert decode_meta(encode_meta(meta)) == meta


def test_more_than_swift_bears_is_no_space() -> None:
    with pytest.raises(TooMuchMetadata) as caught:
        encode_meta({"a": "v" * 4096})
    assert errno_of(caught.value) == errno.ENOSPC


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a b/ü", "/c/a%20b/%C3%BC"),
        ("a/../b", "/c/a/%2E%2E/b"),
        (".", "/c/%2E"),
        ("/lead//x.y", "/c//lead//x.y"),
        ("q?#%", "/c/q%3F%23%25"),
    ],
)
def test_names_become_paths_that_mean_them(name: str, path: str) -> None:
    assert quoted_path("c", name) == path


@pytest.mark.parametrize(
    ("key", "stem"), [("d/", "d"), ("a/d/", "a/d"), ("f", None), ("d//", None), ("/", None)]
)
def test_a_marker_has_the_name_of_its_directory_where_it_can(key: str, stem: str | None) -> None:
    assert stem_of(Key(key)) == stem


ROW = {
    "name": "n",
    "bytes": 3,
    "hash": "abc",
    "content_type": "text/x",
    "last_modified": "2026-11-21T07:05:16.448630",
}


def test_a_row_names_the_version_that_a_head_does() -> None:
    headers = {
        "Content-Length": "3",
        "ETag": '"abc"',
        "X-Timestamp": "1795244716.44863",
        "Content-Type": "text/x",
    }
    row, head = row_of(ROW).info, version_of(Key("n"), "n", headers).info
    assert (row.size, row.etag, row.mtime_ns) == (head.size, head.etag, head.mtime_ns)
    assert row_of({**ROW, "slo_etag": '"slo"'}).info.etag == "slo"


@pytest.mark.parametrize(
    "broken", [{"bytes": "x"}, {"last_modified": "yesterday"}, {"hash": None}]
)
def test_a_row_that_makes_no_sense_is_a_fault_or_has_an_etag(broken: dict[str, object]) -> None:
    try:
        info = row_of({**ROW, **broken}).info
    except Fault:
        return
    assert info.etag


def test_a_row_without_a_name_is_a_fault() -> None:
    with pytest.raises(Fault):
        row_of({"bytes": 1})


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "x"}, {"Content-Length": "1"}])
def test_a_head_that_says_too_little_is_a_fault(headers: dict[str, str]) -> None:
    with pytest.raises(Fault):
        version_of(Key("n"), "n", headers)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (304, Refused), (400, Refused), (401, Denied), (403, Denied), (404, NotFound), (405, Unsupported),
        (408, Fault), (409, Fault), (411, Refused), (412, Refused), (413, ObjectTooLarge), (416, Fault),
        (422, Fault), (429, Fault), (498, Fault), (499, Fault), (500, Fault), (501, Unsupported),
        (502, Fault), (503, Fault), (504, Fault), (507, Fault),
    ],
)  # fmt: skip
def test_every_answer_has_a_verdict(status: int, kind: type[StoreError]) -> None:
    error = verdict(status, {}, b"<html><p>because</p></html>", "storing 'x'")
    assert type(error) is kind
    assert "because" in str(error)
    assert "storing 'x'" in str(error)


def test_a_condition_that_did_not_hold_is_changed() -> None:
    assert type(verdict(412, {}, b"", "x", is_conditional=True)) is Changed


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("7", 7.0), ("", None), ("soon", None), ("Fri, 01 Jan 2010 00:00:00 GMT", 0.0)],
)
def test_what_the_store_asks_to_wait_is_known(given: str, seconds: float | None) -> None:
    error = verdict(503, {"Retry-After": given}, b"", "x")
    assert isinstance(error, Fault)
    assert error.retry_after_s == seconds
