"""Times in the answers of S3, read without ceremony.

botocore has each of them guessed by dateutil, which takes a tenth of a millisecond, and fails in ways of its own.
"""

import re
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from botocore.utils import parse_timestamp

_OF_LISTINGS: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z", re.ASCII)
_OF_HEADERS: Final = re.compile(
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", re.ASCII
)


def moment(said: object) -> datetime:
    """Return the time that *said* tells, as botocore would.

    The two forms that S3 uses are read here; anything else is botocore's. Raise ``ValueError`` for what is none.
    """
    if isinstance(said, str):
        with suppress(ValueError):
            if _OF_LISTINGS.fullmatch(said):
                return datetime.fromisoformat(said)
            if _OF_HEADERS.fullmatch(said):
                return parsedate_to_datetime(said)
    try:
        found: datetime = parse_timestamp(said)
    except (
        RuntimeError,
        ArithmeticError,
        LookupError,
        TypeError,
    ) as error:  # dateutil, of what is no time
        raise ValueError(f"invalid timestamp: {said!a}") from error
    return found
