"""Brings renames to their end: the old names are deleted, or the copies, now, later, or after a crash."""

import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from cachefs.core import metadata
from cachefs.core.errors import (
    CacheError,
    CachefsError,
    Changed,
    Fault,
    NotFound,
    Refused,
    Stale,
    StoreError,
)
from cachefs.core.extents import Extent
from cachefs.core.keys import last_component, name_of
from cachefs.core.types import Key, ObjectInfo
from cachefs.engine.conflict import Conflicts
from cachefs.engine.names import Names, reaches
from cachefs.engine.promise import restated
from cachefs.engine.threads import Threads
from cachefs.engine.upload import Uploader
from cachefs.local.cache import Cache, Entry
from cachefs.local.db import Database
from cachefs.local.inodes import InodeTable
from cachefs.local.journal import Journal, Move
from cachefs.remote.store import ObjectStore

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
_FIRST_RETRY_S: Final = 10
_LONGEST_RETRY_S: Final = 300
_DISK_RETRY_S: Final = 2
_UNDO_S: Final = 30
_BEFORE_SERVING_S: Final = 10


@dataclass(slots=True, eq=False)
class _Left:
    """A rename that nobody carries out any more. All of it is at or below two keys."""

    batch: str
    is_copied: bool
    source: Key
    target: Key

    def is_in_the_way(self, source: Key, target: Key) -> bool:
        """Whether a rename from *source* to *target* would meet copies of it, or old names that it still deletes."""
        if self.is_copied:
            return _meet(self.source, target)
        return any(
            _meet(own, key) for own in (self.source, self.target) for key in (source, target)
        )


def _meet(one: Key, other: Key) -> bool:
    """Whether either is at, above or below the other."""
    return reaches((one,), other) or reaches((other,), one)


