"""Gives a name other bytes all at once: whoever opens it gets what it had or what it has, whatever comes in between.

The bytes are written to a file without a name, which after a crash is nobody's. They get the name when they, and the word
of what they are owed to, are safe on the disk: in one transaction, which also makes the directories on the way.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from cachefs.core import metadata
from cachefs.core.errors import (
    Changed,
    DiskFailed,
    DiskFull,
    Exists,
    Fault,
    InvalidName,
    IsDirectory,
    NameTooLong,
    NoEntry,
    NoRoom,
    NotDirectory,
    Stale,
    TimedOut,
    disk_error,
)
from cachefs.core.extents import Extent
from cachefs.core.keys import NAME_MAX, child_key, component_of
from cachefs.core.policy import SECOND_NS
from cachefs.core.types import ETag, Ino, Key, Kind, Name
from cachefs.engine.background import Background
from cachefs.engine.filesystem import FileSystem
from cachefs.engine.openfile import OpenFile, Rooms
from cachefs.engine.promise import Promise
from cachefs.engine.rename import Renamer
from cachefs.engine.upload import Defaults
from cachefs.local.cache import BLOCK, SLACK, blocks_of
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.remote import deadline
from cachefs.remote.store import ObjectStore

_CHUNK: Final = 4 * 2**20
_GRACE_S: Final = 1.0
"""How long what was replaced can be opened by those who looked it up before: the kernel looks a second time, no third."""
_TRIES: Final = 100
"""How often somebody else may change the name before it is taken."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A name, and what of the way to it is there."""

    parent: Ino
    """The last directory on the way that there is."""
    missing: tuple[Name, ...]
    """Those below it that there are not."""
    name: Name
    component: str
    key: Key
    target: Inode | None
    """What has the name now."""


