"""Which mounts and pools run on this machine for this user: one small file each, in the runtime directory.

A file outlives its daemon only when that was killed; whoever reads the directory then takes it away.
"""

import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cachefs.config import Environment
from cachefs.core.errors import UsageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registration:
    """What is known of a running mount, or pool, without asking it."""

    mountpoint: str
    """A pool's: its directory."""
    source: str
    cache_dir: str
    socket: str
    pid: int
    started: int
    """When the process began, in the kernel's ticks since boot: tells it from another with the same pid."""
    store: Mapping[str, object] = field(default_factory=dict)
    """How the store is reached, as ``StoreOptions`` has it; empty: not told. No secrets."""


class Registry:
    """The runtime directory of one user. *suffix*: by which mounts and pools are told apart in it."""

    def __init__(self, directory: Path, uid: int, suffix: str = ".json") -> None:
        self._directory = directory
        self._uid = uid
        self._suffix = suffix

    def add(self, registration: Registration, device: str) -> None:
        """Make *registration* known, also by the kernel's number of its file system (``0:52``)."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check()
        path = self._path(registration.mountpoint)
        # Those of a daemon before: its number may be another's by now.
        for link in self._links_to(path):
            link.unlink(missing_ok=True)
        fresh = path.with_suffix(f".{registration.pid}.new")
        fresh.write_text(json.dumps(asdict(registration)))
        fresh.replace(path)
        if device:
            link = path.with_suffix(f".{registration.pid}.link")
            link.symlink_to(path.name)
            link.replace(self._directory / f"{device}.device")

    def remove(self, mountpoint: str, pid: int) -> None:
        """Forget the mount at *mountpoint*, if it still is that of *pid*."""
        path = self._path(mountpoint)
        found = _read(path)
        if found is not None and found.pid == pid:
            for link in self._links_to(path):
                link.unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def running(self) -> list[Registration]:
        """Return the mounts whose daemons live, by mountpoint; clean up after the others."""
        if not self._directory.is_dir():
            return []
        self._check()
        living = []
        for path in sorted(self._directory.glob(f"*{self._suffix}")):
            found = _read(path)
            if found is not None and process_start(found.pid) == found.started:
                living.append(found)
            else:
                path.unlink(missing_ok=True)
        return sorted(living, key=lambda registration: registration.mountpoint)

    def at(self, mountpoint: Path) -> Registration | None:
        """Return the mount at *mountpoint*, if its daemon lives."""
        return next((each for each in self.running() if each.mountpoint == str(mountpoint)), None)

    def serving(self, device: str) -> Registration | None:
        """Return the mount whose file system has the number *device*, wherever it is by now, if its daemon lives."""
        found = _read(self._directory / f"{device}.device")
        return found if found is not None and found in self.running() else None

    def devices_of(self, registration: Registration) -> list[str]:
        """Return the number that the mount's file system has, if it is known."""
        return [link.stem for link in self._links_to(self._path(registration.mountpoint))]

    def _links_to(self, path: Path) -> list[Path]:
        links = sorted(self._directory.glob("*.device"))
        return [link for link in links if link.is_symlink() and link.readlink() == Path(path.name)]

    def _path(self, mountpoint: str) -> Path:
        name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]
        return self._directory / f"{name}{self._suffix}"

    def _check(self) -> None:
        # Below /tmp somebody else may have made it first, to tell us where sockets are.
        found = self._directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != self._uid or found.st_mode & 0o077:
            raise UsageError(
                f"{self._directory} is open to other users — remove it, or close it: chmod 700"
            )


def registry_of(environment: Environment) -> Registry:
    """Return the registry of the user's mounts."""
    return Registry(environment.runtime_dir, environment.uid)


def pools_of(environment: Environment) -> Registry:
    """Return the registry of the user's pools that no mount keeps."""
    return Registry(environment.runtime_dir, environment.uid, ".pool")


def process_start(pid: int) -> int | None:
    """Return when process *pid* began, or None if there is none (a zombie does not count)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the name in parentheses, and may itself hold spaces and parentheses.
    found = text.rpartition(")")[2].split()
    return None if found[0] in "ZX" else int(found[19])


def _read(path: Path) -> Registration | None:
    try:
        told = json.loads(path.read_text())
        # A newer cachefs may tell more, and an older one does not tell how the store is reached.
        told = {"store": {}, **told}
        return Registration(**{each.name: told[each.name] for each in fields(Registration)})
    except (OSError, ValueError, TypeError, KeyError) as error:
        _log.debug("cannot read %s: %s", path, error)
        return None
