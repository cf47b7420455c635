"""The file system in our own words: names and handles, as programs use them. Knows nothing of the kernel."""

import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import trio
from cachetools import LRUCache

from cachefs.core import metadata
from cachefs.core.errors import (
    CacheError,
    Changed,
    Exists,
    IsDirectory,
    NameTooLong,
    NoAttribute,
    NoEntry,
    NotDirectory,
    NotEmpty,
    NotFound,
    ReadOnly,
    Stale,
    StoreError,
    TimedOut,
)
from cachefs.core.extents import Extent
from cachefs.core.keys import NAME_MAX, child_key, component_of
from cachefs.core.policy import SECOND_NS
from cachefs.core.types import Attrs, ETag, Fh, Ino, Key, Kind, Name, Token, UploadMode
from cachefs.engine.body import BytesBody
from cachefs.engine.openfile import OpenFile, Rooms
from cachefs.engine.rename import Renamer
from cachefs.engine.upload import Defaults
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.remote.store import ObjectStore

_ATTRIBUTE_PREFIX: Final = b"user.cachefs."
_OPENS_REMEMBERED: Final = 65536
_REWRITES: Final = 100
"""How often a close waits anew because another handle has written meanwhile."""
_DIRECTORY_TTL_S: Final = 60.0
"""A directory's own attributes change through this mount only; the kernel checks its mode at each step of a path."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What the kernel is told of an inode, and for how many seconds it may believe it."""

    ino: Ino
    attrs: Attrs
    name_ttl_s: float
    attrs_ttl_s: float


