"""How far this machine's clock is from a store's, as the store's answers tell."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_TOLERATED_S = 300
"""S3 takes requests that are dated up to a quarter of an hour wrong; the answer may have been on its way for a while."""
_UNITS = (("year", 365 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60))


def difference_s(date: str, *, now_s: float) -> float | None:
    """Return by how much *now_s* is ahead of the *date* of an answer; None if that is no date."""
    try:
        said = parsedate_to_datetime(date)
    except (ValueError, TypeError):
        return None
    said = said if said.tzinfo else said.replace(tzinfo=UTC)
    return now_s - said.timestamp()


def explained(date: str, *, now_s: float) -> str:
    """Return what is wrong with this machine's clock, and what to do; nothing if it is right enough."""
    ahead_s = difference_s(date, now_s=now_s)
    if ahead_s is None or abs(ahead_s) < _TOLERATED_S:
        return ""
    where = "ahead of" if ahead_s > 0 else "behind"
    return f"this machine's clock is {_long(abs(ahead_s))} {where} the store's — set the time"


def answered_at(date: str) -> datetime:
    """Return when an answer was given by its *date*, or else by this machine's clock."""
    now = datetime.now(UTC)
    ahead_s = difference_s(date, now_s=now.timestamp())
    return now if ahead_s is None else datetime.fromtimestamp(now.timestamp() - ahead_s, UTC)


def _long(span_s: float) -> str:
    span_s = round(span_s / 60) * 60
    for number, (unit, length_s) in enumerate(_UNITS):
        count, rest_s = divmod(span_s, length_s)
        if count:
            below = _UNITS[number + 1 : number + 2]
            parts = [
                (int(count), unit),
                *((int(rest_s // each_s), each) for each, each_s in below),
            ]
            return " ".join(f"{n} {name}{'s' * (n != 1)}" for n, name in parts if n)
    return "no time"
