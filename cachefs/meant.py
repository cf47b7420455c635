"""What a program means that says where: a mount, a source, a cache directory; and how it is reached."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cachefs.config import Environment, MountConfig, mount_config, read_config_file
from cachefs.config.addresses import parse_source
from cachefs.config.file import ConfigFile
from cachefs.config.given import read_option
from cachefs.config.settings import Origin, Setting
from cachefs.core.errors import UsageError
from cachefs.core.keys import path_shown
from cachefs.core.source import StoreKind
from cachefs.core.types import Key
from cachefs.known import configured, has_cache
from cachefs.mounts import locate, mount_of
from cachefs.registry import Registration, registry_of


@dataclass(frozen=True, slots=True)
class Meant:
    """A cache directory, and a directory in the tree that it shows."""

    cache_dir: Path
    base: str
    """Relative to the root, without slashes around it; empty: the root."""
    config: MountConfig | None
    """What a service on the directory begins with where nobody has it; None: a daemon must be there."""


def meant(where: str, options: Mapping[str, object], environment: Environment) -> Meant:
    """Return what *where* means: a source, the name of a mount in the configuration, a path in a mount, or a cache directory.

    A source, or a part of it, that a running mount shows is meant as that mount shows it, unless *options* name another
    cache directory. *options* are those of ``cachefs mount``; and ``source``, for a cache directory. Raise ``UsageError``.
    """
    file = read_config_file(environment)
    told = {name: value for name, value in options.items() if value is not None}
    of = told.pop("source", None)
    settings = tuple(each for name, value in told.items() for each in _settings(name, value))
    if where in file.mounts or ("://" in where or _is_of_remote(where, file)):
        if of is not None:
            raise UsageError(f"{where} is a source already — leave source= out")
        config = mount_config(where, None, settings, file=file, environment=environment)
        return _of_source(config, environment, may_be_mounted="cache_dir" not in told)
    return _of_path(where, of, settings, file, environment)


def is_many(source: str, environment: Environment) -> bool:
    """Whether *source* is every bucket of an account, rather than one, a directory or a mount."""
    file = read_config_file(environment)
    if source in file.mounts or not ("://" in source or _is_of_remote(source, file)):
        return False
    found, _ = parse_source(source, file.remote_kinds)
    return not found.bucket


def mounted_bucket(bucket: str, environment: Environment) -> str | None:
    """Return where the bucket of that name is mounted on this machine; None: nowhere, or more than once."""
    found = []
    for running in registry_of(environment).running():
        source, _ = parse_source(running.source, {})
        if source.kind is not StoreKind.FILE and (source.bucket, source.prefix) == (bucket, ""):
            found.append(running.mountpoint)
    return found[0] if len(found) == 1 else None


def _settings(name: str, value: object) -> tuple[Setting, ...]:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return read_option(name, text, Origin.COMMAND, f"{name}={{}}")


def _is_of_remote(where: str, file: ConfigFile) -> bool:
    name, colon, _ = where.partition(":")
    return bool(colon) and name in file.remotes


def _of_source(config: MountConfig, environment: Environment, *, may_be_mounted: bool) -> Meant:
    own = Meant(config.cache_dir, "", config)
    if not may_be_mounted or (config.cache_dir / "control.sock").exists():
        return own
    found = [
        Meant(Path(running.cache_dir), base, None)
        for running in registry_of(environment).running()
        if (base := _shown_in(running, config)) is not None
    ]
    return max(found, key=lambda each: -len(each.base), default=own)


def _shown_in(running: Registration, config: MountConfig) -> str | None:
    """Return where a running mount shows the source of *config*; None: nowhere."""
    source = config.source
    shown, _ = parse_source(running.source, {})
    if shown.kind is not source.kind:
        return None
    for name in ("endpoint_url", "cloud"):
        if running.store.get(name) != getattr(config.store, name):
            return None
    if source.kind is StoreKind.FILE or not source.bucket:
        return "" if source == shown else None
    inner = shown.inner(source.bucket, source.prefix)
    return None if inner is None else os.fsdecode(path_shown(Key(inner.rstrip("/"))))


def _of_path(
    where: str,
    of: object,
    settings: tuple[Setting, ...],
    file: ConfigFile,
    environment: Environment,
) -> Meant:
    place = locate(environment.absolute(where))
    holding = mount_of(place)
    registry = registry_of(environment)
    if holding is not None and holding.is_cachefs:
        running = registry.serving(holding.device) or registry.at(holding.mountpoint)
        if running is None:
            raise UsageError(f"{where} is in a mount that is not yours, or whose daemon is gone")
        relative = place.relative_to(holding.mountpoint)
        return Meant(Path(running.cache_dir), str(relative) if relative.parts else "", None)
    if of is not None:
        more = (*settings, *_settings("cache_dir", place))
        config = mount_config(str(of), None, more, file=file, environment=environment)
        return Meant(place, "", config)
    for name in file.mounts:
        config = configured(name, file, environment)
        if locate(config.cache_dir) == place:
            return Meant(place, "", config)
    if has_cache(place) or (place / "control.sock").exists():
        return Meant(place, "", None)
    raise UsageError(
        f"{where} is no source, no mount, and no cache directory — for example s3://BUCKET"
    )