@dataclass(frozen=True, slots=True)
class Version:
    """One content of a file, as whoever has read it knows it."""

    etag: ETag | None
    """None: the store did not have it then."""
    size: int
    mtime_ns: int

    def is_of(self, etag: ETag | None, size: int, mtime_ns: int) -> bool:
        """Whether a file that is so now still has that content: it may have come to the store since."""
        return (self.size, self.mtime_ns) == (size, mtime_ns) and self.etag in (None, etag)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What was asked for."""

    parts: tuple[Name, ...]
    may_replace: bool
    grown_from: Version | None


class Replacer:
    """Puts whole files in the place of what a path stands for."""

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        inodes: InodeTable,
        rooms: Rooms,
        renamer: Renamer,
        fs: FileSystem,
        defaults: Defaults,
        *,
        upload_delay_s: float,
        background: Background,
    ) -> None:
        self._background = background
        self._store = store
        self._db = db
        self._inodes = inodes
        self._rooms = rooms
        self._names = rooms.names
        self._renamer = renamer
        self._fs = fs
        self._files = fs.files
        self._defaults = defaults
        self._upload_delay_s = upload_delay_s

    async def put(
        self,
        parts: Sequence[Name],
        source: int,
        *,
        may_replace: bool,
        grown_from: Version | None = None,
    ) -> Inode:
        """Have the bytes of the plain file *source* (a descriptor) under the name that *parts* lead to.

        Returns, as a close would, after the object is stored, or once bytes and promise are safe here. Until then the
        name stands for what it did, and so it does where this raises; but for an error of the store after the bytes
        were taken in: they wait for their upload then.

        A file that is replaced keeps its mode and owner. Raise ``Stale`` if *source* is changed meanwhile, ``NoRoom`` for
        what the cache cannot hold, ``Exists`` where something is there that is not to be replaced, ``Changed`` where that is
        no more the version that the bytes have *grown_from*.
        """
        wanted = _Wanted(tuple(parts), may_replace, grown_from)
        with deadline.limited(self._rooms.timeout_s):
            place = await self._place(wanted)
        size = os.fstat(source).st_size
        if blocks_of(Extent(0, size)) + SLACK + BLOCK > self._rooms.cache.limit:
            raise NoRoom(f"its {size} bytes are more than the whole cache may hold")
        file = await self._nameless(place)
        try:
            await self._fill(file, source)
            with deadline.limited(self._rooms.timeout_s):
                await self._give_name(file, wanted)
                await self._files.complete(file)
        finally:
            with trio.CancelScope(shield=True):
                await self._files.give_back(file)
        made = self._inodes.get(file.ino)
        if made is None:
            raise Stale("the file was removed meanwhile")
        return made

    # ---- where ------------------------------------------------------------------------------

    async def _place(self, wanted: _Wanted) -> _Place:
        place = await self._found(wanted.parts)
        self._check(place.target, wanted)
        return place

    def _check(self, target: Inode | None, wanted: _Wanted) -> None:
        """Raise where what has the name is not what may be replaced."""
        if target is not None and not wanted.may_replace:
            raise Exists("file exists")
        if target is not None and target.is_dir:
            raise IsDirectory("is a directory")
        if wanted.grown_from is None:
            return
        if target is None:
            raise Changed("the file was removed meanwhile")
        attrs = self._fs.attributes.stat(target).attrs
        etag = None if self._rooms.journal.is_dirty(target.ino) else target.etag
        if not wanted.grown_from.is_of(etag, attrs.size, attrs.mtime_ns):
            raise Changed("the file has other content by now")

    async def _found(self, parts: Sequence[Name]) -> _Place:
        self._fs.require_writable()
        *above, name = parts
        parent = ROOT
        for at, part in enumerate(above):
            try:
                directory = await self._names.lookup(parent, part)
            except NoEntry:
                return self._new_below(parent, above[at:], name)
            if not directory.is_dir:
                raise NotDirectory("not a directory")
            parent = directory.ino
        try:
            target = await self._names.lookup(parent, name)
        except NoEntry:
            return self._new_below(parent, [], name)
        key = await self._names.settled_key(target.ino)
        if key is None:
            raise Stale("the file was removed meanwhile")
        return _Place(parent, (), name, target.component, key, target)

    def _new_below(self, parent: Ino, missing: Sequence[Name], name: Name) -> _Place:
        """Return the place of something new, below directories that are made on its way."""
        if not missing:
            component = self._names.new_component(parent, name, is_dir=False)
            key = self._inodes.key_of(parent)
            if key is None:
                raise NoEntry("the directory is gone")
            return _Place(parent, (), name, component, child_key(key, component), None)
        if parent == ROOT and self._store.capabilities.is_many:
            raise NoEntry("no such bucket")
        key = self._inodes.key_of(parent) or Key("")
        for part in missing:
            key = child_key(key, _plain(part), is_dir=True)
        component = _plain(name)
        if not component:
            raise InvalidName(f"the name {name!r} is reserved for what a directory's marker holds")
        key = child_key(key, component)
        self._store.check_key(key)
        return _Place(parent, tuple(missing), name, component, key, None)

    # ---- bytes ------------------------------------------------------------------------------

    async def _nameless(self, place: _Place) -> OpenFile:
        """Return a new empty file that nobody can see."""
        target, defaults = place.target, self._defaults
        keeps = target is not None and target.kind is Kind.FILE
        attrs = defaults.attrs(target) if target is not None and keeps else None
        inode = self._inodes.mint_nameless(
            place.component,
            now_ns=self._names.now_ns(),
            wall_ns=self._names.wall_ns(),
            mode=defaults.file_mode if attrs is None else attrs.mode,
            uid=defaults.uid if attrs is None else attrs.uid,
            gid=defaults.gid if attrs is None else attrs.gid,
        )
        try:
            file = await self._files.acquire(inode.ino)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._files.bury(inode.ino)
            raise
        file.is_detached = True  # until it has a name its bytes are owed to nobody
        return file

    async def _fill(self, file: OpenFile, source: int) -> None:
        """Copy *source*. Each piece has the time that a write has."""
        before, offset = os.fstat(source), 0
        with deadline.limited(self._rooms.timeout_s):
            await file.begin()
        while True:
            with deadline.limited(self._rooms.timeout_s):
                data = await self._read(source, offset)
                if not data:
                    break
                self._fs.require_writable()
                await file.write(offset, data)
            offset += len(data)
        after = os.fstat(source)
        if offset != before.st_size or after.st_mtime_ns != before.st_mtime_ns:
            raise Stale("the file was changed while it was taken in")

    async def _read(self, source: int, offset: int) -> bytes:
        try:
            # Not in one of the cache's own threads: what is read may lie in the mount that these serve.
            return await self._rooms.threads.at_length(lambda: os.pread(source, _CHUNK, offset))
        except OSError as error:
            raise DiskFailed(f"the file cannot be read: {error.strerror}") from error

    # ---- the name ---------------------------------------------------------------------------

    async def _give_name(self, file: OpenFile, wanted: _Wanted) -> None:
        for _ in range(_TRIES):
            place = await self._place(wanted)
            if self._names.is_moving(place.key):
                await self._names.wait_still(place.key)
                continue
            async with self._kept(place):
                if await self._has_taken(file, place, wanted):
                    break
        else:
            raise TimedOut("the name stands for something else again and again")
        self._files.count(file)
        self._rooms.uploader.note_cause(file.entry.id)
        self._rooms.uploader.kick()

    async def _has_taken(self, file: OpenFile, place: _Place, wanted: _Wanted) -> bool:
        """Give *file* the name. Return False if that stands for something else by now."""
        if self._names.is_moving(place.key):
            return False
        with self._names.moving(place.key):
            await self._stop_upload(place)
            base = await self._base(place)
            await self._promise(file, place.key, base)
            if not self._is_as_found(place):
                return False
            self._check(self._inodes.child(place.parent, place.name), wanted)
            self._fs.require_writable()
            with trio.CancelScope(shield=True):
                await self._take_name(file, place, base)
            return True

    @asynccontextmanager
    async def _kept(self, place: _Place) -> AsyncIterator[None]:
        """Keep what is to be replaced for those who have it open, or are just about to: their open looked it up before."""
        if place.target is None:
            yield
            return
        ino = place.target.ino
        await self._files.keep_whole(ino)
        entry = self._rooms.cache.find(ino)
        if entry is None or not entry.is_whole:
            yield
            return
        try:
            old = await self._files.acquire(ino)
        except Stale:  # it has gone by itself
            yield
            return
        try:
            yield
        finally:
            self._background.start("what was replaced", partial(self._let_go, old))

    async def _let_go(self, old: OpenFile) -> None:
        try:
            if old.is_detached:
                await trio.sleep(_GRACE_S)
        finally:
            with trio.CancelScope(shield=True):
                await self._files.give_back(old)

    async def _stop_upload(self, place: _Place) -> None:
        entry = None if place.target is None else self._rooms.cache.find(place.target.ino)
        while entry is not None and self._rooms.uploader.is_putting(entry.id):
            await self._rooms.uploader.stop(entry.id)

    def _is_as_found(self, place: _Place) -> bool:
        """Whether the name, and the way to it, are what they were when they were looked at."""
        first = place.missing[0] if place.missing else place.name
        found, target = self._inodes.child(place.parent, first), place.target
        if target is None or found is None:
            way = self._inodes.key_of(place.parent)
            is_there = way is not None and place.key.startswith(way)
            return found is None and target is None and is_there
        is_same = (found.ino, found.etag) == (target.ino, target.etag)
        return is_same and self._inodes.key_of(found.ino) == place.key

    async def _base(self, place: _Place) -> ETag | None:
        """Return the version that is replaced: that of an upload, too, of which the answer never came."""
        if place.target is None:
            return None
        entry = self._rooms.cache.find(place.target.ino)
        intent = None if entry is None else self._rooms.journal.of(entry.id)
        if intent is not None and intent.was_sent:
            # Where it cannot be asked now, the bytes meet it at the store, and both stay.
            with suppress(Fault):
                found = await self._renamer.head(place.key)
                if found is not None and metadata.token_of(found) == intent.token:
                    return found.etag
        return place.target.etag

    async def _promise(self, file: OpenFile, key: Key, base: ETag | None) -> None:
        """Put the bytes, and what they will be owed to, on the disk. What has no name is owed to nobody yet."""
        rooms, entry = self._rooms, file.entry
        if rooms.journal.of(entry.id) is None:
            room = await rooms.room.wait(BLOCK, rooms.timeout_s, rooms.uploader.hurry_all)
            try:
                with self._db.transaction():
                    rooms.journal.begin(entry.id)
                    rooms.cache.promise_made(room)
            finally:
                rooms.cache.release(room)
        intent = rooms.journal.of(entry.id)
        assert intent is not None
        entry.sums = await rooms.threads.disk(rooms.cache.summed, entry.fd, entry.size)
        promise = Promise(key, base, intent.token, is_sealed=True, check=entry.sums.check)
        write = partial(rooms.cache.sync, entry.id, entry.fd, promise.encode())
        try:
            try:
                await rooms.threads.disk(write)
            except DiskFull:
                if not await rooms.room.squeeze(BLOCK):
                    raise
                await rooms.threads.disk(write)
        except OSError as error:
            raise disk_error(error) from error

    async def _take_name(self, file: OpenFile, place: _Place, base: ETag | None) -> None:
        """Put the file in the place of what has the name, and forget that once a loss of power cannot bring it back."""
        rooms, now_ns, wall_ns = self._rooms, self._names.now_ns(), self._names.wall_ns()
        with self._db.transaction():
            parent = self._made_way(place)
            lost = self._inodes.child(parent, place.name)
            if lost is not None:
                self._inodes.detach(lost.ino, now_ns)
            self._inodes.inherit_pin(file.ino, lost)
            self._inodes.move(
                file.ino, parent, place.name, place.component, now_ns, wall_ns=wall_ns
            )
            self._inodes.update(parent, mtime_ns=wall_ns, ctime_ns=wall_ns)
            self._inodes.update(file.ino, etag=base)
            file.alter()
            self._files.save(file)
            rooms.cache.change(file.entry, etag=base)
            due_ns = now_ns + int(self._upload_delay_s * SECOND_NS)
            rooms.journal.seal(file.entry.id, due_ns=due_ns, is_synced=True)
        file.is_detached = False
        first = place.missing[0] if place.missing else place.name
        for directory, name in {(place.parent, first), (parent, place.name)}:
            self._names.forget_absent(directory, name)
            self._names.tell_kernel(directory, name)
        try:
            await rooms.threads.disk(self._db.sync_wal, self._db.path)
        except OSError as error:
            raise disk_error(error) from error
        if lost is not None:
            await self._fs.replaced_by(file.ino)(lost.ino)

    def _made_way(self, place: _Place) -> Ino:
        """Make the directories that are missing, which the store shows by what is in them."""
        parent = place.parent
        for name in place.missing:
            made = self._inodes.mint(
                parent,
                name,
                self._names.new_component(parent, name, is_dir=True),
                Kind.DIR,
                now_ns=self._names.now_ns(),
                wall_ns=self._names.wall_ns(),
                mode=self._defaults.dir_mode,
                uid=self._defaults.uid,
                gid=self._defaults.gid,
            )
            self._inodes.made(made.ino)
            parent = made.ino
        return parent


def _plain(name: Name) -> str:
    """Return the component of a name in a directory that there is not yet. Raise where none can have it."""
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name has at most {NAME_MAX} bytes")
    component, is_shadowed = component_of(name)
    if is_shadowed:
        raise InvalidName(f"the name {name!r} is reserved for an object beside a directory")
    return component
