"""The MD5s that are kept, and what the tables tell of the objects of each bucket.

Works on any connection to the tables: that of the daemon, or one of :mod:`cachefs.local.shared`.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from cachefs.core.known_md5 import BucketStats, How, KnownMd5
from cachefs.core.source import Source
from cachefs.core.types import ETag

_ROOT: Final = 1
_PAGE: Final = 500
_COLUMNS: Final = "remote, bucket, key, etag, size, md5, how, made_ns, updated_ns"
_KEEP: Final = (
    f"INSERT INTO md5s ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (bucket, key, remote) DO UPDATE SET"
    " made_ns = CASE WHEN etag = excluded.etag AND size = excluded.size THEN made_ns ELSE excluded.made_ns END,"
    " etag = excluded.etag, size = excluded.size, md5 = excluded.md5, how = excluded.how,"
    " updated_ns = excluded.updated_ns"
)
_BELOW: Final = (
    "WITH RECURSIVE tree(ino, depth) AS (SELECT ?, 0"
    " UNION ALL SELECT c.ino, depth + 1 FROM inodes c JOIN tree ON c.parent = tree.ino WHERE depth < 2048) "
)
_STORED: Final = "i.kind <> 'dir' AND i.etag IS NOT NULL AND i.parent IS NOT NULL"
_SUMS: Final = (
    "count(*), coalesce(sum(i.size), 0), coalesce(sum(i.is_md5), 0),"
    " min(nullif(i.checked_ns, 0)), max(nullif(i.checked_ns, 0))"
)


class Rows(Protocol):
    """What runs statements on the tables."""

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        ...

    def executemany(self, sql: str, rows: Sequence[Sequence[object]], /) -> None:
        """Run one statement for each of *rows*, all or none."""
        ...

    def one(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """Return the first row, or None."""
        ...

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return every row."""
        ...


class Md5s:
    """The table ``md5s``. Each call is one statement, or one transaction."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def keep(self, *found: KnownMd5) -> None:
        """Keep MD5s, each in the place of what is kept of another version of the object."""
        self._rows.executemany(_KEEP, [_row(each) for each in found])

    def find(self, bucket: str, key: str, *, remote: str | None = None) -> KnownMd5 | None:
        """Return what is kept of an object, of whatever version. *remote* None: of whichever store."""
        which, values = _which(remote)
        row = self._rows.one(
            f"SELECT {_COLUMNS} FROM md5s WHERE bucket = ? AND key = ?{which} ORDER BY remote LIMIT 1",
            (_raw(bucket), _raw(key), *values),
        )
        return None if row is None else _known(row)

    def remove(self, bucket: str, key: str, *, remote: str | None = None) -> int:
        """Forget what is kept of an object. Return how much that was."""
        which, values = _which(remote)
        sql = f"DELETE FROM md5s WHERE bucket = ? AND key = ?{which}"
        return self._rows.execute(sql, (_raw(bucket), _raw(key), *values)).rowcount

    def all_of(self, bucket: str) -> Iterator[KnownMd5]:
        """Yield all that is kept of a bucket, in the order of the bytes of the keys, a page at a time."""
        after, remote = b"", b""
        while rows := self._rows.all(
            f"SELECT {_COLUMNS} FROM md5s WHERE bucket = ? AND (key, remote) > (?, ?)"
            " ORDER BY key, remote LIMIT ?",
            (_raw(bucket), after, remote, _PAGE),
        ):
            yield from map(_known, rows)
            remote, after = rows[-1][0], rows[-1][2]

    def forget_some(
        self, bucket: str | None, *, remote: str | None = None, limit: int = _PAGE
    ) -> int:
        """Forget some of what is kept of a bucket (None: of every one). Return how many: none when nothing is left."""
        which, values = _which(remote)
        if bucket is not None:
            which, values = f" AND bucket = ?{which}", [_raw(bucket), *values]
        sql = (
            "DELETE FROM md5s WHERE (bucket, key, remote) IN"
            f" (SELECT bucket, key, remote FROM md5s WHERE 1{which} LIMIT ?)"
        )
        return self._rows.execute(sql, (*values, limit)).rowcount

    def buckets(self) -> list[tuple[str, str]]:
        """Return each remote and bucket of which anything is kept."""
        rows = self._rows.all("SELECT DISTINCT remote, bucket FROM md5s ORDER BY remote, bucket")
        return [(_text(remote), _text(bucket)) for remote, bucket in rows]

    def stats(self, remote: str, bucket: str) -> BucketStats:
        """Return what is kept of one bucket, where no other table tells of its objects."""
        row = self._rows.one(
            "SELECT count(*), coalesce(sum(size), 0), min(updated_ns), max(updated_ns) FROM md5s"
            " WHERE bucket = ? AND remote = ?",
            (_raw(bucket), _raw(remote)),
        )
        count, size, oldest, newest = row or (0, 0, None, None)
        return BucketStats(remote, bucket, count, size, count, 0, 0, oldest, newest)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the tables of a cache directory know of one object."""

    ino: int
    etag: ETag | None
    size: int
    is_md5: bool


