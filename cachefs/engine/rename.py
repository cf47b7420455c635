"""Renames: copied at the store, then deleted there, and journaled so that a crash leaves each object one name.

Until every copy stands, the old names hold and a failure removes the copies. From then on the new names hold,
and only the sources remain to be deleted, now or after a crash.
"""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from cachefs.core import mediatypes, metadata
from cachefs.core.errors import (
    CacheError,
    Changed,
    CrossDevice,
    DiskFull,
    Exists,
    NoEntry,
    NotFound,
    Overtaken,
    Stale,
    Unsupported,
    disk_error,
)
from cachefs.core.keys import child_key
from cachefs.core.policy import SECOND_NS, is_fresh
from cachefs.core.types import EntryId, ETag, Ino, Key, Kind, Name, ObjectInfo
from cachefs.engine.body import BytesBody
from cachefs.engine.checksums import Checksums
from cachefs.engine.conflict import Conflicts
from cachefs.engine.names import Names
from cachefs.engine.promise import Promise, restated
from cachefs.engine.room import Room
from cachefs.engine.second_look import SecondLooks
from cachefs.engine.threads import Threads
from cachefs.engine.unfinished import Unfinished, by_depth
from cachefs.engine.upload import Defaults, Uploader
from cachefs.local.cache import BLOCK, Cache
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.local.journal import Journal, Move
from cachefs.remote.store import ObjectStore

_log = logging.getLogger(__name__)

