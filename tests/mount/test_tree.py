"""The operations of the tree, one by one, on a real mount, with the store's view of the outcome."""

import errno
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, wait_until
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]


@pytest.fixture(scope="module", params=["file", "moto", "swift"])
def kept(
    request: pytest.FixtureRequest,
    new_store: Callable[[str], LiveStore],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[LiveStore, Mount]]:
    """A store and a mount that the tests below share, each in a directory of its own."""
    store = new_store(request.param)
    base = tmp_path_factory.mktemp("kept") / "mount"
    with Mount(store.target(), base, watchdog_s=280) as mount:
        yield store, mount


@pytest.fixture
def mount(kept: tuple[LiveStore, Mount]) -> Mount:
    return kept[1]


@pytest.fixture
def here(kept: tuple[LiveStore, Mount], request: pytest.FixtureRequest) -> str:
    """A directory for one test, relative to the mount."""
    name = f"{request.node.originalname.removeprefix('test_')[:60]}-{uuid.uuid4().hex[:6]}"
    kept[1].do(os.mkdir, kept[1] / name)
    return str(name)


@pytest.fixture
def stored(kept: tuple[LiveStore, Mount], here: str) -> Callable[[], dict[str, bytes]]:
    """What the store holds below the test's directory."""

    def look() -> dict[str, bytes]:
        store = kept[0]
        return {key.removeprefix(f"{here}/"): store.get(key) for key in store.keys(f"{here}/")}

    return look


Stored = Callable[[], dict[str, bytes]]


def test_an_exclusive_create_makes_a_file_once(mount: Mount, here: str, stored: Stored) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    fd = mount.do(os.open, mount / here / "new", flags, 0o640)
    mount.do(os.write, fd, b"mine")
    mount.do(os.close, fd)

    with pytest.raises(FileExistsError):
        mount.do(os.open, mount / here / "new", flags)

    assert stored() == {"new": b"mine"}
    assert stat.S_IMODE(mount.do(os.stat, mount / here / "new").st_mode) == 0o640


def test_a_file_that_was_created_and_closed_without_a_write_is_there_and_empty(
    mount: Mount, here: str, stored: Stored
) -> None:
    mount.do(Path.touch, mount / here / "empty")

    assert stored() == {"empty": b""}
    assert mount.do(os.stat, mount / here / "empty").st_size == 0


def test_what_is_appended_comes_after_what_was_there(
    mount: Mount, here: str, stored: Stored
) -> None:
    path = mount / here / "log"
    mount.do(programs.write_file, path, b"one\n")
    mount.do(programs.append, path, b"two\n")
    mount.do(programs.append, path, b"three\n")

    assert mount.do(programs.read_file, path) == b"one\ntwo\nthree\n"
    assert stored() == {"log": b"one\ntwo\nthree\n"}


@pytest.mark.parametrize("offset", [0, 1, 4095, 99_999, 100_000, 250_000])
def test_a_write_at_any_offset_leaves_the_rest(
    mount: Mount, here: str, stored: Stored, offset: int
) -> None:
    path = mount / here / "file"
    before = programs.pattern("before", 0, 100_000)
    mount.do(programs.write_file, path, before)
    mount.do(programs.write_at, path, offset, b"X" * 10)
    expected = before[:offset].ljust(offset, b"\0") + b"X" * 10 + before[offset + 10 :]

    assert mount.do(programs.read_file, path) == expected
    assert stored() == {"file": expected}


@pytest.mark.parametrize("size", [0, 1, 5000, 100_000, 100_001, 300_000])
def test_truncate_cuts_and_extends_with_zeros(
    mount: Mount, here: str, stored: Stored, size: int
) -> None:
    path = mount / here / "file"
    before = programs.pattern("before", 0, 100_000)
    mount.do(programs.write_file, path, before)
    mount.do(os.truncate, path, size)
    expected = before[:size].ljust(size, b"\0")

    assert mount.do(os.stat, path).st_size == size
    assert mount.do(programs.read_file, path) == expected
    mount.run("sync", path)
    assert stored() == {"file": expected}


