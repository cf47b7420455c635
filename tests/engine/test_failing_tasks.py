"""An exception that nobody has foreseen, in each task beside the serving: logged, counted, and begun again."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from cachefs import fuse
from cachefs.core.errors import DiskFull, Fault, Unreachable
from cachefs.core.types import Ino, Name
from cachefs.engine.background import Background
from cachefs.engine.untold import Forget, Untold
from tests.engine.rig import LATER, MIB, Rig, serving, until


class Unforeseen(Exception):
    """What a mistake of ours raises."""


def fail_once(patch: pytest.MonkeyPatch, owner: object, name: str) -> list[bool]:
    """Have the next call of *name* fail; the list is filled as soon as it has, and when a later one has not."""
    seen: list[bool] = []
    call: Callable[..., Any] = getattr(owner, name)

    def failing(*args: object, **kwargs: object) -> object:
        seen.append(bool(seen))
        if not seen[-1]:
            raise Unforeseen(name)
        return call(*args, **kwargs)

    patch.setattr(owner, name, failing)
    return seen


def has_logged(caplog: pytest.LogCaptureFixture, what: str) -> bool:
    return any(
        record.exc_info and record.getMessage() == f"{what} failed" for record in caplog.records
    )


async def test_the_uploads_go_on_after_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("file", b"content")
        seen = fail_once(monkeypatch, rig.service._disk.journal, "next_due")
        await rig.flush()
        assert rig.objects() == {"file": b"content"}
        assert seen[:2] == [False, True]
        assert rig.service.status()["failed_tasks"] == 1
    assert has_logged(caplog, "uploads")


async def test_the_eviction_goes_on_after_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "c", cache_size=MIB) as rig:
        for number in range(3):
            await rig.write(f"f{number}", b"x" * 300_000)
        fail_once(monkeypatch, rig.cache, "evictable")
        rig.cache.limit = 500_000
        rig.service._room.kick()
        await until(lambda: rig.service.status()["failed_tasks"] == 1)
        rig.service._room.kick()
        await until(lambda: rig.cache.used <= 500_000)
    assert has_logged(caplog, "eviction")


async def test_the_return_of_the_store_is_seen_after_an_exception(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("file", b"content")
        rig.watched.fail("before", "put", Unreachable("cut off"), times=10**6)
        rig.watched.fail("before", "check", Unforeseen("check"))
        flushed = await rig.service.flush((), wait=False)
        assert flushed["waiting"] == ["file"]
        await until(lambda: rig.service.status()["failed_tasks"] == 1)
        rig.watched.rules.clear()
        await until(lambda: not rig.service.dirty())
    assert has_logged(caplog, "reach")


@pytest.mark.parametrize(
    ("task", "owner", "call"),
    [
        ("checkpoints", lambda rig: rig.service._disk.db, "wal_bytes"),
        ("renames", lambda rig: rig.service._unfinished, "finish"),
        ("late closes", lambda rig: rig.fs.files, "_close_late"),
    ],
)
async def test_every_other_task_is_begun_again_after_an_exception(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
    owner: Callable[[Rig], object],
    call: str,
) -> None:
    async with serving(tmp_path / "c") as rig:
        seen = fail_once(monkeypatch, owner(rig), call)
        rig.service._unfinished._kicked.set()
        rig.fs.files._is_late.set()
        await until(lambda: True in seen)
        assert rig.service.status()["failed_tasks"] == 1
        await rig.write("file", b"content")
    assert has_logged(caplog, task)


async def test_an_upload_that_broke_off_is_told_to_the_close_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.watched.fail("before", "put", Unforeseen("put"))
        with pytest.raises(Fault, match="broke off"):
            await rig.write("file", b"content")
        await rig.flush()
        assert rig.objects() == {"file": b"content"}
        assert rig.service.status()["failed_tasks"] == 1
        rig.check()
    assert has_logged(caplog, "upload")


async def test_a_fetch_that_broke_off_is_an_error_for_its_reader_and_for_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.store("file", b"content")
        rig.watched.fail("during", "get_range", Unforeseen("get"))
        with pytest.raises(Fault, match="broke off"):
            await rig.read("file")
        assert await rig.read("file") == b"content"
        assert rig.service.status()["failed_tasks"] == 1
        rig.check()
    assert has_logged(caplog, "fetch")


async def test_a_full_disk_is_no_failure_of_a_task_and_is_tried_again(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    tries: list[float] = []

    async def work() -> None:
        tries.append(trio.current_time())
        raise DiskFull("full")

    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        background.keep("work", work)
        await trio.sleep(100)
        background.stop()
    assert background.failed == 0
    assert 5 < len(tries) < 30, "neither given up nor without a pause"
    assert not has_logged(caplog, "work")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_a_change_that_the_kernel_cannot_be_told_of_does_not_keep_the_next_from_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bytes] = []

    def tell(inode: int, name: bytes, **_: object) -> None:
        if name == b"first":
            raise Unforeseen
        told.append(name)

    monkeypatch.setattr(pyfuse3, "invalidate_entry_async", tell)

    class Telling:
        untold = Untold()

    fs: Any = Telling()
    with fs.untold.kept():
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            background.keep("telling the kernel", lambda: fuse._tell_kernel(fs))
            for name in (b"first", b"second"):
                fs.untold.offer(Forget(Ino(1), Name(name)))
            await until(lambda: told == [b"second"])
            background.stop()
    assert background.failed == 1
    assert has_logged(caplog, "telling the kernel")


async def test_a_task_that_fails_does_not_end_what_runs_beside_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        raise Unforeseen

    async with trio.open_nursery() as nursery:
        outer = Background(nursery)
        inner = outer.within(nursery)
        inner.start("work", work)
        await until(lambda: outer.failed == 1)
        assert not nursery.cancel_scope.cancel_called
    assert has_logged(caplog, "work")
