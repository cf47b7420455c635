"""The file system by paths, for programs that come through no kernel.

A path is relative to the root, with names as the tree shows them; empty: the root. Each operation ends: what it waits for
has the time that an operation of the kernel has.
"""

from dataclasses import asdict, dataclass
from functools import partial

import trio

from cachefs.core.errors import (
    Changed,
    Exists,
    InvalidName,
    IsDirectory,
    NoEntry,
    NotDirectory,
    TreeError,
)
from cachefs.core.types import ETag, Ino, Kind, Name
from cachefs.engine.attributes import Attributes
from cachefs.engine.filesystem import FileSystem
from cachefs.engine.listing import Listings, Reader
from cachefs.engine.names import Names
from cachefs.engine.replacing import Replacer, Version
from cachefs.engine.upload import Defaults
from cachefs.local.inodes import ROOT, Inode
from cachefs.local.journal import Journal
from cachefs.remote import deadline


@dataclass(frozen=True, slots=True)
class Found:
    """What a path stands for."""

    name: str
    """The last part of the path; empty: the root."""
    kind: Kind
    size: int
    mode: int
    """Permission bits."""
    uid: int
    gid: int
    mtime_ns: int
    etag: ETag | None
    """None: a directory, or the store does not have these bytes yet."""
    ino: Ino
    """By which the next page of a listing is asked for."""

    def to_json(self) -> dict[str, object]:
        """Return it fit for JSON."""
        return asdict(self)


