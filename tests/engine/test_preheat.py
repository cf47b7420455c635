"""Files that are fetched before any program asks for them."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.core.errors import IsDirectory, NoEntry, NoRoom, TreeError
from cachefs.engine import preheat
from cachefs.engine.recovery import open_cache
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import MIB, Rig, serving, store

LONG_AGO = 10**18


async def heat(
    rig: Rig, path: str, *, used_ns: int = LONG_AGO, may_evict: bool = False
) -> dict[str, Any]:
    return await rig.service.preheat(path, used_ns=used_ns, may_evict=may_evict)


def used_ns(rig: Rig, path: str) -> object:
    return next(row["used_ns"] for row in rig.service.entries(0) if row["path"] == path)


async def test_a_file_is_fetched_whole_and_then_read_without_the_store(tmp_path: Path) -> None:
    memory, content = MemoryStore(), os.urandom(3 * MIB + 5)
    store(memory, "d/a", content)
    async with serving(tmp_path / "c", memory) as rig:
        told = await heat(rig, "d/a")
        assert told == {
            "heat": "cached",
            "size": len(content),
            "cached": len(content),
            "fetched": len(content),
        }
        rig.watched.forget()

        assert await rig.read("d/a") == content
        assert not rig.watched.of("get_range")
        assert (await heat(rig, "d/a"))["fetched"] == 0
        rig.check()


async def test_one_question_fetches_one_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preheat, "_SLICE", MIB)
    memory = MemoryStore()
    store(memory, "a", os.urandom(2 * MIB + 5))
    async with serving(tmp_path / "c", memory) as rig:
        told = [await heat(rig, "a") for _ in range(3)]

    assert [(each["heat"], each["fetched"]) for each in told] == [
        ("partial", MIB),
        ("partial", MIB),
        ("cached", 5),
    ]


async def test_preheating_evicts_nothing_unless_it_may(tmp_path: Path) -> None:
    memory = MemoryStore()
    for name in "abcd":
        store(memory, name, os.urandom(MIB))
    async with serving(tmp_path / "c", memory, cache_size=3 * MIB) as rig:
        assert [(await heat(rig, name))["heat"] for name in "abcd"] == [
            "cached",
            "cached",
            "full",
            "full",
        ]
        assert rig.service.presence(["a", "b", "c"]) == [(MIB, MIB), (MIB, MIB), (MIB, 0)]

        assert (await heat(rig, "c", may_evict=True))["heat"] == "cached"
        assert sum(cached > 0 for _, cached in rig.service.presence(list("abc"))) == 2
        rig.check()


async def test_a_file_that_can_never_fit_is_said(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "large", bytes(4 * MIB))
    async with serving(tmp_path / "c", memory, cache_size=4 * MIB) as rig:
        with pytest.raises(NoRoom, match="more than the cache"):
            await heat(rig, "large", may_evict=True)


async def test_what_is_preheated_counts_as_old_as_it_is_and_not_as_used(tmp_path: Path) -> None:
    memory = MemoryStore()
    for name in ("fetched", "read"):
        store(memory, name, b"content")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("read")
        was_used_ns = used_ns(rig, "read")
        opens = rig.fs.files.opens

        await heat(rig, "fetched")
        await heat(rig, "read")

        assert used_ns(rig, "fetched") == LONG_AGO
        assert used_ns(rig, "read") == was_used_ns
        assert rig.fs.files.opens == opens


async def test_no_file_counts_as_used_in_time_to_come(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"a")
    async with serving(tmp_path / "c", memory) as rig:
        await heat(rig, "a", used_ns=2**63 - 1)

        told = used_ns(rig, "a")
        assert isinstance(told, int)
        assert told <= time.time_ns()


async def test_a_file_that_is_open_stays_as_used_as_it_is(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", os.urandom(2 * MIB))
    async with serving(tmp_path / "c", memory, fetch="demand") as rig:
        fh = await rig.open("a")

        assert (await heat(rig, "a"))["heat"] == "cached"

        await rig.fs.release(fh)
        assert used_ns(rig, "a") != LONG_AGO


@pytest.mark.parametrize(
    ("path", "error"),
    [("none", NoEntry), ("d", IsDirectory), ("d/none", NoEntry), ("link", TreeError)],
)
async def test_what_is_no_file_is_said(path: str, error: type[Exception], tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.mkdir("d")
        await rig.fs.symlink(*await rig.spot("link"), b"d", uid=1, gid=1)
        with pytest.raises(error):
            await heat(rig, path)


async def test_a_newer_version_is_fetched_in_the_place_of_the_old(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(tmp_path / "c", memory, metadata_ttl_s=0) as rig:
        await heat(rig, "a")
        rig.store("a", b"newer")

        assert (await heat(rig, "a"))["fetched"] == 5
        assert await rig.read("a") == b"newer"


async def test_two_questions_for_one_file_fetch_it_once(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", os.urandom(MIB))
    async with serving(tmp_path / "c", memory) as rig:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(heat, rig, "a")
        assert len(rig.watched.of("get_range")) == 1


async def test_what_is_here_is_known_without_a_daemon_too(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "d/a\udc80", b"content")
    store(memory, "d/b", b"other")
    async with serving(tmp_path / "c", memory) as rig:
        await heat(rig, "d/a\udc80")
        await rig.names("d")
    with open_cache(tmp_path / "c") as stopped:
        found = stopped.presence(["d/a\udc80", "d/b", "d", "none"])

    assert [(each.size, each.cached) for each in found] == [(7, 7), (5, 0), (None, 0), (None, 0)]
