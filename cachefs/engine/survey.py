"""One listing of all keys below a directory, taken over directory by directory: a request for a thousand keys in all.

What a listing of each directory would cost is a request for each of them at least.
"""

import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from cachefs.core.errors import CachefsError, Fault, Stale
from cachefs.core.keys import last_component
from cachefs.core.types import Ino, Key, Listing, ObjectInfo
from cachefs.engine.background import Background
from cachefs.engine.names import Look, Names
from cachefs.engine.pages import Fetched, fetched_ahead
from cachefs.engine.threads import Threads
from cachefs.local.inodes import InodeTable
from cachefs.remote.store import ObjectStore

_MOST_KEPT: Final = 1000
"""Objects of one directory that are taken over at once."""
_SLICE_S: Final = 0.5
_UNASKED_S: Final = 30.0
"""A survey that nobody has asked about for so long is given up."""


@dataclass(eq=False, slots=True)
class Survey:
    """One survey: how far it is, and how it ended."""

    ino: Ino
    objects: int = 0
    directories: int = 0
    """Those that are known as a whole by now."""
    requests: int = 0
    is_over: bool = False
    error: CachefsError | None = None
    asked_at: float = 0.0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    moved: trio.Event = field(default_factory=trio.Event)

    def to_json(self) -> dict[str, object]:
        """Return it as the control socket tells it."""
        return {
            "objects": self.objects,
            "directories": self.directories,
            "requests": self.requests,
            "over": self.is_over,
        }


@dataclass(slots=True)
class _Directory:
    """A directory that the listing is in. Without a *look* it has no place in the tree, and neither has what is in it."""

    key: Key
    look: Look | None
    objects: list[ObjectInfo] = field(default_factory=list)
    prefixes: list[Key] = field(default_factory=list)


class Surveyor:
    """Runs surveys, one at a time for each directory."""

    def __init__(
        self,
        store: ObjectStore,
        threads: Threads,
        inodes: InodeTable,
        names: Names,
        background: Background,
    ) -> None:
        self._store = store
        self._threads = threads
        self._inodes = inodes
        self._names = names
        self._background = background
        self._surveys: dict[Ino, Survey] = {}

    async def ask(self, ino: Ino) -> Survey:
        """Return how far the survey of all below *ino* is, half a second later or when it is over; begin it if need be.

        One that is over has been told of then: the next question begins another. Raise its error.
        """
        survey = self._surveys.get(ino)
        if survey is None:
            survey = self._surveys[ino] = Survey(ino)
            begun = survey
            self._background.start("survey", lambda: self._run(begun))
        survey.asked_at = trio.current_time()
        with trio.move_on_after(_SLICE_S):
            await survey.moved.wait()
        if survey.is_over:
            self._surveys.pop(ino, None)
            if survey.error is not None:
                raise survey.error
        return survey

    async def _run(self, survey: Survey) -> None:
        error: CachefsError | None = Fault("the survey was called off")
        try:
            with survey.scope:
                await self._survey(survey)
                error = None
        except CachefsError as failure:
            error = failure
        finally:
            survey.error = error
            survey.is_over = True
            survey.moved.set()
            if trio.current_time() - survey.asked_at > _UNASKED_S:
                self._surveys.pop(survey.ino, None)

    async def _survey(self, survey: Survey) -> None:
        key = await self._names.settled_key(survey.ino)
        if key is None:
            raise Stale("the directory is gone")
        since_ns = self._names.now_ns()
        with self._inodes.looking(since_ns):
            async with self._pages(key) as fetched:
                with fetched.catching():
                    await _Walk(self._inodes, self._names, survey, key, since_ns).take(fetched)
            fetched.check()

    @asynccontextmanager
    async def _pages(self, key: Key) -> AsyncIterator[Fetched]:
        pages = await self._threads.ask(lambda: self._store.list(key, deep=True))
        async with fetched_ahead(self._threads, pages, self._names.now_ns) as fetched:
            yield fetched


