"""The tree as the store last showed it, and as this mount changed it since. The only issuer of inode numbers."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cachefs.core import metadata
from cachefs.core.keys import MARK, last_component, name_of
from cachefs.core.types import ETag, Ino, Key, Kind, Listing, Name, ObjectInfo
from cachefs.local.db import Database

ROOT: Final = Ino(1)
LAST: Final = 2**63 - 1
"""No inode has a higher number."""
_PINS: Final = "pins"
_REMOVED_KEPT: Final = 4096
"""So many removals are remembered without a look at which of them nobody needs any more."""
_LONGEST_LOOK_NS: Final = 1000 * 10**9
"""Longer takes no look at the store but a listing, which says so itself."""
_AT_ONCE: Final = 256
"""How many names one question to the database asks for."""
_STEP: Final = 4096
"""How many names one step of a long work looks at."""
_SLOP_NS: Final = 2 * 10**9
"""By how much a store's answer to a write and its listings may differ on when that was."""
_SECOND_NS: Final = 10**9
"""How exactly every answer of a store says when it took something in."""

DEEPEST: Final = 2048
"""No key has so many components: what seems to lie deeper lies in a circle, and the table is damaged."""

_TREE: Final = (
    "WITH RECURSIVE tree(ino, depth) AS (SELECT ?, 0"
    " UNION ALL SELECT c.ino, depth + 1 FROM inodes c JOIN tree ON c.parent = tree.ino"
    f" WHERE depth < {DEEPEST})"
)
_SEEN_COLUMNS: Final = (
    "atime_ns", "mtime_ns", "ctime_ns", "mode", "uid", "gid", "etag", "content_type", "meta", "stored_ns", "is_md5"
)  # fmt: skip
_INSERT_SEEN: Final = (
    "INSERT INTO inodes (parent, name, component, kind, size, checked_ns, pinned,"
    f" {', '.join(_SEEN_COLUMNS)}) VALUES ({', '.join('?' * (7 + len(_SEEN_COLUMNS)))})"
)
_TOUCH: Final = "UPDATE inodes SET checked_ns = ? WHERE ino = ?"
_UNNAME: Final = "UPDATE inodes SET parent = NULL, name = NULL, pinned = 0 WHERE ino = ?"
_COLUMNS: Final = (
    "ino, parent, name, component, kind, size, mode, uid, gid, atime_ns, mtime_ns, ctime_ns,"
    " etag, content_type, meta, stored_ns, checked_ns, listed_ns, pinned, is_md5"
)


@dataclass(frozen=True, slots=True)
class Inode:
    """One row of the tree. ``mode``, ``uid`` and ``gid`` are None where the store does not say."""

    ino: Ino
    parent: Ino | None
    name: Name | None
    component: str
    kind: Kind
    size: int
    mode: int | None
    uid: int | None
    gid: int | None
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    etag: ETag | None
    content_type: str | None
    meta_json: str | None
    """All user metadata of the version ``etag``, as JSON; None: only a listing was seen."""
    stored_ns: int | None
    """When the store took that version in; None: it did not say."""
    checked_ns: int
    listed_ns: int | None
    pinned: int
    """1: the operator wants the file kept here, cached or not."""
    is_md5: int
    """1: the version ``etag`` is named by its MD5, by the store's word."""

    @property
    def meta(self) -> Mapping[str, str] | None:
        """All user metadata of the version ``etag``; None: only a listing was seen."""
        found: dict[str, str] | None = (
            None if self.meta_json is None else json.loads(self.meta_json)
        )
        return found

    @property
    def is_pinned(self) -> bool:
        """Whether the operator wants it kept here."""
        return bool(self.pinned)

    @property
    def carries_posix(self) -> bool:
        """Whether its object's metadata told of an owner or a mode, when it was last asked for."""
        return not (self.mode is None and self.uid is None and self.gid is None)

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.kind is Kind.DIR


@dataclass(slots=True)
class Difference:
    """What a listing changed, so that the kernel can be told."""

    changed: list[tuple[Ino, Name]] = field(default_factory=list)
    """Parent and name of entries that are gone or stand for something else."""
    appeared: list[tuple[Ino, Name]] = field(default_factory=list)
    """Parent and name of entries that nothing was known of."""
    altered: list[Ino] = field(default_factory=list)
    """Inodes that are what they were, with other attributes."""
    freed: list[Ino] = field(default_factory=list)
    """Inodes whose cached bytes no longer have a name or a version at the store."""
    has_pinned: bool = False
    """Among what appeared or is another version now are files that the operator has pinned."""

    def add(self, other: "Difference") -> None:
        """Take over what *other* has."""
        self.changed += other.changed
        self.appeared += other.appeared
        self.altered += other.altered
        self.freed += other.freed
        self.has_pinned |= other.has_pinned


def _to_text(component: bytes) -> str:
    return component.decode("utf-8", "surrogateescape")


def _to_bytes(component: str) -> bytes:
    return component.encode("utf-8", "surrogateescape")


_KINDS: Final = {str(kind): kind for kind in Kind}


def _inode(row: tuple[Any, ...]) -> Inode:
    """Return the inode of a row of ``_COLUMNS``. Runs for each entry of a listing, hence by position."""
    (ino, parent, name, component, kind), rest = row[:5], row[5:]
    return Inode(ino, parent, name, _to_text(component), _KINDS[kind], *rest)


def _posix_columns(info: ObjectInfo) -> dict[str, object]:
    """Return the columns that depend on the metadata of *info*."""
    posix = metadata.decode(info.meta or {}, info.content_type)
    mtime_ns = info.mtime_ns if posix.mtime_ns is None else posix.mtime_ns
    return {
        "mode": posix.mode,
        "uid": posix.uid,
        "gid": posix.gid,
        "mtime_ns": mtime_ns,
        "atime_ns": mtime_ns if posix.atime_ns is None else posix.atime_ns,
        "ctime_ns": info.mtime_ns if posix.ctime_ns is None else posix.ctime_ns,
        "etag": info.etag,
        "content_type": info.content_type,
        "meta": None if info.meta is None else json.dumps(dict(info.meta)),
        "stored_ns": info.mtime_ns or None,
        "is_md5": int(info.is_md5),
    }


