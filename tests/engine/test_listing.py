"""Directories are shown page by page: at once, whole, each name once, and with the error where the listing has one."""

import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cachefs.core.errors import Denied, Fault, StoreError, TimedOut
from cachefs.core.types import Key, Kind, Name
from cachefs.engine.listing import Reader
from cachefs.local.inodes import ROOT, Difference
from cachefs.remote import deadline
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, Rig, serving, store, until
from tests.engine.watched import Gate

PAGE = 2


def filled(*keys: str) -> MemoryStore:
    """A store that lists two names at a time."""
    memory = MemoryStore(page_size=PAGE)
    for key in keys:
        store(memory, key, b"x")
    return memory


async def next_name(rig: Rig, reader: Reader, after: int = 0) -> tuple[str, int] | None:
    """One name, as a program with a tiny buffer reads it, and where to go on; None: it was the last."""
    for name, found in await rig.fs.readdir(reader, after, 1):
        return name.decode(), found.ino
    return None


def hold_second_page(rig: Rig, key: str) -> Gate:
    """Hold the second page of the next listing of *key* back."""
    gate, turns = Gate(), iter(range(10**6))
    rig.watched.on(
        "before", "list", lambda: gate() if next(turns) == 1 else None, key=key, times=10**6
    )
    return gate


async def rest(rig: Rig, reader: Reader, after: int = 0) -> list[str]:
    """All names that follow, one at a time."""
    names = []
    while found := await next_name(rig, reader, after):
        names.append(found[0])
        after = found[1]
        await trio.lowlevel.checkpoint()
    return names


async def test_the_first_names_come_before_the_listing_is_complete(tmp_path: Path) -> None:
    async with serving(tmp_path, filled("d/a", "d/b", "d/c", "d/d", "d/e")) as rig:
        ino = await rig.ino("d")
        gate = hold_second_page(rig, "d/")
        reader = await rig.fs.opendir(ino)
        first = await next_name(rig, reader)
        assert first is not None
        assert first[0] == "a"
        assert not rig.service.fs._listings._runs[ino].is_over
        gate.open()
        assert await rest(rig, reader, first[1]) == ["b", "c", "d", "e"]
        assert await rest(rig, reader) == ["a", "b", "c", "d", "e"]  # after a seek to the start


async def test_a_listing_that_fails_half_way_is_an_error_behind_what_it_has_shown(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, filled("d/a", "d/b", "d/c")) as rig:
        ino = await rig.ino("d")
        rig.watched.on(
            "after",
            "list",
            lambda: rig.watched.fail("before", "list", Fault("down"), times=10**6),
            key="d/",
        )
        reader = await rig.fs.opendir(ino)
        first = await next_name(rig, reader)
        assert first is not None
        for _ in range(2):
            with pytest.raises(StoreError):
                await rest(rig, reader, first[1])
        rig.watched.rules.clear()
        await rig.fs.rewinddir(reader)
        assert await rest(rig, reader) == ["a", "b", "c"]


async def test_a_denial_in_the_middle_is_told_although_the_directory_was_known(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, filled("a", "b", "c"), **FOREVER_ASKING) as rig:
        assert await rig.names() == ["a", "b", "c"]
        rig.service._disk.inodes.age(ROOT)
        rig.watched.on(
            "after",
            "list",
            lambda: rig.watched.fail("before", "list", Denied("no more"), times=10**6),
        )
        with pytest.raises(Denied):
            await rig.names()


async def test_all_who_ask_at_once_share_one_listing(tmp_path: Path) -> None:
    async with serving(tmp_path, filled("a", "b", "c", "d", "e")) as rig:
        found: list[list[str]] = []

        async def look() -> None:
            found.append(await rig.names())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(look)
        assert found == [["a", "b", "c", "d", "e"]] * 5
        assert len(rig.watched.of("list")) == 3


async def test_a_listing_ends_although_whoever_began_it_has_gone(tmp_path: Path) -> None:
    async with serving(tmp_path, filled("a", "b", "c", "d", "e")) as rig:
        gate = rig.watched.gate("before", "list")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.opendir, ROOT)
            await gate.reached.wait()
            nursery.cancel_scope.cancel()
        gate.open()
        await until(lambda: not rig.fs._listings._runs)
        assert len(rig.watched.of("list")) == 3
        assert await rig.names() == ["a", "b", "c", "d", "e"]
        assert len(rig.watched.of("list")) == 3


