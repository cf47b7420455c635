"""A cache held against its store: the bytes against the version that they should be, and that against what is there.

The list of the cache comes first, the listing of the store after it: what is clean in the one is in the other, or was
changed since by somebody. Nothing that speaks against a file is said before the store was asked about its object, and
the daemon whether the entry is still the one that was looked at.
"""

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, Protocol

from cachefs.core.cached import CachedFile, CachedPieces
from cachefs.core.errors import CachefsError, Changed
from cachefs.core.fingerprint import is_md5, parts_in
from cachefs.core.intent import State as Promised
from cachefs.core.types import ETag, Key, ObjectInfo
from cachefs.local.hashed import Hashed, HashMemory, Stamp, cached_path
from cachefs.local.sorting import Sorted
from cachefs.ops.compare import Comparer, FileContent, Moved, Stopped
from cachefs.ops.events import Progress
from cachefs.ops.findings import Finding, Repair, State
from cachefs.ops.globs import Chosen
from cachefs.ops.merge import byte_order, files, merged
from cachefs.ops.parallel import ahead, in_parallel
from cachefs.ops.verify import BATCH, LARGE, TRIES, Losses, why
from cachefs.remote.store import ObjectStore

_WHY: Final = {
    Promised.OPEN: "a program is writing it",
    Promised.QUEUED: "",
    Promised.UPLOADING: "",
}
_STATES: Final = {
    Promised.OPEN: State.QUEUED,
    Promised.QUEUED: State.QUEUED,
    Promised.UPLOADING: State.UPLOADING,
    Promised.PARKED: State.PARKED,
}
_UNREADABLE: Final = frozenset({errno.EIO, errno.EISDIR, errno.ELOOP, errno.EUCLEAN})
"""Of a cache file: its disk has lost it, or something else lies in its place."""
_DAMAGED: Final = "its bytes are not those of the version that they should be"


class Cached(Protocol):
    """A cache, behind its daemon or without one. Called from several threads, one at a time; raises ``Unanswered``."""

    def entries(self) -> Iterator[CachedFile]:
        """Yield every file in the cache."""
        ...

    def entry(self, identity: int) -> CachedPieces | None:
        """Return one of them as it is now, with the sums of its bytes; None: it is gone."""
        ...

    def dirty(self) -> Sequence[Mapping[str, object]]:
        """Return the files that wait for upload: id, error."""
        ...


class Mends(Protocol):
    """What can be done about what is found. Called as :class:`Cached` is."""

    def refetch(self, file: CachedFile) -> bool:
        """Give up the bytes of a clean file and fetch them anew. False: it is another version by now."""
        ...

    def store_anew(self, file: CachedFile) -> bool:
        """Queue the bytes of a clean file, whose object is gone. False: it is another version by now."""
        ...

    def settle(self) -> None:
        """Upload what waits, and return when each file was stored or has failed."""
        ...

    def end(self) -> None:
        """Let whoever waits for an answer go, because the job ends. Any thread."""
        ...


@dataclass(frozen=True, slots=True)
class _Looked:
    """What is known of the bytes here."""

    is_sound: bool
    """Whether they are those of the version that they should be, as far as anything tells."""
    md5: str | None = None
    row: Hashed | None = None
    """What to remember."""
    reason: str = ""


class Unanswered(CachefsError):
    """The cache cannot be asked any more: its daemon has ended."""


class _Gone(Exception):
    """The file has left the cache: nothing is to be said of it."""


