"""What a Swift answers, and what happens on the way there, in our own words."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.client import HTTPException

import requests
from swiftclient.exceptions import ClientException
from urllib3.exceptions import HTTPError, NewConnectionError

from cachefs.core.errors import (
    Changed,
    Denied,
    Fault,
    NotFound,
    ObjectTooLarge,
    OverQuota,
    Refused,
    StoreError,
    Unreachable,
    Unsupported,
)
from cachefs.remote.clocks import answered_at

_PASSING = frozenset({408, 409, 416, 422, 425, 429, 498, 499})
"""Answers below 500 that may be others next time: too slow, too often, under way, garbled on the way."""
_TAGS = re.compile(r"<[^>]*>")


@contextmanager
def transporting(what: str) -> Iterator[None]:
    """Turn whatever the network does to the block into a ``Fault`` that says *what* was under way."""
    try:
        yield
    except (requests.ConnectTimeout, requests.exceptions.SSLError) as error:
        raise Unreachable(f"{what}: {_words(error)}") from error
    except requests.ConnectionError as error:
        kind = Unreachable if _is_unreachable(error) else Fault
        raise kind(f"{what}: {_words(error)}") from error
    except (requests.RequestException, HTTPError, HTTPException, OSError) as error:
        raise Fault(f"{what}: {_words(error)}") from error
    except ClientException as error:
        raise Refused(f"{what}: {error.msg}") from error


def _is_unreachable(error: BaseException) -> bool:
    """Whether no connection came about at all. The reason is wrapped, by requests in urllib3's in its own."""
    reasons = [error, *error.args, *(getattr(arg, "reason", None) for arg in error.args)]
    return any(isinstance(reason, NewConnectionError) for reason in reasons)


def _words(error: BaseException) -> str:
    reason = next((getattr(arg, "reason", None) for arg in error.args), None) or error
    text = " ".join(str(reason).split()) or type(error).__name__
    return text.rsplit(">: ", 1)[-1][:200]  # urllib3 begins with the repr of its connection


def verdict(
    status: int,
    headers: Mapping[str, str],
    content: bytes,
    what: str,
    *,
    is_conditional: bool = False,
) -> StoreError:
    """Return the error that an answer other than success stands for.

    *is_conditional*: the request bore a condition, so that 412 means that it did not hold. Without one, Swift
    says 412 of names that it cannot bear.
    """
    text = " ".join(_TAGS.sub(" ", content.decode("utf-8", "replace")).split())[:200]
    said = f"{what}: {status}" + (f" {text}" if text else "")
    if status == 404:
        return NotFound(said)
    if status in (401, 403):
        return Denied(said)
    if status == 413:
        return (OverQuota if "quota" in text.lower() else ObjectTooLarge)(said)
    if status == 412 and is_conditional:
        return Changed(said)
    if status in (405, 501):
        return Unsupported(said)
    if status in _PASSING or status >= 500:
        return Fault(said, retry_after_s=_retry_after(headers))
    return Refused(said)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    given = headers.get("Retry-After") or headers.get("X-Retry-After") or ""
    try:
        if given.strip().isdecimal():
            return float(given)
        when = parsedate_to_datetime(given)
    except (ValueError, TypeError):
        return None
    # By the clock that the answer goes by: this machine's may be another.
    now = answered_at(headers.get("Date") or "")
    return max(0.0, (when - now).total_seconds()) if when.tzinfo else None
