"""A cache directory: private to its owner, locked by one process at a time."""

import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from cachefs.core.errors import InUse, UsageError

_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of cachefs (https://bford.info/cachedir/)\n"


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
            raise UsageError(
                f"cannot use the cache directory {path}: {error.strerror} — choose another with --cache-dir"
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
        if not tag.exists():
            tag.write_text(_TAG, "ascii")

    def close(self) -> None:
        """Let the lock go. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
