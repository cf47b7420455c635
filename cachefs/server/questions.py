"""What a question on the control socket has in it: each value checked before anything is done with it."""

import os
from collections.abc import Mapping
from typing import Final

from cachefs.core.errors import UsageError
from cachefs.core.known_md5 import require_text
from cachefs.engine.leases import DEFAULT_S, LONGEST_S

_LARGEST_ID: Final = 2**63

Question = Mapping[str, object]


def identity_of(question: Question) -> int:
    """Return the number of the file that is meant."""
    return number_of(question, "id")


def lease_of(question: Question) -> str:
    """Return the lease that is meant."""
    lease = question.get("lease")
    if not isinstance(lease, str):
        raise UsageError("lease must be the text that a lease was given with")
    return lease


def seconds_of(question: Question) -> float:
    """Return for how long a lease is to last."""
    seconds = question.get("seconds", DEFAULT_S)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise UsageError("seconds must be a number")
    if not 0 < seconds <= LONGEST_S:
        raise UsageError(f"a lease lasts for more than 0 and at most {LONGEST_S:.0f} seconds")
    return float(seconds)


def etag_of(question: Question) -> str:
    """Return the version that is meant."""
    etag = question.get("etag")
    if not isinstance(etag, str) or not etag:
        raise UsageError("etag must be a text")
    return etag


def number_of(question: Question, name: str) -> int:
    """Return a number that a file, or a moment, may have."""
    number = question.get(name)
    if not isinstance(number, int) or isinstance(number, bool):
        raise UsageError(f"{name} must be a number")
    if not 0 <= number < _LARGEST_ID:
        raise UsageError("no file has such a number")
    return number


def text_of(question: Question, name: str) -> str:
    """Return what may be a bucket or a key."""
    try:
        return require_text(question.get(name))
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a text") from None


def bucket_of(question: Question) -> str | None:
    """Return the bucket that is meant; None: all of them."""
    return None if question.get("bucket") is None else text_of(question, "bucket")


def path_of(question: Question, name: str = "path") -> str:
    """Return the path of a file, relative to the root of the mount."""
    path = question.get(name)
    if not isinstance(path, str) or not is_path(path):
        raise UsageError(f"{name} must be the path of a file")
    return path


def is_named_use(value: object) -> bool:
    """Whether *value* is a file's number and when it was last used."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(each) is int and abs(each) < _LARGEST_ID for each in value)
    )


def is_path(value: object) -> bool:
    """Whether *value* is something that a path of this machine can be."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeError:
        return False
