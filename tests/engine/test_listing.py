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


@pytest.mark.parametrize("nth", [0, 1])
async def test_whatever_ends_the_fetching_of_pages_nothing_is_taken_to_be_gone(
    tmp_path: Path, nth: int
) -> None:
    async with serving(tmp_path, filled("a", "b", "c", "d", "e"), **FOREVER_ASKING) as rig:
        await rig.names()
        rig.service._disk.inodes.age(ROOT)
        turns = iter(range(10**6))

        def stumble() -> None:
            if next(turns) == nth:
                raise RuntimeError("unforeseen")

        rig.watched.on("before", "list", stumble, times=10**6)
        assert await rig.names() == ["a", "b", "c", "d", "e"]
        await until(lambda: rig.service.status()["failed_tasks"] == 1)


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


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
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


# ---- what was listed before -----------------------------------------------------------------

LARGE = [f"f{number:04}" for number in range(1001)]


def large(*more: str) -> MemoryStore:
    """A store whose root takes more than one page of the usual size."""
    memory = MemoryStore()
    for key in (*LARGE, *more):
        store(memory, key, b"")
    return memory


def grow_old(rig: Rig, seconds: float) -> None:
    """Let the root have been listed so long ago."""
    listed_ns = rig.service._names.now_ns() - int(seconds * 10**9)
    rig.service._disk.inodes.update(ROOT, listed_ns=listed_ns)


async def test_a_large_directory_that_was_listed_is_shown_at_once_and_refreshed_beside(
    tmp_path: Path,
) -> None:
    memory = large()
    async with serving(tmp_path, memory) as rig:
        assert await rig.names() == LARGE
    async with serving(tmp_path, memory) as rig:  # the next mount knows it, too
        rig.store("new", b"x")
        rig.remove(LARGE[0])
        grow_old(rig, 4000)
        gate = rig.watched.gate("before", "list")
        for _ in range(3):
            assert await rig.names() == LARGE
        assert len(rig.watched.of("list")) == 1
        gate.open()
        await until(lambda: not rig.fs._listings._runs)
        assert len(rig.watched.of("list")) == 2
        assert await rig.names() == [*LARGE[1:], "new"]
        assert len(rig.watched.of("list")) == 2


async def test_a_directory_of_one_page_is_asked_for_first_but_not_waited_for_long(
    tmp_path: Path,
) -> None:
    memory = filled("a", "b")
    async with serving(tmp_path, memory) as rig:
        await rig.names()
    async with serving(tmp_path, memory) as rig:
        rig.store("c", b"x")
        grow_old(rig, 4000)
        assert await rig.names() == ["a", "b", "c"]
        rig.store("d", b"x")
        grow_old(rig, 4000)
        gate = rig.watched.gate("before", "list")
        assert await rig.names() == ["a", "b", "c"]
        gate.open()
        await until(lambda: not rig.fs._listings._runs)
        assert await rig.names() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("why", ["old", "ttl", "refreshed", "cut off"])
async def test_a_directory_is_asked_for_first_where_what_is_known_of_it_may_not_do(
    tmp_path: Path, why: str
) -> None:
    memory = large()
    lasting = FOREVER_ASKING if why == "ttl" else {}
    async with serving(tmp_path / "c", memory, **lasting) as rig:
        await rig.names()
        image = rig.crash_image(tmp_path / "image")
    where = image if why == "cut off" else tmp_path / "c"
    async with serving(where, memory, **lasting) as rig:
        store(memory, "new", b"x")
        grow_old(rig, 90_000 if why == "old" else 4000)
        if why == "refreshed":
            await rig.service.refresh("")
        assert await rig.names() == [*LARGE, "new"]


async def test_a_refresh_that_is_denied_is_told_to_who_asks_next(tmp_path: Path) -> None:
    memory = large()
    async with serving(tmp_path, memory) as rig:
        await rig.names()
    async with serving(tmp_path, memory) as rig:
        grow_old(rig, 4000)
        rig.watched.fail("before", "list", Denied("no more"), times=10**6)
        assert await rig.names() == LARGE
        await until(lambda: not rig.fs._listings._runs)
        with pytest.raises(Denied):
            await rig.names()


# ---- walks ----------------------------------------------------------------------------------

WALKED = [f"d{number:02}" for number in range(12)]


def walked(rig: Rig) -> list[str]:
    """Of which directories something was listed."""
    return sorted({call.key.rstrip("/") for call in rig.watched.of("list")} - {""})


async def test_who_opens_one_directory_after_the_other_finds_the_next_ones_listed(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, filled(*(f"{name}/x" for name in WALKED))) as rig:
        for count, name in enumerate(await rig.names()):
            assert await rig.names(name) == ["x"]
            ahead = WALKED[: count + 1 + (3 if count >= 2 else 0)]
            await until(lambda expected=ahead: walked(rig) == expected)  # type: ignore[misc]
        assert len(rig.watched.of("list")) - len(rig.watched.of("list", "")) == len(WALKED)


async def test_nothing_is_listed_ahead_of_who_walks_in_no_order(tmp_path: Path) -> None:
    async with serving(tmp_path, filled(*(f"{name}/x" for name in WALKED))) as rig:
        await rig.names()
        for name in ("d04", "d02", "d07", "d06", "d09"):
            assert await rig.names(name) == ["x"]
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert walked(rig) == ["d02", "d04", "d06", "d07", "d09"]


async def test_what_is_listed_ahead_in_vain_costs_little_and_spoils_nothing(
    tmp_path: Path,
) -> None:
    memory = filled(*(f"{name}/{number:02}" for name in WALKED[:6] for number in range(40)))
    async with serving(tmp_path, memory) as rig:
        await rig.names()
        for name in WALKED[:3]:
            await rig.names(name)
        await until(lambda: walked(rig) == WALKED[:6])
        await trio.testing.wait_all_tasks_blocked(0.02)
        for name in WALKED[3:6]:
            assert len(rig.watched.of("list", f"{name}/")) <= 4
        assert len(await rig.names(WALKED[4])) == 40
