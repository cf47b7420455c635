"""Traces of opens, read into memory as columns of numbers: some 40 bytes for each open, and 100 for each file."""

import csv
import gzip
import math
import random
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, TextIO

from cachefs.core.errors import UsageError
from cachefs.core.history import Accessed
from cachefs.core.traceline import HEADER

OWN: Final = HEADER.split(",")
"""The columns of our own traces."""
_NEEDED: Final = ("key", "size")
_DAY_NS: Final = 86_400 * 10**9
_LARGEST: Final = 2**62
NEVER: Final = 2**63 - 1
"""The place of what does not come again."""


class Format(StrEnum):
    """How a trace is written."""

    CACHEFS = "cachefs"
    CSV = "csv"
    ORACLE = "oracle"


@dataclass(slots=True)
class Trace:
    """Opens in the order of their times."""

    times_ns: "array[int]" = field(default_factory=lambda: array("q"))
    keys: "array[int]" = field(default_factory=lambda: array("q"))
    """Which file, as a number below ``files``."""
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    """Of the whole file."""
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    """What fetching the file took; NaN: nothing was fetched, or nobody said."""
    writes: bytearray = field(default_factory=bytearray)
    """1: it was opened to be changed."""
    files: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, time_ns: int, key: int, size: int, seconds: float, *, is_write: bool) -> None:
        """Take an open up."""
        self.times_ns.append(time_ns)
        self.keys.append(key)
        self.sizes.append(size)
        self.seconds.append(seconds)
        self.writes.append(is_write)

    def sort(self) -> None:
        """Bring the opens into the order of their times; those of one time stay in theirs."""
        times = self.times_ns
        if all(times[at] <= times[at + 1] for at in range(len(times) - 1)):
            return
        order = sorted(range(len(times)), key=times.__getitem__)
        self.times_ns = array("q", (self.times_ns[at] for at in order))
        self.keys = array("q", (self.keys[at] for at in order))
        self.sizes = array("q", (self.sizes[at] for at in order))
        self.seconds = array("d", (self.seconds[at] for at in order))
        self.writes = bytearray(self.writes[at] for at in order)

    def footprint(self) -> int:
        """Return the bytes of all files together, each at its largest."""
        largest = array("q", bytes(8 * self.files))
        for key, size in zip(self.keys, self.sizes, strict=True):
            largest[key] = max(largest[key], size)
        return sum(largest)

    def reads(self) -> tuple[int, int]:
        """Return the opens that read, and the bytes of what they opened."""
        sizes = [size for size, write in zip(self.sizes, self.writes, strict=True) if not write]
        return len(sizes), sum(sizes)

    def next_uses(self) -> "array[int]":
        """Return for each open the place of the next one of the same file; ``NEVER``: there is none."""
        following = array("q", [NEVER] * self.files)
        found = array("q", bytes(8 * len(self)))
        for at in range(len(self) - 1, -1, -1):
            key = self.keys[at]
            found[at] = following[key]
            following[key] = at
        return found


# ---- files ----------------------------------------------------------------------------------


def read(
    paths: Sequence[Path], *, form: Format | None, columns: Mapping[str, str] | None
) -> Trace:
    """Return the opens in *paths*, all of them together.

    *form*: how they are written; None: found out from the name and the beginning of each.
    *columns*: of CSV: ``time``, ``key``, ``size``, ``fetch_seconds`` and ``op``, each by its number, from 1, or by its
    name in the header. Raise ``UsageError``, which names the place, for what cannot be read.
    """
    trace, numbers = Trace(), _Numbers()
    for path in paths:
        try:
            _read_one(trace, numbers, path, form or _form_of(path), columns)
        except (OSError, EOFError, zlib.error) as error:  # the latter two: of what is compressed
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UsageError(
                f"the trace {path} cannot be read: {reason} — name a trace of opens"
            ) from None
    trace.files = len(numbers)
    if not len(trace):
        raise UsageError(f"there is no open in {' and '.join(map(str, paths))}")
    trace.sort()
    return trace


class _Numbers:
    """Numbers for names, in the order in which they are first seen."""

    def __init__(self) -> None:
        # Not the names: a hash of 64 bits is as good, and smaller.
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, name: str | int) -> int:
        """Return the number of *name*."""
        return self._known.setdefault(hash(name), len(self._known))


def _form_of(path: Path) -> Format:
    return Format.ORACLE if "oraclegeneral" in path.name.lower() else Format.CSV


