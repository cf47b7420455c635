"""Listings of a directory tree: sorted as keys, a page at a time, what lies at odd spots in its right place."""

import heapq
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

from cachefs.core.types import Key, Listing, ObjectInfo
from cachefs.remote.file_names import HIDDEN, ODD, odd_key, order, parts_of, text
from cachefs.remote.file_records import Records, describe
from cachefs.remote.file_tree import Tree, is_absent, translating
from cachefs.remote.pages import Pages

PAGE = 1000

Item = tuple[Key, ObjectInfo | None]
"""A key and its object; None: a prefix below which more lies."""


class Lister:
    """The listings of one tree."""

    def __init__(self, tree: Tree, records: Records) -> None:
        self._tree = tree
        self._records = records

    def pages(self, prefix: Key, *, deep: bool) -> Pages:
        """Return the pages of the listing of *prefix*.

        Names are read once; a page that failed is asked for again from the last key that was shown.
        """
        state: tuple[str | None, Iterator[Item]] | None = None

        def fetch(after: str | None) -> tuple[Listing, str | None]:
            nonlocal state
            items = state[1] if state and state[0] == after else self._items(prefix, deep, after)
            state = None
            with translating(f"listing {prefix!r}"):
                page = list(islice(items, PAGE))
            last = page[-1][0] if len(page) == PAGE else None
            state = (last, items)
            return _listing(page), last

        return Pages(fetch)

    def _items(self, prefix: Key, deep: bool, after: str | None) -> Iterator[Item]:
        parts = () if not prefix else parts_of(prefix.removesuffix("/"))
        plain = iter(()) if parts is None else self._below(parts, prefix, deep, after)
        odd = self._odd(prefix, deep)
        shown: str | None = after
        for item in heapq.merge(plain, odd, key=lambda item: order(item[0])):
            if shown is None or order(item[0]) > order(shown):  # the preferred spot comes first
                shown = item[0]
                yield item

    def _below(
        self, parts: tuple[bytes, ...], prefix: Key, deep: bool, after: str | None
    ) -> Iterator[Item]:
        try:
            with self._tree.directory(parts) as fd:
                names = sorted(_names(fd, hide=not parts))
                marker = self._marker(fd, prefix) if parts else None
        except OSError as error:
            if is_absent(error):
                return
            raise
        if marker:
            yield prefix, marker
        wanted = iter([name for name in names if _is_wanted(prefix + text(name), after)])
        while batch := list(islice(wanted, PAGE)):
            for name, info in self._look(parts, prefix, batch):
                if info is None and deep:
                    inner = Key(prefix + text(name))
                    yield from self._below((*parts, name[:-1]), inner, deep, after)
                else:
                    yield Key(prefix + text(name)), info

    def _look(
        self, parts: tuple[bytes, ...], prefix: Key, batch: list[bytes]
    ) -> Iterator[tuple[bytes, ObjectInfo | None]]:
        found: list[tuple[bytes, ObjectInfo | None]] = []
        with self._tree.directory(parts) as fd, self._records.beside() as beside:
            for name in batch:
                if name.endswith(b"/"):
                    found.append((name, None))
                elif info := self._info(fd, name, Key(prefix + text(name)), beside):
                    found.append((name, info))
        return iter(found)

    def _marker(self, fd: int, key: Key) -> ObjectInfo | None:
        record = self._records.read(fd, key)
        if record is not None and record.is_implicit:
            return None
        return describe(key, os.fstat(fd), record)

    def _info(self, fd: int, name: bytes, key: Key, beside: int | None) -> ObjectInfo | None:
        """Return the object at *name*; None if it is gone by now, or is no object (a socket, a pipe).

        Without its metadata if it changes just now: a HEAD will tell.
        """
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                return None
            with suppress(OSError):
                record = self._records.glance(fd, name, found.st_ino, key, beside)
                if _version(os.stat(name, dir_fd=fd, follow_symlinks=False)) == _version(found):
                    return describe(key, found, record)
        except FileNotFoundError:
            return None
        return replace(describe(key, found, None), content_type=None, meta=None)

    def _odd(self, prefix: Key, deep: bool) -> Iterator[Item]:
        found: dict[Key, ObjectInfo | None] = {}
        for key, info in self._odd_objects(()):
            if not key.startswith(prefix):
                continue
            slash = -1 if deep else key.find("/", len(prefix))
            if slash < 0:
                found[key] = info
            else:
                found.setdefault(Key(key[: slash + 1]), None)
        return iter(sorted(found.items(), key=lambda item: order(item[0])))

    def _odd_objects(self, pieces: tuple[bytes, ...]) -> Iterator[tuple[Key, ObjectInfo]]:
        try:
            with self._tree.directory((*ODD, *pieces)) as fd, self._records.beside() as beside:
                names = _names(fd)
                found = [
                    (key, info)
                    for name in names
                    if not name.endswith(b"/")
                    and (key := odd_key((*pieces, name)))
                    and (info := self._info(fd, name, key, beside))
                ]
        except OSError as error:
            if is_absent(error):
                return
            raise
        yield from found
        for name in names:
            if name.endswith(b"/"):
                yield from self._odd_objects((*pieces, name[:-1]))


def _names(fd: int, *, hide: bool = False) -> list[bytes]:
    """Return the names in a directory, those of directories with a slash, as it stands in keys."""
    with os.scandir(fd) as entries:
        return [
            name + b"/" if entry.is_dir(follow_symlinks=False) else name
            for entry in entries
            if (name := os.fsencode(entry.name)) != HIDDEN or not hide
        ]


def _version(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _is_wanted(key: str, after: str | None) -> bool:
    """Whether *key*, or (a directory's) any key below it, comes after *after*."""
    if after is None or order(key) > order(after):
        return True
    return key.endswith("/") and after.startswith(key)


def _listing(page: list[Item]) -> Listing:
    return Listing(
        objects=tuple(info for _, info in page if info is not None),
        prefixes=tuple(key for key, info in page if info is None),
    )
