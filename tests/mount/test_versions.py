"""An object that another client replaces or removes while programs read it here: one version, or an error."""

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.mount import programs
from tests.mount.harness import Mount, Stuck
from tests.mount.proxy import CutBody, HoldRequest, Proxy
from tests.mount.stores import LiveStore

Mounting = Callable[..., Mount]

MIB: Final = 1 << 20
SIZE: Final = 4 * MIB
OLD, NEW = (programs.pattern(seed, 0, SIZE) for seed in ("old", "new"))
STORES = [
    "moto",
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("swift", "radosgw", "file")),
]
DEMAND = ("--metadata-ttl", "0", "--part-size", "1MiB", "--fetch", "demand")


def read_range(fd: int, offset: int, length: int) -> bytes | int:
    """The bytes, or the number of the error."""
    try:
        return os.pread(fd, length, offset)
    except OSError as error:
        return error.errno or -1


def is_of_old(found: bytes | int, offset: int) -> bool:
    """Whether it is of the first version, or says that this is gone."""
    return found == errno.ESTALE or found == OLD[offset : offset + len(found)]  # type: ignore[arg-type]


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_a_handle_keeps_its_version_and_a_new_one_gets_the_new(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", OLD)
    with mounting(store.target(), *DEMAND) as mount:
        readers = [mount.hands() for _ in range(3)]
        fds = [reader.do(os.open, mount / "file", os.O_RDONLY) for reader in readers]
        for turn, (reader, fd) in enumerate(zip(readers, fds, strict=True)):
            assert reader.do(read_range, fd, turn * MIB, 4096) == OLD[turn * MIB :][:4096]
        store.put("file", NEW)

        assert mount.do(programs.read_file, mount / "file") == NEW
        found = [
            reader.do(read_range, fd, offset, MIB // 2)
            for reader, fd in zip(readers, fds, strict=True)
            for offset in range(0, SIZE, MIB // 2)
        ]
        offsets = list(range(0, SIZE, MIB // 2)) * len(fds)
        assert all(map(is_of_old, found, offsets))
        assert errno.ESTALE in found, "what was not here yet is gone"
        for turn, (reader, fd) in enumerate(zip(readers, fds, strict=True)):
            kept = reader.do(read_range, fd, turn * MIB, 4096)
            assert kept == OLD[turn * MIB :][:4096], "what was read once is still there"
            reader.do(os.close, fd)
        assert mount.do(programs.read_file, mount / "file") == NEW
        assert mount.status()["conflicts"] == []


def _replace_during_fetch(store: LiveStore, proxy: Proxy, mount: Mount) -> list[bytes | int]:
    """Let readers ask for all parts, and replace the object when the first request is at the proxy."""
    rule = proxy.on(lambda e: store.is_object(e, "GET", "file"), HoldRequest())
    readers = [mount.hands() for _ in range(4)]
    for turn, reader in enumerate(readers):
        fd = reader.do(os.open, mount / "file", os.O_RDONLY)
        reader.begin(read_range, fd, turn * MIB, MIB)
    rule.wait_reached()
    store.put("file", NEW)
    rule.lift()
    return [reader.finish(60) for reader in readers]


@pytest.mark.parametrize("store", STORES[:-1], indirect=True)
def test_an_object_that_is_replaced_during_a_fetch_is_never_read_as_a_mixture(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", OLD)
    options = ("--metadata-ttl", "0", "--part-size", "1MiB", "--timeout", "30s")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        found = _replace_during_fetch(store, proxy, mount)
        assert all(map(is_of_old, found, range(0, SIZE, MIB)))
        assert errno.ESTALE in found
        assert mount.do(programs.read_file, mount / "file") == NEW


def _append_blindly(path: Path, line: bytes) -> None:
    """Add *line*, without a question after the length."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)


def _with_a_version_that_the_next_open_finds(store: LiveStore, mount: Mount) -> bytes:
    """Let the kernel have a length from a listing that it may believe for long, and which is not true any more."""
    store.put("log", b"one\n")
    assert mount.do(os.listdir, mount.mountpoint) == ["log"]
    newest = b"one\nof another machine\n"
    store.put("log", newest)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        mount.do(programs.read_file, mount / "log")  # which asks for the version of the listing
    return newest


@pytest.mark.parametrize("store", STORES[:-1], indirect=True)
def test_what_is_added_to_a_version_that_only_the_open_finds_follows_its_end(
    store: LiveStore, mounting: Mounting
) -> None:
    with mounting(store.target(), "--metadata-ttl", "1h") as mount:
        newest = _with_a_version_that_the_next_open_finds(store, mount)
        mount.do(_append_blindly, mount / "log", b"two\n")
        assert store.get("log") == newest + b"two\n"


@pytest.mark.soak
@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_what_is_fetched_again_after_a_cut_is_of_the_same_version_or_an_error(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", OLD)
    options = ("--metadata-ttl", "0", "--fetch", "whole", "--part-size", "8MiB")
    with store.proxy() as proxy, mounting(store.target(proxy), *options) as mount:
        again = HoldRequest()
        held = proxy.on(lambda e: store.is_object(e, "GET", "file"), again)
        cut = proxy.on(lambda e: store.is_object(e, "GET", "file"), CutBody(MIB), times=1)
        reader = mount.hands()
        fd = reader.do(os.open, mount / "file", os.O_RDONLY)
        reader.begin(read_range, fd, 0, SIZE)
        cut.wait_reached()
        held.wait_reached()  # it asks again, for a version that is about to go
        store.put("file", NEW)
        held.lift()
        assert reader.finish(60) == errno.ESTALE
        reader.do(os.close, fd)
        assert mount.do(programs.read_file, mount / "file") == NEW


_mapped: dict[str, mmap.mmap] = {}


def map_read_only(path: Path) -> None:
    """Map the whole file, and keep it mapped."""
    with path.open("rb") as file:
        _mapped[str(path)] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_mapped(path: Path, offset: int, length: int) -> bytes:
    """Read the memory that is the file; where its bytes cannot be had, SIGBUS ends the process."""
    return _mapped[str(path)][offset : offset + length]


@pytest.mark.soak
@pytest.mark.parametrize("store", ["moto", "file"], indirect=True)
def test_a_mapping_shows_the_version_that_was_mapped_or_ends_its_program(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", OLD)
    with mounting(store.target(), *DEMAND) as mount:
        whole, part = mount.hands(), mount.hands()
        for reader in (whole, part):
            reader.do(map_read_only, mount / "file")
        assert part.do(read_mapped, mount / "file", 0, 4096) == OLD[:4096]
        assert whole.do(read_mapped, mount / "file", MIB, MIB) == OLD[MIB : 2 * MIB]
        store.put("file", NEW)
        assert mount.do(programs.read_file, mount / "file") == NEW

        assert whole.do(read_mapped, mount / "file", MIB, MIB) == OLD[MIB : 2 * MIB]
        part.begin(read_mapped, mount / "file", 3 * MIB, 4096)
        with pytest.raises(Stuck, match="has ended"):  # SIGBUS, and not a page of the other
            part.finish(30)


# ---- removed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES, indirect=True)
def test_readers_of_a_file_that_another_removed_go_on_with_what_is_here(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("d/whole", OLD)
    store.put("d/part", OLD)
    store.put("d/other", b"")
    with mounting(store.target(), *DEMAND) as mount:
        reader = mount.hands()
        whole = reader.do(os.open, mount / "d/whole", os.O_RDONLY)
        part = reader.do(os.open, mount / "d/part", os.O_RDONLY)
        assert reader.do(programs.read_fd, whole) == OLD
        assert reader.do(read_range, part, 0, 4096) == OLD[:4096]
        store.delete("d/whole")
        store.delete("d/part")

        assert mount.do(programs.outcome_of_stat, mount / "d/whole") == errno.ENOENT
        assert mount.do(os.listdir, mount / "d") == ["other"]
        assert reader.do(programs.read_fd, whole) == OLD
        assert reader.do(read_range, part, 0, 4096) == OLD[:4096]
        assert reader.do(read_range, part, 3 * MIB, 4096) == errno.ESTALE
        reader.do(os.close, whole)
        reader.do(os.close, part)
        assert mount.status()["dirty"] == mount.status()["conflicts"] == []


@pytest.mark.soak
@pytest.mark.parametrize("store", ["moto", "swift"], indirect=True)
def test_a_dirty_file_that_another_removed_is_one_conflict_and_no_endless_try(
    store: LiveStore, mounting: Mounting
) -> None:
    store.put("file", b"base")
    with store.proxy() as proxy, mounting(store.target(proxy), "--conflict", "theirs") as mount:
        fd = mount.do(os.open, mount / "file", os.O_RDWR)
        mount.do(os.pwrite, fd, b"mine", 0)
        store.delete("file")
        proxy.forget()
        assert mount.do(programs.errno_of_close, fd) == 0
        mount.wait_clean()
        assert len(store.asked(proxy, "PUT")) <= 1
        assert mount.do(programs.outcome_of_stat, mount / "file") == errno.ENOENT
        assert len(mount.status()["conflicts"]) == 1
    assert store.view() == {}
