"""The kernel's table of mounts, and the ways to ask about a mountpoint that may never answer.

A FUSE mount whose daemon is dead or stuck must not be touched by a system call of ours: it may block for ever.
The table in /proc never does.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cachefs.core.errors import UsageError

_TABLE: Final = Path("/proc/self/mountinfo")
_MOST_LINKS: Final = 40
_PATIENCE_S: Final = 3.0
_GRACE_S: Final = 1.0
# statvfs, not stat: the kernel answers a stat of a dead mount from its attribute cache.
_ASK: Final = (
    "import os, sys\ntry: os.statvfs(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)"
)


@dataclass(frozen=True, slots=True)
class Mount:
    """One row of the table."""

    mountpoint: Path
    source: str
    kind: str
    """The file system's type: ``fuse.cachefs``."""

    @property
    def is_cachefs(self) -> bool:
        """Whether it is one of ours."""
        return self.kind == "fuse.cachefs"


def mounted() -> Iterator[Mount]:
    """Yield what is mounted, in the order of mounting."""
    for line in _TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        kind, source, *_ = after.split(" ")
        yield Mount(Path(_unescaped(before.split(" ")[4])), _unescaped(source), kind)


def mount_at(mountpoint: Path) -> Mount | None:
    """Return what is mounted at *mountpoint*: the topmost, if several are."""
    found = [mount for mount in mounted() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def mount_of(path: Path) -> Mount | None:
    """Return the mount in which *path* (from :func:`locate`) lies."""
    holding = [mount for mount in mounted() if path.is_relative_to(mount.mountpoint)]
    return max(holding, key=lambda mount: len(mount.mountpoint.parts), default=None)


def locate(path: Path) -> Path:
    """Return the absolute *path* without symbolic links, never looking into a mount of ours.

    Walks from the root down. A mountpoint in the table is taken as it is, and so is all below a cachefs mount.
    """
    points = {mount.mountpoint: mount for mount in mounted()}
    here = Path("/")
    parts = list(reversed(path.parts[1:]))
    links = 0
    while parts:
        step = here / parts.pop()
        if step in points:
            here = step
            if points[step].kind.startswith("fuse"):
                return step.joinpath(*reversed(parts))
            continue
        target = _link(step)
        if target is None:
            here = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise UsageError(f"{path}: too many symbolic links")
        aim = Path(os.path.normpath(here / target))
        parts += reversed(aim.parts[1:])
        here = Path("/")
    return here


def answer_of(mountpoint: Path) -> int | None:
    """Return the errno that asking *mountpoint* ends with (0: it works), or None if it does not end.

    Asked by a process of its own, which alone is stuck if the mount is.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _ASK, str(mountpoint)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            return process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return None


def unmount(mountpoint: Path, *, as_root: bool, lazily: bool = False) -> str | None:
    """Unmount *mountpoint*. Return None, or the reason why it did not work."""
    if as_root:
        command = ["umount", *(["-l"] if lazily else []), "--", str(mountpoint)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", str(mountpoint)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split()) or f"{command[0]} ended with {done.returncode}"


def holders(mountpoint: Path) -> list[str]:
    """Return the processes that keep *mountpoint* busy, as ``NAME (PID)``: those that we may look at."""
    return [
        f"{_name_of(process)} ({process.name})"
        for process in Path("/proc").glob("[0-9]*")
        if any(_points_into(link, mountpoint) for link in _links_of(process))
    ]


def _links_of(process: Path) -> Iterator[Path]:
    yield process / "cwd"
    yield process / "root"
    yield process / "exe"
    try:
        yield from (process / "fd").iterdir()
    except OSError:
        return  # another user's, or it ended


def _points_into(link: Path, mountpoint: Path) -> bool:
    try:
        return Path(os.readlink(link)).is_relative_to(
            mountpoint
        )  # the kernel's word; nothing is touched
    except OSError:
        return False


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _unescaped(field: str) -> str:
    r"""Return a field of the table with ``\040`` and the like read."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
