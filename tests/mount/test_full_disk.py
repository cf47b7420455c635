"""The disk of the cache directory is full, for real: what programs get, what is kept, and how it goes on."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount import programs
from tests.mount.full_disk import MIB, SmallDisk, small_disk
from tests.mount.harness import Mount, MountFailed, wait_until
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
SIZE = 40 * MIB


@pytest.fixture(params=["tmpfs", pytest.param("ext4", marks=pytest.mark.soak)])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(request.param, tmp_path, SIZE) as disk:
        yield disk


@pytest.fixture
def on_disk(disk: SmallDisk, mounting: Mounting) -> Callable[..., Mount]:
    """Makes a mount whose cache directory is on the small disk."""

    def make(store: LiveStore, *options: str) -> Mount:
        mount = mounting(store.target(), "--min-free", "0", *options)
        mount.cache_dir = disk.root / "cache"
        return mount

    return make


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["file", "moto"])
def test_what_is_read_passes_a_full_disk_by_and_is_cached_again_when_there_is_room(
    new_store: Callable[[str], LiveStore],
    disk: SmallDisk,
    on_disk: Callable[..., Mount],
    kind: str,
) -> None:
    store = new_store(kind)
    contents = {f"f{i}": programs.pattern(f"f{i}", 0, 3 * MIB) for i in range(4)}
    for key, content in contents.items():
        store.put(key, content)
    with on_disk(store) as mount:
        mount.do(os.listdir, mount.mountpoint)
        disk.fill()
        assert mount.do(programs.read_tree, mount.mountpoint) == contents
        assert mount.status()["cache"]["used"] < MIB
        disk.empty()

        def is_cached() -> bool:
            assert mount.do(programs.read_tree, mount.mountpoint) == contents
            return bool(mount.status()["cache"]["used"] >= 12 * MIB)

        wait_until(is_cached, "what is read is cached again")


@pytest.mark.soak
def test_what_is_cached_makes_room_for_what_is_written_on_a_full_disk(
    new_store: Callable[[str], LiveStore], disk: SmallDisk, on_disk: Callable[..., Mount]
) -> None:
    store = new_store("file")
    for i in range(8):
        store.put(f"f{i}", programs.pattern(f"f{i}", 0, 2 * MIB))
    with on_disk(store) as mount:
        mount.do(programs.read_tree, mount.mountpoint)
        disk.fill()
        assert mount.do(programs.fill, mount / "new", 6 * MIB) == (6 * MIB, 0)
        assert mount.status()["cache"]["evicted"] > 0
    assert store.get("new") == programs.pattern("new", 0, 6 * MIB)


@pytest.mark.parametrize("upload", [pytest.param("close", marks=pytest.mark.soak), "background"])
def test_a_writer_on_a_full_disk_gets_enospc_and_nothing_acknowledged_is_lost(
    new_store: Callable[[str], LiveStore],
    disk: SmallDisk,
    on_disk: Callable[..., Mount],
    upload: str,
) -> None:
    store = new_store("moto")
    with on_disk(store, "--upload", upload, "--upload-delay", "3600s") as mount:
        mount.do(programs.write_pattern, mount / "acknowledged", "a", 3 * MIB)
        mount.do(programs.write_file, mount / "short", b"short")
        writer = mount.hands()
        fd = writer.do(os.open, mount / "half", os.O_RDWR | os.O_CREAT)
        writer.do(os.pwrite, fd, programs.pattern("half", 0, 100_000), 0)
        disk.fill()

        # What the program is told that it could not write is not there, and what it wrote before is.
        with pytest.raises(OSError, match=r"No space left"):
            writer.do(programs.append, mount / "half", b"x" * 60 * MIB)
        size = writer.do(os.fstat, fd).st_size
        assert writer.do(os.pread, fd, 100_000, 0) == programs.pattern("half", 0, 100_000)
        if size > 100_000:
            assert writer.do(os.pread, fd, 1, size - 1) != b""
        assert mount.do(programs.fill, mount / "full", 8 * MIB)[1] == errno.ENOSPC
        assert mount.do(programs.wrong_ranges, mount / "acknowledged", "a", 3 * MIB) == []
        assert mount.do(programs.read_file, mount / "short") == b"short"
        mount.do(os.stat, mount.mountpoint)
        assert mount.status()["failed_tasks"] == 0

        disk.empty()
        writer.do(os.pwrite, fd, b"END", size)
        writer.do(os.close, fd)
        assert mount.do(programs.fill, mount / "full", 8 * MIB) == (8 * MIB, 0)
        mount.do(programs.append, mount / "short", b" and long")
        mount.flush()
        mount.wait_clean()
    assert store.get("acknowledged") == programs.pattern("a", 0, 3 * MIB)
    assert store.get("short") == b"short and long"
    assert store.get("full") == programs.pattern("full", 0, 8 * MIB)
    half = store.get("half")
    assert (half[:100_000], half[size:]) == (programs.pattern("half", 0, 100_000), b"END")


def test_uploads_settle_and_names_change_while_the_disk_is_full(
    new_store: Callable[[str], LiveStore], disk: SmallDisk, on_disk: Callable[..., Mount]
) -> None:
    store = new_store("file")
    with on_disk(store, "--upload", "background", "--upload-delay", "3600s") as mount:
        for i in range(20):
            mount.do(programs.write_file, mount / f"f{i}", str(i).encode() * 9000)
        disk.fill()
        mount.flush()
        mount.wait_clean()
        for i in range(10):
            mount.do(os.rename, mount / f"f{i}", mount / f"g{i}")
            mount.do(os.unlink, mount / f"f{i + 10}")
        assert sorted(mount.do(os.listdir, mount.mountpoint)) == [f"g{i}" for i in range(10)]
    assert store.view() == {f"g{i}": str(i).encode() * 9000 for i in range(10)}


@pytest.mark.soak
def test_a_close_does_not_claim_what_is_not_there_and_the_next_mount_has_what_was_acknowledged(
    new_store: Callable[[str], LiveStore], disk: SmallDisk, on_disk: Callable[..., Mount]
) -> None:
    store = new_store("file")
    with on_disk(store, "--upload", "background", "--upload-delay", "3600s") as mount:
        disk.fill()
        disk.give(4 * MIB)
        outcomes = {
            f"f{i}": mount.do(programs.fill, mount / f"f{i}", 900_000, 90_000) for i in range(12)
        }
        good = [name for name, outcome in outcomes.items() if outcome == (900_000, 0)]
        assert good
        assert {number for _, number in outcomes.values()} == {0, errno.ENOSPC}
        mount.kill()
        disk.give(2 * MIB)
        mount.start()
        mount.flush()
        mount.wait_clean(but_parked=True)
        for name in good:
            assert mount.do(programs.read_file, mount / name) == programs.pattern(name, 0, 900_000)
    assert all(store.get(name) == programs.pattern(name, 0, 900_000) for name in good)


@pytest.mark.soak
def test_a_log_on_a_full_disk_does_not_end_the_mount_and_goes_on_when_there_is_room(
    new_store: Callable[[str], LiveStore], disk: SmallDisk, on_disk: Callable[..., Mount]
) -> None:
    store = new_store("file")
    store.put("file", b"content")
    log = disk.root / "the.log"
    with on_disk(store, "--log-file", str(log), "-v") as mount:
        disk.fill()
        for _ in range(300):
            _say_something(mount)
        assert mount.do(programs.read_file, mount / "file") == b"content"
        disk.empty()
        _say_something(mount)
        wait_until(lambda: "lines could not be logged" in log.read_text(), "the log goes on")
    assert "Logging error" not in mount.log_text()


def _say_something(mount: Mount) -> None:
    """Do what is noted in the log of a mount that says much."""
    with contextlib.suppress(OSError):
        mount.do(os.removexattr, mount / "file", "user.nothing")


def test_a_mount_comes_up_on_a_full_disk_and_stores_what_was_acknowledged(
    new_store: Callable[[str], LiveStore], disk: SmallDisk, on_disk: Callable[..., Mount]
) -> None:
    store = new_store("file")
    with on_disk(store, "--upload", "background", "--upload-delay", "3600s") as mount:
        mount.do(programs.write_file, mount / "file", b"acknowledged")
        mount.kill()
        disk.fill()
        mount.start()
        assert mount.do(programs.read_file, mount / "file") == b"acknowledged"
        mount.flush()
        mount.wait_clean()
    assert store.view() == {"file": b"acknowledged"}


@pytest.mark.soak
def test_a_new_cache_directory_on_a_full_disk_is_refused_in_one_line(
    new_store: Callable[[str], LiveStore], disk: SmallDisk, on_disk: Callable[..., Mount]
) -> None:
    store = new_store("file")
    store.put("file", b"content")
    mount = on_disk(store)
    disk.fill()
    with pytest.raises(MountFailed, match=r"full|No space") as refusal:
        mount.start()
    assert refusal.value.returncode in {1, 2}
    assert "Traceback" not in refusal.value.stderr
    assert refusal.value.stderr.count("\n") == 1
    disk.empty()
    with mount:
        assert mount.do(programs.read_file, mount / "file") == b"content"
