"""Objects by their keys, for doors whose callers know no names: what the store has of them, and new ones."""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from cachefs.core import mediatypes, metadata
from cachefs.core.errors import Changed, NoEntry, NotFound, ReadOnly, UsageError
from cachefs.core.types import Attrs, ETag, Key, Kind, Name, ObjectInfo, Token
from cachefs.engine.body import FileBody
from cachefs.engine.eviction import Evictions
from cachefs.engine.insight import Insight
from cachefs.engine.room import Room
from cachefs.engine.threads import Threads
from cachefs.local.cache import Cache
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.remote.store import ObjectStore

_TRIES: Final = 20
"""How often another version may come while one is being stored."""


class Objects:
    """Asks and changes the store; what the tables say of a name that is changed is asked anew."""

    def __init__(
        self,
        store: ObjectStore,
        inodes: InodeTable,
        cache: Cache,
        room: Room,
        evictions: Evictions,
        insight: Insight,
        threads: Threads,
        *,
        is_read_only: bool,
    ) -> None:
        self._is_read_only = is_read_only
        self._store = store
        self._inodes = inodes
        self._cache = cache
        self._room = room
        self._evictions = evictions
        self._insight = insight
        self._threads = threads

    async def describe(self, path: str, key: Key, etag: ETag | None) -> ObjectInfo | None:
        """Return what the store says of the version *etag* of *key*, which is shown as *path*; None: it has another."""
        inode = self._known(path)
        if inode is not None and inode.etag == etag and inode.meta is not None and inode.stored_ns:
            return (
                ObjectInfo(
                    key,
                    inode.size,
                    inode.etag,
                    inode.stored_ns,
                    content_type=inode.content_type,
                    meta=inode.meta,
                )
                if inode.etag is not None
                else None
            )
        try:
            found = await self._threads.ask(self._store.head, key)
        except NotFound:
            return None
        return found if found.etag == etag else None

    async def put(self, key: Key, source: Path, allowed: Iterable[Path], *, shown: str) -> None:
        """Store the file *source* as *key*, with its attributes, over whatever is there. *shown*: the path of *key* in the tree.

        Raise ``UsageError`` where it is no plain file that is really at or below one of *allowed*, ``ReadOnly`` where
        nothing is to be changed.
        """
        if self._is_read_only or self._store.capabilities.writable is False:
            raise ReadOnly("nothing is stored: it is read-only")
        fd = await self._threads.disk(_opened, source, tuple(allowed))
        try:
            attrs = attrs_of_file(os.fstat(fd))
            for _ in range(_TRIES):
                try:
                    await self._threads.transfer(
                        self._replace, key, FileBody(fd, attrs.size), attrs
                    )
                    break
                except Changed:  # somebody else's came in between: the last one counts
                    continue
            else:
                raise Changed("other versions of the object come without a pause")
        finally:
            os.close(fd)
            await self._insight.refresh(shown)

    def _replace(self, key: Key, body: FileBody, attrs: Attrs) -> None:
        body.digest()  # by which the store can tell what became damaged on its way
        try:
            there: ETag | None = self._store.head(key).etag
        except NotFound:
            there = None
        meta = metadata.encode(attrs, Token(secrets.token_hex(16)), {})
        content_type = mediatypes.guessed(key.rpartition("/")[2])
        self._store.put(key, body, meta=meta, content_type=content_type, if_match=there)

    async def keys(self, prefix: Key, take: Callable[[Iterator[str]], None]) -> None:
        """Let *take* have all keys below *prefix*, without it, in the order of the listing. It runs in a thread."""

        def run() -> None:
            take(
                info.key[len(prefix) :]
                for page in self._store.list(prefix, deep=True)
                for info in page.objects
            )

        await self._threads.ask(run)

    async def evict(self, path: str) -> None:
        """Drop the cached bytes of *path*. Raise ``UsageError`` with the reason why they stay, if they do."""
        inode = self._known(path)
        entry = None if inode is None else self._cache.find(inode.ino)
        if entry is None:
            return
        dropped = self._evictions.drop(entry.id, entry.used_ns)
        if isinstance(dropped, str):
            raise UsageError(dropped)
        self._room.evicted += 1
        await self._room.delete(dropped)

    def cached(self, path: str) -> tuple[ETag | None, int]:
        """Return the version of *path* of which bytes are here, and how many."""
        inode = self._known(path)
        entry = None if inode is None else self._cache.find(inode.ino)
        return (None, 0) if entry is None else (entry.etag, entry.here.total)

    def is_pinned(self, path: str) -> bool:
        """Whether *path* is kept here."""
        inode = self._known(path)
        return inode is not None and inode.is_pinned

    def _known(self, path: str) -> Inode | None:
        inode = self._inodes.get(ROOT)
        for part in path.encode("utf-8", "surrogateescape").split(b"/"):
            if inode is None:
                return None
            inode = self._inodes.child(inode.ino, Name(part))
        return inode if inode is not None and inode.kind is Kind.FILE else None


def attrs_of_file(status: os.stat_result, kind: Kind = Kind.FILE) -> Attrs:
    """Return the attributes of a file that is stored as it is."""
    return Attrs(
        kind=kind,
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )


def _opened(path: Path, allowed: tuple[Path, ...]) -> int:
    """Open a file that lies at or below one of *allowed*, wherever links lead."""
    if not any(path.resolve().is_relative_to(each) for each in allowed):
        raise UsageError(f"{path} lies in no directory that files may be pushed from")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise NoEntry(f"no such file: {path}") from None
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    # Once more, of what is open: the name may have become another file's in between.
    really = Path(os.readlink(f"/proc/self/fd/{fd}"))
    is_plain = stat.S_ISREG(os.fstat(fd).st_mode)
    if is_plain and any(really.is_relative_to(each) for each in allowed):
        return fd
    os.close(fd)
    raise UsageError(f"{path} is not a plain file that may be pushed")
