"""A cache directory: private to its owner, locked by one process at a time."""

import fcntl
import json
import os
import stat
import time
import uuid
from pathlib import Path
from typing import Final

from cachefs.core.errors import DiskFull, InUse, UsageError, disk_error, shortage
from cachefs.local.db import Database
from cachefs.local.forks import in_child

_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of cachefs (https://bford.info/cachedir/)\n"


_SLOP_NS: Final = 50 * 10**6
"""By how much the clocks may drift apart within a session and be believed: less than a daemon takes to start after a kill."""
_APART_NS: Final = 10**6
"""How long two looks at the clocks may take: what is dated by the one may seem later than the other."""


def _steady_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the id of this boot of the machine: what was only in memory before it is gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


class CacheDirectory:
    """Holds the lock on a cache directory for as long as it lives."""

    def __init__(self, path: Path) -> None:
        """Make the directory if need be and lock it.

        Raise ``UsageError`` if others could read or write it, ``InUse`` (which names the holder's pid) if
        another process has it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_privacy()
            self._lock = os.open(
                path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            reason = f"its lock: {error.strerror}" if path.is_dir() else error.strerror
            raise UsageError(
                f"cannot use the cache directory {path}: {reason} — choose another with --cache-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._lock, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise InUse(
                f"the cache directory {path} is in use by process {holder}"
                " — stop it, or choose another with --cache-dir"
            ) from error
        in_child(
            self, CacheDirectory.close
        )  # or it would hold the lock after the end of its parent
        try:
            self._sign()
            self._tag()
        except OSError as error:
            self.close()
            raise UsageError(
                f"cannot use the cache directory {path}: {error.strerror} — make room on its disk"
            ) from error

    def _sign(self) -> None:
        """Write our pid into the lock. Not emptied before: a full disk would not give its block back."""
        pid = f"{os.getpid()}\n".encode()
        os.pwrite(self._lock, pid, 0)
        os.ftruncate(self._lock, len(pid))

    def _check_privacy(self) -> None:
        status = os.lstat(self.path)
        if not stat.S_ISDIR(status.st_mode):
            raise UsageError(f"the cache directory {self.path} is not a directory")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise UsageError(
                f"the cache directory {self.path} is open to other users"
                f" — make it yours alone: chmod 700 {self.path}"
            )

    def _tag(self) -> None:
        tag = self.path / "CACHEDIR.TAG"
        if not os.path.lexists(tag):
            tag.write_text(_TAG, "ascii")

    def close(self) -> None:
        """Let the lock go. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class Sessions:
    """Tells the database that the last daemon left from an older copy of it, put back from a backup.

    Each session has an id, kept both in the database and in a file of its own beside it. The database has it
    first, and knows the one before as well, so that a crash in between leaves nothing that disagrees.
    """

    def __init__(self, directory: Path, db: Database) -> None:
        self._db = db
        self._path = directory / "session"
        self._last = self._read()
        self._began_ns = time.time_ns(), _steady_ns()

    @property
    def is_first(self) -> bool:
        """Whether there was none before, as far as anything tells."""
        return self._last is None

    @property
    def is_latest(self) -> bool:
        """Whether the database knows the session that was the last here, as far as anything tells."""
        known = self._known()
        return self._last is None or not known or self._last in known

    @property
    def ended_well(self) -> bool:
        """Whether the last session came to its end, so that the tables tell of all that it did."""
        return self._last is not None and self._db.get_meta("ended") == self._last

    def may_be_ahead(self, now_ns: int) -> bool:
        """Whether rows may tell of moments after *now_ns*, because the machine's clock was ahead or is behind.

        Moments are those of a clock that starts with the time of day and passes evenly (:class:`cachefs.engine.clock.Clock`).
        """
        try:
            if self.ended_well:
                return int(self._db.get_meta("ended_ns") or now_ns + 1) > now_ns
            boot, ahead_ns = json.loads(self._db.get_meta("clock") or "")
            return boot != boot_id() or int(ahead_ns) > time.time_ns() - _steady_ns() + _SLOP_NS
        except (ValueError, TypeError):
            return True

    def begin(self) -> None:
        """Begin a new session."""
        new = uuid.uuid4().hex
        wall_ns, steady_ns = self._began_ns
        self._db.set_meta("clock", json.dumps([boot_id(), wall_ns - steady_ns]))
        self._db.set_meta("sessions", json.dumps([new, self._last or new]))
        Database.sync_wal(self._db.path)
        try:
            self._write(new)
        except OSError as error:
            raise disk_error(error) from error
        self._last = new

    def _write(self, new: str) -> None:
        temporary = self._path.with_suffix(".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self._last is None or not isinstance(shortage(error), DiskFull):
                raise
            self._overwrite(new)
        else:
            temporary.rename(self._path)

    def _overwrite(self, new: str) -> None:
        """Write in the block that the file has: a full disk has no other, and a disk writes so little at once."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, new.encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def end(self) -> None:
        """Note that nothing is done any more that the tables do not tell of."""
        wall_ns, steady_ns = self._began_ns
        latest_ns = max(time.time_ns(), wall_ns + _steady_ns() - steady_ns)
        with self._db.transaction():
            self._db.set_meta("ended_ns", str(latest_ns + _APART_NS))
            self._db.set_meta("ended", str(self._last))

    def _read(self) -> str | None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with open(descriptor, encoding="ascii", errors="replace") as file:
            return file.read(64).strip() or None

    def _known(self) -> list[object]:
        try:
            known = json.loads(self._db.get_meta("sessions") or "[]")
        except ValueError:
            return []
        return known if isinstance(known, list) else []
