"""The file system in our own words: names and handles, as programs use them. Knows nothing of the kernel."""

import contextlib
import os
import secrets
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from cachefs.core import mediatypes, metadata
from cachefs.core.errors import (
    CacheError,
    Changed,
    Exists,
    IsDirectory,
    NameTooLong,
    NoEntry,
    NotDirectory,
    NotEmpty,
    NotFound,
    Overtaken,
    ReadOnly,
    Stale,
)
from cachefs.core.extents import Extent
from cachefs.core.keys import NAME_MAX
from cachefs.core.types import ETag, Fh, Ino, Key, Kind, Name, ObjectInfo, Token
from cachefs.engine.attributes import Attributes, Stat
from cachefs.engine.body import BytesBody
from cachefs.engine.conflict import Conflicts
from cachefs.engine.handles import Opened, OpenFiles
from cachefs.engine.listing import Listings, Reader
from cachefs.engine.openfile import OpenFile, Rooms
from cachefs.engine.rename import Renamer
from cachefs.engine.told import Told
from cachefs.engine.untold import Untold
from cachefs.engine.upload import Defaults
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.remote.store import ObjectStore

_OVERTAKEN: Final = 100
"""How often another version may come before the one that is about to be removed."""


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


class FileSystem:
    """Operations on names and handles. Every error raised is a ``CachefsError``."""

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        inodes: InodeTable,
        rooms: Rooms,
        renamer: Renamer,
        conflicts: Conflicts,
        defaults: Defaults,
        files: OpenFiles,
        attributes: Attributes,
        listings: Listings,
        *,
        read_only: bool,
    ) -> None:
        self._store = store
        self._db = db
        self._inodes = inodes
        self._rooms = rooms
        self._names = rooms.names
        self._renamer = renamer
        self._conflicts = conflicts
        self._defaults = defaults
        self.files = files
        self.attributes = attributes
        self._listings = listings
        self._read_only = read_only
        self.is_closing = False
        """Set when the mount ends: no more writes."""

    # ---- looking ----------------------------------------------------------------------------

    async def lookup(self, parent: Ino, name: Name) -> Stat:
        """Return what *name* stands for. Raise ``NoEntry``."""
        if name == b".":
            return self.attributes.stat(self._names.directory(parent))
        if name == b"..":
            up = self._names.directory(parent).parent
            return self.attributes.stat(self._names.directory(up or ROOT))
        return self._tell(await self._names.lookup(parent, name))

    def _tell(self, inode: Inode) -> Stat:
        """Return the attributes of *inode* for the kernel, which goes by its size from now on."""
        found = self.attributes.stat(inode)
        if inode.kind is Kind.FILE:
            self._names.told.tell(inode.ino, found.attrs.size)
        return found

    def shown(self, found: Stat) -> None:
        """Note that the kernel was told *found*, and goes by the length in it from now on."""
        if found.attrs.kind is Kind.FILE:
            self._names.told.tell(found.ino, found.attrs.size)

    @property
    def told(self) -> Told:
        """What the kernel takes the length of each file to be."""
        return self._names.told

    @property
    def untold(self) -> Untold:
        """What the kernel has to forget."""
        return self._names.untold

    async def getattr(self, ino: Ino) -> Stat:
        """Return the attributes of an inode, asking the store where what is known is too old."""
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        if not inode.is_dir and self.files.find(ino) is None:
            inode = await self._names.revalidate(ino)
        return self._tell(inode)

    @property
    def negative_ttl_s(self) -> float:
        """For how many seconds the kernel may believe that a name does not exist."""
        return self._names.negative_ttl_s

    async def opendir(self, ino: Ino) -> Reader:
        """Return a reader of the directory once its first names can be shown; see :meth:`Listings.open`."""
        return await self._listings.open(ino)

    async def rewinddir(self, reader: Reader) -> None:
        """Let *reader* show the directory anew, from its beginning."""
        await self._listings.rewind(reader)

    async def readdir(
        self, reader: Reader, after: int, limit: int, *, may_wait: bool = True
    ) -> list[tuple[Name, Stat]]:
        """Return children in order of their numbers, from the first one above *after*; none: there are no more.

        Unless it *may_wait*, none may also mean that the next ones have to be waited for.
        Which of them the kernel is told, the caller says by :meth:`shown`. Raise the error of a listing that failed
        behind what it has shown.
        """
        found = await self._listings.read(reader, after, limit, may_wait=may_wait)
        return [
            (child.name, self.attributes.stat(child)) for child in found if child.name is not None
        ]

    def directory(self, ino: Ino) -> Stat:
        """Return the attributes of a known directory, without asking the store."""
        return self.attributes.stat(self._names.directory(ino))

    def parent_of(self, ino: Ino) -> Ino:
        """Return the directory that holds the directory *ino*; the root's is itself."""
        return self._names.directory(ino).parent or ROOT

    def statfs(self) -> tuple[int, int]:
        """Return block size and the free blocks that ``df`` shows: a bucket has no end, so a large number."""
        return 4096, 2**38

    async def readlink(self, ino: Ino) -> bytes:
        """Return the target of a symbolic link: as the metadata says it, or else as the body does."""
        await self._names.revalidate(ino)
        key = await self._names.settled_key(ino)
        # Now, and not before: a rename that was waited for has made another version of it.
        inode = self._inodes.get(ino)
        if inode is None or inode.kind is not Kind.SYMLINK or key is None or inode.etag is None:
            raise Stale("not a symbolic link")
        target = metadata.decode(inode.meta or {}, inode.content_type).target
        if target is None:
            whole = Extent(0, inode.size)
            body = await self._rooms.through.read(key, inode.etag, inode.size, whole)
            target = bytes(body).strip()  # s3fs, too, takes blanks around it for dirt
        return target

    # ---- opening and closing ----------------------------------------------------------------

    async def open(self, ino: Ino, flags: int) -> Opened:
        """Open a file and start to fetch it; with O_TRUNC it is emptied."""
        is_writer = flags & os.O_ACCMODE != os.O_RDONLY
        if is_writer:
            self.require_writable()
        inode = await self._names.revalidate(ino, for_open=True)
        if inode.is_dir:
            raise IsDirectory("is a directory")
        if not flags & os.O_TRUNC:
            self.files.require_told(inode)
        file = await self.files.acquire(ino)
        try:
            if flags & os.O_TRUNC:
                await file.truncate(0)
                self._names.told.tell(ino, 0)
            elif flags & os.O_ACCMODE != os.O_WRONLY:
                file.opened()
        except BaseException:
            await self.files.give_back(file)
            raise
        return self.files.opened(file, is_writer=is_writer)

    async def create(
        self, parent: Ino, name: Name, flags: int, *, mode: int, uid: int, gid: int
    ) -> tuple[Opened, Stat]:
        """Make a file and open it for writing; if the name is taken, open what is there (but not with O_EXCL)."""
        self.require_writable()
        try:
            found = await self._names.lookup(parent, name)
        except NoEntry:
            pass
        else:
            if flags & os.O_EXCL:
                raise Exists("file exists")
            self._tell(found)
            opened = await self.open(found.ino, flags)
            return opened, await self.getattr(found.ino)
        inode = self._mint(parent, name, Kind.FILE, mode=mode, uid=uid, gid=gid)
        try:
            file = await self._begin_file(inode)
        finally:
            self._inodes.made(inode.ino)
        opened = self.files.created(file)
        return opened, self._tell(inode)

    async def _begin_file(self, inode: Inode) -> OpenFile:
        """Open and promise a file that has just been minted, or take its name away again."""
        try:
            file = await self.files.acquire(inode.ino)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.files.bury(inode.ino)
            raise
        try:
            await file.begin()
        except BaseException:
            file.is_detached = True
            with trio.CancelScope(shield=True):
                await self.files.give_back(file)
            raise
        return file

    def _mint(
        self, parent: Ino, name: Name, kind: Kind, *, mode: int, uid: int, gid: int
    ) -> Inode:
        directory = self._names.directory(parent)
        component = self._names.new_component(parent, name, is_dir=kind is Kind.DIR)
        if self._inodes.child(parent, name) is not None:
            raise Exists("file exists")
        above = self._defaults.attrs(directory)
        if above.mode & stat.S_ISGID:  # whatever is made in such a directory is of its group
            gid = above.gid
            mode |= stat.S_ISGID if kind is Kind.DIR else 0
        wall_ns = self._names.wall_ns()
        with self._db.transaction():
            made = self._inodes.mint(
                parent,
                name,
                component,
                kind,
                now_ns=self._names.now_ns(),
                wall_ns=wall_ns,
                mode=mode & 0o7777,
                uid=uid,
                gid=gid,
            )
            self._inodes.update(directory.ino, mtime_ns=wall_ns, ctime_ns=wall_ns)
        self._names.forget_absent(parent, name)
        return made

    def require_writable(self) -> None:
        """Raise ``ReadOnly`` where nothing may be changed, or not any more."""
        if self._read_only or self._store.capabilities.writable is False:
            raise ReadOnly("mounted read-only")
        if self.is_closing:
            raise ReadOnly("the mount is ending")

    # ---- bytes ------------------------------------------------------------------------------

    async def read(self, fh: Fh, offset: int, size: int) -> bytes | memoryview:
        """Return bytes of an open file, fewer only at its end; valid until the caller awaits anything."""
        return await self.files.read(fh, offset, size)

    async def write(self, fh: Fh, offset: int, data: bytes) -> int:
        """Write to an open file. Return how many bytes: all of them."""
        self.require_writable()
        return await self.files.write(fh, offset, data)

    async def flush(self, fh: Fh) -> None:
        """Answer a close: with ``--upload close`` after the object is stored, else once it is safe here."""
        await self.files.flush(fh)

    async def fsync(self, fh: Fh) -> None:
        """Return after the object is stored."""
        await self.files.fsync(fh)

    async def release(self, fh: Fh) -> None:
        """Close a handle."""
        await self.files.release(fh)

    # ---- attributes -------------------------------------------------------------------------

    async def setattr(self, ino: Ino, changes: Changes, fh: Fh | None = None) -> Stat:
        """Change attributes, at the store too unless they will travel with an upload."""
        self.require_writable()
        if changes.size is not None:
            await self._truncate(ino, changes.size, fh)
        if changes.columns:
            await self.attributes.set(ino, changes.columns)
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        return self._tell(inode)

    async def setxattr(self, ino: Ino, name: bytes, value: bytes | None) -> None:
        """Set an extended attribute, or remove it (None)."""
        self.require_writable()
        await self.attributes.setxattr(ino, name, value)

    async def _truncate(self, ino: Ino, size: int, fh: Fh | None) -> None:
        if fh is not None:
            await self.files.of(fh).truncate(size)
            return
        await self._names.revalidate(ino)
        file = await self.files.acquire(ino)
        try:
            await file.truncate(size)
            if not file.writers:  # no close will follow that could upload it
                await self.files.complete(file)
        finally:
            await self.files.give_back(file)

    # ---- names ------------------------------------------------------------------------------

    async def mkdir(self, parent: Ino, name: Name, *, mode: int, uid: int, gid: int) -> Stat:
        """Make a directory: a marker at the store, then a row."""
        self.require_writable()
        await self._refuse_existing(parent, name)
        inode = self._mint(parent, name, Kind.DIR, mode=mode, uid=uid, gid=gid)
        await self._store_or_undo(inode, lambda: self.attributes.store(inode.ino))
        return self.attributes.stat(self._names.directory(inode.ino))

    async def symlink(self, parent: Ino, name: Name, target: bytes, *, uid: int, gid: int) -> Stat:
        """Make a symbolic link: an object whose body is the target."""
        self.require_writable()
        await self._refuse_existing(parent, name)
        inode = self._mint(parent, name, Kind.SYMLINK, mode=0o777, uid=uid, gid=gid)
        self._inodes.update(inode.ino, size=len(target))
        return await self._store_bodily(inode, target, metadata.pointing_to(target))

    async def make_special(
        self, parent: Ino, name: Name, kind: Kind, *, mode: int, uid: int, gid: int
    ) -> Stat:
        """Make a fifo or a socket: an empty object whose mode says so. What passes through it stays in the kernel."""
        self.require_writable()
        await self._refuse_existing(parent, name)
        inode = self._mint(parent, name, kind, mode=mode, uid=uid, gid=gid)
        return await self._store_bodily(inode, b"", {})

    async def _store_bodily(self, inode: Inode, body: bytes, said: dict[str, str]) -> Stat:
        """Store something that no program will write to as it stands, with *said* in its metadata."""

        async def store() -> None:
            key = await self._names.settled_key(inode.ino)
            if key is None:
                raise Stale("the directory is gone")
            token = Token(secrets.token_hex(16))
            attrs = replace(self._defaults.attrs(inode), size=len(body))
            meta = metadata.encode(attrs, token, said)
            try:
                info = await self._rooms.threads.ask(
                    self._store.put,
                    key,
                    BytesBody(body),
                    meta=meta,
                    content_type=mediatypes.BYTES,
                    if_match=None,
                )
            except Changed:
                info = await self._rooms.threads.ask(self._store.head, key)
                if metadata.token_of(info) != token:
                    raise
            self.attributes.follow(inode, info, meta)

        await self._store_or_undo(inode, store)
        made = self._inodes.get(inode.ino)
        assert made is not None
        return self.attributes.stat(made)

    async def _store_or_undo(self, inode: Inode, store: Callable[[], Awaitable[None]]) -> None:
        try:
            await store()
            self._inodes.made(inode.ino)
        except BaseException as error:
            self._inodes.made(inode.ino)
            with trio.CancelScope(shield=True):
                await self.files.bury(inode.ino)
            self._inodes.forget_removed(inode)
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
        self.require_writable()
        inode = await self._names.lookup(parent, name)
        if inode.is_dir:
            raise IsDirectory("is a directory")
        await self._renamer.keep_directory(parent, leaving=inode.ino)
        entry = self._rooms.cache.find(inode.ino)
        key = await self._names.settled_key(inode.ino)
        if key is None:
            raise NoEntry("no such file or directory")
        await self.files.keep_whole(inode.ino)
        with self._names.moving(key):
            while entry is not None and self._rooms.uploader.is_putting(entry.id):
                await self._rooms.uploader.stop(entry.id)
            await self._delete_seen(inode, key)
            self.attributes.checksums.forget(key)
            await self.files.unname(inode.ino)
        if key.endswith("/"):  # the marker of the directory itself, which had content
            self._inodes.update(parent, etag=None)
            await self._renamer.keep_directory(parent, leaving=inode.ino)
        self._rooms.uploader.kick()
        self._touch_directory(parent)

    async def _delete_seen(self, inode: Inode, key: Key) -> None:
        """Delete the version that this mount knows. One that it does not know is dealt with as ``--conflict`` says."""
        current = self._inodes.get(inode.ino)
        seen = None if current is None else current.etag
        sent = self._token_sent(inode.ino)
        if seen is None and sent is None:
            return  # never stored: whatever is there is somebody else's
        for _ in range(_OVERTAKEN):
            if seen is not None and await self._delete(key, seen):
                return
            found = await self._renamer.head(key)
            if found is None:
                return
            if sent is None or metadata.token_of(found) != sent:
                if seen is None:
                    return
                await self._make_way(inode, key, found)
            seen = found.etag
        raise Changed("the file is written to without a pause")

    async def _delete(self, key: Key, version: ETag) -> bool:
        """Delete that version. Return False if another is there."""
        try:
            await self._rooms.threads.ask(self._store.delete, key, if_match=version)
        except NotFound:
            return True
        except Changed:
            return False
        return True

    async def _make_way(self, inode: Inode, key: Key, found: ObjectInfo) -> None:
        try:
            await self._conflicts.make_way(inode.component, key, found, "removed")
        except Overtaken:
            self._names.doubt(inode.ino)
            raise

    def _token_sent(self, ino: Ino) -> Token | None:
        """Return the token of an upload of the inode that was begun: the store may have it although no answer came."""
        entry = self._rooms.cache.find(ino)
        intent = self._rooms.journal.of(entry.id) if entry is not None else None
        return intent.token if intent is not None and intent.was_sent else None

    def _touch_directory(self, ino: Ino) -> None:
        wall_ns = self._names.wall_ns()
        self._inodes.update(ino, mtime_ns=wall_ns, ctime_ns=wall_ns)

    async def rmdir(self, parent: Ino, name: Name) -> None:
        """Remove an empty directory."""
        self.require_writable()
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
        await self._names.list_now(directory.ino)
        if self._inodes.has_children(directory.ino):
            raise NotEmpty("directory not empty")

    async def rename(
        self, parent: Ino, name: Name, new_parent: Ino, new_name: Name, *, no_replace: bool
    ) -> None:
        """Give a file or directory another name, replacing what is there as rename(2) says."""
        self.require_writable()
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
            await self.files.keep_whole(target.ino)
        await self._renamer.rename(
            source,
            target,
            new_parent,
            new_name,
            no_replace=no_replace,
            replaced=self.replaced_by(source.ino),
        )
        self._touch_directory(parent)
        self._touch_directory(new_parent)

    def replaced_by(self, ino: Ino) -> Callable[[Ino], Awaitable[None]]:
        """Return what takes an inode out of the tree whose name *ino* has taken."""

        async def unname(replaced: Ino) -> None:
            with contextlib.suppress(
                CacheError
            ):  # the history is the least that a full disk costs
                self._rooms.history.inherit(ino, replaced)
            await self.files.unname(replaced)

        return unname

    async def _check_replacement(self, source: Inode, target: Inode) -> None:
        if source.is_dir and not target.is_dir:
            raise NotDirectory("not a directory")
        if target.is_dir and not source.is_dir:
            raise IsDirectory("is a directory")
        if target.is_dir:
            await self.require_empty(target)
