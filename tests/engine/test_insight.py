"""What is told of one file, and that what is known of names can be forgotten."""

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.errors import Fault, NoEntry
from cachefs.core.types import FetchMode, Name
from cachefs.engine.untold import Forget
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, MIB, Rig, serving, store


async def explained(rig: Rig, path: str) -> dict[str, Any]:
    return await rig.service.explain(path)


@asynccontextmanager
async def shown(cache_dir: Path, memory: MemoryStore) -> AsyncIterator[Rig]:
    """A service whose tree a kernel knows: what that is to be told is kept for it."""
    async with serving(cache_dir, memory) as rig:
        with rig.fs.untold.kept():
            yield rig


def told_kernel(rig: Rig) -> list[Forget]:
    found: list[Forget] = []
    while what := rig.fs.untold.take():
        found.append(what)
    return found


async def test_what_is_only_at_the_store_is_told_without_fetching_it(tmp_path: Path) -> None:
    memory = MemoryStore()
    info = store(memory, "d/a", b"content")
    async with serving(tmp_path, memory) as rig:
        told = await explained(rig, "d/a")

        assert (told["state"], told["cached_bytes"], told["ranges"]) == ("remote", 0, [])
        assert (told["key"], told["size"], told["etag"]) == ("d/a", 7, info.etag)
        assert told["md5"] == hashlib.md5(b"content", usedforsecurity=False).hexdigest()
        assert told["at_store"]["etag"] == info.etag
        assert memory.requests.get("get_range", 0) == 0