class _Walk:
    """The way through one listing in the order of keys: the directories that it is in, from the first to the last."""

    def __init__(
        self, inodes: InodeTable, names: Names, survey: Survey, base: Key, since_ns: int
    ) -> None:
        self._inodes = inodes
        self._names = names
        self._survey = survey
        self._base = base
        self._asked_ns = since_ns
        self._open = [_Directory(base, names.begin_look(survey.ino, base, since_ns))]
        self._markers: list[tuple[bytes, ObjectInfo]] = []
        """Of directories that the listing has not come to: a store may name them by what comes before the slash."""
        self._last = b""

    async def take(self, fetched: Fetched) -> None:
        """Take over all pages. Raise ``Fault`` where they are not in the order of keys."""
        async for page in fetched:
            self._survey.requests += 1
            if trio.current_time() - self._survey.asked_at > _UNASKED_S:
                self._survey.scope.cancel()
            self._asked_ns = fetched.asked_ns
            for info in page.objects:
                await self._take(info)
            await trio.lowlevel.checkpoint()
        await self._take_markers(None)
        while self._open:
            await self._close()

    async def _take(self, info: ObjectInfo) -> None:
        self._survey.objects += 1
        place = _order(info.key)
        if info.key.endswith("/"):
            heapq.heappush(self._markers, (place, info))
            return
        if place < self._last:
            raise Fault(
                "the store does not list keys in their order, so one listing cannot tell of all"
            )
        self._last = place
        await self._take_markers(place)
        await self._put(info)

    async def _take_markers(self, before: bytes | None) -> None:
        while self._markers and (before is None or self._markers[0][0] < before):
            await self._put(heapq.heappop(self._markers)[1])

    async def _put(self, info: ObjectInfo) -> None:
        """Put an object, or a marker, into its directory."""
        directory = info.key[: info.key.rfind("/") + 1]
        while not directory.startswith(self._open[-1].key):
            await self._close()
        while (top := self._open[-1]).key != directory:
            rest = directory[len(top.key) :]
            await self._enter(top, Key(top.key + rest[: rest.index("/") + 1]))
        top.objects.append(info)
        if len(top.objects) >= _MOST_KEPT:
            await self._merge(top)

    async def _enter(self, parent: _Directory, key: Key) -> None:
        parent.prefixes.append(key)
        await self._merge(parent)
        look = None if parent.look is None else self._look_at(parent.look, key)
        self._open.append(_Directory(key, look))

    def _look_at(self, parent: Look, key: Key) -> Look | None:
        """Begin to take over the directory at *key*, if it has a place in the tree."""
        rows = self._inodes.rows_of(parent.ino, [last_component(key, parent.key)])
        row = next((row for row in rows if row.is_dir), None)
        if row is None:
            return None
        if row.checked_ns == parent.now_ns:
            # Just now, by its parent: not a change made here, which the page with its marker may be older than.
            self._inodes.touch(row.ino, self._asked_ns - 1)
        return self._names.begin_look(row.ino, key, self._asked_ns)

    async def _merge(self, directory: _Directory) -> None:
        page = Listing(tuple(directory.objects), tuple(directory.prefixes))
        directory.objects, directory.prefixes = [], []
        if directory.look is not None:
            await self._names.merge_page(directory.look, page)
            _require_still(directory.look)

    async def _close(self) -> None:
        directory = self._open.pop()
        if directory.objects or directory.look is None or not directory.look.count:
            await self._merge(directory)
        if directory.look is not None:
            await self._names.finish_look(directory.look)
            _require_still(directory.look)
            self._survey.directories += 1


def _require_still(look: Look) -> None:
    if look.was_moved:
        raise Stale("a directory was renamed meanwhile")


def _order(key: Key) -> bytes:
    """Return the bytes by which listings are sorted."""
    return key.encode("utf-8", "surrogateescape")