async def test_nobody_waits_for_a_page_longer_than_the_operation_may(tmp_path: Path) -> None:
    async with serving(tmp_path, filled("d/a", "d/b", "d/c")) as rig:
        ino = await rig.ino("d")
        gate = hold_second_page(rig, "d/")
        reader = await rig.fs.opendir(ino)
        first = await next_name(rig, reader)
        assert first is not None
        with deadline.limited(0.05), pytest.raises(TimedOut):
            await rest(rig, reader, first[1])
        gate.open()
        assert await rest(rig, reader) == ["a", "b", "c"]


async def test_pages_are_fetched_ahead_of_their_readers_but_not_without_bound(
    tmp_path: Path,
) -> None:
    memory = filled(*(f"{number:02}" for number in range(40)))
    async with serving(tmp_path, memory) as rig:
        merged: list[int] = []
        gate = trio.Event()
        carry_out = rig.service._names._carry_out

        async def carry_out_slowly(difference: Difference) -> None:
            merged.append(len(rig.watched.of("list")))
            await gate.wait()
            await carry_out(difference)

        rig.service._names._carry_out = carry_out_slowly  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.opendir, ROOT)
            await until(lambda: len(rig.watched.of("list")) >= 3)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert merged[0] >= 1
            assert len(rig.watched.of("list")) == 3
            gate.set()
        assert len(await rig.names()) == 40


async def test_what_is_gone_is_not_shown_while_its_listing_is_under_way(tmp_path: Path) -> None:
    memory = filled("a", "b", "c", "d", "e")
    async with serving(tmp_path, memory, **FOREVER_ASKING) as rig:
        await rig.names()
        rig.service._disk.inodes.age(ROOT)
        rig.remove("a")
        rig.store("f", b"x")
        reader = await rig.fs.opendir(ROOT)
        assert await rest(rig, reader) == ["b", "c", "d", "e", "f"]


async def test_a_name_that_is_known_but_not_seen_yet_holds_nothing_back_that_is_lost(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, filled("a", "b", "c", "y", "z"), **FOREVER_ASKING) as rig:
        await rig.ino("z")  # gets a lower number than those that the listing shows before it
        assert sorted(await rest(rig, await rig.fs.opendir(ROOT))) == ["a", "b", "c", "y", "z"]


async def test_what_is_made_and_removed_here_while_a_listing_is_under_way_is_shown_so(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, filled("a", "b", "c", "d")) as rig:
        gate = rig.watched.gate("after", "list")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.fs.opendir, ROOT)
            await gate.reached.wait()
            await rig.write("new", b"x")
            rig.service._disk.inodes.mint(  # as a create that waits for its room
                ROOT, Name(b"made"), "made", Kind.FILE, now_ns=1, mode=0, uid=0, gid=0
            )
            gate.open()
        assert await rig.names() == ["a", "b", "c", "d", "made", "new"]


_COMPONENTS = st.sampled_from(["a", "a-", "a-b", "a.b", "a0", "b", "", "."])
_KEYS = st.lists(_COMPONENTS, min_size=1, max_size=3).map("/".join).filter(bool)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(_KEYS, max_size=12), st.sets(_KEYS, max_size=12), st.integers(1, 4))
@example({"a", "a-", "a-b", "a/b"}, {"a", "a-", "a-b"}, 1)
@example({"a", "a-"}, {"a", "a-", "a-b", "a/b"}, 1)
def test_a_directory_that_is_read_while_it_is_listed_shows_each_name_once(
    before: set[str], after: set[str], page_size: int
) -> None:
    async def run() -> None:
        memory = MemoryStore(page_size=page_size)
        for key in before:
            store(memory, key, b"x")
        with tempfile.TemporaryDirectory(prefix="cft.") as directory:
            async with serving(Path(directory) / "c", memory, **FOREVER_ASKING) as rig:
                for keys in (before, after):
                    for key in before | after:
                        memory.delete(Key(key))
                    for key in keys:
                        store(memory, key, b"x")
                    rig.service._disk.inodes.age(ROOT)
                    shown = await rest(rig, await rig.fs.opendir(ROOT))
                    assert sorted(shown) == await rig.names()

    trio.run(run)
