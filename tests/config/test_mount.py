"""The configuration of one mount: who beats whom, and what is filled in."""

from pathlib import Path

import pytest

from cachefs.config import ConfigFile, Environment, MountConfig, mount_config
from cachefs.config.file import decode
from cachefs.config.given import read_dash_o
from cachefs.core.errors import UsageError
from cachefs.core.types import UploadMode

FILE = decode(
    b"""
[remotes.archive]
type = "s3"
endpoint_url = "http://remote:9000"
region = "remote"

[mounts.photos]
source = "archive:photos"
mountpoint = "/mnt/photos"
region = "mount"
cache_size = "1GiB"
timeout = 30
""",
    Path("/etc/cachefs/config.toml"),
)
USER = Environment({"HOME": "/home/u"}, uid=1000, gid=100, directory=Path("/work"))


def configured(
    target: str = "s3://photos",
    mountpoint: str | None = "/mnt",
    options: str = "",
    *,
    file: ConfigFile = FILE,
    environment: Environment = USER,
    **variables: str,
) -> MountConfig:
    given = read_dash_o(options)
    surroundings = Environment(
        {**environment.variables, **variables},
        environment.uid,
        environment.gid,
        environment.directory,
    )
    return mount_config(
        target,
        mountpoint,
        given.settings,
        file=file,
        environment=surroundings,
        kernel_options=given.kernel_options,
    )


def test_an_option_beats_the_environment_beats_the_mount_beats_the_remote_beats_the_default() -> (
    None
):
    assert configured("archive:b").store.region == "remote"
    assert configured("photos").store.region == "mount"
    assert configured("photos", CACHEFS_REGION="environment").store.region == "environment"
    assert (
        configured("photos", None, "region=option", CACHEFS_REGION="environment").store.region
        == "option"
    )
    assert configured("photos").cache_size == 2**30
    assert configured().cache_size == 10 * 2**30


def test_a_mount_of_the_file_is_known_by_its_name() -> None:
    config = configured("photos", None)

    assert str(config.source) == "s3://photos"
    assert config.mountpoint == Path("/mnt/photos")
    assert config.store.endpoint_url == "http://remote:9000"
    assert config.timeout_s == 30
    assert configured("photos", "elsewhere").mountpoint == Path("/work/elsewhere")


def test_the_defaults_are_those_of_the_contract() -> None:
    config = configured()

    assert config.min_free.percent == 5
    assert config.upload is UploadMode.CLOSE
    assert (
        config.upload_delay_s,
        config.metadata_ttl_s,
        config.negative_ttl_s,
        config.timeout_s,
    ) == (5, 60, 5, 60)
    assert config.policy == "gdsf"
    assert (config.conflict, config.attributes, config.fetch) == ("keep-both", "auto", "ahead")
    assert (config.store.part_size, config.store.transfers) == (8 * 2**20, 16)
    assert (config.uid, config.gid, config.file_mode, config.dir_mode) == (1000, 100, 0o644, 0o755)
    assert not config.read_only
    assert not config.allow_other


def test_the_umask_is_taken_from_both_modes() -> None:
    config = configured(options="umask=077,file_mode=0666,dir_mode=0777")

    assert (config.file_mode, config.dir_mode) == (0o600, 0o700)


def test_a_pool_is_kept_where_its_directory_is_named() -> None:
    assert configured().pool is None
    assert configured(CACHEFS_POOL_PORT="9999").pool is None  # it speaks to every mount at once
    pool = configured(options="pool=p,pool_port=9999,pool_push_from=/srv/a:b").pool
    assert pool is not None
    assert (pool.home, pool.port, pool.lease_s, pool.listen) == (
        *(Path("/work/p"), 9999),
        *(300, "127.0.0.1"),
    )
    assert pool.push_from == (Path("/work/p/tmp"), Path("/srv/a"), Path("/work/b"))


@pytest.mark.parametrize(
    ("options", "umask"),
    [
        ("", 0o077),
        ("allow_other", 0o022),
        ("allow_other,umask=007", 0o027),
        ("allow_other,file_mode=0600", 0o077),
    ],
)
def test_a_pool_shows_its_files_to_those_who_may_read_the_mounts(options: str, umask: int) -> None:
    pool = configured(options=f"pool=p,{options}").pool
    assert pool is not None
    assert pool.umask == umask


def test_the_cache_directory_is_named_after_the_store() -> None:
    here = configured("s3://photos/2024").cache_dir
    there = configured("s3://photos/2024", options="endpoint_url=http://other:9000").cache_dir

    assert here.parent == Path("/home/u/.cache/cachefs")
    assert here.name.startswith("s3-photos-2024-")
    assert there.name.startswith("s3-photos-2024-")
    assert here != there
    assert configured("s3://photos/2024", options="profile=other").cache_dir == here


