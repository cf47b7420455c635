"""What is said of a clock that is wrong, and what goes by the store's."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from cachefs.core.errors import Fault
from cachefs.remote.clocks import answered_at, explained
from cachefs.remote.swift_errors import verdict

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


def said(by: timedelta) -> str:
    return explained(format_datetime(NOW - by, usegmt=True), now_s=NOW.timestamp())


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (timedelta(hours=2, minutes=3), "2 hours 3 minutes ahead of"),
        (timedelta(hours=-1), "1 hour behind"),
        (timedelta(minutes=59, seconds=59), "1 hour ahead of"),
        (timedelta(days=-3650), "10 years behind"),
        (timedelta(days=366), "1 year 1 day ahead of"),
    ],
)
def test_a_clock_that_is_wrong_is_named_with_what_to_do(by: timedelta, words: str) -> None:
    assert said(by) == f"this machine's clock is {words} the store's — set the time"


@pytest.mark.parametrize("seconds", [0, 200, -200])
def test_a_clock_that_is_right_enough_is_not_blamed(seconds: int) -> None:
    assert said(timedelta(seconds=seconds)) == ""


@pytest.mark.parametrize("date", ["", "yesterday", "2025-06-01"])
def test_an_answer_without_a_date_blames_nobody(date: str) -> None:
    assert explained(date, now_s=NOW.timestamp()) == ""
    assert abs(answered_at(date) - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_moment_to_try_again_at_is_one_of_the_stores_clock() -> None:
    theirs = {name: format_datetime(NOW + timedelta(seconds=after), usegmt=True) for name, after in (("Date", 0), ("Retry-After", 7))}  # fmt: skip
    fault = verdict(503, theirs, b"", "asking")
    assert isinstance(fault, Fault)
    assert fault.retry_after_s == 7
