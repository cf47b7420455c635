"""Times in the answers of S3 are what botocore reads in them."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from botocore.utils import parse_timestamp
from hypothesis import given
from hypothesis import strategies as st

from cachefs.remote.s3_times import moment

MOMENTS = st.datetimes(datetime(1000, 1, 1), timezones=st.just(UTC))


@given(MOMENTS, st.sampled_from(["seconds", "milliseconds", "microseconds"]))
def test_a_time_in_a_listing_is_read_as_botocore_reads_it(when: datetime, precision: str) -> None:
    text = when.isoformat(timespec=precision).replace("+00:00", "Z")

    assert moment(text) == parse_timestamp(text)


@given(MOMENTS)
def test_a_time_in_a_header_is_read_as_botocore_reads_it(when: datetime) -> None:
    text = format_datetime(when, usegmt=True)

    assert moment(text) == parse_timestamp(text)


@pytest.mark.parametrize(
    "said",
    [
        "1422172801",
        1422172800,
        "20250101T000000Z",
        "2025-01-01T00:00:00+02:00",
        "2025-01-01T00:00:00.123456789Z",
    ],
)
def test_what_is_written_otherwise_is_left_to_botocore(said: object) -> None:
    assert moment(said) == parse_timestamp(said)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "soon",
        "2025-13-01T00:00:00Z",
        "Wed, 99 Jan 2025 00:00:00 GMT",
        "Wed, 01 Jan" + 300 * "9",
        "Wed, 01 Jan E" + 300 * "9",
        None,
    ],
)
def test_what_is_no_time_is_no_time_for_botocore_either(said: object) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError, ArithmeticError)):
        parse_timestamp(said)
    with pytest.raises(ValueError, match="nvalid timestamp"):
        moment(said)