def test_an_open_file_can_be_truncated_and_written_on(
    mount: Mount, here: str, stored: Stored
) -> None:
    fd = mount.do(os.open, mount / here / "file", os.O_CREAT | os.O_RDWR, 0o644)
    mount.do(os.pwrite, fd, b"0123456789", 0)
    mount.do(os.ftruncate, fd, 4)
    mount.do(os.pwrite, fd, b"end", 8)
    assert mount.do(programs.read_fd, fd) == b"0123\0\0\0\0end"
    mount.do(os.close, fd)

    assert stored() == {"file": b"0123\0\0\0\0end"}


def test_what_one_handle_writes_another_reads_at_once(mount: Mount, here: str) -> None:
    path = mount / here / "file"
    writer = mount.do(os.open, path, os.O_CREAT | os.O_RDWR, 0o644)
    other = mount.hands()
    reader = other.do(os.open, path, os.O_RDONLY)

    mount.do(os.pwrite, writer, b"said", 0)

    assert other.do(os.pread, reader, 100, 0) == b"said"
    other.do(os.close, reader)
    mount.do(os.close, writer)


def test_fsync_returns_when_the_store_has_the_bytes(
    mount: Mount, here: str, stored: Stored
) -> None:
    fd = mount.do(os.open, mount / here / "file", os.O_CREAT | os.O_RDWR, 0o644)
    mount.do(os.write, fd, b"safe")

    mount.do(os.fsync, fd)

    assert stored() == {"file": b"safe"}
    mount.do(os.write, fd, b" and more")
    mount.do(os.close, fd)
    assert stored() == {"file": b"safe and more"}


def test_an_open_file_lives_on_without_its_name(mount: Mount, here: str, stored: Stored) -> None:
    path = mount / here / "file"
    mount.do(programs.write_file, path, b"still here")
    fd = mount.do(os.open, path, os.O_RDWR)

    mount.do(os.remove, path)

    assert mount.do(os.listdir, mount / here) == []
    with pytest.raises(FileNotFoundError):
        mount.do(os.stat, path)
    assert mount.do(os.pread, fd, 100, 0) == b"still here"
    mount.do(os.pwrite, fd, b"and written", 0)
    assert mount.do(programs.read_fd, fd) == b"and written"
    mount.do(os.close, fd)
    assert stored() == {}, "no upload brings a removed name back"


def test_a_new_file_may_take_the_name_of_one_that_is_removed_and_open(
    mount: Mount, here: str, stored: Stored
) -> None:
    path = mount / here / "file"
    mount.do(programs.write_file, path, b"first")
    fd = mount.do(os.open, path, os.O_RDWR)
    mount.do(os.remove, path)
    mount.do(programs.write_file, path, b"second")

    assert mount.do(programs.read_fd, fd) == b"first"
    assert mount.do(programs.read_file, path) == b"second"
    mount.do(os.pwrite, fd, b"gone", 0)
    mount.do(os.close, fd)
    assert stored() == {"file": b"second"}


def test_a_renamed_file_is_under_its_new_name_only(
    mount: Mount, here: str, stored: Stored
) -> None:
    mount.do(programs.write_file, mount / here / "old", b"content")

    mount.do(os.rename, mount / here / "old", mount / here / "new")

    assert mount.do(os.listdir, mount / here) == ["new"]
    assert mount.do(programs.read_file, mount / here / "new") == b"content"
    assert stored() == {"new": b"content"}


def test_a_rename_replaces_what_was_there(mount: Mount, here: str, stored: Stored) -> None:
    mount.do(programs.write_file, mount / here / "new", b"to be replaced")
    held = mount.do(os.open, mount / here / "new", os.O_RDONLY)
    mount.do(programs.write_file, mount / here / "old", b"content")

    mount.do(os.rename, mount / here / "old", mount / here / "new")

    assert mount.do(os.listdir, mount / here) == ["new"]
    assert mount.do(programs.read_file, mount / here / "new") == b"content"
    assert mount.do(programs.read_fd, held) == b"to be replaced"
    mount.do(os.close, held)
    assert stored() == {"new": b"content"}


