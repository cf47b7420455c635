"""What the kernel is still to be told, and that an open which it makes fail fails but once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from cachefs import fuse
from cachefs.core.types import Ino, Name
from cachefs.engine.untold import Forget, Untold
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import Rig, serving, store


@asynccontextmanager
async def seen_by_a_kernel(rig: Rig) -> AsyncIterator[trio.Nursery]:
    """Have a kernel, which takes what it is told, know the tree."""
    with rig.fs.untold.kept():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fuse._tell_kernel, rig.fs)
            yield nursery
            nursery.cancel_scope.cancel()


def forget(number: int) -> Forget:
    return Forget(Ino(number), Name(b"name"))


async def test_what_waits_is_there_for_whoever_comes_first_also_while_another_waits_for_it() -> (
    None
):
    untold = Untold()
    with untold.kept():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(untold.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert untold.offer(forget(1))
            assert untold.take() == forget(1)
            assert untold.take() is None
            assert untold.offer(forget(2))


async def test_it_is_told_in_order_and_more_than_there_is_room_for_waits() -> None:
    untold = Untold()
    with untold.kept():
        number = 0
        while untold.offer(forget(number)):
            number += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(untold.put, forget(number))
            await trio.testing.wait_all_tasks_blocked()
            assert untold.take() == forget(0)
            await trio.testing.wait_all_tasks_blocked()
            taken = [untold.take() for _ in range(number)]
        assert taken == [forget(each) for each in range(1, number + 1)]
        assert untold.take() is None


async def test_who_waits_for_room_waits_no_longer_than_there_is_a_kernel() -> None:
    untold = Untold()
    async with trio.open_nursery() as nursery:
        with untold.kept():
            while untold.offer(forget(1)):
                pass
            nursery.start_soon(untold.put, forget(2))
            await trio.testing.wait_all_tasks_blocked()
    assert untold.take() is None


async def test_without_a_kernel_nothing_waits_to_be_told_and_nobody_for_room(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    for number in range(5000):  # more than are kept for a kernel
        store(memory, f"d/{number}", b"x")
    async with serving(tmp_path, memory) as rig:
        await rig.names("d")
        with trio.fail_after(60):
            assert await rig.service.refresh("d") == 5001


@pytest.mark.parametrize("pauses", range(5))
async def test_an_open_that_finds_another_length_has_the_kernel_look_the_name_up_but_once(
    pauses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_to_forget: list[int] = []

    def invalidate(inode: int, **_: object) -> None:
        made_to_forget.append(inode)

    monkeypatch.setattr(pyfuse3, "invalidate_inode", invalidate)
    monkeypatch.setattr(pyfuse3, "invalidate_entry_async", lambda *_, **__: None)
    async with serving(tmp_path) as rig, seen_by_a_kernel(rig):
        store(rig.memory, "a", b"old")
        door: Any = fuse.Door(rig.fs, lambda: None, timeout_s=10)
        ino = (await door.lookup(1, b"a", None)).st_ino
        store(rig.memory, "a", b"newer")
        assert await rig.service.refresh("a")
        await trio.testing.wait_all_tasks_blocked()
        await door.lookup(1, b"a", None)
        for _ in range(pauses):  # while the kernel is being told
            await trio.lowlevel.checkpoint()

        with pytest.raises(pyfuse3.FUSEError):
            await door.open(ino, 0, None)

        assert made_to_forget == [ino]
        await trio.testing.wait_all_tasks_blocked()
        assert made_to_forget == [ino]
        await door.lookup(1, b"a", None)
        assert (await door.open(ino, 0, None)).fh