@dataclass(frozen=True, slots=True)
class Changes:
    """What a setattr sets; None: leave it."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    @property
    def columns(self) -> dict[str, object]:
        """The inode's columns that change, the size left out."""
        fields = ("mode", "uid", "gid", "atime_ns", "mtime_ns")
        return {name: value for name in fields if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Handle:
    """One open of a file."""

    file: OpenFile
    is_writer: bool
    is_append: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """What an open gives the kernel."""

    fh: Fh
    keep_cache: bool
    """The pages that the kernel holds are of the same version."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the mount was told."""

    upload: UploadMode
    upload_delay_s: float
    timeout_s: float
    read_only: bool


class FileSystem:
    """Operations on names and handles. Every error raised is a ``CachefsError``."""

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        inodes: InodeTable,
        rooms: Rooms,
        renamer: Renamer,
        defaults: Defaults,
        limits: Limits,
        *,
        held: set[Ino],
    ) -> None:
        """*held* is kept equal to the set of inodes that are open."""
        self._store = store
        self._db = db
        self._inodes = inodes
        self._rooms = rooms
        self._names = rooms.names
        self._renamer = renamer
        self._defaults = defaults
        self._limits = limits
        self._held = held
        self._files: dict[Ino, OpenFile] = {}
        self._opening: dict[Ino, trio.Event] = {}
        self._handles: dict[Fh, Handle] = {}
        self._next_fh = 1
        # The version whose pages the kernel may still hold, for each inode it has had open.
        self._kernel_has: LRUCache[Ino, str] = LRUCache(_OPENS_REMEMBERED)
        self.is_closing = False
        """Set when the mount ends: no more writes."""
        self.opens = self.opens_cached = self.bytes_read = 0
        """Since the start; an open counts as cached when every byte was here."""

    # ---- looking ----------------------------------------------------------------------------

    async def lookup(self, parent: Ino, name: Name) -> Stat:
        """Return what *name* stands for. Raise ``NoEntry``."""
        if name == b".":
            return self.stat(self._names.directory(parent))
        if name == b"..":
            up = self._names.directory(parent).parent
            return self.stat(self._names.directory(up or ROOT))
        return self.stat(await self._names.lookup(parent, name))

    async def getattr(self, ino: Ino) -> Stat:
        """Return the attributes of an inode, asking the store where what is known is too old."""
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        if not inode.is_dir and ino not in self._files:
            inode = await self._names.revalidate(ino)
        return self.stat(inode)

    def stat(self, inode: Inode) -> Stat:
        """Return what the kernel is told of *inode*."""
        attrs = self._defaults.attrs(inode)
        file = self._files.get(inode.ino)
        if file is not None and file.is_altered:
            attrs = replace(attrs, size=file.size, mtime_ns=file.mtime_ns, ctime_ns=file.ctime_ns)
        ttl_s = self._names.ttl_left_s(inode)
        return Stat(inode.ino, attrs, ttl_s, _DIRECTORY_TTL_S if inode.is_dir else ttl_s)

    @property
    def negative_ttl_s(self) -> float:
        """For how many seconds the kernel may believe that a name does not exist."""
        return self._names.negative_ttl_s

    async def opendir(self, ino: Ino) -> None:
        """Make the whole directory known."""
        await self._names.list_directory(ino)

    def readdir(self, ino: Ino, after: int, limit: int) -> list[tuple[Name, Stat]]:
        """Return children in order of their numbers, from the first one above *after*."""
        found = self._inodes.children(ino, after=after, limit=limit)
        return [(child.name, self.stat(child)) for child in found if child.name is not None]

    def directory(self, ino: Ino) -> Stat:
        """Return the attributes of a known directory, without asking the store."""
        return self.stat(self._names.directory(ino))

    def parent_of(self, ino: Ino) -> Ino:
        """Return the directory that holds the directory *ino*; the root's is itself."""
        return self._names.directory(ino).parent or ROOT

    def statfs(self) -> tuple[int, int]:
        """Return block size and the free blocks that ``df`` shows: a bucket has no end, so a large number."""
        return 4096, 2**38

    async def readlink(self, ino: Ino) -> bytes:
        """Return the target of a symbolic link."""
        inode = await self._names.revalidate(ino)
        key = await self._names.settled_key(ino)
        if inode.kind is not Kind.SYMLINK or key is None or inode.etag is None:
            raise Stale("not a symbolic link")
        found = await self._rooms.through.read(key, inode.etag, inode.size, Extent(0, inode.size))
        return bytes(found)

    # ---- opening and closing ----------------------------------------------------------------

    async def open(self, ino: Ino, flags: int) -> Opened:
        """Open a file and start to fetch it; with O_TRUNC it is emptied."""
        is_writer = flags & os.O_ACCMODE != os.O_RDONLY
        if is_writer:
            self._writable()
        inode = await self._names.revalidate(ino)
        if inode.is_dir:
            raise IsDirectory("is a directory")
        file = await self._acquire(ino)
        try:
            if flags & os.O_TRUNC:
                await file.truncate(0)
            elif flags & os.O_ACCMODE != os.O_WRONLY:
                file.opened()
        except BaseException:
            await self._release(file)
            raise
        self.opens += 1
        self.opens_cached += file.entry.is_whole
        version = f"{file.entry.id}:{file.entry.etag}"
        keep = self._kernel_has.get(ino) == version
        self._kernel_has[ino] = version
        return Opened(self._hand_out(file, is_writer, bool(flags & os.O_APPEND)), keep)

    async def create(
        self, parent: Ino, name: Name, flags: int, *, mode: int, uid: int, gid: int
    ) -> tuple[Opened, Stat]:
        """Make a file and open it for writing; if the name is taken, open what is there (but not with O_EXCL)."""
        self._writable()
        try:
            found = await self._names.lookup(parent, name)
        except NoEntry:
            pass
        else:
            if flags & os.O_EXCL:
                raise Exists("file exists")
            opened = await self.open(found.ino, flags)
            return opened, await self.getattr(found.ino)
        inode = self._mint(parent, name, Kind.FILE, mode=mode, uid=uid, gid=gid)
        file = await self._acquire(inode.ino)
        try:
            await file.begin()
        except BaseException:
            self._inodes.detach(inode.ino, self._names.now_ns())
            with trio.CancelScope(shield=True):
                await self._release(file)
            raise
        finally:
            self._inodes.made(inode.ino)
        self._kernel_has[inode.ino] = f"{file.entry.id}:{file.entry.etag}"
        opened = Opened(self._hand_out(file, True, bool(flags & os.O_APPEND)), keep_cache=False)
        return opened, self.stat(inode)

    def _mint(
        self, parent: Ino, name: Name, kind: Kind, *, mode: int, uid: int, gid: int
    ) -> Inode:
        directory = self._names.directory(parent)
        component, _ = component_of(name)
        key = self._inodes.key_of(parent)
        if key is None:
            raise NoEntry("the directory is gone")
        child_key(key, component, is_dir=kind is Kind.DIR)  # raises where no store could hold it
        if self._inodes.child(parent, name) is not None:
            raise Exists("file exists")
        now_ns = self._names.now_ns()
        with self._db.transaction():
            made = self._inodes.mint(
                parent, name, component, kind, now_ns=now_ns, mode=mode & 0o7777, uid=uid, gid=gid
            )
            self._inodes.update(directory.ino, mtime_ns=now_ns, ctime_ns=now_ns)
        self._names.forget_absent(parent, name)
        return made

    def _writable(self) -> None:
        if self._limits.read_only or self._store.capabilities.writable is False:
            raise ReadOnly("mounted read-only")
        if self.is_closing:
            raise ReadOnly("the mount is ending")

    def _hand_out(self, file: OpenFile, is_writer: bool, is_append: bool) -> Fh:
        fh = Fh(self._next_fh)
        self._next_fh += 1
        file.writers += is_writer
        self._handles[fh] = Handle(file, is_writer, is_append)
        return fh

    async def _acquire(self, ino: Ino) -> OpenFile:
        """Return the open file of *ino*, opening it if need be, with one more handle counted."""
        while (busy := self._opening.get(ino)) is not None:
            await busy.wait()
        file = self._files.get(ino)
        if file is None:
            self._opening[ino] = trio.Event()
            self._held.add(ino)
            try:
                file = self._files[ino] = await self._load(ino)
            except BaseException:
                self._held.discard(ino)
                raise
            finally:
                self._opening.pop(ino).set()
        file.handles += 1
        return file

    async def _load(self, ino: Ino) -> OpenFile:
        """Pin the entry of the version that the inode stands for, or make one."""
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        cache = self._rooms.cache
        entry = cache.find(ino)
        is_dirty = entry is not None and self._rooms.journal.of(entry.id) is not None
        if (
            entry is not None
            and not is_dirty
            and (entry.etag != inode.etag or entry.size != inode.size)
        ):
            await self._rooms.room.delete(cache.drop(entry))
            entry = None
        pinned = cache.pin(entry, self._names.now_ns()) if entry is not None else None
        if pinned is None and entry is not None:
            if is_dirty:
                self._rooms.uploader.hurry(entry.id)  # which parks it as lost, and says so
                raise Stale("the bytes of this file are gone from the cache directory")
            await self._rooms.room.delete(cache.drop(entry))
        if pinned is None:
            pinned = cache.create(
                ino, etag=inode.etag, size=inode.size, now_ns=self._names.now_ns()
            )
        return OpenFile(ino, pinned, self._rooms, mtime_ns=inode.mtime_ns, ctime_ns=inode.ctime_ns)

    async def release(self, fh: Fh) -> None:
        """Close a handle. What was written and not flushed is sealed for upload."""
        handle = self._handles.pop(fh)
        handle.file.writers -= handle.is_writer
        if handle.is_writer and not handle.file.writers and handle.file.is_promised:
            await self._seal(handle.file, delay_s=self._limits.upload_delay_s)
        await self._release(handle.file)

    async def _release(self, file: OpenFile) -> None:
        file.handles -= 1
        if file.handles:
            return
        busy = self._opening[file.ino] = trio.Event()
        try:
            try:
                self._save(file)
            finally:
                with trio.CancelScope(shield=True):
                    await file.close()
            if self._inodes.key_of(file.ino) is None:
                await self._bury(file.ino)
        finally:
            del self._files[file.ino]
            self._held.discard(file.ino)
            del self._opening[file.ino]
            busy.set()

    async def _bury(self, ino: Ino) -> None:
        """Forget an inode that lost its name while it was open."""
        entry = self._rooms.cache.find(ino)
        if entry is not None:
            self._rooms.uploader.forget(entry.id)
            doomed = self._rooms.cache.drop(entry)
            self._inodes.drop(ino)
            await self._rooms.room.delete(doomed)
        else:
            self._inodes.drop(ino)
        self._kernel_has.pop(ino, None)

    def _save(self, file: OpenFile) -> None:
        """Bring the inode's row in line with the open file."""
        if file.is_altered:
            self._inodes.update(
                file.ino, size=file.size, mtime_ns=file.mtime_ns, ctime_ns=file.ctime_ns
            )
            self._rooms.cache.save(file.entry)
            file.is_altered = False

    # ---- bytes ------------------------------------------------------------------------------

    async def read(self, fh: Fh, offset: int, size: int) -> bytes | memoryview:
        """Return bytes of an open file, fewer only at its end; valid until the caller awaits anything."""
        found = await self._handles[fh].file.read(offset, size)
        self.bytes_read += len(found)
        return found

    async def write(self, fh: Fh, offset: int, data: bytes) -> int:
        """Write to an open file. Return how many bytes: all of them."""
        self._writable()
        handle = self._handles[fh]
        if handle.is_append:
            offset = handle.file.size
        return await handle.file.write(offset, data)

    async def flush(self, fh: Fh) -> None:
        """Answer a close: with ``--upload close`` after the object is stored, else once it is safe here."""
        handle = self._handles[fh]
        if not handle.is_writer:
            return
        if self._limits.upload is UploadMode.CLOSE:
            await self._store_now(handle.file)
        else:
            await self._seal_durably(handle.file)

    async def fsync(self, fh: Fh) -> None:
        """Return after the object is stored."""
        await self._store_now(self._handles[fh].file)

    async def _store_now(self, file: OpenFile) -> None:
        """Wait until the store has the file as it is. Raise why it has not, if it could not be stored."""
        for _ in range(_REWRITES):
            if file.is_detached:
                return
            await file.wait_still()
            if file.is_promised:
                await self._seal(file, delay_s=0)
            else:
                self._rooms.uploader.hurry(file.entry.id)
            if await self._rooms.uploader.wait_settled(file.entry.id):
                return
        raise TimedOut("the file is written to without a pause; it stays queued")

    async def _seal(self, file: OpenFile, *, delay_s: float, is_synced: bool = False) -> None:
        """Say that the bytes are complete as they stand."""
        if not file.is_promised or file.is_detached:
            return
        due_ns = self._names.now_ns() + int(delay_s * SECOND_NS)
        with self._db.transaction():
            self._save(file)
            self._rooms.journal.seal(file.entry.id, due_ns=due_ns, is_synced=is_synced)
        file.sealed()
        self._rooms.uploader.kick()

    async def _seal_durably(self, file: OpenFile) -> None:
        """Put bytes and promise on the disk, so that they outlive even a loss of power."""
        async with file.flushing:
            if not file.is_promised:
                return
            generation = -1
            while generation != file.generation or file.is_changing:
                await file.wait_still()
                generation = file.generation
                await file.sync()
            await self._seal(file, delay_s=self._limits.upload_delay_s, is_synced=True)
            self._rooms.cache.supersede_sealed(file.entry.id)
            await self._rooms.threads.disk(self._db.sync_wal, self._db.path)
            self._rooms.cache.drop_superseded(file.entry.id)

    # ---- attributes -------------------------------------------------------------------------

    async def setattr(self, ino: Ino, changes: Changes, fh: Fh | None = None) -> Stat:
        """Change attributes, at the store too unless they will travel with an upload."""
        self._writable()
        if changes.size is not None:
            await self._truncate(ino, changes.size, fh)
        if changes.columns:
            await self._set_columns(ino, changes.columns)
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        return self.stat(inode)

    async def _truncate(self, ino: Ino, size: int, fh: Fh | None) -> None:
        if fh is not None:
            await self._handles[fh].file.truncate(size)
            return
        await self._names.revalidate(ino)
        file = await self._acquire(ino)
        try:
            await file.truncate(size)
            if not file.writers:  # no close will follow that could upload it
                await self._complete(file)
        finally:
            await self._release(file)

    async def _complete(self, file: OpenFile) -> None:
        if self._limits.upload is UploadMode.CLOSE:
            await self._store_now(file)
        else:
            await self._seal_durably(file)

    async def _set_columns(self, ino: Ino, columns: dict[str, object]) -> None:
        columns.setdefault("ctime_ns", self._names.now_ns())
        file = self._files.get(ino)
        if file is not None:
            self._save(file)
            file.mtime_ns = int(str(columns.get("mtime_ns", file.mtime_ns)))
            file.ctime_ns = int(str(columns["ctime_ns"]))
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        entry = self._rooms.cache.find(ino)
        if entry is not None:
            while self._rooms.uploader.is_uploading(entry.id):
                await self._rooms.uploader.stop(entry.id)
            self._rooms.uploader.kick()
        is_dirty = entry is not None and self._rooms.journal.of(entry.id) is not None
        self._inodes.update(ino, **columns)
        if not is_dirty and inode.parent is not None:
            try:
                await self._store_meta(ino)
            except BaseException:
                self._names.doubt(ino)
                raise

    async def _store_meta(self, ino: Ino) -> None:
        """Store an inode's attributes as its object's metadata."""
        key = await self._names.settled_key(ino)
        inode = self._inodes.get(ino)
        if key is None or inode is None:
            raise Stale("the file is gone")
        if ino == ROOT:
            return  # a bucket has no metadata of its own: kept here only
        meta = metadata.encode(self._defaults.attrs(inode), None, await self._foreign(inode, key))
        try:
            await self._put_meta(inode, key, meta)
        except (NotFound, Changed) as error:
            if not inode.is_dir:
                raise Stale("the object changed at the store meanwhile") from error
            # Somebody made, changed or removed the marker meanwhile: the directory is the same.
            await self._put_meta(replace(inode, etag=await self._marker(key)), key, meta)

    async def _put_meta(self, inode: Inode, key: Key, meta: dict[str, str]) -> None:
        if inode.etag is None:
            await self._make_marker(inode, key, meta)
            return
        info = await self._rooms.threads.ask(
            self._store.set_meta, key, meta, content_type=inode.content_type, if_match=inode.etag
        )
        self._follow(inode, info.etag, meta)

    async def _marker(self, key: Key) -> ETag | None:
        try:
            return (await self._rooms.threads.ask(self._store.head, key)).etag
        except NotFound:
            return None

    async def _foreign(self, inode: Inode, key: Key) -> dict[str, str]:
        """Return the metadata that the object has now, which a listing may not have told."""
        if inode.meta_json is not None or inode.etag is None:
            return dict(inode.meta or {})
        info = await self._rooms.threads.ask(self._store.head, key)
        return dict(info.meta or {})

    async def _make_marker(self, inode: Inode, key: Key, meta: dict[str, str]) -> None:
        info = await self._rooms.threads.ask(
            self._store.put,
            key,
            BytesBody(b""),
            meta=meta,
            content_type=metadata.DIRECTORY_TYPE,
            if_match=None,
        )
        self._follow(inode, info.etag, meta)

    def _follow(self, inode: Inode, etag: str, meta: dict[str, str]) -> None:
        """Note that a change of ours gave the object a new version, with the same bytes."""
        with self._db.transaction():
            self._inodes.update(inode.ino, etag=etag, meta=meta, checked_ns=self._names.now_ns())
            entry = self._rooms.cache.find(inode.ino)
            if entry is not None and entry.etag == inode.etag:
                had = self._kernel_has.get(inode.ino) == f"{entry.id}:{entry.etag}"
                entry.etag = type(inode.etag)(etag) if inode.etag else None
                self._rooms.cache.save(entry)
                if had:
                    self._kernel_has[inode.ino] = f"{entry.id}:{entry.etag}"

    # ---- names ------------------------------------------------------------------------------

    async def mkdir(self, parent: Ino, name: Name, *, mode: int, uid: int, gid: int) -> Stat:
        """Make a directory: a marker at the store, then a row."""
        self._writable()
        await self._refuse_existing(parent, name)
        inode = self._mint(parent, name, Kind.DIR, mode=mode, uid=uid, gid=gid)
        await self._store_or_undo(inode, lambda: self._store_meta(inode.ino))
        return self.stat(self._names.directory(inode.ino))

    async def symlink(self, parent: Ino, name: Name, target: bytes, *, uid: int, gid: int) -> Stat:
        """Make a symbolic link: an object whose body is the target."""
        self._writable()
        await self._refuse_existing(parent, name)
        inode = self._mint(parent, name, Kind.SYMLINK, mode=0o777, uid=uid, gid=gid)
        self._inodes.update(inode.ino, size=len(target))

        async def store() -> None:
            key = await self._names.settled_key(inode.ino)
            if key is None:
                raise Stale("the directory is gone")
            token = Token(secrets.token_hex(16))
            meta = metadata.encode(self._defaults.attrs(inode), token, {})
            try:
                info = await self._rooms.threads.ask(
                    self._store.put, key, BytesBody(target), meta=meta, if_match=None
                )
            except Changed:
                info = await self._rooms.threads.ask(self._store.head, key)
                if metadata.token_of(info) != token:
                    raise
            self._follow(inode, info.etag, meta)

        await self._store_or_undo(inode, store)
        made = self._inodes.get(inode.ino)
        assert made is not None
        return self.stat(made)

    async def _store_or_undo(self, inode: Inode, store: Callable[[], Awaitable[None]]) -> None:
        try:
            await store()
            self._inodes.made(inode.ino)
        except BaseException as error:
            self._inodes.made(inode.ino)
            self._inodes.detach(inode.ino, self._names.now_ns())
            self._inodes.drop(inode.ino)
            if inode.parent is not None and inode.name is not None:
                self._inodes.forget_removed(inode.parent, inode.name)
            if isinstance(error, Changed):
                raise Exists("something of that name appeared at the store") from error
            raise

    async def _refuse_existing(self, parent: Ino, name: Name) -> None:
        try:
            await self._names.lookup(parent, name)
        except NoEntry:
            return
        raise Exists("file exists")

    async def unlink(self, parent: Ino, name: Name) -> None:
        """Remove a file's name, at the store first. Who has it open keeps it."""
        self._writable()
        inode = await self._names.lookup(parent, name)
        if inode.is_dir:
            raise IsDirectory("is a directory")
        await self._renamer.keep_directory(parent, leaving=inode.ino)
        entry = self._rooms.cache.find(inode.ino)
        key = await self._names.settled_key(inode.ino)
        if key is None:
            raise NoEntry("no such file or directory")
        await self._keep_whole(inode.ino)
        with self._names.moving(key):
            while entry is not None and self._rooms.uploader.is_putting(entry.id):
                await self._rooms.uploader.stop(entry.id)
            current = self._inodes.get(inode.ino)
            if current is not None and (current.etag is not None or self._was_sent(inode.ino)):
                with contextlib.suppress(NotFound):
                    await self._rooms.threads.ask(self._store.delete, key)
            await self._unname(inode.ino)
        self._rooms.uploader.kick()
        self._touch_directory(parent)

    def _was_sent(self, ino: Ino) -> bool:
        """Whether an upload of the inode was ever begun, so that the store may have it although no answer came."""
        entry = self._rooms.cache.find(ino)
        intent = self._rooms.journal.of(entry.id) if entry is not None else None
        return intent is not None and intent.was_sent

    async def _keep_whole(self, ino: Ino) -> None:
        """Fetch the rest of an open file whose object is about to go, as far as the cache has room."""
        file = self._files.get(ino)
        if file is not None:
            with contextlib.suppress(StoreError, CacheError):
                await file.make_whole()

    async def _unname(self, ino: Ino) -> None:
        """Take an inode out of the tree; forget it unless it is open."""
        file = self._files.get(ino)
        entry = self._rooms.cache.find(ino)
        with self._db.transaction():
            self._inodes.detach(ino, self._names.now_ns())
            if entry is not None:
                self._rooms.uploader.forget(entry.id)
        if file is not None:
            file.is_detached = True
            file.sealed()
        else:
            await self._bury(ino)

    def _touch_directory(self, ino: Ino) -> None:
        now_ns = self._names.now_ns()
        self._inodes.update(ino, mtime_ns=now_ns, ctime_ns=now_ns)

    async def rmdir(self, parent: Ino, name: Name) -> None:
        """Remove an empty directory."""
        self._writable()
        inode = await self._names.lookup(parent, name)
        if not inode.is_dir:
            raise NotDirectory("not a directory")
        await self.require_empty(inode)
        await self._renamer.keep_directory(parent, leaving=inode.ino)
        key = await self._names.settled_key(inode.ino)
        if key is None:
            raise NoEntry("no such file or directory")
        with contextlib.suppress(NotFound):
            await self._rooms.threads.ask(self._store.delete, key)
        with self._db.transaction():
            self._inodes.detach(inode.ino, self._names.now_ns())
            self._inodes.drop(inode.ino)
        self._touch_directory(parent)

    async def require_empty(self, directory: Inode) -> None:
        """Raise ``NotEmpty`` if anything is in the directory, as the store shows it now."""
        self._inodes.update(directory.ino, listed_ns=None)
        await self._names.list_directory(directory.ino)
        if self._inodes.has_children(directory.ino):
            raise NotEmpty("directory not empty")

    async def rename(
        self, parent: Ino, name: Name, new_parent: Ino, new_name: Name, *, no_replace: bool
    ) -> None:
        """Give a file or directory another name, replacing what is there as rename(2) says."""
        self._writable()
        if len(new_name) > NAME_MAX:
            raise NameTooLong(f"a name has at most {NAME_MAX} bytes")
        source = await self._names.lookup(parent, name)
        try:
            target: Inode | None = await self._names.lookup(new_parent, new_name)
        except NoEntry:
            target = None
        if target is not None:
            if target.ino == source.ino:
                return
            if no_replace:
                raise Exists("file exists")
            await self._check_replacement(source, target)
            await self._keep_whole(target.ino)
        await self._renamer.rename(source, target, new_parent, new_name, replaced=self._unname)
        self._touch_directory(parent)
        self._touch_directory(new_parent)

    async def _check_replacement(self, source: Inode, target: Inode) -> None:
        if source.is_dir and not target.is_dir:
            raise NotDirectory("not a directory")
        if target.is_dir and not source.is_dir:
            raise IsDirectory("is a directory")
        if target.is_dir:
            await self.require_empty(target)

    # ---- extended attributes ----------------------------------------------------------------

    async def getxattr(self, ino: Ino, name: bytes) -> bytes:
        """Return one of the read-only ``user.cachefs.*`` attributes. Raise ``NoAttribute``."""
        found = self._attributes(ino).get(name)
        if found is None:
            raise NoAttribute("no such attribute")
        return found

    async def listxattr(self, ino: Ino) -> list[bytes]:
        """Return the names of the attributes that :meth:`getxattr` knows."""
        return list(self._attributes(ino))

    def _attributes(self, ino: Ino) -> dict[bytes, bytes]:
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        key = self._inodes.key_of(ino)
        found: dict[str, str | None] = {
            "key": key or None,
            "etag": inode.etag,
        }
        if not inode.is_dir:
            found |= self._state_of(inode)
        return {
            _ATTRIBUTE_PREFIX + label.encode(): value.encode("utf-8", "surrogateescape")
            for label, value in found.items()
            if value is not None
        }

    def _state_of(self, inode: Inode) -> dict[str, str | None]:
        entry = self._rooms.cache.find(inode.ino)
        if entry is None:
            return {"state": "remote", "cached_bytes": "0"}
        intent = self._rooms.journal.of(entry.id)
        if intent is not None:
            state = "uploading" if intent.state == "uploading" else "dirty"
            return {"state": state, "cached_bytes": str(entry.here.total), "error": intent.error}
        state = "cached" if entry.is_whole else "partial" if entry.here.total else "remote"
        return {"state": state, "cached_bytes": str(entry.here.total)}

    # ---- the end ----------------------------------------------------------------------------

    async def seal_closed(self) -> None:
        """Seal what nobody is writing any more, because the mount ends.

        A file that a program is in the middle of writing is not stored half done: its bytes stay in the
        journal.
        """
        for file in list(self._files.values()):
            if not file.writers:
                await self._seal(file, delay_s=0)

    @property
    def open_handles(self) -> int:
        """How many handles programs hold."""
        return len(self._handles)
