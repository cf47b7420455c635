"""Push: a directory tree to a bucket, all of it or what a list names, and nothing that is there already."""

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cachefs.core.errors import (
    CachefsError,
    Exists,
    NotDirectory,
    NotFound,
    StoreError,
    StoreFull,
)
from cachefs.core.keys import path_shown
from cachefs.core.types import ETag, Key, Kind, ObjectInfo
from cachefs.local.hashed import HashMemory
from cachefs.local.pushed import PushMemory
from cachefs.ops.events import Failed, Progress
from cachefs.ops.globs import Chosen
from cachefs.ops.manifest import Row
from cachefs.ops.merge import merged, objects
from cachefs.ops.parallel import in_parallel
from cachefs.ops.pushing import Action, Done, NotWritable, Pusher, Rules, Skipped
from cachefs.ops.throttle import Throttle
from cachefs.ops.tree import Found, Tree, Unusable
from cachefs.ops.verify import Losses
from cachefs.remote.store import ObjectStore

_BATCH: Final = 256
"""Things that needed nothing, told together."""
_MISSING_HERE: Final = "missing_local"
"""The state by which a list says that it knows."""
_PASSED_BY: Final = {Kind.FIFO: "a fifo", Kind.SOCKET: "a socket", None: "a device"}


@dataclass(frozen=True, slots=True)
class NothingDeleted:
    """So many objects that the tree has nothing for stay, because of something."""

    objects: int
    reason: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """That objects go which the tree has nothing for, unless there are more than *most*."""

    most: int | None = None
    """None: as many as there are, but not where the tree is empty."""


Event = Done | Skipped | Failed | NothingDeleted | Progress


@dataclass(frozen=True, slots=True)
class _Task:
    """Something that has to be read, asked about or stored."""

    found: Found
    theirs: ObjectInfo | None
    md5: str | None = None
    """What a list says."""
    is_listed: bool = True
    """Whether *theirs* is what the store has; else it is to be asked."""


