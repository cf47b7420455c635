"""The bytes of files, as programs use them together: appended, mapped, cut, direct, executed, while much goes on."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mount import calls, programs
from tests.mount.harness import Mount
from tests.mount.stores import LiveStore

MIB: Final = 1 << 20
LINES: Final = 60


@pytest.fixture(
    scope="module", params=["close", pytest.param("background", marks=pytest.mark.soak)]
)
def kept(
    request: pytest.FixtureRequest,
    new_store: Callable[[str], LiveStore],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[LiveStore, Mount]]:
    """A store and a mount that the tests below share, each in a directory of its own."""
    store = new_store("radosgw")
    base = tmp_path_factory.mktemp("kept") / "mount"
    options = ("--upload", request.param, "--upload-delay", "1s")
    store.put("slow/file", programs.pattern("slow", 0, 12 * MIB))
    with Mount(store.target(), base, options, watchdog_s=280) as mount:
        yield store, mount


@pytest.fixture
def mount(kept: tuple[LiveStore, Mount]) -> Mount:
    return kept[1]


@pytest.fixture
def here(mount: Mount) -> Path:
    path = mount / f"test-{uuid.uuid4().hex[:8]}"
    mount.do(os.mkdir, path)
    return path


@pytest.fixture
def stored(kept: tuple[LiveStore, Mount], here: Path) -> Callable[[str], bytes]:
    """What the store has of a file, once all is uploaded."""

    def look(name: str) -> bytes:
        settle(kept[1])
        return kept[0].get(f"{here.name}/{name}")

    return look


Stored = Callable[[str], bytes]


def settle(mount: Mount) -> None:
    """Wait until the store has everything; where a close waits for that, it has."""
    if "background" in mount.options:
        mount.flush()
        mount.wait_clean()


def _append_lines(path: Path, who: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in range(LINES):
        os.write(fd, f"{who}:{number}:{'x' * (number % 50)}\n".encode())
    os.close(fd)


def test_lines_that_several_processes_append_are_all_there_and_whole(
    mount: Mount, here: Path, stored: Stored
) -> None:
    writers = [mount.hands() for _ in range(4)]
    for who, one in enumerate(writers):
        one.begin(_append_lines, here / "log", who)
    for one in writers:
        one.finish(60)

    lines = mount.do(programs.read_file, here / "log").decode().splitlines()
    wanted = [[f"{who}:{n}:{'x' * (n % 50)}" for n in range(LINES)] for who in range(4)]
    for who, own in enumerate(wanted):
        assert [line for line in lines if line.startswith(f"{who}:")] == own, "each in its order"
    assert len(lines) == 4 * LINES
    assert stored("log").decode().splitlines() == lines


def test_dd_changes_the_middle_and_leaves_the_rest(
    mount: Mount, here: Path, stored: Stored
) -> None:
    before = programs.pattern("before", 0, 300_000)
    mount.do(programs.write_file, here / "file", before)
    mount.do(programs.write_file, here / "piece", b"X" * 4096)

    words = ("if=piece", "of=file", "bs=4096", "seek=10", "conv=notrunc", "status=none")
    mount.run("dd", *words, below=here.name)

    expected = before[:40_960] + b"X" * 4096 + before[45_056:]
    assert mount.do(programs.read_file, here / "file") == expected
    assert stored("file") == expected


def _copy_range(source: Path, target: Path, start: int, length: int) -> None:
    with source.open("rb") as one, target.open("wb") as other:
        done = 0
        while done < length:
            count = os.copy_file_range(
                one.fileno(), other.fileno(), length - done, start + done, done
            )
            assert count
            done += count


def test_a_range_is_copied_from_file_to_file(mount: Mount, here: Path, stored: Stored) -> None:
    content = programs.pattern("content", 0, 200_000)
    mount.do(programs.write_file, here / "from", content)

    mount.do(_copy_range, here / "from", here / "to", 1000, 150_000)

    assert stored("to") == content[1000:151_000]


def test_a_sparse_file_is_copied_and_takes_no_room_for_its_holes(
    mount: Mount, here: Path, stored: Stored
) -> None:
    mount.run("truncate", "-s", "5M", "sparse", below=here.name)
    mount.do(programs.write_at, here / "sparse", 3 * MIB, b"island")
    mount.run("cp", "--sparse=always", "sparse", "copy", below=here.name)

    expected = bytes(3 * MIB) + b"island" + bytes(2 * MIB - 6)
    assert mount.do(programs.read_file, here / "copy") == expected
    assert stored("sparse") == expected
    assert stored("copy") == expected


def test_direct_access_and_the_page_cache_see_the_same_bytes(
    mount: Mount, here: Path, stored: Stored
) -> None:
    content = programs.pattern("content", 0, 16_384)
    mount.do(calls.write_directly, here / "file", 0, content)
    assert mount.do(programs.read_file, here / "file") == content
    mount.do(programs.write_at, here / "file", 4096, b"Y" * 4096)
    mount.do(calls.write_directly, here / "file", 8192, b"Z" * 4096)

    expected = content[:4096] + b"Y" * 4096 + b"Z" * 4096 + content[12_288:]
    assert mount.do(calls.read_directly, here / "file", 0, 16_384) == expected
    assert mount.do(programs.read_file, here / "file") == expected
    assert stored("file") == expected


def test_two_processes_share_the_memory_that_is_a_file(
    mount: Mount, here: Path, stored: Stored
) -> None:
    mount.do(programs.write_file, here / "file", bytes(10_000))
    one, other = mount.hands(), mount.hands()
    one.do(calls.map_shared, here / "file")
    other.do(calls.map_shared, here / "file")

    one.do(calls.poke, here / "file", 5000, b"from one")
    assert other.do(calls.peek, here / "file", 5000, 8) == b"from one"
    other.do(calls.poke, here / "file", 9990, b"from other")
    assert one.do(calls.peek, here / "file", 9990, 10) == b"from other"
    one.do(calls.unmap, here / "file")
    other.do(calls.unmap, here / "file")

    expected = bytes(5000) + b"from one" + bytes(4982) + b"from other"
    assert mount.do(programs.read_file, here / "file") == expected
    assert stored("file") == expected


def test_an_open_file_without_a_name_is_cut_and_grows_and_leaves_nothing(
    kept: tuple[LiveStore, Mount], mount: Mount, here: Path
) -> None:
    mount.do(programs.write_file, here / "file", b"0123456789")
    fd = mount.do(os.open, here / "file", os.O_RDWR)
    mount.do(os.remove, here / "file")

    mount.do(os.ftruncate, fd, 4)
    mount.do(os.ftruncate, fd, 8)
    mount.do(os.pwrite, fd, b"end", 8)
    mount.do(os.fsync, fd)

    assert mount.do(programs.read_fd, fd) == b"0123\0\0\0\0end"
    assert mount.do(os.fstat, fd).st_nlink == 0
    mount.do(os.close, fd)
    settle(mount)
    assert [key for key in kept[0].keys() if key.startswith(here.name)] == []  # noqa: SIM118


def test_a_program_is_executed_from_the_mount(mount: Mount, here: Path) -> None:
    source = shutil.which("env")
    assert source is not None
    mount.run("cp", source, here / "program")
    mount.run(
        "sh",
        "-c",
        "printf '#!/bin/sh\\necho from a script\\n' > script && chmod +x script",
        below=here.name,
    )

    assert mount.run(here / "program", "echo", "from a program").stdout == "from a program\n"
    assert mount.run(here / "script").stdout == "from a script\n"


def test_a_file_is_read_changed_and_renamed_by_several_handles_while_it_is_fetched(
    kept: tuple[LiveStore, Mount], mount: Mount
) -> None:
    store, path = kept[0], mount / "slow/file"
    size = 12 * MIB
    reader, writer = mount.hands(), mount.hands()
    read_fd = reader.do(os.open, path, os.O_RDONLY)  # which starts to fetch
    write_fd = writer.do(os.open, path, os.O_RDWR)
    mount.do(os.rename, path, mount / "slow/renamed")
    writer.do(os.pwrite, write_fd, b"changed", 5 * MIB)
    mount.do(os.rename, mount / "slow/renamed", mount / "slow/again")
    writer.do(os.fsync, write_fd)
    writer.do(os.ftruncate, write_fd, size - 100)

    before = programs.pattern("slow", 0, size)
    expected = before[: 5 * MIB] + b"changed" + before[5 * MIB + 7 : size - 100]
    assert reader.do(programs.read_fd, read_fd) == expected, "a handle is of the file, not a name"
    reader.do(os.close, read_fd)
    writer.do(os.close, write_fd)
    settle(mount)
    assert mount.do(os.listdir, mount / "slow") == ["again"]
    assert store.get("slow/again") == expected
