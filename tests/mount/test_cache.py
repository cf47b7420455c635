"""The cache under a mount: its limit, what it saves, and what it does not make anybody wait for."""

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.mount import programs
from tests.mount.harness import Hands, Mount, wait_until
from tests.mount.proxy import BlackHole, Slow
from tests.mount.sampler import Sampler
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]
MIB = 1 << 20


@dataclass(frozen=True)
class Load:
    """How much eight readers do."""

    total: int
    seconds: float


SMALL = Load(192 * MIB, 5)
FULL = Load(1024 * MIB, 90)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("store", "load"),
    [
        pytest.param("file", SMALL, id="file"),
        pytest.param("radosgw", SMALL, id="radosgw"),
        *(
            pytest.param(name, FULL, id=f"{name}-full", marks=pytest.mark.soak)
            for name in ("file", "moto", "radosgw", "swift")
        ),
    ],
    indirect=["store"],
)
def test_the_cache_is_never_above_its_limit_and_never_evicts_an_open_file(
    store: LiveStore, load: Load, mounting: Mounting
) -> None:
    limit = 64 * MIB
    sizes = _fill(store, load.total)
    options = ("--cache-size", "64MiB", "--part-size", "1MiB", "--metadata-ttl", "600s")
    with mounting(store.target(), *options, watchdog_s=300, fresh=True) as mount:
        assert mount.process is not None
        holder, held = mount.hands(), [name for name in sizes if sizes[name] == 2 * MIB][:4]
        fds = [holder.do(os.open, mount / name, os.O_RDONLY) for name in held]
        first = [holder.do(programs.read_fd, fd) for fd in fds]
        fetched = _entries(mount, held)
        assert sorted(fetched) == held
        readers = [mount.hands() for _ in range(8)]
        with Sampler(mount.cache_dir, mount.process.pid) as sampler:
            for seed, one in enumerate(readers):
                one.begin(programs.read_while_holding, mount.mountpoint, sizes, seed, load.seconds)
            results = [one.finish(load.seconds + 60) for one in readers]
        assert _entries(mount, held) == fetched, "an open file's bytes were evicted"
        assert [holder.do(programs.read_fd, fd) for fd in fds] == first

    assert [wrong for _, wrong in results if wrong] == []
    assert [programs.pattern(name, 0, sizes[name]) for name in held] == first
    read = sum(count for count, _ in results)
    print(f"{read >> 20} MiB read, {sampler.samples} samples, peak {sampler.peak / MIB:.2f} MiB")
    assert sampler.samples > 20 * load.seconds
    assert sampler.peak > limit // 2, "the cache was used"
    assert sampler.peak - sampler.slack <= limit


def _fill(store: LiveStore, total: int) -> dict[str, int]:
    """Objects of 1 to 9 MiB, four of them of 2 MiB to begin with, together *total*."""
    sizes: dict[str, int] = {f"held{i}": 2 * MIB for i in range(4)}
    while sum(sizes.values()) < total:
        sizes[f"object{len(sizes)}"] = (1 + len(sizes) * 5 % 9) * MIB - len(sizes) % 3
    for name, size in sizes.items():
        store.put(name, programs.pattern(name, 0, size))
    return sizes


def _entries(mount: Mount, names: list[str]) -> dict[str, tuple[int, int]]:
    """The cache files of those objects, told by how they begin: their inodes, and the bytes they take."""
    wanted = {programs.pattern(name, 0, 4096): name for name in names}
    found = {}
    for top, _, files in os.walk(mount.cache_dir / "data"):
        for file in files:
            with contextlib.suppress(FileNotFoundError), open(f"{top}/{file}", "rb") as content:
                name = wanted.get(content.read(4096))
                if name is not None:
                    place = os.fstat(content.fileno())
                    found[name] = (place.st_ino, place.st_blocks * 512)
    return found


