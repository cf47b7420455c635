"""A store that does not answer: what is believed meanwhile, who waits for whom and how long, and the return."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from pyfuse3 import FileNameT, FUSEError, InodeT, RequestContext

from cachefs import fuse
from cachefs.core.errors import Denied, Fault, NoEntry, StoreError, TimedOut, Unreachable
from cachefs.core.types import Name, UploadMode
from cachefs.engine import reach
from cachefs.local.inodes import ROOT
from cachefs.remote import deadline
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, LATER, MIB, Rig, serving, store, until
from tests.engine.watched import Gate, Rule

FOR_EVER = 10**6
QUESTIONS = ("head", "list", "check")


def _pause(seconds: float) -> None:
    """Answer slowly: in the worker thread of one request."""
    threading.Event().wait(seconds)


def cut_off(rig: Rig, *operations: str) -> None:
    """Have all such requests fail from now on."""
    for operation in operations or (*QUESTIONS, "put", "get_range", "delete", "copy"):
        rig.watched.fail("before", operation, Unreachable("cut off"), times=FOR_EVER)


async def go_offline(rig: Rig) -> None:
    """Cut the store off, and have the mount find out."""
    cut_off(rig)
    with pytest.raises(Unreachable):
        await rig.service._threads.ask(rig.service._store.check)
    assert rig.health["is_offline"]


async def test_offline_what_is_known_is_not_asked_for(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "d/a", b"content")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        assert await rig.read("d/a") == b"content"
        await rig.names("d")
        await go_offline(rig)
        rig.watched.forget()

        assert await rig.read("d/a") == b"content"
        assert await rig.names("d") == ["a"]

        assert set(rig.watched.count()) <= {"check"}


async def test_the_first_question_after_the_return_is_asked_of_the_store(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        assert await rig.read("a") == b"old"
        for _ in range(20):
            await go_offline(rig)
            assert await rig.read("a") == b"old"
            rig.watched.rules.clear()
            rig.store("a", b"new")
            assert await rig.read("a") == b"new"
            rig.store("a", b"old")
            assert await rig.read("a") == b"old"


async def test_one_object_that_cannot_be_had_is_no_outage(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        assert await rig.read("a") == b"old"
        rig.watched.fail("before", "list", Unreachable("stuck"), key="", times=FOR_EVER)
        with pytest.raises(Unreachable):
            await rig.ino("b")
        rig.store("a", b"new")

        assert await rig.read("a") == b"new"


async def test_a_name_is_absent_offline_only_where_it_may_be_made(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "d/a", b"content")
    async with serving(
        tmp_path / "c", memory, **{**FOREVER_ASKING, "upload": UploadMode.BACKGROUND}
    ) as rig:
        await rig.names("d")
        await go_offline(rig)
        rig.store("d/b", b"theirs")

        with pytest.raises(NoEntry):
            await rig.ino("d/b")
        await rig.write("d/b", b"ours")
        assert await rig.read("d/b") == b"ours"
        rig.watched.rules.clear()
        await until(lambda: not rig.service.dirty())

        contents = sorted(rig.objects().values())
        assert contents == [b"content", b"ours", b"theirs"]
    async with serving(tmp_path / "close", memory, **FOREVER_ASKING) as rig:
        await rig.names("d")
        await go_offline(rig)
        with pytest.raises(Unreachable):
            await rig.ino("d/c")


async def test_a_directory_that_could_not_be_removed_offline_is_still_listed(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "d/a", b"content")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        await rig.names("d")
        await go_offline(rig)
        with pytest.raises(Unreachable):
            await rig.rmdir("d")

        assert await rig.names("d") == ["a"]


async def test_what_was_put_off_is_uploaded_at_once_when_the_store_is_back(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", upload=UploadMode.BACKGROUND, upload_delay_s=0) as rig:
        cut_off(rig)
        await rig.write("a", b"content")
        await until(lambda: bool(rig.health["is_offline"]))
        await until(lambda: rig.service.dirty()[0]["state"] == "queued")
        # As after many tries in vain.
        put_off_for_ns = 50 * 10**9
        rig.service._disk.db.execute(
            "UPDATE intents SET tries = 6, due_ns = ?", (time.time_ns() + put_off_for_ns,)
        )
        await until(lambda: len(rig.watched.of("check")) >= 2)
        rig.watched.rules.clear()

        await until(lambda: not rig.service.dirty())


async def _look_seldom(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the store off, and come to where nobody looks for a long time whether it is back."""
    monkeypatch.setattr(reach, "_FIRST_WAIT_S", 600)
    monkeypatch.setattr(reach, "_LONGEST_WAIT_S", 600)
    rig.watched.forget()
    await go_offline(rig)
    before = len(rig.watched.of("check"))
    await until(lambda: len(rig.watched.of("check")) > before)
    await trio.testing.wait_all_tasks_blocked(0.05)


