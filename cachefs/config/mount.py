"""The configuration of one mount: gathered by precedence, checked, filled up, frozen."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cachefs.config import options
from cachefs.config.addresses import parse_source
from cachefs.config.environment import Environment
from cachefs.config.file import ConfigFile
from cachefs.config.given import read_environment
from cachefs.config.option import Group, Option, T_co
from cachefs.config.options import LogFormat
from cachefs.config.pool import PoolConfig
from cachefs.config.quantities import Space
from cachefs.config.settings import Origin, Setting, suggestion
from cachefs.core.errors import UsageError
from cachefs.core.eviction import Policy
from cachefs.core.source import Source, StoreKind, StoreOptions
from cachefs.core.types import AttributeMode, ConflictPolicy, FetchMode, UploadMode

_SMALLEST_CACHE = 2**20
_SMALLEST_PART = 64 * 2**10
_LARGEST_PART = 5 * 2**30  # S3's own limit


@dataclass(frozen=True, slots=True)
class MountConfig:
    """Everything that was said about one mount, and the defaults for what was not."""

    source: Source
    mountpoint: Path | None
    """Absolute. None: only the store and the cache are meant (``cachefs recover``)."""
    store: StoreOptions
    cache_dir: Path
    cache_size: int
    min_free: Space
    upload: UploadMode
    upload_delay_s: float
    policy: Policy
    conflict: ConflictPolicy
    metadata_ttl_s: float
    negative_ttl_s: float
    attributes: AttributeMode
    fetch: FetchMode
    timeout_s: float
    offline_reads: bool
    read_only: bool
    allow_other: bool
    uid: int
    gid: int
    file_mode: int
    dir_mode: int
    log_file: Path | None
    log_format: LogFormat
    trace: Path | None
    audit: Path | None
    foreground: bool
    pool: PoolConfig | None = None
    """None: the mount keeps none."""
    kernel_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Values:
    """The winning setting of each option; reading one says in the operator's words what is wrong with it."""

    settings: dict[str, Setting]

    def get(self, option: Option[T_co]) -> T_co | None:
        """Return the value of *option*, or None if it has none and no default."""
        setting = self.settings.get(option.name)
        if setting is None:
            return None if option.default is None else option.parse(option.default)
        try:
            return option.parse(setting.value)
        except ValueError as error:
            raise setting.wrong(str(error), option.example) from None

    def require(self, option: Option[T_co]) -> T_co:
        """Return the value of *option*, which has a default."""
        value = self.get(option)
        if value is None:
            raise UsageError(
                f"--{option.name} is missing — for example --{option.name} {option.example}"
            )
        return value


def mount_config(
    target: str,
    mountpoint: str | None,
    given: tuple[Setting, ...],
    *,
    file: ConfigFile,
    environment: Environment,
    kernel_options: tuple[str, ...] = (),
) -> MountConfig:
    """Return the configuration of the mount of *target*: a source, or the name of a ``[mounts.NAME]``."""
    section = file.mounts.get(target)
    source, remote = _source(target, section.source if section else None, file)
    settings = {
        setting.name: setting
        for layer in (
            file.remotes[remote].settings if remote else (),
            section.settings if section else (),
            read_environment(environment),
            given,
        )
        for setting in layer
    }
    where = mountpoint or (section.mountpoint if section else None)
    _check_kinds(source, settings)
    return _frozen(Values(settings), source, where, environment, kernel_options)


def cache_id(source: Source, store: StoreOptions, environment: Environment) -> str:
    """Return the name of the default cache directory: readable, and different for different stores.

    The endpoint belongs to it, for two servers may have a bucket of one name; so does what chooses the account
    on Swift, where containers are per account. A profile does not: a bucket has one owner, and whoever comes
    back with other credentials must find the uploads that wait.
    """
    identity = [str(source), store.endpoint_url or ""]
    if source.kind is StoreKind.SWIFT:
        named = (
            "OS_STORAGE_URL",
            "OS_AUTH_URL",
            "OS_PROJECT_ID",
            "OS_PROJECT_NAME",
            "ST_AUTH",
            "ST_USER",
        )
        identity += [store.cloud or "", *(environment.get(name) or "" for name in named)]
    digest = hashlib.sha256("\0".join(identity).encode(errors="surrogateescape")).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", str(source)).strip("-.")
    return f"{slug[:48].strip('-.')}-{digest[:10]}"


def _source(target: str, configured: str | None, file: ConfigFile) -> tuple[Source, str | None]:
    if configured is not None:
        return parse_source(configured, file.remote_kinds)
    looks_like_a_name = not set(target) & set(":/#")
    if looks_like_a_name and target:
        place = str(file.path) if file.path else "any configuration file"
        hint = suggestion(target, file.mounts) or f" — for the bucket, write s3://{target}"
        raise UsageError(f"there is no [mounts.{target}] in {place}{hint}")
    return parse_source(target, file.remote_kinds)


def _check_kinds(source: Source, settings: dict[str, Setting]) -> None:
    for setting in settings.values():
        option = options.BY_NAME[setting.name]
        # The environment speaks to every mount at once, so it may say more than this one understands.
        if source.kind not in option.kinds and setting.origin is not Origin.ENVIRONMENT:
            kinds = " and ".join(sorted(kind.value for kind in option.kinds))
            raise UsageError(f"{setting.said} means nothing to {source} — it is for {kinds}")


