"""The kernel's table of mounts, and the ways to ask about a mountpoint that may never answer.

A FUSE mount whose daemon is dead or stuck must not be touched by a system call of ours: it may block for ever.
The table in /proc never does.
"""

import contextlib
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cachefs.core.errors import UsageError

_TABLE: Final = Path("/proc/self/mountinfo")
_MOST_LINKS: Final = 40
_PATIENCE_S: Final = 3.0
_UNMOUNT_S: Final = 10.0
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
    device: str = ""
    """The kernel's number of the file system, ``0:52``: no other one has it while this one is mounted."""
    number: int = 0
    """The kernel's number of the mount."""

    @property
    def is_cachefs(self) -> bool:
        """Whether it is one of ours."""
        return self.kind == "fuse.cachefs"


def mounted() -> Iterator[Mount]:
    """Yield what is mounted, in the order of mounting."""
    for line in _TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        kind, source, *_ = after.split(" ")
        number, _, device, _, mountpoint, *_ = before.split(" ")
        yield Mount(Path(_unescaped(mountpoint)), _unescaped(source), kind, device, int(number))


def mount_at(mountpoint: Path) -> Mount | None:
    """Return what is mounted at *mountpoint*: the topmost, if several are."""
    found = [mount for mount in mounted() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def mounts_of(device: str) -> list[Mount]:
    """Return where the file system *device* is mounted: nowhere, or more than once."""
    return [mount for mount in mounted() if mount.device == device]


def serves_a_mount() -> bool:
    """Whether this process serves a file system that is still mounted.

    As long as it is, the kernel gives the number of its device to no other.
    """
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) == "/dev/fuse":
                poller = select.poll()
                poller.register(int(descriptor.name), 0)
                if not any(events & select.POLLERR for _, events in poller.poll(0)):
                    return True
    return False


def mount_of(path: Path) -> Mount | None:
    """Return the mount in which *path* (from :func:`locate`) lies: the topmost, if several are at one place."""
    holding = [mount for mount in mounted() if path.is_relative_to(mount.mountpoint)]
    return max(reversed(holding), key=lambda mount: len(mount.mountpoint.parts), default=None)


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
            timeout=_UNMOUNT_S,
        )
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{command[0]} does not end"
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split()) or f"{command[0]} ended with {done.returncode}"


def holders(mount: Mount) -> list[str]:
    """Return the processes that keep *mount* busy, as ``NAME (PID)``: those that we may look at.

    Nothing in the mount is touched, and nobody who is stuck in it is waited for longer than a moment.
    """
    found: list[str] = []

    def look() -> None:
        processes = sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name))
        found.extend(f"{_name_of(each)} ({each.name})" for each in processes if _uses(each, mount))

    # The maps of a process that is stuck in a page fault may not be readable before it goes on.
    looking = threading.Thread(target=look, name="holders", daemon=True)
    looking.start()
    looking.join(_PATIENCE_S)
    return list(found)


def _uses(process: Path, mount: Mount) -> bool:
    try:
        return (
            any(_points_into(process / name, mount.mountpoint) for name in ("cwd", "root", "exe"))
            or any(_is_in(info, mount.number) for info in (process / "fdinfo").iterdir())
            or _maps(process, mount.device)
        )
    except OSError:
        return False  # another user's, or it has ended


def _points_into(link: Path, mountpoint: Path) -> bool:
    try:
        # The kernel's word; nothing is touched.
        return Path(os.readlink(link)).is_relative_to(mountpoint)
    except OSError:
        return False  # a thread of the kernel has none


def _is_in(info: Path, number: int) -> bool:
    """Whether the descriptor that *info* is about is one of the mount *number*."""
    try:
        return f"mnt_id:\t{number}\n" in info.read_text(errors="replace")
    except OSError:
        return False  # closed meanwhile


def _maps(process: Path, device: str) -> bool:
    """Whether *process* has a file of the file system *device* in its memory, open or not."""
    major, _, minor = device.partition(":")
    wanted = f"{int(major):02x}:{int(minor):02x}"
    with (process / "maps").open(errors="replace") as lines:
        return any(line.split(maxsplit=4)[3] == wanted for line in lines)


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
