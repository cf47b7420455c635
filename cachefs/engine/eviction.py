"""Evicting what an operator names: each file is looked at again in the moment in which it would go."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from cachefs.core.errors import DiskFull
from cachefs.core.types import EntryId
from cachefs.engine.rebuild import Disk
from cachefs.local.cache import Doomed, Entry

GONE: Final = "has left the cache meanwhile"
USED: Final = "was used meanwhile"


class Keeper(Protocol):
    """Knows of somebody who needs cached bytes."""

    def reason(self, entry: Entry, /) -> str | None:
        """Return why *entry* may not go, in words that follow its name; None: for all that this one knows it may."""
        ...


class InUse:
    """Keeps what is open, being fetched or uploaded."""

    def reason(self, entry: Entry, /) -> str | None:
        """Return why *entry* may not go."""
        return "is in use" if entry.pins else None


@dataclass(frozen=True, slots=True)
class Leased:
    """Keeps what programs were given to read."""

    disk: Disk

    def reason(self, entry: Entry, /) -> str | None:
        """Return why *entry* may not go."""
        return "is leased" if self.disk.cache.lent_of(entry.id) else None


@dataclass(frozen=True, slots=True)
class Owed:
    """Keeps what the store does not have yet."""

    disk: Disk

    def reason(self, entry: Entry, /) -> str | None:
        """Return why *entry* may not go."""
        return None if self.disk.journal.of(entry.id) is None else "waits for upload"


@dataclass(frozen=True, slots=True)
class Pinned:
    """Keeps what the operator has pinned."""

    disk: Disk

    def reason(self, entry: Entry, /) -> str | None:
        """Return why *entry* may not go."""
        inode = self.disk.inodes.get(entry.ino)
        return "is pinned" if inode is not None and inode.is_pinned else None


class Evictions:
    """Drops entries that nobody needs."""

    def __init__(
        self, disk: Disk, on_evicted: Callable[[Entry, int], None] = lambda entry, size: None
    ) -> None:
        """*on_evicted* is called with each entry that went, and how many bytes of its file were here."""
        self._disk = disk
        self._on_evicted = on_evicted
        self.keepers: list[Keeper] = [InUse(), Leased(disk), Owed(disk), Pinned(disk)]
        """Who is asked before an entry goes. Others who need entries add themselves."""

    def drop(self, entry_id: EntryId, used_ns: int) -> Doomed | str:
        """Forget an entry that was last used at *used_ns*; return its file, to be deleted, or why it stays.

        One step: what was true when it was decided is true when the row goes.
        """
        entry = self._disk.cache.load(entry_id)
        if entry is None:
            return GONE
        for keeper in self.keepers:
            if reason := keeper.reason(entry):
                return reason
        if entry.used_ns != used_ns:
            return USED
        size = entry.here.total
        doomed = self._dropped(entry)
        self._on_evicted(entry, size)
        return doomed or GONE

    def _dropped(self, entry: Entry) -> Doomed | None:
        cache = self._disk.cache
        try:
            return cache.drop(entry)
        except DiskFull:
            if not cache.give_up_file(entry):
                raise
            return cache.drop(entry)  # for which there is room now
