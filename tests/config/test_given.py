"""Options as they are given on the command line, in -o, and in the environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config.environment import Environment
from cachefs.config.given import read_dash_o, read_environment, read_option, split_dash_o
from cachefs.config.options import BY_NAME, MOUNT_OPTIONS
from cachefs.config.settings import Origin
from cachefs.core.errors import UsageError


def said(text: str) -> list[tuple[str, str]]:
    return [(setting.name, setting.value) for setting in read_dash_o(text).settings]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", []),
        (
            "cache_size=5G,allow_other,ro",
            [("cache-size", "5G"), ("allow-other", "true"), ("read-only", "true")],
        ),
        ("cache-size=5G", [("cache-size", "5G")]),
        (
            "rw,_netdev,nofail,noauto,user,x-systemd.automount,x-foo=bar,defaults,comment=hi",
            [("read-only", "false")],
        ),
        ("_netdev,nosuid,nodev,nofail,rw,uid=1000", [("read-only", "false"), ("uid", "1000")]),
        (
            "allow_other,--file-mode=0666,--dir-mode=0777",
            [("allow-other", "true"), ("file-mode", "0666"), ("dir-mode", "0777")],
        ),
        (
            "allow_other,use_cache=/var/cache/s3fs",
            [("allow-other", "true"), ("cache-dir", "/var/cache/s3fs")],
        ),
        (
            "url=http://127.0.0.1:9000,use_path_request_style",
            [("endpoint-url", "http://127.0.0.1:9000"), ("force-path-style", "true")],
        ),
        (
            "endpoint=http://h,endpoint=eu-west-1",
            [("endpoint-url", "http://h"), ("region", "eu-west-1")],
        ),
        ("vfs_cache_max_size=100G,cache_dir=/c", [("cache-size", "100G"), ("cache-dir", "/c")]),
        ("vfs-cache-max-size=1024", [("cache-size", "1024KiB")]),
        ("max-cache-size=100", [("cache-size", "100MiB")]),
        ("ensure_diskfree=500", [("min-free", "500MiB")]),
        ("free_space_ratio=10", [("min-free", "10%")]),
        ("vfs_write_back=5s", [("upload", "background"), ("upload-delay", "5s")]),
        ("use_sse", [("sse", "AES256")]),
        ("use_sse=1", [("sse", "AES256")]),
        ("use_sse=kmsid:abc", [("sse", "aws:kms"), ("sse-kms-key-id", "abc")]),
        ("public_bucket=1", [("no-sign-request", "1")]),
        ("requester_pays", [("request-payer", "true")]),
        (r"profile=a\,b,region=x", [("profile", "a,b"), ("region", "x")]),
    ],
)
def test_an_option_list_in_the_ways_of_fstab_is_understood(
    text: str, settings: list[tuple[str, str]]
) -> None:
    assert said(text) == settings


def test_what_the_kernel_acts_on_is_kept_for_it() -> None:
    found = read_dash_o("noexec,noatime,ro")

    assert found.kernel_options == ("noexec", "noatime")
    assert [setting.name for setting in found.settings] == ["read-only"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("cache_siz=5G", "unknown option -o cache_siz — did you mean -o cache-size?"),
        ("frobnicate", "unknown option -o frobnicate — see cachefs mount --help"),
        ("cache_size", "-o cache_size needs a value — for example -o cache_size=50GiB"),
        (
            "use_sse=custom:/etc/key",
            "-o use_sse=custom:/etc/key is neither 1 nor kmsid[:KEY]; keys of one's own (SSE-C) are not "
            "supported — for example -o use_sse=1",
        ),
        (
            "secret_access_key=hunter2",
            "-o secret_access_key is refused: credentials are taken from where the SDKs look for them "
            "(AWS_* and OS_* variables, ~/.aws, clouds.yaml), never from the command line",
        ),
    ],
)
def test_a_bad_option_list_is_told_in_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_dash_o(text)

    assert str(caught.value) == line


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5))
def test_any_words_come_back_from_an_escaped_list(words: list[str]) -> None:
    escaped = ",".join(word.replace("\\", "\\\\").replace(",", "\\,") for word in words)

    assert list(split_dash_o(escaped)) == words


@given(st.text(max_size=30) | st.sampled_from(["a\nb=1", "cache\tsize", "{}", "{x}=2", "a\x00"]))
def test_any_option_list_is_read_or_refused_in_one_line(text: str) -> None:
    said_of_it = ""
    try:
        read_dash_o(text)
    except UsageError as error:
        said_of_it = str(error)

    assert said_of_it.isprintable()


@pytest.mark.parametrize("option", MOUNT_OPTIONS, ids=lambda option: option.name)
def test_the_example_and_the_default_of_every_option_are_valid(option: object) -> None:
    known = next(each for each in MOUNT_OPTIONS if each is option)

    known.parse(known.example)

    if known.default is not None:
        known.parse(known.default)


def test_no_name_stands_for_two_options() -> None:
    names = [option.name for option in MOUNT_OPTIONS]
    names += [alias.name for option in MOUNT_OPTIONS for alias in option.aliases]

    assert len(names) == len(set(names))
    assert all("_" not in name for name in names)


def test_every_option_but_those_of_one_start_is_read_from_the_environment() -> None:
    environment = Environment({option.variable: option.example for option in MOUNT_OPTIONS})

    found = {setting.name: setting for setting in read_environment(environment)}

    assert set(found) == set(BY_NAME) - {"foreground"}
    assert found["cache-size"].said == "CACHEFS_CACHE_SIZE=50GiB"


def test_an_option_that_takes_a_value_cannot_stand_alone() -> None:
    with pytest.raises(UsageError, match="--timeout needs a value — for example --timeout 60s"):
        read_option("timeout", None, Origin.COMMAND, "--timeout {}")