@pytest.mark.parametrize(
    "store", ["moto", "swift", pytest.param("radosgw", marks=pytest.mark.soak)], indirect=True
)
def test_a_second_mount_reads_everything_without_asking_for_an_object(
    store: LiveStore, mounting: Mounting
) -> None:
    content = {f"d{i % 3}/f{i}": programs.pattern(f"f{i}", 0, 40_000 * i + 1) for i in range(12)}
    for key, value in content.items():
        store.put(key, value)

    with store.proxy() as proxy, mounting(store.target(proxy), "--metadata-ttl", "1s") as mount:
        assert mount.do(programs.read_tree, mount.mountpoint) == content
        assert mount.stop() == 0
        proxy.forget()
        mount.start()
        assert mount.do(programs.read_tree, mount.mountpoint) == content
        assert store.asked(proxy, "GET") == []

        changed = programs.pattern("another version", 0, 70_000)
        store.put("d1/f4", changed)
        wait_until(
            lambda: mount.do(programs.read_file, mount / "d1/f4") == changed,
            "an open after the TTL sees the change",
        )
        assert mount.do(programs.read_tree, mount.mountpoint) == {**content, "d1/f4": changed}
        assert set(store.asked(proxy, "GET")) == {"d1/f4"}


@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_what_was_written_is_not_fetched_to_be_read(store: LiveStore, mounting: Mounting) -> None:
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        mount.do(programs.write_file, mount / "file", b"content")
        assert mount.do(programs.read_file, mount / "file") == b"content"
        mount.remount()
        assert mount.do(programs.read_file, mount / "file") == b"content"
        assert store.asked(proxy, "GET") == []


