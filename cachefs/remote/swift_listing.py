"""Listings of one container, in pages, with Swift's markers in the contract's spelling."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from cachefs.core.errors import Fault, NoBucket, NotFound
from cachefs.core.types import Key, Listing, ObjectInfo
from cachefs.remote.pages import Pages
from cachefs.remote.swift_session import Session, quoted_path
from cachefs.remote.swift_values import Row, Version, prefix_of, row_of

_MOST_REMEMBERED = 100_000


class Lister:
    """The listings of one container. *head* looks one object up by its Swift name; None if it is not there."""

    def __init__(
        self,
        session: Session,
        container: str,
        head: Callable[[Key, str], Version | None],
        *,
        page_size: int,
        transfers: int,
    ) -> None:
        self._session = session
        self._container = container
        self._head = head
        self._page_size = page_size
        self._transfers = transfers
        self._empty: dict[tuple[str, int], None] = {}
        """Versions that look empty and are: not to be asked for again."""

    def pages(self, prefix: Key, *, deep: bool, is_exact: bool = True) -> Pages:
        """Return the pages of the listing of *prefix*. Unless *is_exact*, what looks empty is not asked about."""
        directories: set[Key] = set()  # one may turn up twice: by its marker, and by what is below
        markers: set[Key] = set()  # likewise: in Swift's spelling, and in S3's

        try:
            prefix.encode("utf-8")
        except UnicodeEncodeError:
            return Pages(lambda _: (Listing(), None))  # no name in Swift begins like that

        def fetch(after: str | None) -> tuple[Listing, str | None]:
            raws = self._rows(prefix, after, deep=deep)
            last = _name(raws[-1]) if len(raws) == self._page_size else None
            objects = [] if after is not None else self._own_marker(prefix)
            prefixes = [prefix_of(raw) for raw in raws if "subdir" in raw]
            rows = [row_of(raw) for raw in raws if "subdir" not in raw]
            if not deep:
                prefixes += [Key(f"{row.name}/") for row in rows if row.is_directory]
                rows = [row for row in rows if not row.is_directory]
            objects += self._true(rows) if is_exact else map(_shown_doubtful, rows)
            fresh: dict[Key, ObjectInfo] = {}
            for info in objects:
                if info.key not in markers:
                    fresh.setdefault(info.key, info)
            page = Listing(
                tuple(fresh.values()),
                tuple(key for key in sorted(set(prefixes)) if key not in directories),
            )
            directories.update(page.prefixes)
            markers.update(info.key for info in page.objects if info.key.endswith("/"))
            return page, last

        return Pages(fetch)

    def _rows(self, prefix: Key, after: str | None, *, deep: bool) -> list[dict[str, Any]]:
        query = {"format": "json", "limit": str(self._page_size), "prefix": prefix}
        if after is not None:
            query["marker"] = after
        if not deep:
            query["delimiter"] = "/"
        try:
            answer = self._session.ask(
                "GET", quoted_path(self._container), f"listing {prefix!r}", query=query
            )
        except NotFound:
            raise NoBucket(f"there is no container {self._container!r}") from None
        try:
            rows = answer.json() if answer.content else []
        except (ValueError, RecursionError):
            raise Fault("the listing is not JSON") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Fault("the listing is not what a listing is")
        return rows

    def _own_marker(self, prefix: Key) -> list[ObjectInfo]:
        """Return the marker of *prefix*, which lies beside what has the prefix and not among it."""
        stem = prefix.removesuffix("/")
        if not stem or stem.endswith("/"):
            return []
        version = self._head(prefix, stem)
        return [version.info] if version and version.is_directory else []

    def _true(self, rows: Iterable[Row]) -> list[ObjectInfo]:
        """Return the objects of *rows*; those that may only look empty as a HEAD shows them."""
        rows = list(rows)
        doubtful = [
            row
            for row in rows
            if row.may_be_manifest
            and not row.is_directory
            and (row.name, row.info.mtime_ns) not in self._empty
        ]
        found: dict[str, ObjectInfo] = {}
        if doubtful:
            with ThreadPoolExecutor(min(self._transfers, len(doubtful))) as pool:
                versions = pool.map(lambda row: self._head(Key(row.name), row.name), doubtful)
                for row, version in zip(doubtful, versions, strict=True):
                    if version is None or version.info.size == 0:
                        self._remember(row)
                    else:
                        found[row.name] = replace(version.info, content_type=None, meta=None)
        return [found.get(row.name) or _shown(row) for row in rows]

    def _remember(self, row: Row) -> None:
        self._empty[row.name, row.info.mtime_ns] = None
        while len(self._empty) > _MOST_REMEMBERED:
            self._empty.pop(next(iter(self._empty)), None)


def _shown(row: Row) -> ObjectInfo:
    key = Key(f"{row.name}/") if row.is_directory else Key(row.name)
    return replace(row.info, key=key)


def _shown_doubtful(row: Row) -> ObjectInfo:
    info = _shown(row)
    return replace(info, is_doubtful=row.may_be_manifest and not row.is_directory)


def _name(raw: Mapping[str, Any]) -> str:
    return str(raw.get("subdir") or raw.get("name"))
