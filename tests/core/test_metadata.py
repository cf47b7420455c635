"""Modes, owners and times on objects: what we write all read, and what others wrote we read."""

import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.core.errors import NoSpace
from cachefs.core.foreign import parse_time
from cachefs.core.metadata import (
    META_MAX,
    TOKEN,
    Posix,
    decode,
    encode,
    format_time,
    pointing_to,
    require_room,
    size_of,
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
others_said = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=8)


@given(attributes, st.none() | st.just(Token("t0ken")), others_said)
def test_what_is_encoded_is_decoded_again(
    attrs: Attrs, token: Token | None, others: dict[str, str]
) -> None:
    meta = encode(attrs, token, others)
    assert decode(meta) == Posix(
        kind=Kind.FILE if attrs.kind is Kind.DIR else attrs.kind,
        mode=attrs.mode,
        uid=attrs.uid,
        gid=attrs.gid,
        mtime_ns=attrs.mtime_ns,
        atime_ns=attrs.atime_ns,
        ctime_ns=attrs.ctime_ns,
    )


@given(attributes, others_said)
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
        "cachefs-token": "abc.cc51335e",
    }


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (Kind.FILE, stat.S_IFREG),
        (Kind.DIR, stat.S_IFDIR),
        (Kind.SYMLINK, stat.S_IFLNK),
        (Kind.FIFO, stat.S_IFIFO),
        (Kind.SOCKET, stat.S_IFSOCK),
    ],
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
        pytest.param(
            "2020-09-13T12:26:40.5Z",
            1_600_000_000_500_000_000,
            id="rclone's atime, gcsfuse's mtime",
        ),
        pytest.param("2020-09-13T14:26:40+02:00", 1_600_000_000 * SECOND, id="with a zone"),
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
        "2026-13-02T03:04:05Z",
        "9999-01-02T03:04:05Z",
        "2026-01-02",
        "nan",
        "sNaN",
        "inf",
        "-Infinity",
        "8589934593",
        "-8589934593",
        "1e30",
        "1e999999999999999999999",
        "1E1000000",
        "0e999999999999999999",
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
        pytest.param({"mode": "0644"}, Posix(mode=0o644), id="octal as C writes it"),
        pytest.param({"mode": "100640"}, Posix(mode=0o640), id="rclone: octal, the whole st_mode"),
        pytest.param({"mode": "40755"}, Posix(mode=0o755), id="rclone: octal, a directory"),
        pytest.param({"mode": "0100640"}, Posix(mode=0o640), id="octal both ways"),
        pytest.param({"mode": "41471"}, Posix(Kind.SYMLINK, mode=0o777), id="a symlink"),
        pytest.param({"mode": "120777"}, Posix(Kind.SYMLINK, mode=0o777), id="rclone's symlink"),
        pytest.param({"mode": "4516"}, Posix(Kind.FIFO, mode=0o644), id="a fifo"),
        pytest.param({"mode": "49645"}, Posix(Kind.SOCKET, mode=0o755), id="a socket"),
        pytest.param({"mode": "8612"}, Posix(mode=0o644), id="a device: s3fs keeps no number"),
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