class Paths:
    """Operations by path. What they change is told to the kernel, where there is one."""

    def __init__(
        self,
        fs: FileSystem,
        names: Names,
        journal: Journal,
        attributes: Attributes,
        listings: Listings,
        replacer: Replacer,
        defaults: Defaults,
        *,
        timeout_s: float,
    ) -> None:
        self._fs = fs
        self._names = names
        self._journal = journal
        self._attributes = attributes
        self._listings = listings
        self._replacer = replacer
        self._defaults = defaults
        self._limit = partial(deadline.limited, timeout_s)

    async def stat(self, path: str) -> Found:
        """Tell what *path* stands for, as the store has it now. Raise ``NoEntry``."""
        with self._limit():
            return self._found(await self._walk(_parts(path)))

    async def open_list(self, path: str) -> Reader:
        """Return a reader of the directory *path*, once its first names can be shown."""
        with self._limit():
            inode = await self._walk(_parts(path))
            if not inode.is_dir:
                raise NotDirectory("not a directory")
            return await self._listings.open(inode.ino)

    async def list(self, reader: Reader, after: int, limit: int) -> list[Found]:
        """Return what follows the number *after* in a directory, *limit* names at most; none: there are no more."""
        with self._limit():
            return [
                self._found(child) for child in await self._listings.read(reader, after, limit)
            ]

    async def read(self, path: str, offset: int, size: int, version: Version) -> bytes:
        """Return bytes of a file, fewer only at its end, and fetch no more than that takes.

        Raise ``Changed`` where it is not of that *version*: all that is read of a file is to be of one.
        """
        with self._limit():
            inode = await self._walk(_parts(path))
            if inode.kind is not Kind.FILE:
                raise IsDirectory("is a directory") if inode.is_dir else TreeError("is no file")
            file = await self._fs.files.acquire(inode.ino)
            try:
                if offset == 0:  # once for whoever reads it from its beginning
                    self._fs.files.count(file)
                found = self._found(inode)
                if not version.is_of(found.etag, found.size, found.mtime_ns):
                    raise Changed("the file has other content by now")
                return bytes(await file.read(offset, size))
            finally:
                with trio.CancelScope(shield=True):
                    await self._fs.files.give_back(file)

    async def put(
        self, path: str, source: int, *, may_replace: bool, grown_from: Version | None = None
    ) -> Found:
        """Put the file *source* (a descriptor) in the place of what *path* stands for; see :meth:`Replacer.put`."""
        parts = _parts(path)
        if not parts:
            raise IsDirectory("is a directory")
        made = await self._replacer.put(
            parts, source, may_replace=may_replace, grown_from=grown_from
        )
        return self._found(made)

    async def mkdir(self, path: str, *, parents: bool) -> None:
        """Make a directory, and those above it if *parents*, which may then be there already."""
        parts = _parts(path)
        if not parts and not parents:
            raise Exists("file exists")
        with self._limit():
            ino = ROOT
            for part in parts[:-1]:
                ino = await self._entered(ino, part, may_make=parents)
            if parents and parts:
                await self._entered(ino, parts[-1], may_make=True)
            elif parts:
                await self._make(ino, parts[-1])

    async def delete(self, path: str) -> None:
        """Remove a file, or an empty directory."""
        with self._limit():
            parent, name = await self._spot(path)
            inode = await self._names.lookup(parent, name)
            await (self._fs.rmdir if inode.is_dir else self._fs.unlink)(parent, name)
            self._names.tell_kernel(parent, name)

    async def rename(self, path: str, target: str, *, may_replace: bool) -> None:
        """Give a file or a directory another path, as rename(2) does."""
        with self._limit():
            parent, name = await self._spot(path)
            new_parent, new_name = await self._spot(target)
            await self._fs.rename(parent, name, new_parent, new_name, no_replace=not may_replace)
            self._names.tell_kernel(parent, name)
            self._names.tell_kernel(new_parent, new_name)

    # ---- steps ------------------------------------------------------------------------------

    async def _walk(self, parts: tuple[Name, ...]) -> Inode:
        inode = self._names.directory(ROOT)
        for part in parts:
            if not inode.is_dir:
                raise NotDirectory("not a directory")
            inode = await self._names.lookup(inode.ino, part)
        return inode

    async def _spot(self, path: str) -> tuple[Ino, Name]:
        """Return the directory that holds what *path* stands for, and its name there."""
        parts = _parts(path)
        if not parts:
            raise InvalidName("the root has no name")
        directory = await self._walk(parts[:-1])
        return self._names.directory(directory.ino).ino, parts[-1]

    async def _entered(self, parent: Ino, name: Name, *, may_make: bool) -> Ino:
        """Return the directory *name*, making it if it is not there."""
        try:
            inode = await self._names.lookup(parent, name)
        except NoEntry:
            if not may_make:
                raise
            return await self._make(parent, name)
        return self._names.directory(inode.ino).ino

    async def _make(self, parent: Ino, name: Name) -> Ino:
        defaults = self._defaults
        made = await self._fs.mkdir(
            parent, name, mode=defaults.dir_mode, uid=defaults.uid, gid=defaults.gid
        )
        self._names.forget_absent(parent, name)
        self._names.tell_kernel(parent, name)
        return made.ino

    def _found(self, inode: Inode) -> Found:
        attrs = self._attributes.stat(inode).attrs
        is_stored = not inode.is_dir and not self._journal.is_dirty(inode.ino)
        return Found(
            name=bytes(inode.name or b"").decode("utf-8", "surrogateescape"),
            kind=attrs.kind,
            size=attrs.size,
            mode=attrs.mode,
            uid=attrs.uid,
            gid=attrs.gid,
            mtime_ns=attrs.mtime_ns,
            etag=inode.etag if is_stored else None,
            ino=inode.ino,
        )


def _parts(path: str) -> tuple[Name, ...]:
    """Return the names that lead to *path*. Raise ``InvalidName`` where one of them would lead up."""
    spelled = path.encode("utf-8", "surrogateescape")
    parts = [part for part in spelled.split(b"/") if part]
    if b"." in parts or b".." in parts or b"\0" in spelled:
        raise InvalidName("a path has no `.` nor `..` in it, and no NUL")
    return tuple(map(Name, parts))