class Unfinished:
    """The renames that were cut off by a fault or a crash, and what ends every rename.

    INVARIANT: no upload begins at a key whose rename is to be undone or finished: it would change what tells
    a copy from its source. :attr:`Names.unsettled` has these keys.
    """

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        inodes: InodeTable,
        cache: Cache,
        journal: Journal,
        names: Names,
        uploader: Uploader,
        conflicts: Conflicts,
        threads: Threads,
    ) -> None:
        self._store = store
        self._db = db
        self._inodes = inodes
        self._cache = cache
        self._journal = journal
        self._names = names
        self._uploader = uploader
        self._conflicts = conflicts
        self._threads = threads
        self._left: dict[str, _Left] = {}
        self._kicked = trio.Event()
        self._tried = trio.Event()
        for batch in {move.batch: None for move in journal.moves()}:
            self.leave(batch)

    # ---- what a rename does -----------------------------------------------------------------

    async def each(self, moves: Sequence[Move], work: Callable[[Move], Awaitable[None]]) -> None:
        """Do *work* for each of *moves*, several at once; raise the first error after all have ended."""
        waiting = list(reversed(moves))
        errors: list[CachefsError] = []

        async def run() -> None:
            while waiting and not errors:
                try:
                    await work(waiting.pop())
                except CachefsError as error:
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(_AT_ONCE, len(moves))):
                nursery.start_soon(run)
        if errors:
            raise errors[0]

    async def abandon(self, batch: str) -> None:
        """Take back what a rename that failed has copied: now, or else when the store answers again."""
        if not self._moves_of(batch):
            return
        left = self._left.get(batch) or self.leave(batch)
        with (
            trio.CancelScope(shield=True),
            trio.move_on_after(_UNDO_S),
            contextlib.suppress(CacheError),
        ):
            await self._try(left)

    def forget(self, batch: str) -> None:
        """End a rename of which nothing was done at the store."""
        try:
            for move in self._moves_of(batch):
                self._journal.end_move(move.id)
        except CacheError as error:
            _log.warning("a rename is still unfinished: %s", error)
            self.leave(batch)

    async def delete_sources(self, batch: str) -> None:
        """Delete the old names of a rename whose copies stand: now, or else when the store answers again.

        Raise ``Refused`` if the store does not let them go: they stay, and are shown again.
        """
        moves = self._moves_of(batch)
        try:
            refusals = await self._delete_sources(moves)
        except CachefsError as error:
            _log.warning("old names of a rename are still at the store: %s", error)
            self.leave(batch)
            return
        if refusals:
            self._doubt(_above_all([move.source for move in moves]))
            raise refusals[0]

    async def make_way(self, source: Key, target: Key) -> None:
        """Let no rename take along the copies that a failed one left, or put at *target* what is then deleted there.

        Raise ``Stale`` if there were copies, for names must be looked up again, and ``Fault`` if anything is left still.
        """
        met = [left for left in self._left.values() if left.is_in_the_way(source, target)]
        if not met:
            return
        await self.finish()
        if any(left.batch in self._left for left in met):
            raise Fault("an earlier rename is not undone or finished yet")
        if not all(left.is_copied for left in met):
            raise Stale("an earlier rename was undone meanwhile")

    async def is_copy(self, source: ObjectInfo, target: ObjectInfo) -> bool:
        """Whether *target* can only be a copy of *source*: the token tells, or the version, or all there is."""
        token = metadata.token_of(source)
        if source.size != target.size or token != metadata.token_of(target):
            return False
        if token is not None or source.etag == target.etag:
            return True
        if dict(source.meta or {}) != dict(target.meta or {}):
            return False
        return await self._digest(source) == await self._digest(target)

    async def head(self, key: Key) -> ObjectInfo | None:
        """Return what is at *key*, None if nothing is."""
        try:
            return await self._threads.ask(self._store.head, key)
        except NotFound:
            return None

    # ---- what was cut off -------------------------------------------------------------------

    async def run(self) -> None:
        """Bring renames that were cut off to their end, for ever."""
        wait_s = _FIRST_RETRY_S
        while True:
            self._kicked = trio.Event()
            try:
                is_done = await self.finish()
            except CacheError as error:
                _log.warning("a rename is still unfinished: %s", error)
                await trio.sleep(_DISK_RETRY_S)
                continue
            finally:
                self._tried.set()
            wait_s = _FIRST_RETRY_S if is_done else min(2 * wait_s, _LONGEST_RETRY_S)
            with trio.move_on_after(_LONGEST_RETRY_S if is_done else wait_s):
                await self._kicked.wait()

    def store_is_back(self) -> None:
        """Try again now, rather than when it is time."""
        self._kicked.set()

    async def wait_tried(self) -> None:
        """Wait until what a crash has left is mended or cannot be for now, but not for long."""
        with trio.move_on_after(_BEFORE_SERVING_S):
            await self._tried.wait()

    async def finish(self) -> bool:
        """Try to bring every rename that was cut off to its end. Return whether all are."""
        for left in list(self._left.values()):
            if left.batch not in self._left:
                continue  # somebody else has ended it meanwhile
            keys = {
                key for move in self._moves_of(left.batch) for key in (move.source, move.target)
            }
            if any(map(self._names.is_moving, keys)):
                continue
            with self._names.moving(left.source, left.target):
                if not await self._try(left):
                    break  # the store is not well: others would fare no better
        return not self._left

    def leave(self, batch: str) -> _Left:
        """Leave a rename to whoever brings to their end those that were cut off."""
        moves = self._moves_of(batch)
        left = _Left(
            batch,
            moves[0].state == "deleting",
            _above_all([move.source for move in moves]),
            _above_all([move.target for move in moves]),
        )
        self._left[batch] = left
        self._names.unsettled += [left.source, left.target]
        self._kicked.set()
        return left

    def _moves_of(self, batch: str) -> list[Move]:
        return [move for move in self._journal.moves() if move.batch == batch]

    async def _try(self, left: _Left) -> bool:
        """Undo or finish one rename. Return whether that is done."""
        moves = self._moves_of(left.batch)
        try:
            if left.is_copied:
                await self._delete_sources(moves)
            else:
                for group in reversed(list(by_depth(moves))):
                    await self.each(group, self._undo)
        except StoreError as error:
            _log.warning("a rename is still unfinished: %s", error)
            return False
        del self._left[left.batch]
        for key in (left.source, left.target):
            self._names.unsettled.remove(key)
        self._uploader.kick()
        for key in (left.source, left.target):
            self._doubt(key)
        return True

    async def _undo(self, move: Move) -> None:
        """Remove a copy whose rename did not come to its point of no return, or go on where it replaced something."""
        target = await self.head(move.target)
        source = None if target is None else await self.head(move.source)
        if target is not None and source is not None and target.etag != move.replaces:
            if target.etag != move.made and not await self.is_copy(source, target):
                self._conflicts.note(move.target, "written while a rename to it was cut off; kept")
            elif move.replaces is None:
                await self._remove(target)
            elif not move.source.endswith("/") and not self._stay(move, target):
                # Of directories, both are there.
                await self._remove(source)
                self._go_along(move, target)
        self._journal.end_move(move.id)

    def _stay(self, move: Move, target: ObjectInfo) -> bool:
        """Where what the rename was to replace has newer bytes of its own, have them replace the copy.

        Return whether it is so: then both names stay what they are.
        """
        inode = self._inodes.find(move.target)
        entry = None if inode is None else self._cache.find(inode.ino)
        if inode is None or entry is None or not self._journal.is_dirty(inode.ino):
            return False
        if entry.etag == move.replaces:
            with self._db.transaction():
                self._inodes.update(inode.ino, etag=target.etag)
                self._cache.change(entry, etag=target.etag)
            self._promise_again(entry, move.target)
        return True

    def _go_along(self, move: Move, target: ObjectInfo) -> None:
        """Give a file whose newer bytes are not stored yet the name that its object has now."""
        inode = self._inodes.find(move.source)
        entry = None if inode is None else self._cache.find(inode.ino)
        above = Key(move.target[: move.target.rfind("/") + 1])
        parent = self._inodes.find(above)
        if inode is None or parent is None or entry is None:
            return
        component = last_component(move.target, above)
        holder = self._inodes.child(parent.ino, name_of(component))
        if not self._journal.is_dirty(inode.ino) or (holder is not None and holder.is_dir):
            return
        now_ns = self._names.now_ns()
        with self._db.transaction():
            if holder is not None:
                self._inodes.detach(holder.ino, now_ns)
                self._inodes.inherit_pin(inode.ino, holder)
            self._inodes.move(
                inode.ino,
                parent.ino,
                name_of(component),
                component,
                now_ns,
                wall_ns=self._names.wall_ns(),
            )
            self._inodes.update(inode.ino, etag=target.etag)
            self._cache.change(entry, etag=target.etag)
        # Should this not be written, the promise knows the key as that which the rename was for.
        self._promise_again(entry, move.target, target=move.source)

    def _promise_again(self, entry: Entry, key: Key, *, target: Key | None = None) -> None:
        intent = self._journal.of(entry.id)
        if intent is None:
            return
        promise = restated(key, entry, intent, target=target)
        try:
            self._cache.write_promise(entry.id, promise.encode())
        except OSError as error:
            _log.warning("the promise of entry %d is as before: %s", entry.id, error)

    async def _remove(self, info: ObjectInfo) -> None:
        try:
            await self._threads.ask(self._store.delete, info.key, if_match=info.etag)
        except NotFound:
            pass
        except Changed:
            self._conflicts.note(info.key, "written just as a rename was undone; kept")
        except Refused as error:
            self._conflicts.note(
                info.key, f"a copy that a rename left, and may not remove: {error}"
            )

    async def _delete_sources(self, moves: Sequence[Move]) -> list[Refused]:
        """Delete the old names, what is in a directory before its marker. Return what the store refused."""
        refusals: list[Refused] = []

        async def delete(move: Move) -> None:
            try:
                await self._threads.ask(self._store.delete, move.source, if_match=move.etag)
            except NotFound:
                pass
            except Changed:
                self._conflicts.note(
                    move.source, "written under its old name while it was renamed; both are kept"
                )
            except Refused as error:
                refusals.append(error)
                self._conflicts.note(
                    move.source, f"renamed, and the old name may not be removed: {error}"
                )
            self._journal.end_move(move.id)

        for group in reversed(list(by_depth(moves))):
            await self.each(group, delete)
        return refusals

    def _doubt(self, key: Key) -> None:
        """Have the store asked again about what is at or below *key*."""
        parent = self._inodes.find(Key(key[: key.rstrip("/").rfind("/") + 1]))
        inode = self._inodes.find(key)
        if parent is not None:
            self._inodes.update(parent.ino, listed_ns=None)
        if inode is not None:
            self._inodes.stale_below(inode.ino)
            if inode.parent is not None and inode.name is not None:
                self._names.tell_kernel(inode.parent, inode.name)

    async def _digest(self, info: ObjectInfo) -> bytes:
        sink = _Digest()
        if info.size:
            await self._threads.transfer(
                self._store.get_range,
                info.key,
                Extent(0, info.size),
                sink,
                if_match=info.etag,
            )
        return sink.value()


class _Digest:
    """Takes the bytes of an object, and keeps what they come to."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def write(self, data: memoryview, /) -> None:
        self._hash.update(data)

    def restart(self) -> None:
        self._hash = hashlib.sha256()

    def value(self) -> bytes:
        return self._hash.digest()


def by_depth(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """Yield markers from the top down, a level at a time, then all objects.

    A store that has real directories would otherwise find one made by its content where its marker should go.
    """
    markers = [move for move in moves if move.target.endswith("/")]
    for depth in sorted({move.target.count("/") for move in markers}):
        yield [move for move in markers if move.target.count("/") == depth]
    yield [move for move in moves if not move.target.endswith("/")]


def _above_all(keys: Sequence[Key]) -> Key:
    """Return the key itself, or the directory that all of *keys* are at or below."""
    first, last = min(keys), max(keys)
    if first == last:
        return first
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first)
    )
    return Key(first[: first.rfind("/", 0, same) + 1])
