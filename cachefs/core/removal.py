"""Which files a cloud manager removes from its storage to make room, and in which order."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Final

FITS: Final = Fraction(9, 10)
"""The share of the capacity that one file may take."""


def fits(size: int, capacity: int) -> bool:
    """Whether a file of *size* bytes may be stored at all where there is room for *capacity*."""
    return size <= capacity * FITS


def choose_removals(removable: Iterable[tuple[str, int]], needed: int) -> list[str] | None:
    """Return the names of the files to remove so that *needed* bytes are free: the fewest, and no larger than need be.

    *removable* are names and sizes. First come those that are as large as what is needed, the smallest of them first,
    so that one is enough; if there is none the smaller ones, the largest first. Files of one size go by their names.
    None: all of them together are not enough, and nothing is to be removed.
    """
    if needed <= 0:
        return []
    files = sorted(((size, name) for name, size in removable if size > 0), key=lambda each: each)
    large = next((name for size, name in files if size >= needed), None)
    if large is not None:
        return [large]
    chosen: list[str] = []
    for size, name in sorted(files, key=lambda each: (-each[0], each[1])):
        chosen.append(name)
        needed -= size
        if needed <= 0:
            return chosen
    return None
