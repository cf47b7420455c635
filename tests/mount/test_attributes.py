"""Attributes that programs set are kept with the object, and are seen from everywhere."""

import errno
import os
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore, S3Bucket

Mounting = Callable[..., Mount]
STORES = [
    "moto",
    "swift",
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("file", "radosgw")),
]


@pytest.fixture(scope="module", params=["file", "moto"])
def mount(
    request: pytest.FixtureRequest,
    new_store: Callable[[str], LiveStore],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Mount]:
    base = tmp_path_factory.mktemp("kept") / "mount"
    with Mount(new_store(request.param).target(), base, watchdog_s=280) as shared:
        yield shared


@pytest.fixture
def path(mount: Mount) -> Path:
    """A file of the test's own."""
    made = mount / f"file-{uuid.uuid4().hex[:8]}"
    mount.do(programs.write_file, made, b"content")
    return made


def errno_of(mount: Mount, call: Callable[..., object], *arguments: object) -> int | None:
    try:
        mount.do(call, *arguments)
    except OSError as error:
        return error.errno
    return None


def attributes(mount: Mount, path: Path) -> dict[str, bytes]:
    return {
        name: mount.do(os.getxattr, path, name, follow_symlinks=False)
        for name in mount.do(os.listxattr, path, follow_symlinks=False)
    }


# ---- extended attributes --------------------------------------------------------------------


def test_an_attribute_is_set_changed_and_removed(mount: Mount, path: Path) -> None:
    mount.do(os.setxattr, path, "user.color", b"red")
    mount.do(os.setxattr, path, "user.empty", b"")
    mount.do(os.setxattr, path, "user.color", b"\0\xff blue")
    assert attributes(mount, path) == {"user.color": b"\0\xff blue", "user.empty": b""}

    mount.do(os.removexattr, path, "user.color")
    assert attributes(mount, path) == {"user.empty": b""}
    assert errno_of(mount, os.removexattr, path, "user.color") == errno.ENODATA
    assert mount.do(programs.read_file, path) == b"content"


