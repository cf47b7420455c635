"""Whole directories: listed once for all who ask, shown page by page, and from the tables where they were listed before.

INVARIANT: who reads a directory is shown each name that was there all along, none twice, and an error where the
listing has one: never a part of it as the whole.
"""

import logging
import time
from dataclasses import dataclass, field
from typing import Final

import trio
from cachetools import LRUCache

from cachefs.core.errors import CachefsError, Fault, TimedOut
from cachefs.core.types import AttributeMode, Ino, Key
from cachefs.engine.background import Background
from cachefs.engine.names import Freshness, Names
from cachefs.engine.reach import Reach, wait_for
from cachefs.local.inodes import LAST, Inode, InodeTable
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_SAME_OPEN_NS: Final = 50_000_000
"""A listing this young was asked for by the same open."""
_BLOCK: Final = 1000
"""For how many names at a time attributes are asked for that a listing does not tell."""
_PAGE: Final = 1000
"""Names that one request tells, hence the most for which a directory that is known is asked about before it is shown."""
_GRACE_S: Final = 0.25
"""How long that question is waited for."""
_AHEAD: Final = 3
"""How many directories are begun to be listed before a program that walks their siblings comes to them."""
_STEPS: Final = 2
"""After so many steps from one directory to the next a program is taken to walk them all."""
_NEAR: Final = 1000
"""A sibling behind more names than that is not looked for."""
_MOST_BESIDE: Final = 4
"""So many listings run at a time for which nobody waits."""
_WALKS_KEPT: Final = 1024
_PATIENCE_S: Final = 10.0
"""How long one that was begun ahead waits after its first page for somebody to want more."""
_OLDEST_NS: Final = 24 * 3600 * 10**9
"""What was listed longer ago is asked for before it is shown."""


@dataclass(eq=False)
class Run:
    """One listing under way, and how much of it may be shown."""

    ino: Ino
    since_ns: int
    was_listed: bool
    """The directory was known as a whole before: where the store cannot be asked, that is what is shown."""
    mark: int = 0
    """Children with numbers up to this are as the store has them; those that come later have higher ones."""
    is_beside: bool = False
    """Nobody has waited for it yet."""
    is_ahead: bool = False
    """It was begun before anybody opened the directory."""
    is_over: bool = False
    error: CachefsError | None = None
    _moved: trio.Event = field(default_factory=trio.Event)

    def move(self) -> None:
        """Let everybody look who waits for more."""
        self._moved.set()
        self._moved = trio.Event()

    async def wait_moved(self) -> None:
        """Wait for another page or the end, no longer than the operation may. What has come is no waiting in vain."""
        began = time.monotonic()
        await wait_for(self._moved, "the next page of a listing")
        if (whole := deadline.current()) is not None:
            whole.answered(time.monotonic() - began)

    async def wait_over(self) -> None:
        """Wait for the end."""
        while not self.is_over:
            await self.wait_moved()


@dataclass(eq=False)
class Reader:
    """One open directory."""

    ino: Ino
    run: Run | None = None
    """The listing that tells what is in it; None: the tables do."""
    exact_to: int = 0
    """Up to this number attributes are as ``--attributes`` wants them."""
    count: int = 0
    """How many names that are."""


