"""The storage of a cloud manager: files named by the hash of their bytes, never more of them than its capacity.

Any number of threads and processes work in it at once. A file comes in whole or not at all: its room is taken first
(a row in ``parts``), its bytes go to a part file whose lock says that somebody is at work, and the name and the row
come in one transaction. A file goes out row first. So after a kill there may be a part that nobody holds, or a file
without a row, and whoever comes next puts that in order.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from cachefs.core.errors import CacheError, InUse, UsageError, disk_error
from cachefs.core.removal import choose_removals, fits
from cachefs.local.catalogue import Catalogue, Known, Stored

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_PART: Final = re.compile(r"\.[0-9a-f]{64}\.part")
_PAUSE_S: Final = 0.02

_log = logging.getLogger(__name__)


class Part:
    """A file on its way into the storage: room for its bytes is taken, and they are written here."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.size = size
        self.name = name
        self._file = file
        self._digest = hashlib.sha256()
        self.written = 0
        """Bytes that were taken."""

    @property
    def left(self) -> int:
        """Bytes for which there is room yet."""
        return self.size - self.written

    def write(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes. Raise ``CacheError`` for more than there is room for."""
        if self.written + len(data) > self.size:
            raise CacheError("there are more bytes than room was taken for")
        try:
            self._file.write(data)
        except OSError as error:
            raise disk_error(error) from error
        self.written += len(data)
        self._digest.update(data)

    def restart(self) -> None:
        """Forget what was taken."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.written = 0

    def hash(self) -> str:
        """Return the SHA-256 of what was taken."""
        return self._digest.hexdigest()

    def flush(self) -> None:
        """Return when whoever has the file open sees all bytes."""
        try:
            self._file.flush()
        except OSError as error:
            raise disk_error(error) from error

    def sync(self) -> None:
        """Return when the bytes are on the disk."""
        self.flush()
        try:
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error) from error


class Entrance:
    """The lock on a part file, under which room is taken and bytes are written."""

    def __init__(self, file: BinaryIO, name: str, take_room: Callable[[str, int], bool]) -> None:
        self._file = file
        self._name = name
        self._take_room = take_room

    def part(self, size: int) -> Part | None:
        """Take room for a file of *size* bytes, for which others are removed as need be; None: there is none.

        May be called again until it has succeeded.
        """
        return Part(self._file, self._name, size) if self._take_room(self._name, size) else None


