"""One line of a trace of opens: what ``--trace`` writes, and ``simulate`` and libcachesim read.

CSV with a header and without quotes: whatever in a key is neither a letter, a digit nor one of ``/-._~`` is written as
``%XX``, as in a URL, so that every key is one field of one line.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

HEADER: Final = "time,key,size,hit,fetch_seconds,op"
"""The columns' names, in their order."""


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One open of a file, as it was seen when its handle was given back."""

    time_ns: int
    """When it was opened, since the epoch."""
    key: str
    """Of the object; bytes that are no UTF-8 as surrogates."""
    size: int
    """Bytes of the whole file."""
    is_hit: bool
    """Every byte was in the cache when it was opened."""
    fetch_ns: int
    """How long requests took, while it was open, to bring bytes of it; those side by side counted once."""
    is_write: bool
    """It was opened to be changed: how much of it was wanted is not known."""

    def encode(self) -> str:
        """Return the line, without its end."""
        key = quote(self.key.encode("utf-8", "surrogateescape"))
        seconds, rest = divmod(self.time_ns, 10**9)
        return (
            f"{seconds}.{rest // 1000:06},{key},{self.size},{int(self.is_hit)},"
            f"{self.fetch_ns / 1e9:.6f},{'write' if self.is_write else 'read'}"
        )