async def test_which_bytes_are_here_and_who_holds_them_is_told(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", os.urandom(8 * MIB))
    async with serving(tmp_path, memory, fetch=FetchMode.DEMAND) as rig:
        fh = await rig.open("a")
        await rig.read_fh(fh, 3 * MIB, MIB)
        told = await explained(rig, "a")
        await rig.fs.release(fh)
        later = await explained(rig, "a")

    assert told["state"] == "partial"
    ((start, stop),) = told["ranges"]
    assert start <= 3 * MIB < 4 * MIB <= stop
    assert told["cached_bytes"] == stop - start
    assert (told["handles"], told["writers"]) == (1, 0)
    assert later["handles"] == 0
    assert later["hits"] == 1
    assert Path(told["file"]).parent == tmp_path / "data"


async def test_what_waits_for_its_upload_is_told_with_the_reason(tmp_path: Path) -> None:
    async with serving(tmp_path, MemoryStore(), **LATER) as rig:
        await rig.write("a", b"content")
        told = await explained(rig, "a")

    assert told["state"] == "dirty"
    assert told["etag"] is None
    assert told["upload"]["state"] == "queued"
    assert 3000 < told["upload"]["due_in_s"] <= 3600
    assert told["at_store"] == {"error": "the store has no such object"}


async def test_another_version_at_the_store_is_told_and_not_taken_over(tmp_path: Path) -> None:
    memory = MemoryStore()
    was = store(memory, "a", b"old")
    async with serving(tmp_path, memory) as rig:
        await rig.read("a")
        rig.store("a", b"newer")
        told = await explained(rig, "a")
        again = await explained(rig, "a")

    assert (told["etag"], told["cached_etag"], again["etag"]) == (was.etag,) * 3
    assert told["at_store"]["size"] == 5
    assert told["md5"] == was.etag  # that of the version that is known


async def test_what_is_known_is_told_while_the_store_does_not_answer(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(tmp_path, memory) as rig:
        await rig.read("a")
        rig.watched.fail("before", "fingerprint", Fault("away"), times=1000)
        told = await explained(rig, "a")

    assert told["state"] == "cached"
    assert "away" in told["at_store"]["error"]


async def test_when_the_store_was_asked_is_told_and_for_how_long_that_holds(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "d/a", b"old")
    async with serving(tmp_path, memory, metadata_ttl_s=100) as rig:
        await rig.names("d")
        file, directory = await explained(rig, "d/a"), await explained(rig, "d")
        await rig.service.refresh("d")
        forgotten = await explained(rig, "d/a")

    assert 0 <= file["checked_s_ago"] < 50
    assert 50 < file["believed_for_s"] <= 100
    assert directory["kind"] == "dir"
    assert 0 <= directory["listed_s_ago"] < 50
    assert (forgotten["checked_s_ago"], forgotten["believed_for_s"]) == (None, 0)


async def test_what_is_not_there_is_no_file(tmp_path: Path) -> None:
    async with serving(tmp_path, MemoryStore()) as rig:
        with pytest.raises(NoEntry):
            await explained(rig, "none")


# ---- refresh --------------------------------------------------------------------------------


async def test_what_others_changed_is_seen_after_a_refresh(tmp_path: Path) -> None:
    memory = MemoryStore()
    for key in ("d/a", "d/b", "e/c"):
        store(memory, key, b"old")
    async with serving(tmp_path, memory) as rig:
        assert await rig.names("d") == ["a", "b"]
        assert await rig.names("e") == ["c"]
        assert not await rig.exists("d/new")
        rig.store("d/a", b"newer")
        rig.remove("d/b")
        rig.store("d/new", b"x")
        rig.store("e/new", b"x")
        assert (await rig.names("d"), await rig.exists("d/new")) == (["a", "b"], False)

        await rig.service.refresh("d")

        assert await rig.exists("d/new")
        assert await rig.names("d") == ["a", "new"]
        assert await rig.read("d/a") == b"newer"
        assert await rig.names("e") == ["c"]


async def test_the_kernel_is_told_of_each_name_and_keeps_directories(tmp_path: Path) -> None:
    memory = MemoryStore()
    for number in range(1200):
        store(memory, f"d/e/{number:04}", b"")
    async with shown(tmp_path, memory) as rig:
        await rig.names("d/e")
        assert not await rig.exists("d/none")
        d, e = await rig.ino("d"), await rig.ino("d/e")
        told_kernel(rig)

        count = await rig.service.refresh("d")

        told = told_kernel(rig)
    assert count == 1202
    names = {(what.ino, what.name) for what in told}
    assert {(e, Name(b"%04d" % number)) for number in range(1200)} <= names
    assert {(d, None), (e, None), (d, Name(b"none"))} <= names
    assert (ROOT, Name(b"d")) not in names


async def test_names_that_are_not_there_are_gone_through_once_and_not_for_each_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryStore()
    for number in range(9):
        store(memory, f"d{number}/a", b"")
    async with shown(tmp_path, memory) as rig:
        for number in range(9):
            with pytest.raises(NoEntry):
                await rig.ino(f"d{number}/none")
        told_kernel(rig)
        absent = rig.service._names._absent
        rounds, iterate = [], type(absent).__iter__

        def counted(cache: object) -> Iterator[object]:
            rounds.append(cache)
            return iterate(cache)  # type: ignore[arg-type]

        monkeypatch.setattr(type(absent), "__iter__", counted)

        await rig.service.refresh("")

        monkeypatch.undo()
        assert [each is absent for each in rounds].count(True) == 1
        assert [each.name for each in told_kernel(rig)].count(Name(b"none")) == 9


async def test_one_file_and_a_name_that_was_not_there_can_be_refreshed(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(tmp_path, memory) as rig:
        await rig.read("a")
        assert not await rig.exists("b")
        rig.store("a", b"newer")
        rig.store("b", b"new")

        assert await rig.service.refresh("a") == await rig.service.refresh("b") == 1

        assert await rig.read("a") == b"newer"
        assert await rig.read("b") == b"new"


async def test_cached_bytes_of_the_same_version_are_not_fetched_again(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", bytes(MIB))
    async with serving(tmp_path, memory) as rig:
        await rig.read("a")
        fetched = memory.requests["get_range"]
        await rig.service.refresh("")
        assert await rig.read("a") == bytes(MIB)
        assert memory.requests["get_range"] == fetched


async def test_what_waits_for_its_upload_is_not_forgotten(tmp_path: Path) -> None:
    async with serving(tmp_path, MemoryStore(), **LATER) as rig:
        await rig.write("a", b"content")
        await rig.service.refresh("")

        assert await rig.names() == ["a"]
        assert await rig.read("a") == b"content"
        await rig.flush()
        assert rig.objects() == {"a": b"content"}


async def test_names_are_shown_as_they_were_while_the_store_does_not_answer(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "d/a", b"content")
    async with serving(tmp_path, memory) as rig:
        await rig.names("d")
        await rig.read("d/a")
        for operation in ("head", "list"):
            rig.watched.fail("before", operation, Fault("away"), times=10_000)
        await rig.service.refresh("")

        assert await rig.names("d") == ["a"]
        assert await rig.read("d/a") == b"content"
