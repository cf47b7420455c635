"""The two buckets of ``cachefs sync``: named on the command line, or configured, each with its own keys."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cachefs.cli.command import Call
from cachefs.config import MountConfig, mount_config, read_config_file
from cachefs.config.mount import cache_id
from cachefs.config.options import BY_NAME
from cachefs.config.settings import Origin, Setting
from cachefs.config.sync import IN, OUT, Side, read_pair
from cachefs.core.errors import CachefsError, StoreError, UsageError
from cachefs.core.source import Source, StoreKind
from cachefs.remote.open import open_store
from cachefs.remote.retry import Retrying

_NAME: Final = "sync.ini"


@dataclass(frozen=True, slots=True)
class End:
    """One of the two buckets, and how it is reached."""

    config: MountConfig
    environ: Mapping[str, str]
    """Where a Swift's credentials are looked for."""

    @property
    def source(self) -> Source:
        """The bucket."""
        return self.config.source

    def shares_server(self, other: "End") -> bool:
        """Whether one server shows both to the same credentials, so that it can copy by itself."""
        kind = self.source.kind
        if kind is not other.source.kind or kind not in (StoreKind.S3, StoreKind.SWIFT):
            return False
        if not self.source.bucket or not other.source.bucket:
            return False
        return _account(self) == _account(other)


class Unusable(CachefsError):
    """One of the two buckets cannot be used, for the reason that is its cause."""

    def __init__(self, end: End, error: StoreError) -> None:
        super().__init__(str(error))
        self.end = end
        self.error = error


def settings_path(call: Call) -> Path:
    """Return the file that ``configure`` writes."""
    if call.arguments.settings:
        return call.environment.absolute(call.arguments.settings)
    return call.environment.config_dir / _NAME


def ends(call: Call) -> tuple[End, End]:
    """Return the source and the target that are meant. Raise ``UsageError`` if none are, or they are one."""
    arguments = call.arguments
    path = settings_path(call)
    if arguments.source and not arguments.target:
        raise UsageError(
            f"there is no bucket to copy {arguments.source} to — name it behind: "
            "cachefs sync copy s3://FROM s3://TO"
        )
    if arguments.source:
        sides, at = (Side(arguments.source), Side(arguments.target)), None
    else:
        pair = read_pair(path)
        if pair is None:
            raise UsageError(
                "no buckets are configured — run cachefs sync configure, or name them: "
                "cachefs sync copy s3://FROM s3://TO"
            )
        sides, at = (pair.source, pair.target), path
    kinds = [_config(call, side, ()).source.kind for side in sides]
    given = call.given.settings
    source, target = (
        _end(call, side, _meant_for(given, kind, kinds), (at, section) if at else None)
        for side, kind, section in zip(sides, kinds, (IN, OUT), strict=True)
    )
    _require_apart(source, target)
    return source, target


def job_id(source: End, target: End, call: Call) -> str:
    """Return a name for the pair: different for different ones."""
    of_source = cache_id(source.source, source.config.store, call.environment)
    return f"{cache_id(target.source, target.config.store, call.environment)}-{of_source[-10:]}"


@contextmanager
def opened(end: End, *, copies_from: Source | None = None) -> Iterator[Retrying]:
    """Open a store, whose bucket must exist and let itself be listed, and close it in the end.

    Raise :class:`Unusable` otherwise.
    """
    store = open_store(
        end.source,
        end.config.store,
        timeout_s=end.config.timeout_s,
        environ=end.environ,
        copies_from=copies_from,
    )
    try:
        try:
            store.check()
        except StoreError as error:
            raise Unusable(end, error) from error
        yield store
    finally:
        store.close()


def _config(call: Call, side: Side, given: tuple[Setting, ...]) -> MountConfig:
    file = read_config_file(call.environment)
    return mount_config(side.bucket, None, given, file=file, environment=call.environment)


def _end(call: Call, side: Side, given: tuple[Setting, ...], kept: tuple[Path, str] | None) -> End:
    kind = _config(call, side, ()).source.kind
    config = _config(call, side, (*_settings(side, kind), *given))
    environ = call.environment.variables
    named = {setting.name for setting in given}
    if kept is None or not side.access or named & {"profile", "no-sign-request", "cloud"}:
        return End(config, environ)
    path, section = kept
    if config.source.kind is StoreKind.S3:
        store = replace(config.store, profile=section, credentials_file=str(path))
        return End(replace(config, store=store), environ)
    if config.source.kind is StoreKind.SWIFT:
        return End(config, _signing_in(side, environ))
    return End(config, environ)


def _settings(side: Side, kind: StoreKind) -> tuple[Setting, ...]:
    """Return what was configured beside the keys as if it had been given."""
    return tuple(
        Setting(name.replace("_", "-"), value, Origin.FILE, f"{name} = {{}}", " of sync configure")
        for name, value in side.more.items()
        # A Swift's is where it signs in, which no option tells.
        if name != "endpoint_url" or kind is StoreKind.S3
    )


def _signing_in(side: Side, environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables by which Swift's version 1 signs in with the keys of *side*."""
    auth = side.more.get("endpoint_url")
    if not auth:
        raise UsageError(
            f"where {side.bucket} signs in is not configured — run cachefs sync configure and give the address of "
            "its version 1 as endpoint URL, or use --cloud"
        )
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("OS_", "ST_")) or name == "OS_CACERT"
    }
    return {**kept, "ST_AUTH": auth, "ST_USER": side.access or "", "ST_KEY": side.secret or ""}


def _meant_for(
    given: tuple[Setting, ...], kind: StoreKind, kinds: list[StoreKind]
) -> tuple[Setting, ...]:
    """Return what of *given* means something to a store of *kind*, or to neither, which is an error then."""
    return tuple(
        setting
        for setting in given
        if kind in BY_NAME[setting.name].kinds
        or not any(each in BY_NAME[setting.name].kinds for each in kinds)
    )


def _account(end: End) -> tuple[object, ...]:
    store = end.config.store
    keys = _keys_of(end)
    return (store.endpoint_url, store.no_sign_request, store.cloud, keys, _signs_in(end))


def _signs_in(end: End) -> list[tuple[str, str]]:
    return sorted(item for item in end.environ.items() if item[0].startswith(("OS_", "ST_")))


def _keys_of(end: End) -> object:
    """Return what the keys are known by: those that were configured by themselves, others by where they are kept."""
    store = end.config.store
    if store.credentials_file is None:
        return store.profile
    pair = read_pair(Path(store.credentials_file))
    assert pair is not None
    side = pair.source if store.profile == IN else pair.target
    return side.access, side.secret


def _require_apart(source: End, target: End) -> None:
    one, other = source.source, target.source
    if not one.bucket or not other.bucket:
        raise UsageError("a sync is from one bucket to one bucket — name both")
    ours, theirs = _place(source), _place(target)
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise UsageError(f"{one} and {other} hold the same objects — name two that do not overlap")


def _place(end: End) -> str:
    """Return what the places of all its objects begin with."""
    source, store = end.source, end.config.store
    server, bucket = store.endpoint_url or "", source.bucket
    if source.kind is StoreKind.SWIFT:  # names of containers are those of an account
        server = repr((store.cloud, _signs_in(end)))
    if source.kind is StoreKind.FILE:
        bucket = os.path.realpath(bucket)
    return f"{source.kind}\0{server}\0{bucket}/{source.prefix}"
