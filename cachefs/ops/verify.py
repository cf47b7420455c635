"""A directory held against the store, file by file: one listing, and the hash of what changed since the last run."""

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from cachefs.core.errors import CachefsError, Changed, Fault, NoBucket, Unreachable
from cachefs.core.fingerprint import is_md5
from cachefs.core.keys import path_shown
from cachefs.core.types import Key, Kind, ObjectInfo
from cachefs.local.hashed import Hashed, HashMemory, Stamp
from cachefs.ops.compare import Comparer, FileContent, Moved, Stopped, Verdict
from cachefs.ops.events import Progress
from cachefs.ops.findings import Finding, State
from cachefs.ops.globs import Chosen
from cachefs.ops.merge import files, merged
from cachefs.ops.parallel import ahead, in_parallel
from cachefs.ops.tree import Found, Tree, Unusable
from cachefs.remote.store import ObjectStore

BATCH: Final = 64
"""Files that a thread takes at a time: less would cost more in handing over than in looking."""
LARGE: Final = 8 * 2**20
"""Bytes of a batch that end it."""
TRIES: Final = 3
_MOST_FAULTS: Final = 3
"""So many one after the other, each after retries for a whole ``--timeout``, and the store is not there."""

Pair = tuple[Found | Unusable | None, ObjectInfo | None]


@dataclass(frozen=True, slots=True)
class Judged:
    """What one batch has come to."""

    findings: tuple[Finding, ...]
    bytes: int