def _read_one(
    trace: Trace,
    numbers: _Numbers,
    path: Path,
    form: Format,
    columns: Mapping[str, str] | None,
) -> None:
    if form is Format.ORACLE:
        from cachefs.ops.libcachesim import oracle_requests

        for time_s, key, size in oracle_requests(path):
            trace.add(time_s * 10**9, numbers.of(key), size, math.nan, is_write=False)
        return
    with _text(path) as stream:
        _read_csv(trace, numbers, stream, str(path), OWN if form is Format.CACHEFS else columns)


def _text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape", newline="")
    return path.open(encoding="utf-8", errors="surrogateescape", newline="")


def _read_csv(
    trace: Trace,
    numbers: _Numbers,
    stream: TextIO,
    name: str,
    columns: Mapping[str, str] | Sequence[str] | None,
) -> None:
    rows = csv.reader(stream)
    first = next(rows, None)
    if first is None:
        return
    if columns is None and first != OWN:
        raise UsageError(
            f"{name} does not begin as a trace of cachefs does — say where its columns are, for example"
            " --columns time=1,key=2,size=3"
        )
    wanted = columns if isinstance(columns, Mapping) else {each: each for each in OWN}
    places, has_header = _places(wanted, first, name)
    pending: Iterator[list[str]] = rows if has_header else _before(first, rows)
    try:
        for number, row in enumerate(pending, 2 if has_header else 1):
            if not row:
                continue
            try:
                _take(trace, numbers, row, places)
            except (ValueError, IndexError, OverflowError) as error:
                if first == OWN and next(pending, None) is None:
                    return  # cut off by a loss of power
                raise UsageError(
                    f"{name}, line {number} is no open: {error} — check --columns"
                ) from None
    except csv.Error as error:
        raise UsageError(f"{name} is no CSV: {error}") from None


def _before(first: list[str], rows: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from rows


def _places(
    columns: Mapping[str, str], first: list[str], name: str
) -> tuple[dict[str, int], bool]:
    """Return where each column is, and whether the first row only names them."""
    unknown = set(columns) - set(OWN)
    if unknown or not set(_NEEDED) <= set(columns):
        raise UsageError(
            f"--columns knows {', '.join(OWN)}, and needs key and size — for example time=1,key=2,size=3"
        )
    places: dict[str, int] = {}
    has_header = False
    for column, said in columns.items():
        if said.isascii() and said.isdigit() and 1 <= int(said) <= len(first):
            places[column] = int(said) - 1
        elif said in first:
            places[column] = first.index(said)
            has_header = True
        else:
            raise UsageError(f"{name} has no column {said!r} for {column} — check --columns")
    try:
        _whole(first[places["size"]])
    except ValueError:
        has_header = True
    return places, has_header


def _take(trace: Trace, numbers: _Numbers, row: list[str], places: Mapping[str, int]) -> None:
    said = {column: row[place] for column, place in places.items()}
    key = numbers.of(said["key"])
    time_s = float(said.get("time", len(trace)))
    if not abs(time_s) < 2**33:
        raise ValueError(f"its time {said['time']!r} is no number of seconds")
    seconds = float(said["fetch_seconds"]) if said.get("fetch_seconds") else 0.0
    trace.add(
        int(time_s * 1e9),
        key,
        _whole(said["size"]),
        seconds if 0 < seconds < math.inf else math.nan,
        is_write=said.get("op") in {"write", "w", "set", "put", "PUT", "WRITE"},
    )


def _whole(said: str) -> int:
    size = int(said)
    if not 0 <= size < _LARGEST:
        raise ValueError(f"its size {said!r} is no number of bytes")
    return size


# ---- what a cache remembers -----------------------------------------------------------------


def from_history(history: Iterable[Accessed]) -> Trace:
    """Return opens as they may have been: each file's of each day at random times of that day, always the same ones.

    The order within a day is not known. That is what is called the independent reference model, for a day at a time.
    """
    trace, chance = Trace(), random.Random(0)
    for each in history:
        key, trace.files = trace.files, trace.files + 1
        seconds = each.fetch_ns / 1e9 if each.fetch_ns else math.nan
        for day, opens in each.days.items():
            start_ns = int(datetime.fromordinal(day).timestamp()) * 10**9
            for _ in range(opens):
                time_ns = start_ns + chance.randrange(_DAY_NS)
                trace.add(time_ns, key, each.size, seconds, is_write=False)
    if not len(trace):
        raise UsageError(
            "the cache remembers no open of the last days — name a file that --trace wrote"
        )
    trace.sort()
    return trace
