"""Sizes, durations, modes, owners and switches as people write them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config.quantities import (
    Space,
    one_of,
    parse_count,
    parse_duration,
    parse_group,
    parse_lifetime,
    parse_mode,
    parse_patience,
    parse_size,
    parse_space,
    parse_switch,
    parse_text,
    parse_user,
)
from cachefs.core.types import ConflictPolicy


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("50GiB", 50 * 2**30),
        ("10G", 10 * 2**30),
        ("10g", 10 * 2**30),
        ("64MiB", 64 * 2**20),
        ("64Mi", 64 * 2**20),
        ("1.5KiB", 1536),
        ("1 TiB", 2**40),
        ("1GB", 10**9),
        ("3b", 3),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "lots", "-1", "5%", "1e3", "10 G B", "GiB", "1,5G", "٣GiB", "1Gib/s"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_a_size_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than any disk"):
        parse_size("8EiB")


@given(st.integers(0, 2**20), st.sampled_from(["KiB", "MiB", "GiB"]))
def test_a_whole_number_of_units_is_exact(number: int, unit: str) -> None:
    power = {"KiB": 10, "MiB": 20, "GiB": 30}[unit]

    assert parse_size(f"{number}{unit}") == number << power


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert 0 <= size < 2**63


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("5%", Space(percent=5)),
        ("0%", Space(percent=0)),
        ("12.5 %", Space(percent=12.5)),
        ("10GiB", Space(size=10 * 2**30)),
    ],
)
def test_room_is_a_size_or_a_percentage(text: str, space: Space) -> None:
    assert parse_space(text) == space


@pytest.mark.parametrize("text", ["100%", "-1%", "%", "x%", "1/0%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a percentage"):
        parse_space(text)


def test_a_share_of_a_disk_is_told_in_bytes() -> None:
    assert Space(percent=5).of(1000) == 50
    assert Space(size=7).of(1000) == 7


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("5", 5),
        ("2.5", 2.5),
        ("5s", 5),
        ("1m", 60),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("2d", 172800),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "5 years", "s", "1s2", "nan", "inf", "1e9"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(0, 999), st.integers(0, 59), st.integers(0, 59))
def test_the_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds <= 100 * 366 * 86400


def test_a_lifetime_may_be_minimal_or_indefinite() -> None:
    assert parse_lifetime("minimal") == 0
    assert parse_lifetime("indefinite") > 86400 * 365
    assert parse_lifetime("3s") == 3


def test_a_deadline_is_longer_than_nothing() -> None:
    with pytest.raises(ValueError, match="longer than 0"):
        parse_patience("0")


@pytest.mark.parametrize(
    ("text", "mode"), [("0644", 0o644), ("755", 0o755), ("0o600", 0o600), ("0", 0)]
)
def test_a_mode_is_octal(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["", "rw-r--r--", "0888", "17777", "-1", "0x1ff"])
def test_what_is_no_mode_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"octal|permission"):
        parse_mode(text)


@given(st.integers(0, 0o7777))
def test_every_mode_survives_being_written_in_octal(mode: int) -> None:
    assert parse_mode(f"{mode:04o}") == mode


@pytest.mark.parametrize("text", ["0", "1025", "many", "-4", "1.5"])
def test_a_count_is_a_number_within_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=r"number|between"):
        parse_count(text)


def test_an_owner_is_a_number_or_a_name() -> None:
    assert parse_user("1000") == 1000
    assert parse_user("root") == 0
    assert parse_group("root") == 0
    with pytest.raises(ValueError, match="names no user of this machine"):
        parse_user("nobody-of-that-name")
    with pytest.raises(ValueError, match="is not a group id"):
        parse_group("4294967295")


def test_a_switch_says_yes_or_no() -> None:
    assert parse_switch("on")
    assert not parse_switch("False")
    with pytest.raises(ValueError, match="neither true nor false"):
        parse_switch("maybe")


def test_a_word_of_a_list_is_found_with_dashes_or_underscores() -> None:
    assert one_of(ConflictPolicy)("keep_both") is ConflictPolicy.KEEP_BOTH
    with pytest.raises(ValueError, match="is none of keep-both, ours, theirs, fail"):
        one_of(ConflictPolicy)("newest")


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\x00"])
def test_text_holds_something_that_prints(text: str) -> None:
    with pytest.raises(ValueError, match="is empty or holds"):
        parse_text(text)


def test_fractions_do_not_drift() -> None:
    assert parse_size("0.1GiB") == int(Fraction(1, 10) * 2**30)