def test_a_file_that_is_open_for_writing_can_be_renamed(
    mount: Mount, here: str, stored: Stored
) -> None:
    fd = mount.do(os.open, mount / here / "old", os.O_CREAT | os.O_WRONLY, 0o644)
    mount.do(os.write, fd, b"before ")
    mount.do(os.rename, mount / here / "old", mount / here / "new")
    mount.do(os.write, fd, b"after")
    mount.do(os.close, fd)

    assert mount.do(programs.read_file, mount / here / "new") == b"before after"
    assert stored() == {"new": b"before after"}


def test_a_renamed_directory_takes_all_that_is_below_it(
    mount: Mount, here: str, stored: Stored
) -> None:
    mount.do(os.makedirs, mount / here / "old/deep/er")
    for name in ("one", "deep/two", "deep/er/three"):
        mount.do(programs.write_file, mount / here / "old" / name, name.encode())

    mount.do(os.rename, mount / here / "old", mount / here / "new")

    expected = {name: name.encode() for name in ("one", "deep/two", "deep/er/three")}
    assert mount.do(programs.read_tree, mount / here / "new") == expected
    assert mount.do(os.listdir, mount / here) == ["new"]
    assert stored() == {f"new/{name}": content for name, content in expected.items()}


def test_a_rename_obeys_the_rules_of_names(mount: Mount, here: str) -> None:
    top = mount / here
    mount.do(os.makedirs, top / "full/inner")
    mount.do(os.mkdir, top / "empty")
    mount.do(programs.write_file, top / "file", b"x")

    with pytest.raises(IsADirectoryError):
        mount.do(os.rename, top / "file", top / "empty")
    with pytest.raises(NotADirectoryError):
        mount.do(os.rename, top / "empty", top / "file")
    with pytest.raises(OSError, match="not empty"):
        mount.do(os.rename, top / "empty", top / "full")
    with pytest.raises(FileNotFoundError):
        mount.do(os.rename, top / "nothing", top / "else")
    with pytest.raises(OSError, match="Invalid argument"):
        mount.do(os.rename, top / "full", top / "full/inner/self")
    mount.do(os.rename, top / "full", top / "empty")
    assert sorted(mount.do(os.listdir, top)) == ["empty", "file"]
    assert mount.do(os.listdir, top / "empty") == ["inner"]


def test_directories_are_made_and_removed(mount: Mount, here: str, stored: Stored) -> None:
    top = mount / here
    mount.do(os.mkdir, top / "a")
    with pytest.raises(FileExistsError):
        mount.do(os.mkdir, top / "a")
    mount.do(programs.write_file, top / "a/file", b"x")

    with pytest.raises(OSError, match="not empty") as refusal:
        mount.do(os.rmdir, top / "a")
    assert refusal.value.errno == errno.ENOTEMPTY
    with pytest.raises(IsADirectoryError):
        mount.do(os.remove, top / "a")
    with pytest.raises(NotADirectoryError):
        mount.do(os.rmdir, top / "a/file")
    mount.do(os.remove, top / "a/file")
    assert mount.do(os.listdir, top) == ["a"], "a directory outlives its last file"
    mount.do(os.rmdir, top / "a")

    assert mount.do(os.listdir, top) == []
    assert stored() == {}


