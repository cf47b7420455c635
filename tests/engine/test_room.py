"""The limit of the cache: never passed, and nobody's bytes lost for it."""

import os
from pathlib import Path

import pytest
import trio

from cachefs.core.errors import Fault, NoRoom
from cachefs.core.eviction import Policy
from cachefs.core.types import FetchMode
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, MIB, Rig, objects, serving, store, together, until

KIB = 1024


def _memory(count: int, size: int) -> MemoryStore:
    memory = MemoryStore()
    for number in range(count):
        store(memory, f"f{number}", os.urandom(size))
    return memory


async def test_readers_of_more_than_the_cache_holds_read_right_and_stay_below_the_limit(
    tmp_path: Path,
) -> None:
    memory = _memory(20, 300_000)
    expected = objects(memory)
    async with serving(tmp_path / "c", memory, cache_size=MIB, part_size=128 * KIB) as rig:

        async def read_all(step: int) -> None:
            for turn in range(20):
                key = f"f{turn * step % 20}"
                fh = await rig.open(key)
                found = b""
                while len(found) < 300_000:
                    found += bytes(await rig.fs.read(fh, len(found), 50_000))
                    assert rig.disk_bytes() <= MIB
                assert found == expected[key]
                await rig.fs.release(fh)

        await together(*(lambda step=step: read_all(step) for step in (1, 3, 7, 9, 11)))
        assert rig.service._room.evicted > 0
        assert rig.cache.used == rig.disk_bytes()
        assert rig.cache.reserved == 0


async def test_what_is_counted_never_passes_the_limit_while_two_fetches_run(
    tmp_path: Path,
) -> None:
    memory = _memory(1, MIB)
    async with serving(
        tmp_path / "c", memory, fetch=FetchMode.DEMAND, cache_size=MIB + 64 * KIB, part_size=MIB
    ) as rig:
        gate = rig.watched.gate("after", "get_range")
        fh = await rig.open("f0")
        highest = 0

        async def first() -> None:
            await rig.fs.read(fh, 0, 512 * KIB)

        async def second() -> None:
            nonlocal highest
            await gate.reached.wait()
            await rig.fs.read(fh, 512 * KIB, 512 * KIB)
            await until(lambda: len(rig.fs.files._handles[fh].file._stream.fetches) == 1)
            highest = rig.cache.used
            gate.open()

        await together(first, second)
        await rig.fs.release(fh)
        assert highest <= rig.cache.limit


async def test_a_file_larger_than_the_cache_is_read(tmp_path: Path) -> None:
    memory = _memory(1, 5 * MIB)
    async with serving(tmp_path / "c", memory, cache_size=MIB, part_size=256 * KIB) as rig:
        assert await rig.read("f0") == rig.objects()["f0"]
        assert rig.disk_bytes() <= MIB
        rig.check()


async def test_an_open_file_is_never_evicted(tmp_path: Path) -> None:
    memory = _memory(10, 300_000)
    async with serving(tmp_path / "c", memory, cache_size=MIB, part_size=128 * KIB) as rig:
        fh = await rig.open("f0")
        content = await rig.read_fh(fh)
        for number in range(1, 10):
            await rig.read(f"f{number}")
        rig.watched.forget()
        assert await rig.read_fh(fh) == content
        assert rig.watched.count() == {}
        await rig.fs.release(fh)
        rig.check()


async def test_a_dirty_file_is_never_evicted(tmp_path: Path) -> None:
    memory = _memory(10, 300_000)
    async with serving(tmp_path / "c", memory, cache_size=MIB, **LATER) as rig:
        await rig.write("dirty", b"x" * 200_000)
        for number in range(10):
            await rig.read(f"f{number}")
        assert await rig.read("dirty") == b"x" * 200_000
        assert rig.service._room.evicted > 0
        await rig.flush()
        assert rig.objects()["dirty"] == b"x" * 200_000


