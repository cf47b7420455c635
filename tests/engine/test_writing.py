"""What a writer is promised."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.core.errors import Exists, Fault, Stale, TimedOut
from cachefs.core.types import FetchMode, Fh
from cachefs.engine import told
from cachefs.engine.filesystem import Changes
from cachefs.engine.openfile import OpenFile
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import (
    FOREVER_ASKING,
    LATER,
    MIB,
    Rig,
    lose_answer,
    serving,
    store,
    together,
)


async def test_a_close_is_answered_after_the_object_is_stored(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("a", b"x" * MIB)
        assert rig.objects() == {"a": b"x" * MIB}
        assert rig.service.dirty() == []
        rig.check()


async def test_in_background_a_close_is_answered_before_and_a_flush_stores(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"x")
        assert rig.objects() == {}
        assert [each["state"] for each in rig.service.dirty()] == ["queued"]
        assert await rig.flush() == {"uploaded": 1, "waiting": [], "failed": []}
        assert rig.objects() == {"a": b"x"}
        assert rig.service.dirty() == []


async def test_fsync_waits_for_the_store_in_background_too(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        fh = await rig.create("a")
        await rig.fs.write(fh, 0, b"x")
        await rig.fs.fsync(fh)
        assert rig.objects() == {"a": b"x"}
        await rig.fs.release(fh)


async def test_a_new_file_in_a_known_directory_costs_one_request(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.names()
        rig.watched.forget()
        await rig.write("a", b"x")
        assert rig.watched.count() == {"put": 1}


async def test_an_empty_file_is_stored_too(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.close(await rig.create("a"))
        assert rig.objects() == {"a": b""}


async def test_an_exclusive_create_refuses_what_is_there(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"x")
    async with serving(tmp_path / "c", memory) as rig:
        with pytest.raises(Exists):
            await rig.create("a", os.O_RDWR | os.O_EXCL)


async def test_a_write_into_an_object_that_is_not_here_keeps_the_rest_of_it(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    content = os.urandom(3 * MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory, fetch=FetchMode.DEMAND) as rig:
        fh = await rig.open("a", os.O_RDWR)
        await rig.fs.write(fh, MIB, b"new")
        await rig.close(fh)
        assert rig.objects() == {"a": content[:MIB] + b"new" + content[MIB + 3 :]}
        rig.check()


async def test_a_write_past_the_end_leaves_zeros_between(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        fh = await rig.create("a")
        await rig.fs.write(fh, 10_000, b"x")
        await rig.close(fh)
        assert rig.objects() == {"a": bytes(10_000) + b"x"}


async def test_a_page_written_back_through_a_handle_that_appends_stays_where_it_is(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"x" * 10_000)
    async with serving(tmp_path / "c", memory) as rig:
        fh = await rig.open("a", os.O_RDWR | os.O_APPEND)
        await rig.fs.write(fh, 10_000, b"appended")  # the kernel says where the end is
        await rig.fs.write(fh, 0, b"M" * 4096)  # as it writes a mapping back
        await rig.close(fh)
        assert rig.objects() == {"a": b"M" * 4096 + b"x" * 5904 + b"appended"}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
async def test_the_kernel_knows_how_long_a_file_is_before_it_may_open_it(
    tmp_path: Path, flags: int
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        ino = await rig.ino("a")
        rig.store("a", b"another")
        await rig.fs.opendir(ROOT)
        with pytest.raises(Stale):
            await rig.fs.open(ino, flags)
        fh = await rig.open("a", flags)  # which looks the name up first
        await rig.fs.release(fh)


async def test_what_is_appended_follows_the_newest_version(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        await rig.ino("a")
        rig.store("a", b"another")
        fh = await rig.open("a", os.O_WRONLY | os.O_APPEND)
        await rig.fs.write(fh, 7, b" word")
        await rig.close(fh)
        assert rig.objects() == {"a": b"another word"}


async def test_a_listing_tells_the_kernel_how_long_files_are(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory) as rig:
        reader = await rig.fs.opendir(ROOT)
        ((_, child),) = await rig.fs.readdir(reader, 0, 10)
        with pytest.raises(Stale):
            await rig.fs.open(child.ino, os.O_RDONLY)
        rig.fs.shown(child)
        await rig.fs.release((await rig.fs.open(child.ino, os.O_RDONLY)).fh)


async def test_what_the_kernel_is_told_while_it_is_made_to_forget_is_not_relied_on(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory) as rig:
        ino = await rig.ino("a")
        rig.fs.told.doubt(ino)
        await rig.names()
        await rig.ino("a")  # answers that may have been on their way
        with pytest.raises(Stale):
            await rig.fs.open(ino, os.O_RDONLY)
        rig.fs.told.asks_anew(ino)
        with pytest.raises(Stale):
            await rig.fs.open(ino, os.O_RDONLY)
        await rig.fs.release(await rig.open("a"))  # which looks the name up first


async def test_what_changes_a_length_has_the_kernel_s_word_doubted_at_once(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        ino = await rig.ino("a")
        assert rig.fs.told.of(ino) == 3
        rig.store("a", b"another")
        await rig.fs.opendir(ROOT)
        assert rig.fs.told.of(ino) is None


async def test_an_open_is_refused_where_the_kernel_s_word_is_not_known_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told, "_REMEMBERED", 1)
    memory = MemoryStore()
    store(memory, "a", b"one")
    store(memory, "b", b"two")
    async with serving(tmp_path / "c", memory) as rig:
        ino = await rig.ino("a")
        await rig.ino("b")
        with pytest.raises(Stale):
            await rig.fs.open(ino, os.O_RDONLY)
        fh = await rig.open("a")
        await rig.ino("b")
        # While it is open its length changes only here.
        await rig.fs.release((await rig.fs.open(ino, os.O_RDONLY)).fh)
        await rig.fs.release(fh)


async def test_truncating_shorter_and_longer_is_stored(tmp_path: Path) -> None:
    memory = MemoryStore()
    content = os.urandom(3 * MIB)
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory, fetch=FetchMode.DEMAND) as rig:
        ino = await rig.ino("a")
        await rig.fs.setattr(ino, Changes(size=MIB))
        assert rig.objects() == {"a": content[:MIB]}
        await rig.fs.setattr(ino, Changes(size=2 * MIB))
        assert rig.objects() == {"a": content[:MIB] + bytes(MIB)}
        assert await rig.read("a") == content[:MIB] + bytes(MIB)
        rig.check()


async def test_opening_to_truncate_fetches_nothing(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"x" * MIB)
    async with serving(tmp_path / "c", memory) as rig:
        await rig.write("a", b"new")
        assert rig.objects() == {"a": b"new"}
        assert rig.watched.of("get_range") == []


async def test_attributes_travel_with_the_upload_and_are_changed_at_the_store(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory) as rig:
        await rig.write("a", b"x")
        await rig.fs.setattr(
            await rig.ino("a"), Changes(mode=0o600, uid=5, mtime_ns=1_234_567_890_123_456_789)
        )
        assert rig.objects() == {"a": b"x"}
    async with serving(tmp_path / "other", memory) as rig:
        seen = (await rig.fs.getattr(await rig.ino("a"))).attrs
        assert (seen.mode, seen.uid, seen.gid) == (0o600, 5, 8)
        assert seen.mtime_ns == 1_234_567_890_123_456_789


async def test_a_lost_answer_is_recognised_by_its_token(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.watched.fail("after", "put", Fault("lost"))
        await rig.write("a", b"x")
        assert rig.objects() == {"a": b"x"}
        assert rig.service.status()["conflicts"] == []
        assert rig.service.dirty() == []


async def test_a_lost_answer_is_recognised_after_a_crash(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("a", b"x")
        lose_answer(rig, "put")
        await rig.flush()
        assert rig.objects() == {"a": b"x"}
        image = rig.crash_image(tmp_path / "image")
    async with serving(image, memory, **LATER) as rig:
        await rig.flush()
        assert rig.objects() == {"a": b"x"}
        assert rig.service.status()["conflicts"] == []


async def test_a_fault_of_the_store_is_the_error_of_the_close_and_the_bytes_stay(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.watched.fail("before", "put", Fault("500"), times=10**6)
        with pytest.raises(TimedOut):
            await rig.write("a", b"x")
        assert [each["state"] for each in rig.service.dirty()] == ["queued"]
        rig.watched.rules.clear()
        await rig.flush()
        assert rig.objects() == {"a": b"x"}


async def test_an_unforeseen_exception_in_an_upload_is_counted_and_the_upload_tried_again(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"x")
        rig.watched.fail("before", "put", ValueError("a bug in the adapter"))
        await rig.flush()
        assert rig.service.status()["failed_tasks"] == 1
        await rig.flush()
        assert rig.objects() == {"a": b"x"}


async def test_a_writer_calls_an_upload_off_and_the_store_gets_the_last_bytes(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        fh = await rig.create("a")
        await rig.fs.write(fh, 0, b"one")
        await rig.fs.flush(fh)
        gate = rig.watched.gate("before", "put")
        rig.service._uploader.hurry_all()
        await gate.reached.wait()

        async def write() -> None:
            await rig.fs.write(fh, 0, b"two")

        async def let_go() -> None:
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.open()

        await together(write, let_go)
        assert rig.objects() == {}, "what was under way was called off, and not waited for"
        await rig.close(fh)
        await rig.flush()
        assert rig.objects() == {"a": b"two"}
        assert rig.service.status()["conflicts"] == []
        rig.check()


async def cut(rig: Rig) -> None:
    await rig.fs.setattr(await rig.ino("a"), Changes(size=1))


CHANGES: dict[str, tuple[Callable[[Rig], Awaitable[object]], dict[str, bytes]]] = {
    "cut": (cut, {"a": b"o"}),
    "renamed": (lambda rig: rig.rename("a", "b"), {"b": b"one"}),
    "removed": (lambda rig: rig.unlink("a"), {}),
}


@pytest.mark.parametrize("how", CHANGES)
async def test_who_waits_for_the_store_is_not_left_waiting_when_the_file_is(
    tmp_path: Path, how: str
) -> None:
    change, expected = CHANGES[how]
    async with serving(tmp_path / "c", **LATER) as rig:
        fh = await rig.create("a")
        await rig.fs.write(fh, 0, b"one")
        gate = rig.watched.gate("before", "put")

        async def sync() -> None:
            with trio.fail_after(10):
                await rig.fs.fsync(fh)

        async def interfere() -> None:
            await gate.reached.wait()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change, rig)
                await trio.testing.wait_all_tasks_blocked(0.01)
                gate.open()

        await together(sync, interfere)
        assert rig.objects() == expected
        await rig.close(fh)
        rig.check()


async def test_many_closes_of_one_file_at_once_all_succeed(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        for number in range(10):
            name = f"a{number}"
            handles = [await rig.create(name)]
            handles += [await rig.open(name, os.O_RDWR) for _ in range(5)]
            await rig.fs.write(handles[0], 0, b"x")
            await together(*(lambda fh=fh: rig.fs.flush(fh) for fh in handles))
            for fh in handles:
                await rig.fs.release(fh)


async def test_an_unlinked_file_that_was_never_stored_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"x")
        await rig.unlink("a")
        assert rig.service.dirty() == []
        assert rig.cache.used == rig.disk_bytes() == 0
        assert rig.watched.of("put") == []


async def test_unlinking_a_file_whose_upload_may_have_arrived_removes_the_object(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"x")
        lose_answer(rig, "put")
        await rig.flush()
        assert rig.objects() == {"a": b"x"}
        rig.watched.rules.clear()
        await rig.unlink("a")
        assert rig.objects() == {}


async def test_what_is_written_to_an_unlinked_file_reaches_nobody_but_its_handle(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("a", b"x")
        fh = await rig.open("a", os.O_RDWR)
        await rig.unlink("a")
        await rig.fs.write(fh, 0, b"hidden")
        assert await rig.read_fh(fh) == b"hidden"
        await rig.close(fh)
        assert rig.objects() == {}
        assert rig.cache.used == rig.disk_bytes() == 0


async def test_a_drain_stores_what_is_complete_and_takes_no_more_writes(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"x")
        assert await rig.service.drain(timeout_s=5) == []
        assert rig.objects() == {"a": b"x"}
        with pytest.raises(Exception, match="ending"):
            await rig.write("b", b"x")
        rig.service.resume()
        await rig.write("b", b"x")


async def test_a_drain_reports_lost_bytes_and_stores_the_rest(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"x")
        await rig.write("b", b"y")
        lost = rig.service.dirty()[0]
        os.unlink(rig.cache.data / str(lost["id"]))
        left = await rig.service.drain(timeout_s=5)
        assert [(each["path"], each["state"]) for each in left] == [("a", "parked")]
        assert rig.objects() == {"b": b"y"}


async def test_a_write_under_way_does_not_undo_a_truncation(tmp_path: Path) -> None:
    async with serving(tmp_path) as rig:
        for number in range(150):
            fh = await rig.create(f"f{number}")
            await rig.fs.write(fh, 0, bytes(9000))
            file = rig.fs.files.of(fh)

            async def write(fh: Fh = fh) -> None:
                await rig.fs.write(fh, 200_000, bytes(100_000))

            async def cut(file: OpenFile = file, number: int = number) -> None:
                await file.truncate(number % 2 * 5)

            await together(write, cut, write, cut)
            assert os.fstat(file.entry.fd).st_size == file.size
            await rig.close(fh)
            assert len(rig.objects().pop(f"f{number}")) == file.size