def _kind_of(info: ObjectInfo) -> Kind:
    if info.key.endswith("/"):
        return Kind.DIR
    if info.meta is None and info.content_type is None:
        return Kind.FILE
    return metadata.decode(info.meta or {}, info.content_type).kind


def _size_of(info: ObjectInfo, kind: Kind) -> int:
    """Return what ``stat`` shows as the size: that of a symbolic link is its target's."""
    if kind is Kind.FILE:
        return info.size
    if kind is not Kind.SYMLINK:
        return 0
    target = metadata.decode(info.meta or {}, info.content_type).target
    return info.size if target is None else len(target)


class InodeTable:
    """Every inode that this cache directory has seen, and still believes in.

    INVARIANT: an inode number is issued once; it is never reused, even across restarts.
    INVARIANT: every inode but the root has a parent and a name, or neither (unlinked while open).
    """

    def __init__(self, db: Database, *, is_dirty: Callable[[Ino], bool]) -> None:
        """*is_dirty* answers whether an inode has bytes promised to the store; such a row outlives any listing."""
        self._db = db
        self._is_dirty = is_dirty
        self._removed: dict[tuple[Ino, str, bool], int] = {}
        self._removed_most = _REMOVED_KEPT
        self._looks: list[int] = []
        self._making: set[Ino] = set()
        self._names_pinned = {(Ino(p), c) for p, c in json.loads(db.get_meta(_PINS) or "[]")}

    def make_root(self, now_ns: int) -> None:
        """Make sure that the root exists."""
        self._db.execute(
            "INSERT OR IGNORE INTO inodes (ino, component, kind, size, atime_ns, mtime_ns, ctime_ns, checked_ns)"
            " VALUES (1, x'', 'dir', 0, ?, ?, ?, ?)",
            (now_ns, now_ns, now_ns, now_ns),
        )

    def get(self, ino: Ino) -> Inode | None:
        """Return the inode, or None if it is gone for good."""
        row = self._db.one(f"SELECT {_COLUMNS} FROM inodes WHERE ino = ?", (ino,))
        return None if row is None else _inode(row)

    def child(self, parent: Ino, name: Name) -> Inode | None:
        """Return what is known under *name*, fresh or not."""
        row = self._db.one(
            f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND name = ?", (parent, bytes(name))
        )
        return None if row is None else _inode(row)

    def children(
        self, parent: Ino, *, after: int = 0, limit: int = 500, up_to: int = LAST
    ) -> list[Inode]:
        """Return children in order of their numbers, from the first one above *after*, none above *up_to*."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND ino > ? AND ino <= ? ORDER BY ino LIMIT ?",
            (parent, after, up_to, limit),
        )
        return [_inode(row) for row in rows]

    def directories(self, parent: Ino, *, after: int, limit: int) -> list[Inode]:
        """Return the first directories among the *limit* children that follow *after*."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM (SELECT * FROM inodes WHERE parent = ? AND ino > ? ORDER BY ino LIMIT ?)"
            " WHERE kind = 'dir' ORDER BY ino",
            (parent, after, limit),
        )
        return [_inode(row) for row in rows]

    def nth_last(self, parent: Ino, after: int, count: int, *, up_to: int = LAST) -> Ino | None:
        """Return the last of the first *count* children above *after* and not above *up_to*; None: there is none."""
        row = self._db.one(
            "SELECT max(ino) FROM (SELECT ino FROM inodes WHERE parent = ? AND ino > ? AND ino <= ?"
            " ORDER BY ino LIMIT ?)",
            (parent, after, up_to, count),
        )
        return None if row is None or row[0] is None else Ino(row[0])

    def count_children(self, parent: Ino, after: int, up_to: int) -> int:
        """Return how many children have numbers above *after* and not above *up_to*."""
        row = self._db.one(
            "SELECT count(*) FROM inodes WHERE parent = ? AND ino > ? AND ino <= ?",
            (parent, after, up_to),
        )
        return int(row[0]) if row else 0

    def last_child(self, parent: Ino) -> int:
        """Return the highest number of a child, 0 if there is none."""
        row = self._db.one("SELECT max(ino) FROM inodes WHERE parent = ?", (parent,))
        return 0 if row is None or row[0] is None else int(row[0])

    def undescribed(
        self,
        parent: Ino,
        *,
        dirs: bool,
        after: int = 0,
        up_to: int = LAST,
        limit: int = -1,
        only_posix: bool = False,
    ) -> list[Inode]:
        """Return the children (directories, or all others) whose metadata no answer of the store has told yet.

        Those whose numbers lie above *after* and not above *up_to*, in order. *only_posix*: those whose metadata told
        of an owner or a mode when it was last asked for.
        """
        posix = " AND NOT (mode IS NULL AND uid IS NULL AND gid IS NULL)" if only_posix else ""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND ino > ? AND ino <= ? AND meta IS NULL"
            f" AND (kind = 'dir') = ?{posix} ORDER BY ino LIMIT ?",
            (parent, after, up_to, dirs, limit),
        )
        return [_inode(row) for row in rows]

    def first_unseen(self, parent: Ino, *, after: int, seen_from_ns: int) -> Inode | None:
        """Return the first child above *after* that the store has not confirmed since *seen_from_ns*.

        What is promised, or being made, needs no confirmation. An object that gave its name to a directory beside it
        is unseen as long as that is: without it, it would have another name.
        """
        while True:
            row = self._db.one(
                f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND ino > ?"
                " AND (checked_ns < ? OR (kind <> 'dir' AND instr(name, ?))) ORDER BY ino LIMIT 1",
                (parent, after, seen_from_ns, MARK.encode()),
            )
            if row is None:
                return None
            inode = _inode(row)
            if not self._is_seen(inode, seen_from_ns):
                return inode
            after = inode.ino

    def _is_seen(self, inode: Inode, seen_from_ns: int) -> bool:
        if inode.checked_ns < seen_from_ns:
            return self.is_dirty(inode.ino)
        if inode.is_dir or inode.name != name_of(inode.component, shadowed=True):
            return True
        assert inode.parent is not None
        beside = self.child(inode.parent, name_of(inode.component))
        return beside is not None and (
            beside.checked_ns >= seen_from_ns or self.is_dirty(beside.ino)
        )

    def lowest(self, parent: Ino, components: Collection[str]) -> Ino | None:
        """Return the lowest number of an object that shows one of *components*; None: none of them does."""
        marks = ", ".join("?" * len(components))
        row = self._db.one(
            f"SELECT min(ino) FROM inodes WHERE parent = ? AND component IN ({marks}) AND kind <> 'dir'",
            (parent, *map(_to_bytes, components)),
        )
        return None if row is None or row[0] is None else Ino(row[0])

    def has_children(self, parent: Ino) -> bool:
        """Whether any child is known."""
        return self._db.one("SELECT 1 FROM inodes WHERE parent = ? LIMIT 1", (parent,)) is not None

    def below(self, ino: Ino) -> list[Inode]:
        """Return every known inode below *ino*, parents before their children."""
        columns = ", ".join(f"i.{column.strip()}" for column in _COLUMNS.split(","))
        rows = self._db.all(
            f"WITH RECURSIVE tree(ino, depth) AS ("
            f" SELECT ino, 1 FROM inodes WHERE parent = ?"
            f" UNION ALL SELECT c.ino, depth + 1 FROM inodes c JOIN tree ON c.parent = tree.ino"
            f" WHERE depth < {DEEPEST})"
            f" SELECT {columns} FROM tree JOIN inodes i ON i.ino = tree.ino ORDER BY depth, i.ino",
            (ino,),
        )
        return [_inode(row) for row in rows]

    def key_of(self, ino: Ino) -> Key | None:
        """Return the object key (of a directory: its prefix), or None if it has no name any more."""
        parts: list[str] = []
        kind: str | None = None
        while ino != ROOT:
            if len(parts) > DEEPEST:
                return None
            row = self._db.one("SELECT parent, component, kind FROM inodes WHERE ino = ?", (ino,))
            if row is None or row[0] is None:
                return None
            kind = kind or row[2]
            parts.append(_to_text(row[1]))
            ino = row[0]
        key = "/".join(reversed(parts))
        return Key(f"{key}/" if kind == "dir" else key)

    def path_of(self, ino: Ino) -> bytes | None:
        """Return the path below the mountpoint, as the kernel spells it, or None if it has no name."""
        parts: list[bytes] = []
        while ino != ROOT:
            if len(parts) > DEEPEST:
                return None
            row = self._db.one("SELECT parent, name FROM inodes WHERE ino = ?", (ino,))
            if row is None or row[0] is None:
                return None
            parts.append(row[1])
            ino = row[0]
        return b"/".join(reversed(parts))

    def find(self, key: Key) -> Inode | None:
        """Return the known inode of the object (or, with a trailing slash, the directory) at *key*."""
        inode = self.get(ROOT)
        components = key.removesuffix("/").split("/") if key else []
        for depth, component in enumerate(components, 1):
            wants_dir = depth < len(components) or key.endswith("/")
            if inode is None:
                return None
            row = self._db.one(
                f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND component = ?"
                f" AND (kind = 'dir') = ?",
                (inode.ino, _to_bytes(component), wants_dir),
            )
            inode = None if row is None else _inode(row)
        return inode

    def has_component(self, inode: Inode) -> bool:
        """Whether the inode is found by its part of the key."""
        sql = (
            "SELECT 1 FROM inodes INDEXED BY inodes_by_component"
            " WHERE parent = ? AND component = ? AND ino = ?"
        )
        found = self._db.one(sql, (inode.parent, _to_bytes(inode.component), inode.ino))
        return found is not None

    def distrust_future(self, now_ns: int) -> None:
        """Have asked again what a clock that was ahead says was asked for after *now_ns*."""
        for column in ("checked_ns", "listed_ns"):
            self._db.execute(f"UPDATE inodes SET {column} = 0 WHERE {column} > ?", (now_ns,))

    # ---- changes made here ------------------------------------------------------------------

    def mint(
        self,
        parent: Ino,
        name: Name,
        component: str,
        kind: Kind,
        *,
        now_ns: int,
        mode: int,
        uid: int,
        gid: int,
        size: int = 0,
        wall_ns: int | None = None,
    ) -> Inode:
        """Make an inode for something new of ours, not yet stored, with the times *wall_ns*. The name must be free.

        Until :meth:`made` is called no listing can take it away, for the store knows nothing of it.
        """
        made = self._insert_own(
            (parent, bytes(name), _to_bytes(component), str(kind), size, mode, uid, gid),
            now_ns=now_ns,
            wall_ns=now_ns if wall_ns is None else wall_ns,
            listed_ns=now_ns if kind is Kind.DIR else None,
        )
        self._making.add(made.ino)
        self._db.if_undone(lambda: self._making.discard(made.ino))
        self.forget_removed(made)
        return made

    def mint_nameless(
        self, component: str, *, now_ns: int, wall_ns: int, mode: int, uid: int, gid: int
    ) -> Inode:
        """Make an inode for a file that :meth:`move` is to give a name; until then it is as one that was unlinked."""
        return self._insert_own(
            (None, None, _to_bytes(component), str(Kind.FILE), 0, mode, uid, gid),
            now_ns=now_ns,
            wall_ns=wall_ns,
            listed_ns=None,
        )

    def _insert_own(
        self, row: tuple[object, ...], *, now_ns: int, wall_ns: int, listed_ns: int | None
    ) -> Inode:
        cursor = self._db.execute(
            "INSERT INTO inodes (parent, name, component, kind, size, mode, uid, gid, atime_ns, mtime_ns,"
            " ctime_ns, meta, checked_ns, listed_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '{}', ?, ?)",
            (*row, wall_ns, wall_ns, wall_ns, now_ns, listed_ns),
        )
        made = self.get(Ino(cursor.lastrowid or 0))
        assert made is not None
        return made

    def made(self, ino: Ino) -> None:
        """Note that what was minted is promised or stored, or that nothing will come of it."""
        self._making.discard(ino)

    @property
    def is_making(self) -> bool:
        """Whether anything is minted of which nobody knows what will come of it."""
        return bool(self._making)

    def update(self, ino: Ino, **columns: object) -> None:
        """Set columns of one row (``meta`` as a mapping)."""
        if "etag" in columns:
            columns.setdefault("stored_ns", None)
            columns.setdefault("is_md5", 0)
        if "meta" in columns and columns["meta"] is not None:
            columns["meta"] = json.dumps(dict(columns["meta"]))  # type: ignore[call-overload]
        names = ", ".join(f"{name} = ?" for name in columns)
        self._db.execute(f"UPDATE inodes SET {names} WHERE ino = ?", (*columns.values(), ino))

    def put(self, ino: Ino, info: ObjectInfo, now_ns: int) -> None:
        """Take over what the store said of this inode's object."""
        columns = _posix_columns(info)
        size = info.size
        if info.meta is not None and not info.key.endswith("/"):
            kind = _kind_of(info)
            columns["kind"] = str(kind)
            size = _size_of(info, kind)
        names = ", ".join(f"{name} = ?" for name in columns)
        self._db.execute(
            f"UPDATE inodes SET {names}, size = CASE kind WHEN 'dir' THEN 0 ELSE ? END, checked_ns = ?"
            " WHERE ino = ?",
            (*columns.values(), size, now_ns, ino),
        )

    def touch(self, ino: Ino, now_ns: int) -> None:
        """Note that the store has confirmed the row as it stands."""
        self._db.execute(_TOUCH, (now_ns, ino))

    def move(
        self,
        ino: Ino,
        parent: Ino,
        name: Name,
        component: str,
        now_ns: int,
        *,
        wall_ns: int | None = None,
    ) -> None:
        """Give the inode another name, which must be free; it was changed at *wall_ns*."""
        self._note_removed(ino, now_ns)
        self._db.execute(
            "UPDATE inodes SET parent = ?, name = ?, component = ?, ctime_ns = ?, checked_ns = ? WHERE ino = ?",
            (
                parent,
                bytes(name),
                _to_bytes(component),
                now_ns if wall_ns is None else wall_ns,
                now_ns,
                ino,
            ),
        )
        moved = self.get(ino)
        if moved is not None:
            self.forget_removed(moved)

    def detach(self, ino: Ino, now_ns: int) -> None:
        """Take its name away; the row lives on for those who hold it open."""
        self._note_removed(ino, now_ns)
        self._unname(ino)

    def _unname(self, ino: Ino) -> None:
        self._db.execute(_UNNAME, (ino,))

    def _note_removed(self, ino: Ino, now_ns: int) -> None:
        inode = self.get(ino)
        if inode is None or inode.parent is None:
            return
        self._removed[inode.parent, inode.component, inode.is_dir] = now_ns
        if len(self._removed) > self._removed_most:
            needed_ns = min([now_ns - _LONGEST_LOOK_NS, *self._looks])
            self._removed = {k: when for k, when in self._removed.items() if when >= needed_ns}
            self._removed_most = max(_REMOVED_KEPT, 2 * len(self._removed))

    @contextmanager
    def looking(self, since_ns: int) -> Iterator[None]:
        """Remember what is removed here until a listing that began at *since_ns*, and may take long, is over."""
        self._looks.append(since_ns)
        try:
            yield
        finally:
            self._looks.remove(since_ns)

    def drop(self, ino: Ino) -> None:
        """Forget the inode. It must have no cache entry and no children."""
        self._db.execute("DELETE FROM inodes WHERE ino = ?", (ino,))

    def detached(self) -> list[Ino]:
        """Return the inodes that have no name: unlinked while open."""
        rows = self._db.all("SELECT ino FROM inodes WHERE parent IS NULL AND ino <> 1")
        return [Ino(row[0]) for row in rows]

    def forget_unmade(self) -> None:
        """Forget what was only being made when a daemon ended: nobody was told that it exists.

        A file has no bytes then, and nothing else a version. Of a directory nothing but its marker can tell, nor of
        a link that may have been stored after all: the store is asked again.
        """
        unmade = self._db.all(
            "SELECT ino, parent, kind FROM inodes AS i WHERE etag IS NULL AND parent IS NOT NULL"
            " AND CASE kind"
            " WHEN 'dir' THEN listed_ns IS NOT NULL AND NOT EXISTS (SELECT 1 FROM inodes WHERE parent = i.ino)"
            " ELSE NOT EXISTS (SELECT 1 FROM entries WHERE ino = i.ino) END"
        )
        for ino, parent, kind in unmade:
            self._db.execute(
                "UPDATE inodes SET checked_ns = 0, listed_ns = CASE WHEN listed_ns IS NOT NULL THEN 0 END"
                " WHERE ino IN (?, ?)",
                (ino, parent),
            )
            if kind != Kind.DIR:
                self.drop(Ino(ino))

    def forget_clean(self, ino: Ino) -> int:
        """Forget the names of all at or below *ino* of which the store has everything and the cache nothing, unless pinned.

        Return how many. Directories stay, and are to be listed anew. Nothing may be open, nor being renamed.
        """
        with self._db.transaction():
            self._db.execute(
                f"{_TREE} DELETE FROM inodes WHERE kind <> 'dir' AND etag IS NOT NULL AND parent IS NOT NULL AND pinned = 0"
                " AND ino IN (SELECT ino FROM tree) AND ino NOT IN (SELECT ino FROM entries)",
                (ino,),
            )
            row = self._db.one(
                "SELECT changes()"
            )  # sqlite3 counts no statement that begins by WITH
            self._db.execute(
                f"{_TREE} UPDATE inodes SET listed_ns = NULL WHERE kind = 'dir' AND ino IN (SELECT ino FROM tree)",
                (ino,),
            )
        return int(row[0]) if row else 0

    def count(self) -> int:
        """Return how many inodes are known."""
        row = self._db.one("SELECT count(*) FROM inodes")
        return int(row[0]) if row else 0

    # ---- what the store shows ---------------------------------------------------------------

    def stale_below(self, ino: Ino) -> None:
        """Make *ino* and all below it be asked about again."""
        self._db.execute(
            f"{_TREE} UPDATE inodes SET checked_ns = 0, listed_ns = NULL WHERE ino IN (SELECT ino FROM tree)",
            (ino,),
        )

    def age(self, parent: Ino) -> None:
        """Make a directory and its children known from long ago."""
        self._db.execute("UPDATE inodes SET checked_ns = 0 WHERE parent = ?", (parent,))
        self._db.execute(
            "UPDATE inodes SET listed_ns = 0 WHERE ino = ? AND listed_ns IS NOT NULL", (parent,)
        )

    def learn(
        self, parent: Ino, info: ObjectInfo, *, since_ns: int, now_ns: int, held: Collection[Ino]
    ) -> Difference:
        """Take over one object directly below *parent*, as a HEAD that began at *since_ns* showed it."""
        difference = Difference()
        with self._db.transaction():
            directory = self.key_of(parent)
            if directory is None:
                return difference
            component = last_component(info.key, directory)
            # The directory's own marker comes here only if it has content, and shows as a file.
            kind = Kind.FILE if info.key == directory else _kind_of(info)
            shadowed = kind is not Kind.DIR and self._dir_row(parent, component) is not None
            merge = _Merge(self, parent, since_ns, now_ns, held, difference)
            merge.load([component])
            merge.take(name_of(component, shadowed=shadowed), component, kind, info)
            merge.write()
        return difference

    def learn_all(
        self,
        parent: Ino,
        infos: Iterable[ObjectInfo],
        *,
        since_ns: int,
        now_ns: int,
        held: Collection[Ino],
    ) -> Difference:
        """Take over many objects directly below *parent* in one transaction, as :meth:`learn` does one."""
        difference = Difference()
        with self._db.transaction():
            for info in infos:
                difference.add(
                    self.learn(parent, info, since_ns=since_ns, now_ns=now_ns, held=held)
                )
        return difference

    def _dir_row(self, parent: Ino, component: str) -> tuple[Any, ...] | None:
        return self._db.one(
            "SELECT ino FROM inodes WHERE parent = ? AND component = ? AND kind = 'dir'",
            (parent, _to_bytes(component)),
        )

    def merge(
        self,
        parent: Ino,
        page: Listing,
        *,
        since_ns: int,
        now_ns: int,
        held: Collection[Ino],
    ) -> Difference:
        """Take over one page of a listing of *parent* that began at *since_ns*.

        What changed here since then is left alone, for the page may be older than the change. Inodes in
        *held* are open: theirs is a version that stays, so a newer one gets a new inode.
        """
        difference = Difference()
        with self._db.transaction():
            directory = self.key_of(parent)
            if directory is None:
                return difference
            merge = _Merge(self, parent, since_ns, now_ns, held, difference)
            merge.take_page(page, directory)
            merge.write()
        return difference

    def rows_of(self, parent: Ino, components: Collection[str]) -> list[Inode]:
        """Return every child that shows one of *components*."""
        wanted = sorted(map(_to_bytes, components))
        if not wanted:
            return []
        among = "SELECT 1 FROM inodes WHERE parent = ? AND component BETWEEN ? AND ? LIMIT 1"
        if self._db.one(among, (parent, wanted[0], wanted[-1])) is None:
            return []  # as in every page of a directory that was never listed
        found: list[Inode] = []
        for at in range(0, len(wanted), _AT_ONCE):
            part = wanted[at : at + _AT_ONCE]
            size = len(part) if len(part) < 4 else _AT_ONCE  # few statements, which stay prepared
            marks = ", ".join("?" * size)
            rows = self._db.all(
                f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND component IN ({marks})",
                (parent, *part, *(None,) * (size - len(part))),
            )
            found += map(_inode, rows)
        return found

    def unmarked(self, ino: Ino, *, since_ns: int) -> None:
        """Note that a listing that began at *since_ns* showed no marker of the directory that it is of."""
        if not self.is_dirty(ino):
            self._db.execute(
                "UPDATE inodes SET etag = NULL, meta = '{}', stored_ns = NULL"
                " WHERE ino = ? AND checked_ns < ? AND (meta IS NULL OR etag IS NOT NULL)",
                (ino, since_ns),
            )

    def confirm_directory(self, ino: Ino, seen_ns: int) -> None:
        """Note that a listing which began at *seen_ns* has shown that the directory is there."""
        self._db.execute(
            "UPDATE inodes SET checked_ns = max(checked_ns, ?) WHERE ino = ?", (seen_ns, ino)
        )

    def finish_listing(
        self, parent: Ino, *, since_ns: int, now_ns: int, held: Collection[Ino]
    ) -> Difference:
        """Take all steps of :meth:`finishing` at once."""
        difference = Difference()
        with self._db.transaction():
            for step in self.finishing(parent, since_ns=since_ns, now_ns=now_ns, held=held):
                difference.add(step)
        return difference

    def finishing(
        self, parent: Ino, *, since_ns: int, now_ns: int, held: Collection[Ino]
    ) -> Iterator[Difference]:
        """Note that all pages of a listing that began at *since_ns* are merged: what was not in them is gone.

        *now_ns* is not before the time of any of the pages, whatever the clock says by now. Each step looks at some
        thousands of names, so that others get their turn in between, and memory does not grow with their number; only
        after the last one does the directory count as listed.
        """
        has_shadows, after = False, 0
        while (last := self.nth_last(parent, after, _STEP)) is not None:
            difference = Difference()
            with self._db.transaction():
                rows = self._db.all(
                    f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND ino > ? AND ino <= ?"
                    " AND (checked_ns NOT BETWEEN ? AND ? OR (kind <> 'dir' AND instr(name, ?)))",
                    (parent, after, last, since_ns, now_ns, MARK.encode()),
                )
                for inode in map(_inode, rows):
                    if since_ns <= inode.checked_ns <= now_ns:
                        has_shadows = True
                    else:
                        self.remove(inode, difference, held=held, now_ns=now_ns)
            after = last
            yield difference
        if has_shadows:
            yield from self._unshadow(parent)
        self._db.execute("UPDATE inodes SET listed_ns = ? WHERE ino = ?", (since_ns, parent))

    def _unshadow(self, parent: Ino) -> Iterator[Difference]:
        """Give objects their plain names back whose namesake directories are gone."""
        after = 0
        while (last := self.nth_last(parent, after, _STEP)) is not None:
            difference = Difference()
            with self._db.transaction():
                rows = self._db.all(
                    f"SELECT {_COLUMNS} FROM inodes WHERE parent = ? AND ino > ? AND ino <= ?"
                    " AND kind <> 'dir' AND instr(name, ?)",
                    (parent, after, last, MARK.encode()),
                )
                for inode in map(_inode, rows):
                    plain = name_of(inode.component)
                    if inode.name == name_of(inode.component, shadowed=True) and not self.child(
                        parent, plain
                    ):
                        difference.changed.append((parent, inode.name))
                        self.rename_shown(inode.ino, plain)
            after = last
            yield difference

    def remove(
        self, inode: Inode, difference: Difference, *, held: Collection[Ino], now_ns: int
    ) -> bool:
        """Take *inode*, and what is below it, out of the tree, because the store no longer has it.

        Return False, and leave it, if bytes promised to the store are there or below.
        """
        below = self._numbers_below(inode.ino) if inode.is_dir else []
        if any(map(self.is_dirty, (inode.ino, *below))):
            return False
        if inode.parent is not None and inode.name is not None:
            difference.changed.append((inode.parent, inode.name))
        doomed = [*reversed(below), inode.ino]
        self._db.executemany(_UNNAME, [(each,) for each in doomed])
        difference.freed.extend(each for each in doomed if each not in held)
        return True

    def _numbers_below(self, ino: Ino) -> list[Ino]:
        """Return the number of every known inode below *ino*, parents before their children."""
        rows = self._db.all(f"{_TREE} SELECT ino FROM tree WHERE depth > 0 ORDER BY depth", (ino,))
        return [Ino(row[0]) for row in rows]

    def removed_since(self, parent: Ino, component: str, kind: Kind, since_ns: int) -> bool:
        """Whether this mount took the object (or the directory) away at or after *since_ns*.

        By its component and not by its name, for that depends on what else the listing shows.
        """
        if not self._removed:
            return False
        return self._removed.get((parent, component, kind is Kind.DIR), -1) >= since_ns

    def forget_removed(self, inode: Inode) -> None:
        """Believe the store again where this mount had taken *inode* away."""
        if inode.parent is not None:
            self._removed.pop((inode.parent, inode.component, inode.is_dir), None)

    def rename_shown(self, ino: Ino, name: Name) -> None:
        """Show the same object under another name, which must be free."""
        self._db.execute("UPDATE inodes SET name = ? WHERE ino = ?", (bytes(name), ino))

    def insert_seen(
        self,
        parent: Ino,
        name: Name,
        component: str,
        kind: Kind,
        info: ObjectInfo | None,
        now_ns: int,
        *,
        pinned: int = 0,
    ) -> bool:
        """Make an inode for something the store showed. The name must be free. Return whether it is pinned."""
        row = self.row_seen(parent, name, component, kind, info, now_ns, pinned=pinned)
        self.insert_rows([row])
        return bool(row[6])

    def row_seen(
        self,
        parent: Ino,
        name: Name,
        component: str,
        kind: Kind,
        info: ObjectInfo | None,
        now_ns: int,
        *,
        pinned: int = 0,
    ) -> tuple[object, ...]:
        """Return the row of something the store showed, for :meth:`insert_rows`; the pin of its name goes to it."""
        if kind is not Kind.DIR and self._names_pinned:
            pinned |= self._takes_pin_of(parent, component)
        size = 0 if info is None else _size_of(info, kind)
        head = (parent, bytes(name), _to_bytes(component), str(kind), size, now_ns, pinned)
        if info is None:
            return (*head, now_ns, now_ns, now_ns, *(None,) * 7, 0)
        if info.meta is None and info.content_type is None:  # nearly always: a listing
            told_ns = info.mtime_ns
            times = (told_ns, told_ns, told_ns)
            told = (info.etag, None, None, told_ns or None, int(info.is_md5))
            return (*head, *times, None, None, None, *told)
        columns = _posix_columns(info)
        return (*head, *(columns[column] for column in _SEEN_COLUMNS))

    def insert_rows(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Make the inodes of *rows*. The names must be free."""
        self._db.executemany(_INSERT_SEEN, iter(rows))

    def touch_all(self, inos: Iterable[Ino], now_ns: int) -> None:
        """Note that the store has confirmed all these rows as they stand."""
        self._db.executemany(_TOUCH, ((now_ns, ino) for ino in inos))

    # ---- what the operator has pinned -------------------------------------------------------

    def pin_below(self, ino: Ino, *, pinned: bool) -> int:
        """Pin every known file at or below *ino*, or let it go. Return how many that changes."""
        sql = f"{_TREE} UPDATE inodes SET pinned = ? WHERE kind = 'file' AND pinned <> ? AND ino IN (SELECT ino FROM tree)"
        return self._db.execute(sql, (ino, int(pinned), int(pinned))).rowcount

    def files_below(self, ino: Ino, *, pinned: bool) -> tuple[int, int]:
        """Return how many known files at or below *ino* are pinned (or are not), and the bytes of disk they need."""
        row = self._db.one(
            f"{_TREE} SELECT count(*), coalesce(sum((size + 4095) / 4096 * 4096), 0) FROM inodes"
            " WHERE kind = 'file' AND pinned = ? AND ino IN (SELECT ino FROM tree)",
            (ino, int(pinned)),
        )
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def all_pinned(self) -> tuple[int, int]:
        """Return how many files are pinned, and the bytes of disk that they need."""
        row = self._db.one(
            "SELECT count(*), coalesce(sum((size + 4095) / 4096 * 4096), 0) FROM inodes WHERE pinned = 1"
        )
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def pinned_after(self, ino: Ino, limit: int) -> list[Inode]:
        """Return some pinned files whose numbers follow *ino*, the lowest first."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM inodes WHERE pinned = 1 AND ino > ? ORDER BY ino LIMIT ?",
            (ino, limit),
        )
        return [_inode(row) for row in rows]

    def inherit_pin(self, ino: Ino, holder: Inode | None) -> None:
        """Pin what takes the name of *holder*, if that was pinned."""
        if holder is not None and holder.is_pinned:
            self.update(ino, pinned=1)

    def leave_pin(self, inode: Inode | None) -> None:
        """Keep the pin of a file for whatever the store shows under its name, for ours loses the name."""
        if inode is not None and inode.is_pinned and inode.parent is not None:
            name = inode.parent, inode.component
            self._names_pinned.add(name)
            self._db.if_undone(lambda: self._names_pinned.discard(name))
            self._save_pins()

    def _takes_pin_of(self, parent: Ino, component: str) -> bool:
        name = parent, component
        if name not in self._names_pinned:
            return False
        self._names_pinned.discard(name)
        self._db.if_undone(lambda: self._names_pinned.add(name))
        self._save_pins()
        return True

    def _save_pins(self) -> None:
        self._db.set_meta(_PINS, json.dumps(sorted(self._names_pinned)))

    def is_dirty(self, ino: Ino) -> bool:
        """Whether the inode is being made, or bytes of it are promised to the store."""
        return ino in self._making or self._is_dirty(ino)


