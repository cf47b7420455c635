"""Two listings side by side, as streams: what both have, what one lacks.

Stores list in the order of the bytes of the keys (UTF-8), which is not that of Python's strings where bytes that are
no UTF-8 travel as surrogates. Swift's directory markers, which the contract spells with a slash that Swift's own
order does not know, come a little too early: :func:`in_order` holds them back.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, TypeVar

from cachefs.core.errors import Fault
from cachefs.core.types import Listing, ObjectInfo

L = TypeVar("L")
R = TypeVar("R")
T = TypeVar("T")

_MOST_HELD: Final = 100_000
"""Markers held back at a time. Only what sorts between ``a`` and ``a/`` keeps one waiting."""


class OutOfOrder(Fault):
    """A listing is not sorted, so that nothing can be said of what it lacks."""


def byte_order(key: str) -> bytes:
    """Return by what keys are ordered."""
    return key.encode("utf-8", "surrogateescape")


def merged(
    left: Iterable[L],
    right: Iterable[R],
    *,
    left_key: Callable[[L], str],
    right_key: Callable[[R], str],
) -> Iterator[tuple[L | None, R | None]]:
    """Yield pairs of what has the same key on both sides; None where one side has nothing.

    Reads each side once, one thing ahead. Raise :class:`OutOfOrder` as soon as a side does not go on with a
    greater key: what was yielded before holds, and nothing is said of the rest.
    """
    lefts = _keyed(left, left_key, "here")
    rights = _keyed(right, right_key, "at the store")
    ours, theirs = next(lefts, None), next(rights, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and ours[0] < theirs[0]):
            assert ours is not None
            yield ours[1], None
            ours = next(lefts, None)
        elif ours is None or theirs[0] < ours[0]:
            yield None, theirs[1]
            theirs = next(rights, None)
        else:
            yield ours[1], theirs[1]
            ours, theirs = next(lefts, None), next(rights, None)


def _keyed(side: Iterable[T], key: Callable[[T], str], where: str) -> Iterator[tuple[bytes, T]]:
    last: bytes | None = None
    for each in side:
        own = byte_order(key(each))
        if last is not None and own <= last:
            raise OutOfOrder(
                f"the listing {where} is not sorted: {key(each)!a} follows {last!r}"
                " — what one side lacks cannot be told"
            )
        last = own
        yield own, each


def objects(pages: Iterable[Listing]) -> Iterator[ObjectInfo]:
    """Yield the objects of a deep listing, markers of directories included, in the order of their keys."""
    return in_order(chain.from_iterable(page.objects for page in pages))


def files(pages: Iterable[Listing]) -> Iterator[ObjectInfo]:
    """Yield the objects of a deep listing that are no markers of directories."""
    found = chain.from_iterable(page.objects for page in pages)
    return (info for info in found if not info.key.endswith("/"))


def in_order(listed: Iterable[ObjectInfo]) -> Iterator[ObjectInfo]:
    """Yield what a store lists with the markers of directories in their place: ``a``, ``a-b``, ``a/``, ``a/b``."""
    held: list[tuple[bytes, int, ObjectInfo]] = []
    for number, info in enumerate(listed):
        own = byte_order(info.key)
        heapq.heappush(held, (own, number, info))
        # Swift's own name of a marker has no slash: nothing that comes later is less than that.
        least = own.removesuffix(b"/")
        while held and held[0][0] <= least:
            yield heapq.heappop(held)[2]
        if len(held) > _MOST_HELD:
            raise OutOfOrder("the listing is not sorted: its directories come far too early")
    while held:
        yield heapq.heappop(held)[2]
