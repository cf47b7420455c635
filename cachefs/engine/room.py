"""Room in the cache: keeps it below its limit, and lets those who need bytes wait for some to be freed."""

import logging
import math
from collections.abc import Callable

import trio

from cachefs.core.errors import CacheError, DiskFull, NoRoom
from cachefs.core.eviction import choose_victims
from cachefs.core.policy import HIGH_WATER, LOW_WATER
from cachefs.engine.threads import Threads
from cachefs.local.cache import Cache, Doomed, Entry, Reservation
from cachefs.remote import deadline

_log = logging.getLogger(__name__)


_BATCH = 256
"""Entries looked at in one step: the loop serves between two."""
_FULL_PAUSE_S = 1.0
"""For how long reads pass the cache by after its disk turned out to be full, and nothing could be evicted for it."""


class Room:
    """Hands out reservations, evicting clean unpinned entries where it must."""

    def __init__(self, cache: Cache, threads: Threads) -> None:
        self._cache = cache
        self._threads = threads
        self._kicked = trio.Event()
        self._freed = trio.Event()
        self._full_until = -math.inf
        self.on_evicted: Callable[[Entry, int], None] = lambda entry, size: None
        """Called with each entry that was evicted, and how many bytes of it were here."""
        self.evicted = 0
        """Entries evicted since the start."""

    def try_reserve(self, need: int, *, spare: int = 0) -> Reservation | None:
        """Take room without waiting, leaving *spare* bytes; wake the evictor if little is left."""
        reservation = None if self._cache.short_of(need + spare) else self._cache.reserve(need)
        if self._is_high():
            self._kicked.set()
        return reservation

    async def make(self, need: int, *, spare: int = 0) -> Reservation | None:
        """Take room, leaving *spare* bytes, evicting for it if necessary.

        None if what is left may not be evicted.
        """
        while (reservation := self.try_reserve(need, spare=spare)) is None:
            lacking = self._cache.short_of(need + spare)
            if need + spare > self._cache.limit or not await self._evict(lacking):
                return None
        return reservation

    @property
    def writers_share(self) -> int:
        """Bytes that reads leave for writes, so that open files being read cannot keep every writer out."""
        return self._cache.limit // 16

    async def wait(self, need: int, patience_s: float, hurry: Callable[[], None]) -> Reservation:
        """Take room, waiting for uploads to make entries clean. Raise ``NoRoom`` after *patience_s* seconds.

        *hurry* asks for uploads now.
        """
        if need > self._cache.limit:
            raise NoRoom("more bytes than the whole cache may hold")
        if (whole := deadline.current()) is not None:
            patience_s = min(patience_s, whole.left_s)
        with trio.move_on_after(patience_s):
            while True:
                reservation = await self.make(need)
                if reservation is not None:
                    return reservation
                hurry()
                await self._freed.wait()
        raise NoRoom("the cache is full of bytes that wait for upload or are in use")

    @property
    def is_disk_full(self) -> bool:
        """Whether the disk had no room a moment ago, so that there is little sense in fetching more."""
        return trio.current_time() < self._full_until

    async def squeeze(self, need: int) -> bool:
        """Free *need* bytes of a disk that is full before the cache is. Return whether anything was freed."""
        if await self._evict(need):
            return True
        if not self.is_disk_full:
            _log.warning("the disk of the cache directory is full, and nothing can be evicted")
        self._full_until = trio.current_time() + _FULL_PAUSE_S
        return False

    def kick(self) -> None:
        """Have the evictor look: the limit may have been lowered while no daemon ran."""
        self._kicked.set()

    @property
    def change(self) -> trio.Event:
        """What is set when something becomes evictable, or is given back, from now on."""
        return self._freed

    def freed(self) -> None:
        """Tell those who wait that something became evictable or was given back."""
        self._freed.set()
        self._freed = trio.Event()

    async def delete(self, doomed: Doomed | None) -> None:
        """Delete the file of a dropped entry, then count its room as free."""
        if doomed is None:
            return
        with trio.CancelScope(shield=True):
            try:
                await self._threads.disk(self._cache.delete_file, doomed)
            except (OSError, CacheError) as error:
                # It goes on to count: what has no row is removed at the next start.
                _log.error("%s cannot be removed: %s", doomed.path, error)
                return
        self._cache.deleted(doomed)
        self.freed()

    async def run(self) -> None:
        """Evict from above the high mark to the low mark, whenever that is needed, for ever."""
        while True:
            await self._kicked.wait()
            self._kicked = trio.Event()
            if self._is_high():
                low = int(self._cache.limit * LOW_WATER)
                while self._cache.used > low and await self._evict(self._cache.used - low):
                    pass

    def _is_high(self) -> bool:
        return self._cache.used > self._cache.limit * HIGH_WATER

    async def _evict(self, need: int) -> bool:
        """Drop entries to free *need* bytes. Return whether anything was freed."""
        doomed: list[Doomed] = []
        has_freed = False
        try:
            for victim in choose_victims(self._cache.evictable(_BATCH), need):
                entry = self._cache.load(victim.entry)
                if entry is None or entry.pins or self._cache.lent_of(entry.id):
                    continue
                size = entry.here.total
                try:
                    dropped = self._cache.drop(entry)
                except DiskFull:
                    if not self._cache.give_up_file(entry):
                        break
                    has_freed = True
                    dropped = self._cache.drop(entry)  # for which there is room now
                if dropped is not None:
                    doomed.append(dropped)
                    self.on_evicted(entry, size)
                    self._cache.order.went(victim)
            self._cache.order.save()
        except CacheError as error:
            _log.warning("no further entries can be evicted: %s", error)
        self.evicted += len(doomed)
        for each in doomed:
            await self.delete(each)
        return has_freed or bool(doomed)