class CacheCheck:
    """The files in one cache, each with its object."""

    def __init__(
        self,
        data: Path,
        cached: Cached,
        store: ObjectStore,
        memory: HashMemory,
        comparer: Comparer,
        *,
        chosen: Chosen,
        threads: int,
        mends: Mends | None = None,
        is_repairing: bool = False,
        is_settling: bool = False,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """*data*: where the files of the entries lie. *is_repairing*, *is_settling*: by *mends*."""
        self._data = data
        self._cached = cached
        self._store = store
        self._memory = memory
        self._comparer = comparer
        self._chosen = chosen
        self._threads = threads
        self._mends = mends
        self._is_repairing = is_repairing
        self._is_settling = is_settling
        self._now_ns = now_ns
        self._losses = Losses()
        self._asking = threading.Lock()
        self._reasons: dict[int, str] | None = None
        self._files = 0

    def run(self) -> Generator[Finding | Progress, None, None]:
        """Yield what is found of each file, and how far it is.

        Raise ``StoreError`` if the listing fails, and what the cache raises that cannot be asked: what was yielded holds.
        """
        with Sorted() as unsettled:
            yield from self._looked_at(unsettled)
            if len(unsettled):
                yield from self._settled(unsettled)
        self._forget_gone()

    def _looked_at(self, unsettled: Sorted) -> Iterator[Finding | Progress]:
        """Yield what is found of each file; what waits and is to be settled goes to *unsettled* instead."""
        with Sorted() as entries:
            nameless = self._told(entries)
            total = len(entries)
            judged = in_parallel(
                self._judge,
                self._batches(entries),
                threads=self._threads,
                stop=self._stop,
            )
            done = size = 0
            with closing(judged):
                for batch in judged:
                    for file, finding in batch:
                        done += 1
                        size += file.cached
                        if finding is None:
                            continue
                        if self._is_settling and finding.is_waiting:
                            unsettled.add_all([_unsettled(file, finding)])
                        else:
                            yield finding
                    yield Progress(done, size, total_files=total)
        for file in nameless:
            yield self._waiting(file)

    def _stop(self) -> None:
        self._comparer.stop()
        if self._mends is not None:
            self._mends.end()

    # ---- the two lists -----------------------------------------------------------------------

    def _told(self, entries: Sorted) -> list[CachedFile]:
        """Put the list of the cache in the order of the keys. Return what waits for upload and has no name."""
        nameless: list[CachedFile] = []

        def rows() -> Iterator[tuple[bytes, bytes]]:
            for file in self._cached.entries():
                self._files += 1
                if file.path not in self._chosen:
                    continue
                if file.key is not None:
                    yield byte_order(file.key), json.dumps(file.to_json()).encode()
                elif file.state is not None:
                    nameless.append(file)

        entries.add_all(rows())
        return nameless

    def _batches(self, entries: Sorted) -> Iterator[list[tuple[CachedFile, ObjectInfo | None]]]:
        here = (CachedFile.from_json(json.loads(row)) for row in entries)
        there = files(ahead(self._store.overview(Key(""))))
        pairs = merged(
            here, there, left_key=lambda one: one.key or "", right_key=lambda one: one.key
        )
        batch: list[tuple[CachedFile, ObjectInfo | None]] = []
        size = 0
        for file, remote in pairs:
            if file is None:
                continue
            batch.append((file, remote))
            size += file.cached
            if len(batch) == BATCH or size >= LARGE:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    # ---- one batch, in a thread ----------------------------------------------------------------

    def _judge(
        self, batch: list[tuple[CachedFile, ObjectInfo | None]]
    ) -> list[tuple[CachedFile, Finding | None]]:
        stamps: dict[str, Stamp] = {}
        for file, _ in batch:
            with suppress(FileNotFoundError):
                stamps[cached_path(file.id)] = Stamp.of(os.lstat(self._path(file)))
        known = self._memory.known_all(stamps)
        learned: list[Hashed] = []
        judged: list[tuple[CachedFile, Finding | None]] = []
        for file, remote in batch:
            finding, row = self._look(file, remote, known.get(cached_path(file.id)))
            judged.append((file, finding))
            if row is not None:
                learned.append(row)
        self._memory.keep(learned, now_ns=self._now_ns())
        return judged

    def _look(
        self, file: CachedFile, remote: ObjectInfo | None, known: Hashed | None
    ) -> tuple[Finding | None, Hashed | None]:
        """Return what is found of a file, looking again where it changes meanwhile; None: it left the cache."""
        try:
            for _ in range(TRIES):
                try:
                    return self._look_once(file, remote, known)
                except (Moved, Changed, FileNotFoundError):
                    file, known = self._now(file), None
        except _Gone:
            return None, None
        except (Stopped, Unanswered):
            raise
        except (OSError, CachefsError) as error:
            self._losses.bear(error)
            return _found(file, State.ERROR, why(error)), None
        return _found(file, State.ERROR, "it changes while it is looked at"), None

    def _look_once(
        self, file: CachedFile, remote: ObjectInfo | None, known: Hashed | None
    ) -> tuple[Finding, Hashed | None]:
        if file.state is not None or file.etag is None:
            now = self._now(file)
            if now.state is not None or now.etag is None:
                return self._waiting(now), None
            file, remote = now, None  # stored since the list was made: so the listing is older
        looked = self._bytes(file, remote, known)
        if remote is None or remote.etag != file.etag:
            remote = self._confirmed(file)
        if not looked.is_sound:
            self._require_unchanged(file)
            return self._rotted(file, remote, looked), None
        if remote is None:
            self._require_unchanged(file)
            return self._missing(file, looked), looked.row
        if remote.etag != file.etag and (looked.md5 is None or looked.md5 != remote.etag):
            self._require_unchanged(file)
            md5 = remote.etag if is_md5(remote.etag) else None
            return _found(file, State.STALE, local_md5=looked.md5, remote_md5=md5), looked.row
        return self._fine(file, looked), looked.row

    def _confirmed(self, file: CachedFile) -> ObjectInfo | None:
        """Return what the store has at the key of *file* now."""
        assert file.key is not None
        told = self._comparer.confirmed(file.key)
        self._losses.forget()
        return None if told is None else told.info

    def _now(self, file: CachedFile) -> CachedFile:
        """Return *file* as it is now. Raise :class:`_Gone` if it has left the cache, or has no name any more."""
        told = self._entry(file)
        if told.file.key is None:
            raise _Gone
        return told.file

    def _entry(self, file: CachedFile) -> CachedPieces:
        with self._asking:
            told = self._cached.entry(file.id)
        if told is None:
            raise _Gone
        return told

    def _require_unchanged(self, file: CachedFile) -> None:
        """Raise ``Moved`` unless the entry still is what it was when it was looked at."""
        now = self._now(file)
        if (now.etag, now.state, now.key) != (file.etag, file.state, file.key):
            raise Moved

    # ---- the bytes here ------------------------------------------------------------------------

    def _bytes(self, file: CachedFile, remote: ObjectInfo | None, known: Hashed | None) -> _Looked:
        """Find out whether the bytes are those of the entry's version."""
        known = self._comparer.believed(known)
        if known is not None and known.etag == file.etag:
            return _Looked(True, known.md5 if is_md5(known.md5) else None)
        try:
            stamp = Stamp.of(os.lstat(self._path(file)))
        except FileNotFoundError:
            self._now(file)  # or it was evicted
            return _Looked(False, reason="its file is gone from the cache directory")
        content = FileContent(cached_path(file.id), os.fsencode(self._path(file)), stamp)
        try:
            if not file.is_whole:
                return self._pieces(file, content)
            return self._whole(file, content, remote)
        except OSError as error:
            if error.errno not in _UNREADABLE:
                raise
            return _Looked(False, reason=f"its file cannot be read: {why(error)}")

    def _whole(self, file: CachedFile, content: FileContent, remote: ObjectInfo | None) -> _Looked:
        etag, size = ETag(file.etag or ""), content.stamp.size
        if size < file.size:
            self._require_unchanged(file)
            return _Looked(False, reason=f"its file has {size} bytes, and not {file.size}")
        if size > file.size:  # what is behind the end is nobody's
            return self._pieces(file, content)
        md5: str | None = None
        if is_md5(etag) or parts_in(etag):
            md5, etags = self._comparer.hashed(content, etag)
            if md5 == etag or etag in etags:
                return _Looked(True, md5, self._proven(file, content, md5))
        pieces = replace(self._pieces(file, content), md5=md5)
        if not pieces.is_sound or remote is None or remote.etag != etag:
            return pieces
        verdict, _ = self._comparer.asked(content, remote.key, md5)
        if verdict.is_same is False and verdict.remote is not None:
            return replace(pieces, is_sound=verdict.remote.etag != etag, md5=verdict.local_md5)
        if (
            verdict.local_md5 is None
        ):  # the store tells nothing of that version: its bytes are as they came
            return pieces
        proven = self._proven(file, content, verdict.local_md5)
        return _Looked(True, verdict.local_md5, proven)

    def _pieces(self, file: CachedFile, content: FileContent) -> _Looked:
        """Hold the bytes that are here against the sums of the pieces in which they came."""
        told = self._entry(file)
        if told.file.etag != file.etag or told.file.state is not None:
            raise Moved
        for piece, total, is_sound in self._comparer.sound_pieces(content.path, told.sums):
            if not is_sound:
                if (piece, total) not in set(self._entry(file).sums):
                    raise Moved
                return _Looked(
                    False, reason=f"bytes {piece.start} to {piece.stop} changed on its disk"
                )
        mark = f"crc32:{told.sums.check:08x}"
        is_at_rest = told.file.pins == 0 and told.file.cached == file.cached
        return _Looked(True, None, self._proven(file, content, mark) if is_at_rest else None)

    def _proven(self, file: CachedFile, content: FileContent, mark: str) -> Hashed:
        return Hashed(content.name, content.stamp, mark, file.etag, self._now_ns())

    # ---- what is said ----------------------------------------------------------------------------

    def _waiting(self, file: CachedFile) -> Finding:
        if file.state is None:
            return _found(file, State.QUEUED, "it is not stored yet")
        if file.state is Promised.PARKED:
            return _found(file, State.PARKED, self._reason(file))
        return _found(file, _STATES[file.state], _WHY[file.state])

    def _reason(self, file: CachedFile) -> str:
        with self._asking:
            if self._reasons is None or file.id not in self._reasons:
                self._reasons = {
                    int(str(each.get("id"))): str(each.get("error") or "")
                    for each in self._cached.dirty()
                }
            return self._reasons.get(file.id, "")

    @staticmethod
    def _fine(file: CachedFile, looked: _Looked) -> Finding:
        if file.is_whole:
            return _found(file, State.SAME, local_md5=looked.md5, remote_md5=looked.md5)
        return _found(file, State.PARTIAL, f"{file.cached} of {file.size} bytes are here")

    def _rotted(self, file: CachedFile, remote: ObjectInfo | None, looked: _Looked) -> Finding:
        reason = looked.reason or _DAMAGED
        md5 = file.etag if file.etag is not None and is_md5(file.etag) else None
        finding = _found(file, State.ROTTED, reason, local_md5=looked.md5, remote_md5=md5)
        if remote is None:
            return replace(finding, reason=f"{reason}, and the store has no such object")
        if self._mends is None or not self._is_repairing:
            return finding
        with self._asking:
            if not self._mends.refetch(file):
                raise Moved
        return replace(finding, repair=Repair.REFETCHED)

    def _missing(self, file: CachedFile, looked: _Looked) -> Finding:
        finding = _found(file, State.MISSING_REMOTE, local_md5=looked.md5)
        if not file.is_whole:
            return replace(finding, reason=f"{file.cached} of {file.size} bytes are here")
        if self._mends is None or not self._is_repairing:
            return finding
        with self._asking:
            if not self._mends.store_anew(file):
                raise Moved
        return replace(finding, repair=Repair.QUEUED)

    # ---- the end -----------------------------------------------------------------------------------

    def _settled(self, unsettled: Sorted) -> Iterator[Finding]:
        """Have everything uploaded, and yield what became of the files that were waiting."""
        assert self._mends is not None
        with self._asking:
            self._mends.settle()
        for before in map(json.loads, unsettled):
            file = CachedFile.from_json(before["file"])
            try:
                finding, row = self._look(self._now(file), None, None)
            except _Gone:
                continue
            if row is not None:
                self._memory.keep([row], now_ns=self._now_ns())
            if finding is None:
                continue
            if before["is_lost"] and finding.state is State.SAME:
                lost = _found(file, State.MISSING_REMOTE, local_md5=before["local_md5"])
                finding = replace(lost, repair=Repair.STORED)
            yield finding

    def _forget_gone(self) -> None:
        """Forget files that are there no more, where more are remembered than were seen."""
        if self._memory.count() <= self._files:
            return
        directory = self._data.parent
        gone = (
            row.path for row in self._memory.all() if not os.path.lexists(directory / row.path)
        )
        while some := list(islice(gone, 1000)):
            self._memory.forget_all(some)

    def _path(self, file: CachedFile) -> Path:
        return self._data / str(file.id)


def _unsettled(file: CachedFile, finding: Finding) -> tuple[bytes, bytes]:
    """Return what waits as a row on the disk, for there may be as many as the cache has files."""
    row = {
        "file": file.to_json(),
        "is_lost": finding.repair is Repair.QUEUED,
        "local_md5": finding.local_md5,
    }
    return b"%b\0%020d" % (os.fsencode(file.path), file.id), json.dumps(row).encode()


def _found(
    file: CachedFile,
    state: State,
    reason: str = "",
    *,
    local_md5: str | None = None,
    remote_md5: str | None = None,
) -> Finding:
    return Finding(
        file.path,
        state,
        reason,
        local_md5=local_md5,
        remote_md5=remote_md5,
        size=file.size,
        mtime_ns=file.mtime_ns,
    )
