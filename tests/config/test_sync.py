"""The file that keeps the keys of two buckets: for its owner only, whole or not at all."""

import stat
from pathlib import Path

import botocore.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config.sync import IN, OUT, Pair, Side, decode, encode, read_pair, write_pair
from cachefs.core.errors import UsageError

SECRET = "a/secret+key=%(x)s;#"
PAIR = Pair(
    Side("s3://rootwork", "AKID", SECRET, {"region": "eu-west-1"}),
    Side("swift://store", "test:tester", "other", {"endpoint_url": "http://127.0.0.1:1/auth"}),
)
_WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)


@given(_WORDS, _WORDS, _WORDS)
def test_whatever_the_keys_hold_they_come_back(bucket: str, access: str, secret: str) -> None:
    pair = Pair(Side(bucket, access, secret), Side(bucket))

    assert decode(encode(pair)) == pair


def test_it_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "config" / "sync.ini"

    write_pair(path, PAIR)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert read_pair(path) == PAIR
    assert [each.name for each in path.parent.iterdir()] == ["sync.ini"]


def test_what_was_left_half_written_by_somebody_else_does_not_open_it(tmp_path: Path) -> None:
    part = tmp_path / ".sync.ini.part"
    part.touch(mode=0o666)
    part.chmod(0o666)

    write_pair(tmp_path / "sync.ini", PAIR)

    assert stat.S_IMODE((tmp_path / "sync.ini").stat().st_mode) == 0o600


def test_it_is_not_written_through_a_link(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "sync.ini"
    other.write_text("somebody's")
    path.symlink_to(other)

    write_pair(path, PAIR)
    assert (other.read_text(), path.is_symlink()) == ("somebody's", False)

    (tmp_path / ".sync.ini.part").symlink_to(other)
    with pytest.raises(UsageError, match="cannot write"):
        write_pair(path, PAIR)
    assert other.read_text() == "somebody's"


def test_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sync.ini"
    write_pair(path, PAIR)
    path.chmod(0o640)

    with pytest.raises(UsageError, match=f"others may read it — chmod 600 {path}"):
        read_pair(path)


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "elsewhere.ini", PAIR)
    (tmp_path / "sync.ini").symlink_to(tmp_path / "elsewhere.ini")

    with pytest.raises(UsageError, match="it is a symbolic link"):
        read_pair(tmp_path / "sync.ini")


@pytest.mark.parametrize(
    "text", ["[x", f"aws_secret_access_key = {SECRET}", f"[{IN}]\nbucket = b"]
)
def test_what_makes_no_sense_is_said_without_quoting_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sync.ini"
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(UsageError) as failure:
        read_pair(path)

    assert "makes no sense" in str(failure.value)
    assert SECRET not in str(failure.value)
    assert failure.value.__cause__ is None
    assert failure.value.__suppress_context__


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert read_pair(tmp_path / "sync.ini") is None


def test_nothing_that_shows_a_side_shows_its_secret() -> None:
    assert SECRET not in repr(PAIR)


@pytest.mark.parametrize(
    ("section", "keys"), [(IN, ("AKID", SECRET)), (OUT, ("test:tester", "other"))]
)
def test_botocore_reads_the_keys_from_it(
    tmp_path: Path, section: str, keys: tuple[str, str]
) -> None:
    path = tmp_path / "sync.ini"
    write_pair(path, PAIR)
    session = botocore.session.Session(profile=section)
    session.set_config_variable("credentials_file", str(path))

    found = session.get_credentials()

    assert (found.access_key, found.secret_key) == keys