def test_what_is_not_there_is_said_to_be_not_there(mount: Mount, here: str) -> None:
    mount.do(programs.write_file, mount / here / "file", b"x")

    with pytest.raises(FileNotFoundError):
        mount.do(os.stat, mount / here / "nothing")
    with pytest.raises(FileNotFoundError):
        mount.do(os.open, mount / here / "no/where", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(NotADirectoryError):
        mount.do(os.stat, mount / here / "file/below")
    with pytest.raises(FileNotFoundError):
        mount.do(os.remove, mount / here / "nothing")


def test_a_name_may_be_255_bytes_long_and_no_longer(
    mount: Mount, here: str, stored: Stored
) -> None:
    mount.do(programs.write_file, mount / here / ("n" * 255), b"x")
    assert stored() == {"n" * 255: b"x"}

    with pytest.raises(OSError, match="too long") as refusal:
        mount.do(programs.write_file, mount / here / ("n" * 256), b"x")
    assert refusal.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize(
    "name",
    [" ", "a b", "ü", "u\u0308", "漢字", "-rf", "#?&%41+=;", "..a", "a\\b", "*", "~"],
)
def test_an_odd_name_is_kept_as_it_is(mount: Mount, here: str, stored: Stored, name: str) -> None:
    mount.do(programs.write_file, mount / here / name, name.encode())

    assert mount.do(os.listdir, mount / here) == [name]
    assert mount.do(programs.read_file, mount / here / name) == name.encode()
    assert stored() == {name: name.encode()}
    mount.do(os.rename, mount / here / name, mount / here / f"{name}2")
    assert stored() == {f"{name}2": name.encode()}
    mount.do(os.remove, mount / here / f"{name}2")
    assert stored() == {}


@pytest.mark.parametrize("store", ["file", "radosgw", "swift"], indirect=True)
def test_a_name_may_hold_a_newline(store: LiveStore, mounting: Mounting) -> None:
    # moto, alone, cannot route such a key.
    with mounting(store.target()) as mount:
        mount.do(programs.write_file, mount / "a\nb", b"x")
        mount.do(os.rename, mount / "a\nb", mount / "c\nd")
        assert mount.do(os.listdir, mount.mountpoint) == ["c\nd"]
        assert mount.do(programs.read_file, mount / "c\nd") == b"x"

    assert store.view() == {"c\nd": b"x"}


def test_modes_and_times_are_shown_at_once(mount: Mount, here: str) -> None:
    path = mount / here / "file"
    mount.do(programs.write_file, path, b"x")
    mount.do(os.chmod, path, 0o604)
    mount.do(os.utime, path, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))

    found = mount.do(os.stat, path)
    assert stat.S_IMODE(found.st_mode) == 0o604
    assert found.st_mtime_ns == 1_100_000_000_987_654_321
    assert found.st_nlink == 1


def test_a_directory_of_many_files_is_listed_whole(mount: Mount, here: str) -> None:
    names = {f"file{i:03}" for i in range(150)}
    mount.run("sh", "-c", "seq -f file%03g 0 149 | xargs touch", below=here)

    assert set(mount.do(os.listdir, mount / here)) == names
    assert len(mount.run("ls", "-l", below=here).stdout.splitlines()) == 151


# ---- what must outlive the mount


@pytest.mark.parametrize("store", ["file", "moto", "radosgw", "swift"], indirect=True)
@pytest.mark.parametrize("cache", ["same", "new"])
def test_modes_owners_and_times_outlive_the_mount(
    store: LiveStore, mounting: Mounting, cache: str
) -> None:
    times = (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
    with mounting(store.target(), name="first") as mount:
        mount.do(os.mkdir, mount / "dir")
        mount.do(programs.write_file, mount / "dir/file", b"content")
        mount.do(os.chown, mount / "dir/file", 1234, 4321)
        # After the change of owner, which takes the set-user-id bit away.
        mount.do(os.chmod, mount / "dir/file", 0o4711)
        mount.do(os.utime, mount / "dir/file", ns=times)
        mount.do(os.chmod, mount / "dir", 0o700)
        assert mount.umount().returncode == 0
        if cache == "same":
            mount.start()
            _check_attributes(mount, times)
    if cache == "new":
        with mounting(store.target(), name="second") as mount:
            _check_attributes(mount, times)
    assert store.view() == {"dir/file": b"content"}


def _check_attributes(mount: Mount, times: tuple[int, int]) -> None:
    found = mount.do(os.stat, mount / "dir/file")
    assert stat.S_IMODE(found.st_mode) == 0o4711
    assert (found.st_uid, found.st_gid) == (1234, 4321)
    assert (found.st_atime_ns, found.st_mtime_ns) == times
    assert stat.S_IMODE(mount.do(os.stat, mount / "dir").st_mode) == 0o700


@pytest.mark.parametrize(
    "store",
    [
        "moto",
        "swift",
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("file", "radosgw")),
    ],
    indirect=True,
)
def test_a_directorys_attributes_that_another_mount_changes_are_seen(
    store: LiveStore, mounting: Mounting
) -> None:
    # A marker's ETag is the same for ever on S3 and Swift: only the time at which it was stored moves on.
    with (
        mounting(store.target(), name="one") as one,
        mounting(store.target(), "--metadata-ttl", "0", name="other") as other,
    ):
        one.do(os.mkdir, one / "dir")
        before = other.do(os.stat, other / "dir")
        wait_until(lambda: time.time_ns() > before.st_ctime_ns + 10**9, "a later second")

        one.do(os.chmod, one / "dir", 0o711)
        one.do(os.utime, one / "dir", ns=(1, 1_100_000_000_987_654_321))

        found = other.do(os.stat, other / "dir")
        assert stat.S_IMODE(found.st_mode) == 0o711
        assert found.st_mtime_ns == 1_100_000_000_987_654_321
        assert found.st_ino == before.st_ino


