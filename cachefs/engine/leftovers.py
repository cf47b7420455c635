"""Keeps account of what large uploads have at the store before they are objects, and ends what nobody goes on with."""

import contextlib
import logging
from collections.abc import Sequence
from typing import Final

import trio

from cachefs.core.errors import StoreError
from cachefs.core.intent import State
from cachefs.core.types import Key
from cachefs.engine.threads import Threads
from cachefs.local.cache import Cache
from cachefs.local.db import Database
from cachefs.local.inodes import InodeTable
from cachefs.local.journal import Journal
from cachefs.remote.store import ObjectStore

_log = logging.getLogger(__name__)

_LOOK_S: Final = 2
"""How often to look for works that nobody goes on with, while there are any."""
_FIRST_RETRY_S: Final = 10
_LONGEST_RETRY_S: Final = 300
_GOES_ON: Final = (State.QUEUED, State.UPLOADING)


class DurableLedger:
    """The journal as the store sees it, from the threads that upload. Made on the loop."""

    def __init__(self, journal: Journal, db: Database) -> None:
        self._journal = journal
        self._db = db
        self._loop = trio.lowlevel.current_trio_token()
        self.noticed = trio.Event()
        """Set when something was noted."""

    def note(self, key: Key, work: str, *, replaces: str | None = None) -> None:
        """Put *work* into the journal, and the journal on the disk."""

        def note() -> bool:
            self.noticed.set()
            return self._journal.note_work(key, work, replaces=replaces)

        if not trio.from_thread.run_sync(note, trio_token=self._loop):
            _log.warning("no room to note a large upload of %s: a crash may leave it", ascii(key))
            return
        with contextlib.suppress(OSError):  # as where there is no room
            self._db.sync_wal(self._db.path)

    def strike(self, work: str) -> None:
        """Take *work* out of the journal. One that a loss of power brings back is struck again."""
        trio.from_thread.run_sync(self._journal.strike_work, work, trio_token=self._loop)

    def noted(self, key: Key) -> Sequence[str]:
        """Return what the journal has for *key*."""
        return trio.from_thread.run_sync(self._journal.works_of, key, trio_token=self._loop)


class Leftovers:
    """Ends works that a crash, a fault or a change of mind has left.

    A work goes on as long as bytes for its key wait for their upload: that continues it, or ends it where the
    bytes are others. Every other is ended here, beside the serving. Which of them are under way, the store knows.
    """

    def __init__(
        self,
        store: ObjectStore,
        ledger: DurableLedger,
        journal: Journal,
        cache: Cache,
        inodes: InodeTable,
        threads: Threads,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._journal = journal
        self._cache = cache
        self._inodes = inodes
        self._threads = threads

    async def run(self) -> None:
        """End what is left, for ever."""
        wait_s: float = _LOOK_S
        while True:
            self._ledger.noticed = trio.Event()
            is_well = await self._end_left()
            if not self._journal.works():
                await self._ledger.noticed.wait()
            wait_s = _LOOK_S if is_well else min(max(2 * wait_s, _FIRST_RETRY_S), _LONGEST_RETRY_S)
            await trio.sleep(wait_s)

    async def _end_left(self) -> bool:
        """Try to end each work that nobody goes on with. Return whether none refused to be."""
        is_well = True
        for key, work in self._journal.works():
            if key in self._awaited():
                continue
            try:
                await self._threads.ask(self._store.abandon, key, work)
            except StoreError as error:
                _log.warning(
                    "what a large upload of %s left is still there: %s", ascii(key), error
                )
                is_well = False
        return is_well

    def _awaited(self) -> set[Key]:
        """Return the keys to which bytes are still to be uploaded."""
        found = set()
        for intent in self._journal.all():
            entry = self._cache.load(intent.entry) if intent.state in _GOES_ON else None
            key = self._inodes.key_of(entry.ino) if entry is not None else None
            if key is not None:
                found.add(key)
        return found
