"""Files of a cloud manager in the cache of a running mount: objects named by their hashes, below one directory of it.

The mount has the bytes, and uploads them to its bucket: the first remote. They are kept here for as long as its cache does
or somebody leases them, so that one limit holds for whatever else uses it; the manager's capacity bounds its own part.
"""

import errno
import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from cachefs.client import ControlClient, ControlError, LeasedFile, NoDaemon
from cachefs.cloud.storage import Fill, Target
from cachefs.config import Environment
from cachefs.core.errors import (
    CachefsError,
    Denied,
    Fault,
    NoRoom,
    NotFound,
    Refused,
    Stale,
    StoreError,
    TimedOut,
    Unreachable,
    UsageError,
)
from cachefs.core.removal import choose_removals, fits
from cachefs.core.types import ETag
from cachefs.live import mount_containing
from cachefs.local.catalogue import Catalogue, Copy, Known, Stored
from cachefs.local.holdings import Part, claimed
from cachefs.mounts import locate, mount_of
from cachefs.registry import process_start

_LEASE_S: Final = 300.0
_GRACE_S: Final = 10.0
"""How much longer than its own deadline the mount may take to answer."""
_FIRST_PATIENCE_S: Final = 5.0
_IN_USE_S: Final = 1.0
"""For so long files are waited for that others have in use."""
_PAUSE_S: Final = 0.02
_AT_ONCE: Final = 1000
"""Paths in one question."""
_TRIES: Final = 100
_KINDS: Final[dict[int | None, type[CachefsError]]] = {
    errno.ENOENT: NotFound,
    errno.ENOTDIR: NotFound,
    errno.ENOSPC: NoRoom,
    errno.ESTALE: Stale,
    errno.EACCES: Denied,
    errno.EPERM: Refused,
    errno.EROFS: Refused,
    errno.EINVAL: UsageError,
}


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of a running mount."""

    socket: Path
    source: str
    directory: str
    """Relative to the root of the mount; empty: the root."""

    @property
    def name(self) -> str:
        """The remote that objects in it are at."""
        head = self.source if self.source.endswith("://") else f"{self.source}/"
        return f"{head}{self.directory}".rstrip("/")

    def path_of(self, digest: str) -> str:
        """Return the path of a file."""
        return f"{self.directory}/{digest}" if self.directory else digest


def place_of(storage: Path, environment: Environment) -> Place | None:
    """Return what *storage* is of a running mount; None: it lies in none. Raise ``UsageError`` if its daemon is not ours, or dead."""
    holding = mount_of(locate(storage))
    if holding is None or not holding.is_cachefs:
        return None
    running, directory = mount_containing(str(storage), environment)
    if running.source.endswith("://") and not directory:
        raise UsageError(f"the storage {storage} is in no bucket — name a directory of one")
    return Place(Path(running.socket), running.source, directory)


class Shelf:
    """The storage of one manager, and its first remote, in one mount."""

    def __init__(
        self,
        catalogue: Catalogue,
        place: Place,
        capacity: int,
        stored: Stored,
        *,
        timeout_s: float,
        has_others: bool,
    ) -> None:
        """*has_others*: there are other remotes, so that this one is not waited for for long."""
        self._catalogue = catalogue
        self._place = place
        self._stored = stored
        self._timeout_s = timeout_s
        self._patience_s = _FIRST_PATIENCE_S if has_others else timeout_s + _GRACE_S
        self._lock = threading.Lock()
        # Held from seeing that a file is here to leasing it, and while one is evicted.
        self._turn = threading.Lock()
        self._leases: dict[str, LeasedFile] = {}
        self.capacity = capacity
        self.is_stored = stored.has
        self.name = place.name
        self.error: str | None = None
        self._most_leased = self._cache_size() // 2
        self._take_in_what_is_there()

    def _cache_size(self) -> int:
        with self._asking() as client:
            answer: Any = client.ask("status")
        return int(answer["cache"]["limit"])

    @property
    def remote(self) -> Target:
        """The bucket of the mount."""
        return self

    # ---- what is here -----------------------------------------------------------------------

    def used(self) -> int:
        """Return the bytes of our files that the cache has, and of those on their way in."""
        with (
            self._catalogue.transaction()
        ):  # else what goes meanwhile counts beside what comes for it
            return self._counted()

    def _counted(self) -> int:
        present = self._present()
        gone = [digest for digest, (size, cached) in present.items() if size and not cached]
        for digest in gone:
            if self.is_stored(digest):  # the mount has made room
                self._catalogue.execute("DELETE FROM held WHERE hash = ?", (digest,))
        taken = {digest: cached for digest, (_, cached) in present.items()}
        for digest, size in self._coming():  # which may be here in part
            taken[digest] = max(size, taken.get(digest, 0))
        return sum(taken.values())

    def _present(self) -> dict[str, tuple[int, int]]:
        """Return size and cached bytes of every file that was here when it was seen last."""
        rows = self._catalogue.all("SELECT hash, size FROM held")
        found: dict[str, tuple[int, int]] = {}
        for start in range(0, len(rows), _AT_ONCE):
            page = rows[start : start + _AT_ONCE]
            cached = self._cached([digest for digest, _ in page])
            found |= {
                digest: (size, now) for (digest, size), now in zip(page, cached, strict=True)
            }
        return found

    def _cached(self, digests: Sequence[str]) -> list[int]:
        with self._asking() as client:
            answer: Any = client.ask("presence", paths=[self._place.path_of(d) for d in digests])
            return [0 if size is None else int(cached) for size, cached in answer]

    def _coming(self) -> Iterator[tuple[str, int]]:
        """Yield what is on its way in, with the room that it takes; what killed programs took is given back."""
        for name, size in self._catalogue.all("SELECT name, size FROM parts"):
            digest, _, pid, began = name.split(".") if name.count(".") == 3 else ("", "", "", "")
            if pid.isdigit() and str(process_start(int(pid))) == began:
                yield digest, size
            else:
                self._catalogue.execute("DELETE FROM parts WHERE name = ?", (name,))

    def has(self, digest: str) -> bool:
        """Whether the cache has all of the file."""
        known = self._catalogue.known(digest)
        if known is None:
            return False
        with self._asking() as client:
            answer: Any = client.ask("presence", paths=[self._place.path_of(digest)])
        return bool(answer[0] == [known.size, known.size])

    def verified(self, known: Known) -> bool:
        """Whether the file is here, with the bytes that it is named for."""
        leased = self._lease_if_here(known)
        return leased is not None and self._verified(leased, known, keep=False) is not None

    def path(self, known: Known) -> Path | None:
        """Return a leased path: good for five minutes from now, unless the manager is closed or needs its room."""
        leased = self._lease_if_here(known)
        return None if leased is None else self._verified(leased, known, keep=True)

    def _lease_if_here(self, known: Known) -> LeasedFile | None:
        with self._turn:
            if not self.has(known.hash):
                return None
            try:
                return self._lease(known, self._timeout_s + _GRACE_S, only_here=True)
            except (
                NotFound
            ):  # it was evicted in this moment: who fetches it takes room for it before
                return None

    def _verified(self, leased: LeasedFile, known: Known, *, keep: bool) -> Path | None:
        """Return the path, if the bytes are those of the hash. What that tells of the bucket's copy is noted."""
        is_sound = self._is_sound(leased, known)
        old: LeasedFile | None = leased
        if keep and is_sound:
            with self._lock:
                old = self._leases.pop(known.hash, None)
                self._leases[known.hash] = leased
        if leased.etag is not None:
            self._note_seen(known, leased.etag, "stored" if is_sound else "damaged")
        if old is not None:
            self._release(old)
        return leased.path if is_sound else None

    def _lease(self, known: Known, patience_s: float, *, only_here: bool = False) -> LeasedFile:
        while self._leased_bytes(known.hash) + known.size > self._most_leased:
            if not self._give_a_lease_up(known.hash):
                break
        give_up_at = time.monotonic() + patience_s
        path = self._place.path_of(known.hash)
        while True:
            left_s = max(0.1, give_up_at - time.monotonic())
            try:
                with self._asking() as client:
                    found = client.ask(
                        "lease", timeout_s=left_s, path=path, seconds=_LEASE_S, cached=only_here
                    )
            except NoRoom:
                if not self._give_a_lease_up(known.hash):
                    raise
                continue
            if isinstance(found, dict) and found.get("lease") is not None:
                return LeasedFile(**{**found, "path": Path(found["path"])})
            if time.monotonic() >= give_up_at:
                raise TimedOut(f"{known.hash} is not here in time")

    def _leased_bytes(self, but: str) -> int:
        with self._lock:
            return sum(leased.size for digest, leased in self._leases.items() if digest != but)

    def _give_a_lease_up(self, but: str) -> bool:
        """End the oldest of our leases, for somebody else's file. Return whether there was one."""
        with self._lock:
            oldest = next((digest for digest in self._leases if digest != but), None)
            leased = None if oldest is None else self._leases.pop(oldest)
        if leased is not None:
            self._release(leased)
        return leased is not None

    def _release(self, leased: LeasedFile) -> None:
        with suppress(CachefsError), self._asking() as client:
            client.release(leased.lease)

    def _is_sound(self, leased: LeasedFile, known: Known) -> bool:
        """Whether the bytes are those of the hash; read anew if it is another file than was verified last."""
        try:
            with leased.path.open("rb") as file:
                status = os.fstat(file.fileno())
                stamp = (status.st_size, _signed(status.st_ino), status.st_mtime_ns)
                rows = self._catalogue.all(
                    "SELECT size, inode, mtime_ns FROM held WHERE hash = ?", (known.hash,)
                )
                if rows != [stamp]:
                    if hashlib.file_digest(file, "sha256").hexdigest() != known.hash:
                        return False
                    self._hold(known, stamp)
        except OSError as error:
            raise Fault(f"the leased file cannot be read: {error.strerror}") from error
        return True

    def _hold(self, known: Known, stamp: tuple[int, int, int]) -> None:
        with self._catalogue.transaction():
            self._catalogue.add(known)
            self._catalogue.execute(
                "INSERT INTO held VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE"
                " SET size = excluded.size, inode = excluded.inode, mtime_ns = excluded.mtime_ns",
                (known.hash, *stamp),
            )

    # ---- coming in --------------------------------------------------------------------------

    def take_in(self, file: BinaryIO, known: Known) -> bool:
        """Put *file* into the mount, unless its bucket has it: when this returns it is in its journal, or stored."""
        with self._room(known) as is_free:
            if not is_free:
                return False
            if self._is_in_the_bucket(known):
                with suppress(StoreError, NoRoom):
                    if self._from_the_bucket(known, keep=False) is not None:
                        return True
            return self._put(file, known, keep=False) is not None

    def _is_in_the_bucket(self, known: Known) -> bool:
        """Whether it was there when that was seen last: then it is not put, and uploaded, once more."""
        copies = self._catalogue.copies(known.hash)
        return any((copy.remote, copy.state) == (self.name, "stored") for copy in copies)

    def fetch(self, known: Known, fill: Fill) -> Path | None:
        """Have the mount fetch a file; where its bucket does not have it, put what others have into the mount."""
        with self._room(known) as is_free:
            if not is_free:
                return None
            try:
                if (path := self._from_the_bucket(known, keep=True)) is not None:
                    return path
                missing: StoreError = NotFound(f"{self.name} has other bytes under {known.hash}")
            except NoRoom:
                return None
            except NotFound as error:
                self._note(known, None, "missing")
                missing = error
            except (Fault, Refused) as error:
                self.error = str(error)
                missing = error
            with tempfile.TemporaryFile(dir=self._catalogue.path.parent) as spool:
                part = Part(spool, known.hash, known.size)
                try:
                    fill(part)
                except NotFound:
                    raise missing from None
                spool.flush()
                return self._put(spool, known, keep=True)

    def _from_the_bucket(self, known: Known, *, keep: bool) -> Path | None:
        leased = self._lease(known, self._patience_s)
        path = self._verified(leased, known, keep=keep)
        if path is not None:
            self._catalogue.count_traffic(_month(), "incoming", known.size)
            self.error = None
        return path

    def _put(self, file: BinaryIO, known: Known, *, keep: bool) -> Path | None:
        """Put *file* into the mount, and return where it is leased; None: its cache has no room. Raise ``Stale``."""
        path, etag = self._place.path_of(known.hash), None
        try:
            with self._asking() as client:
                found: Any = client.put(path, file.fileno())
            etag = found["etag"]
        except NoRoom:
            return None
        except StoreError as error:
            if not self._waits(path):
                raise
            self.error = str(error)  # it has the bytes, and will upload them
        leased = self._lease(known, self._timeout_s + _GRACE_S, only_here=True)
        there = self._verified(leased, known, keep=keep)
        if there is None:
            with self._asking() as client:
                client.ask("delete", path=path)
            raise Stale(f"{known.name} was changed while it was read")
        if etag is not None:
            self._note_sent(known, etag)
        elif self._is_in_the_bucket(known):
            self._note(known, None, "said")  # until what was put over it is uploaded
        return there

    def _waits(self, path: str) -> bool:
        with self._asking() as client:
            answer: Any = client.ask("dirty")
        return any(each["path"] == path for each in answer)

    def settle(self, known: Known) -> None:
        """Have the mount upload a file, and wait for it."""
        path = self._place.path_of(known.hash)
        with self._asking() as client:
            answer: Any = client.ask("flush", paths=[path], wait=True)
            if answer["failed"] or answer["waiting"]:
                reasons = [str(each["error"]) for each in answer["failed"]]
                raise Fault(reasons[0] if reasons else "it still waits for upload")
            found: Any = client.ask("stat", path=path)
        if found["etag"] is None:
            raise Fault("it still waits for upload")
        if answer["uploaded"]:
            self._note_sent(known, found["etag"])
        else:
            self._note(known, found["etag"], "stored")

    def _note_sent(self, known: Known, etag: str) -> None:
        self._catalogue.count_traffic(_month(), "outgoing", known.size)
        self._note(known, etag, "stored")

    def _note_seen(self, known: Known, etag: str, state: str) -> None:
        if self._catalogue.known(known.hash) is None:
            return  # it was to be taken in, and is not what it was taken for
        if all(
            (copy.remote, copy.etag, copy.state) != (self.name, etag, state)
            for copy in self._catalogue.copies(known.hash)
        ):
            self._note(known, etag, state)

    def _note(self, known: Known, etag: str | None, state: str) -> None:
        version = None if etag is None else ETag(etag)
        self._catalogue.note_copy(
            Copy(known.hash, self.name, known.hash, version, state, time.time_ns())
        )

    def _take_in_what_is_there(self) -> None:
        """Know of the files in the directory, where the database knows of none: it may have been lost."""
        if self._catalogue.number("SELECT COUNT(*) FROM files"):
            return
        after = 0
        with self._asking() as client:
            while True:
                try:
                    page: Any = client.ask("list", path=self._place.directory, after=after)
                except ControlError as error:
                    if error.errno != errno.ENOENT:
                        raise
                    return
                for found in page:
                    self._take_in_found(found)
                if not page:
                    return
                after = page[-1]["ino"]

    def _take_in_found(self, found: dict[str, Any]) -> None:
        digest, now_ns = str(found["name"]), time.time_ns()
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or found["kind"] != "file":
            return
        known = Known(digest, digest, int(found["size"]), now_ns, None)
        self._catalogue.add(known)
        if found["etag"] is not None:
            self._note(known, found["etag"], "said")

    # ---- room -------------------------------------------------------------------------------

    @contextmanager
    def _room(self, known: Known) -> Iterator[bool]:
        """Take room for a file while the block runs, for which others are removed as need be."""
        pid = os.getpid()
        name = f"{known.hash}.{secrets.token_hex(8)}.{pid}.{process_start(pid)}"
        if not self._take_room(name, known):
            yield False
            return
        try:
            yield True
        finally:
            self._catalogue.execute("DELETE FROM parts WHERE name = ?", (name,))

    def _take_room(self, name: str, known: Known) -> bool:
        for _ in range(_TRIES):
            if not self.make_room(known.size):
                return False
            with self._catalogue.transaction():
                if self.used() + known.size <= self.capacity:
                    values = (name, known.size)
                    self._catalogue.execute("INSERT INTO parts VALUES (?, ?)", values)
                    return True
        return False

    def make_room(self, size: int) -> bool:
        """Have the mount evict uploaded files of ours, but for those that anybody else needs, until *size* bytes are free."""
        if not fits(size, self.capacity):
            return False
        needed: set[str] = set()
        give_up_at, pause = time.monotonic() + _IN_USE_S, threading.Event()
        while (lacking := self.used() + size - self.capacity) > 0:
            present = self._present()
            may_go = [
                (digest, present[digest][1])
                for digest, _ in self._stored.removable()
                if digest in present and digest not in needed
            ]
            chosen = choose_removals(may_go, lacking)
            if chosen is None:
                if not needed or time.monotonic() >= give_up_at:
                    return False
                needed = (
                    set()
                )  # most are needed for a moment only, by whoever reads or verifies them
                pause.wait(_PAUSE_S)
                continue
            needed |= {digest for digest in chosen if not self._evict(digest)}
        return True

    def _evict(self, digest: str) -> bool:
        with self._turn:
            with self._lock:
                leased = self._leases.pop(digest, None)
            if leased is not None:
                self._release(leased)
            try:
                with self._asking() as client:
                    client.ask("evict", path=self._place.path_of(digest))
            except UsageError:
                return False  # it is open, pinned, or leased by another
        self._catalogue.execute("DELETE FROM held WHERE hash = ?", (digest,))
        return True

    # ---- the mount --------------------------------------------------------------------------

    @contextmanager
    def claimed(self, known: Known) -> Iterator[BinaryIO | None]:
        """Lock the file, as others do who send it."""
        leased = self._lease_if_here(known)
        if leased is None:
            yield None
            return
        try:
            with claimed(leased.path) as file:
                yield file
        finally:
            self._release(leased)

    @contextmanager
    def _asking(self) -> Iterator[ControlClient]:
        """Talk to the mount, on a connection of one's own: threads and forked children do not meet."""
        try:
            with ControlClient(self._place.socket, timeout_s=self._timeout_s + _GRACE_S) as client:
                yield client
        except NoDaemon as error:
            raise Unreachable(f"the mount of {self._place.source} is gone: {error}") from error
        except ControlError as error:
            raise _KINDS.get(error.errno, Fault)(str(error)) from error

    def close(self) -> None:
        """End the leases: paths are not good any more, but for what is open."""
        with self._lock:
            leases, self._leases = self._leases, {}
        for leased in leases.values():
            self._release(leased)

    def go_on_as_child(self) -> None:
        """Leave the leases to the parent."""
        self._lock, self._turn, self._leases = threading.Lock(), threading.Lock(), {}


def _month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def _signed(number: int) -> int:
    """Return an inode number as SQLite keeps it."""
    return number - 2**64 if number >= 2**63 else number