class DirectoryCheck:
    """The files below a directory, each with its object."""

    def __init__(
        self,
        root: str,
        store: ObjectStore,
        memory: HashMemory,
        comparer: Comparer,
        *,
        chosen: Chosen,
        threads: int,
        is_one_way: bool = False,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """*is_one_way*: what only the store has is not looked at."""
        self._tree = Tree(root)
        self._store = store
        self._memory = memory
        self._comparer = comparer
        self._chosen = chosen
        self._threads = threads
        self._is_one_way = is_one_way
        self._now_ns = now_ns
        self._losses = Losses()
        self._unread: tuple[str, ...] = ()
        self._files = 0

    def run(self) -> Generator[Finding | Progress, None, None]:
        """Yield what is found of each file, those of a thread together, and how far it is.

        Raise ``StoreError`` if the listing fails and ``OSError`` if the root cannot be read: what was yielded holds.
        """
        done = size = 0
        judged = in_parallel(
            self._judge, self._batches(), threads=self._threads, stop=self._comparer.stop
        )
        with closing(judged):
            for batch in judged:
                yield from batch.findings
                done += len(batch.findings)
                size += batch.bytes
                yield Progress(done, size)
        self._forget_gone()

    def _batches(self) -> Iterator[list[Pair]]:
        batch: list[Pair] = []
        size = 0
        for pair in self._pairs():
            batch.append(pair)
            size += pair[0].status.st_size if isinstance(pair[0], Found) else 0
            if len(batch) == BATCH or size >= LARGE:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _pairs(self) -> Iterator[Pair]:
        """Yield each file that is chosen with its object, what either side lacks, and what cannot be looked at."""
        unusable: list[Unusable] = []
        there = files(ahead(self._store.overview(Key(""))))
        sides = merged(
            self._walked(unusable),
            there,
            left_key=lambda one: one.key,
            right_key=lambda one: one.key,
        )
        for local, remote in sides:
            while unusable:
                yield unusable.pop(), None
            if local is not None:
                if local.path in self._chosen:
                    yield local, remote
            elif remote is not None and not self._is_one_way:
                path = _shown(remote)
                if path in self._chosen and not path.startswith(self._unread):
                    yield None, remote
        for each in unusable:
            yield each, None

    def _walked(self, unusable: list[Unusable]) -> Iterator[Found]:
        """Yield the files and links below the root; what cannot be looked at is put into *unusable* instead."""
        for found in self._tree.walk():
            if isinstance(found, Unusable):
                is_wanted = found.path in self._chosen
                if found.path.endswith("/"):
                    self._unread = (*self._unread, found.path)
                    is_wanted = self._chosen.may_hold(found.path)
                if is_wanted:
                    unusable.append(found)
            elif found.kind in (Kind.FILE, Kind.SYMLINK):
                yield found

    def _judge(self, batch: list[Pair]) -> Judged:
        here = {
            local.path: Stamp.of(local.status) for local, _ in batch if isinstance(local, Found)
        }
        self._files += len(here)
        known = self._memory.known_all(here)
        findings: list[Finding] = []
        learned: list[Hashed] = []
        for local, remote in batch:
            if local is None:
                assert remote is not None
                findings.append(self._only_there(remote))
            elif isinstance(local, Unusable):
                findings.append(Finding(local.path, State.ERROR, why(local.error)))
            else:
                finding, row = self._look(local, remote, known.get(local.path))
                findings.append(finding)
                if row is not None:
                    learned.append(row)
        self._memory.keep(learned, now_ns=self._now_ns())
        return Judged(tuple(findings), sum(stamp.size for stamp in here.values()))

    def _look(
        self, local: Found, remote: ObjectInfo | None, known: Hashed | None
    ) -> tuple[Finding, Hashed | None]:
        """Return what is found of a file, looking again where it changes under our eyes."""
        for _ in range(TRIES):
            try:
                return self._look_once(local, remote, known)
            except FileNotFoundError:
                return self._gone(local, remote), None
            except Stopped:
                raise
            except (Moved, Changed):
                known = None
                try:
                    local = replace(local, status=os.lstat(self._tree.full(local.path)))
                except FileNotFoundError:
                    return self._gone(local, remote), None
            except (OSError, CachefsError) as error:
                self._losses.bear(error)
                return _found(local, State.ERROR, why(error)), None
        return _found(local, State.ERROR, "it changes while it is read"), None

    def _look_once(
        self, local: Found, remote: ObjectInfo | None, known: Hashed | None
    ) -> tuple[Finding, Hashed | None]:
        content = self._content(local)
        if remote is None:
            # A listing may lag behind: only the store's answer about the object itself is definite.
            told = self._comparer.confirmed(local.key)
            self._losses.forget()
            if told is None:
                content.require_unmoved()
                believed = self._comparer.believed(known)
                md5 = believed.md5 if believed is not None else None
                return _found(local, State.MISSING_REMOTE, local_md5=md5), None
            remote = told.info
        recalled = self._comparer.recall(content, remote, known)
        if recalled is not None:
            return _judged(local, recalled), None
        verdict, row = self._comparer.compare(content, remote, known)
        self._losses.forget()
        if not verdict.is_same:
            content.require_unmoved()
        return _judged(local, verdict), row

    def _content(self, local: Found) -> FileContent:
        stamp, is_link = Stamp.of(local.status), local.kind is Kind.SYMLINK
        return FileContent(local.path, self._tree.full(local.path), stamp, is_link)

    def _gone(self, local: Found, remote: ObjectInfo | None) -> Finding:
        """Return what is found of a file that was there a moment ago."""
        if remote is None:
            return Finding(local.path, State.ERROR, "it vanished while it was looked at")
        return self._only_there(remote)

    @staticmethod
    def _only_there(remote: ObjectInfo) -> Finding:
        md5 = remote.etag if is_md5(remote.etag) else None
        return Finding(
            _shown(remote),
            State.MISSING_LOCAL,
            remote_md5=md5,
            size=remote.size,
            mtime_ns=remote.mtime_ns,
        )

    def _forget_gone(self) -> None:
        """Forget files that are there no more, where more are remembered than were seen."""
        if self._memory.count() <= self._files:
            return
        gone = (
            row.path
            for row in self._memory.all()
            if not os.path.lexists(self._tree.full(row.path))
        )
        while some := list(islice(gone, 1000)):
            self._memory.forget_all(some)


class Losses:
    """Tells one file's bad luck from a store that is not there any more. May be used from several threads."""

    def __init__(self) -> None:
        self._faults = 0

    def bear(self, error: Exception) -> None:
        """Take *error* for that of one file. Raise it where the next file would fare no better."""
        if isinstance(error, Fault):
            self._faults += 1
        if isinstance(error, Unreachable | NoBucket) or self._faults >= _MOST_FAULTS:
            raise error

    def forget(self) -> None:
        """Note that the store has answered."""
        self._faults = 0


def why(error: Exception) -> str:
    """Return *error* in words, for one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _shown(remote: ObjectInfo) -> str:
    """Return the path that an object has, or would have, in the tree."""
    return os.fsdecode(path_shown(remote.key))


def _judged(local: Found, verdict: Verdict) -> Finding:
    if verdict.remote is None:
        return _found(local, State.MISSING_REMOTE, local_md5=verdict.local_md5)
    states = {True: State.SAME, False: State.DIFFERS, None: State.UNVERIFIABLE}
    return replace(
        _found(local, states[verdict.is_same], verdict.reason, local_md5=verdict.local_md5),
        remote_md5=verdict.remote_md5,
    )


def _found(
    local: Found, state: State, reason: str = "", *, local_md5: str | None = None
) -> Finding:
    return Finding(
        local.path,
        state,
        reason,
        local_md5=local_md5,
        size=local.status.st_size,
        mtime_ns=local.status.st_mtime_ns,
    )
