"""The one line and the exit code of everything that can go wrong."""

import pytest

from cachefs.cli.failures import explain
from cachefs.client import ControlError
from cachefs.core import errors
from cachefs.core.source import Source, StoreKind

S3 = Source(StoreKind.S3, "photos")
SWIFT = Source(StoreKind.SWIFT, "photos")
AT = " at http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("error", "source", "line", "code"),
    [
        (
            errors.NoBucket("NoSuchBucket"),
            S3,
            "no such bucket at http://127.0.0.1:9000 — check the name, or pass --endpoint-url",
            3,
        ),
        (
            errors.NoBucket("404"),
            SWIFT,
            "no such container at http://127.0.0.1:9000 — check the name, and the account in OS_* or --cloud",
            3,
        ),
        (
            errors.Denied("HTTP 403"),
            None,
            "access denied at http://127.0.0.1:9000: HTTP 403 — check the credentials, and what they permit",
            3,
        ),
        (
            errors.NoBucket("404"),
            None,
            "no such bucket at http://127.0.0.1:9000 — check the name, and where it is looked for",
            3,
        ),
        (
            errors.Denied("HTTP 403"),
            S3,
            "access denied at http://127.0.0.1:9000: HTTP 403 — check AWS_* or --profile, or pass "
            "--no-sign-request for a public bucket",
            3,
        ),
        (
            errors.Denied("no credentials found — set AWS_ACCESS_KEY_ID"),
            S3,
            "access denied at http://127.0.0.1:9000: no credentials found — set AWS_ACCESS_KEY_ID",
            3,
        ),
        (errors.Refused("no"), S3, "the store refused at http://127.0.0.1:9000: no", 3),
        (
            errors.Unreachable("refused"),
            S3,
            "cannot reach the store at http://127.0.0.1:9000: refused — check the address and the network",
            4,
        ),
        (
            errors.TimedOut("60 s"),
            S3,
            "no answer in time at http://127.0.0.1:9000: 60 s — check the network, or raise --timeout",
            4,
        ),
        (
            errors.Fault("HTTP 500"),
            S3,
            "the store failed at http://127.0.0.1:9000: HTTP 500 — try again later",
            4,
        ),
        (errors.UsageError("wrong"), S3, "wrong", 2),
        (errors.UsageError("wrong", exit_code=5), S3, "wrong", 5),
        (ControlError("no", exit_code=3), S3, "no", 3),
        (
            errors.InUse("the cache directory is used by process 12"),
            S3,
            "the cache directory is used by process 12 — unmount that one first, or give this one another --cache-dir",
            2,
        ),
        (
            errors.NoRoom("full"),
            S3,
            "full — make room on the cache's disk, or raise --cache-size",
            1,
        ),
        (errors.BytesLost("two\nlines"), S3, "two lines", 1),
        (PermissionError(13, "Permission denied", "/x"), S3, "/x: Permission denied", 1),
        (KeyboardInterrupt(), S3, "interrupted", 130),
        (
            ZeroDivisionError("division by zero"),
            S3,
            "unexpected ZeroDivisionError: division by zero — a defect; -v shows where",
            1,
        ),
    ],
)
def test_an_error_is_told_with_its_reason_and_what_to_do(
    error: BaseException, source: Source, line: str, code: int
) -> None:
    plain = explain(error, doing="cannot mount s3://photos", source=source, at=AT)
    grouped = explain(
        BaseExceptionGroup("nursery", [BaseExceptionGroup("nursery", [error])]),
        doing="cannot mount s3://photos",
        source=source,
        at=AT,
    )

    assert plain == grouped
    assert (plain.line, plain.code) == (f"cannot mount s3://photos: {line}", code)
    assert plain.unexpected is isinstance(error, ZeroDivisionError)


def test_a_defect_beside_an_expected_error_is_not_hidden_by_it() -> None:
    both = ExceptionGroup("nursery", [errors.NoBucket("x"), KeyError("y")])

    assert explain(both).unexpected
