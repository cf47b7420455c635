"""Which bytes of a file are here: sorted, disjoint, half-open ranges."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """The bytes from ``start`` up to, not including, ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many bytes it spans."""
        return self.stop - self.start

    def overlaps(self, other: "Extent") -> bool:
        """Whether the two share at least one byte."""
        return self.start < other.stop and other.start < self.stop


class ExtentMap:
    """A set of byte positions, kept as merged extents.

    INVARIANT: extents are sorted, non-empty, and no two touch.
    """

    __slots__ = ("_starts", "_stops")

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for extent in extents:
            self.add(extent)

    def __iter__(self) -> Iterator[Extent]:
        return map(Extent, self._starts, self._stops)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExtentMap):
            return NotImplemented
        return self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"ExtentMap({list(self)!r})"

    def __len__(self) -> int:
        """Return the number of extents."""
        return len(self._starts)

    @property
    def total(self) -> int:
        """How many bytes are here."""
        return sum(self._stops) - sum(self._starts)

    def add(self, extent: Extent) -> None:
        """Count *extent* as here."""
        if extent.start >= extent.stop:
            return
        low = bisect_left(self._stops, extent.start)
        high = bisect_right(self._starts, extent.stop)
        start, stop = extent
        if low < high:
            start = min(start, self._starts[low])
            stop = max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def remove(self, extent: Extent) -> None:
        """Count *extent* as missing."""
        if extent.start >= extent.stop:
            return
        low = bisect_right(self._stops, extent.start)
        high = bisect_left(self._starts, extent.stop)
        if low >= high:
            return
        left, right = self._starts[low], self._stops[high - 1]
        rest = [
            piece
            for piece in (Extent(left, extent.start), Extent(extent.stop, right))
            if piece.start < piece.stop
        ]
        self._starts[low:high] = [piece.start for piece in rest]
        self._stops[low:high] = [piece.stop for piece in rest]

    def cut(self, size: int) -> None:
        """Forget every byte at or after *size*."""
        keep = bisect_left(self._starts, size)
        del self._starts[keep:], self._stops[keep:]
        if keep and self._stops[-1] > size:
            self._stops[-1] = size

    def covers(self, extent: Extent) -> bool:
        """Whether every byte of *extent* is here."""
        if extent.start >= extent.stop:
            return True
        at = bisect_right(self._starts, extent.start) - 1
        return at >= 0 and self._stops[at] >= extent.stop

    def missing(self, extent: Extent) -> list[Extent]:
        """Return the parts of *extent* that are not here, in order."""
        gaps: list[Extent] = []
        position = extent.start
        for at in range(bisect_right(self._stops, extent.start), len(self._starts)):
            if self._starts[at] >= extent.stop:
                break
            if self._starts[at] > position:
                gaps.append(Extent(position, self._starts[at]))
            position = max(position, self._stops[at])
        if position < extent.stop:
            gaps.append(Extent(position, extent.stop))
        return gaps

    def copy(self) -> "ExtentMap":
        """Return a map of its own with the same bytes."""
        twin = ExtentMap()
        twin._starts, twin._stops = self._starts.copy(), self._stops.copy()
        return twin

    def encode(self) -> bytes:
        """Return the form kept in the database: ``start-stop`` pairs in ASCII, comma-separated."""
        return ",".join(f"{start}-{stop}" for start, stop in self).encode()

    @classmethod
    def decode(cls, text: bytes) -> "ExtentMap":
        """Return the map that :meth:`encode` wrote. Raise ValueError if it did not."""
        here = cls()
        for pair in filter(None, text.decode("ascii").split(",")):
            start, stop = pair.split("-")
            here.add(Extent(int(start), int(stop)))
        return here