def _frozen(
    values: Values,
    source: Source,
    mountpoint: str | None,
    environment: Environment,
    kernel_options: tuple[str, ...],
) -> MountConfig:
    store = _store_options(values, source, environment)
    cache_dir = values.get(options.CACHE_DIR)
    log_file = values.get(options.LOG_FILE)
    trace = values.get(options.TRACE)
    audit = values.get(options.AUDIT)
    unmasked = ~values.require(options.UMASK)
    return MountConfig(
        source=source,
        mountpoint=environment.absolute(mountpoint) if mountpoint else None,
        store=store,
        cache_dir=environment.absolute(cache_dir)
        if cache_dir
        else environment.cache_root / cache_id(source, store, environment),
        cache_size=_at_least(
            values, options.CACHE_SIZE, _SMALLEST_CACHE, "the smallest cache, 1MiB"
        ),
        min_free=values.require(options.MIN_FREE),
        upload=values.require(options.UPLOAD),
        upload_delay_s=values.require(options.UPLOAD_DELAY),
        policy=values.require(options.POLICY),
        conflict=values.require(options.CONFLICT),
        metadata_ttl_s=values.require(options.METADATA_TTL),
        negative_ttl_s=values.require(options.NEGATIVE_TTL),
        attributes=values.require(options.ATTRIBUTES),
        fetch=values.require(options.FETCH),
        timeout_s=values.require(options.TIMEOUT),
        offline_reads=values.require(options.OFFLINE_READS),
        read_only=values.require(options.READ_ONLY),
        allow_other=values.require(options.ALLOW_OTHER),
        uid=_given_or(values.get(options.UID), environment.uid),
        gid=_given_or(values.get(options.GID), environment.gid),
        file_mode=values.require(options.FILE_MODE) & unmasked,
        dir_mode=values.require(options.DIR_MODE) & unmasked,
        log_file=environment.absolute(log_file) if log_file else None,
        log_format=values.require(options.LOG_FORMAT),
        trace=environment.absolute(trace) if trace else None,
        audit=environment.absolute(audit) if audit else None,
        foreground=values.require(options.FOREGROUND),
        pool=_pool(values, environment),
        kernel_options=kernel_options,
    )


def _pool(values: Values, environment: Environment) -> PoolConfig | None:
    home = values.get(options.POOL)
    if home is None:
        for setting in values.settings.values():
            is_of_pool = options.BY_NAME[setting.name].group is Group.POOL
            if is_of_pool and setting.origin is not Origin.ENVIRONMENT:
                raise UsageError(
                    f"{setting.said} says nothing without a pool — add --pool HOMEDIR"
                )
        return None
    directory = environment.absolute(home)
    return PoolConfig(
        home=directory,
        port=values.get(options.POOL_PORT),
        lease_s=values.require(options.POOL_LEASE),
        push_from=(
            directory / "tmp",
            *map(environment.absolute, values.get(options.POOL_PUSH_FROM) or ()),
        ),
        umask=_umask_of_pool(values),
    )


def _umask_of_pool(values: Values) -> int:
    """Let those read what the pool shows who may read files of the mount that have no mode of their own."""
    if not values.require(options.ALLOW_OTHER):
        return 0o077
    readable = values.require(options.FILE_MODE) & ~values.require(options.UMASK)
    return (0 if readable & 0o040 else 0o070) | (0 if readable & 0o004 else 0o007) | 0o022


def _store_options(values: Values, source: Source, environment: Environment) -> StoreOptions:
    timeout_s = values.require(options.TIMEOUT)
    key_id = values.get(options.SSE_KMS_KEY_ID)
    acl = values.get(options.ACL)
    known = StoreOptions()
    return StoreOptions(
        endpoint_url=values.get(options.ENDPOINT_URL) or _endpoint_of_sdk(source, environment),
        region=values.get(options.REGION) or _region_of_sdk(source, environment),
        profile=values.get(options.PROFILE),
        no_sign_request=values.require(options.NO_SIGN_REQUEST),
        force_path_style=values.require(options.FORCE_PATH_STYLE),
        checksums=values.require(options.CHECKSUMS).value,
        request_payer=values.require(options.REQUEST_PAYER),
        storage_class=values.get(options.STORAGE_CLASS),
        sse=values.get(options.SSE) or ("aws:kms" if key_id else None),
        sse_kms_key_id=key_id,
        acl=acl.value if acl else None,
        cloud=values.get(options.CLOUD),
        connect_timeout_s=min(known.connect_timeout_s, timeout_s),
        read_timeout_s=min(known.read_timeout_s, timeout_s),
        transfers=values.require(options.TRANSFERS),
        part_size=_part_size(values),
    )


def _endpoint_of_sdk(source: Source, environment: Environment) -> str | None:
    """Return the endpoint that boto3 would take from the environment.

    Said here already because the name of the cache directory depends on it.
    """
    ignored = (environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") or "").lower() == "true"
    if source.kind is not StoreKind.S3 or ignored:
        return None
    return environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")


def _region_of_sdk(source: Source, environment: Environment) -> str | None:
    """Return AWS_REGION, which every SDK reads but boto3, unless boto3 has its own word."""
    if source.kind is not StoreKind.S3 or environment.get("AWS_DEFAULT_REGION"):
        return None
    return environment.get("AWS_REGION")


def _part_size(values: Values) -> int:
    size = _at_least(values, options.PART_SIZE, _SMALLEST_PART, "the smallest part, 64KiB")
    if size > _LARGEST_PART:
        raise _wrong(values, options.PART_SIZE, "is more than a part may hold, 5GiB")
    return size


def _at_least(values: Values, option: Option[int], least: int, what: str) -> int:
    size = values.require(option)
    if size < least:
        raise _wrong(values, option, f"is {size} bytes, less than {what}")
    return size


def _wrong(values: Values, option: Option[int], reason: str) -> UsageError:
    return values.settings[option.name].wrong(reason, option.example)


def _given_or(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value
