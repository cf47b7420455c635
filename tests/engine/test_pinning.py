"""What the operator pins stays here: through evictions, versions, renames and restarts."""

import os
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.errors import Fault, NoRoom
from cachefs.core.types import ConflictPolicy, Key
from cachefs.engine import pinning
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, LATER, MIB, Rig, serving, store, until

SIZE = 100_000


@pytest.fixture
def memory() -> MemoryStore:
    memory = MemoryStore()
    for name in ("d/a", "d/e/b", "other", *(f"f{number}" for number in range(20))):
        store(memory, name, os.urandom(SIZE))
    return memory


async def pinned(rig: Rig, path: str) -> dict[str, Any]:
    """Pin, and wait until all is here."""
    answer: dict[str, Any] = await rig.service.pin(path)
    await rig.service._pins.wait_over(answer["turn"])
    return answer


async def is_pinned(rig: Rig, path: str) -> bool:
    value = await rig.fs.attributes.getxattr(await rig.ino(path), b"user.cachefs.pinned")
    return {b"0": False, b"1": True}[value]


async def is_here(rig: Rig, path: str) -> bool:
    entry = rig.cache.find(await rig.ino(path))
    inode = rig.service._disk.inodes.get(await rig.ino(path))
    assert inode is not None
    return entry is not None and entry.is_whole and entry.etag == inode.etag


async def fill(rig: Rig) -> None:
    """Read more than the cache holds."""
    for number in range(20):
        await rig.read(f"f{number}")


async def test_a_directory_is_pinned_with_all_that_is_below_and_stays_while_others_go(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, cache_size=MIB) as rig:
        answer = await pinned(rig, "d")
        assert (answer["files"], answer["bytes"]) == (2, 2 * 102_400)
        assert await is_here(rig, "d/a")
        assert await is_here(rig, "d/e/b")
        await fill(rig)
        assert rig.service._room.evicted > 0
        rig.watched.forget()
        assert await rig.read("d/a") == rig.objects()["d/a"]
        assert await rig.read("d/e/b") == rig.objects()["d/e/b"]
        assert rig.watched.of("get_range") == []
        assert await is_pinned(rig, "d/e/b")
        assert not await is_pinned(rig, "f1")
        rig.check()

        assert (await rig.service.unpin("d"))["files"] == 2
        assert not await is_pinned(rig, "d/a")
        await rig.service._room.make(MIB)
        assert not await is_here(rig, "d/a")


async def test_what_is_pinned_is_fetched_after_a_restart_if_it_was_not_before(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("before", "get_range", Fault("down"), times=10**6)
        await rig.service.pin("d/a")
        await until(lambda: rig.service._pins.told().failures == 1)
        assert list(rig.service._pins.told().failed) == ["d/a"]
    async with serving(tmp_path / "c", memory) as rig:
        assert await is_pinned(rig, "d/a")
        await rig.service._pins.wait_over(1)
        assert await is_here(rig, "d/a")


async def test_what_could_not_be_fetched_is_tried_again(
    tmp_path: Path, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "_AGAIN_S", 0.05)
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("before", "get_range", Fault("down"), times=10**6)
        await rig.service.pin("d/a")
        await until(lambda: rig.service._pins.told().failures == 1)
        rig.watched.rules.clear()
        await until(lambda: rig.service._pins.told().failures == 0)
        assert await is_here(rig, "d/a")


async def test_more_than_the_cache_can_hold_is_refused_and_nothing_of_it_pinned(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, cache_size=MIB) as rig:
        await pinned(rig, "d")
        with pytest.raises(NoRoom, match=r"needs 2\.1 MiB, 0\.2 MiB are pinned already"):
            await rig.service.pin("")
        assert rig.service._pins.told().files == 2
        assert not await is_pinned(rig, "f0")


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_new_version_is_fetched_when_it_is_seen(
    tmp_path: Path, memory: MemoryStore, is_open: bool
) -> None:
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        await pinned(rig, "other")
        fh = await rig.open("other") if is_open else None
        rig.store("other", b"new" * SIZE)
        await rig.names()
        await until(lambda: rig.service._fetcher.fetched >= 4 * SIZE)
        await until(lambda: rig.service._pins.told().turn >= rig.service._pins._asked)
        assert await is_pinned(rig, "other")
        assert await is_here(rig, "other")
        if fh is not None:
            await rig.close(fh)
        assert rig.service._pins.told().files == 1


@pytest.mark.parametrize("was_read", [True, False])
async def test_a_pin_follows_its_file_through_a_rename(
    tmp_path: Path, memory: MemoryStore, was_read: bool
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        if was_read:
            await rig.read("d/a")
        await pinned(rig, "d")
        await rig.rename("d/a", "moved")
        await rig.rename("d", "away")
        assert await is_pinned(rig, "moved")
        assert await is_pinned(rig, "away/e/b")
        assert await is_here(rig, "moved")


@pytest.mark.parametrize("is_cached", [True, False])
async def test_what_is_renamed_onto_a_pinned_file_is_pinned_whether_or_not_that_was_cached(
    tmp_path: Path, memory: MemoryStore, is_cached: bool
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        if is_cached:
            await pinned(rig, "other")
        else:
            rig.service._disk.inodes.pin_below(await rig.ino("other"), pinned=True)
        assert (rig.cache.find(await rig.ino("other")) is not None) == is_cached
        await rig.write("other.new", b"edited")
        await rig.rename("other.new", "other")
        assert await is_pinned(rig, "other")
        assert rig.service._pins.told().files == 1
    async with serving(tmp_path / "c", memory) as rig:
        assert await is_pinned(rig, "other")


async def test_a_pin_ends_when_the_file_is_removed(tmp_path: Path, memory: MemoryStore) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        await pinned(rig, "other")
        fh = await rig.open("other")
        await rig.unlink("other")
        assert rig.service._pins.told().files == 0
        await rig.close(fh)
        await rig.write("other", b"another")
        assert not await is_pinned(rig, "other")


@pytest.mark.parametrize("policy", [ConflictPolicy.KEEP_BOTH, ConflictPolicy.THEIRS])
async def test_a_conflict_leaves_the_pin_to_the_name(
    tmp_path: Path, memory: MemoryStore, policy: ConflictPolicy
) -> None:
    async with serving(tmp_path / "c", memory, conflict=policy, **LATER) as rig:
        await pinned(rig, "other")
        await rig.write("other", b"ours")
        rig.store("other", b"theirs")
        await rig.flush()
        await until(lambda: not rig.service.dirty())
        assert await rig.read("other") == b"theirs"
        assert await is_pinned(rig, "other")


async def test_bytes_that_are_set_aside_after_a_crash_leave_the_pin_to_the_name(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await pinned(rig, "other")
        fh = await rig.open("other", os.O_RDWR)
        await rig.fs.write(fh, 0, b"half")
        image = rig.crash_image(tmp_path / "image")
        await rig.close(fh)
    async with serving(image, memory, **LATER) as rig:
        assert await rig.read("other") == rig.objects()["other"]
        assert await is_pinned(rig, "other")
        assert rig.service._disk.inodes.all_pinned()[0] == 1


async def test_a_dirty_file_can_be_pinned_and_stays_when_it_is_stored(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, cache_size=MIB, **LATER) as rig:
        await rig.write("ours", b"x" * SIZE)
        await pinned(rig, "ours")
        await rig.flush()
        await fill(rig)
        assert await is_here(rig, "ours")
        assert rig.service._disk.inodes.child(ROOT, (await rig.spot("ours"))[1]) is not None
        assert Key("ours") in rig.objects()
