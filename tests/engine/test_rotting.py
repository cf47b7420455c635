"""A cache disk that does not give back what it was given: wrong bytes are never served, and never stored."""

import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.core.errors import BytesLost, Stale
from cachefs.core.types import Key
from cachefs.local.db import NAME
from cachefs.remote.memory import MemoryStore
from tests.contract.bodies import BytesBody
from tests.engine.rig import LATER, MIB, lose_answer, serving

CONTENT = bytes(range(256)) * (3 * MIB // 256) + b"the end"
Damage = Callable[[Path], None]


def flip(at: int) -> Damage:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    return damage


def cut(size: int) -> Damage:
    return lambda path: os.truncate(path, size)


def damage_all(directory: Path, damage: Damage) -> None:
    """Damage each file that holds content."""
    files = [path for path in (directory / "data").iterdir() if path.name.isdigit()]
    assert files
    for path in files:
        damage(path)


DAMAGES = {
    "first byte": flip(0),
    "in the middle": flip(MIB + 5),
    "last byte": flip(len(CONTENT) - 1),
    "cut": cut(2 * MIB),
    "emptied": cut(0),
    "gone": os.remove,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_what_rotted_while_nobody_looked_is_fetched_again(
    tmp_path: Path, damage: Damage
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path, memory) as rig:
        rig.store("file", CONTENT)
        assert await rig.read("file") == CONTENT
    damage_all(tmp_path, damage)
    async with serving(tmp_path, memory) as rig:
        assert await rig.read("file") == CONTENT
        assert rig.watched.of("get_range")
        rig.check()
    async with serving(tmp_path, memory) as rig:  # and it was mended for good
        assert await rig.read("file") == CONTENT
        assert not rig.watched.of("get_range")


async def test_only_the_piece_that_rotted_is_fetched_again(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path, memory) as rig:
        rig.store("file", CONTENT)
        assert await rig.read("file") == CONTENT
    damage_all(tmp_path, flip(MIB + 5))
    async with serving(tmp_path, memory) as rig:
        assert await rig.read("file") == CONTENT
        assert rig.service._fetcher.fetched == MIB


async def test_what_was_written_here_is_held_against_its_sums_too(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path, memory) as rig:
        await rig.write("file", CONTENT)
    damage_all(tmp_path, flip(2 * MIB))
    async with serving(tmp_path, memory) as rig:
        assert await rig.read("file") == CONTENT


async def test_a_change_of_a_part_does_not_store_the_rot_of_the_rest(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path, memory) as rig:
        rig.store("file", CONTENT)
        assert await rig.read("file") == CONTENT
    damage_all(tmp_path, flip(2 * MIB))
    async with serving(tmp_path, memory) as rig:
        fh = await rig.open("file", os.O_RDWR)
        await rig.fs.write(fh, 5, b"changed")
        await rig.close(fh)
        assert rig.objects() == {"file": CONTENT[:5] + b"changed" + CONTENT[12:]}


@pytest.mark.parametrize("damage", [flip(2 * MIB), cut(2 * MIB)], ids=["flipped", "cut"])
async def test_acknowledged_bytes_that_rotted_are_parked_and_not_stored(
    tmp_path: Path, damage: Damage
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        rig.store("file", b"old")
        await rig.write("file", CONTENT)
        image = rig.crash_image(tmp_path / "image")
    damage_all(image, damage)
    memory = MemoryStore()
    async with serving(image, memory, **LATER) as rig:
        await rig.flush()
        assert rig.objects() == {}
        (dirty,) = rig.service.dirty()
        assert dirty["state"] == "parked"
        assert re.search("changed on the cache's disk|are gone", str(dirty["error"]))
        with pytest.raises((BytesLost, Stale)):
            await rig.read("file")


@pytest.mark.parametrize("damage", [flip(0), cut(4), os.remove], ids=["flipped", "cut", "gone"])
async def test_what_rotted_is_not_taken_for_stored_because_an_older_write_is(
    tmp_path: Path, damage: Damage
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", b"the first")
        lose_answer(rig, "put")
        await rig.flush()
        assert rig.objects() == {"file": b"the first"}
        await rig.write("file", b"the other")
        image = rig.crash_image(tmp_path / "image")
    damage_all(image, damage)
    async with serving(image, memory, **LATER) as rig:
        await rig.flush()
        (dirty,) = rig.service.dirty()
        assert dirty["state"] == "parked"


async def test_acknowledged_bytes_that_rotted_are_found_without_the_database(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", CONTENT)
        image = rig.crash_image(tmp_path / "image")
    for path in image.glob(f"{NAME}*"):
        path.unlink()
    damage_all(image, flip(0))
    memory = MemoryStore()
    async with serving(image, memory, **LATER) as rig:
        await rig.flush()
        assert rig.objects() == {}
        (dirty,) = rig.service.dirty()
        assert dirty["state"] == "parked"


@pytest.mark.parametrize("damage", [cut(MIB), cut(0)], ids=["cut", "emptied"])
async def test_a_file_that_is_cut_while_it_is_open_is_served_whole(
    tmp_path: Path, damage: Damage
) -> None:
    async with serving(tmp_path) as rig:
        rig.store("file", CONTENT)
        fh = await rig.open("file")
        assert await rig.read_fh(fh) == CONTENT
        damage_all(tmp_path, damage)
        assert await rig.read_fh(fh) == CONTENT
        await rig.close(fh)


async def test_bytes_of_which_no_sum_is_known_are_not_believed(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path, memory) as rig:
        rig.store("file", CONTENT)
        assert await rig.read("file") == CONTENT
    with sqlite3.connect(tmp_path / NAME) as connection:
        connection.execute("UPDATE entries SET sums = x''")
    connection.close()
    async with serving(tmp_path, memory) as rig:
        assert await rig.read("file") == CONTENT
        assert rig.service._fetcher.fetched == len(CONTENT)


@pytest.mark.parametrize(
    "content", [b"XX", b"XXknowledged", b"XX half written, and not closed"], ids=len
)
async def test_bytes_that_a_loss_of_power_left_of_a_newer_write_are_not_stored_over_the_old(
    tmp_path: Path, content: bytes
) -> None:
    # The database goes back to the last commit that was synced, the file does not.
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", b"acknowledged")
        before = rig.crash_image(tmp_path / "before")
        await rig.flush()
        flags = os.O_RDWR | (os.O_TRUNC if len(content) == 2 else 0)
        fh = await rig.open("file", flags)
        await rig.fs.write(fh, 0, content)
        after = rig.crash_image(tmp_path / "after")
        stored = memory.head(Key("file"))
        await rig.close(fh)
    shutil.rmtree(before / "data")
    shutil.copytree(after / "data", before / "data")
    memory = MemoryStore()
    memory.put(Key("file"), BytesBody(b"acknowledged"), meta=stored.meta or {}, if_match=None)
    async with serving(before, memory, **LATER) as rig:
        await rig.flush()
        assert rig.objects() == {"file": b"acknowledged"}
        (aside,) = rig.service.dirty()  # what a program had not closed yet
        assert aside["state"] == "parked"
        assert await rig.read("file") == b"acknowledged"
        rig.check()


async def test_what_a_crash_left_behind_acknowledged_bytes_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("file", b"acknowledged")
        image = rig.crash_image(tmp_path / "image")
    for path in (image / "data").iterdir():
        if path.name.isdigit():
            path.write_bytes(path.read_bytes() + b" and more that nobody acknowledged")
    async with serving(image, **LATER) as rig:
        await rig.flush()
        assert rig.objects() == {"file": b"acknowledged"}
