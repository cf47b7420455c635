"""What a reader is promised."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cachefs.core.errors import Fault, Stale, TimedOut
from cachefs.core.extents import Extent
from cachefs.core.types import ETag, FetchMode, Key, ObjectInfo
from cachefs.engine.filesystem import Changes
from cachefs.remote.memory import MemoryStore
from cachefs.remote.store import Sink
from tests.contract.bodies import BytesSink
from tests.engine.rig import MIB, serving, store, together


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


async def test_what_is_stored_is_what_is_read(tmp_path: Path, memory: MemoryStore) -> None:
    content = os.urandom(3 * MIB + 17)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("a") == content
        rig.check()


async def test_two_readers_of_one_object_cause_one_fetch(
    tmp_path: Path, memory: MemoryStore
) -> None:
    content = os.urandom(MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory) as rig:
        gate = rig.watched.gate("before", "get_range")
        read: list[bytes] = []

        async def reader() -> None:
            read.append(await rig.read("a"))

        async def opener() -> None:
            await gate.reached.wait()
            await trio.testing.wait_all_tasks_blocked()
            gate.open()

        await together(reader, reader, opener)

        assert read == [content, content]
        assert len(rig.watched.of("get_range")) == 1


async def test_a_second_open_of_what_is_cached_asks_for_no_byte(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x" * 5000)
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("a")
        rig.watched.forget()
        await rig.read("a")
        assert rig.watched.count() == {}


async def test_cached_bytes_outlive_the_service(tmp_path: Path, memory: MemoryStore) -> None:
    store(memory, "a", b"x" * 5000)
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("a")
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("a") == b"x" * 5000
        assert rig.watched.of("get_range") == []


async def test_a_read_is_answered_before_the_fetch_ends(
    tmp_path: Path, memory: MemoryStore
) -> None:
    content = os.urandom(6 * MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory, part_size=4 * MIB) as rig:
        gate = rig.watched.gate("during", "get_range")  # after the first of four chunks
        fh = await rig.open("a")
        await gate.reached.wait()
        with trio.fail_after(5):
            assert bytes(await rig.fs.read(fh, 0, 4096)) == content[:4096]
            assert bytes(await rig.fs.read(fh, MIB - 10, 10)) == content[MIB - 10 : MIB]
        gate.open()
        assert await rig.read_fh(fh) == content
        await rig.fs.release(fh)


@pytest.mark.parametrize("mode", list(FetchMode))
async def test_every_request_names_the_version_that_was_opened(
    tmp_path: Path, memory: MemoryStore, mode: FetchMode
) -> None:
    content = os.urandom(3 * MIB)
    base = store(memory, "a", content)
    async with serving(tmp_path / "c", memory, fetch=mode, part_size=MIB // 2) as rig:
        fh = await rig.open("a")
        for offset in (2 * MIB + 5, 0, MIB):
            assert bytes(await rig.fs.read(fh, offset, 100)) == content[offset : offset + 100]
        await rig.fs.release(fh)
        assert {call.if_match for call in rig.watched.of("get_range")} == {base.etag}


@pytest.mark.parametrize("replacement", [None, b"B" * 3 * MIB])
async def test_an_object_that_changes_under_a_reader_is_stale_and_never_a_mixture(
    tmp_path: Path, memory: MemoryStore, replacement: bytes | None
) -> None:
    store(memory, "a", b"A" * 3 * MIB)
    async with serving(tmp_path / "c", memory, fetch=FetchMode.DEMAND) as rig:
        fh = await rig.open("a")
        assert bytes(await rig.fs.read(fh, 0, 10)) == b"A" * 10
        if replacement is None:
            rig.remove("a")
        else:
            rig.store("a", replacement)
        with pytest.raises(Stale):
            await rig.fs.read(fh, 2 * MIB, 10)
        assert bytes(await rig.fs.read(fh, 0, 10)) == b"A" * 10
        await rig.fs.release(fh)


@pytest.mark.parametrize("replacement", [None, b"B" * 3 * MIB])
async def test_an_object_that_changes_under_a_reader_past_the_cache_is_stale_too(
    tmp_path: Path, memory: MemoryStore, replacement: bytes | None
) -> None:
    store(memory, "a", b"A" * 3 * MIB)
    async with serving(
        tmp_path / "c", memory, fetch=FetchMode.DEMAND, cache_size=16 * 1024
    ) as rig:
        fh = await rig.open("a")
        if replacement is None:
            rig.remove("a")
        else:
            rig.store("a", replacement)
        with pytest.raises(Stale):
            await rig.fs.read(fh, 2 * MIB, 128 * 1024)
        await rig.fs.release(fh)


async def test_after_the_time_to_live_an_open_sees_the_new_version(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"old")
    async with serving(tmp_path / "c", memory, metadata_ttl_s=0, negative_ttl_s=0) as rig:
        assert await rig.read("a") == b"old"
        rig.store("a", b"the new one")
        assert await rig.read("a") == b"the new one"
        assert len(rig.watched.of("get_range")) == 2


async def test_an_open_handle_keeps_its_version_while_a_new_open_gets_the_new_one(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"old" * 1000)
    async with serving(tmp_path / "c", memory, metadata_ttl_s=0, negative_ttl_s=0) as rig:
        old = await rig.open("a")
        assert await rig.read_fh(old) == b"old" * 1000
        rig.store("a", b"new" * 1000)
        assert await rig.read("a") == b"new" * 1000
        assert await rig.read_fh(old) == b"old" * 1000
        await rig.fs.release(old)
        assert await rig.read("a") == b"new" * 1000
        rig.check()


async def test_within_the_time_to_live_the_store_is_not_asked(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("a")
        assert not await rig.exists("b")
        rig.watched.forget()
        for _ in range(3):
            await rig.read("a")
            assert not await rig.exists("b")
        assert rig.watched.count() == {}


async def test_a_cold_open_and_read_takes_one_head_and_one_get(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x" * 1000)
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("a") == b"x" * 1000
        assert rig.watched.count() == {"get_range": 1, "head": 1}


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (5, 1), (1000, 1), (1001, 2), (2500, 3)])
async def test_a_listing_takes_one_request_for_each_thousand_objects(
    tmp_path: Path, memory: MemoryStore, count: int, pages: int
) -> None:
    for number in range(count):
        store(memory, f"d/{number:05}", b"")
    store(memory, "z", b"")
    async with serving(tmp_path / "c", memory) as rig:
        where = "d" if count else ""
        await rig.ino(where)
        rig.watched.forget()
        names = await rig.names(where)
        found = rig.watched.count()
        assert found.get("list", 0) <= pages
        assert set(found) <= {"list", "head"}
        rig.watched.forget()
        assert await rig.names(where) == names
        # Where the second thousand begins depends on how much of it was here when the first was read.
        again = rig.watched.count()
        assert set(again) <= {"head"}
        assert found.get("head", 0) + again.get("head", 0) <= 3 + (count > 1000), (
            "a few are looked at to see whether they carry attributes"
        )
        assert len(names) == count or not count


async def test_a_thousand_cold_files_listed_first_cost_one_get_each(
    tmp_path: Path, memory: MemoryStore
) -> None:
    for number in range(30):
        store(memory, f"d/{number}", b"%d" % number)
    async with serving(tmp_path / "c", memory) as rig:
        await rig.names("d")
        rig.watched.forget()
        for number in range(30):
            assert await rig.read(f"d/{number}") == b"%d" % number
        assert rig.watched.count() == {"get_range": 30}


@pytest.mark.parametrize("operation", ["head", "list"])
async def test_a_fault_is_never_reported_as_absence(tmp_path: Path, operation: str) -> None:
    memory = MemoryStore(page_size=2)
    for key in ("a", "b", "c", "d/b", "d/c", "d/d"):
        store(memory, key, b"x")
    async with serving(tmp_path / "c", memory, metadata_ttl_s=0, negative_ttl_s=0) as rig:
        for path in ("nothing", "d/nothing"):
            rig.watched.fail("before", operation, Fault("500"), times=1000)
            with pytest.raises(TimedOut):
                await rig.ino(path)
            rig.watched.rules.clear()
        assert await rig.read("a") == b"x"
        assert await rig.read("d/b") == b"x"


async def test_a_name_that_a_listing_showed_is_there_although_its_object_cannot_be_asked_for(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x")
    store(memory, "d/b", b"x")
    async with serving(tmp_path / "c", memory, metadata_ttl_s=0, negative_ttl_s=0) as rig:
        rig.watched.fail("before", "head", Fault("500"), times=1000)
        assert await rig.exists("a")
        assert await rig.exists("d/b")
        assert not await rig.exists("nothing"), "the listing said so"


async def test_a_listing_that_breaks_off_loses_no_name(
    tmp_path: Path,
) -> None:
    memory = MemoryStore(page_size=10)
    for number in range(35):
        store(memory, f"d/{number:02}", b"")
    async with serving(tmp_path / "c", memory, metadata_ttl_s=0, negative_ttl_s=0) as rig:
        assert len(await rig.names("d")) == 35
        ino = await rig.ino("d")
        rig.service._disk.inodes.stale_below(ino)
        rig.watched.on(
            "after",
            "list",
            lambda: rig.watched.fail("before", "list", Fault("cut"), times=1000),
        )
        with pytest.raises(TimedOut):
            await rig.names("d")
        rig.watched.rules.clear()
        assert len(await rig.names("d")) == 35


async def test_a_fault_in_the_middle_of_a_fetch_is_tried_again(
    tmp_path: Path, memory: MemoryStore
) -> None:
    content = os.urandom(3 * MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory, part_size=4 * MIB) as rig:
        rig.watched.fail("during", "get_range", Fault("cut"), times=2)
        assert await rig.read("a") == content
        rig.check()


class DamagingStore(MemoryStore):
    """Tells the MD5 of its objects, and sends the first range with another first byte."""

    damaged = False

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        sink = BytesSink()
        info = super().get_range(key, extent, sink, if_match=if_match)
        sent = bytearray(sink.content)
        sent[0] ^= not self.damaged
        self.damaged = True
        into.write(memoryview(sent))
        return replace(info, md5=str(info.etag))


async def test_damage_of_one_part_is_an_error_before_the_end_and_all_is_fetched_again(
    tmp_path: Path,
) -> None:
    memory = DamagingStore()
    content = bytes(range(256)) * 4096 * 3
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory, part_size=MIB) as rig:
        fh = await rig.open("a")
        with pytest.raises(Fault, match="damaged"):
            await rig.read_fh(fh)
        await rig.fs.release(fh)
        assert await rig.read("a") == content


async def test_a_fetch_that_fails_for_good_is_an_error_and_the_next_read_asks_again(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x" * 1000)
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("before", "get_range", Fault("500"), times=1000)
        fh = await rig.open("a")
        with pytest.raises(TimedOut):
            await rig.fs.read(fh, 0, 10)
        rig.watched.rules.clear()
        assert bytes(await rig.fs.read(fh, 0, 10)) == b"x" * 10
        await rig.fs.release(fh)
        rig.check()


async def test_an_adapters_unforeseen_exception_is_counted_and_the_service_lives(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x" * 1000)
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("before", "get_range", ValueError("a bug in the adapter"))
        fh = await rig.open("a")
        with pytest.raises(Fault, match="a bug in the adapter"):
            await rig.fs.read(fh, 0, 10)
        assert rig.service.status()["failed_tasks"] == 1
        assert bytes(await rig.fs.read(fh, 0, 10)) == b"x" * 10
        await rig.fs.release(fh)


async def test_a_reader_of_a_file_that_was_unlinked_keeps_what_is_here(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x" * 1000)
    async with serving(tmp_path / "c", memory) as rig:
        fh = await rig.open("a")
        await rig.read_fh(fh)
        await rig.unlink("a")
        assert await rig.read_fh(fh) == b"x" * 1000
        assert not await rig.exists("a")
        await rig.fs.release(fh)
        assert rig.cache.statistics()["entries"] == 0
        assert list(rig.cache.data.iterdir()) == []


async def test_ranges_are_those_of_the_object_and_no_more(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x" * 10_000)
    async with serving(tmp_path / "c", memory, fetch=FetchMode.DEMAND) as rig:
        fh = await rig.open("a")
        assert bytes(await rig.fs.read(fh, 9_000, 5_000)) == b"x" * 1000
        assert bytes(await rig.fs.read(fh, 10_000, 5)) == b""
        assert [call.extent for call in rig.watched.of("get_range")] == [Extent(8192, 10_000)]
        await rig.fs.release(fh)


async def test_a_reader_of_a_file_that_was_unlinked_can_read_what_was_not_here_yet(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "a", b"x" * 3 * MIB)
    async with serving(tmp_path / "c", memory, fetch=FetchMode.DEMAND) as rig:
        fh = await rig.open("a")
        await rig.unlink("a")
        assert await rig.read_fh(fh) == b"x" * 3 * MIB
        await rig.fs.release(fh)


class Restless(MemoryStore):
    """A store that gives an object another ETag with other metadata, as a directory on a disk does."""

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        info = super().set_meta(key, meta, content_type=content_type, if_match=if_match)
        stored = self._objects[key]
        stored = self._objects[key] = replace(
            stored, info=replace(info, etag=ETag(f"{info.etag}-{meta['ctime']}"))
        )
        return stored.info


@pytest.mark.parametrize("cache_size", [64 * MIB, MIB], ids=["cached", "past the cache"])
async def test_a_reader_does_not_lose_the_file_to_a_chmod(tmp_path: Path, cache_size: int) -> None:
    memory = Restless()
    content = os.urandom(3 * MIB)
    store(memory, "a", content)
    settings: dict[str, Any] = {"cache_size": cache_size, "fetch": FetchMode.DEMAND}
    async with serving(tmp_path / "c", memory, **settings) as rig:
        ino = await rig.ino("a")
        fh = await rig.open("a")
        fetch = rig.watched.gate("before", "get_range")
        change = rig.watched.gate("after", "set_meta")
        read: list[bytes] = []

        async def read_end() -> None:
            read.append(bytes(await rig.fs.read(fh, 2 * MIB, MIB)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_end)
            await fetch.reached.wait()
            nursery.start_soon(rig.fs.setattr, ino, Changes(mode=0o600))
            await change.reached.wait()  # the store has it, and nobody here knows yet
            fetch.open()
            await trio.testing.wait_all_tasks_blocked(0.05)
            change.open()
        assert read == [content[2 * MIB :]]
        await rig.fs.release(fh)
        rig.check()