@dataclass(frozen=True, slots=True)
class _Coming:
    """What a merge is about to insert."""

    is_dir: bool


@dataclass(slots=True)
class _Merge:
    """One merge of what the store showed into one directory.

    What is usual goes to the database in few statements for a whole page, by :meth:`write`; what is rare goes there
    at once.
    """

    table: InodeTable
    parent: Ino
    since_ns: int
    now_ns: int
    held: Collection[Ino]
    difference: Difference
    known: dict[Name, Inode | _Coming] = field(default_factory=dict)
    """The rows of all components that the page shows, as they are by now."""
    coming: list[tuple[object, ...]] = field(default_factory=list)
    confirmed: list[Ino] = field(default_factory=list)

    def load(self, components: Collection[str]) -> None:
        """Read what is known of *components*, which are all that will be taken."""
        for row in self.table.rows_of(self.parent, components):
            assert row.name is not None
            self.known[row.name] = row

    def write(self) -> None:
        """Bring the table in line with what was taken."""
        self.table.touch_all(self.confirmed, self.now_ns)
        self.table.insert_rows(self.coming)

    def take_page(self, page: Listing, directory: Key) -> None:
        """Take over one page of the listing of *directory*."""
        objects = [(last_component(info.key, directory), info) for info in page.objects]
        prefixes = {last_component(prefix, directory) for prefix in page.prefixes}
        dirs = prefixes | {
            component
            for component, info in objects
            if not info.size and info.key.endswith("/") and info.key != directory
        }
        self.load({*dirs, *(component for component, _ in objects)})
        for component, info in objects:
            self._take_listed(component, info, directory, dirs)
        for component in sorted(prefixes):
            self.take(name_of(component), component, Kind.DIR, None)

    def _take_listed(
        self, component: str, info: ObjectInfo, directory: Key, dirs: Collection[str]
    ) -> None:
        if info.key == directory:  # the directory's own marker
            self._take_marker(info, dirs)
        elif info.key.endswith("/") and info.size == 0:
            self.take(name_of(component), component, Kind.DIR, info)
        else:
            self._take_object(component, _kind_of(info), info, dirs)

    def _take_object(
        self, component: str, kind: Kind, info: ObjectInfo, dirs: Collection[str]
    ) -> None:
        plain = name_of(component)
        beside = self.known.get(plain)
        shadowed = component in dirs or (beside is not None and beside.is_dir)
        if not shadowed:
            self.take(plain, component, kind, info)
            return
        if isinstance(beside, Inode) and not beside.is_dir:
            self._shadow(beside)  # the same object, shown before the directory was there
        self.take(name_of(component, shadowed=True), component, kind, info)

    def _take_marker(self, info: ObjectInfo, dirs: Collection[str]) -> None:
        own = self.table.get(self.parent)
        if own is not None and own.checked_ns < self.since_ns:
            if own.etag == info.etag:
                self._confirm(own, info, own.checked_ns)
            else:
                self.difference.altered.append(own.ino)
                self.table.put(own.ino, info, own.checked_ns)
        if info.size:  # with content, it is the file with the empty component
            self._take_object("", Kind.FILE, info, dirs)

    def take(self, name: Name, component: str, kind: Kind, info: ObjectInfo | None) -> None:
        """Bring the row of *name* in line with what was seen."""
        if self.table.removed_since(self.parent, component, kind, self.since_ns):
            return
        row = self.known.get(name)
        if isinstance(row, _Coming):
            return  # the page shows it twice
        if row is not None and kind is Kind.DIR and not row.is_dir:
            if not self._shadow(row):
                return
            row = None
        if row is None:
            self.difference.appeared.append((self.parent, name))
            self._insert(name, component, kind, info)
        elif self._is_as_known(row, kind, info):
            self.confirmed.append(row.ino)
        elif not (self.since_ns <= row.checked_ns <= self.now_ns or self.table.is_dirty(row.ino)):
            self._bring_in_line(row, name, component, kind, info)  # not changed here meanwhile

    def _is_as_known(self, row: Inode, kind: Kind, info: ObjectInfo | None) -> bool:
        """Whether the store shows what is known, and tells nothing else of it: nearly always."""
        if row.is_dir is not (kind is Kind.DIR) or row.checked_ns >= self.since_ns:
            return False
        if info is None:
            return True
        says_more = info.is_md5 and not row.is_md5 and row.meta_json is None
        is_same = info.meta is None and info.etag == row.etag
        return is_same and not says_more and not _is_newer(row, info)

    def _bring_in_line(
        self, row: Inode, name: Name, component: str, kind: Kind, info: ObjectInfo | None
    ) -> None:
        if row.is_dir is not (kind is Kind.DIR):
            if self._remove(row):
                self._insert(name, component, kind, info)
        elif info is None or (info.etag == row.etag and not _contradicts(row, info)):
            self._confirm(row, info, self.now_ns)
        elif row.ino in self.held and not row.is_dir:
            # An open handle keeps its version, so the new one gets an inode, and page cache, of its own.
            self._remove(row)
            self._insert(name, component, kind, info, pinned=row.pinned)
        else:
            self.difference.has_pinned |= row.is_pinned
            self.difference.changed.append((self.parent, name))
            self.difference.altered.append(row.ino)
            self.table.put(row.ino, info, self.now_ns)

    def _insert(
        self, name: Name, component: str, kind: Kind, info: ObjectInfo | None, *, pinned: int = 0
    ) -> None:
        row = self.table.row_seen(
            self.parent, name, component, kind, info, self.now_ns, pinned=pinned
        )
        self.difference.has_pinned |= bool(row[6])
        self.coming.append(row)
        self.known[name] = _Coming(kind is Kind.DIR)

    def _remove(self, row: Inode) -> bool:
        """Take *row* out of the tree. Return False, and leave it, if that would lose what is promised."""
        if not self.table.remove(row, self.difference, held=self.held, now_ns=self.now_ns):
            return False
        assert row.name is not None
        del self.known[row.name]
        return True

    def _shadow(self, row: Inode) -> bool:
        """Make way for a directory of the same component: the object beside it gets the escaped name."""
        plain, shadow = name_of(row.component), name_of(row.component, shadowed=True)
        old = self.known.get(shadow)
        if isinstance(old, Inode):
            self._remove(old)
        self.difference.changed.append((self.parent, plain))
        if shadow in self.known:
            return False
        self.table.rename_shown(row.ino, shadow)
        self.known.pop(plain, None)
        self.known[shadow] = replace(row, name=shadow)
        return True

    def _confirm(self, row: Inode, info: ObjectInfo | None, checked_ns: int) -> None:
        """Take over what the store says of the version that is known: its metadata may be newer than ours."""
        if info is not None and info.meta is not None:
            if row.meta != info.meta and (row.meta is not None or row.carries_posix):
                self.difference.altered.append(row.ino)
            if not row.is_dir and row.kind is not _kind_of(info) and row.parent and row.name:
                self.difference.changed.append((row.parent, row.name))
            if row.meta != info.meta or row.stored_ns is None:
                self.table.put(row.ino, info, checked_ns)
                return
        elif info is not None and _is_newer(row, info):
            # Written again with the same bytes, perhaps for its metadata, which a listing does not tell.
            self.table.update(row.ino, meta=None, stored_ns=None)
        if info is not None and info.meta is None and info.is_md5 and row.meta_json is None:
            self._learn_md5(row)
        if checked_ns == self.now_ns:
            self.confirmed.append(row.ino)
        else:
            self.table.touch(row.ino, checked_ns)

    def _learn_md5(self, row: Inode) -> None:
        """Note that a listing says more of the version that is known than was known of it."""
        if not row.is_md5:
            self.table.update(row.ino, is_md5=1)


def _contradicts(row: Inode, info: ObjectInfo) -> bool:
    """Whether one version of a file is said to have two lengths: one of the answers was wrong."""
    return row.kind is Kind.FILE and info.meta is not None and info.size != row.size


def _is_newer(row: Inode, info: ObjectInfo) -> bool:
    """Whether a listing shows the version that is known as taken in later than is known."""
    if row.stored_ns is None:
        return False
    if row.is_dir:  # a marker: nothing else tells of it, and it is asked for alone
        return info.mtime_ns // _SECOND_NS != row.stored_ns // _SECOND_NS
    return info.mtime_ns > row.stored_ns + _SLOP_NS