class Listings:
    """Reads directories, and keeps the listings that this takes."""

    def __init__(
        self,
        names: Names,
        inodes: InodeTable,
        reach: Reach,
        background: Background,
        freshness: Freshness,
    ) -> None:
        self._names = names
        self._inodes = inodes
        self._reach = reach
        self._background = background
        self._freshness = freshness
        self._runs: dict[Ino, Run] = {}
        self._beside = 0
        self._turn = trio.Event()
        self._steps: LRUCache[Ino, tuple[Ino, int]] = LRUCache(_WALKS_KEPT)
        """Of directories whose children are opened: the one that was last, and how many in order before it."""

    # ---- reading ----------------------------------------------------------------------------

    async def open(self, ino: Ino) -> Reader:
        """Return a reader of the directory, once its first names can be shown or it is known how many there are.

        Raise the store's error where nothing but the store could tell.
        """
        reader = Reader(ino)
        self._step(ino)
        await self.rewind(reader)
        return reader

    async def rewind(self, reader: Reader) -> None:
        """Let *reader* begin anew, with what :meth:`open` would show."""
        reader.run, reader.exact_to, reader.count = None, 0, 0
        while not self._is_fresh(reader.ino):
            if await self._is_shown_as_known(reader.ino):
                return
            run = self._runs.get(reader.ino)
            if run is not None and not self._holds(run.since_ns):
                await run.wait_over()  # what it found is older than may be shown
                continue
            run = self._want(run or self._begin(reader.ino))
            while not (run.mark or run.is_over):
                if not await self._has_moved(run):
                    return
            if not self._failed(run):
                reader.run = run
            return

    async def read(
        self, reader: Reader, after: int, limit: int, *, may_wait: bool = True
    ) -> list[Inode]:
        """Return the children that follow the number *after*, *limit* at most; none: there are no more.

        Unless it *may_wait*, none may also mean that the next ones have to be waited for.

        Their attributes are as exact as ``--attributes`` says. Raise the error of the listing where that has failed
        behind what it showed.
        """
        while True:
            upper = self._shown_to(reader)
            if after >= reader.exact_to:
                if not may_wait:
                    return []
                await self._make_exact(reader, after, upper)
            rows = self._inodes.children(
                reader.ino, after=after, limit=limit, up_to=min(upper, reader.exact_to)
            )
            if rows:
                return rows
            if after < reader.exact_to:
                after = reader.exact_to  # nothing of it is left
                continue
            run = reader.run
            if run is None:
                return []
            if run.is_over:
                self._failed(run)
                reader.run = None  # all that is known is what there is
            elif not may_wait:
                return []
            elif not await self._has_moved(run):
                reader.run = None

    async def _has_moved(self, run: Run) -> bool:
        """Wait for another page, or the end. Return False if that takes too long, and what is known can be shown."""
        try:
            await run.wait_moved()
        except TimedOut as error:
            if not run.was_listed:
                raise
            _log.info("directory %d is shown as last known: %s", run.ino, error)
            return False
        return True

    def _shown_to(self, reader: Reader) -> int:
        """Return up to which number a reader may be shown what is known."""
        return LAST if reader.run is None else reader.run.mark

    async def _make_exact(self, reader: Reader, after: int, upper: int) -> None:
        """Bring the attributes of some names that follow *after* up to what ``--attributes`` wants."""
        if self._freshness.attributes is AttributeMode.LISTING:
            reader.exact_to = upper
            return
        last = self._inodes.nth_last(reader.ino, after, _BLOCK, up_to=upper)
        if last is None:
            return
        if not await self._reach.is_lost():
            await self._names.make_exact(reader.ino, after, last, reader.count // _BLOCK + 1)
        reader.count += self._inodes.count_children(reader.ino, after, last)
        reader.exact_to = last

    # ---- listings ---------------------------------------------------------------------------

    async def know(self, ino: Ino) -> None:
        """Make sure that the children of *ino* are known, all of them, and fresh."""
        while not self._is_fresh(ino):
            was_listed = self._names.directory(ino).listed_ns is not None
            if was_listed and await self._reach.is_lost():
                return
            run = self._runs.get(ino)
            is_ours = run is None
            run = self._want(run or self._begin(ino))
            while not run.is_over:
                if not await self._has_moved(run):
                    return
            if self._failed(run) or is_ours:
                return

    def _is_fresh(self, ino: Ino) -> bool:
        listed_ns = self._names.directory(ino).listed_ns
        return listed_ns is not None and self._holds(listed_ns)

    def _holds(self, said_ns: int) -> bool:
        ttl_ns = max(self._freshness.metadata_ttl_ns, _SAME_OPEN_NS)
        return self._freshness.holds(said_ns, ttl_ns, self._names.now_ns())

    async def _is_shown_as_known(self, ino: Ino) -> bool:
        """Whether to show what is known of a directory that is not fresh; see to it that it is, the next time."""
        listed_ns = self._names.directory(ino).listed_ns
        if listed_ns is None:
            return False
        if await self._reach.is_lost():
            return True
        if not self._freshness.metadata_ttl_ns or not self._freshness.holds(
            listed_ns, _OLDEST_NS, self._names.now_ns()
        ):
            return False
        run = self._runs.get(ino) or self._begin(ino, is_beside=True)
        if self._inodes.nth_last(ino, 0, _PAGE + 1) == self._inodes.nth_last(ino, 0, _PAGE):
            self._want(run)
            with trio.move_on_after(_GRACE_S):
                while not run.is_over and await self._has_moved(run):
                    pass
            if run.is_over:
                self._failed(run)
        return True

    def _failed(self, run: Run) -> bool:
        """Whether a listing has failed where what was known before is to be shown. Raise its error where it is not."""
        if run.error is None:
            return False
        if not (isinstance(run.error, Fault) and run.was_listed):
            raise run.error
        _log.info("directory %d is shown as last known: %s", run.ino, run.error)
        return True

    def _begin(self, ino: Ino, *, is_beside: bool = False, is_ahead: bool = False) -> Run:
        """List a directory beside whoever asked for it."""
        was_listed = self._names.directory(ino).listed_ns is not None
        self._runs[ino] = run = Run(
            ino, self._names.now_ns(), was_listed, is_beside=is_beside, is_ahead=is_ahead
        )
        self._background.start("listing", lambda: self._work(run))
        return run

    def _want(self, run: Run) -> Run:
        """Let a listing go on that somebody waits for."""
        run.is_beside = False
        self._next_turn()
        return run

    def _next_turn(self) -> None:
        self._turn.set()
        self._turn = trio.Event()

    async def _work(self, run: Run) -> None:
        error: CachefsError | None = TimedOut("the listing was called off")
        is_counted = False
        try:
            while run.is_beside and self._beside >= _MOST_BESIDE:
                await self._turn.wait()
            is_counted = run.is_beside
            self._beside += is_counted
            run.since_ns = self._names.now_ns()
            await self._names.list_whole(run.ino, lambda key, last: self._advance(run, key, last))
            error = None
        except CachefsError as failure:
            error = failure
            if not isinstance(failure, Fault):
                self._names.doubt_listing(run.ino)  # who asks next is told
        finally:
            self._beside -= is_counted
            self._next_turn()
            if self._runs.get(run.ino) is run:
                del self._runs[run.ino]
            run.error = error
            run.is_over = True
            run.move()

    async def _wait_wanted(self, run: Run) -> None:
        """Leave it at the first page of a directory that nobody has opened yet. Raise ``TimedOut`` if nobody does."""
        if not (run.is_beside and run.is_ahead):
            return
        with trio.move_on_after(_PATIENCE_S):
            while run.is_beside:
                await self._turn.wait()
        if run.is_beside:
            self._runs.pop(run.ino, None)  # who comes now begins one of his own
            raise TimedOut("nobody wanted more of the listing")

    # ---- ahead of who walks -----------------------------------------------------------------

    def _step(self, ino: Ino) -> None:
        """Note that a directory is opened; if its siblings were, one after the other, list the next few."""
        directory = self._names.directory(ino)
        if not self._freshness.metadata_ttl_ns or directory.parent is None:
            return
        parent = directory.parent
        last, steps = self._steps.get(parent, (ino, 0))
        if last == ino:
            self._steps[parent] = (ino, steps)
            return
        follows = self._inodes.directories(parent, after=last, limit=_NEAR)[:1]
        steps = steps + 1 if [each.ino for each in follows] == [ino] else 0
        self._steps[parent] = (ino, steps)
        if steps < _STEPS or self._reach.is_offline:
            return
        for each in self._inodes.directories(parent, after=ino, limit=_NEAR)[:_AHEAD]:
            if each.listed_ns is None and each.ino not in self._runs:
                self._begin(each.ino, is_beside=True, is_ahead=True)

    # ---- what may be shown ------------------------------------------------------------------

    async def _advance(self, run: Run, directory: Key, last: Key) -> None:
        """Let be shown what a listing of *directory* that has come to the key *last* leaves no doubt about."""
        unseen = self._inodes.first_unseen(
            run.ino, after=run.mark, seen_from_ns=self._seen_from(run.since_ns)
        )
        upper = self._inodes.last_child(run.ino) if unseen is None else unseen.ino - 1
        doubtful = self._inodes.lowest(run.ino, _may_be_beside(last[len(directory) :]))
        if doubtful is not None and doubtful > run.mark:
            upper = min(upper, doubtful - 1)
        if upper > run.mark:
            run.mark = upper
            run.move()
        await self._wait_wanted(run)

    def _seen_from(self, since_ns: int) -> int:
        """Return since when what the store said of a name is believed by whoever reads a listing of *since_ns*."""
        ttl_ns = self._freshness.metadata_ttl_ns
        fresh_ns = max(self._freshness.since_ns, self._names.now_ns() - ttl_ns)
        return min(since_ns, fresh_ns)


def _may_be_beside(last: str) -> set[str]:
    """Return the components of objects beside which a directory may still come, in a listing that has come to *last*.

    The object ``a`` comes before ``a-b``, and that before ``a/c``, whose directory takes the name ``a``.
    """
    component = last.removesuffix("/")
    found = {component[:at] for at in range(len(component)) if component[at] < "/"}
    return found if last.endswith("/") else found | {component}
