"""Files that the operator wants kept here: they are marked, fetched, and fetched again when a new version is seen."""

import logging
from typing import Final

import trio

from cachefs.core.errors import CachefsError, NoEntry, NoRoom
from cachefs.core.heat import Heat
from cachefs.core.pins import Pinned, Pinning
from cachefs.core.policy import LOW_WATER
from cachefs.core.types import Ino, Name
from cachefs.engine.cause import because
from cachefs.engine.listing import Listings
from cachefs.engine.names import Names
from cachefs.engine.preheat import Preheater
from cachefs.local.cache import Cache
from cachefs.local.inodes import ROOT, Inode, InodeTable
from cachefs.local.journal import Journal
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_PAGE: Final = 64
_AT_ONCE: Final = 4
"""Files that are fetched at the same time: programs want their places, too."""
_FAILURES_TOLD: Final = 20
_AGAIN_S: Final = 60.0
"""After how long what could not be fetched is tried again."""
_LOOK_S: Final = 600.0
"""After how long all is looked at once more where nothing is known to be missing: of 100,000 files that takes seconds."""


class Pins:
    """The pinned files of a mount.

    What is pinned is a column of the inode, whether or not a byte of the file is here; so it outlives evictions,
    versions and restarts. At most ``LOW_WATER`` of the cache may be pinned: the rest is for everything else.
    """

    def __init__(
        self,
        inodes: InodeTable,
        cache: Cache,
        journal: Journal,
        names: Names,
        listings: Listings,
        preheater: Preheater,
        *,
        timeout_s: float,
    ) -> None:
        """*timeout_s*: how long any one question to the store may take, with all its tries."""
        self._inodes = inodes
        self._cache = cache
        self._journal = journal
        self._names = names
        self._listings = listings
        self._preheater = preheater
        self._timeout_s = timeout_s
        self._kicked = trio.Event()
        self._ended = trio.Event()
        self._asked = self._over = 0
        self._looked_at = self._fetched = self._failures = 0
        self._failed: dict[str, str] = {}
        names.on_pinned = self.kick

    @property
    def most(self) -> int:
        """Bytes of disk that pinned files may need."""
        return int(self._cache.limit * LOW_WATER)

    def kick(self) -> int:
        """Have the pinned files looked at. Return the turn that does."""
        self._asked += 1
        self._kicked.set()
        return self._asked

    async def pin(self, path: str) -> Pinning:
        """Pin the file *path*, or every file at or below the directory *path*, relative to the root.

        Raise ``NoRoom``, and pin nothing, where that is more than the cache can hold; ``NoEntry`` and the like, or
        the store's error, where there is no such path or it cannot be listed.
        """
        inode = await self._find(path)
        if inode.is_dir:
            await self._know_all_below(inode.ino)
        files, size = self._inodes.files_below(inode.ino, pinned=False)
        _, already = self._inodes.all_pinned()
        if size and already + size > self.most:
            raise NoRoom(
                f"it needs {_mib(size)}, {_mib(already)} are pinned already, and of the cache's"
                f" {_mib(self._cache.limit)} no more than {_mib(self.most)} can be — unpin something, or raise --cache-size"
            )
        self._inodes.pin_below(inode.ino, pinned=True)
        return Pinning(files, size, self.kick())

    async def unpin(self, path: str) -> Pinning:
        """Let the file *path*, or every file at or below the directory *path*, be evicted like any other."""
        inode = await self._find(path)
        files, size = self._inodes.files_below(inode.ino, pinned=True)
        self._inodes.pin_below(inode.ino, pinned=False)
        return Pinning(files, size, self._over)

    async def wait_over(self, turn: int) -> None:
        """Wait for the end of a turn."""
        while self._over < turn:
            await self._ended.wait()

    def told(self) -> Pinned:
        """Tell how far the fetching is."""
        files, size = self._inodes.all_pinned()
        return Pinned(
            files, size, self._over, self._looked_at, self._fetched, self._failed, self._failures
        )

    async def _find(self, path: str) -> Inode:
        inode = self._inodes.get(ROOT)
        for part in filter(None, path.encode("utf-8", "surrogateescape").split(b"/")):
            if inode is not None:
                with deadline.limited(self._timeout_s):
                    inode = await self._names.lookup(inode.ino, Name(part))
        if inode is None:
            raise NoEntry(f"no such file in the mount: {path}")
        return inode

    async def _know_all_below(self, ino: Ino) -> None:
        """List every directory at and below *ino*, one after the other."""
        waiting = [ino]
        while waiting:
            directory = waiting.pop()
            with deadline.limited(self._timeout_s):
                await self._listings.know(directory)
            after = 0
            while children := self._inodes.children(directory, after=after):
                waiting += [each.ino for each in children if each.is_dir]
                after = children[-1].ino
                await trio.lowlevel.checkpoint()

    # ---- fetching ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch what is pinned and not here, at the start, whenever there may be something new, and now and then."""
        self.kick()
        while True:
            with trio.move_on_after(_AGAIN_S if self._failures else _LOOK_S):
                await self._kicked.wait()
            self._kicked = trio.Event()
            turn = self._asked
            with because("cachefs pin"):
                await self._bring_all()
            self._over = turn
            self._ended.set()
            self._ended = trio.Event()

    async def _bring_all(self) -> None:
        after = Ino(0)
        failed: dict[str, str] = {}
        self._looked_at = failures = 0
        while page := self._inodes.pinned_after(after, _PAGE):
            after = page[-1].ino
            missing = [each for each in page if not self._is_here(each)]
            self._looked_at += len(page) - len(missing)
            for at in range(0, len(missing), _AT_ONCE):
                said: dict[str, str] = {}
                async with trio.open_nursery() as nursery:
                    for inode in missing[at : at + _AT_ONCE]:
                        nursery.start_soon(self._bring, inode.ino, said)
                failures += len(said)
                failed |= said if len(failed) < _FAILURES_TOLD else {}
            await trio.lowlevel.checkpoint()
        if failed and failed != self._failed:
            path, why = next(iter(failed.items()))
            _log.warning(
                "%d pinned files cannot be fetched, and are tried again: %a: %s",
                failures,
                path,
                why,
            )
        self._failed, self._failures = failed, failures

    def _is_here(self, inode: Inode) -> bool:
        entry = self._cache.find(inode.ino)
        if entry is None:
            return not inode.size
        if self._journal.of(entry.id) is not None:
            return True
        return entry.etag == inode.etag and entry.is_whole

    async def _bring(self, ino: Ino, failed: dict[str, str]) -> None:
        """Fetch all of one file; note in *failed* why it could not be."""
        path = self._inodes.path_of(ino)
        if path is None:
            return
        name = path.decode("utf-8", "surrogateescape")
        try:
            while True:
                with deadline.limited(self._timeout_s):
                    heated = await self._preheater.heat(
                        name, used_ns=self._names.now_ns(), may_evict=True
                    )
                self._fetched += heated.fetched
                if heated.heat is Heat.FULL or (
                    not heated.fetched and heated.heat is Heat.PARTIAL
                ):
                    failed[name] = "the cache has no room for it, or nothing came for a while"
                if heated.heat is not Heat.PARTIAL or not heated.fetched:
                    break
        except CachefsError as error:
            failed[name] = " ".join(str(error).split()) or type(error).__name__
        self._looked_at += 1


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
