"""Renames: every object is reachable under exactly one name, whatever fails on the way."""

import threading
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.core.errors import (
    Denied,
    Exists,
    Fault,
    IsDirectory,
    NoEntry,
    NotDirectory,
    NotEmpty,
    Stale,
)
from cachefs.core.types import AttributeMode, ETag, Key, Name, ObjectInfo
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import (
    FOREVER_ASKING,
    LATER,
    Rig,
    lose_answer,
    objects,
    serving,
    store,
    together,
    until,
)


class NumberingStore(MemoryStore):
    """A store whose ETags number the versions, and tell nothing of the bytes."""

    def _store(
        self, key: Key, content: bytes, meta: Mapping[str, str], content_type: str | None
    ) -> ObjectInfo:
        info = super()._store(key, content, meta, content_type)
        info = replace(info, etag=ETag(uuid.uuid4().hex))
        self._objects[key] = replace(self._objects[key], info=info)
        return info


@pytest.fixture(params=[MemoryStore, NumberingStore])
def memory(request: pytest.FixtureRequest) -> MemoryStore:
    """A file, and a directory of two."""
    memory: MemoryStore = request.param()
    store(memory, "f", b"f")
    store(memory, "d/a", b"a")
    store(memory, "d/b", b"b")
    return memory


async def _tree(rig: Rig, path: str = "") -> dict[str, bytes]:
    """Read everything through the mount, asking the store for all of it."""
    rig.service._disk.inodes.stale_below(ROOT)
    found: dict[str, bytes] = {}
    for name in await rig.names(path):
        child = f"{path}/{name}".lstrip("/")
        if (await rig.fs.getattr(await rig.ino(child))).attrs.kind == "dir":
            found |= await _tree(rig, child)
        else:
            found[child] = await rig.read(child)
    return found