class Push:
    """One push. What is memorised is the caller's to close."""

    def __init__(
        self,
        tree: Tree,
        store: ObjectStore,
        hashes: HashMemory,
        memory: PushMemory,
        rules: Rules,
        chosen: Chosen,
        *,
        threads: int,
        deletion: Deletion | None = None,
        throttle: Throttle | None = None,
        end_waiting: Callable[[], None] = lambda: None,
        first_pause_s: float = 0.25,
        likely_parts: Sequence[int] = (),
        large: int = 32 * 2**20,
    ) -> None:
        """*end_waiting* makes requests that wait for their next try give up, because the job ends.

        *first_pause_s*: how long a file that changes while it is read is left alone; the next time twice as long.
        *likely_parts*: sizes of parts in which an object may have been stored. *large*: bytes from which an upload may go
        in parts, and be continued by the next run.
        """
        self._tree = tree
        self._store = store
        self._memory = memory
        self._rules = rules
        self._chosen = chosen
        self._threads = threads
        self._deletion = deletion
        self._throttle = throttle or Throttle(None)
        self._end_waiting = end_waiting
        self._stop = threading.Event()
        self._pusher = Pusher(
            tree,
            store,
            hashes,
            memory,
            rules,
            throttle=self._throttle,
            stop=self._stop,
            first_pause_s=first_pause_s,
            likely_parts=likely_parts,
            large=large,
        )
        self._kind_here = lru_cache(maxsize=1024)(self._look_here)
        self._aside: list[Event] = []
        """What is to be told next."""
        self._in_the_way = ""
        self._losses = Losses()
        self._files = self._bytes = self._here = 0
        self._failed: set[Key] = set()
        """What a later run may go on with: only keys of large uploads, which are few."""
        self._has_failed = False

    @property
    def hashed_bytes(self) -> int:
        """Bytes of files that were read to be hashed."""
        return self._pusher.hashed_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes of files that the store has taken."""
        return self._pusher.sent_bytes

    def run(self, rows: Iterable[Row] | None = None) -> Iterator[Event]:
        """Push everything, or (*rows*) exactly what a list names.

        Raise the ``StoreError`` that says why the store cannot be listed or written to at all, ``OSError`` where the
        root cannot be read, ``UsageError`` for a list that is none. What was yielded before holds.
        """
        if not self._rules.dry_run:
            self._store.keep_ledger(self._memory)
        work = self._all() if rows is None else self._named(rows)
        yield from self._worked(work)
        if rows is None and not self._rules.dry_run:
            self._end_leftovers()
        if self._deletion is not None and rows is None:
            yield from self._deleted(self._deletion)

    def _worked(self, work: Iterator[list[Event] | _Task]) -> Iterator[Event]:
        outcomes = in_parallel(self._outcome, work, threads=self._threads, stop=self._end)
        for told in outcomes:
            for event in told:
                self._count(event)
                yield event
            yield Progress(self._files, self._bytes)

    def _end(self) -> None:
        self._stop.set()
        self._throttle.end()
        self._end_waiting()

    def _count(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._has_failed = True
        if isinstance(event, Done) and event.action is not Action.DELETED:
            self._bytes += event.size
        if not (isinstance(event, Done) and event.action is Action.DELETED):
            self._files += 1

    # ---- in threads -------------------------------------------------------------------------

    def _outcome(self, item: list[Event] | _Task) -> list[Event]:
        if isinstance(item, list):
            return item
        try:
            event = self._brought(item)
        except (CachefsError, OSError) as error:
            self._note_failure(item.found.key, error)
            return [Failed(item.found.path, error)]
        self._losses.forget()
        return [event]

    def _brought(self, task: _Task) -> Event:
        theirs = task.theirs if task.is_listed else self._asked(task.found.key)
        if theirs is not None:
            done = self._pusher.glance(task.found, theirs, md5=task.md5)
            if done is not None:
                return done
        return self._pusher.bring(task.found, theirs, md5=task.md5)

    def _asked(self, key: Key) -> ObjectInfo | None:
        try:
            return self._store.head(key)
        except NotFound:
            return None

    def _note_failure(self, key: Key, error: Exception) -> None:
        """Remember a failure of one thing. Raise *error* if it is one of all."""
        if isinstance(error, StoreFull | NotWritable):
            raise error
        self._losses.bear(error)
        if self._memory.noted(key):
            self._failed.add(key)

    # ---- what there is to do ----------------------------------------------------------------

    def _all(self) -> Iterator[list[Event] | _Task]:
        pairs = merged(
            self._usable(),
            objects(self._store.overview(Key(""))),
            left_key=lambda found: found.key,
            right_key=lambda info: info.key,
        )
        for ours, theirs in pairs:
            if ours is None:
                assert theirs is not None
                self._extra(theirs)
            elif ours.path in self._chosen:
                yield from self._glanced(ours, theirs)
            if len(self._aside) >= _BATCH:
                yield self._taken()
        yield self._taken()

    def _usable(self) -> Iterator[Found]:
        for each in self._tree.walk(self._chosen.may_hold):
            if isinstance(each, Found):
                yield each
            elif each.path.endswith("/") or each.path in self._chosen:
                self._aside.append(Failed(each.path, each.error))

    def _glanced(self, ours: Found, theirs: ObjectInfo | None) -> Iterator[_Task]:
        """Yield what has to be done for a path; tell aside where that is nothing."""
        self._here += 1
        if ours.kind in _PASSED_BY:
            self._aside.append(Skipped(ours.path, f"{_PASSED_BY[ours.kind]} has no content"))
            return
        if theirs is not None and theirs.is_doubtful and not self._pusher.knows(ours, theirs):
            yield _Task(ours, None, is_listed=False)
            return
        try:
            done = None if theirs is None else self._pusher.glance(ours, theirs)
        except OSError as error:
            self._aside.append(Failed(ours.path, error))
            return
        if done is None:
            yield _Task(ours, theirs)
        else:
            self._aside.append(done)

    def _named(self, rows: Iterable[Row]) -> Iterator[list[Event] | _Task]:
        for row in rows:
            task = self._of_row(row)
            if task is not None:
                yield task
            if len(self._aside) >= _BATCH:
                yield self._taken()
        yield self._taken()

    def _of_row(self, row: Row) -> _Task | None:
        try:
            found = self._tree.look(row.path)
        except FileNotFoundError as error:
            if row.state == _MISSING_HERE:
                self._aside.append(Skipped(row.path, "it is not here, as the list says"))
            else:
                self._aside.append(Failed(row.path, error))
            return None
        if isinstance(found, Unusable):
            self._aside.append(Failed(row.path, found.error))
            return None
        if found.path not in self._chosen or not self._memory.is_first(found.key):
            return None
        if found.kind in _PASSED_BY:
            self._aside.append(Skipped(found.path, f"{_PASSED_BY[found.kind]} has no content"))
            return None
        return _Task(found, None, md5=_told_by(row, found), is_listed=False)

    def _taken(self) -> list[Event]:
        told, self._aside = self._aside, []
        return told

    # ---- what only the store has ------------------------------------------------------------

    def _extra(self, theirs: ObjectInfo) -> None:
        path = _shown(theirs.key)
        if not self._chosen.takes(path):
            return
        if self._deletion is not None:
            if theirs.is_doubtful:
                theirs = self._asked(theirs.key) or theirs
            self._memory.doom(theirs.key, theirs.etag)
            return
        hidden = self._hidden_by(path)
        if hidden is not None and hidden != self._in_the_way:
            self._in_the_way = hidden
            self._aside.append(Failed(hidden, Exists(_OTHER_KIND)))

    def _hidden_by(self, path: str) -> str | None:
        """Return what in the tree is a directory where the store has an object, or the other way round; None: nothing."""
        above = path.removesuffix("/")
        if not path.endswith("/") and self._kind_here(path) is Kind.DIR:
            return path
        if path.endswith("/") and self._kind_here(above) not in (None, Kind.DIR):
            return above
        while (above := above.rpartition("/")[0]) != "":
            kind = self._kind_here(above)
            if kind is not None:
                return None if kind is Kind.DIR else above
        return None

    def _look_here(self, path: str) -> Kind | None:
        """Return what is at *path*, a directory or something else; None if nothing is."""
        try:
            status = os.lstat(self._tree.full(path))
        except OSError:
            return None
        return Kind.DIR if stat.S_ISDIR(status.st_mode) else Kind.FILE

    def _deleted(self, deletion: Deletion) -> Iterator[Event]:
        """Delete what was found to be at the store alone, if nothing speaks against it."""
        count = self._memory.doomed_count()
        reason = self._against(deletion, count)
        if count and reason is not None:
            self._has_failed = True
            yield NothingDeleted(count, reason)
            return
        work = ((key, etag) for key, etag in self._memory.doomed())
        for event in in_parallel(self._remove, work, threads=self._threads, stop=self._end):
            self._count(event)
            yield event
            yield Progress(self._files, self._bytes)

    def _against(self, deletion: Deletion, count: int) -> str | None:
        if self._has_failed:
            return "not everything could be read and stored"
        if deletion.most is not None and count > deletion.most:
            return f"they are more than --max-delete {deletion.most}"
        if deletion.most is None and not self._here:
            return "there is nothing in the directory: is it the right one? --max-delete says that it is"
        return None

    def _remove(self, doomed: tuple[Key, ETag]) -> Event:
        key, etag = doomed
        path = _shown(key)
        try:
            if self._is_here_by_now(key, path):
                return Skipped(path, "it has come to the directory meanwhile; it stays")
            if self._rules.dry_run:
                return Done(path, Action.DELETED)
            return self._pusher.remove(key, etag, path)
        except (CachefsError, OSError) as error:
            self._note_failure(key, error)
            return Failed(path, error)

    def _is_here_by_now(self, key: Key, path: str) -> bool:
        """Whether the tree has something for *key* that was not there when it was walked. Raise what hides that."""
        try:
            found = self._tree.look(path)
        except FileNotFoundError:
            return False
        if isinstance(found, Found):
            return found.key == key
        if isinstance(found.error, NotDirectory):  # a file is where the store has a directory
            return False
        raise found.error

    def _end_leftovers(self) -> None:
        """End large uploads that an earlier run has begun, and nothing goes on with."""
        for key, work in self._memory.works():
            if key in self._failed or not self._chosen.takes(_shown(key)):
                continue
            try:
                self._store.abandon(key, work)
            except StoreError:
                continue  # it stays in the ledger, for the next run
            self._memory.end_begun(key)


_OTHER_KIND: Final = (
    "it is a file on one side and a directory on the other: the store has both now, and a mount shows the file as"
    " NAME~cachefs~object — rename one of them, or pass --delete"
)


def _shown(key: Key) -> str:
    """Return the path of *key*, as the tree would have it."""
    tail = "/" if key.endswith("/") else ""
    return os.fsdecode(path_shown(Key(key.removesuffix("/")))) + tail


def _told_by(row: Row, found: Found) -> str | None:
    """Return the MD5 that a list tells of a file, if it tells it of this very size and time."""
    if row.md5 is None or row.mtime is None or row.size not in (None, found.status.st_size):
        return None
    return row.md5 if abs(found.status.st_mtime - row.mtime) < 1e-6 else None
