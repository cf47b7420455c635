"""Keeps the inode table in step with the store: what is fresh is answered, what is not is asked, once."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio
from cachetools import TTLCache

from cachefs.core import metadata
from cachefs.core.errors import (
    CachefsError,
    Denied,
    Fault,
    InvalidName,
    NameTooLong,
    NoEntry,
    NotDirectory,
    NotFound,
    Stale,
)
from cachefs.core.keys import NAME_MAX, child_key, component_of, name_of
from cachefs.core.policy import SECOND_NS, is_fresh
from cachefs.core.types import AttributeMode, Ino, Key, Listing, Name, ObjectInfo
from cachefs.engine.clock import Clock
from cachefs.engine.pages import Fetched, fetched_ahead
from cachefs.engine.reach import Reach, wait_for
from cachefs.engine.room import Room
from cachefs.engine.threads import Threads
from cachefs.engine.told import Told
from cachefs.engine.untold import Forget, Untold
from cachefs.local.cache import Cache
from cachefs.local.db import Database
from cachefs.local.inodes import ROOT, Difference, Inode, InodeTable
from cachefs.local.journal import Journal
from cachefs.remote.store import ObjectStore

_log = logging.getLogger(__name__)

OnPage = Callable[[Key, Key], Awaitable[None]]

_SAMPLE = 3
"""How many objects of a directory are looked at to decide whether its objects carry POSIX metadata."""
_BATCH = 32
"""How many HEADs a thread sends before it hands the answers over."""
_BATCHES_AT_ONCE = 6
"""More threads than this only wait for each other: a request costs more processor than time."""
_SAME_OPEN_NS = 50_000_000
"""The kernel looks a name up just before it opens it: an answer this young was asked for by the same open."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """For how long what the store said is believed, nanoseconds."""

    metadata_ttl_ns: int
    negative_ttl_ns: int
    attributes: AttributeMode
    since_ns: int = 0
    """What was said before is not: the tables may be older than what has become of it."""

    def holds(self, said_ns: int, ttl_ns: int, now_ns: int) -> bool:
        """Whether what the store said then is believed now.

        Once the clock has gone back behind the start, what was said before it is of the future, and not fresh.
        """
        is_ours = said_ns >= self.since_ns or now_ns < self.since_ns
        return is_ours and is_fresh(said_ns, ttl_ns, now_ns)

    offline_reads: bool = True
    """What is cached is opened although it cannot be asked whether it is the newest version."""
    offline_names: bool = False
    """What was not in a directory when it was last listed, whole, may be made while the store cannot be asked."""


@dataclass(slots=True)
class Look:
    """One look at a directory's listing, or at its first page."""

    ino: Ino
    key: Key
    since_ns: int
    now_ns: int
    """Not before the time of any of its pages, whatever the clock says by now."""
    count: int = 0
    """Pages that were taken over."""
    was_seen: bool = False
    """Anything was in it."""
    was_moved: bool = False
    """The directory has another key by now: what was read tells nothing of it."""


