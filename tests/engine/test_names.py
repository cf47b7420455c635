"""Names: made, removed, listed, and seen through the changes of others."""

from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.core.errors import Exists, Fault, InvalidName, NameTooLong, NotEmpty
from cachefs.core.types import Name
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import FOREVER_ASKING, MIB, serving, store, together


async def test_a_directory_made_here_is_seen_by_another_mount(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory) as rig:
        await rig.mkdir("d")
        await rig.mkdir("d/e")
        with pytest.raises(Exists):
            await rig.mkdir("d")
    async with serving(tmp_path / "other", memory) as rig:
        assert await rig.names() == ["d"]
        assert await rig.names("d") == ["e"]


async def test_the_attributes_of_a_directory_are_seen_by_another_mount(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory) as rig:
        await rig.mkdir("d")
    async with serving(tmp_path / "other", memory) as rig:
        await rig.names("d")
        seen = (await rig.fs.getattr(await rig.ino("d"))).attrs
        assert (seen.mode, seen.uid, seen.gid) == (0o750, 7, 8)


async def test_a_directory_with_content_is_not_removed(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "d/a", b"")
    async with serving(tmp_path / "c", memory) as rig:
        with pytest.raises(NotEmpty):
            await rig.rmdir("d")
        await rig.unlink("d/a")
        await rig.rmdir("d")
        assert rig.objects() == {}
        assert await rig.names() == []


async def test_a_directory_outlives_its_last_content(tmp_path: Path) -> None:
    memory = MemoryStore()
    for key in ("d/a", "e/a", "f/g/h"):
        store(memory, key, b"x")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.unlink("d/a")
        await rig.rename("e/a", "x")
        await rig.unlink("f/g/h")
        await rig.rmdir("f/g")
    async with serving(tmp_path / "other", memory) as rig:
        assert await rig.names() == ["d", "e", "f", "x"]
        assert await rig.names("d") == []


async def test_names_made_here_are_gone_and_new_as_others_remove_and_make_them(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **FOREVER_ASKING) as rig:
        await rig.write("a", b"x")
        rig.remove("a")
        assert not await rig.exists("a")
        rig.store("a", b"y")
        assert await rig.read("a") == b"y"


async def test_no_name_that_cannot_be_stored_is_made(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        with pytest.raises(InvalidName):
            await rig.create("a~cachefs~b")
        with pytest.raises(NameTooLong):
            await rig.create("x" * 256)
        assert rig.objects() == {}


async def test_no_name_is_made_that_stands_for_something_else(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("a", b"object")
        await rig.mkdir("d")
        await rig.write("d/a", b"x")
        before = rig.objects()
        for name in ("d/~cachefs~empty", "~cachefs~empty", "a~cachefs~object", "b~cachefs~object"):
            with pytest.raises(InvalidName):
                await rig.create(name)
            with pytest.raises(InvalidName):
                await rig.rename("d/a", name)
        with pytest.raises(InvalidName):
            await rig.mkdir("d~cachefs~object")
        assert rig.objects() == before
        await rig.write("d~cachefs~object", b"beside")
        await rig.mkdir("d/~cachefs~empty")
        assert rig.objects() == before | {"d": b"beside", "d//": b""}


async def test_a_rename_replaces_what_has_a_name_that_a_listing_alone_explains(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "x" * 300, b"long")
    store(memory, "m/", b"content")
    async with serving(tmp_path / "c", memory) as rig:
        (long,) = [name for name in await rig.names() if "~cachefs~long~" in name]
        for target in (long, "m/~cachefs~empty"):
            await rig.write("new", b"new")
            await rig.rename("new", target)
        assert rig.objects() == {"x" * 300: b"new", "m/": b"new"}


async def test_a_link_holds_its_target(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory) as rig:
        await rig.fs.symlink(ROOT, Name(b"l"), b"../t", uid=1, gid=1)
    async with serving(tmp_path / "other", memory) as rig:
        assert await rig.fs.readlink(await rig.ino("l")) == b"../t"


async def test_a_marker_with_content_is_a_file_in_its_directory(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "m/", b"content")
    store(memory, "m/x", b"x")
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.names("m") == ["x", "~cachefs~empty"]
        assert await rig.read("m/~cachefs~empty") == b"content"
        assert await rig.names("m") == ["x", "~cachefs~empty"]


async def test_a_directory_outlives_its_marker_with_content(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "m/", b"content")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.unlink("m/~cachefs~empty")
        assert rig.objects() == {"m/": b""}
        assert await rig.names() == ["m"]
        assert await rig.names("m") == []


async def test_a_directory_that_became_an_object_is_a_file(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a/b", b"x")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        await rig.ino("a/b")
        rig.remove("a/b")
        rig.store("a", b"file")
        assert await rig.read("a") == b"file"


async def test_an_object_that_became_a_directory_is_one(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"x")
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        await rig.ino("a")
        rig.remove("a")
        rig.store("a/b", b"file")
        assert await rig.read("a/b") == b"file"


async def test_an_object_and_a_directory_of_one_name_in_two_pages_are_both_seen(
    tmp_path: Path,
) -> None:
    memory = MemoryStore(page_size=2)
    for key in ("a", "a-1", "a-2", "a/x"):
        store(memory, key, key.encode())
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.names() == ["a", "a-1", "a-2", "a~cachefs~object"]
        assert await rig.read("a/x") == b"a/x"
        assert await rig.read("a~cachefs~object") == b"a"


async def test_a_time_beyond_all_reason_hides_no_object(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"x", {"mtime": "99999999999"})
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("a") == b"x"


async def test_a_mkdir_survives_a_listing_that_began_before_its_marker_was_stored(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c") as rig:
        gate = rig.watched.gate("before", "put")

        async def look() -> None:
            await gate.reached.wait()
            rig.service._disk.inodes.update(ROOT, listed_ns=None)
            await rig.names()
            gate.open()

        await together(lambda: rig.mkdir("d"), look)
        assert await rig.exists("d")


async def test_a_create_that_waits_for_room_survives_a_listing(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", cache_size=MIB) as rig:
        taken = rig.cache.reserve(MIB)
        assert taken is not None

        async def look() -> None:
            await trio.testing.wait_all_tasks_blocked(0.01)
            rig.service._disk.inodes.update(ROOT, listed_ns=None)
            await rig.names()
            rig.cache.release(taken)
            rig.service._room.freed()

        await together(lambda: rig.write("new", b"new"), look)
        assert rig.objects() == {"new": b"new"}
        assert await rig.read("new") == b"new"


async def test_a_lost_answer_of_a_mkdir_is_no_failure(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.watched.fail("after", "put", Fault("lost"))
        await rig.mkdir("d")
        assert await rig.exists("d")


async def test_a_lost_answer_of_a_symlink_is_no_failure(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.watched.fail("after", "put", Fault("lost"))
        made = await rig.fs.symlink(ROOT, Name(b"l"), b"target", uid=1, gid=1)
        assert await rig.fs.readlink(made.ino) == b"target"
