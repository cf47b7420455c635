"""Modes, owners and times on objects: what we write all read, and what others wrote we read."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.metadata import (
    TOKEN,
    Posix,
    decode,
    encode,
    format_time,
    parse_time,
    token_of,
)
from cachefs.core.types import Attrs, ETag, Key, Kind, ObjectInfo, Token

SECOND = 10**9
times = st.integers(-(2**33) * SECOND, 2**33 * SECOND)
ids = st.integers(0, 2**32 - 1)
attributes = st.builds(
    Attrs,
    kind=st.sampled_from(Kind),
    size=st.just(0),
    mode=st.integers(0, 0o7777),
    uid=ids,
    gid=ids,
    atime_ns=times,
    mtime_ns=times,
    ctime_ns=times,
)
foreign = st.dictionaries(st.text(min_size=1), st.text())


@given(attributes, st.none() | st.just(Token("t0ken")), foreign)
def test_what_is_encoded_is_decoded_again(
    attrs: Attrs, token: Token | None, others: dict[str, str]
) -> None:
    meta = encode(attrs, token, others)
    assert decode(meta) == Posix(
        is_symlink=attrs.kind is Kind.SYMLINK,
        mode=attrs.mode,
        uid=attrs.uid,
        gid=attrs.gid,
        mtime_ns=attrs.mtime_ns,
        atime_ns=attrs.atime_ns,
        ctime_ns=attrs.ctime_ns,
    )


@given(attributes, foreign)
def test_metadata_of_others_survives(attrs: Attrs, others: dict[str, str]) -> None:
    ours = {"mode", "uid", "gid", "mtime", "atime", "ctime", TOKEN}
    meta = encode(attrs, None, others | {TOKEN: "of an older version", "mode": "1"})
    assert {k: v for k, v in meta.items() if k not in ours} == {
        k: v for k, v in others.items() if k not in ours
    }
    assert TOKEN not in meta


def test_the_form_on_the_object_is_pinned() -> None:
    # s3fs, rclone and geesefs read this.
    attrs = Attrs(Kind.FILE, 3, 0o640, 1000, 100, 5 * SECOND, 1_600_000_000_500_000_000, -1)
    assert encode(attrs, Token("abc"), {"color": "red"}) == {
        "color": "red",
        "mode": str(0o100640),
        "uid": "1000",
        "gid": "100",
        "atime": "5.000000000",
        "mtime": "1600000000.500000000",
        "ctime": "-0.000000001",
        "cachefs-token": "abc",
    }


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(Kind.FILE, stat.S_IFREG), (Kind.DIR, stat.S_IFDIR), (Kind.SYMLINK, stat.S_IFLNK)],
)
def test_the_mode_is_the_whole_st_mode_in_decimal_without_leading_zeros(
    kind: Kind, mode: int
) -> None:
    attrs = Attrs(kind, 0, 0o7, 0, 0, 0, 0, 0)
    assert encode(attrs, None, {})["mode"] == str(mode | 0o7)
    assert not encode(attrs, None, {})["uid"].startswith("00")


# ---- other tools' readers, as far as they go ------------------------------------------------


def read_time_like_s3fs(text: str) -> int:
    """s3fs takes the digits after the dot for a count of nanoseconds."""
    seconds, _, fraction = text.partition(".")
    return int(seconds) * SECOND + int(fraction or 0)


def read_time_like_rclone(text: str) -> int:
    """rclone scales the fraction."""
    seconds, _, fraction = text.partition(".")
    return int(seconds) * SECOND + int(fraction.ljust(9, "0")[:9])


@given(st.integers(0, 2**33 * SECOND))
def test_other_tools_read_the_times_that_we_write(when_ns: int) -> None:
    text = format_time(when_ns)
    assert len(text.partition(".")[2]) == 9
    assert read_time_like_s3fs(text) == when_ns
    assert read_time_like_rclone(text) == when_ns


@given(times)
def test_a_time_that_is_written_is_read_again(when_ns: int) -> None:
    assert parse_time(format_time(when_ns)) == when_ns


# ---- what other tools write -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "when_ns"),
    [
        pytest.param("1600000000", 1_600_000_000 * SECOND, id="s3fs, geesefs: whole seconds"),
        pytest.param("1600000000.123456789", 1_600_000_000_123_456_789, id="s3fs"),
        pytest.param("1600000000.000000005", 1_600_000_000_000_000_005, id="s3fs: zero-padded"),
        pytest.param("1600000000.5", 1_600_000_000_500_000_000, id="rclone drops zeros"),
        pytest.param("1600000000.123457", 1_600_000_000_123_457_000, id="swiftclient: %f"),
        pytest.param("1.6e9", 1_600_000_000 * SECOND, id="a float in scientific form"),
        pytest.param(" 1600000000 ", 1_600_000_000 * SECOND, id="spaces around"),
        pytest.param("0", 0, id="the epoch"),
        pytest.param("-1.5", -1_500_000_000, id="before the epoch"),
        pytest.param("1600000000.1234567891234567891", 1_600_000_000_123_456_789, id="too fine"),
        pytest.param("8589934592", 2**33 * SECOND, id="the last one believed"),
    ],
)
def test_every_tools_time_is_read(text: str, when_ns: int) -> None:
    assert parse_time(text) == when_ns


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "yesterday",
        "2026-01-02T03:04:05Z",
        "nan",
        "sNaN",
        "inf",
        "-Infinity",
        "8589934593",
        "-8589934593",
        "1e30",
        "1e999999999999999999999",
        "9" * 10_000,
        "1.2.3",
        "0x10",
    ],
)
def test_a_time_that_makes_no_sense_counts_as_absent(text: str | None) -> None:
    assert parse_time(text) is None


@given(st.text() | st.text(alphabet="0123456789.eE+-_ nNaAiIfF", max_size=25))
def test_any_text_is_a_time_that_sqlite_can_hold_or_none(text: str) -> None:
    when_ns = parse_time(text)
    assert when_ns is None or -(2**63) <= when_ns < 2**63


@pytest.mark.parametrize(
    ("meta", "posix"),
    [
        pytest.param({}, Posix(), id="nothing"),
        pytest.param({"mode": "33188"}, Posix(mode=0o644), id="decimal, the whole st_mode"),
        pytest.param({"mode": "420"}, Posix(mode=0o644), id="permission bits only"),
        pytest.param({"mode": "0644"}, Posix(mode=0o1204), id="not octal, whatever it looks like"),
        pytest.param({"mode": "41471"}, Posix(is_symlink=True, mode=0o777), id="a symlink"),
        pytest.param({"mode": "16877"}, Posix(mode=0o755), id="a directory"),
        pytest.param({"mode": "-1"}, Posix(), id="negative"),
        pytest.param({"mode": "rw-r--r--"}, Posix(), id="letters"),
        pytest.param({"mode": "4294967296"}, Posix(), id="more than 32 bits"),
        pytest.param({"mode": "9" * 5000}, Posix(), id="thousands of digits"),
        pytest.param({"uid": "0", "gid": "4294967295"}, Posix(uid=0, gid=2**32 - 1), id="ids"),
        pytest.param({"uid": "-5", "gid": "4294967296"}, Posix(), id="ids out of range"),
        pytest.param({"uid": "root", "gid": ""}, Posix(), id="names for ids"),
        pytest.param({"mtime": "1.5"}, Posix(mtime_ns=1_500_000_000), id="only rclone's time"),
        pytest.param({"color": "red"}, Posix(), id="somebody else's"),
    ],
)
def test_each_piece_is_read_or_counts_as_absent(meta: dict[str, str], posix: Posix) -> None:
    assert decode(meta) == posix


@given(
    st.dictionaries(
        st.sampled_from(["mode", "uid", "gid", "mtime", "atime", "ctime"]),
        st.text() | st.text(alphabet="0123456789.e-"),
    )
)
def test_no_metadata_whatever_stops_an_object_from_being_shown(meta: dict[str, str]) -> None:
    posix = decode(meta)
    assert posix.mode is None or 0 <= posix.mode <= 0o7777
    for number in (posix.uid, posix.gid):
        assert number is None or 0 <= number < 2**32


@pytest.mark.parametrize(
    ("meta", "is_known"),
    [
        ({}, False),
        ({"color": "red"}, False),
        ({"mode": "nonsense"}, False),
        ({"mode": "33188"}, True),
        ({"uid": "0"}, True),
        ({"gid": "0"}, True),
        ({"mtime": "0"}, True),
        ({"ctime": "0"}, True),
    ],
)
def test_metadata_is_known_when_it_says_anything(meta: dict[str, str], is_known: bool) -> None:
    assert decode(meta).is_known is is_known


@pytest.mark.parametrize(
    ("meta", "token"),
    [(None, None), ({}, None), ({TOKEN: ""}, None), ({TOKEN: "abc"}, "abc")],
)
def test_a_version_tells_which_promise_wrote_it(
    meta: dict[str, str] | None, token: str | None
) -> None:
    assert token_of(ObjectInfo(Key("k"), 0, ETag("e"), 0, meta=meta)) == token