class SingleFlight:
    """Lets callers who ask the same question at the same time share one answer."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, trio.Event] = {}

    async def run(self, question: Hashable, ask: Callable[[], Awaitable[None]]) -> bool:
        """Run *ask*, or wait for who is running it. Return whether this call ran it itself.

        A caller who only waited looks at the result himself, and asks again if the one who ran failed.
        """
        flight = self._flights.get(question)
        if flight is not None:
            await wait_for(flight, "somebody else's answer to the same question")
            return False
        self._flights[question] = flight = trio.Event()
        try:
            await ask()
        finally:
            del self._flights[question]
            flight.set()
        return True


class Names:
    """Names, as the store shows them and this mount changed them."""

    def __init__(
        self,
        store: ObjectStore,
        db: Database,
        inodes: InodeTable,
        journal: Journal,
        cache: Cache,
        room: Room,
        threads: Threads,
        reach: Reach,
        freshness: Freshness,
        *,
        held: Collection[Ino],
        clock: Clock,
    ) -> None:
        """*held*: the inodes that are open, kept up to date by who opens them."""
        self._store = store
        self._db = db
        self._inodes = inodes
        self._journal = journal
        self._cache = cache
        self._room = room
        self._threads = threads
        self._reach = reach
        self._freshness = freshness
        self._held = held
        self.now_ns = clock.now_ns
        self.wall_ns = clock.wall_ns
        self._flights = SingleFlight()
        self._moving: list[Key] = []
        self.unsettled: list[Key] = []
        """At or below these a rename was cut off, and is still to be undone or finished."""
        self._moved = trio.Event()
        # Directories whose objects (or subdirectories: True) were found to carry no POSIX metadata: their
        # listing tells all there is. The value: in which thousand of its names that was looked at last.
        self._plain: TTLCache[tuple[Ino, bool], int] = TTLCache(maxsize=65536, ttl=600)
        self._absent: TTLCache[tuple[Ino, Name], bool] = TTLCache(
            maxsize=65536, ttl=max(freshness.negative_ttl_ns / SECOND_NS, 1e-9)
        )
        # Directories of more than one page: a page of theirs tells little of one name.
        self._large: TTLCache[Ino, bool] = TTLCache(maxsize=65536, ttl=600)
        self.before_drop: Callable[[Ino], Awaitable[None]] = _nothing
        """Called before the bytes of an inode go whose version the store has no more."""
        self.told = Told()
        self.on_pinned: Callable[[], object] = lambda: None
        """Called when another version of a pinned file was seen."""
        self.untold = Untold()

    # ---- keys, and renames that are under way ----------------------------------------------

    @contextmanager
    def moving(self, *keys: Key) -> Iterator[None]:
        """Hold back whoever needs a key at or below *keys* until the rename is over."""
        self._moving.extend(keys)
        try:
            yield
        finally:
            for key in keys:
                self._moving.remove(key)
            self._moved.set()
            self._moved = trio.Event()

    async def settled_key(self, ino: Ino) -> Key | None:
        """Return the key of *ino* once no rename is changing it; None if it has no name any more."""
        while True:
            key = self._inodes.key_of(ino)
            if key is None or not self.is_moving(key):
                return key
            await wait_for(self._moved, "the end of a rename")

    async def wait_still(self, *keys: Key) -> None:
        """Wait until no rename is changing any of *keys*."""
        while any(self.is_moving(key) for key in keys):
            await wait_for(self._moved, "the end of a rename")

    def is_moving(self, key: Key) -> bool:
        """Whether a rename is changing *key* at this moment."""
        return reaches(self._moving, key)

    def is_unsettled(self, key: Key) -> bool:
        """Whether it is not known yet where a rename that was cut off leaves *key*."""
        return reaches(self.unsettled, key)

    def new_component(self, parent: Ino, name: Name, *, is_dir: bool) -> str:
        """Return the component of a name that nothing has yet. Raise where nothing new can have it.

        Reserved are the empty component for a file, which is the marker of the directory itself, and the name
        of an object beside a directory where there is no such directory: the object is under its plain name.
        """
        component, shadowed = component_of(name)
        directory = self._inodes.key_of(parent)
        if directory is None:
            raise NoEntry("the directory is gone")
        beside = self._inodes.child(parent, name_of(component)) if shadowed else None
        if shadowed and (is_dir or beside is None or not beside.is_dir):
            raise InvalidName(f"the name {name!r} is reserved for an object beside a directory")
        if not component and not is_dir:
            raise InvalidName(f"the name {name!r} is reserved for what a directory's marker holds")
        # Before anything is made: bytes that can never be stored must not be acknowledged.
        self._store.check_key(child_key(directory, component, is_dir=is_dir))
        return component

    # ---- freshness --------------------------------------------------------------------------

    def ttl_left_s(self, inode: Inode) -> float:
        """Return for how many seconds the kernel may believe what it is told of *inode*."""
        ttl_ns = self._freshness.metadata_ttl_ns
        left_ns = min(ttl_ns, inode.checked_ns + ttl_ns - self.now_ns())
        if left_ns <= 0:
            return ttl_ns / SECOND_NS if self._journal.is_dirty(inode.ino) else 0
        return left_ns / SECOND_NS

    @property
    def negative_ttl_s(self) -> float:
        """For how many seconds the kernel may believe that a name does not exist."""
        if self._reach.is_offline:
            return 0  # it was not the store that said so just now
        return min(self._freshness.negative_ttl_ns, self._freshness.metadata_ttl_ns) / SECOND_NS

    def doubt(self, ino: Ino) -> None:
        """Make *ino* be asked about before it is used again."""
        self._inodes.update(ino, checked_ns=0)

    def _later(self, when_ns: int) -> int:
        """Return the time, or *when_ns* if that is later: what is newer stays newer."""
        return max(when_ns, self.now_ns())

    def forget_absent(self, parent: Ino, name: Name) -> None:
        """Note that a name exists from now on."""
        self._absent.pop((parent, name), None)

    def _is_believed(self, inode: Inode) -> bool:
        ttl_ns = self._freshness.metadata_ttl_ns
        if self._freshness.holds(inode.checked_ns, ttl_ns, self.now_ns()):
            return True
        return self._journal.is_dirty(inode.ino)

    def directory(self, ino: Ino) -> Inode:
        """Return the row of a directory. Raise ``Stale`` if it is gone, ``NotDirectory`` if it is none."""
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the directory is gone")
        if not inode.is_dir:
            raise NotDirectory("not a directory")
        return inode

    # ---- one name ---------------------------------------------------------------------------

    async def lookup(self, parent: Ino, name: Name) -> Inode:
        """Return what is under *name*, asking the store where what is known is too old. Raise ``NoEntry``."""
        if len(name) > NAME_MAX:
            raise NameTooLong(f"a name has at most {NAME_MAX} bytes")
        while True:
            inode = self._known(parent, name)
            if inode is not None:
                return inode
            if self._has_last_word(parent, name) and await self._reach.is_lost():
                return self._last_known(parent, name)
            try:
                was_asked = await self._flights.run(
                    (parent, name), lambda: self._ask(parent, name)
                )
            except (Denied, Fault) as error:
                return self._shown_despite(error, parent, name)
            if was_asked:
                found = self._inodes.child(parent, name)
                if found is None:
                    self._absent[parent, name] = True
                    raise NoEntry("no such file or directory")
                return found

    def _known(self, parent: Ino, name: Name) -> Inode | None:
        """Return the row if it may be used, None if the store must be asked. Raise ``NoEntry``."""
        inode = self._inodes.child(parent, name)
        if inode is not None:
            return inode if self._is_believed(inode) and self._is_exact(parent, inode) else None
        directory = self.directory(parent)
        listed_ns = directory.listed_ns
        if listed_ns is not None and self._freshness.holds(
            listed_ns, self._freshness.metadata_ttl_ns, self.now_ns()
        ):
            self._absent[parent, name] = True
            raise NoEntry("no such file or directory")
        if self._freshness.metadata_ttl_ns and self._absent.get((parent, name)):
            raise NoEntry("no such file or directory")
        return None

    def _shown_despite(self, error: Denied | Fault, parent: Ino, name: Name) -> Inode:
        """Return what is known of a name although the store did not tell. Raise *error* if that will not do."""
        if isinstance(error, Denied):
            known = self._inodes.child(parent, name)
            # The way to what is not stored yet leads through directories.
            if known is None or not known.is_dir:
                raise error
            return known
        if not self._has_last_word(parent, name):
            raise error
        _log.info("%s is shown as last known: %s", ascii(name), error)
        return self._last_known(parent, name)

    def _has_last_word(self, parent: Ino, name: Name) -> bool:
        """Whether there is something to go by while the store cannot be asked about a name.

        That it was not there is not shown as a fact, but where something new would wait for its upload anyway, and
        whatever it meets at the store then is kept.
        """
        if self._inodes.child(parent, name) is not None:
            return True
        return (
            self._freshness.offline_names
            and self._reach.is_offline
            and self.directory(parent).listed_ns is not None
        )

    def _last_known(self, parent: Ino, name: Name) -> Inode:
        """Return what a name stood for when the store was last asked. Raise ``NoEntry``."""
        inode = self._inodes.child(parent, name)
        if inode is None:
            raise NoEntry("no such file or directory, when the store was last asked")
        return inode

    def _is_exact(self, parent: Ino, inode: Inode) -> bool:
        if inode.meta_json is not None or self._journal.is_dirty(inode.ino):
            return True
        if self._freshness.attributes is AttributeMode.LISTING:
            return True
        is_plain = (parent, inode.is_dir) in self._plain and not inode.carries_posix
        return self._freshness.attributes is AttributeMode.AUTO and is_plain

    async def _ask(self, parent: Ino, name: Name) -> None:
        """Bring the row of one name in line with the store."""
        began_ns = self.now_ns()
        inode = self._inodes.child(parent, name)
        if inode is None and await self._list_again(parent):
            inode = self._inodes.child(parent, name)
            if inode is None:
                return
        try:
            component, _ = component_of(name)
        except InvalidName:  # a name that only a listing can explain
            if inode is None or inode.is_dir:
                await self._list(parent)
                return
            component = inode.component
        if inode is not None and inode.is_dir:
            if not self._is_believed(inode):
                await self._ask_directory(inode)
            inode = self._inodes.child(parent, name)
        if inode is None or not inode.is_dir:
            await self._ask_component(parent, component, inode, began_ns)
            inode = self._inodes.child(parent, name)
        if inode is not None and inode.is_dir and not self._is_exact(parent, inode):
            if inode.listed_ns is None and inode.ino not in self._large:
                # Its page tells whether it has a marker, and what is asked for next: the names in it.
                await self._list(inode.ino, first_page_only=True)
            await self._describe_directory(inode.ino)

    async def _ask_component(
        self, parent: Ino, component: str, inode: Inode | None, began_ns: int
    ) -> None:
        """Find out what *component* is now, where it was no directory (*inode*: what it was)."""
        directory = self._inodes.key_of(parent)
        if directory is None:
            raise Stale("the directory is gone")
        if not await self._ask_object(parent, child_key(directory, component), inode):
            await self._ask_absent(parent, directory, component, began_ns)

    async def _list_again(self, ino: Ino) -> bool:
        """List a directory of one page that was listed before. Return whether all its names are known now.

        What it did not have then it most likely does not have now, and the page tells in one request.
        """
        began_ns = self.now_ns()
        if ino in self._large or self.directory(ino).listed_ns is None:
            return False
        await self._list(ino, first_page_only=True)
        return self._was_listed(ino, began_ns)

    def _was_listed(self, ino: Ino, since_ns: int) -> bool:
        """Whether all names of a directory are known from a listing that began at *since_ns* or later."""
        listed_ns = self.directory(ino).listed_ns
        return listed_ns is not None and listed_ns >= since_ns

    async def _ask_object(self, parent: Ino, key: Key, inode: Inode | None) -> bool:
        since_ns = self.now_ns()
        try:
            info = await self._head(key)
        except NotFound:
            if inode is not None:
                current = self._inodes.get(inode.ino)
                if current is not None and not since_ns <= current.checked_ns <= self.now_ns():
                    difference = Difference()
                    self._inodes.remove(current, difference, held=self._held, now_ns=self.now_ns())
                    await self._carry_out(difference)
            return False
        if self._inodes.key_of(parent) != _directory_of(key):
            raise Stale("the directory was renamed meanwhile")
        difference = self._inodes.learn(
            parent, info, since_ns=since_ns, now_ns=self.now_ns(), held=self._held
        )
        await self._carry_out(difference)
        return True

    async def _head(self, key: Key) -> ObjectInfo:
        info = await self._threads.ask(self._store.head, key)
        if self._journal.is_leaving(key):
            raise NotFound("renamed away, and about to be deleted")
        return info

    async def _ask_directory(self, inode: Inode) -> None:
        """Find out whether a known directory still is: its own first page tells, and often all of it."""
        if await self._list(inode.ino, first_page_only=True):
            self._inodes.touch(inode.ino, self.now_ns())
            return
        difference = Difference()
        self._inodes.remove(inode, difference, held=self._held, now_ns=self.now_ns())
        await self._carry_out(difference)

    async def _ask_absent(
        self, parent: Ino, directory: Key, component: str, began_ns: int
    ) -> None:
        """Find out whether a name that is no object is a directory.

        The first page of the parent's listing answers that for this and every other name, unless the
        directory is larger than a page.
        """
        if parent not in self._large and not self._was_listed(parent, began_ns):
            await self._list(parent, first_page_only=True)
        if self._was_listed(parent, began_ns):
            return
        prefix = child_key(directory, component, is_dir=True)
        since_ns = self.now_ns()
        pages = await self._threads.ask(self._store.list, prefix)
        page = await self._threads.ask(next, pages, None)
        if page is not None and (page.objects or page.prefixes):
            seen = type(page)(prefixes=(prefix,))
            difference = self._inodes.merge(
                parent, seen, since_ns=since_ns, now_ns=self._later(since_ns), held=self._held
            )
            await self._carry_out(difference)

    async def revalidate(self, ino: Ino, *, for_open: bool = False) -> Inode:
        """Return the row of *ino* as the store has it now, or had it last, if it cannot be asked.

        Raise ``Stale`` if another object has taken its place: the kernel then looks the name up again. *for_open*:
        raise the store's ``Fault`` with ``--offline-reads off``.
        """
        inode = self._inodes.get(ino)
        if inode is None:
            raise Stale("the file is gone")
        if inode.parent is None or self._journal.is_dirty(ino) or inode.etag is None:
            return inode
        age_ns = self.now_ns() - inode.checked_ns
        if self._is_believed(inode) or 0 <= age_ns < _SAME_OPEN_NS:
            return inode
        parent, name = inode.parent, inode.name
        assert name is not None
        is_shown = self._freshness.offline_reads or not for_open
        if is_shown and await self._reach.is_lost():
            return inode
        try:
            was_asked = await self._flights.run((parent, name), lambda: self._ask(parent, name))
        except Fault as fault:
            if not is_shown:
                raise
            _log.info("%s is shown as last known: %s", ascii(name), fault)
            return inode
        if not was_asked:
            return await self.revalidate(ino, for_open=for_open)
        found = self._inodes.get(ino)
        if found is None or found.parent is None:
            raise Stale("another version has taken the file's place")
        return found

    # ---- whole directories ------------------------------------------------------------------

    async def list_now(self, ino: Ino) -> None:
        """Make sure that the children of *ino* are those that the store has now. Raise its error."""
        await self._list(ino)

    async def foresee(self) -> None:
        """Read the first page of a root that was never listed, and believe nothing of it.

        It makes the first question about a name that is not there cost one request and not two, as for every
        directory that was entered by its name.
        """
        if self.directory(ROOT).listed_ns is None:
            await self._list(ROOT, first_page_only=True)
            self._inodes.age(ROOT)

    async def list_whole(self, ino: Ino, on_page: OnPage) -> None:
        """Make the children of *ino* known as the store has them from now on. Raise its error.

        After each page but the last *on_page* is called with the key of the directory and the last key of the page;
        no further page is merged before it returns.
        """
        await self._list(ino, on_page=on_page)

    async def _list(
        self,
        ino: Ino,
        *,
        first_page_only: bool = False,
        on_page: OnPage | None = None,
    ) -> bool:
        """Merge the listing of a directory. Return whether anything was in it.

        With *first_page_only* a directory of more than one page is merged in part, and not taken for
        completely known.
        """
        while True:
            key = await self.settled_key(ino)
            if key is None:
                raise Stale("the directory is gone")
            look = self.begin_look(ino, key, self.now_ns())
            with self._inodes.looking(look.since_ns):
                pages = await self._threads.ask(self._store.list, key)
                most = 1 if first_page_only else None
                async with fetched_ahead(self._threads, pages, self.now_ns, most=most) as fetched:
                    await self._merge_all(look, fetched, first_page_only, on_page)
                fetched.check()
                if not look.was_moved:
                    return look.was_seen

    async def _merge_all(
        self, look: "Look", fetched: Fetched, first_page_only: bool, on_page: OnPage | None
    ) -> None:
        """Merge the pages of one look at a directory, unless it is renamed meanwhile."""
        with fetched.catching():
            async for page in fetched:
                await self.merge_page(look, page)
                if look.was_moved:
                    return
                if first_page_only and not fetched.is_over:
                    self._large[look.ino] = True
                    return
                if on_page is not None and not fetched.is_over and page != Listing():
                    await on_page(look.key, _last_of(page))
            await self.finish_look(look)

    def begin_look(self, ino: Ino, key: Key, since_ns: int) -> "Look":
        """Begin to take over a listing of the directory *ino* at *key*, whose first page was asked for at *since_ns*."""
        return Look(ino, key, since_ns, since_ns)

    async def merge_page(self, look: "Look", page: Listing) -> None:
        """Take over the next page of a listing, unless the directory was renamed meanwhile: ``was_moved``, then."""
        if self._has_moved(look):
            return
        look.now_ns = self._later(look.now_ns)
        if not look.count and all(info.key != look.key for info in page.objects):
            self._inodes.unmarked(look.ino, since_ns=look.since_ns)
        look.count += 1
        look.was_seen = look.was_seen or bool(page.objects or page.prefixes)
        kept = Listing(self._journal.staying(page.objects), page.prefixes)
        difference = self._inodes.merge(
            look.ino, kept, since_ns=look.since_ns, now_ns=look.now_ns, held=self._held
        )
        await self._carry_out(difference)

    async def finish_look(self, look: "Look") -> None:
        """Take the directory for known as a whole: what was in none of the pages is gone."""
        if self._has_moved(look):
            return
        steps = self._inodes.finishing(
            look.ino, since_ns=look.since_ns, now_ns=self._later(look.now_ns), held=self._held
        )
        for difference in steps:
            await self._carry_out(difference)
            await trio.lowlevel.checkpoint()
        if look.was_seen:
            self._inodes.confirm_directory(look.ino, look.since_ns)

    def _has_moved(self, look: "Look") -> bool:
        look.was_moved = look.was_moved or self._inodes.key_of(look.ino) != look.key
        return look.was_moved

    # ---- attributes that a listing does not tell --------------------------------------------

    async def make_exact(self, ino: Ino, after: int, last: int, block: int) -> None:
        """Read the metadata of children where a listing does not tell all, as ``--attributes`` says.

        Of those whose numbers lie above *after* and not above *last*, which are the *block*-th thousand that somebody
        reads. In the first one a few are looked at, and one more whenever the number of blocks has doubled.
        """
        if self._freshness.attributes is AttributeMode.LISTING:
            return
        own = self.directory(ino)
        if own.meta_json is None and own.etag is not None:
            await self._describe_directory(ino)
        for dirs in (False, True):
            await self._describe_children(ino, dirs, after, last, block)

    async def _describe_children(
        self, ino: Ino, dirs: bool, after: int, last: int, block: int
    ) -> None:
        inodes = self._inodes
        if self._freshness.attributes is AttributeMode.AUTO:
            known = inodes.undescribed(ino, dirs=dirs, after=after, up_to=last, only_posix=True)
            await self._head_all(ino, known)
            looked_at = self._plain.get((ino, dirs), 0)
            if looked_at and (block <= looked_at or block & (block - 1)):
                return
            unknown = inodes.undescribed(ino, dirs=dirs, after=after, up_to=last)
            if not unknown:
                return
            if await self._is_sample_plain(ino, unknown, 1 if looked_at else _SAMPLE):
                self._plain[ino, dirs] = block
                return
            self._plain.pop((ino, dirs), None)
        unknown = inodes.undescribed(ino, dirs=dirs, after=after, up_to=last)
        await self._head_all(ino, unknown)

    async def _is_sample_plain(self, ino: Ino, unknown: list[Inode], count: int) -> bool:
        """Look at *count* of *unknown*, the last among them. Return whether none carries POSIX metadata."""
        sample = [
            unknown[at * (len(unknown) - 1) // (_SAMPLE - 1)]
            for at in range(_SAMPLE - count, _SAMPLE)
        ]
        distinct = list({each.ino: each for each in sample}.values())
        await self._head_all(ino, distinct)
        return not any(self._says_posix(each.ino) for each in distinct)

    async def _describe_directory(self, ino: Ino) -> None:
        """Learn what a directory's marker says of it; that there is none is an answer, too."""
        inode, key = self._inodes.get(ino), self._inodes.key_of(ino)
        if inode is None or inode.meta_json is not None or key is None:
            return
        found = await self._threads.ask(_head_each, self._store, [key])
        self._learn_marker(ino, found.get(key))

    def _learn_marker(self, ino: Ino, marker: ObjectInfo | None) -> None:
        inode = self._inodes.get(ino)
        if inode is None or inode.meta_json is not None:
            return
        if marker is None:
            self._inodes.update(ino, etag=None, meta={})
        else:
            self._inodes.put(ino, marker, inode.checked_ns)
            self._tell(Forget(ino))

    def _says_posix(self, ino: Ino) -> bool:
        inode = self._inodes.get(ino)
        return (
            inode is not None and inode.meta is not None and metadata.decode(inode.meta).is_known
        )

    async def _head_all(self, parent: Ino, inodes: list[Inode]) -> None:
        """Read the metadata of many objects: a batch in a thread at a time, for a hop each would cost more."""
        batches = [inodes[at : at + _BATCH] for at in range(0, len(inodes), _BATCH)]
        batches.reverse()
        errors: list[CachefsError] = []

        async def work() -> None:
            while batches and not errors:
                try:
                    await self._head_batch(parent, batches.pop())
                except CachefsError as error:
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(_BATCHES_AT_ONCE, len(batches))):
                nursery.start_soon(work)
        if errors:
            raise errors[0]

    async def _head_batch(self, parent: Ino, inodes: list[Inode]) -> None:
        since_ns = self.now_ns()
        directory = self._inodes.key_of(parent)
        if directory is None:
            return
        keys = {
            inode.ino: child_key(directory, inode.component, is_dir=inode.is_dir)
            for inode in inodes
        }
        found = await self._threads.ask(_head_each, self._store, list(keys.values()))
        if self._inodes.key_of(parent) != directory:
            return  # renamed meanwhile: whoever asks next asks for the new keys
        for inode in inodes:
            if inode.is_dir:
                self._learn_marker(inode.ino, found.pop(keys[inode.ino], None))
        difference = self._inodes.learn_all(
            parent,
            self._journal.staying(list(found.values())),
            since_ns=since_ns,
            now_ns=self.now_ns(),
            held=self._held,
        )
        await self._carry_out(difference)

    # ---- what changed -----------------------------------------------------------------------

    async def _carry_out(self, difference: Difference) -> None:
        """Drop the bytes of what is gone, and tell the kernel."""
        for ino in difference.freed:
            await self.before_drop(ino)
            if ino in self._held:
                continue  # opened meanwhile: the last close drops it
            with self._db.transaction():
                entry = self._cache.find(ino)
                doomed = self._cache.drop(entry) if entry is not None else None
                self._inodes.drop(ino)
            await self._room.delete(doomed)
        if difference.has_pinned:
            self.on_pinned()
        for parent, name in difference.changed:
            self.tell_kernel(parent, name)
        for parent, name in difference.appeared:
            # What the kernel was told is not there it may believe still.
            if self._absent.pop((parent, name), False):
                self.tell_kernel(parent, name)
        for ino in difference.altered:
            self._tell(Forget(ino))

    async def forget_name(self, parent: Ino, name: Name) -> None:
        """Forget that *parent* has no such name."""
        self.doubt_listing(parent)
        self._absent.pop((parent, name), None)
        await self._tell_patiently(Forget(parent, name))

    async def forget_below(self, inode: Inode) -> int:
        """Forget what the store said of *inode* and of all that is known below it. Return of how many names.

        The kernel is told of each, and waited for. It keeps the names of directories, which programs may be in: that one is gone
        it hears when its parent is listed.
        """
        absent: dict[Ino, list[Name]] = {}
        for of, name in list(self._absent):
            absent.setdefault(of, []).append(name)
        count = 1
        await self._forget_one(inode)
        directories = [inode.ino] if inode.is_dir else []
        while directories:
            parent = directories.pop()
            self.doubt_listing(parent)
            for name in absent.pop(parent, ()):
                await self.forget_name(parent, name)
            after = 0
            while page := self._inodes.children(parent, after=after):
                after = page[-1].ino
                with self._db.transaction():
                    for child in page:
                        self._inodes.update(child.ino, checked_ns=0)
                for child in page:
                    await self._forget_in_kernel(child)
                count += len(page)
                directories += [child.ino for child in page if child.is_dir]
        return count

    async def _forget_one(self, inode: Inode) -> None:
        self._inodes.update(inode.ino, checked_ns=0)
        await self._forget_in_kernel(inode)

    async def _forget_in_kernel(self, inode: Inode) -> None:
        if inode.is_dir or inode.parent is None or inode.name is None:
            await self._tell_patiently(Forget(inode.ino))
        else:
            await self._tell_patiently(Forget(inode.parent, inode.name))

    async def _tell_patiently(self, what: Forget) -> None:
        """Tell the kernel, however many changes wait to be told."""
        if what.name is None:
            self.told.doubt(what.ino)
        await self.untold.put(what)

    def doubt_listing(self, ino: Ino) -> None:
        """Have a directory listed anew by whoever needs it; what it had is still known, should the store be offline."""
        directory = self._inodes.get(ino)
        if directory is not None and directory.listed_ns is not None:
            self._inodes.update(ino, listed_ns=0)
        self._large.pop(ino, None)
        for is_dir in (False, True):
            self._plain.pop((ino, is_dir), None)

    def tell_kernel(self, parent: Ino, name: Name) -> None:
        """Have the kernel forget what it knows of a name."""
        self._tell(Forget(parent, name))

    def _tell(self, what: Forget) -> None:
        if what.name is None:
            self.told.doubt(what.ino)
        if not self.untold.offer(what):
            _log.debug("too many changes: the kernel will learn of %s by its time-out", what)


async def _nothing(ino: Ino) -> None:
    """Have nothing to do with *ino*."""


def _last_of(page: Listing) -> Key:
    """Return the last of the keys and prefixes of a page."""
    keys = [*(info.key for info in page.objects[-1:]), *page.prefixes[-1:]]
    return max(keys, key=lambda key: key.encode("utf-8", "surrogateescape"))


def _directory_of(key: Key) -> Key:
    """Return the prefix of the directory that holds the object at *key*."""
    return Key(key[: key.rfind("/") + 1])


def _head_each(store: ObjectStore, keys: list[Key]) -> dict[Key, ObjectInfo]:
    """Return what is at *keys*, leaving out what is not there. Blocks; any thread."""
    found: dict[Key, ObjectInfo] = {}
    for key in keys:
        with contextlib.suppress(NotFound):
            found[key] = store.head(key)
    return found


def reaches(moved: Collection[Key], key: Key) -> bool:
    """Whether *key* is one of *moved*, or below one."""
    return any(key == each or (each.endswith("/") and key.startswith(each)) for each in moved)
