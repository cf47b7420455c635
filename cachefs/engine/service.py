"""Builds everything, owns the only long-lived nursery, and ends it all in the right order."""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ParamSpec, TypeVar

import trio
import trio.lowlevel

from cachefs.core.errors import CacheError, CachefsError, NoEntry, UsageError
from cachefs.core.eviction import Policy
from cachefs.core.intent import State
from cachefs.core.known_md5 import KnownMd5
from cachefs.core.policy import SECOND_NS
from cachefs.core.source import Source
from cachefs.core.types import (
    AttributeMode,
    ConflictPolicy,
    EntryId,
    ETag,
    FetchMode,
    Ino,
    Key,
    Name,
    UploadMode,
)
from cachefs.engine import inventory, recovery
from cachefs.engine.attributes import Attributes
from cachefs.engine.audit import Audit, AuditedStore
from cachefs.engine.background import Background
from cachefs.engine.checksums import Checksums
from cachefs.engine.clock import Clock
from cachefs.engine.conflict import Conflicts
from cachefs.engine.eviction import Evictions
from cachefs.engine.fetch import Fetcher
from cachefs.engine.filesystem import FileSystem
from cachefs.engine.handles import Closing, OpenFiles
from cachefs.engine.insight import Insight
from cachefs.engine.leases import Leased, Leases
from cachefs.engine.leftovers import DurableLedger, Leftovers
from cachefs.engine.listing import Listings
from cachefs.engine.mending import Mender
from cachefs.engine.names import Freshness, Names
from cachefs.engine.objects import Objects
from cachefs.engine.openfile import ReadBuffer, Rooms
from cachefs.engine.paths import Paths
from cachefs.engine.pinning import Pins
from cachefs.engine.preheat import Preheater
from cachefs.engine.reach import Reach
from cachefs.engine.rebuild import Disk
from cachefs.engine.rename import Renamer
from cachefs.engine.replacing import Replacer
from cachefs.engine.room import Room
from cachefs.engine.second_look import SecondLooks
from cachefs.engine.survey import Surveyor
from cachefs.engine.threads import Threads
from cachefs.engine.through import PassThrough
from cachefs.engine.trace import Trace
from cachefs.engine.unfinished import Unfinished
from cachefs.engine.upload import Defaults, Uploader
from cachefs.engine.whole_reads import WholeReads
from cachefs.local.cache import Entry
from cachefs.local.db import WAL_KEPT, Database
from cachefs.local.directory import CacheDirectory
from cachefs.local.inodes import ROOT, Inode
from cachefs.local.views import sweep_left
from cachefs.remote import deadline
from cachefs.remote.retry import Retrying
from cachefs.remote.store import ObjectStore

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

_CHECKPOINT_S = 1
_LONGEST_PAUSE_S = 0.5
_REMEMBER_S = 5
_FORESEE_S = 2.0
_PAGES_AT_ONCE = 64
"""Pages of the database that are given back in one step, which takes some milliseconds."""
_MOVES = 5
_MOVE_S = 0.1
"""Two cannot move the log at the same time: so often, and after so long, it is tried again before a reader is blamed."""


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """Everything a service needs to know, decided and checked by the caller. Sizes in bytes."""

    source: Source
    cache_dir: Path
    cache_size: int
    min_free_bytes: int
    policy: Policy
    upload: UploadMode
    upload_delay_s: float
    conflict: ConflictPolicy
    metadata_ttl_s: float
    negative_ttl_s: float
    attributes: AttributeMode
    timeout_s: float
    fetch: FetchMode
    part_size: int
    transfers: int
    offline_reads: bool
    read_only: bool
    uid: int
    gid: int
    file_mode: int
    dir_mode: int
    trace: Path | None = None
    """The file to which every open is appended; None: none."""
    audit: Path | None = None
    """The file to which what is done to bytes and objects is appended; None: none."""


