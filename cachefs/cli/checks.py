"""What must hold before a mount begins. Nothing is created here; each check ends in one clear line.

A stale mount (its daemon is dead) is the one thing that is put right: it is taken out of the tree.
"""

import errno
import logging
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from cachefs.config import Environment, MountConfig
from cachefs.config.pool import PoolConfig
from cachefs.core.errors import UsageError
from cachefs.core.source import StoreKind
from cachefs.mounts import answer_of, locate, mount_at, unmount
from cachefs.preparing import check_cache_dir

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """What mounting needs of this machine."""

    fuse_device: Path = Path("/dev/fuse")
    fuse_conf: Path = Path("/etc/fuse.conf")
    path: str | None = None
    """Where commands are looked for; None: as always."""


_THIS = Machine()


def check_all(config: MountConfig, environment: Environment, machine: Machine = _THIS) -> Path:
    """Check everything that needs no store. Return the mountpoint without symbolic links."""
    if config.mountpoint is None:
        raise UsageError("no mountpoint given — for example cachefs mount s3://photos /mnt/photos")
    mountpoint = check_mountpoint(config.mountpoint, environment)
    check_fuse(environment, machine)
    if config.allow_other:
        check_allow_other(environment, machine)
    check_apart(config, mountpoint)
    if config.pool:
        _check_pool_beside(config.pool, config, mountpoint)
    check_cache_dir(config.cache_dir, environment)
    if config.log_file:
        _check_log_file(config.log_file)
    return mountpoint


def check_mountpoint(given: Path, environment: Environment) -> Path:
    """Raise unless *given* is an empty directory on which nothing is mounted. Return it without links."""
    mountpoint = locate(given)
    if (mount := mount_at(mountpoint)) is not None:
        answer = answer_of(mountpoint)
        if answer != errno.ENOTCONN:
            stuck = ", and does not answer" if answer is None else ""
            raise UsageError(
                f"{given} is already a mount (of {mount.source}){stuck} — unmount it first: cachefs umount {given}"
            )
        _clear_stale(mountpoint, environment)
    try:
        found = mountpoint.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise UsageError(
                f"the mountpoint {given} is not a directory — name an empty directory"
            )
        with os.scandir(mountpoint) as entries:
            occupied = next(entries, None) is not None
    except FileNotFoundError:
        raise UsageError(
            f"the mountpoint {given} does not exist — create it: mkdir -p {given}"
        ) from None
    except NotADirectoryError:
        raise UsageError(
            f"the mountpoint {given} is not a directory — name an empty directory"
        ) from None
    except OSError as error:
        raise UsageError(f"the mountpoint {given} cannot be used: {error.strerror}") from None
    if occupied:
        raise UsageError(f"the mountpoint {given} is not empty — name an empty directory")
    if not environment.is_root and not os.access(mountpoint, os.W_OK):
        raise UsageError(
            f"the mountpoint {given} is not yours to write — name a directory of your own"
        )
    return mountpoint


def check_fuse(environment: Environment, machine: Machine = _THIS) -> None:
    """Raise unless this machine can mount by FUSE."""
    if not environment.is_root and shutil.which("fusermount3", path=machine.path) is None:
        raise UsageError(
            "fusermount3 is not installed — install the package fuse3, or mount as root"
        )
    device = machine.fuse_device
    if not device.exists():
        raise UsageError(
            f"there is no {device} — load the module (modprobe fuse), or give the container the device"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        raise UsageError(
            f"{device} is not open to you — mount as root, or have it opened: chmod 666 {device}"
        )


def check_allow_other(environment: Environment, machine: Machine = _THIS) -> None:
    """Raise unless the user may let others into a mount."""
    if environment.is_root:
        return
    try:
        lines = [
            line.strip() for line in machine.fuse_conf.read_text(errors="replace").splitlines()
        ]
    except OSError:
        lines = []
    if "user_allow_other" not in lines:
        raise UsageError(
            f"--allow-other is for root alone here — have the line user_allow_other added to {machine.fuse_conf}"
        )


def check_apart(config: MountConfig, mountpoint: Path) -> None:
    """Raise if the mount would lie in its own cache or store, or they in it: each would wait for itself."""
    cache_dir = locate(config.cache_dir)
    places = {"cache directory": cache_dir}
    if config.source.kind is StoreKind.FILE:
        places["source"] = locate(Path(config.source.bucket))
    for what, place in places.items():
        if place.is_relative_to(mountpoint) or mountpoint.is_relative_to(place):
            raise UsageError(
                f"the {what} {place} and the mountpoint {mountpoint} lie in one another — keep them apart"
            )
    source = places.get("source")
    if source and (cache_dir.is_relative_to(source) or source.is_relative_to(cache_dir)):
        raise UsageError(
            f"the source {source} and the cache directory {cache_dir} lie in one another — keep them apart"
        )
    for what, file in (("log file", config.log_file), ("trace", config.trace)):
        if file and locate(file).is_relative_to(mountpoint):
            raise UsageError(f"the {what} {file} lies in the mountpoint — keep them apart")


def check_pool(pool: PoolConfig, config: MountConfig) -> None:
    """Raise if what the pool shows, and sweeps, would lie where bytes are kept, or they there."""
    data = locate(pool.home / "data")
    places = {"cache directory": locate(config.cache_dir)}
    if config.source.kind is StoreKind.FILE:
        places["source"] = locate(Path(config.source.bucket))
    for what, place in places.items():
        if place.is_relative_to(data) or data.is_relative_to(place):
            raise UsageError(
                f"the {what} {place} and the pool's files in {data} lie in one another — keep them apart"
            )


def _check_pool_beside(pool: PoolConfig, config: MountConfig, mountpoint: Path) -> None:
    home = locate(pool.home)
    if home.is_relative_to(mountpoint) or mountpoint.is_relative_to(home / "data"):
        raise UsageError(
            f"the pool's directory {home} and the mountpoint {mountpoint} lie in one another — keep them apart"
        )
    check_pool(pool, config)


def _clear_stale(mountpoint: Path, environment: Environment) -> None:
    while (mount := mount_at(mountpoint)) is not None and answer_of(mountpoint) == errno.ENOTCONN:
        reason = unmount(mountpoint, as_root=environment.is_root, lazily=True)
        if reason is not None:
            raise UsageError(
                f"{mountpoint} is a stale mount (of {mount.source}) and cannot be cleaned up: {reason}"
            )
        _log.warning("cleaned up a stale mount of %s at %s", mount.source, mountpoint)


def _check_log_file(log_file: Path) -> None:
    if log_file.is_dir():
        raise UsageError(f"the log file {log_file} is a directory — name a file")
    if not log_file.parent.is_dir():
        raise UsageError(
            f"the log file {log_file} cannot be created: there is no {log_file.parent}"
        )
    target = log_file if log_file.exists() else log_file.parent
    if not os.access(target, os.W_OK):
        raise UsageError(f"the log file {log_file} is not writable — name another by --log-file")