@pytest.mark.parametrize("wait", [True, False])
async def test_a_flush_has_the_store_looked_at_that_is_thought_to_be_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, wait: bool
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"content")
        await _look_seldom(rig, monkeypatch)
        rig.watched.rules.clear()

        done = await rig.service.flush((), wait=wait)

        assert done["uploaded"] == wait
        await until(lambda: not rig.service.dirty())


@pytest.mark.parametrize(
    ("error", "times"), [(Denied("expired"), 1), (Unreachable("cut off"), FOR_EVER)]
)
async def test_a_flush_does_not_fail_for_a_try_that_began_before_it(
    tmp_path: Path, error: StoreError, times: int
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"content")
        gate = Gate()

        def fail() -> None:
            gate()
            raise error

        rig.watched.on("before", "put", fail, times=times)
        rig.watched.on("before", "check", rig.watched.rules.clear)  # when that try is over
        await rig.service.flush((), wait=False)
        await gate.reached.wait()
        done: list[dict[str, object]] = []

        async def flush() -> None:
            done.append(await rig.flush())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            await trio.testing.wait_all_tasks_blocked(0.05)
            gate.open()
        assert done == [{"uploaded": 1, "waiting": [], "failed": []}]


async def test_a_close_has_the_store_looked_at_that_is_thought_to_be_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "c") as rig:
        fh = await rig.create("a")
        await rig.fs.write(fh, 0, b"content")
        await _look_seldom(rig, monkeypatch)
        rig.watched.rules.clear()

        await rig.close(fh)

        assert rig.objects() == {"a": b"content"}


