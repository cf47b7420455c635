"""Files of a cloud manager in the cache of a running mount: objects named by their hashes, below one directory of it.

The mount has the bytes, and uploads them to its bucket: the first remote. They are kept here for as long as its cache does
or somebody leases them, so that one limit holds for whatever else uses it; the manager's capacity bounds its own part.
"""

import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from cachefs.client import LeasedFile
from cachefs.cloud.mounted import GRACE_S, MountedFiles, Place
from cachefs.cloud.storage import Fill, Target, copy_verified
from cachefs.core.errors import Fault, NoRoom, NotFound, Refused, StoreError
from cachefs.core.removal import choose_removals, fits
from cachefs.core.types import ETag
from cachefs.local.catalogue import Catalogue, Copy, Known, Stored
from cachefs.local.holdings import Part, claimed
from cachefs.registry import process_start

_FIRST_PATIENCE_S: Final = 5.0
_IN_USE_S: Final = 1.0
"""For so long files are waited for that others have in use."""
_PAUSE_S: Final = 0.02
_TRIES: Final = 100


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
        self._stored = stored
        self._files = MountedFiles(place, timeout_s)
        self._longest_s = timeout_s + GRACE_S
        self._patience_s = _FIRST_PATIENCE_S if has_others else self._longest_s
        self.capacity = capacity
        self.is_stored = stored.has
        self.name = place.name
        self.error: str | None = None
        self._take_in_what_is_there()

    @property
    def remote(self) -> Target:
        """The bucket of the mount."""
        return self

    # ---- what is here -----------------------------------------------------------------------

    def used(self) -> int:
        """Return the bytes of our files that the cache has, and of those on their way in."""
        # In one step: else what goes meanwhile counts beside what comes for it.
        with self._catalogue.transaction():
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
        cached = self._files.cached([digest for digest, _ in rows])
        return {digest: (size, now or 0) for (digest, size), now in zip(rows, cached, strict=True)}

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
        return known is not None and self._files.cached([digest]) == [known.size]

    def verified(self, known: Known) -> bool:
        """Whether the file is here, with the bytes that it is named for."""
        return self._found(known, keep=False) is not None

    def path(self, known: Known) -> Path | None:
        """Return a leased path: good for five minutes from now, unless the manager is closed or needs its room."""
        return self._found(known, keep=True)

    def _found(self, known: Known, *, keep: bool) -> Path | None:
        """Lease and verify what is here and counts as ours: what others have brought in counts once room is taken for it."""
        if not self._catalogue.all("SELECT 1 FROM held WHERE hash = ?", (known.hash,)):
            return None
        return self._here(known, keep=keep)

    def _here(self, known: Known, *, keep: bool) -> Path | None:
        leased = self._files.lease_if_here(known.hash, known.size)
        return None if leased is None else self._verified(leased, known, keep=keep)

    def _verified(self, leased: LeasedFile, known: Known, *, keep: bool) -> Path | None:
        """Return the path, if the bytes are those of the hash. What that tells of the bucket's copy is noted."""
        is_sound = self._is_sound(leased, known)
        if keep and is_sound:
            self._files.keep(known.hash, leased)
        else:
            self._files.release(leased)
        if leased.etag is not None:
            self._note_seen(known, leased.etag, "stored" if is_sound else "damaged")
        return leased.path if is_sound else None

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
            if self._here(known, keep=False) is not None:
                return True  # another door, or one who was killed, has brought it in
            if self._is_in_the_bucket(known):
                with suppress(StoreError, NoRoom):
                    if self._from_the_bucket(known, keep=False) is not None:
                        return True
            with self._spool(known) as (spool, part):
                copy_verified(file, part, known)
                part.flush()
                return self._put(spool, known, keep=False) is not None

    def may_have(self, known: Known) -> bool:
        """Whether the bucket was not seen to lack the file, or to have other bytes: the mount uploads, and evicts, by itself."""
        copies = self._catalogue.copies(known.hash)
        return not any(
            copy.remote == self.name and copy.state in ("missing", "damaged") for copy in copies
        )

    def _is_in_the_bucket(self, known: Known) -> bool:
        """Whether it was there when that was seen last: then it is not put, and uploaded, once more."""
        copies = self._catalogue.copies(known.hash)
        return any((copy.remote, copy.state) == (self.name, "stored") for copy in copies)

    def fetch(self, known: Known, fill: Fill) -> Path | None:
        """Have the mount fetch a file; where its bucket does not have it, put what others have into the mount."""
        with self._room(known) as is_free:
            if not is_free:
                return None
            if (path := self._here(known, keep=True)) is not None:
                return path
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
            with self._spool(known) as (spool, part):
                try:
                    fill(part)
                except NotFound:
                    raise missing from None
                part.flush()
                return self._put(spool, known, keep=True)

    @contextmanager
    def _spool(self, known: Known) -> Iterator[tuple[BinaryIO, Part]]:
        """Yield a file of ours for bytes on their way into the mount.

        What is put takes the place of whatever has the name, which may be the only copy: so it is verified before, and
        nobody else can change it any more.
        """
        with tempfile.TemporaryFile(dir=self._catalogue.path.parent) as spool:
            yield spool, Part(spool, known.hash, known.size)

    def _from_the_bucket(self, known: Known, *, keep: bool) -> Path | None:
        leased = self._files.lease(known.hash, known.size, self._patience_s)
        path = self._verified(leased, known, keep=keep)
        if path is not None:
            self._catalogue.count_traffic(_month(), "incoming", known.size)
            self.error = None
        return path

    def _put(self, file: BinaryIO, known: Known, *, keep: bool) -> Path | None:
        """Put *file*, whose bytes are verified, into the mount, and return where it is leased; None: its cache has no room."""
        etag = None
        try:
            etag = self._files.put(file, known.hash)
        except NoRoom:
            return None
        except StoreError as error:
            if not self._files.waits(known.hash):
                raise
            self.error = str(error)  # it has the bytes, and will upload them
        leased = self._files.lease_if_here(known.hash, known.size)
        if leased is None:  # it is uploaded, and others have needed its room
            leased = self._files.lease(known.hash, known.size, self._longest_s)
        there = self._verified(leased, known, keep=keep)
        if there is None:
            raise Fault(f"{known.hash} was damaged on its way into the mount")
        if etag is not None:
            self._note_sent(known, etag)
        elif self._is_in_the_bucket(known):
            self._note(known, None, "said")  # until what was put over it is uploaded
        return there

    def settle(self, known: Known) -> None:
        """Have the mount upload a file, and wait for it."""
        etag, was_sent = self._files.upload(known.hash)
        if was_sent:
            self._note_sent(known, etag)
        else:
            self._note(known, etag, "stored")

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
        for found in self._files.listed():
            self._take_in_found(found)

    def _take_in_found(self, found: dict[str, Any]) -> None:
        digest, now_ns = str(found["name"]), time.time_ns()
        if len(digest) != 64 or set(digest) - set("0123456789abcdef") or found["kind"] != "file":
            return
        known = Known(digest, digest, int(found["size"]), now_ns, None)
        if (
            found["etag"] is None
        ):  # the only copy: it is ours, however full that makes us, and verified when it is used
            self._hold(known, (known.size, 0, 0))
        else:
            self._catalogue.add(known)
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
                # Most are needed for a moment only, by whoever reads or verifies them.
                needed = set()
                pause.wait(_PAUSE_S)
                continue
            needed |= {digest for digest in chosen if not self._evict(digest)}
        return True

    def _evict(self, digest: str) -> bool:
        if not self._files.evict(digest):
            return False
        self._catalogue.execute("DELETE FROM held WHERE hash = ?", (digest,))
        return True

    # ---- the rest ---------------------------------------------------------------------------

    @contextmanager
    def claimed(self, known: Known) -> Iterator[BinaryIO | None]:
        """Lock the file, as others do who send it."""
        leased = self._files.lease_if_here(known.hash, known.size)
        if leased is None:
            yield None
            return
        try:
            with claimed(leased.path) as file:
                yield file
        finally:
            self._files.release(leased)

    def close(self) -> None:
        """End the leases: paths are not good any more, but for what is open."""
        self._files.close()

    def go_on_as_child(self) -> None:
        """Leave the leases to the parent."""
        self._files.go_on_as_child()


def _month() -> str:
    return time.strftime("%Y-%m", time.gmtime())


def _signed(number: int) -> int:
    """Return an inode number as SQLite keeps it."""
    return number - 2**64 if number >= 2**63 else number
