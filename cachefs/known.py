"""Which cache directories this user has, and which of them a remote means that was named."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cachefs.config import ConfigFile, Environment, MountConfig, mount_config
from cachefs.core.errors import UsageError
from cachefs.core.source import Source
from cachefs.registry import pools_of, registry_of

SOCKET_NAME: Final = "control.sock"
DATABASE: Final = "cachefs.sqlite3"


def has_cache(cache_dir: Path) -> bool:
    """Whether there is a cache in *cache_dir*."""
    return (cache_dir / DATABASE).exists()


def configured(name: str, file: ConfigFile, environment: Environment) -> MountConfig:
    """Return the mount that the configuration file calls *name*."""
    return mount_config(name, None, (), file=file, environment=environment)


def cache_dirs(file: ConfigFile, environment: Environment) -> list[Path]:
    """Return every cache directory that is known: of running mounts and pools, of configured ones, and in the usual place."""
    running = [*registry_of(environment).running(), *pools_of(environment).running()]
    known = [Path(each.cache_dir) for each in running]
    known += [configured(name, file, environment).cache_dir for name in file.mounts]
    root = environment.cache_root
    known += sorted(root.iterdir()) if root.is_dir() else []
    return [cache_dir for cache_dir in dict.fromkeys(known) if has_cache(cache_dir)]


@dataclass(frozen=True, slots=True)
class Remotes:
    """Tells which stores are meant by ``--remote R``.

    R is a source (``s3://``: every bucket, ``s3://photos``, ``s3://photos/2024``), the name of a ``[remotes.NAME]``, with a
    bucket behind a colon or without, or what a store calls itself (``s3://photos at http://…``).
    """

    file: ConfigFile
    environment: Environment

    def means(self, remote: str, cache_dir: Path, description: str) -> bool:
        """Whether *remote* means what *cache_dir*, a cache of the store that calls itself *description*, is of."""
        source = Source.of_description(description)
        if remote == description or source is None:
            return remote == description
        if "://" in remote:
            return _is_within(str(source), remote)
        name, _, place = remote.partition(":")
        if name not in self.file.remotes or self.file.remotes[name].kind is not source.kind:
            return False
        if place and not _is_within(str(source), f"{source.kind}://{place}"):
            return False
        return self._is_at(name, description) or cache_dir in self._dirs(name, source)

    def require(self, remote: str) -> None:
        """Raise ``UsageError`` unless *remote* can be one."""
        name = remote.partition(":")[0]
        if "://" in remote or name in self.file.remotes:
            return
        named = ", ".join(self.file.remotes) or "none"
        raise UsageError(
            f"there is no remote {remote} — name a source (s3://BUCKET), or one of the configuration file: {named}"
        )

    def _is_at(self, name: str, description: str) -> bool:
        """Whether the store is at the address that the configuration has for the remote *name*."""
        settings = self.file.remotes[name].settings
        address = next((each.value for each in settings if each.name == "endpoint-url"), None)
        return address is not None and description.endswith(f" at {address.rstrip('/')}")

    def _dirs(self, name: str, source: Source) -> Sequence[Path]:
        """Return the cache directories that mounts of *source* have, as one of the remote *name*."""
        place = f"{source.bucket}/{source.prefix}".strip("/") if source.bucket else ""
        wanted = [f"{name}:{place}"]
        wanted += [
            each
            for each, section in self.file.mounts.items()
            if section.source.startswith(f"{name}:") and "://" not in section.source
        ]
        return [configured(each, self.file, self.environment).cache_dir for each in wanted]


def _is_within(source: str, remote: str) -> bool:
    """Whether *source* is what *remote* names, or a part of that."""
    if remote.endswith("://"):
        return source.startswith(remote)
    remote = remote.rstrip("/")
    return source == remote or source.startswith(f"{remote}/")