async def test_uploads_go_on_where_the_store_answers_before_anybody_has_looked(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("a", b"content")
        (intent,) = rig.service._disk.journal.all()
        rig.service._disk.journal.hurry(intent.entry, 0)
        cut_off(rig)
        with pytest.raises(Unreachable):
            rig.service._store.check()  # in no thread of its own: nobody is told as yet
        rig.service._uploader.kick()
        await trio.testing.wait_all_tasks_blocked(0.05)

        rig.service._reach.notice()
        rig.watched.rules.clear()
        rig.service._store.check()
        rig.service._reach.notice()

        await until(lambda: not rig.service.dirty())


async def test_nothing_is_uploaded_in_vain_while_the_store_is_offline(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", upload=UploadMode.BACKGROUND, upload_delay_s=0) as rig:
        await go_offline(rig)
        rig.watched.forget()
        for number in range(20):
            await rig.write(f"new{number}", b"content")
        await until(lambda: len(rig.watched.of("check")) >= 2)
        assert not rig.watched.of("put")
        assert {one["state"] for one in rig.service.dirty()} == {"queued"}


async def test_who_waits_for_another_waits_no_longer_than_the_operation_may(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        ino = await rig.ino("a")
        gate = rig.watched.gate("before", "head", key="a", times=FOR_EVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.lookup, ROOT, Name(b"a"))
            with trio.fail_after(20):
                await gate.reached.wait()
                # The same question: last known is shown, and the wait was the operation's.
                with deadline.limited(0.1):
                    assert (await rig.fs.lookup(ROOT, Name(b"a"))).ino == ino
            gate.open()


async def test_who_waits_for_a_rename_waits_no_longer_than_the_operation_may(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory) as rig:
        fh = await rig.open("a")
        gate = rig.watched.gate("before", "put", key="b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.rename, "a", "b")
            with trio.fail_after(20):
                await gate.reached.wait()
                with deadline.limited(0.1), pytest.raises(TimedOut):
                    await rig.unlink("a")
            gate.open()
        await rig.fs.release(fh)
        assert rig.objects() == {"b": b"content"}


async def test_a_request_of_the_kernel_waits_no_longer_than_the_mount_lets_it(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory) as rig:
        fh = await rig.open("a")
        door = fuse.Door(rig.fs, lambda: None, timeout_s=0.1)
        gate = rig.watched.gate("before", "put", key="b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.rename, "a", "b")
            with trio.fail_after(20):
                await gate.reached.wait()
                with pytest.raises(FUSEError) as refused:
                    await door.unlink(InodeT(ROOT), FileNameT(b"a"), RequestContext())
            gate.open()
        assert refused.value.errno == errno.EIO
        await rig.fs.release(fh)
        assert rig.objects() == {"b": b"content"}


async def test_a_read_waits_as_long_as_bytes_come(tmp_path: Path) -> None:
    memory = MemoryStore()
    content = bytes(range(256)) * 4096 * 4
    store(memory, "a", content)
    async with serving(tmp_path / "c", memory, part_size=4 * MIB) as rig:
        # Each chunk comes late, and all of them long after the time of one operation.
        rig.watched.on("during", "get_range", lambda: _pause(0.3), times=FOR_EVER)
        fh = await rig.open("a")
        with deadline.limited(0.5):
            assert await rig.read_fh(fh) == content
        await rig.fs.release(fh)


async def test_a_read_of_bytes_that_do_not_come_ends_in_time_and_its_repetition_at_once(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory) as rig:
        gate = rig.watched.gate("before", "get_range", times=FOR_EVER)
        fh = await rig.open("a")
        with trio.fail_after(20):
            with deadline.limited(0.6), pytest.raises(TimedOut):
                await rig.fs.read(fh, 0, 7)
            with deadline.limited(60), pytest.raises(TimedOut, match="just now"):
                await rig.fs.read(fh, 0, 7)
        gate.open()
        await until(lambda: rig.service._fetcher.fetched == 7)
        assert await rig.read_fh(fh) == b"content"
        await rig.fs.release(fh)


async def test_an_unlink_keeps_time_for_itself_when_an_open_file_cannot_be_fetched(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory, timeout_s=1) as rig:
        gate = rig.watched.gate("before", "get_range", times=FOR_EVER)
        fh = await rig.open("a")
        with deadline.limited(1):
            await rig.unlink("a")
        gate.open()
        await rig.fs.release(fh)
        assert rig.objects() == {}


async def test_a_close_in_vain_ends_in_time_and_the_bytes_stay_queued(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", timeout_s=1) as rig:
        fh = await rig.create("a")
        await go_offline(rig)
        await rig.fs.write(fh, 0, b"content")
        with deadline.limited(1), trio.fail_after(10), pytest.raises(TimedOut):
            await rig.fs.flush(fh)
        await rig.fs.release(fh)
        assert [one["path"] for one in rig.service.dirty()] == ["a"]
        rig.watched.rules.clear()
        await until(lambda: not rig.service.dirty())
        assert rig.objects() == {"a": b"content"}


async def test_without_offline_reads_only_an_open_that_need_not_ask_is_let_in(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory, offline_reads=False, **FOREVER_ASKING) as rig:
        assert await rig.read("a") == b"content"
        await go_offline(rig)
        ino = await rig.ino("a")
        rig.service._names.doubt(ino)  # else it was asked for by the same open, a moment ago
        with pytest.raises(Fault):
            await rig.fs.open(ino, os.O_RDONLY)
    async with serving(tmp_path / "later", memory, offline_reads=False, **LATER) as rig:
        await rig.write("b", b"ours")
        await go_offline(rig)
        assert await rig.read("b") == b"ours"


async def test_where_requests_vanish_no_question_waits_for_the_next_look(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        assert await rig.read("a") == b"content"
        await go_offline(rig)

        def vanish() -> None:
            _pause(1.2)  # longer than any answer takes, shorter than a look may
            raise Unreachable("silence")

        rig.watched.rules.insert(0, Rule("before", "check", vanish, times=FOR_EVER))
        rig.watched.forget()
        assert await rig.read("a") == b"content"
        for _ in range(30):
            assert await rig.read("a") == b"content"
        assert len(rig.watched.of("check")) < 10