class Census:
    """The objects that the tables of a cache directory know, as those of the buckets of *source*."""

    def __init__(self, rows: Rows, source: Source, *, remote: str) -> None:
        """*remote*: as the store is called in what is told."""
        self._rows = rows
        self._md5s = Md5s(rows)
        self._source = source
        self._remote = remote

    def seen(self, bucket: str, key: str) -> Seen | None:
        """Return what is known of the object at *key*, other than its MD5; None: nothing."""
        inner = self._source.inner(bucket, key)
        return None if inner is None else self._seen(inner, {})

    def _seen(self, inner: str, known: dict[str, int | None]) -> Seen | None:
        directory, _, component = inner.rpartition("/")
        parent = self._directory(directory, known) if "/" in inner else _ROOT
        row = None
        if parent is not None:
            row = self._rows.one(
                "SELECT ino, etag, size, is_md5 FROM inodes WHERE parent = ? AND component = ? AND kind <> 'dir'",
                (parent, _raw(component)),
            )
        return None if row is None else Seen(row[0], row[1], row[2], bool(row[3]))

    def _directory(self, path: str, known: dict[str, int | None]) -> int | None:
        """Return the inode of the directory at *path*; *known* holds those that were asked for lately."""
        if path in known:
            return known[path]
        if len(known) > _PAGE:
            known.clear()
        ino: int | None = _ROOT
        for component in path.split("/"):
            row = self._rows.one(
                "SELECT ino FROM inodes WHERE parent = ? AND component = ? AND kind = 'dir'",
                (ino, _raw(component)),
            )
            ino = None if row is None else int(row[0])
            if ino is None:
                break
        known[path] = ino
        return ino

    def buckets(self) -> list[str]:
        """Return the buckets of which anything is known."""
        named = [bucket for remote, bucket in self._md5s.buckets() if not remote]
        if self._source.bucket:
            return list(dict.fromkeys([self._source.bucket, *named]))
        rows = self._rows.all(
            "SELECT component FROM inodes WHERE parent = ? AND kind = 'dir' ORDER BY component",
            (_ROOT,),
        )
        return list(dict.fromkeys([*(_text(row[0]) for row in rows), *named]))

    def stats(self, bucket: str) -> BucketStats:
        """Return what is known of one bucket. Looks at every row: some seconds for a million."""
        told = self._of_inodes(bucket)
        known: dict[str, int | None] = {}
        objects, size, with_md5 = told.objects, told.size, told.with_md5
        moments = [told.oldest_ns, told.newest_ns]
        for each in self._md5s.all_of(bucket):
            inner = self._source.inner(bucket, each.key)
            seen = None if inner is None else self._seen(inner, known)
            if seen is None or seen.etag is None:
                objects, size, with_md5 = objects + 1, size + each.size, with_md5 + 1
                moments += [each.updated_ns]
            elif not seen.is_md5 and each.is_of(seen.etag, seen.size):
                with_md5 += 1
        moments = [each for each in moments if each is not None]
        return replace(
            told,
            objects=objects,
            size=size,
            with_md5=with_md5,
            oldest_ns=min(filter(None, moments), default=None),
            newest_ns=max(filter(None, moments), default=None),
        )

    def _of_inodes(self, bucket: str) -> BucketStats:
        top = self._top(bucket)
        row: tuple[Any, ...] | None = None
        cached: tuple[Any, ...] | None = None
        held = "SELECT count(*), coalesce(sum(e.cost), 0) FROM entries e JOIN inodes i ON i.ino = e.ino"
        is_here = "length(e.extents) > 0 AND i.parent IS NOT NULL"
        if top == _ROOT:
            row = self._rows.one(f"SELECT {_SUMS} FROM inodes i WHERE {_STORED}")
            cached = self._rows.one(f"{held} WHERE {is_here}")
        elif top is not None:
            within = "i.ino IN (SELECT ino FROM tree)"
            row = self._rows.one(
                f"{_BELOW} SELECT {_SUMS} FROM inodes i WHERE {_STORED} AND {within}", (top,)
            )
            cached = self._rows.one(f"{_BELOW} {held} WHERE {is_here} AND {within}", (top,))
        count, size, with_md5, oldest, newest = row or (0, 0, 0, None, None)
        files, cost = cached or (0, 0)
        return BucketStats(
            self._remote, bucket, count, size, with_md5, files, cost, oldest, newest
        )

    def _top(self, bucket: str) -> int | None:
        """Return the inode below which all of a bucket lies; None: nothing of it is known."""
        if self._source.bucket:
            return _ROOT if bucket == self._source.bucket else None
        return self._directory(bucket, {})


def _which(remote: str | None) -> tuple[str, list[object]]:
    """Return what restricts a question to one store, and the value that goes with it."""
    return ("", []) if remote is None else (" AND remote = ?", [_raw(remote)])


def _row(found: KnownMd5) -> tuple[object, ...]:
    return (
        _raw(found.remote),
        _raw(found.bucket),
        _raw(found.key),
        found.etag,
        found.size,
        found.md5,
        str(found.how),
        found.made_ns,
        found.updated_ns,
    )


def _known(row: tuple[Any, ...]) -> KnownMd5:
    remote, bucket, key, etag, size, md5, how, made_ns, updated_ns = row
    return KnownMd5(
        bucket=_text(bucket),
        key=_text(key),
        etag=ETag(etag),
        size=size,
        md5=md5,
        how=How(how),
        remote=_text(remote),
        made_ns=made_ns,
        updated_ns=updated_ns,
    )


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