def test_an_attribute_is_made_or_replaced_as_the_flags_say(mount: Mount, path: Path) -> None:
    replace = errno_of(mount, os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE)
    assert replace == errno.ENODATA
    mount.do(os.setxattr, path, "user.a", b"1", os.XATTR_CREATE)
    assert errno_of(mount, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    mount.do(os.setxattr, path, "user.a", b"3", os.XATTR_REPLACE)
    assert attributes(mount, path) == {"user.a": b"3"}


def test_an_attribute_that_no_object_has_room_for_is_refused(mount: Mount, path: Path) -> None:
    mount.do(os.setxattr, path, "user.fits", b"x" * 1000)
    assert errno_of(mount, os.setxattr, path, "user.more", b"x" * 1000) == errno.ENOSPC
    assert errno_of(mount, os.setxattr, path, "user.more", b"x" * 65537) == errno.E2BIG
    assert errno_of(mount, os.setxattr, path, f"user.{'n' * 251}", b"x") == errno.ERANGE
    assert attributes(mount, path) == {"user.fits": b"x" * 1000}

    mount.do(programs.write_file, path, b"and it can still be written")
    mount.do(os.chmod, path, 0o600)
    assert attributes(mount, path) == {"user.fits": b"x" * 1000}


def test_attributes_of_other_kinds_are_not_supported(mount: Mount, path: Path) -> None:
    for name in ("security.x", "trusted.x", "system.y"):
        assert errno_of(mount, os.setxattr, path, name, b"x") == errno.ENOTSUP, name


def test_what_the_cache_tells_is_read_by_name_and_copied_by_nobody(
    mount: Mount, path: Path
) -> None:
    assert mount.do(os.getxattr, path, "user.cachefs.state") == b"cached"
    assert mount.do(os.listxattr, path) == []
    assert errno_of(mount, os.setxattr, path, "user.cachefs.state", b"x") == errno.EPERM


def test_an_attribute_set_while_the_file_is_written_goes_with_it(mount: Mount, path: Path) -> None:
    fd = mount.do(os.open, path, os.O_WRONLY)
    mount.do(os.pwrite, fd, b"CONTENT", 0)
    mount.do(os.setxattr, path, "user.while", b"open")
    mount.do(os.pwrite, fd, b"!", 7)
    mount.do(os.close, fd)
    mount.remount()
    assert attributes(mount, path) == {"user.while": b"open"}
    assert mount.do(programs.read_file, path) == b"CONTENT!"


def test_attributes_follow_a_rename(mount: Mount, path: Path) -> None:
    mount.do(os.setxattr, path, "user.a", b"1")
    other = path.with_name(f"{path.name}-renamed")
    mount.do(os.rename, path, other)
    assert attributes(mount, other) == {"user.a": b"1"}


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_attributes_are_seen_by_another_mount(store: LiveStore, mounting: Mounting) -> None:
    with mounting(store.target(), name="one") as one:
        one.do(programs.write_file, one / "file", b"x")
        one.do(os.mkdir, one / "dir")
        one.do(os.setxattr, one / "file", "user.long", b"l" * 900)
        one.do(os.setxattr, one / "dir", "user.café".encode(), b"d")
    with mounting(store.target(), name="two") as two:
        assert attributes(two, two / "file") == {"user.long": b"l" * 900}
        assert attributes(two, two / "dir") == {"user.café": b"d"}


# ---- modes and times, while both mounts live ------------------------------------------------


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_chmod_of_another_mount_is_seen_although_the_content_is_the_same(
    store: LiveStore, mounting: Mounting
) -> None:
    with (
        mounting(store.target(), name="one") as one,
        mounting(store.target(), "--metadata-ttl", "0", name="two") as two,
    ):
        one.do(programs.write_file, one / "file", b"x")
        assert stat.S_IMODE(two.do(os.stat, two / "file").st_mode) == 0o644
        one.do(os.chmod, one / "file", 0o600)
        one.do(os.utime, one / "file", ns=(5, 1_600_000_000_123_456_789))

        found = two.do(os.stat, two / "file")

        assert stat.S_IMODE(found.st_mode) == 0o600
        assert found.st_mtime_ns == 1_600_000_000_123_456_789


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_a_chmod_that_the_store_refuses_changes_nothing(
    store: LiveStore, mounting: Mounting
) -> None:
    with store.proxy() as proxy, mounting(store.target(proxy), "--timeout", "2s") as mount:
        mount.do(programs.write_file, mount / "file", b"x")
        proxy.refuse()
        assert errno_of(mount, os.chmod, mount / "file", 0o600) is not None
        proxy.relay_again()
        assert stat.S_IMODE(mount.do(os.stat, mount / "file").st_mode) == 0o644


# ---- things that are no files ---------------------------------------------------------------


def test_a_fifo_passes_bytes_between_programs_and_outlives_the_mount(mount: Mount) -> None:
    fifo = mount / f"fifo-{uuid.uuid4().hex[:8]}"
    mount.do(os.mkfifo, fifo, 0o640)
    reader = mount.hands()
    reader.begin(programs.read_file, fifo)
    mount.do(programs.write_file, fifo, b"through")
    assert reader.finish(20) == b"through"
    mount.remount()
    found = mount.do(os.stat, fifo)
    assert stat.S_ISFIFO(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o640
    mount.do(os.unlink, fifo)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path, "/"))


def test_a_socket_is_bound_and_outlives_the_mount(mount: Mount) -> None:
    path = mount / f"s{uuid.uuid4().hex[:8]}"
    mount.do(os.chdir, "/")
    mount.do(_bind, path)
    mount.remount()
    assert stat.S_ISSOCK(mount.do(os.stat, path).st_mode)


def test_a_symbolic_link_keeps_its_target_to_the_byte(mount: Mount) -> None:
    link = mount / f"link-{uuid.uuid4().hex[:8]}"
    for target in (b"../a b/\xc3\xa9", b"t" * 1023, b" blanks around ", b"50%25", b"\xff\n"):
        mount.do(os.symlink, target, os.fsencode(link))
        mount.remount()
        assert mount.do(os.readlink, os.fsencode(link)) == target
        assert mount.do(os.lstat, link).st_size == len(target)
        mount.do(os.unlink, link)


# ---- the type of the content ----------------------------------------------------------------


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_the_type_of_a_new_file_is_that_of_its_name(store: S3Bucket, mounting: Mounting) -> None:
    with mounting(store.target()) as mount:
        for name in ("index.html", "photo.JPG", "all.tar.gz", "plain"):
            mount.do(programs.write_file, mount / name, b"x")
    assert {key: store.content_type(key) for key in store.keys()} == {  # noqa: SIM118
        "index.html": "text/html",
        "photo.JPG": "image/jpeg",
        "all.tar.gz": "application/gzip",
        "plain": "application/octet-stream",
    }
