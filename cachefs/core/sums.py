"""Checksums of the pieces of a cache file, by which bytes that rotted on its disk are told from good ones.

CRC-32 (zlib's): a guard against decay, not against malice, and six times as fast as any digest.
"""

import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

from cachefs.core.extents import Extent

PIECE: Final = 2**20
"""Pieces are cut where they reach a multiple of this many bytes: what is read to check one byte."""
_ROW: Final = struct.Struct("<QQI")


class PieceSums:
    """Which pieces are known, and the sum of each.

    INVARIANT: pieces are sorted, non-empty, and no two overlap.
    """

    __slots__ = ("_pieces", "_sums")

    def __init__(self) -> None:
        self._pieces: list[Extent] = []
        self._sums: list[int] = []

    def __iter__(self) -> Iterator[tuple[Extent, int]]:
        return iter(zip(self._pieces, self._sums, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PieceSums):
            return NotImplemented
        return self._pieces == other._pieces and self._sums == other._sums

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self._pieces)

    def add(self, piece: Extent, total: int) -> None:
        """Know *total* as the sum of *piece*; what was known of any part of it is forgotten."""
        if piece.start >= piece.stop:
            return
        at = self.forget(piece)
        self._pieces.insert(at, piece)
        self._sums.insert(at, total)

    def forget(self, extent: Extent) -> int:
        """Forget every piece that shares a byte with *extent*. Return where a piece there would stand."""
        low = bisect_right(self._pieces, extent.start, key=lambda piece: piece.stop)
        high = bisect_left(self._pieces, extent.stop, key=lambda piece: piece.start)
        if low < high:
            del self._pieces[low:high], self._sums[low:high]
        return low

    def clear(self) -> None:
        """Forget everything."""
        self._pieces.clear()
        self._sums.clear()

    def over(self, extent: Extent) -> list[tuple[Extent, int]]:
        """Return the pieces that share a byte with *extent*, in order."""
        low = bisect_right(self._pieces, extent.start, key=lambda piece: piece.stop)
        high = bisect_left(self._pieces, extent.stop, key=lambda piece: piece.start)
        return list(zip(self._pieces[low:high], self._sums[low:high], strict=True))

    @property
    def check(self) -> int:
        """One sum over all: equal for files that are equal, piece by piece."""
        return zlib.crc32(self.encode())

    def encode(self) -> bytes:
        """Return the form kept in the database: start, stop and sum of each piece, little-endian."""
        return b"".join(_ROW.pack(piece.start, piece.stop, total) for piece, total in self)

    @classmethod
    def decode(cls, raw: bytes) -> "PieceSums":
        """Return what :meth:`encode` wrote. Raise ValueError if it did not."""
        known = cls()
        try:
            rows = list(_ROW.iter_unpack(raw))
        except struct.error as error:
            raise ValueError(f"not a table of sums: {error}") from error
        end = 0
        for start, stop, _ in rows:
            if not end <= start < stop:
                raise ValueError("not a table of sums: pieces out of order")
            end = stop
        known._pieces = [Extent(start, stop) for start, stop, _ in rows]
        known._sums = [total for _, _, total in rows]
        return known


class Summing:
    """Sums bytes that come in order, from *start* on, and cuts them into pieces."""

    def __init__(self, start: int) -> None:
        self._start = self._position = start
        self._sum = 0

    def take(self, data: memoryview) -> list[tuple[Extent, int]]:
        """Take the next bytes. Return the pieces that they complete."""
        done: list[tuple[Extent, int]] = []
        while data:
            until = (self._position // PIECE + 1) * PIECE
            part, data = data[: until - self._position], data[until - self._position :]
            self._sum = zlib.crc32(part, self._sum)
            self._position += len(part)
            if self._position == until:
                done += self.rest()
        return done

    def rest(self) -> list[tuple[Extent, int]]:
        """Return the piece that is begun, if any, as it stands."""
        piece, total = Extent(self._start, self._position), self._sum
        self._start, self._sum = self._position, 0
        return [(piece, total)] if piece.length else []
