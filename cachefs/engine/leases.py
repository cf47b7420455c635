"""Whole files that programs are given to read by a path, without a kernel in between, for as long as a lease lasts."""

import heapq
import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cachefs.core.errors import (
    CachefsError,
    DiskFull,
    NoEntry,
    NoRoom,
    Stale,
    TimedOut,
    UsageError,
)
from cachefs.core.types import ETag, Ino
from cachefs.engine.background import Background
from cachefs.engine.handles import OpenFiles
from cachefs.engine.names import Names
from cachefs.engine.openfile import OpenFile, Rooms
from cachefs.engine.preheat import Preheater
from cachefs.engine.reach import wait_for
from cachefs.local.cache import Lent
from cachefs.local.inodes import Inode
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

DEFAULT_S: Final = 300.0
LONGEST_S: Final = 7 * 86400.0
_VERSIONS: Final = 20
"""How often another version of an object may come while it is fetched."""
_UNCLAIMED_S: Final = 60.0
"""How long a file is kept for somebody who has asked for it and not asked again."""
_SPARE: Final = 1000
_NAME: Final = 160
"""Bytes of a file's own name that its leased path ends in."""


@dataclass(frozen=True, slots=True)
class Leased:
    """A file that may be read at ``path`` until the lease ends; whoever has it open then can go on reading."""

    lease: str
    path: Path
    size: int
    etag: ETag | None
    """None: the store does not have these bytes yet."""
    mtime_ns: int
    seconds: float
    """For how long, from when it was given."""


@dataclass(slots=True, eq=False)
class _Loan:
    """One lent file, and how many leases hold it."""

    lent: Lent
    ino: Ino
    size: int
    etag: ETag | None
    mtime_ns: int
    leases: int = 0


@dataclass(slots=True, eq=False)
class _Lease:
    loan: _Loan
    until: float


@dataclass(slots=True, eq=False)
class _Bringing:
    """A file that is fetched to be leased, whoever waits for it at the moment."""

    over: trio.Event
    leased: Leased | None = None
    """Until the first who asked has taken it."""
    error: CachefsError | None = None


