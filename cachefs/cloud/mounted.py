"""A directory of a running mount, as its daemon is asked about it: names are hashes, files are leased."""

import errno
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from cachefs.client import ControlClient, ControlError, LeasedFile, NoDaemon
from cachefs.config import Environment
from cachefs.core.errors import (
    CachefsError,
    Denied,
    Fault,
    NoRoom,
    NotFound,
    Refused,
    Stale,
    TimedOut,
    Unreachable,
    UsageError,
)
from cachefs.live import mount_containing
from cachefs.mounts import locate, mount_of

GRACE_S: Final = 10.0
"""How much longer than its own deadline the mount may take to answer."""
_LEASE_S: Final = 300.0
_AT_ONCE: Final = 1000
"""Paths in one question."""
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


class MountedFiles:
    """The files in one directory. For any number of threads; a forked child has leases of its own."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        """*timeout_s*: how long the mount may take for one thing."""
        self._place = place
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        # Held from seeing that a file is here to leasing it, and while one is evicted.
        self._turn = threading.Lock()
        self._kept: dict[str, LeasedFile] = {}
        # Of the cache, so that whatever else uses it has room beside what we lease.
        self._most_leased = self._cache_size() // 2

    def _cache_size(self) -> int:
        with self._asking() as client:
            answer: Any = client.ask("status")
        return int(answer["cache"]["limit"])

    # ---- what is here -----------------------------------------------------------------------

    def cached(self, digests: Sequence[str]) -> list[int | None]:
        """Return how many bytes of each file are in the cache; None: it knows of no such file."""
        found: list[int | None] = []
        with self._asking() as client:
            for start in range(0, len(digests), _AT_ONCE):
                paths = [self._place.path_of(each) for each in digests[start : start + _AT_ONCE]]
                answer: Any = client.ask("presence", paths=paths)
                found += [None if size is None else int(cached) for size, cached in answer]
        return found

    def listed(self) -> Iterator[dict[str, Any]]:
        """Yield what ``stat`` tells of each file in the directory, if there is one."""
        after = 0
        with self._asking() as client:
            while True:
                try:
                    page: Any = client.ask("list", path=self._place.directory, after=after)
                except ControlError as error:
                    if error.errno != errno.ENOENT:
                        raise
                    return
                yield from page
                if not page:
                    return
                after = page[-1]["ino"]

    # ---- leases -----------------------------------------------------------------------------

    def lease(self, digest: str, size: int, patience_s: float) -> LeasedFile:
        """Lease a file of *size* bytes, fetched if need be. The oldest that were kept end where they leave no room for it."""
        return self._lease(digest, size, patience_s, only_here=False)

    def lease_if_here(self, digest: str, size: int) -> LeasedFile | None:
        """Lease a file that is in the cache; None: it is not, and nothing is fetched."""
        with self._turn:
            if self.cached([digest]) != [size]:
                return None
            try:
                return self._lease(digest, size, self._timeout_s + GRACE_S, only_here=True)
            except NotFound:  # it was evicted in this moment
                return None

    def _lease(self, digest: str, size: int, patience_s: float, *, only_here: bool) -> LeasedFile:
        while self._leased_bytes(digest) + size > self._most_leased:
            if not self._give_one_up(digest):
                break
        give_up_at = time.monotonic() + patience_s
        path = self._place.path_of(digest)
        while True:
            left_s = max(0.1, give_up_at - time.monotonic())
            try:
                with self._asking() as client:
                    found = client.ask(
                        "lease", timeout_s=left_s, path=path, seconds=_LEASE_S, cached=only_here
                    )
            except NoRoom:
                if not self._give_one_up(digest):
                    raise
                continue
            if isinstance(found, dict) and found.get("lease") is not None:
                return LeasedFile(**{**found, "path": Path(found["path"])})
            if time.monotonic() >= give_up_at:
                raise TimedOut(f"{digest} is not here in time")

    def _leased_bytes(self, but: str) -> int:
        with self._lock:
            return sum(leased.size for digest, leased in self._kept.items() if digest != but)

    def _give_one_up(self, but: str) -> bool:
        """End the oldest lease that was kept, for somebody else's file. Return whether there was one."""
        with self._lock:
            oldest = next((digest for digest in self._kept if digest != but), None)
            leased = None if oldest is None else self._kept.pop(oldest)
        if leased is not None:
            self.release(leased)
        return leased is not None

    def keep(self, digest: str, leased: LeasedFile) -> None:
        """Keep a lease until another one of the file is kept, it is given up for others, or all end."""
        with self._lock:
            old = self._kept.pop(digest, None)
            self._kept[digest] = leased
        if old is not None:
            self.release(old)

    def release(self, leased: LeasedFile) -> None:
        """End a lease. Where the mount is gone it has ended."""
        with suppress(CachefsError), self._asking() as client:
            client.release(leased.lease)

    def evict(self, digest: str) -> bool:
        """Give the cached bytes of a file up, our lease on it included. Return whether nobody else needs them."""
        with self._turn:
            with self._lock:
                leased = self._kept.pop(digest, None)
            if leased is not None:
                self.release(leased)
            try:
                with self._asking() as client:
                    client.ask("evict", path=self._place.path_of(digest))
            except UsageError:
                return False  # it is open, pinned, or leased by another
        return True

    # ---- changes ----------------------------------------------------------------------------

    def put(self, file: BinaryIO, digest: str) -> str | None:
        """Put *file* into the mount. Return its version; None: it waits for upload."""
        with self._asking() as client:
            found: Any = client.put(self._place.path_of(digest), file.fileno())
        etag = found["etag"]
        return None if etag is None else str(etag)

    def waits(self, digest: str) -> bool:
        """Whether a file is in the journal of the mount."""
        with self._asking() as client:
            answer: Any = client.ask("dirty")
        return any(each["path"] == self._place.path_of(digest) for each in answer)

    def upload(self, digest: str) -> tuple[str, bool]:
        """Have the bucket have a file. Return its version there, and whether it was sent now."""
        path = self._place.path_of(digest)
        with self._asking() as client:
            answer: Any = client.ask("flush", paths=[path], wait=True)
            if answer["failed"] or answer["waiting"]:
                reasons = [str(each["error"]) for each in answer["failed"]]
                raise Fault(reasons[0] if reasons else "it still waits for upload")
            found: Any = client.ask("stat", path=path)
        if found["etag"] is None:
            raise Fault("it still waits for upload")
        return str(found["etag"]), bool(answer["uploaded"])

    # ---- the daemon -------------------------------------------------------------------------

    @contextmanager
    def _asking(self) -> Iterator[ControlClient]:
        """Talk to the daemon, on a connection of one's own: threads and forked children do not meet."""
        try:
            with ControlClient(self._place.socket, timeout_s=self._timeout_s + GRACE_S) as client:
                yield client
        except NoDaemon as error:
            raise Unreachable(f"the mount of {self._place.source} is gone: {error}") from error
        except ControlError as error:
            raise _KINDS.get(error.errno, Fault)(str(error)) from error

    def close(self) -> None:
        """End the leases: paths are not good any more, but for what is open."""
        with self._lock:
            leases, self._kept = self._kept, {}
        for leased in leases.values():
            self.release(leased)

    def go_on_as_child(self) -> None:
        """Leave the leases to the parent."""
        self._lock, self._turn, self._kept = threading.Lock(), threading.Lock(), {}
