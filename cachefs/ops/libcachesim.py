"""The policies and the bound of the library libcachesim, and the traces that it reads. It comes with the extra ``simulate``."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cachefs.core.errors import UsageError

POLICIES: Final = {
    "arc": "ARC",
    "belady": "Belady",
    "belady-size": "BeladySize",
    "cacheus": "Cacheus",
    "clock": "Clock",
    "fifo": "FIFO",
    "gdsf": "GDSF",
    "hyperbolic": "Hyperbolic",
    "lecar": "LeCaR",
    "lfu": "LFU",
    "lhd": "LHD",
    "lru": "LRU",
    "mq": "MQ",
    "s3fifo": "S3FIFO",
    "sieve": "Sieve",
    "size": "Size",
    "slru": "SLRU",
    "twoq": "TwoQ",
}
"""Those that bear files of different sizes. Left out: LIRS and W-TinyLFU, which in version 0.3.5 refuse a file that is larger
than their first hundredth of the cache, and LFUDA, which does not end."""
_REQUEST: Final = 24
"""Bytes of a request: time (4), object (8), size (4), when it comes again (8)."""


def is_installed() -> bool:
    """Whether the library can be used."""
    try:
        _library()
    except UsageError:
        return False
    return True


def hits(
    policy: str, limit: int, keys: "array[int]", sizes: "array[int]", next_uses: "array[int]"
) -> Iterator[bool]:
    """Yield for each open whether a cache of *limit* bytes has the file."""
    library = _library()
    count = max(16, max(keys, default=0) + 1)
    cache: Any = getattr(library, POLICIES[policy])(
        cache_size=limit, hashpower=min(24, count.bit_length() + 1)
    )
    request: Any = library.Request(valid=True)
    for at, (key, size, next_use) in enumerate(zip(keys, sizes, next_uses, strict=True)):
        if size > limit:  # it would say so on standard error, each time
            yield False
            continue
        request.obj_id = key + 1
        request.obj_size = max(1, size)  # it has no empty objects
        request.clock_time = at
        request.next_access_vtime = next_use
        yield bool(cache.get(request))


def oracle_requests(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield time in seconds, object and size of each request of a trace in the form ``oracleGeneral``.

    Raise ``OSError`` if there is no such file, ``UsageError`` if it cannot be one.
    """
    library = _library()
    size = path.stat().st_size
    # The library ends the process over some of these, and reads others to their last whole request.
    if not path.is_file() or not size or (path.suffix != ".zst" and size % _REQUEST):
        raise UsageError(
            f"{path} is no trace in the form oracleGeneral, which is requests of {_REQUEST} bytes — pass --format"
        )
    reader: Any = library.TraceReader(str(path), library.TraceType.ORACLE_GENERAL_TRACE)
    for request in reader:
        yield int(request.clock_time), int(request.obj_id), int(request.obj_size)


def _library() -> Any:  # noqa: ANN401 - untyped, and not always there
    try:
        import libcachesim
    except ImportError:
        raise UsageError(
            "this needs the library libcachesim — install it by pip install 'cachefs-mount[simulate]'"
        ) from None
    return libcachesim