@pytest.mark.parametrize("store", ["file", "swift"], indirect=True)
def test_with_a_ttl_of_zero_every_open_sees_the_last_close(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", b"0")
    with mounting(store.target(), "--metadata-ttl", "0") as mount:
        for i in range(1, 6):
            assert mount.do(programs.read_file, mount / "file") == str(i - 1).encode()
            store.put("file", str(i).encode())
        store.delete("file")
        with pytest.raises(FileNotFoundError):
            mount.do(programs.read_file, mount / "file")


@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_an_open_handle_keeps_its_version(store: LiveStore, mounting: Mounting) -> None:
    old, new = programs.pattern("old", 0, 200_000), programs.pattern("new", 0, 200_000)
    store.put("file", old)
    with mounting(store.target(), "--metadata-ttl", "0") as mount:
        fd = mount.do(os.open, mount / "file", os.O_RDONLY)
        assert mount.do(programs.read_fd, fd) == old
        store.put("file", new)

        assert mount.do(programs.read_file, mount / "file") == new
        assert mount.do(programs.read_fd, fd) == old


@pytest.mark.parametrize("store", ["moto", "radosgw", "swift"], indirect=True)
def test_two_readers_of_one_object_cause_one_fetch(store: LiveStore, mounting: Mounting) -> None:
    content = programs.pattern("shared", 0, 6 * MIB)
    store.put("file", content)
    with store.proxy() as proxy, mounting(store.target(proxy), "--part-size", "1MiB") as mount:
        mount.do(os.stat, mount / "file")
        proxy.forget()
        with proxy.during(lambda e: store.is_object(e, "GET"), Slow(8 * MIB)):
            readers: list[Hands] = [mount.hands() for _ in range(4)]
            for one in readers:
                one.begin(programs.read_file, mount / "file")
            assert all(one.finish(30) == content for one in readers)

        fetched = sum(e.received for e in proxy.exchanges() if store.is_object(e, "GET"))
    assert fetched == len(content), "no byte came twice"


@pytest.mark.parametrize(
    ("store", "size"),
    [
        ("radosgw", 256 * MIB),
        ("swift", 256 * MIB),
        pytest.param("moto", 256 * MIB, marks=pytest.mark.soak),
        pytest.param("radosgw", 1024 * MIB, marks=pytest.mark.soak),
    ],
    indirect=["store"],
)
def test_the_first_bytes_of_a_large_object_do_not_wait_for_the_rest(
    store: LiveStore, size: int, mounting: Mounting
) -> None:
    store.put("large", programs.pattern("large", 0, 4 * MIB) * (size // (4 * MIB)))
    with store.proxy() as proxy, mounting(store.target(proxy)) as mount:
        mount.do(os.stat, mount / "large")
        # A line of 400 Mbit/s: loopback would hide who waits for what.
        with proxy.during(lambda e: store.is_object(e, "GET"), Slow(50 * MIB)):
            took, first = mount.do(programs.timed_read_at, mount / "large", 0, 128 * 1024)
            passed = sum(e.received for e in proxy.exchanges() if store.is_object(e, "GET"))

    print(f"128 KiB after {took:.3f} s and {passed / MIB:.1f} of {size / MIB:.0f} MiB")
    assert first == programs.pattern("large", 0, 128 * 1024)
    assert passed < size / 8
    assert took < size / (50 * MIB) / 4


@pytest.mark.parametrize("store", ["file", "moto", "radosgw"], indirect=True)
def test_a_file_larger_than_the_whole_cache_can_be_read(
    store: LiveStore, mounting: Mounting
) -> None:
    limit, size = 16 * MIB, 40 * MIB + 7
    store.put("large", programs.pattern("large", 0, size))
    options = ("--cache-size", "16MiB", "--part-size", "1MiB")
    with mounting(store.target(), *options, fresh=True) as mount:
        assert mount.process is not None
        with Sampler(mount.cache_dir, mount.process.pid) as sampler:
            assert mount.do(programs.wrong_ranges, mount / "large", "large", size) == []
            for offset in (0, size - 5, 3 * MIB + 1, 20 * MIB):
                expected = programs.pattern("large", offset, min(70_000, size - offset))
                assert mount.do(programs.read_at, mount / "large", offset, 70_000) == expected

    assert sampler.peak - sampler.slack <= limit


@pytest.mark.parametrize("upload", ["background", pytest.param("close", marks=pytest.mark.soak)])
@pytest.mark.parametrize("store", ["moto"], indirect=True)
def test_a_writer_who_fills_the_cache_while_nothing_can_be_uploaded_is_told_so_in_time(
    store: LiveStore, upload: str, mounting: Mounting
) -> None:
    store.put("here", b"cached")
    options = ("--cache-size", "16MiB", "--timeout", "2s", "--upload", upload)
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        assert mount.do(programs.read_file, mount / "here") == b"cached"
        with proxy.during(lambda e: e.method in {"PUT", "POST"}, BlackHole()):
            outcomes = [_timed_fill(mount, f"file{i}", 6 * MIB) for i in range(3)]
            assert errno.ENOSPC in {number for _, _, number in outcomes}, outcomes
            assert max(seconds for seconds, _, _ in outcomes) < 8
            assert mount.do(programs.read_file, mount / "here") == b"cached"
            assert "here" in mount.do(os.listdir, mount.mountpoint)
        mount.wait_clean()
        assert _timed_fill(mount, "later", 6 * MIB)[1:] == (6 * MIB, 0)
        mount.wait_clean()

    assert store.get("later") == programs.pattern("later", 0, 6 * MIB)


def _timed_fill(mount: Mount, name: str, size: int) -> tuple[float, int, int]:
    return mount.do(programs.timed_fill, mount / name, size)


@pytest.mark.parametrize("store", ["file", "moto"], indirect=True)
def test_a_writer_goes_on_as_uploads_make_room(store: LiveStore, mounting: Mounting) -> None:
    options = ("--cache-size", "16MiB", "--upload", "background", "--upload-delay", "1s")
    with mounting(store.target(), *options, fresh=True) as mount:
        assert mount.process is not None
        with Sampler(mount.cache_dir, mount.process.pid) as sampler:
            for i in range(12):
                assert _timed_fill(mount, f"file{i}", 5 * MIB)[1:] == (5 * MIB, 0)
        assert mount.umount().returncode == 0

    assert sampler.peak - sampler.slack <= 16 * MIB
    assert store.view() == {
        f"file{i}": programs.pattern(f"file{i}", 0, 5 * MIB) for i in range(12)
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change what the kernel reads ahead")
def test_the_kernel_asks_for_a_mebibyte_at_a_time(
    new_store: Callable[[str], LiveStore], mounting: Mounting
) -> None:
    with mounting(new_store("file").target()) as mount:
        setting = mount.kernel_setting("read_ahead_kb")
        wait_until(lambda: setting.read_text().strip() == "1024", "the read-ahead is raised")
