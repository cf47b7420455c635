"""What a service begins with: a private cache directory, and settings made of what was configured."""

import os
import stat
from pathlib import Path
from typing import Final

from cachefs.config import Environment, MountConfig
from cachefs.core.errors import UsageError
from cachefs.engine.service import ServiceSettings

_OTHERS: Final = 0o077


def settings_of(config: MountConfig, cache_disk_size: int) -> ServiceSettings:
    """Return what the service needs to know of *config*, on a disk of so many bytes."""
    return ServiceSettings(
        source=config.source,
        cache_dir=config.cache_dir,
        cache_size=config.cache_size,
        min_free_bytes=config.min_free.of(cache_disk_size),
        upload=config.upload,
        upload_delay_s=config.upload_delay_s,
        policy=config.policy,
        conflict=config.conflict,
        metadata_ttl_s=config.metadata_ttl_s,
        negative_ttl_s=config.negative_ttl_s,
        attributes=config.attributes,
        timeout_s=config.timeout_s,
        fetch=config.fetch,
        part_size=config.store.part_size,
        transfers=config.store.transfers,
        offline_reads=config.offline_reads,
        read_only=config.read_only,
        uid=config.uid,
        gid=config.gid,
        file_mode=config.file_mode,
        dir_mode=config.dir_mode,
        trace=config.trace,
        audit=config.audit,
    )


def disk_size(directory: Path) -> int:
    """Return how many bytes the disk below *directory* has."""
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize


def check_cache_dir(cache_dir: Path, environment: Environment) -> None:
    """Raise unless *cache_dir* is private and can be written, or can be created so."""
    try:
        found = cache_dir.lstat()
    except FileNotFoundError:
        _check_creatable(cache_dir)
        return
    except OSError as error:
        raise UsageError(
            f"the cache directory {cache_dir} cannot be used: {error.strerror}"
        ) from None
    if stat.S_ISLNK(found.st_mode):
        raise UsageError(
            f"the cache directory {cache_dir} is a symbolic link — name the directory itself"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(
            f"the cache directory {cache_dir} is not a directory — name another by --cache-dir"
        )
    if found.st_uid != environment.uid:
        raise UsageError(
            f"the cache directory {cache_dir} belongs to another user (uid {found.st_uid}) — "
            "name one of your own by --cache-dir"
        )
    if found.st_mode & _OTHERS:
        raise UsageError(
            f"the cache directory {cache_dir} is open to other users (mode {stat.S_IMODE(found.st_mode):04o}) — "
            f"close it: chmod 700 {cache_dir}"
        )
    if not os.access(cache_dir, os.W_OK | os.X_OK) or _is_read_only(cache_dir):
        raise UsageError(
            f"the cache directory {cache_dir} is not writable — name another by --cache-dir"
        )


def make_cache_dir(cache_dir: Path, environment: Environment) -> None:
    """Create *cache_dir* for this user alone, and check it once more."""
    cache_dir.parent.mkdir(parents=True, exist_ok=True)
    cache_dir.mkdir(mode=0o700, exist_ok=True)
    check_cache_dir(cache_dir, environment)


def _check_creatable(directory: Path) -> None:
    parent = next(parent for parent in directory.parents if os.path.lexists(parent))
    if not parent.is_dir():
        raise UsageError(
            f"the cache directory {directory} cannot be created: {parent} is not a directory"
        )
    if not os.access(parent, os.W_OK | os.X_OK) or _is_read_only(parent):
        raise UsageError(
            f"the cache directory {directory} cannot be created: {parent} is not writable — "
            "name another by --cache-dir"
        )


def _is_read_only(directory: Path) -> bool:
    # access(2) says yes to root, whatever the mode; the file system's own refusal it would not hide.
    return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