class Holdings:
    """The files in one storage directory, as one catalogue has them."""

    def __init__(
        self,
        catalogue: Catalogue,
        directory: Path,
        capacity: int,
        stored: Stored,
    ) -> None:
        """Only files that are *stored* are ever removed."""
        self._catalogue = catalogue
        self._stored = stored
        self.is_stored = stored.has
        self.directory = directory
        self.capacity = capacity
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot use the storage {directory}: {error.strerror}") from error
        if not directory.is_dir():
            raise UsageError(f"cannot use the storage {directory}: it is no directory")
        self.put_in_order()

    # ---- what is here -----------------------------------------------------------------------

    def path_of(self, digest: str) -> Path:
        """Return where the bytes of a file are while they are here."""
        return self.directory / digest

    def used(self) -> int:
        """Return the bytes that are taken: of files, and of those on their way in."""
        return self._catalogue.number(
            "SELECT (SELECT COALESCE(SUM(size), 0) FROM held) + (SELECT COALESCE(SUM(size), 0) FROM parts)"
        )

    def has(self, digest: str) -> bool:
        """Whether the storage has the file, and it has the right size."""
        rows = self._catalogue.all("SELECT size FROM held WHERE hash = ?", (digest,))
        status = _status(self.path_of(digest))
        return bool(rows) and status is not None and status.st_size == rows[0][0]

    def verified(self, digest: str) -> bool:
        """Whether the storage has the file, with the bytes that it is named for.

        They are read if anything has touched the file since that was done last.
        """
        rows = self._catalogue.all(
            "SELECT size, inode, mtime_ns FROM held WHERE hash = ?", (digest,)
        )
        status = _status(self.path_of(digest))
        if not rows or status is None:
            return False
        if rows[0] == (status.st_size, _signed(status.st_ino), status.st_mtime_ns):
            return True
        if not self._is_sound(self.path_of(digest), digest):
            return False
        self._catalogue.execute(
            "UPDATE held SET inode = ?, mtime_ns = ? WHERE hash = ?",
            (_signed(status.st_ino), status.st_mtime_ns, digest),
        )
        return True

    @staticmethod
    def _is_sound(path: Path, digest: str) -> bool:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except FileNotFoundError:
            return False
        except OSError as error:
            raise disk_error(error) from error

    # ---- coming in --------------------------------------------------------------------------

    @contextmanager
    def entrance(self, digest: str, *, timeout_s: float) -> Iterator["Entrance"]:
        """Have the one way in for the file *digest*. What was not kept in the end is removed, and its room given back.

        Waits for who has it, for *timeout_s* at most, then raises ``InUse``.
        """
        name = f".{digest}.part"
        with self._locked(self.directory / name, timeout_s) as file:
            file.truncate()  # of one that was killed
            try:
                yield Entrance(file, name, self._take_room)
            finally:
                self._give_back(name, file.fileno())

    def keep(self, part: Part, known: Known) -> None:
        """Have the bytes of *part* in the storage, as those of *known*: durable when this returns."""
        part.sync()
        path = self.path_of(known.hash)
        with self._catalogue.transaction():
            try:
                os.rename(self.directory / part.name, path)
                self._sync_directory()
                status = path.stat()
            except OSError as error:
                raise disk_error(error) from error
            self._catalogue.add(known)
            self._catalogue.execute("DELETE FROM parts WHERE name = ?", (part.name,))
            self._hold(known.hash, status)

    def _hold(self, digest: str, status: os.stat_result) -> None:
        self._catalogue.execute(
            "INSERT INTO held VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO UPDATE"
            " SET size = excluded.size, inode = excluded.inode, mtime_ns = excluded.mtime_ns",
            (digest, status.st_size, _signed(status.st_ino), status.st_mtime_ns),
        )

    def _give_back(self, name: str, fd: int) -> None:
        """Remove the part, if it was not kept, and then its row: as long as there are bytes they are counted."""
        path = self.directory / name
        with self._catalogue.transaction():
            if _is_at(fd, path):  # else it was kept, and what is there now is another's
                _remove(path)
                self._catalogue.execute("DELETE FROM parts WHERE name = ?", (name,))

    @contextmanager
    def _locked(self, path: Path, timeout_s: float) -> Iterator[BinaryIO]:
        until = time.monotonic() + timeout_s
        while True:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                file = open(os.open(path, flags, 0o600), "r+b", buffering=0)  # noqa: SIM115 - closed below
            except OSError as error:
                raise disk_error(error) from error
            try:
                if _lock(file.fileno()) and _is_at(file.fileno(), path):
                    yield file
                    return
            finally:
                _unlock(file.fileno())
                file.close()
            if time.monotonic() >= until:
                raise InUse(f"another program has been bringing {path.name[1:65]} in for too long")
            threading.Event().wait(_PAUSE_S)

    # ---- going out --------------------------------------------------------------------------

    def make_room(self, size: int) -> bool:
        """Remove what may be removed until *size* bytes are free. Return whether they are.

        Nothing is removed if they cannot be.
        """
        if not fits(size, self.capacity):
            return False
        self._tidy()
        with self._catalogue.transaction():
            doomed = self._doom(size)
        return self._remove_doomed(doomed)

    def _take_room(self, name: str, size: int) -> bool:
        if not fits(size, self.capacity):
            return False
        self._tidy()
        with self._catalogue.transaction():
            doomed = self._doom(size)
            if doomed is not None:
                self._catalogue.execute("INSERT INTO parts VALUES (?, ?)", (name, size))
        return self._remove_doomed(doomed)

    def _doom(self, size: int) -> list[str] | None:
        """Take the rows of the files that go for *size* bytes. In a transaction."""
        chosen = choose_removals(self._stored.removable(), self.used() + size - self.capacity)
        for digest in chosen or ():
            self._catalogue.execute("DELETE FROM held WHERE hash = ?", (digest,))
        return chosen

    def _remove_doomed(self, doomed: list[str] | None) -> bool:
        for digest in doomed or ():
            with self._catalogue.transaction():
                # Another may have brought it in again.
                if not self._catalogue.all("SELECT 1 FROM held WHERE hash = ?", (digest,)):
                    _remove(self.path_of(digest))
        return doomed is not None

    def forget_lost(self, digest: str) -> None:
        """Count a file no more that is not here, or not with its bytes, if a remote has it. What is left is removed."""
        with self._catalogue.transaction():
            if self.is_stored(digest):
                self._catalogue.execute("DELETE FROM held WHERE hash = ?", (digest,))
                _remove(self.path_of(digest))

    # ---- after a kill -----------------------------------------------------------------------

    def _tidy(self) -> None:
        """Put in order what a killed program has left, if one was killed while it brought something in."""
        rows = self._catalogue.all("SELECT name FROM parts")
        if any(self._is_abandoned(name) for (name,) in rows):
            self.put_in_order()

    def put_in_order(self) -> None:
        """End what killed programs have left: parts that nobody works at, and files without a row.

        A file whose only copy this may be is taken in again, however full the storage is.
        """
        with self._catalogue.transaction():
            for (name,) in self._catalogue.all("SELECT name FROM parts"):
                if self._is_abandoned(name):
                    _remove(self.directory / name)
                    self._catalogue.execute("DELETE FROM parts WHERE name = ?", (name,))
        for entry in sorted(os.listdir(self.directory)):
            if _HASH.fullmatch(entry):
                self._look_at(entry)
            elif _PART.fullmatch(entry) and self._is_abandoned(entry):
                self._remove_stray(entry)

    def _remove_stray(self, name: str) -> None:
        """Remove a part that has no row, unless somebody has begun to work at it."""
        with self._catalogue.transaction():
            has_row = self._catalogue.all("SELECT 1 FROM parts WHERE name = ?", (name,))
            if not has_row and self._is_abandoned(name):
                _remove(self.directory / name)

    def _is_abandoned(self, name: str) -> bool:
        try:
            fd = os.open(self.directory / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            return error.errno == errno.ENOENT
        try:
            return _lock(fd)
        finally:
            _unlock(fd)
            os.close(fd)

    def _look_at(self, digest: str) -> None:
        """Take in, or remove, the file named *digest* if it has no row."""
        if self._catalogue.all("SELECT 1 FROM held WHERE hash = ?", (digest,)):
            return
        path = self.path_of(digest)
        is_sound = self._is_sound(path, digest)
        with self._catalogue.transaction():
            status = _status(path)
            if status is None or self._catalogue.all(
                "SELECT 1 FROM held WHERE hash = ?", (digest,)
            ):
                return
            if self.is_stored(digest):
                _remove(path)
            elif is_sound:
                _log.warning("%s is in the storage without a row: it is taken in", digest)
                self._catalogue.add(Known(digest, digest, status.st_size, time.time_ns(), None))
                self._hold(digest, status)
            else:
                _log.error("%s does not have the bytes of its name: it is set aside", path)
                os.rename(path, path.with_name(f"{digest}.damaged"))

    def _sync_directory(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def claimed(path: Path) -> Iterator[BinaryIO | None]:
    """Have *path* to oneself, among those who ask so, while the block runs; None: another has it, or it is gone."""
    try:
        file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")  # noqa: SIM115 - closed below
    except OSError:
        yield None
        return
    try:
        yield file if _lock(file.fileno()) else None
    finally:
        _unlock(file.fileno())
        file.close()


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(fd: int) -> None:
    """Let go, also for children that were forked meanwhile. Nothing happens to a lock of others."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def _is_at(fd: int, path: Path) -> bool:
    """Whether *path* still is the file that was opened: it may have been removed before it was locked."""
    status = _status(path)
    return status is not None and os.path.samestat(status, os.fstat(fd))


def _status(path: Path) -> os.stat_result | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _signed(number: int) -> int:
    """Return an inode number as SQLite keeps it."""
    return number - 2**64 if number >= 2**63 else number
