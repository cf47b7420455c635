"""The configuration file: found, decoded, and every key in it known."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cachefs.config.environment import Environment
from cachefs.config.given import CREDENTIALS, dashed, is_secret
from cachefs.config.option import Option
from cachefs.config.options import BY_NAME, MOUNT_OPTIONS
from cachefs.config.quantities import parse_mode
from cachefs.config.settings import Origin, Setting, suggestion
from cachefs.core.errors import UsageError
from cachefs.core.source import StoreKind

_KINDS = {kind.value: kind for kind in (StoreKind.S3, StoreKind.SWIFT, StoreKind.FILE)}
_TOP_LEVEL = ("remotes", "mounts")


@dataclass(frozen=True, slots=True)
class RemoteSection:
    """One ``[remotes.NAME]``."""

    kind: StoreKind
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class MountSection:
    """One ``[mounts.NAME]``."""

    source: str
    mountpoint: str | None = None
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What the configuration file says."""

    path: Path | None = None
    """None: there is none."""
    remotes: Mapping[str, RemoteSection] = field(default_factory=dict)
    mounts: Mapping[str, MountSection] = field(default_factory=dict)

    @property
    def remote_kinds(self) -> dict[str, StoreKind]:
        """The kind of every remote, by name."""
        return {name: remote.kind for name, remote in self.remotes.items()}


def read_config_file(environment: Environment) -> ConfigFile:
    """Return the first configuration file that there is, or an empty one."""
    for path in environment.config_candidates:
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(
                f"cannot read the configuration file {path}: {error.strerror}"
            ) from None
        return decode(text, path)
    if environment.get("CACHEFS_CONFIG"):
        raise UsageError(
            f"there is no configuration file {environment.config_candidates[0]} — "
            "create it, or unset CACHEFS_CONFIG"
        )
    return ConfigFile()


def decode(text: bytes, path: Path) -> ConfigFile:
    """Return what *text*, the content of *path*, says. Raises UsageError on anything it does not know."""
    try:
        document = tomllib.loads(text.decode())
    except (
        ValueError,
        RecursionError,
    ) as error:  # numbers of too many digits, and too deep a nesting
        reason = str(error).splitlines()[:1] or ["?"]
        raise UsageError(f"{path} is not valid TOML: {reason[0]}") from None
    for name in document:
        if name not in _TOP_LEVEL:
            hint = suggestion(name, _TOP_LEVEL) or " — it holds [remotes.NAME] and [mounts.NAME]"
            raise UsageError(f"unknown section [{name}] in {path}{hint}")
    remotes = _tables(document, "remotes", path)
    mounts = _tables(document, "mounts", path)
    return ConfigFile(
        path=path,
        remotes={name: _remote(name, table, path) for name, table in remotes.items()},
        mounts={name: _mount(name, table, path) for name, table in mounts.items()},
    )


def _tables(document: dict[str, object], section: str, path: Path) -> dict[str, dict[str, object]]:
    tables = document.get(section, {})
    if not isinstance(tables, dict) or not all(
        isinstance(table, dict) for table in tables.values()
    ):
        raise UsageError(f"{section} in {path} must be tables — for example [{section}.photos]")
    for name in tables:
        if not name or set(name) & set(":/#") or not name.isprintable():
            raise UsageError(
                f"[{section}.{name!r}] in {path}: a name holds no colon, slash or hash"
            )
    return tables


def _remote(name: str, table: dict[str, object], path: Path) -> RemoteSection:
    place = f" in [remotes.{name}] of {path}"
    if "type" not in table:
        raise UsageError(f'there is no type{place} — for example type = "s3"')
    kind = _KINDS.get(str(table["type"]))
    if kind is None:
        raise UsageError(f"type = {table['type']!r}{place} is none of {', '.join(_KINDS)}")
    allowed = [option for option in MOUNT_OPTIONS if option.of_remote]
    for key in table:
        option = BY_NAME.get(dashed(key))
        if option is not None and option.of_remote and kind not in option.kinds:
            raise UsageError(f"{key}{place} means nothing to a remote of type {kind}")
    return RemoteSection(kind, _settings(table, allowed, ("type",), place))


def _mount(name: str, table: dict[str, object], path: Path) -> MountSection:
    place = f" in [mounts.{name}] of {path}"
    allowed = [option for option in MOUNT_OPTIONS if not option.once_only]
    settings = _settings(table, allowed, ("source", "mountpoint"), place)
    source, mountpoint = table.get("source"), table.get("mountpoint")
    if not isinstance(source, str):
        raise UsageError(f'there is no source{place} — for example source = "s3://photos"')
    if mountpoint is not None and not isinstance(mountpoint, str):
        raise UsageError(f'mountpoint{place} must be a string — for example "/mnt/photos"')
    return MountSection(source, mountpoint, settings)


def _settings(
    table: dict[str, object],
    allowed: list[Option[object]],
    others: tuple[str, ...],
    place: str,
) -> tuple[Setting, ...]:
    known = {option.name: option for option in allowed}
    settings = []
    for key, value in table.items():
        if dashed(key) in known:
            option = known[dashed(key)]
            settings.append(_setting(option, key, value, place))
        elif key not in others:
            raise _unknown_key(key, (*others, *(option.key for option in allowed)), place)
    return tuple(settings)


def _setting(option: Option[object], key: str, value: object, place: str) -> Setting:
    spelling = f"{key} = {{}}"
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, int | float) and option.parse is not parse_mode:
        text = str(value)
    else:
        # 644 and 0o644 cannot be told apart once TOML has read them, so modes are strings.
        raise UsageError(f'{key}{place} must be a string — for example {key} = "{option.example}"')
    return Setting(option.name, text, Origin.FILE, spelling, place)


def _unknown_key(key: str, known: tuple[str, ...], place: str) -> UsageError:
    if is_secret(key):
        return UsageError(f"{key}{place} is refused: {CREDENTIALS}, never from this file")
    return UsageError(f"unknown key {key}{place}{suggestion(key, known)}")
