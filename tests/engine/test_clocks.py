"""The machine's clock is set by years, either way: nothing is lost, invented, or believed for years."""

import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from cachefs.core.errors import Stale
from cachefs.core.eviction import Policy
from cachefs.core.types import UploadMode
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, serving, store, until

_YEARS_NS: Final = 10 * 365 * 86400 * 10**9
SOON: Final[dict[str, Any]] = {"upload": UploadMode.BACKGROUND, "upload_delay_s": 0.05}


class MachineClock:
    """The time of day, which the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = time.time_ns
        self.ahead_ns = 0
        monkeypatch.setattr(time, "time_ns", lambda: self._real() + self.ahead_ns)
        monkeypatch.setattr(time, "time", lambda: (self._real() + self.ahead_ns) / 1e9)

    def set_ahead(self, years: int) -> None:
        """Set it by so many decades ahead of the real time."""
        self.ahead_ns = years * _YEARS_NS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MachineClock:
    return MachineClock(monkeypatch)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until *condition* holds; an ESTALE is for the kernel to ask again."""
    with trio.fail_after(10):
        while True:
            with contextlib.suppress(Stale):
                if await condition():
                    return
            await trio.sleep(0.01)


@pytest.mark.parametrize("jumps", [(1, 0), (-1, 0), (1, -1, 0)])
async def test_what_waits_is_uploaded_over_jumps_of_the_clock_and_no_conflict_is_invented(
    tmp_path: Path, clock: MachineClock, jumps: tuple[int, ...]
) -> None:
    async with serving(tmp_path, **SOON) as rig:
        await rig.write("before", b"1")
        for number, years in enumerate(jumps):
            await rig.write(f"waiting{number}", b"2")
            await rig.write("again", b"%d" % number)
            clock.set_ahead(years)
            await rig.write(f"after{number}", b"3")
            await rig.write("again", b"after %d" % number)
            await until(lambda: not rig.service.dirty())
        assert rig.objects()["again"] == b"after %d" % (len(jumps) - 1)
        assert len(rig.objects()) == 2 + 2 * len(jumps)
        assert not rig.service.status()["conflicts"]
        rig.check()


@pytest.mark.parametrize("years", [1, -1])
async def test_what_others_change_is_seen_after_a_jump_of_the_clock(
    tmp_path: Path, clock: MachineClock, years: int
) -> None:
    async with serving(tmp_path, metadata_ttl_s=0.3, negative_ttl_s=0.3) as rig:
        rig.store("file", b"old")
        rig.store("gone", b"old")
        assert await rig.names() == ["file", "gone"]
        assert not await rig.exists("new")
        clock.set_ahead(years)
        rig.store("file", b"new and longer")
        rig.store("new", b"new")
        rig.remove("gone")

        async def sees_all() -> bool:
            return (
                await rig.exists("new")
                and not await rig.exists("gone")
                and await rig.names() == ["file", "new"]
                and await rig.read("file") == b"new and longer"
            )

        await eventually(sees_all)


async def test_a_name_that_was_removed_before_the_clock_was_set_back_may_come_back(
    tmp_path: Path, clock: MachineClock
) -> None:
    async with serving(tmp_path, **FOREVER_ASKING) as rig:
        clock.set_ahead(1)
        rig.store("file", b"ours to remove")
        await rig.unlink("file")
        clock.set_ahead(0)
        rig.store("file", b"made by another")

        async def is_seen() -> bool:
            return await rig.names() == ["file"]

        await eventually(is_seen)
        assert await rig.read("file") == b"made by another"


async def test_what_a_fast_clock_saw_is_asked_for_again_after_a_restart(
    tmp_path: Path, clock: MachineClock
) -> None:
    memory = MemoryStore()
    store(memory, "dir/file", b"old")
    clock.set_ahead(1)
    async with serving(tmp_path, memory) as rig:
        assert await rig.names("dir") == ["file"]
        assert await rig.read("dir/file") == b"old"
    clock.set_ahead(0)
    store(memory, "dir/file", b"new")
    store(memory, "dir/other", b"new")
    async with serving(tmp_path, memory) as rig:  # whose answers are good for an hour
        assert await rig.read("dir/file") == b"new"
        assert await rig.names("dir") == ["file", "other"]


async def test_the_mode_of_a_directory_that_a_fast_clock_saw_is_asked_for_again_after_a_restart(
    tmp_path: Path, clock: MachineClock
) -> None:
    seconds = itertools.count(1_700_000_000)  # the store's own clock is right
    memory = MemoryStore(now_ns=lambda: next(seconds) * 10**9)
    clock.set_ahead(1)
    store(memory, "dir/", b"", {"mode": str(0o040755)})
    async with serving(tmp_path, memory) as rig:
        assert (await rig.fs.getattr(await rig.ino("dir"))).attrs.mode == 0o755
    clock.set_ahead(0)
    store(memory, "dir/", b"", {"mode": str(0o040700)})
    async with serving(tmp_path, memory) as rig:  # whose answers are good for an hour
        assert (await rig.fs.getattr(await rig.ino("dir"))).attrs.mode == 0o700


async def test_nothing_is_kept_for_years_because_a_fast_clock_says_that_it_is_in_use(
    tmp_path: Path, clock: MachineClock
) -> None:
    memory = MemoryStore()
    for name in ("long ago", "just now"):
        store(memory, name, bytes(100_000))
    clock.set_ahead(1)
    async with serving(tmp_path, memory, policy=Policy.LRU) as rig:
        await rig.read("long ago")
    clock.set_ahead(0)
    async with serving(tmp_path, memory, policy=Policy.LRU) as rig:
        await rig.read("just now")
        oldest = [rig.cache.load(each.entry) for each in rig.cache.evictable(10)]
        names = [rig.service._disk.inodes.key_of(entry.ino) for entry in oldest if entry]

    assert names == ["long ago", "just now"]


async def test_a_file_has_the_times_that_the_machine_has(
    tmp_path: Path, clock: MachineClock
) -> None:
    async with serving(tmp_path) as rig:
        clock.set_ahead(-1)
        before = time.time_ns()
        await rig.write("file", b"content")
        await rig.mkdir("dir")
        after = time.time_ns()
        for name in ("file", "dir"):
            found = await rig.fs.getattr(await rig.ino(name))
            assert before <= found.attrs.mtime_ns <= after
            assert before <= found.attrs.ctime_ns <= after
