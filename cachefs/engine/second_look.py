"""Looks once more at what was stored where the store itself cannot hold two writers apart.

Such a store is asked for the version just before each write, and (Swift) just after. Another client that asked
before our write and wrote after it overwrites ours and never learns of it. So we look again, when a request of his
that was under way must be over: the line of what is there then (``core/descent.py``) tells whether its writer knew
ours.
"""

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import trio

from cachefs.core import descent
from cachefs.core.errors import CachefsError, NotFound
from cachefs.core.types import EntryId, Ino, Key, ObjectInfo
from cachefs.engine.body import FileBody
from cachefs.engine.conflict import Conflicts
from cachefs.engine.names import Names
from cachefs.engine.room import Room
from cachefs.engine.threads import Threads
from cachefs.local.cache import Cache, Entry
from cachefs.local.inodes import Inode, InodeTable
from cachefs.local.journal import Journal
from cachefs.remote.store import ObjectStore, UploadStopped

_log = logging.getLogger(__name__)

_AT_ONCE: Final = 8
_MOST: Final = 4096
"""Writes remembered at most. Of more, the oldest are looked at before their time."""
_TRIES: Final = 5


@dataclass(slots=True, eq=False)
class _Stored:
    """One version that this mount has stored."""

    key: Key
    component: str
    ino: Ino
    entry: EntryId | None
    info: ObjectInfo
    due: float
    tries: int = 0
    body: FileBody | None = None
    """What is being stored anew."""
    looking: trio.Lock = field(default_factory=trio.Lock)


class SecondLooks:
    """Remembers what this mount stored, until it has looked at it again.

    INVARIANT: the entry of a remembered version holds the bytes of that version: whoever changes them, or takes
    the name away, has it forgotten first.
    """

    def __init__(
        self,
        store: ObjectStore,
        cache: Cache,
        journal: Journal,
        inodes: InodeTable,
        names: Names,
        conflicts: Conflicts,
        room: Room,
        threads: Threads,
        *,
        delay_s: float,
    ) -> None:
        """*delay_s*: how long a request of another client may be under way."""
        self._store = store
        self._cache = cache
        self._journal = journal
        self._inodes = inodes
        self._names = names
        self._conflicts = conflicts
        self._room = room
        self._threads = threads
        self._delay_s = delay_s
        self._stored: OrderedDict[Ino, _Stored] = (
            OrderedDict()
        )  # in the order in which they are due
        self._kicked = trio.Event()

    def remember(self, inode: Inode, key: Key, info: ObjectInfo) -> None:
        """Note that the store has confirmed *info* at *key*, if another's write could still replace it unseen."""
        self.forget(inode.ino)
        if not info.line:
            return  # the store itself has seen to it
        entry = self._cache.find(inode.ino)
        self._stored[inode.ino] = _Stored(
            key=key,
            component=inode.component,
            ino=inode.ino,
            entry=None if entry is None else entry.id,
            info=info,
            due=time.monotonic() + self._delay_s,
        )
        self._kicked.set()

    def forget(self, ino: Ino) -> None:
        """Note that this mount itself is about to change or remove it."""
        stored = self._stored.pop(ino, None)
        if stored is not None and stored.body is not None:
            stored.body.stop()

    async def run(self) -> None:
        """Look at each version when it is due, for ever."""
        while True:
            self._kicked = trio.Event()
            now = time.monotonic()
            excess = len(self._stored) - _MOST
            due = [
                stored
                for at, stored in enumerate(self._stored.values())
                if stored.due <= now or at < excess
            ]
            await self._look_at(due)
            if not due:
                next_due = min((each.due for each in self._stored.values()), default=now + 3600)
                with trio.move_on_after(max(0.0, next_due - now)):
                    await self._kicked.wait()

    async def look_at_all(self) -> None:
        """Look at every version now, due or not: the mount ends."""
        await self._look_at(list(self._stored.values()))

    async def before_drop(self, ino: Ino) -> None:
        """Look at it now, because its bytes are about to leave the cache: another version was seen."""
        stored = self._stored.get(ino)
        if stored is not None:
            await self._look(stored)

    async def _look_at(self, due: list[_Stored]) -> None:
        waiting = list(reversed(due))

        async def work() -> None:
            while waiting:
                await self._look(waiting.pop())

        async with trio.open_nursery() as nursery:
            for _ in range(min(_AT_ONCE, len(due))):
                nursery.start_soon(work)

    async def _look(self, stored: _Stored) -> None:
        async with stored.looking:
            if not self._is_current(stored):
                return
            try:
                await self._look_once(stored)
            except UploadStopped:
                return  # written again: its own upload sees what is there
            except NotFound:
                pass  # removed by one who may have seen it: nothing tells
            except CachefsError as error:
                self._put_off(stored, error)
                return
            if self._is_current(stored):
                del self._stored[stored.ino]

    async def _look_once(self, stored: _Stored) -> None:
        if self._inodes.key_of(stored.ino) not in (None, stored.key):
            return  # renamed here
        found = await self._threads.ask(self._store.head, stored.key)
        theirs = descent.line_of(found)
        if self._is_current(stored) and descent.was_passed_over(stored.info.line, theirs):
            await self._save(stored)

    def _is_current(self, stored: _Stored) -> bool:
        return self._stored.get(stored.ino) is stored

    def _put_off(self, stored: _Stored, error: CachefsError) -> None:
        stored.tries += 1
        stored.due = time.monotonic() + self._delay_s
        if stored.tries >= _TRIES and self._is_current(stored):
            del self._stored[stored.ino]
            _log.error("whether %s was overwritten is not known: %s", ascii(stored.key), error)

    async def _save(self, stored: _Stored) -> None:
        """Store our bytes anew if the cache still has them, and say what happened."""
        self._names.doubt(stored.ino)
        entry = None if stored.entry is None else self._cache.load(stored.entry)
        is_ours = entry is not None and entry.is_whole and self._journal.of(entry.id) is None
        pinned = self._cache.pin(entry, self._names.now_ns()) if entry and is_ours else None
        if pinned is None:
            self._conflicts.note_gone(stored.key)
            return
        try:
            await self._store_anew(stored, pinned)
        finally:
            stored.body = None
            await self._room.delete(self._cache.unpin(pinned, self._names.now_ns()))
            self._room.freed()

    async def _store_anew(self, stored: _Stored, entry: Entry) -> None:
        body = stored.body = FileBody(entry.fd, entry.size)
        sums = await self._threads.transfer(body.digest)
        if entry.sums and entry.sums != sums:
            self._conflicts.note_gone(stored.key)  # its disk has changed them
            return
        await self._conflicts.save_overwritten(
            stored.component,
            stored.key,
            body,
            stored.info.meta or {},
            stored.info.content_type,
        )