@pytest.mark.parametrize(
    ("meta", "content_type", "posix"),
    [
        pytest.param(
            {"--symlink-target": "..%2Fa%25b%C3%A9", "mode": "33206"},
            None,
            Posix(Kind.SYMLINK, mode=0o666, target="../a%bé".encode()),
            id="geesefs: the key decides",
        ),
        pytest.param(
            {"--symlink-target": "50%"}, None, Posix(Kind.SYMLINK, target=b"50%"), id="not escaped"
        ),
        pytest.param(
            {"permissions": "33184", "owner": "1000", "group": "100"},
            None,
            Posix(mode=0o640, uid=1000, gid=100),
            id="s3sync",
        ),
        pytest.param(
            {
                "goog-reserved-posix-mode": "640",
                "goog-reserved-posix-uid": "1000",
                "goog-reserved-posix-gid": "100",
                "goog-reserved-file-mtime": "5",
                "goog-reserved-file-atime": "6",
            },
            None,
            Posix(mode=0o640, uid=1000, gid=100, mtime_ns=5 * SECOND, atime_ns=6 * SECOND),
            id="gsutil",
        ),
        pytest.param(
            {"gcsfuse_mtime": "2020-09-13T12:26:40Z", "gcsfuse_symlink_target": "a/b%20"},
            None,
            Posix(Kind.SYMLINK, mtime_ns=1_600_000_000 * SECOND, target=b"a/b%20"),
            id="gcsfuse",
        ),
        pytest.param(
            {"gcsfuse-mtime": "2020-09-13T12:26:40Z", "gcsfuse-symlink-target": "a/b"},
            None,
            Posix(Kind.SYMLINK, mtime_ns=1_600_000_000 * SECOND, target=b"a/b"),
            id="gcsfuse, through radosgw",
        ),
        pytest.param(
            {"goog-reserved-file-is-symlink": "true"},
            None,
            Posix(Kind.SYMLINK, mode=0o777),
            id="gcsfuse: the target is the body",
        ),
        pytest.param(
            {"fs-mode": "33184", "fs-uid": "1", "fs-gid": "2", "fs-mtime": "5.5", "fs-ctime": "6"},
            None,
            Posix(mode=0o640, uid=1, gid=2, mtime_ns=5_500_000_000, ctime_ns=6 * SECOND),
            id="cybera",
        ),
        pytest.param(
            {"fs-mode": "41471", "fs-link-source": "over there"},
            None,
            Posix(Kind.SYMLINK, mode=0o777, target=b"over there"),
            id="cybera's link",
        ),
        pytest.param(
            {"symlink-target": "t", "mtime": "5"},
            "application/link",
            Posix(Kind.SYMLINK, mtime_ns=5 * SECOND, target=b"t"),
            id="svfs",
        ),
        pytest.param(
            {
                "attr": '{"st_mode": 33184, "st_uid": 1, "st_gid": 2, "st_mtime": 5.5, "st_size": 9}'
            },
            None,
            Posix(mode=0o640, uid=1, gid=2, mtime_ns=5_500_000_000),
            id="yas3fs",
        ),
        pytest.param(
            {"attr": '{"st_mode": 41471}'},
            "application/x-symlink",
            Posix(Kind.SYMLINK, mode=0o777),
            id="yas3fs: the target is the body",
        ),
        pytest.param({"attr": "["}, None, Posix(), id="yas3fs, garbled"),
        pytest.param({"attr": "[1]"}, None, Posix(), id="yas3fs, something else"),
        pytest.param(
            {"mode": "33152", "permissions": "33184"}, None, Posix(mode=0o600), id="ours wins"
        ),
    ],
)
def test_every_tools_form_is_read(
    meta: dict[str, str], content_type: str | None, posix: Posix
) -> None:
    assert decode(meta, content_type) == posix


@given(st.binary(min_size=1).filter(lambda target: b"\0" not in target))
def test_a_target_is_read_again_by_us_and_by_geesefs(target: bytes) -> None:
    meta = pointing_to(target)
    assert decode(meta) == Posix(Kind.SYMLINK, target=target)
    assert all(value.isascii() and value.isprintable() for value in meta.values())


def test_a_checksum_of_other_content_does_not_outlive_it() -> None:
    attrs = Attrs(Kind.FILE, 3, 0o640, 0, 0, 0, 0, 0)
    others = {"md5chksum": "of the old bytes", "color": "red"}
    assert "md5chksum" not in encode(attrs, Token("t"), others)
    assert encode(attrs, None, others)["md5chksum"] == "of the old bytes"


@given(attributes, st.integers(0, META_MAX - 5))
def test_what_others_put_on_an_object_is_kept_before_ours(attrs: Attrs, length: int) -> None:
    others = {"color": "r" * length}
    meta = encode(attrs, Token("t" * 32), others)
    assert size_of(meta) <= META_MAX
    assert meta.items() >= others.items()
    info = ObjectInfo(Key("k"), attrs.size, ETag("e"), 0, meta=meta)
    assert token_of(info) == "t" * 32 or length > META_MAX - 60


@given(attributes, st.integers(0, META_MAX))
def test_what_is_promised_room_loses_nothing_later(attrs: Attrs, length: int) -> None:
    others = {"xattr": "x" * length}
    try:
        require_room(attrs, others)
    except NoSpace:
        assert length > META_MAX - 300
        return
    assert decode(encode(attrs, Token("t" * 32), others)) == decode(encode(attrs, None, {}))


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "mode",
                "uid",
                "gid",
                "mtime",
                "atime",
                "ctime",
                "attr",
                "--symlink-target",
                "fs-link-source",
            ]
        ),
        st.text()
        | st.text(alphabet="0123456789.e-")
        | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
        | st.just("[" * 100_000),
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


@pytest.mark.parametrize("meta", [None, {}, {TOKEN: ""}, {TOKEN: "abc"}, {TOKEN: "abc.0123"}])
def test_a_version_that_no_promise_wrote_has_no_token(meta: dict[str, str] | None) -> None:
    assert token_of(ObjectInfo(Key("k"), 0, ETag("e"), 0, meta=meta)) is None


@given(attributes, others_said, st.sampled_from(["size", "mode", "mtime", "ctime", "color"]))
def test_a_version_tells_which_promise_wrote_it_until_another_tool_writes_it_again(
    attrs: Attrs, others: dict[str, str], changed: str
) -> None:
    meta = encode(attrs, Token("abc"), others)
    ours = ObjectInfo(Key("k"), attrs.size, ETag("e"), 0, meta=meta)
    assert token_of(ours) == "abc"
    if changed == "size":
        theirs = replace(ours, size=ours.size + 1)
    else:
        theirs = replace(ours, meta={**meta, changed: meta.get(changed, "") + "1"})
    assert token_of(theirs) == ("abc" if changed == "color" else None)