class Leases:
    """Gives files out, and takes each back when the last lease on it is over.

    INVARIANT: a file is lent exactly while a lease on it lasts, so it is not evicted. A lease whose holder has died
    ends when its time is over.
    """

    def __init__(
        self,
        names: Names,
        files: OpenFiles,
        preheater: Preheater,
        rooms: Rooms,
        background: Background,
    ) -> None:
        self._background = background
        self._bringing: dict[str, _Bringing] = {}
        self._names = names
        self._files = files
        self._preheater = preheater
        self._rooms = rooms
        self._loans: dict[Lent, _Loan] = {}
        self._leases: dict[str, _Lease] = {}
        self._due: list[tuple[float, str]] = []
        self._is_sooner = trio.Event()
        # Those for whom there was no room at once: one after the other, so that the first of them gets it.
        self._turn = trio.StrictFIFOLock()

    async def take(
        self,
        path: str,
        *,
        seconds: float = DEFAULT_S,
        readers: int = 0o400,
        only_here: bool = False,
    ) -> Leased:
        """Return the file *path* (relative to the root), whole, as the store has it now, at a path to read it by.

        It is fetched once, however many ask; one that waits for upload is given out as a copy of what it is now.
        *readers*: who may open it, as the bits of a mode: all whom anybody has asked for. *only_here*: ``NoEntry``
        where something would have to be fetched. Raise ``NoRoom`` where the
        cache cannot hold it beside what is leased, open or waits for upload, and ``NoEntry`` and the like, or the
        store's error.
        """
        seconds = _bearable(seconds)
        for _ in range(_VERSIONS):
            inode = await self._preheater.find(path)
            try:
                loan = self._standing(inode, readers) or await self._made(
                    inode, readers, only_here=only_here
                )
            except Stale as stale:  # another version came meanwhile
                _log.debug("%a: %s", path, stale)
                continue
            return self._entered(loan, seconds)
        raise Stale("other versions of the object come without a pause")

    async def take_within(
        self, path: str, *, seconds: float, patience_s: float, only_here: bool = False
    ) -> Leased | None:
        """Do as :meth:`take`; None: the file was not here in so many seconds, is fetched on, and to be asked for again."""
        seconds = _bearable(seconds)
        if only_here:
            with deadline.limited(self._rooms.timeout_s):
                return await self.take(path, seconds=seconds, only_here=True)
        bringing = self._bringing.get(path)
        is_ours = bringing is None
        if bringing is None:
            bringing = self._bringing[path] = _Bringing(trio.Event())
            self._background.start("lease", partial(self._bring, path, bringing))
        with trio.move_on_after(patience_s):
            await bringing.over.wait()
        if not bringing.over.is_set():
            return None
        if bringing.error is not None:
            raise bringing.error
        leased, bringing.leased = bringing.leased, None
        if is_ours and leased is not None and leased.lease in self._leases:
            self.renew(leased.lease, seconds=seconds)
            return replace(leased, seconds=seconds)
        try:
            # What was begun before we asked may be of an older version than we are to see.
            with deadline.limited(self._rooms.timeout_s):
                return await self.take(path, seconds=seconds)
        finally:
            if leased is not None:
                with trio.CancelScope(shield=True):
                    await self.release(leased.lease)

    async def _bring(self, path: str, bringing: _Bringing) -> None:
        bringing.error = TimedOut("the fetch broke off")
        try:
            with deadline.limited(self._rooms.timeout_s):
                bringing.leased = await self.take(path, seconds=_UNCLAIMED_S)
            bringing.error = None
        except CachefsError as error:
            bringing.error = error
        finally:
            del self._bringing[path]
            bringing.over.set()

    def renew(self, lease: str, *, seconds: float = DEFAULT_S) -> None:
        """Let a lease last for *seconds* from now. Raise ``UsageError`` where it is over."""
        found = self._leases.get(lease)
        if found is None:
            raise UsageError("there is no such lease: it is over, or was never given")
        self._set(lease, found, _bearable(seconds))

    def leave(self, lease: str, names: Iterable[Path]) -> bool:
        """Let *names*, which are of the file of a lease that is about to end, stay until the cache gives the file up.

        Return False where they cannot: then they must go before the lease does.
        """
        found = self._leases.get(lease)
        return found is not None and self._rooms.cache.leave_names(found.loan.lent, names)

    def is_left(self, name: Path) -> bool:
        """Whether a name that was left is still there."""
        return self._rooms.cache.left_to(name) is not None

    def is_left_to(self, name: Path, lease: str) -> bool:
        """Whether a name that was left is there, and is of the file of a lease."""
        found, entry = self._leases.get(lease), self._rooms.cache.left_to(name)
        return found is not None and entry is not None and found.loan.lent.entry == entry

    def reclaim(self, names: Iterable[Path]) -> None:
        """Have names that were left to oneself again, to show another file or to remove them."""
        for name in names:
            self._rooms.cache.reclaim_name(name)

    async def release(self, lease: str) -> None:
        """End a lease, which may be over already."""
        found = self._leases.pop(lease, None)
        if found is not None:
            await self._give_up(found.loan)

    async def run(self) -> None:
        """End each lease when its time is over, for ever."""
        while True:
            self._is_sooner = trio.Event()
            with trio.move_on_at(self._due[0][0] if self._due else float("inf")):
                await self._is_sooner.wait()
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                _, lease = heapq.heappop(self._due)
                found = self._leases.get(lease)
                if found is not None and found.until <= now:
                    await self.release(lease)

    def finish(self) -> None:
        """Take all files back: nothing is served any more. Blocks."""
        self._rooms.cache.forget_lent()

    def status(self) -> dict[str, int]:
        """Return what ``status`` shows."""
        return {
            "leases": len(self._leases),
            "files": len(self._loans),
            "bytes": sum(loan.size for loan in self._loans.values()),
        }

    # ---- giving out -------------------------------------------------------------------------

    def _standing(self, inode: Inode, readers: int) -> _Loan | None:
        """Return what is lent already of the version that *inode* stands for."""
        entry = self._rooms.cache.find(inode.ino)
        if entry is None or entry.etag != inode.etag or not entry.is_whole:
            return None
        lent = self._rooms.cache.lent_of(entry.id)
        if lent is None or self._rooms.journal.of(entry.id) is not None:
            return None
        self._rooms.cache.let_read(lent, readers)
        return self._loans.get(lent)

    async def _made(self, inode: Inode, readers: int, *, only_here: bool) -> _Loan:
        self._preheater.require_fit(inode.size)
        loan = await self._tried(inode, readers, only_here=only_here)
        return loan or await self._awaited(inode, readers)

    async def _tried(self, inode: Inode, readers: int, *, only_here: bool) -> _Loan | None:
        """Lend the file; None if the cache has no room for it now."""
        file = await self._files.acquire(inode.ino)
        try:
            if only_here and not file.entry.is_whole:  # from here on it is not evicted
                raise NoEntry("the file is not in the cache")
            return await self._lent(file, inode, readers) if await file.make_sound() else None
        finally:
            with trio.CancelScope(shield=True):
                await self._files.give_back(file)

    async def _awaited(self, inode: Inode, readers: int) -> _Loan:
        """Lend the file when there is room: what others leave goes to one after the other."""
        await self._come_first()
        try:
            file = await self._files.acquire(inode.ino)
            try:
                while True:
                    change = self._rooms.room.change
                    if await file.make_sound():
                        return await self._lent(file, inode, readers)
                    if file.entry.is_ghost:
                        raise DiskFull("the disk of the cache directory is full")
                    await _wait_room(change)
            finally:
                with trio.CancelScope(shield=True):
                    await self._files.give_back(file)
        finally:
            self._turn.release()

    async def _come_first(self) -> None:
        whole = deadline.current()
        with trio.move_on_after(float("inf") if whole is None else whole.left_s):
            await self._turn.acquire()
            return
        raise _no_room()

    async def _lent(self, file: OpenFile, inode: Inode, readers: int) -> _Loan:
        tail = (inode.name or b"")[-_NAME:]
        name = f"{file.entry.id}-{secrets.token_hex(8)}-".encode() + tail
        lent = await file.lend(name, readers=readers)
        loan = self._loans.get(lent)
        if loan is None:
            etag = file.entry.etag if lent.entry else None
            loan = _Loan(lent, file.ino, file.size, etag, file.mtime_ns)
            self._loans[lent] = loan
        self._files.count(file)
        return loan

    def _entered(self, loan: _Loan, seconds: float) -> Leased:
        lease = secrets.token_hex(16)
        loan.leases += 1
        self._leases[lease] = found = _Lease(loan, 0)
        self._set(lease, found, seconds)
        return Leased(lease, loan.lent.path, loan.size, loan.etag, loan.mtime_ns, seconds)

    def _set(self, lease: str, found: _Lease, seconds: float) -> None:
        found.until = trio.current_time() + seconds
        if (
            len(self._due) > 2 * len(self._leases) + _SPARE
        ):  # most are renewed or given back long before
            self._due = [(each.until, name) for name, each in self._leases.items()]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (found.until, lease))
        if self._due[0][1] == lease:
            self._is_sooner.set()

    async def _give_up(self, loan: _Loan) -> None:
        loan.leases -= 1
        if loan.leases:
            return
        del self._loans[loan.lent]
        rooms = self._rooms
        doomed = rooms.cache.take_back(loan.lent)
        if loan.lent.entry:
            try:
                rooms.cache.age(loan.ino, self._names.now_ns())
            except CachefsError as error:  # a full disk does not take when it was used
                _log.debug("%s", error)
        await rooms.room.delete(doomed)
        rooms.room.freed()


def _bearable(seconds: float) -> float:
    if not 0 < seconds <= LONGEST_S:
        raise UsageError(f"a lease lasts for more than 0 and at most {LONGEST_S:.0f} seconds")
    return seconds


async def _wait_room(change: trio.Event) -> None:
    try:
        await wait_for(change, "room in the cache")
    except CachefsError:
        raise _no_room() from None


def _no_room() -> NoRoom:
    return NoRoom("the cache is full of what is leased, open, pinned or waits for upload")
