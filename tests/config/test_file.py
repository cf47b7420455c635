"""The configuration file: what it may hold, and what is said of what it may not."""

from pathlib import Path

import pytest

from cachefs.config.environment import Environment
from cachefs.config.file import decode, read_config_file
from cachefs.core.errors import UsageError
from cachefs.core.source import StoreKind

PATH = Path("/etc/cachefs/config.toml")

GOOD = b"""
[remotes.archive]
type = "s3"
endpoint_url = "http://127.0.0.1:9000"
profile = "default"

[remotes.media]
type = "swift"
cloud = "mycloud"

[mounts.photos]
source = "archive:photos"
mountpoint = "/mnt/photos"
cache_dir = "/var/cache/cachefs/photos"
cache-size = "50GiB"
transfers = 4
upload_delay = 2.5
read_only = true
"""


def test_a_good_file_is_read() -> None:
    file = decode(GOOD, PATH)

    assert file.remote_kinds == {"archive": StoreKind.S3, "media": StoreKind.SWIFT}
    assert file.mounts["photos"].source == "archive:photos"
    assert file.mounts["photos"].mountpoint == "/mnt/photos"
    assert {setting.name: setting.value for setting in file.mounts["photos"].settings} == {
        "cache-dir": "/var/cache/cachefs/photos",
        "cache-size": "50GiB",
        "transfers": "4",
        "upload-delay": "2.5",
        "read-only": "true",
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[mounts.x", "/etc/cachefs/config.toml is not valid TOML: "),
        (
            "[mount.x]",
            "unknown section [mount] in /etc/cachefs/config.toml — did you mean mounts?",
        ),
        (
            "zzz = 1",
            "unknown section [zzz] in /etc/cachefs/config.toml — it holds [remotes.NAME] and [mounts.NAME]",
        ),
        (
            "mounts = 1",
            "mounts in /etc/cachefs/config.toml must be tables — for example [mounts.photos]",
        ),
        (
            "[mounts.x]",
            'there is no source in [mounts.x] of /etc/cachefs/config.toml — for example source = "s3://photos"',
        ),
        (
            "[mounts.x]\nsource='s3://b'\ncache_siz='5G'",
            "unknown key cache_siz in [mounts.x] of /etc/cachefs/config.toml — did you mean cache_size?",
        ),
        (
            "[mounts.x]\nsource='s3://b'\nforeground=true",
            "unknown key foreground in [mounts.x] of /etc/cachefs/config.toml",
        ),
        (
            "[mounts.x]\nsource='s3://b'\nfile_mode=644",
            "file_mode in [mounts.x] of /etc/cachefs/config.toml must be a string — for example "
            'file_mode = "0644"',
        ),
        (
            "[mounts.x]\nsource='s3://b'\ncache_size=['5G']",
            "cache_size in [mounts.x] of /etc/cachefs/config.toml must be a string — for example "
            'cache_size = "50GiB"',
        ),
        (
            "[remotes.x]\nprofile='a'",
            'there is no type in [remotes.x] of /etc/cachefs/config.toml — for example type = "s3"',
        ),
        (
            "[remotes.x]\ntype='gcs'",
            "type = 'gcs' in [remotes.x] of /etc/cachefs/config.toml is none of s3, swift, file",
        ),
        (
            "[remotes.x]\ntype='s3'\ncloud='c'",
            "cloud in [remotes.x] of /etc/cachefs/config.toml means nothing to a remote of type s3",
        ),
        (
            "[remotes.x]\ntype='s3'\naws_secret_access_key='hunter2'",
            "aws_secret_access_key in [remotes.x] of /etc/cachefs/config.toml is refused: credentials are taken "
            "from where the SDKs look for them (AWS_* and OS_* variables, ~/.aws, clouds.yaml), never from this file",
        ),
    ],
)
def test_a_bad_file_is_told_in_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        decode(text.encode(), PATH)

    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_first_file_found_is_taken(tmp_path: Path) -> None:
    home = tmp_path / "cachefs"
    home.mkdir()
    (home / "config.toml").write_bytes(GOOD)

    file = read_config_file(Environment({"XDG_CONFIG_HOME": str(tmp_path)}))

    assert file.path == home / "config.toml"
    assert set(file.mounts) == {"photos"}


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no configuration file .*/none.toml"):
        read_config_file(Environment({"CACHEFS_CONFIG": str(tmp_path / "none.toml")}))


def test_a_directory_is_no_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the configuration file .*: Is a directory"):
        read_config_file(Environment({"CACHEFS_CONFIG": str(tmp_path)}))