async def test_a_writer_that_fills_the_cache_waits_for_uploads(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", cache_size=MIB, **LATER) as rig:
        for number in range(20):
            await rig.write(f"f{number}", b"%02d" % number * 100_000)
            rig.check()
        await rig.flush()
        assert rig.objects() == {f"f{n}": b"%02d" % n * 100_000 for n in range(20)}


async def test_a_writer_gets_no_room_when_nothing_can_be_stored_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", cache_size=MIB, timeout_s=2, **LATER) as rig:
        rig.watched.fail("before", "put", Fault("down"), times=10**6)
        written: list[int] = []

        async def fill() -> None:
            for number in range(20):
                await rig.write(f"f{number}", b"%02d" % number * 100_000)
                written.append(number)

        with pytest.raises(NoRoom):
            await fill()
        rig.check()
        assert len(written) >= 3
        rig.watched.rules.clear()
        await rig.flush()
        for number in written:
            assert rig.objects()[f"f{number}"] == b"%02d" % number * 100_000


async def test_a_cache_full_of_open_files_still_serves_reads(tmp_path: Path) -> None:
    memory = _memory(8, 300_000)
    expected = objects(memory)
    async with serving(tmp_path / "c", memory, cache_size=MIB, part_size=128 * KIB) as rig:
        handles = {key: await rig.open(key) for key in expected}
        for key, fh in handles.items():
            assert await rig.read_fh(fh) == expected[key]
            rig.check()
        for fh in handles.values():
            await rig.fs.release(fh)


async def test_a_cache_full_of_open_files_leaves_room_for_a_write(tmp_path: Path) -> None:
    memory = _memory(4, 300_000)
    async with serving(
        tmp_path / "c", memory, cache_size=MIB, timeout_s=1, fetch=FetchMode.DEMAND
    ) as rig:
        handles = [await rig.open(f"f{number}") for number in range(4)]
        for fh in handles:
            for offset in range(0, 300_000, 4 * KIB):
                await rig.fs.read(fh, offset, 4 * KIB)
        await rig.write("new", b"new")
        rig.check()
        assert rig.objects()["new"] == b"new"
        for fh in handles:
            await rig.fs.release(fh)


async def test_what_is_used_is_what_the_disk_says(tmp_path: Path) -> None:
    memory = _memory(2, 300_000)
    async with serving(tmp_path / "c", memory, **LATER) as rig:

        def agree() -> bool:
            rig.check()
            return rig.cache.used == rig.disk_bytes()

        await rig.read("f0")
        assert agree()
        await rig.write("a", b"x" * 100_000)
        assert agree()
        await rig.write("a", b"y" * 50_000)
        assert agree()
        await rig.flush()
        assert agree()
        await rig.rename("f0", "g")
        await rig.unlink("a")
        assert agree()


@pytest.mark.parametrize(
    ("policy", "stays"),
    [
        (Policy.GDSF, True),
        (Policy.LFU, True),
        (Policy.S3FIFO, True),
        (Policy.LRU, False),
        (Policy.AGE, False),
    ],
)
async def test_a_file_that_is_used_outlives_a_scan_where_the_policy_says_so(
    tmp_path: Path, policy: Policy, stays: bool
) -> None:
    memory = _memory(12, 100_000)
    async with serving(tmp_path / "c", memory, cache_size=MIB, policy=policy) as rig:
        for _ in range(5):
            await rig.read("f0")
        rig.watched.forget()
        for number in range(1, 12):
            await rig.read(f"f{number}")
            reserved = await rig.service._room.make(300_000)
            assert reserved is not None
            rig.cache.release(reserved)
        await rig.read("f0")
        assert len(rig.watched.of("get_range")) == (11 if stays else 12)


async def test_gdsfs_clock_moves_as_files_go_and_is_kept_over_a_restart(tmp_path: Path) -> None:
    memory = _memory(20, 100_000)
    async with serving(tmp_path / "c", memory, cache_size=MIB) as rig:
        for number in range(20):
            await rig.read(f"f{number}")
        assert rig.service._room.evicted > 0
        moved = rig.cache.order.inflation
        assert moved > 0
    async with serving(tmp_path / "c", memory, cache_size=MIB) as rig:
        assert rig.cache.order.inflation >= moved


async def test_a_limit_that_was_lowered_holds_from_the_start(tmp_path: Path) -> None:
    memory = _memory(10, 100_000)
    async with serving(tmp_path / "c", memory) as rig:
        for number in range(10):
            await rig.read(f"f{number}")
    async with serving(tmp_path / "c", memory, cache_size=500_000) as rig:
        await _falls_below(rig)


async def _falls_below(rig: Rig) -> None:
    with trio.fail_after(1):
        await until(lambda: rig.cache.used <= rig.cache.limit)


async def test_a_fetch_evicts_no_more_than_it_lacks(tmp_path: Path) -> None:
    memory = MemoryStore()
    for number in range(10):
        store(memory, f"small{number}", os.urandom(300_000))
    store(memory, "large", os.urandom(MIB))
    async with serving(tmp_path / "c", memory, cache_size=4 * MIB) as rig:
        for number in range(10):
            await rig.read(f"small{number}")

        await rig.read("large")  # of which all but the first read finds room

        assert (
            rig.service.presence([f"small{number}" for number in range(10)]).count((300_000, 0))
            == 1
        )
        rig.check()
