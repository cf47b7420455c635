"""What must hold before a mount begins; where it does not, one line, and nothing created."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefs.cli.checks import (
    Machine,
    check_allow_other,
    check_apart,
    check_fuse,
    check_mountpoint,
)
from cachefs.config import ConfigFile, Environment, MountConfig, mount_config
from cachefs.config.given import read_dash_o
from cachefs.core.errors import UsageError
from cachefs.preparing import check_cache_dir
from tests.cli.running import Done, cachefs, contents

ME = Environment({"HOME": "/nonexistent"}, uid=os.geteuid(), gid=os.getegid())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("store", "drive"):
        (tmp_path / name).mkdir()
    return tmp_path


def mount(home: Path, *words: str | Path, source: str = "", mountpoint: str = "drive") -> Done:
    given = source or f"file://{home}/store"
    return cachefs(
        "mount",
        given,
        home / mountpoint,
        "--cache-dir",
        home / "cache",
        "--timeout",
        "3s",
        *words,
        home=home,
    )


def refused(home: Path, done: Done, line: str, *, code: int = 2, source: str = "") -> None:
    given = source or f"file://{home}/store"
    assert done.err == f"cachefs: cannot mount {given}: {line}\n".replace("HOME", str(home))
    assert (done.code, done.out) == (code, "")
    assert not (home / "cache").exists()
    assert not (home / "run").exists()


def test_the_mountpoint_must_exist(home: Path) -> None:
    done = mount(home, mountpoint="none")

    refused(home, done, "the mountpoint HOME/none does not exist — create it: mkdir -p HOME/none")
    assert not (home / "none").exists()


def test_the_mountpoint_must_be_a_directory(home: Path) -> None:
    (home / "file").touch()

    refused(
        home,
        mount(home, mountpoint="file"),
        "the mountpoint HOME/file is not a directory — name an empty directory",
    )


def test_the_mountpoint_must_be_empty(home: Path) -> None:
    (home / "drive" / "something").touch()

    refused(home, mount(home), "the mountpoint HOME/drive is not empty — name an empty directory")


def test_nothing_may_be_mounted_there(home: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_mountpoint(Path("/proc"), ME)

    assert str(caught.value) == (
        "/proc is already a mount (of proc) — unmount it first: cachefs umount /proc"
    )


def test_a_link_to_a_mount_is_seen_through(home: Path) -> None:
    (home / "link").symlink_to("/proc")

    with pytest.raises(UsageError, match="is already a mount"):
        check_mountpoint(home / "link", ME)


def test_the_mountpoint_is_known_without_links(home: Path) -> None:
    (home / "link").symlink_to("drive/")

    assert check_mountpoint(home / "link", ME) == home / "drive"


def test_fusermount3_is_needed_by_all_but_root(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_fuse(Environment(uid=1000), Machine(path=str(tmp_path)))

    assert str(caught.value) == (
        "fusermount3 is not installed — install the package fuse3, or mount as root"
    )
    device = tmp_path / "fuse"
    device.touch()
    check_fuse(Environment(uid=0), Machine(fuse_device=device, path=str(tmp_path)))


def test_the_fuse_device_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_fuse(Environment(uid=0), Machine(fuse_device=tmp_path / "fuse"))

    assert str(caught.value) == (
        f"there is no {tmp_path}/fuse — load the module (modprobe fuse), or give the container the device"
    )


def test_others_are_let_in_only_where_the_administrator_allows_it(tmp_path: Path) -> None:
    conf = tmp_path / "fuse.conf"
    conf.write_text("# user_allow_other lets users do it\n#user_allow_other\n")
    with pytest.raises(UsageError, match="--allow-other is for root alone here"):
        check_allow_other(Environment(uid=1000), Machine(fuse_conf=conf))
    with pytest.raises(UsageError, match="--allow-other is for root alone here"):
        check_allow_other(Environment(uid=1000), Machine(fuse_conf=tmp_path / "none"))
    check_allow_other(Environment(uid=0), Machine(fuse_conf=conf))

    conf.write_text("mount_max = 10\nuser_allow_other\n")

    check_allow_other(Environment(uid=1000), Machine(fuse_conf=conf))


def test_a_cache_directory_that_others_may_read_is_refused(home: Path) -> None:
    (home / "cache").mkdir(mode=0o755)
    (home / "cache").chmod(0o755)

    done = mount(home)

    assert done.code == 2
    assert done.err == (
        f"cachefs: cannot mount file://{home}/store: the cache directory {home}/cache is open to other users "
        f"(mode 0755) — close it: chmod 700 {home}/cache\n"
    )
    assert contents(home / "cache") == []


def test_a_cache_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    with pytest.raises(UsageError, match="belongs to another user"):
        check_cache_dir(tmp_path, Environment(uid=os.geteuid() + 1))


def test_a_cache_directory_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to(tmp_path)

    with pytest.raises(UsageError, match="is a symbolic link"):
        check_cache_dir(tmp_path / "cache", ME)


def test_a_cache_directory_that_is_a_file_is_refused(home: Path) -> None:
    (home / "file").touch()

    with pytest.raises(UsageError, match="is not a directory"):
        check_cache_dir(home / "file", ME)
    with pytest.raises(UsageError, match=r"cannot be created|cannot be used"):
        check_cache_dir(home / "file" / "cache", ME)


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A private directory in which nothing can be created, even by root."""
    if os.geteuid():
        tmp_path.chmod(0o500)
        yield tmp_path
        tmp_path.chmod(0o700)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,mode=700", "none", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_cache_directory_that_cannot_be_written_is_refused(unwritable: Path) -> None:
    with pytest.raises(UsageError) as caught:
        check_cache_dir(unwritable, ME)
    assert str(caught.value) == (
        f"the cache directory {unwritable} is not writable — name another by --cache-dir"
    )

    with pytest.raises(UsageError) as caught:
        check_cache_dir(unwritable / "cache", ME)
    assert str(caught.value) == (
        f"the cache directory {unwritable}/cache cannot be created: {unwritable} is not writable — "
        "name another by --cache-dir"
    )