def test_the_endpoint_of_the_sdk_names_the_cache_directory_too() -> None:
    by_variable = configured(AWS_ENDPOINT_URL="http://other:9000")
    by_option = configured(options="endpoint_url=http://other:9000")

    assert by_variable.cache_dir == by_option.cache_dir
    assert by_variable.store.endpoint_url == "http://other:9000"


def test_two_accounts_on_swift_do_not_share_a_cache() -> None:
    one = configured("swift://media", OS_PROJECT_NAME="one").cache_dir

    assert one != configured("swift://media", OS_PROJECT_NAME="two").cache_dir


def test_root_keeps_its_caches_below_var() -> None:
    config = configured(environment=Environment(uid=0))

    assert config.cache_dir.parent == Path("/var/cache/cachefs")


def test_xdg_moves_the_cache() -> None:
    assert configured(XDG_CACHE_HOME="/xdg").cache_dir.parent == Path("/xdg/cachefs")
    assert configured(XDG_CACHE_HOME="relative").cache_dir.parent == Path("/home/u/.cache/cachefs")


def test_the_region_that_other_sdks_read_is_read_too() -> None:
    assert configured(AWS_REGION="eu-north-1").store.region == "eu-north-1"
    assert configured(AWS_REGION="a", AWS_DEFAULT_REGION="b").store.region is None


def test_a_key_of_the_key_service_implies_its_encryption() -> None:
    assert configured(options="sse_kms_key_id=k").store.sse == "aws:kms"


def test_the_deadline_bounds_the_waits_within_it() -> None:
    store = configured(options="timeout=2s").store

    assert (store.connect_timeout_s, store.read_timeout_s) == (2, 2)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("cache_size=lots", "-o cache_size=lots is not a size — for example -o cache_size=50GiB"),
        (
            "cache_size=204800",
            "-o cache_size=204800 is 204800 bytes, less than the smallest cache, 1MiB — for example "
            "-o cache_size=50GiB",
        ),
        (
            "part_size=1",
            "-o part_size=1 is 1 bytes, less than the smallest part, 64KiB — for example -o part_size=8MiB",
        ),
        (
            "part_size=6GiB",
            "-o part_size=6GiB is more than a part may hold, 5GiB — for example -o part_size=8MiB",
        ),
        ("file_mode=rw", "-o file_mode=rw is not an octal mode — for example -o file_mode=0644"),
        (
            "upload=later",
            "-o upload=later is none of close, background — for example -o upload=close",
        ),
        (
            "endpoint_url=http://u:sEcReT@h",
            "-o endpoint_url=http://[hidden]@h holds a name or password; credentials never belong into a URL — "
            "for example -o endpoint_url=http://127.0.0.1:9000",
        ),
        ("cloud=c", "-o cloud=c means nothing to s3://photos — it is for swift"),
        (
            "pool=p,pool_port=70000",
            "-o pool_port=70000 is no port — for example -o pool_port=9999",
        ),
        (
            "pool=p,pool_lease=8d",
            "-o pool_lease=8d is not from 1 second to 7 days — for example -o pool_lease=5m",
        ),
        ("pool_lease=5m", "-o pool_lease=5m says nothing without a pool — add --pool HOMEDIR"),
    ],
)
def test_a_bad_value_is_told_in_the_words_of_whoever_gave_it(options: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        configured(options=options)

    assert str(caught.value) == line


def test_a_bad_value_in_the_environment_names_the_variable() -> None:
    with pytest.raises(UsageError) as caught:
        configured(CACHEFS_MIN_FREE="120%")

    assert str(caught.value) == (
        "CACHEFS_MIN_FREE=120% is not a percentage from 0 up to 100 — for example CACHEFS_MIN_FREE=5%"
    )


def test_a_bad_value_in_the_file_names_the_file() -> None:
    file = decode(b"[mounts.x]\nsource = 's3://b'\ntimeout = 'soon'", Path("/etc/c.toml"))

    with pytest.raises(UsageError) as caught:
        configured("x", file=file)

    assert str(caught.value) == (
        "timeout = soon in [mounts.x] of /etc/c.toml is not a duration — for example timeout = 60s"
    )


def test_the_environment_may_say_more_than_one_mount_understands() -> None:
    assert configured("file:///srv/objects", CACHEFS_PROFILE="p").store.profile == "p"


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("photo", "there is no [mounts.photo] in /etc/cachefs/config.toml — did you mean photos?"),
        (
            "zzz",
            "there is no [mounts.zzz] in /etc/cachefs/config.toml — for the bucket, write s3://zzz",
        ),
    ],
)
def test_a_name_that_is_no_mount_is_told(target: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        configured(target)

    assert str(caught.value) == line