class Service:
    """One cache directory in front of one store, serving."""

    def __init__(
        self,
        settings: ServiceSettings,
        store: Retrying,
        disk: Disk,
        background: Background,
    ) -> None:
        self._settings = settings
        self._store = store
        self._disk = disk
        self.background = background
        """Where tasks run whose failure does not end the mount."""
        self._began_s = time.monotonic()
        self._is_ending = False
        self._stop_examining = threading.Event()
        held: set[Ino] = set()
        defaults = Defaults(settings.uid, settings.gid, settings.file_mode, settings.dir_mode)
        self._threads = Threads(transfers=settings.transfers, timeout_s=settings.timeout_s)
        self._trace = Trace(settings.trace, self._threads)
        self._audit = Audit(settings.audit, self._threads)
        self._reach = Reach(store, self._threads)
        audited: ObjectStore = AuditedStore(store, self._audit) if self._audit.is_on else store
        self._threads.asked = self._reach.notice
        self._room = Room(disk.cache, self._threads)
        self._room.on_evicted = self._note_eviction
        clock = Clock()
        freshness = Freshness(
            int(settings.metadata_ttl_s * SECOND_NS),
            int(settings.negative_ttl_s * SECOND_NS),
            settings.attributes,
            since_ns=clock.now_ns() if disk.was_cut_off else 0,
            offline_reads=settings.offline_reads,
            offline_names=settings.upload is UploadMode.BACKGROUND,
        )
        self._names = Names(
            audited,
            disk.db,
            disk.inodes,
            disk.journal,
            disk.cache,
            self._room,
            self._threads,
            self._reach,
            freshness,
            held=held,
            clock=clock,
        )
        listings = Listings(self._names, disk.inodes, self._reach, background, freshness)
        self._surveyor = Surveyor(audited, self._threads, disk.inodes, self._names, background)
        conflicts = Conflicts(
            audited, disk.inodes, disk.journal, self._names, self._threads, settings.conflict
        )
        conflicts.noticed = self._audit.conflict
        self._second = SecondLooks(
            audited,
            disk.cache,
            disk.journal,
            disk.inodes,
            self._names,
            conflicts,
            self._room,
            self._threads,
            delay_s=settings.timeout_s,
        )
        self._names.before_drop = self._second.before_drop
        self._checksums = Checksums(disk.md5s, settings.source, self._names.wall_ns)
        self._fetcher = Fetcher(
            audited,
            disk.cache,
            self._room,
            self._names,
            self._threads,
            background,
            WholeReads(self._checksums, disk.inodes, disk.journal, self._threads, background),
            part_size=settings.part_size,
            mode=settings.fetch,
        )
        self._uploader = Uploader(
            audited,
            disk.db,
            disk.cache,
            disk.journal,
            disk.inodes,
            self._names,
            self._room,
            self._threads,
            self._reach,
            background,
            conflicts,
            self._second,
            self._checksums,
            defaults,
            timeout_s=settings.timeout_s,
            longest_delay_s=settings.upload_delay_s,
        )
        self._unfinished = Unfinished(
            audited,
            disk.db,
            disk.inodes,
            disk.cache,
            disk.journal,
            self._names,
            self._uploader,
            conflicts,
            self._threads,
        )
        self._reach.on_return.append(self._store_is_back)
        self._renamer = Renamer(
            audited,
            disk.db,
            disk.inodes,
            disk.journal,
            disk.cache,
            self._names,
            self._uploader,
            conflicts,
            self._unfinished,
            self._second,
            self._checksums,
            self._room,
            self._threads,
            defaults,
        )
        ledger = DurableLedger(disk.journal, disk.db)
        store.keep_ledger(ledger)
        self._leftovers = Leftovers(
            audited, ledger, disk.journal, disk.cache, disk.inodes, self._threads
        )
        rooms = Rooms(
            disk.cache,
            disk.journal,
            self._names,
            self._room,
            self._fetcher,
            PassThrough(self._fetcher),
            self._uploader,
            self._second,
            self._threads,
            ReadBuffer(),
            settings.timeout_s,
            disk.db,
            disk.history,
            self._trace,
        )
        closing = Closing(settings.upload, settings.upload_delay_s)
        files = OpenFiles(disk.db, disk.inodes, rooms, closing, held=held)
        self._evictions = Evictions(disk, self._note_eviction)
        self._preheater = Preheater(self._names, files, rooms)
        self.leases = Leases(self._names, files, self._preheater, rooms, background)
        attributes = Attributes(
            audited, disk.db, disk.inodes, rooms, files, self._checksums, defaults
        )
        self._insight = Insight(
            audited, disk, self._names, files, attributes, self._checksums, self._threads
        )
        self.objects = Objects(
            audited,
            disk.inodes,
            disk.cache,
            self._room,
            self._evictions,
            self._insight,
            self._threads,
            is_read_only=settings.read_only,
        )
        self._mender = Mender(rooms, disk.inodes, files, is_read_only=settings.read_only)
        self._pins = Pins(
            disk.inodes,
            disk.cache,
            disk.journal,
            self._names,
            listings,
            self._preheater,
            timeout_s=settings.timeout_s,
        )
        self.fs = FileSystem(
            audited,
            disk.db,
            disk.inodes,
            rooms,
            self._renamer,
            conflicts,
            defaults,
            files,
            attributes,
            listings,
            read_only=settings.read_only,
        )
        replacer = Replacer(
            audited,
            disk.db,
            disk.inodes,
            rooms,
            self._renamer,
            self.fs,
            defaults,
            upload_delay_s=settings.upload_delay_s,
            background=background,
        )
        self.paths = Paths(
            self.fs,
            self._names,
            disk.journal,
            attributes,
            listings,
            replacer,
            defaults,
            timeout_s=settings.timeout_s,
        )

    @cached_property
    def doors(self) -> dict[str, Callable[[], object]]:
        """What doors tell of themselves in :meth:`status`, each under its name: they enter themselves."""
        return {}

    @property
    def timeout_s(self) -> float:
        """For how long an operation may wait, in all."""
        return self._settings.timeout_s

    async def begin(self) -> None:
        """Make sure of the store, find out what it can, and start what runs beside the serving."""
        await self._threads.ask(self._store.check)
        if not self._settings.read_only:
            found = await self._threads.ask(self._store.probe)
            self._disk.db.set_meta("capabilities", json.dumps(asdict(found)))
        self._disk.db.set_meta("limit", str(self._settings.cache_size))
        await self._foresee()
        self._room.kick()
        self.background.keep("reach", self._reach.run)
        self.background.keep("eviction", self._room.run)
        self.background.keep("uploads", self._uploader.run)
        self.background.keep("renames", self._unfinished.run)
        self.background.keep("second looks", self._second.run)
        self.background.keep("checkpoints", self._checkpoint)
        self.background.keep("history", self._remember)
        self.background.keep("leases", self.leases.run)
        if self._disk.db.is_unchecked:
            self.background.start("check of the database", self._examine)
        if self._trace.is_on:
            self.background.keep("trace", self._trace.run)
        if self._audit.is_on:
            self.background.keep("audit", self._audit.run)
        self.background.keep("pinned files", self._pins.run)
        self.background.keep("late closes", self.fs.files.close_late)
        if not self._settings.read_only:
            self.background.keep("leftovers", self._leftovers.run)
        await self._unfinished.wait_tried()

    async def _foresee(self) -> None:
        """Look at the root before anybody does; a store that takes long to list it does not hold up the mount."""
        looked = trio.Event()
        errors: list[CachefsError] = []

        async def look() -> None:
            try:
                await self._names.foresee()
            except CachefsError as error:
                errors.append(error)
            finally:
                looked.set()

        self.background.start("the first look at the root", look)
        with trio.move_on_after(_FORESEE_S):
            await looked.wait()
        if errors:
            raise errors[0]

    def _note_eviction(self, entry: Entry, size: int) -> None:
        key = self._disk.inodes.key_of(entry.ino)
        self._audit.record("eviction", key, etag=entry.etag, bytes=size)

    def _store_is_back(self, was_missed: bool) -> None:
        if was_missed:
            self._unfinished.store_is_back()
        self._uploader.store_is_back(was_missed)

    async def _checkpoint(self) -> None:
        """Keep the write-ahead log short, where its fsync disturbs nobody; note what a full disk has not taken."""
        while True:
            await trio.sleep(_CHECKPOINT_S)
            with contextlib.suppress(CacheError):  # still full
                self._disk.cache.save_late()
            if self._disk.db.wal_bytes() > WAL_KEPT:
                await self._threads.disk(Database.checkpoint, self._disk.db.path)

    async def _examine(self) -> None:
        """Check the whole of a database that is too large for the start to wait for it."""
        db, stop = self._disk.db, self._stop_examining
        found = await self._threads.at_length(lambda: Database.examine(db.path, stop))
        if not stop.is_set():
            db.examined(found)

    async def _remember(self) -> None:
        """Write down what was opened, a little at a time."""
        history, is_behind = self._disk.history, False
        while True:
            await trio.sleep(0.01 if is_behind else _REMEMBER_S)
            is_behind = False
            with contextlib.suppress(CacheError):  # a full disk: it is kept, and counted on
                is_behind = history.save() or history.tidy(self._names.wall_ns())

    # ---- what operators ask -----------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Return what ``cachefs status`` shows, ready for JSON."""
        health = self._store.health
        pinned_files, pinned_bytes = self._disk.inodes.all_pinned()
        return {
            "source": str(self._settings.source),
            "store": self._store.description,
            "pid": os.getpid(),
            "uptime_s": int(time.monotonic() - self._began_s),
            "cache": {
                **self._disk.cache.statistics(),
                "directory": str(self._settings.cache_dir),
                "evicted": self._room.evicted,
                "policy": self._settings.policy,
                "pinned_files": pinned_files,
                "pinned_bytes": pinned_bytes,
            },
            "reads": {
                "opens_cached": self.fs.files.opens_cached,
                "opens": self.fs.files.opens,
                "bytes_read": self.fs.files.bytes_read,
                "bytes_fetched": self._fetcher.fetched,
            },
            "leased": self.leases.status(),
            "open_handles": self.fs.files.open_handles,
            "uploaded": self._uploader.uploaded,
            "dirty": self.dirty(),
            "requests": dict(self._store.requests),
            "remote": asdict(health),
            "capabilities": asdict(self._store.capabilities),
            "conflicts": [
                {"when_ns": each.when_ns, "key": each.key, "outcome": each.outcome}
                for each in self._disk.journal.conflicts()
            ],
            "unfinished_renames": len({move.batch for move in self._disk.journal.moves()}),
            "database": self._disk.db.state(),
            "known_inodes": self._disk.inodes.count(),
            "failed_tasks": self.background.failed,
            "trace": self._trace.status(),
            "audit": self._audit.status(),
            **{name: tell() for name, tell in self.doors.items()},
        }

    def entries(self, after: int) -> list[dict[str, object]]:
        """Return some files in the cache whose numbers follow *after*; none: there are no more."""
        return [each.to_json() for each in inventory.page(self._disk, after)]

    async def explain(self, path: str) -> dict[str, object]:
        """Return all that is known of *path*; see :meth:`Insight.explain`."""
        with deadline.limited(self._settings.timeout_s):
            return await self._insight.explain(path)

    async def refresh(self, path: str) -> int:
        """Forget what is known of *path* and below; see :meth:`Insight.refresh`. Return of how many names."""
        return await self._insight.refresh(path)

    def entry(self, entry_id: int) -> dict[str, object] | None:
        """Return one of them as it is now, with the sums of its bytes; None: it is gone."""
        found = inventory.one(self._disk, entry_id)
        return None if found is None else found.to_json()

    async def refetch(self, entry_id: int, etag: str) -> bool:
        """Give up the clean bytes of a file, if they still are of version *etag*; see :meth:`Mender.refetch`."""
        return await self._mender.refetch(EntryId(entry_id), ETag(etag))

    async def store_anew(self, entry_id: int, etag: str) -> bool:
        """Queue the clean bytes of a file, if they still are of version *etag*; see :meth:`Mender.store_anew`."""
        with deadline.limited(self._settings.timeout_s):
            return await self._mender.store_anew(EntryId(entry_id), ETag(etag))

    async def vacuum(self) -> dict[str, object]:
        """Give back what is unused in the database, a little at a time, so that nobody waits for it.

        Returns ``{"before": bytes, "after": bytes, "is_possible": …, "is_held": …}``: of a database that an older cachefs
        has made nothing can be given back while it is in use; and only some of it while a program reads the database all the
        time, in one transaction, for the log of what was moved would grow for as long as that lasts.
        """
        db = self._disk.db
        await self._move_log()
        before, is_possible = db.path.stat().st_size, db.gives_room_back
        is_held = False
        while is_possible and not is_held and db.shorten(_PAGES_AT_ONCE):
            await trio.lowlevel.checkpoint()
            if db.wal_bytes() > WAL_KEPT:
                is_held = not await self._move_log()
        await self._move_log()
        return {
            "before": before,
            "after": db.path.stat().st_size,
            "is_possible": is_possible,
            "is_held": is_held,
        }

    async def _move_log(self) -> bool:
        """Move the database's log into it. Return whether it can begin anew, or is not long; others' moves end soon."""
        for _ in range(_MOVES):
            if await self._threads.disk(Database.checkpoint, self._disk.db.path):
                return True
            await trio.sleep(_MOVE_S)
        return False

    def keep_md5s(self, found: Sequence[KnownMd5]) -> None:
        """Keep MD5s of versions of objects of this store, which the caller has found out."""
        self._checksums.keep_all(found)

    def remove_md5(self, bucket: str, key: str) -> int:
        """Forget what is kept of an object, by the key that the store has. Return how much that was."""
        return self._checksums.remove(bucket, key)

    def forget_md5s(self, bucket: str | None) -> int:
        """Forget some of the MD5s of a bucket, or of all. Return how many: none when nothing is left."""
        return self._checksums.forget_some(bucket)

    def presence(self, paths: Sequence[str]) -> list[tuple[int | None, int]]:
        """Return size (None: not known) and cached bytes of each of *paths*, without asking the store."""
        found = (inventory.presence(self._disk, path) for path in paths)
        return [(each.size, each.cached) for each in found]

    async def look(self, path: str) -> dict[str, object]:
        """Tell how much of the file *path* is here, as the store has it now, and fetch nothing."""
        with deadline.limited(self._settings.timeout_s):
            return (await self._preheater.look(path)).to_json()

    async def preheat(self, path: str, *, used_ns: int, may_evict: bool) -> dict[str, object]:
        """Fetch some of what is missing of the file *path*; see :meth:`Preheater.heat`."""
        with deadline.limited(self._settings.timeout_s):
            heated = await self._preheater.heat(path, used_ns=used_ns, may_evict=may_evict)
        return heated.to_json()

    async def lease(
        self, path: str, *, seconds: float, patience_s: float, only_here: bool = False
    ) -> Leased | None:
        """Give the whole file *path* out to be read; None: not yet. See :meth:`Leases.take_within`."""
        return await self.leases.take_within(
            path, seconds=seconds, patience_s=patience_s, only_here=only_here
        )

    def renew(self, lease: str, *, seconds: float) -> None:
        """Let a lease last for *seconds* from now; see :meth:`Leases.renew`."""
        self.leases.renew(lease, seconds=seconds)

    async def release(self, lease: str) -> None:
        """End a lease; see :meth:`Leases.release`."""
        await self.leases.release(lease)

    async def survey(self, path: str) -> dict[str, object]:
        """Make known all that is below the directory *path*, by one listing; tell how far that is, and whether it is over."""
        with deadline.limited(self._settings.timeout_s):
            ino = ROOT
            for part in filter(None, path.encode("utf-8", "surrogateescape").split(b"/")):
                ino = (await self._names.lookup(ino, Name(part))).ino
        self._names.directory(ino)
        return (await self._surveyor.ask(ino)).to_json()

    def history(self, after: int) -> dict[str, object]:
        """Return what is remembered of the opens of some files: ``{"files": […], "after": where to go on, or null}``."""
        found = inventory.history(self._disk, after)
        return {"files": [each.to_json() for each in found.files], "after": found.after}

    async def look_up(self, path: str) -> Inode:
        """Return the file *path* as the store has it, as an open would. Raise ``NoEntry``, ``IsDirectory`` and the like."""
        with deadline.limited(self._settings.timeout_s):
            return await self._preheater.find(path)

    async def aside(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work for which the loop has no time, of a door, in a thread."""
        return await self._threads.disk(work, *args, **kwargs)

    async def pin(self, path: str) -> dict[str, object]:
        """Keep the file *path*, or all files at or below the directory *path*. They are fetched beside the serving."""
        return (await self._pins.pin(path)).to_json()

    async def unpin(self, path: str) -> dict[str, object]:
        """Let the file *path*, or all files at or below the directory *path*, be evicted like any other."""
        return (await self._pins.unpin(path)).to_json()

    async def pins(self, turn: int) -> dict[str, object]:
        """Tell how far the fetching of pinned files is: when *turn* is over, or half a second later."""
        with trio.move_on_after(_LONGEST_PAUSE_S):
            await self._pins.wait_over(turn)
        return self._pins.told().to_json()

    async def evict(self, files: Sequence[tuple[EntryId, int]]) -> list[int | str]:
        """Drop cached files, each named with its last use. Return for each the bytes that are free now, or why it stays."""
        outcomes: list[int | str] = []
        for entry_id, used_ns in files:
            dropped = self._evictions.drop(entry_id, used_ns)
            if isinstance(dropped, str):
                outcomes.append(dropped)
                continue
            self._room.evicted += 1
            await self._room.delete(dropped)
            outcomes.append(dropped.cost)
        return outcomes

    async def give_up(self, path: str) -> None:
        """Drop the cached bytes of the file *path*. Raise ``UsageError`` with the reason where somebody needs them."""
        await self.objects.evict(path)

    def dirty(self) -> list[dict[str, object]]:
        """Return every file that the store does not have yet as it is here."""
        return [recovery.describe(self._disk, intent) for intent in self._disk.journal.all()]

    def unstored(self) -> Iterator[Key]:
        """Yield the key of every file that the store does not have yet as it is here, and that has a name."""
        for intent in self._disk.journal.all():
            entry = self._disk.cache.load(intent.entry)
            key = None if entry is None else self._disk.inodes.key_of(entry.ino)
            if key is not None:
                yield key

    async def flush(self, paths: Sequence[str], *, wait: bool) -> dict[str, object]:
        """Upload dirty files now: those at or below *paths* (relative to the mount), or all if there are none.

        Returns ``{"uploaded": count, "waiting": [paths], "failed": [{path, error}]}``.
        """
        chosen = self._choose(paths)
        before = {entry: self._uploader.hurry(entry) for entry in chosen}
        failed: list[dict[str, object]] = []
        if wait:
            with deadline.limited(self._settings.timeout_s):
                for entry in chosen:
                    try:
                        await self._uploader.wait_settled(entry, before[entry])
                    except CachefsError as error:
                        failed.append({"path": self._path_of(entry), "error": str(error)})
        left = [entry for entry in chosen if self._disk.journal.of(entry) is not None]
        names = {str(each["path"]) for each in failed}
        waiting = [path for path in map(self._path_of, left) if path not in names]
        return {"uploaded": len(chosen) - len(left), "waiting": waiting, "failed": failed}

    def _path_of(self, entry_id: EntryId) -> str:
        intent = self._disk.journal.of(entry_id)
        return str(recovery.describe(self._disk, intent)["path"]) if intent is not None else ""

    def _choose(self, paths: Sequence[str]) -> list[EntryId]:
        """Return the dirty entries at or below *paths* that are complete, or could be tried again."""
        wanted: set[Ino] | None = None
        if paths:
            wanted = set()
            for path in paths:
                inode = self._walk(path)
                wanted |= {inode.ino, *(each.ino for each in self._disk.inodes.below(inode.ino))}
        chosen: list[EntryId] = []
        for intent in self._disk.journal.all():
            entry = self._disk.cache.load(intent.entry)
            if intent.state is State.OPEN or entry is None or not self._is_named(entry.ino):
                continue
            if wanted is None or entry.ino in wanted:
                chosen.append(intent.entry)
        return chosen

    def _is_named(self, ino: Ino) -> bool:
        inode = self._disk.inodes.get(ino)
        return inode is not None and inode.parent is not None

    def _walk(self, path: str) -> Inode:
        inode = self._disk.inodes.get(ROOT)
        for part in path.encode("utf-8", "surrogateescape").split(b"/"):
            if part not in (b"", b".") and inode is not None:
                inode = self._disk.inodes.child(inode.ino, Name(part))
        if inode is None:
            raise NoEntry(f"no such file in the mount: {path}")
        return inode

    # ---- recovered bytes --------------------------------------------------------------------

    async def export(self, entry_id: int, target: Path) -> None:
        """Copy the bytes of a dirty file to *target*, which must not exist."""
        self._must(entry_id)
        await self._threads.disk(recovery.export, self._disk.cache, EntryId(entry_id), target)

    async def discard(self, entry_id: int) -> None:
        """Give the bytes of a dirty file up, for good. Raise ``UsageError`` while a program has it open."""
        self._must(entry_id)
        entry = self._disk.cache.load(EntryId(entry_id))
        if entry is not None and entry.pins:
            raise UsageError("the file is open — close it first")
        recovery.discard(self._disk, EntryId(entry_id))

    async def upload(self, entry_id: int) -> str:
        """Store the bytes of a dirty file. Return its path.

        One that was set aside, or whose name has another version at the store, gets a conflict name.
        """
        self._must(entry_id)
        entry = self._disk.cache.load(EntryId(entry_id))
        if entry is not None and (not self._is_named(entry.ino) or self._is_contested(entry)):
            self._put_beside(entry)
        path = self._path_of(EntryId(entry_id))
        before = self._uploader.hurry(EntryId(entry_id))
        await self._uploader.wait_settled(EntryId(entry_id), before)
        return path

    def _is_contested(self, entry: Entry) -> bool:
        """Whether the upload was given up because the store has another version."""
        return self.fs.attributes.is_contested(entry)

    def _put_beside(self, entry: Entry) -> None:
        was = self._disk.inodes.get(entry.ino)
        recovery.put_beside(self._disk, entry, time.time_ns())
        if was is not None and was.parent is not None and was.name is not None:
            # The name stands for what the store has there from now on.
            self._disk.inodes.update(was.parent, listed_ns=None)
            self._names.tell_kernel(was.parent, was.name)

    def _must(self, entry_id: int) -> None:
        if self._disk.journal.of(EntryId(entry_id)) is None:
            raise UsageError(
                f"there is no dirty file with the number {entry_id} — see `cachefs recover list`"
            )

    # ---- the end ----------------------------------------------------------------------------

    @property
    def advanced_at(self) -> float:
        """When an upload last got on, on the monotonic clock; what is only sent again does not count."""
        return self._uploader.advanced_at

    async def drain(self, *, timeout_s: float, is_final: bool = False) -> list[dict[str, object]]:
        """Take no more writes and upload everything that is complete. Return what could not be stored.

        Each has been tried, or *timeout_s* has passed; :meth:`resume` takes writes again, unless *is_final*. What was
        stored a short while ago is looked at once more, where the store cannot prevent that another writer overwrites it.
        """
        self._is_ending |= is_final
        self.fs.is_closing = True
        await self.fs.files.seal_closed()
        before = {entry: self._uploader.hurry(entry) for entry in self._choose(())}
        with trio.move_on_after(timeout_s):
            for entry in self._choose(()):
                try:
                    await self._uploader.wait_settled(entry, before.get(entry))
                except CachefsError as error:
                    _log.warning("not stored: %s", error)
            await self._second.look_at_all()
        return self.dirty()

    def end(self) -> None:
        """Call off whatever runs beside the serving; what is not stored stays in the journal."""
        self._uploader.stop_all()
        self._store.close()  # which ends its waits between tries
        self._stop_examining.set()
        self.background.stop()

    def finish(self) -> None:
        """Write down what is left to write when nothing is served any more. Blocks."""
        self.leases.finish()
        self._trace.finish()
        self._audit.finish()

    def resume(self) -> None:
        """Take writes again, after a drain that left something behind."""
        self.fs.is_closing = self._is_ending


@asynccontextmanager
async def open_service(settings: ServiceSettings, store: Retrying) -> AsyncIterator[Service]:
    """Lock and open the cache directory, recover it, make sure of the store, and serve while the block runs.

    Raise ``InUse`` (which names the pid) if another process has the directory, ``UsageError`` if it caches
    another store, and the store's own error if it cannot be used.
    """
    lock = CacheDirectory(settings.cache_dir)
    try:
        sweep_left(settings.cache_dir)
        disk = recovery.open_disk(
            settings.cache_dir,
            limit=settings.cache_size,
            min_free=settings.min_free_bytes,
            policy=settings.policy,
            check=lambda db: _check_source(db, store.description),
        )
        try:
            async with _serving(settings, store, disk) as service:
                yield service
        except BaseException:
            disk.db.close()
            raise
        recovery.close_disk(disk)
    finally:
        store.close()
        lock.close()


@asynccontextmanager
async def _serving(
    settings: ServiceSettings, store: Retrying, disk: Disk
) -> AsyncIterator[Service]:
    with _unwrapped():
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            service = Service(settings, store, disk, background)
            try:
                await service.begin()
                yield service
            finally:
                service.finish()
                service.end()


class _unwrapped:
    """Lets a single error of the block out as itself rather than in a group."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            raise error.exceptions[0]


def _check_source(db: Database, description: str) -> None:
    known = db.get_meta("source")
    if known is not None and known != description:
        raise UsageError(
            f"the cache directory {db.path.parent} belongs to {known}, not to {description}"
            " — use another --cache-dir"
        )
    db.set_meta("source", description)