def config(target: str, mountpoint: Path, options: str) -> MountConfig:
    return mount_config(
        target,
        str(mountpoint),
        read_dash_o(options).settings,
        file=ConfigFile(),
        environment=ME,
    )


@pytest.mark.parametrize(
    ("source", "mountpoint", "options"),
    [
        ("file:///a/store", "/a/drive", "cache_dir=/a/drive/cache"),
        ("file:///a/store", "/a/cache/drive", "cache_dir=/a/cache"),
        ("file:///a/drive", "/a/drive", "cache_dir=/c"),
        ("file:///a", "/a/drive", "cache_dir=/c"),
        ("file:///a/drive/store", "/a/drive", "cache_dir=/c"),
        ("file:///a/store", "/a/drive", "cache_dir=/a/store/cache"),
        ("file:///c/store", "/a/drive", "cache_dir=/c"),
        ("s3://b", "/a/drive", "cache_dir=/c,log_file=/a/drive/log"),
    ],
)
def test_mountpoint_cache_and_store_are_kept_apart(
    source: str, mountpoint: str, options: str
) -> None:
    with pytest.raises(UsageError, match="keep them apart"):
        check_apart(config(source, Path(mountpoint), options), Path(mountpoint))


def test_what_is_apart_passes() -> None:
    check_apart(
        config("file:///a/store", Path("/a/drive"), "cache_dir=/a/cache"), Path("/a/drive")
    )


def test_a_log_file_must_have_a_place(home: Path) -> None:
    done = mount(home, "--log-file", home / "none" / "log")

    refused(home, done, "the log file HOME/none/log cannot be created: there is no HOME/none")


@pytest.mark.parametrize("how", [[], ["-f"]], ids=["background", "foreground"])
def test_a_missing_store_is_told_and_nothing_is_created(home: Path, how: list[str]) -> None:
    done = mount(home, *how, source=f"file://{home}/none")

    refused(
        home,
        done,
        "no such directory — create it, or check the name",
        code=3,
        source=f"file://{home}/none",
    )


@pytest.mark.parametrize("how", [[], ["-f"]], ids=["background", "foreground"])
def test_an_endpoint_where_nobody_listens_is_told(home: Path, how: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    done = cachefs(
        *("mount", "s3://photos", home / "drive", "--cache-dir", home / "cache"),
        *(
            "--endpoint-url",
            f"http://127.0.0.1:{port}",
            "--force-path-style",
            "--timeout",
            "1s",
            *how,
        ),
        home=home,
        AWS_ACCESS_KEY_ID="AKIAABCDEFGHIJKLMNOP",
        AWS_SECRET_ACCESS_KEY="very-secret-indeed",
        AWS_DEFAULT_REGION="us-east-1",
    )

    assert done.code == 4
    assert done.err.startswith(
        f"cachefs: cannot mount s3://photos: cannot reach the store at http://127.0.0.1:{port}: "
    )
    assert done.err.endswith(" — check the address and the network\n")
    assert done.err.count("\n") == 1
    assert "very-secret-indeed" not in done.err
    assert not (home / "cache").exists()