_SMALL = 2**20
"""Bytes that are sent again sooner than a store is asked twice: an editor's file, not a video."""
_NEW_NS = 60 * SECOND_NS
"""How long after its making a file is renamed by who made it under another name, as editors do."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """One rename: which inode goes where, and what it replaces."""

    source: Inode
    target: Inode | None
    parent: Ino
    name: Name
    component: str
    old_key: Key
    new_key: Key
    no_replace: bool


class Renamer:
    """Carries renames out."""

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        inodes: InodeTable,
        journal: Journal,
        cache: Cache,
        names: Names,
        uploader: Uploader,
        conflicts: Conflicts,
        unfinished: Unfinished,
        second: SecondLooks,
        checksums: Checksums,
        room: Room,
        threads: Threads,
        defaults: Defaults,
    ) -> None:
        self._store = store
        self._db = db
        self._inodes = inodes
        self._journal = journal
        self._cache = cache
        self._names = names
        self._uploader = uploader
        self._conflicts = conflicts
        self._unfinished = unfinished
        self._second = second
        self._checksums = checksums
        self._room = room
        self._threads = threads
        self._defaults = defaults

    async def rename(
        self,
        source: Inode,
        target: Inode | None,
        parent: Ino,
        name: Name,
        *,
        no_replace: bool,
        replaced: Callable[[Ino], Awaitable[None]],
    ) -> None:
        """Move *source* to *name* in *parent*, where *target* is now.

        *no_replace*: raise ``Exists`` if something turns up there. *replaced* buries an inode that lost its name.
        """
        plan = await self._plan(source, target, parent, name, no_replace=no_replace)
        if self._store.capabilities.is_many and _bucket(plan.old_key) != _bucket(plan.new_key):
            raise CrossDevice("the two names are in different buckets")
        await self._unfinished.make_way(plan.old_key, plan.new_key)
        if source.parent is not None:
            await self.keep_directory(source.parent, leaving=source.ino)
        try:
            if source.is_dir:
                await self._rename_directory(plan, replaced)
            else:
                await self._rename_file(plan, replaced)
        except Unsupported as error:
            raise CrossDevice("the store cannot copy from there to here") from error
        for directory, entry_name in ((source.parent, source.name), (parent, name)):
            if directory is not None and entry_name is not None:
                self._names.forget_absent(directory, entry_name)

    async def _plan(
        self, source: Inode, target: Inode | None, parent: Ino, name: Name, *, no_replace: bool
    ) -> _Plan:
        if target is None:
            component = self._names.new_component(parent, name, is_dir=source.is_dir)
        else:
            component = target.component
        while True:
            directory = await self._names.settled_key(parent)
            old_key = await self._names.settled_key(source.ino)
            if directory is None or old_key is None:
                raise NoEntry("no such file or directory")
            new_key = child_key(directory, component, is_dir=source.is_dir)
            if not any(map(self._names.is_moving, (directory, old_key, new_key))):
                break
            await self._names.wait_still(directory, old_key, new_key)
        return _Plan(source, target, parent, name, component, old_key, new_key, no_replace)

    async def keep_directory(self, ino: Ino, *, leaving: Ino) -> None:
        """Give a directory that exists only by its content a marker before its last content leaves."""
        directory = self._names.directory(ino)
        if ino == ROOT or directory.etag is not None:
            return
        if any(child.ino != leaving for child in self._inodes.children(ino, limit=2)):
            return
        key = await self._names.settled_key(ino)
        if key is None:
            return
        meta = metadata.encode(self._defaults.attrs(directory), None, {})
        try:
            info = await self._threads.ask(
                self._store.put,
                key,
                BytesBody(b""),
                meta=meta,
                content_type=metadata.DIRECTORY_TYPE,
                if_match=None,
            )
        except Changed:
            info = await self._threads.ask(self._store.head, key)
        except Unsupported:
            return  # a bucket: it stays without a marker
        self._inodes.update(ino, etag=info.etag)

    async def head(self, key: Key) -> ObjectInfo | None:
        """Return what is at *key*, None if nothing is."""
        return await self._unfinished.head(key)

    # ---- one file ---------------------------------------------------------------------------

    async def _rename_file(self, plan: _Plan, replaced: Callable[[Ino], Awaitable[None]]) -> None:
        with self._hold(plan):
            await self._stop_running([plan.source, *([plan.target] if plan.target else [])])
            plan = self._look_again(plan)
            source = await self._adopt_sent(plan)
            await self._promise_again([source.ino], moving=plan)
            if source.etag is None:
                lost = self._retarget_unstored(plan)
            else:
                try:
                    lost = await self._copy_and_delete(plan, source)
                except NotFound:
                    if not self._journal.is_dirty(source.ino):
                        self._names.doubt(source.ino)
                        raise Stale("the object is gone from the store") from None
                    lost = self._retarget_unstored(plan)
            await self._promise_again([source.ino])
            for ino in lost:
                await replaced(ino)
        self._uploader.kick()

    def _look_again(self, plan: _Plan) -> _Plan:
        """Return the plan with source and target as they are now that nobody else changes them."""
        source = self._inodes.get(plan.source.ino)
        if source is None or source.parent is None:
            raise NoEntry("no such file or directory")
        return replace(plan, source=source, target=self._inodes.child(plan.parent, plan.name))

    async def _adopt_sent(self, plan: _Plan) -> Inode:
        """Return the source, with the version that an upload left whose answer never came."""
        entry = self._cache.find(plan.source.ino)
        intent = self._journal.of(entry.id) if entry is not None else None
        if entry is None or intent is None or not intent.was_sent:
            return plan.source
        found = await self._unfinished.head(plan.old_key)
        if found is None or metadata.token_of(found) != intent.token:
            return plan.source
        with self._db.transaction():
            self._cache.change(entry, etag=found.etag)
            self._inodes.update(plan.source.ino, etag=found.etag)
        return replace(plan.source, etag=found.etag)

    def _retarget_unstored(self, plan: _Plan) -> list[Ino]:
        """Rename what the store has never had: its upload will replace what the target's name stands for."""
        base = self._base_of(plan.target)
        content_type = _retyped(plan) or plan.source.content_type
        with self._db.transaction():
            lost = self._retarget(plan)
            self._inodes.update(plan.source.ino, etag=base, content_type=content_type)
            entry = self._cache.find(plan.source.ino)
            if entry is not None:
                self._cache.change(entry, etag=base)
        return lost

    def _hold(self, plan: _Plan) -> AbstractContextManager[None]:
        return self._names.moving(plan.old_key, plan.new_key)

    def _base_of(self, target: Inode | None) -> ETag | None:
        return None if target is None else target.etag

    async def _copy_and_delete(self, plan: _Plan, source: Inode) -> list[Ino]:
        assert source.etag is not None
        replaces = self._base_of(plan.target)
        batch = self._journal.begin_moves([(plan.old_key, plan.new_key, source.etag, replaces)])
        try:
            await self._make_durable()
            info = await self._copy(plan, source, source.etag, replaces)
            with self._db.transaction():
                self._journal.copied(batch)
                lost = self._retarget(plan)
                self._follow(source, info, plan.old_key)
        except Overtaken:
            self._unfinished.forget(batch)  # nothing was copied
            raise
        except BaseException:
            await self._unfinished.abandon(batch)
            raise
        if await self._stands(batch):
            await self._unfinished.delete_sources(batch)
        return lost

    async def _stands(self, batch: str) -> bool:
        """Make sure that a loss of power cannot undo a rename any more; where that fails, leave its old names for later.

        Return whether they may be deleted now.
        """
        try:
            await self._make_durable()
        except (OSError, CacheError) as error:
            _log.warning("old names of a rename are still at the store: %s", error)
            self._unfinished.leave(batch)
            return False
        return True

    async def _make_durable(self) -> None:
        """See that a loss of power does not make the journal forget what is about to be done at the store."""
        await self._threads.disk(self._db.sync_wal, self._db.path)

    async def _copy(
        self, plan: _Plan, source: Inode, etag: ETag, replaces: ETag | None
    ) -> ObjectInfo:
        """Copy; where somebody else has written the target meanwhile, keep that version aside first."""
        head = self._unfinished.head
        while True:
            try:
                return await self._copy_once(plan, source, etag, replaces)
            except Changed as error:
                original, copy = await head(plan.old_key), await head(plan.new_key)
                if original is None:
                    raise NotFound("the object is gone from the store") from error
                if original.etag != etag:
                    if self._journal.is_dirty(source.ino):
                        self._leave_theirs(plan)
                        raise NotFound("the version that ours grew from is gone") from error
                    self._names.doubt(source.ino)
                    raise Stale("the object changed at the store meanwhile") from error
                if copy is not None and await self._unfinished.is_copy(original, copy):
                    return copy  # our own, whose answer was lost
                replaces = await self._make_way(plan, copy, replaces, error)

    async def _copy_once(
        self, plan: _Plan, source: Inode, etag: ETag, replaces: ETag | None
    ) -> ObjectInfo:
        content = await self._content_at_hand(source, etag)
        if content is None:
            return await self._threads.transfer(
                self._store.copy,
                plan.old_key,
                plan.new_key,
                if_match=etag,
                replaces=replaces,
                content_type=_retyped(plan),
            )
        # The token goes along, if it has one: it tells this from what anybody else may put there.
        token = metadata.token_of(ObjectInfo(plan.old_key, source.size, etag, 0, meta=source.meta))
        meta = metadata.encode(self._defaults.attrs(source), token, source.meta or {})
        info = await self._threads.transfer(
            self._store.put,
            plan.new_key,
            BytesBody(content),
            meta=meta,
            content_type=_retyped(plan) or source.content_type,
            if_match=replaces,
        )
        self._inodes.update(source.ino, meta=meta)
        return info

    async def _content_at_hand(self, source: Inode, etag: ETag) -> bytes | None:
        """Return the bytes of a small file that has just been made, provably those of the version *etag*.

        To store them anew is one request. A copy is up to three: S3's adapter asks for what it copies, and for what
        it replaces where the store checks conditions of puts alone. What is older is copied, with all that others
        may have put on it.
        """
        entry = self._cache.find(source.ino)
        if entry is None or not entry.is_whole or entry.etag != etag or entry.size > _SMALL:
            return None
        is_new = is_fresh(source.ctime_ns, _NEW_NS, self._names.wall_ns())
        if not is_new or source.kind is not Kind.FILE or source.meta_json is None:
            return None
        if self._journal.of(entry.id) is not None:
            return None
        try:
            content = await self._threads.disk(self._cache.path_of(entry.id).read_bytes)
        except FileNotFoundError:
            return None  # evicted just now
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return content if digest == etag else None

    def _leave_theirs(self, plan: _Plan) -> None:
        """Say that only our newer bytes are renamed: the old name stands for what somebody else wrote there."""
        self._conflicts.note(
            plan.old_key, "changed at the store before ours was renamed; theirs keeps the name"
        )
        if plan.source.parent is not None:
            self._inodes.update(plan.source.parent, listed_ns=None)

    async def _make_way(
        self, plan: _Plan, found: ObjectInfo | None, replaces: ETag | None, cause: Changed
    ) -> ETag | None:
        if (found.etag if found else None) == replaces:
            raise cause
        if found is None:
            return None
        if plan.no_replace:
            raise Exists("something of that name appeared at the store") from cause
        try:
            await self._conflicts.make_way(plan.component, plan.new_key, found, "replaced")
        except Overtaken:
            if plan.target is not None:
                self._names.doubt(plan.target.ino)
            raise
        return found.etag

    def _retarget(self, plan: _Plan) -> list[Ino]:
        """Give the inode its new name. Return the inodes that lost theirs, what is below first.

        A listing may have shown the copies under the new name while they were made.
        """
        now_ns = self._names.now_ns()
        holder = self._inodes.child(plan.parent, plan.name)
        lost = [] if holder is None else [holder, *self._inodes.below(holder.ino)]
        for inode in reversed(lost):
            self._inodes.detach(inode.ino, now_ns)
        self._inodes.inherit_pin(plan.source.ino, holder)
        self._inodes.move(
            plan.source.ino,
            plan.parent,
            plan.name,
            plan.component,
            now_ns,
            wall_ns=self._names.wall_ns(),
        )
        return [inode.ino for inode in reversed(lost)]

    def _follow(self, inode: Inode, info: ObjectInfo, old_key: Key) -> None:
        """Note that what *inode* stands for, and was at *old_key*, is the copy *info* now."""
        columns: dict[str, object] = {
            "etag": info.etag,
            "stored_ns": info.mtime_ns or None,
            "checked_ns": self._names.now_ns(),
            "is_md5": int(info.is_md5),
        }
        if info.content_type is not None:
            columns["content_type"] = info.content_type
        self._inodes.update(inode.ino, **columns)
        self._db.when_done(lambda: self._checksums.follow(old_key, inode, info))
        entry = self._cache.find(inode.ino)
        if entry is not None and entry.etag == inode.etag:
            self._cache.change(entry, etag=info.etag)
        moved, key = self._inodes.get(inode.ino), self._inodes.key_of(inode.ino)
        if moved is not None and key is not None:
            self._db.when_done(lambda: self._second.remember(moved, key, info))

    async def _promise_again(self, inos: Iterable[Ino], *, moving: _Plan | None = None) -> None:
        """Bring the promise files of dirty entries in line with their keys, before a rename (*moving*) and after.

        Whenever a crash comes, the key in the row is one that the promise knows. Before, what cannot be written ends
        the rename; after, the promise goes on to know both keys.
        """
        for ino in inos:
            entry = self._cache.find(ino)
            intent = self._journal.of(entry.id) if entry is not None else None
            key = self._inodes.key_of(ino)
            if entry is not None and intent is not None and key is not None:
                target = None if moving is None else _moved(moving, key)
                promise = restated(key, entry, intent, target=target)
                try:
                    # The rows are synced before an old name goes: an older promise would then belie them.
                    await self._write_promise(entry.id, promise, durably=moving is not None)
                except CacheError as error:
                    if moving is not None:
                        raise
                    _log.warning("the promise of entry %d keeps its old key: %s", entry.id, error)

    async def _write_promise(self, entry_id: EntryId, promise: Promise, *, durably: bool) -> None:
        write = partial(self._cache.write_promise, entry_id, promise.encode(), durably=durably)
        try:
            try:
                await self._threads.disk(write)
            except DiskFull:
                if not await self._room.squeeze(BLOCK):
                    raise
                await self._threads.disk(write)
        except OSError as error:
            raise disk_error(error) from error

    # ---- a directory ------------------------------------------------------------------------

    async def _rename_directory(
        self, plan: _Plan, replaced: Callable[[Ino], Awaitable[None]]
    ) -> None:
        below = self._inodes.below(plan.source.ino)
        with self._hold(plan):
            plan = self._look_again(plan)
            await self._stop_running(below)
            moves = await self._list_moves(plan)
            batch = self._journal.begin_moves(moves)
            mine = [move for move in self._journal.moves() if move.batch == batch]
            old_etags = {move.target: move.etag for move in mine}
            try:
                copied = await self._copy_all(mine)
                below = self._inodes.below(plan.source.ino)
                await self._promise_again([i.ino for i in below], moving=plan)
                with self._db.transaction():
                    self._journal.copied(batch)
                    lost = self._retarget(plan)
                    self._follow_copies(plan, copied, old_etags)
            except BaseException:
                await self._unfinished.abandon(batch)
                raise
            stands = await self._stands(batch)
            dirty = [i.ino for i in self._inodes.below(plan.source.ino)]
            await self._promise_again(dirty)
            for ino in lost:
                await replaced(ino)
            if stands:
                await self._unfinished.delete_sources(batch)
        self._uploader.kick()

    async def _stop_running(self, below: list[Inode]) -> None:
        """Call off uploads below. Those that wait for a settled key have not begun and need no stopping."""
        for inode in below:
            entry = self._cache.find(inode.ino)
            if entry is not None and self._uploader.is_putting(entry.id):
                await self._uploader.stop(entry.id)

    async def _list_moves(self, plan: _Plan) -> list[tuple[Key, Key, ETag, ETag | None]]:
        def collect() -> list[ObjectInfo]:
            pages = self._store.list(plan.old_key, deep=True)
            return [info for page in pages for info in page.objects]

        found = await self._threads.ask(collect)
        replaces = self._base_of(plan.target)
        return [
            (
                info.key,
                Key(plan.new_key + info.key[len(plan.old_key) :]),
                info.etag,
                replaces if info.key == plan.old_key else None,
            )
            for info in self._journal.staying(found)
        ]

    async def _copy_all(self, moves: list[Move]) -> dict[Key, ObjectInfo]:
        copied: dict[Key, ObjectInfo] = {}

        async def copy(move: Move) -> None:
            info = copied[move.target] = await self._copy_one(move)
            self._journal.note_copy(move.id, info.etag)

        await self._make_durable()
        for group in by_depth(moves):
            await self._unfinished.each(group, copy)
        return copied

    async def _copy_one(self, move: Move) -> ObjectInfo:
        try:
            return await self._threads.transfer(
                self._store.copy,
                move.source,
                move.target,
                if_match=move.etag,
                replaces=move.replaces,
            )
        except Changed:
            head = self._unfinished.head
            original, copy = await head(move.source), await head(move.target)
            if original is None or copy is None:
                raise
            if not await self._unfinished.is_copy(original, copy):
                raise
            return copy  # our own, whose answer was lost

    def _follow_copies(
        self, plan: _Plan, copied: dict[Key, ObjectInfo], old_etags: dict[Key, ETag]
    ) -> None:
        for inode in (plan.source, *self._inodes.below(plan.source.ino)):
            key = self._inodes.key_of(inode.ino)
            info = copied.get(key) if key is not None else None
            if key is None or info is None:
                continue
            if inode.etag == old_etags[key]:
                self._follow(inode, info, Key(plan.old_key + key[len(plan.new_key) :]))
            else:
                self._names.doubt(inode.ino)


def _moved(plan: _Plan, key: Key) -> Key:
    """Return where the rename takes *key*, which is at or below its source."""
    return Key(plan.new_key + key[len(plan.old_key) :])


def _retyped(plan: _Plan) -> str | None:
    """Return the content type that the new name calls for, None if the object keeps its own."""
    return mediatypes.retyped(plan.source.content_type, plan.source.component, plan.component)


def _bucket(key: Key) -> str:
    return key.partition("/")[0]
