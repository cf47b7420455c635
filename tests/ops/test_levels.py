"""Fill levels, as operators write them."""

import pytest

from cachefs.core.errors import UsageError
from cachefs.ops.levels import Usage, default_target, parse_level

GIB = 2**30
FULL = Usage(used=95 * GIB, limit=100 * GIB, disk_size=400 * GIB, disk_free=30 * GIB)


@pytest.mark.parametrize(
    ("text", "excess"),
    [
        ("90%", 5 * GIB),
        ("95%", 0),
        ("40GiB", 55 * GIB),
        ("disk:90%", 10 * GIB),
        ("disk:350GiB", 20 * GIB),
        ("free:10%", 10 * GIB),
        ("free:50GiB", 20 * GIB),
        ("free:1GiB", 0),
    ],
)
def test_what_is_above_a_level_is_counted_in_bytes(text: str, excess: int) -> None:
    assert parse_level(text, "--threshold").excess(FULL) == excess


@pytest.mark.parametrize("text", ["", "90", "much", "disk:", "moon:90%", "free:-3GiB", "100%"])
def test_what_is_no_level_is_refused_with_the_option_that_said_it(text: str) -> None:
    if text == "90":  # bytes
        assert parse_level(text, "--to").excess(FULL) == 95 * GIB - 90
        return
    with pytest.raises(UsageError, match="--to"):
        parse_level(text, "--to")


def test_a_share_of_nobody_knows_what_is_refused_and_bytes_are_not() -> None:
    unknown = Usage(used=10, limit=None, disk_size=100, disk_free=50)
    with pytest.raises(UsageError, match="--cache-size"):
        parse_level("90%", "--threshold").excess(unknown)
    assert parse_level("4", "--threshold").excess(unknown) == 6


@pytest.mark.parametrize(
    ("threshold", "target"),
    [("90%", "75%"), ("75%", "75%"), ("50%", "50%"), ("1GiB", "1GiB"), ("free:5%", "free:5%")],
)
def test_where_to_stop_unless_it_is_said(threshold: str, target: str) -> None:
    assert default_target(parse_level(threshold, "--threshold")).text == target


@pytest.mark.parametrize(
    ("one", "other", "is_above"),
    [
        ("80%", "50%", True),
        ("50%", "50%", False),
        ("2GiB", "1GiB", True),
        ("free:5%", "free:10%", True),
        ("free:10%", "free:5%", False),
        ("disk:90%", "disk:80%", True),
        ("2GiB", "1%", False),
        ("disk:90%", "80%", False),
    ],
)
def test_a_level_is_above_another_one_told_in_the_same_terms(
    one: str, other: str, is_above: bool
) -> None:
    assert parse_level(one, "--to").is_above(parse_level(other, "--threshold")) is is_above