async def test_what_has_just_been_made_is_stored_under_its_new_name_with_all_that_is_known_of_it(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("old", b"the old one")
        await rig.write("new.tmp", b"the new one")
        await rig.fs.setxattr(await rig.ino("new.tmp"), b"user.color", b"red")
        made = rig.memory.head(Key("new.tmp"))
        rig.watched.forget()
        await rig.rename("new.tmp", "old")
        assert rig.watched.count() == {"delete": 1, "put": 1}
        kept = rig.memory.head(Key("old"))
        assert (kept.meta, kept.size) == (made.meta, made.size)
        assert rig.objects() == {"old": b"the new one"}


async def test_what_was_stored_under_its_new_name_without_an_answer_is_recognised(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("old", b"the old one")
        await rig.write("new.tmp", b"the new one")

        def lose() -> None:
            raise Fault("lost")

        rig.watched.on("after", "put", lose, key="old")
        await rig.rename("new.tmp", "old")
        assert rig.objects() == {"old": b"the new one"}
        assert rig.service._disk.journal.conflicts() == []


async def test_a_file_moves_with_its_bytes_and_without_fetching_them(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("f")
        rig.watched.forget()
        await rig.rename("f", "d/g")
        assert rig.objects() == {"d/a": b"a", "d/b": b"b", "d/g": b"f"}
        assert await rig.read("d/g") == b"f"
        assert not await rig.exists("f")
        assert rig.watched.of("get_range") == []
        rig.check()


async def test_a_directory_moves_with_all_below_it(tmp_path: Path, memory: MemoryStore) -> None:
    store(memory, "d/deep/er/x", b"x")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.rename("d", "e")
        assert rig.objects() == {"f": b"f", "e/a": b"a", "e/b": b"b", "e/deep/er/x": b"x"}
        assert await _tree(rig) == rig.objects()


async def test_a_dirty_file_moves_and_is_stored_under_its_new_name_only(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("new", b"new")
        await rig.write("f", b"newer f")
        await rig.rename("new", "d/new")
        await rig.rename("f", "g")
        await rig.rename("d", "e")
        await rig.flush()
        assert rig.objects() == {"e/a": b"a", "e/b": b"b", "e/new": b"new", "g": b"newer f"}
        assert await _tree(rig) == rig.objects()


async def test_saving_by_rename_replaces_the_old_file(tmp_path: Path, memory: MemoryStore) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        for turn in range(3):
            await rig.write("tmp", b"turn %d" % turn)
            await rig.rename("tmp", "f")
        await rig.flush()
        assert rig.objects() == {"f": b"turn 2", "d/a": b"a", "d/b": b"b"}
        assert rig.service.status()["conflicts"] == []
        rig.check()


async def test_what_rename_refuses(tmp_path: Path, memory: MemoryStore) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        await rig.mkdir("empty")
        with pytest.raises(Exists):
            await rig.rename("f", "d/a", no_replace=True)
        with pytest.raises(IsDirectory):
            await rig.rename("f", "d")
        with pytest.raises(NotDirectory):
            await rig.rename("d", "f")
        with pytest.raises(NotEmpty):
            await rig.rename("empty", "d")
        await rig.rename("d", "empty")
        assert rig.objects() == {"f": b"f", "empty/a": b"a", "empty/b": b"b", "empty/": b""}


async def test_a_replaced_file_that_is_open_lives_on(tmp_path: Path, memory: MemoryStore) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        fh = await rig.open("f")
        await rig.read_fh(fh)
        await rig.rename("d/a", "f")
        assert await rig.read_fh(fh) == b"f"
        assert await rig.read("f") == b"a"
        await rig.fs.release(fh)
        rig.check()


async def test_a_target_that_somebody_changed_is_kept_beside(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("d/a")
        rig.store("d/a", b"theirs")
        await rig.rename("f", "d/a")
        assert sorted(rig.objects().values()) == [b"b", b"f", b"theirs"]
        assert await rig.read("d/a") == b"f"


async def test_a_dirty_file_renamed_over_a_target_that_somebody_changed_keeps_both(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.read("d/a")
        await rig.write("new", b"ours")
        rig.store("d/a", b"theirs")
        await rig.rename("new", "d/a")
        await rig.flush()
        assert sorted(rig.objects().values()) == [b"b", b"f", b"ours", b"theirs"]
        assert await _tree(rig) == rig.objects()


@pytest.mark.parametrize("key", ["d/a", "d/b", "d/"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_directory_whose_copying_fails_keeps_its_old_name_whole(
    tmp_path: Path, memory: MemoryStore, moment: str, key: str
) -> None:
    store(memory, "d/", b"")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.names("d")
        rig.watched.fail(moment, "copy", Denied("no"), key=key)
        with pytest.raises(Denied):
            await rig.rename("d", "e")
        await until(lambda: not rig.service._disk.journal.moves())
        assert rig.objects() == {"d/": b"", "d/a": b"a", "d/b": b"b", "f": b"f"}
        assert await rig.names("d") == ["a", "b"]
        assert await _tree(rig) == {"d/a": b"a", "d/b": b"b", "f": b"f"}


async def test_a_copy_is_taken_back_although_somebody_wrote_its_source_meanwhile(
    tmp_path: Path, memory: MemoryStore
) -> None:
    def theirs() -> None:
        store(memory, "d/a", b"theirs")

    async with serving(tmp_path / "c", memory, transfers=1, **FOREVER_ASKING) as rig:
        rig.watched.on("after", "copy", theirs, key="d/a")
        rig.watched.fail("before", "copy", Denied("no"), key="d/b")
        with pytest.raises(Denied):
            await rig.rename("d", "e")
        assert rig.objects() == {"f": b"f", "d/a": b"theirs", "d/b": b"b"}
        assert await _tree(rig) == rig.objects()


async def test_old_names_that_could_not_be_deleted_do_not_come_back(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("before", "delete", Fault("down"), times=10**6)
        await rig.rename("d", "e")
        assert await _tree(rig) == {"e/a": b"a", "e/b": b"b", "f": b"f"}
        assert not await rig.exists("d/a")
        rig.watched.rules.clear()
        assert await rig.service._unfinished.finish()
        assert rig.objects() == {"e/a": b"a", "e/b": b"b", "f": b"f"}


@pytest.mark.parametrize("is_well_again", [True, False])
async def test_what_an_earlier_rename_left_behind_is_not_taken_along(
    tmp_path: Path, memory: MemoryStore, is_well_again: bool
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("before", "delete", Fault("down"), key="d/a", times=10**6)
        await rig.rename("d/a", "g")
        if is_well_again:
            rig.watched.rules.clear()
        await rig.rename("d", "e")
        assert rig.objects().keys() - {"d/a"} == {"f", "g", "e/b"}
        rig.watched.rules.clear()
        assert await rig.service._unfinished.finish()
        assert rig.objects() == {"f": b"f", "g": b"a", "e/b": b"b"}


async def test_copies_that_a_failed_rename_left_are_not_taken_along(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, transfers=1, **FOREVER_ASKING) as rig:
        rig.watched.fail("before", "copy", Denied("no"), key="d/b")
        rig.watched.fail("before", "delete", Fault("down"), times=10**6)
        with pytest.raises(Denied):
            await rig.rename("d", "e")
        assert rig.objects().keys() == {"f", "d/a", "d/b", "e/a"}
        with pytest.raises(Fault):
            await rig.rename("e", "x")
        rig.watched.rules.clear()
        with pytest.raises(Stale):  # which makes the kernel look the names up again
            await rig.rename("e", "x")
        with pytest.raises(NoEntry):
            await rig.rename("e", "x")
        assert rig.objects() == {"f": b"f", "d/a": b"a", "d/b": b"b"}


@pytest.mark.parametrize("operation", ["copy", "delete"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("old", "new", "key"), [("f", "g", "f"), ("d", "e", "d/b")])
async def test_a_crash_in_a_rename_leaves_each_object_one_name(
    tmp_path: Path,
    memory: MemoryStore,
    operation: str,
    moment: str,
    old: str,
    new: str,
    key: str,
) -> None:
    after_crash = type(memory)()
    async with serving(tmp_path / "c", memory) as rig:
        await rig.names("d")
        gate = rig.watched.gate(moment, operation, key=key)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.rename, old, new)
            await gate.reached.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            image = rig.crash_image(tmp_path / "image")
            after_crash._objects = dict(memory._objects)
            gate.open()
    async with serving(image, after_crash) as rig:  # which mends it before it serves
        assert not rig.service._disk.journal.moves()
        assert sorted(rig.objects().values()) == [b"a", b"b", b"f"]
        assert await _tree(rig) == rig.objects()
        assert len({each.partition("/")[0] for each in rig.objects()}) == 2
        rig.check()


@pytest.mark.parametrize("operation", ["copy", "delete"])
async def test_a_crash_in_a_rename_leaves_one_name_of_what_was_being_written_below(
    tmp_path: Path, memory: MemoryStore, operation: str
) -> None:
    after_crash = type(memory)()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("d/a", b"newer a")
        gate = rig.watched.gate("after", operation, key="d/a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.rename, "d", "e")
            await gate.reached.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            image = rig.crash_image(tmp_path / "image")
            after_crash._objects = dict(memory._objects)
            gate.open()
    async with serving(image, after_crash, upload_delay_s=0) as rig:
        await until(lambda: not rig.service.dirty())
        assert sorted(rig.objects().values()) == [b"b", b"f", b"newer a"]
        assert len({each.partition("/")[0] for each in rig.objects()}) == 2
        assert rig.service.status()["conflicts"] == []


@pytest.mark.parametrize("is_written", [True, False], ids=["both", "the replaced one"])
async def test_a_crash_after_the_copy_leaves_a_replaced_file_its_newer_bytes(
    tmp_path: Path, memory: MemoryStore, *, is_written: bool
) -> None:
    store(memory, "g", b"before")
    after_crash = type(memory)()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("g", b"replaced")
        if is_written:
            await rig.write("f", b"newer")
        await rig.read("f")
        gate = rig.watched.gate("after", "copy", key="f")
        rig.watched.on("after", "put", gate, key="g")  # of a small file, in place of the copy
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.rename, "f", "g")
            await gate.reached.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            image = rig.crash_image(tmp_path / "image")
            after_crash._objects = dict(memory._objects)
            gate.open()
    async with serving(image, after_crash, **LATER) as rig:
        await rig.flush()
        assert rig.objects() == {
            "f": b"newer" if is_written else b"f",
            "g": b"replaced",
            "d/a": b"a",
            "d/b": b"b",
        }
        assert not rig.service.dirty()
        assert not rig.service.status()["conflicts"]


async def test_what_is_written_below_a_failed_rename_is_stored_after_it_is_undone(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("d/a", b"newer a")
        rig.watched.fail("before", "copy", Denied("no"), key="d/b")
        rig.watched.fail("before", "delete", Fault("down"), times=10**6)
        with pytest.raises(Denied):
            await rig.rename("d", "e")
        for intent in rig.service._disk.journal.all():
            rig.service._uploader.hurry(intent.entry)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.objects()["d/a"] == b"a"
        rig.watched.rules.clear()
        assert await rig.service._unfinished.finish()
        await until(lambda: not rig.service.dirty())
        assert rig.objects() == {"f": b"f", "d/a": b"newer a", "d/b": b"b"}


async def test_an_old_name_that_somebody_wrote_during_the_rename_is_kept(
    tmp_path: Path, memory: MemoryStore
) -> None:
    def theirs() -> None:
        store(memory, "d/b", b"theirs")

    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        rig.watched.on("after", "copy", theirs, key="d/b")
        await rig.rename("d", "e")
        assert rig.objects() == {"f": b"f", "e/a": b"a", "e/b": b"b", "d/b": b"theirs"}
        assert await _tree(rig) == rig.objects()
        assert [each.key for each in rig.service._disk.journal.conflicts()] == ["d/b"]


async def test_old_names_that_may_not_be_deleted_are_said_and_shown(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **FOREVER_ASKING) as rig:
        rig.watched.fail("before", "delete", Denied("no"), times=10**6)
        with pytest.raises(Denied):
            await rig.rename("d", "e")
        assert await _tree(rig) == rig.objects()
        assert rig.objects().keys() == {"f", "d/a", "d/b", "e/a", "e/b"}
        assert not rig.service._disk.journal.moves(), "it would never end"


async def test_a_directory_whose_replacing_is_undone_leaves_both(
    tmp_path: Path, memory: MemoryStore
) -> None:
    store(memory, "d/", b"")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.mkdir("e")
        rig.watched.fail("before", "copy", Denied("no"), key="d/b")
        with pytest.raises(Denied):
            await rig.rename("d", "e")
        assert rig.objects().keys() == {"f", "d/", "d/a", "d/b", "e/"}
        assert await rig.names() == ["d", "e", "f"]


async def test_copies_are_made_several_at_once(tmp_path: Path) -> None:
    memory = MemoryStore()
    for number in range(16):
        store(memory, f"d/{number}", b"x")
    all_here = threading.Barrier(8)

    def meet() -> None:
        all_here.wait(10)

    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.on("before", "copy", meet, times=16)
        await rig.rename("d", "e")
        assert len(rig.objects()) == 16


@pytest.mark.parametrize("is_stored", [True, False])
async def test_the_type_follows_the_name(
    tmp_path: Path, memory: MemoryStore, is_stored: bool
) -> None:
    async with serving(tmp_path / "c", memory, **({} if is_stored else LATER)) as rig:
        await rig.write(".index.html.swp", b"<html>")
        await rig.rename(".index.html.swp", "index.html")
        await rig.flush()
        assert rig.memory.head(Key("index.html")).content_type == "text/html"
        await rig.rename("index.html", "d/page")
        assert rig.memory.head(Key("d/page")).content_type == "text/html"


async def test_a_lost_answer_of_a_copy_is_no_conflict(tmp_path: Path, memory: MemoryStore) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("after", "copy", Fault("lost"))
        await rig.rename("f", "g")
        assert rig.objects() == {"g": b"f", "d/a": b"a", "d/b": b"b"}
        assert rig.service.status()["conflicts"] == []


async def test_a_lost_answer_of_one_copy_does_not_fail_the_rename_of_a_directory(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.fail("after", "copy", Fault("lost"))
        await rig.rename("d", "e")
        assert rig.objects() == {"f": b"f", "e/a": b"a", "e/b": b"b"}


async def test_a_listing_during_a_rename_does_not_disturb_it(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        gate = rig.watched.gate("before", "copy", key="d/b")

        async def look() -> None:
            await gate.reached.wait()
            await until(lambda: "e/a" in rig.objects())
            rig.service._disk.inodes.update(ROOT, listed_ns=None)
            await rig.names()
            gate.open()

        await together(lambda: rig.rename("d", "e"), look)
        assert rig.objects() == {"e/a": b"a", "e/b": b"b", "f": b"f"}
        assert await _tree(rig) == rig.objects()


@pytest.mark.parametrize("was_there", [True, False])
async def test_renaming_over_a_file_that_is_being_uploaded_is_no_conflict(
    tmp_path: Path, was_there: bool
) -> None:
    memory = MemoryStore()
    if was_there:
        store(memory, "t", b"base")
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("t", b"first")
        await rig.write("s", b"second")
        gate = rig.watched.gate("after", "put", key="t")
        rig.service._uploader.hurry(rig.cache.all_ids()[0])
        await gate.reached.wait()

        async def let_go() -> None:
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.open()

        await together(lambda: rig.rename("s", "t"), let_go)
        await rig.flush()
        assert rig.objects() == {"t": b"second"}
        assert rig.service.status()["conflicts"] == []


@pytest.mark.parametrize("was_there", [True, False])
async def test_renaming_a_file_whose_upload_may_have_arrived_leaves_one_name(
    tmp_path: Path, was_there: bool
) -> None:
    memory = MemoryStore()
    if was_there:
        store(memory, "a", b"base")
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("a", b"ours")
        lose_answer(rig, "put")
        await rig.flush()
        assert rig.objects() == {"a": b"ours"}
        rig.watched.rules.clear()
        await rig.rename("a", "b")
        await rig.flush()
        assert rig.objects() == {"b": b"ours"}


async def test_a_rename_inside_a_directory_that_is_being_renamed_follows_it(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        directory = await rig.ino("d")
        await rig.names("d")
        gate = rig.watched.gate("before", "copy", key="d/b")

        async def inner() -> None:
            await gate.reached.wait()
            await rig.fs.rename(directory, Name(b"a"), directory, Name(b"z"), no_replace=False)

        async def let_go() -> None:
            await gate.reached.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            gate.open()

        await together(lambda: rig.rename("d", "e"), inner, let_go)
        assert rig.objects() == {"e/z": b"a", "e/b": b"b", "f": b"f"}
        assert objects(rig.memory) == await _tree(rig)


class ForgivingStore(MemoryStore):
    """A store that deletes whatever condition is named."""

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        super().delete(key)


async def test_an_upload_that_still_asks_what_it_replaces_does_not_go_to_a_name_that_is_leaving(
    tmp_path: Path,
) -> None:
    memory = ForgivingStore()
    store(memory, "f", b"old")
    settings = {**LATER, "attributes": AttributeMode.LISTING}
    async with serving(tmp_path / "c", memory, **settings) as rig:
        await rig.names()
        await rig.write("f", b"newer")
        asked = rig.watched.gate("before", "head", key="f")
        deleting = rig.watched.gate("before", "delete", key="f")
        entry = rig.cache.find(await rig.ino("f"))
        assert entry is not None
        rig.service._uploader.hurry(entry.id)
        await asked.reached.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.rename, "f", "g")
            await deleting.reached.wait()
            asked.open()
            deleting.open()
        await rig.flush()
        assert rig.objects() == {"g": b"newer"}