@pytest.mark.parametrize("store", ["file", "moto", "swift"], indirect=True)
def test_an_empty_directory_outlives_the_mount(store: LiveStore, mounting: Mounting) -> None:
    with mounting(store.target(), name="first") as mount:
        mount.do(os.makedirs, mount / "a/b")
        assert mount.umount().returncode == 0

    with mounting(store.target(), name="second") as mount:
        assert mount.do(os.listdir, mount / "a") == ["b"]
        assert mount.do(os.listdir, mount / "a/b") == []
    assert store.view() == {}


@pytest.mark.parametrize("store", ["file", "moto", "swift"], indirect=True)
def test_objects_put_by_others_are_files_in_directories(
    store: LiveStore, mounting: Mounting
) -> None:
    content = {"top": b"1", "a/b/c": b"2", "a/d": b"", "x y/ü": b"3"}
    for key, value in content.items():
        store.put(key, value)

    with mounting(store.target()) as mount:
        assert sorted(mount.do(os.listdir, mount.mountpoint)) == ["a", "top", "x y"]
        assert mount.do(programs.read_tree, mount.mountpoint) == content
        assert stat.S_ISDIR(mount.do(os.stat, mount / "a/b").st_mode)


@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_a_prefix_is_mounted_as_a_tree_of_its_own(store: LiveStore, mounting: Mounting) -> None:
    store.put("in/side/file", b"seen")
    store.put("outside", b"not seen")
    target = store.target().below("in/side")

    with mounting(target) as mount:
        assert mount.do(programs.read_tree, mount.mountpoint) == {"file": b"seen"}
        mount.do(programs.write_file, mount / "new", b"written")

    assert store.view() == {
        "in/side/file": b"seen",
        "in/side/new": b"written",
        "outside": b"not seen",
    }


@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_without_a_bucket_every_bucket_is_a_directory(
    store: LiveStore, new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    other = new_store(store.name)
    store.put("one", b"1")
    other.put("dir/two", b"2")

    with mounting(store.target().everything()) as mount:
        names = mount.do(os.listdir, mount.mountpoint)
        assert {store.bucket, other.bucket} <= set(names)
        assert mount.do(programs.read_file, mount / store.bucket / "one") == b"1"
        assert mount.do(programs.read_file, mount / other.bucket / "dir/two") == b"2"
        mount.do(programs.write_file, mount / other.bucket / "dir/three", b"3")
        with pytest.raises(OSError, match=r"[Cc]ross-device") as refusal:
            mount.do(os.rename, mount / store.bucket / "one", mount / other.bucket / "one")
        assert refusal.value.errno == errno.EXDEV

    assert other.view() == {"dir/two": b"2", "dir/three": b"3"}
    assert store.view() == {"one": b"1"}


@pytest.mark.parametrize("store", ["file", "moto"], indirect=True)
def test_a_mount_for_reading_takes_no_writes(store: LiveStore, mounting: Mounting) -> None:
    store.put("file", b"content")

    with mounting(store.target(), "--read-only") as mount:
        assert mount.do(programs.read_file, mount / "file") == b"content"
        steps: list[Callable[[], object]] = [
            lambda: mount.do(programs.write_file, mount / "new", b"x"),
            lambda: mount.do(programs.append, mount / "file", b"x"),
            lambda: mount.do(os.mkdir, mount / "dir"),
            lambda: mount.do(os.remove, mount / "file"),
            lambda: mount.do(os.rename, mount / "file", mount / "else"),
        ]
        for step in steps:
            with pytest.raises(OSError, match=r"[Rr]ead-only") as refusal:
                step()
            assert refusal.value.errno == errno.EROFS

    assert store.view() == {"file": b"content"}
