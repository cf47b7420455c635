"""Whole files put in the place of others: the old bytes or the new ones, for readers, after a crash, at the store."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.core.errors import (
    Exists,
    Fault,
    IsDirectory,
    NameTooLong,
    NoEntry,
    NoRoom,
    NotDirectory,
    ReadOnly,
    Stale,
)
from cachefs.core.types import ConflictPolicy, FetchMode, Kind
from cachefs.engine import recovery
from cachefs.engine.paths import Found
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, MIB, Rig, lose_answer, objects, serving, together, until

OLD, NEW = b"old" * 1000, b"the new bytes" * 5000


@contextmanager
def opened(tmp_path: Path, content: bytes) -> Iterator[int]:
    path = tmp_path / "source"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


async def put(
    rig: Rig, path: str, content: bytes, tmp_path: Path, *, may_replace: bool = True
) -> Found:
    with opened(tmp_path, content) as source:
        return await rig.service.paths.put(path, source, may_replace=may_replace)


def waiting(rig: Rig) -> list[object]:
    return [each["path"] for each in rig.service.dirty()]


async def test_a_put_file_is_stored_when_put_returns(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        found = await put(rig, "new", NEW, tmp_path)

        assert rig.objects() == {"new": NEW}
        assert (found.name, found.size, found.kind) == ("new", len(NEW), Kind.FILE)
        assert found.etag is not None
        assert await rig.read("new") == NEW
        rig.check()


async def test_an_empty_file_is_put_as_well(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await put(rig, "empty", b"", tmp_path)

        assert rig.objects() == {"empty": b""}


async def test_directories_on_the_way_are_there_as_in_a_bucket(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await put(rig, "a/b/c", NEW, tmp_path)

        assert await rig.names("a") == ["b"]
        assert await rig.read("a/b/c") == NEW
        await rig.flush()
        assert rig.objects() == {"a/b/c": NEW}  # and no markers
        assert await rig.names("a/b") == ["c"]


async def test_directories_that_wait_with_their_file_outlive_a_listing(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **{**LATER, "metadata_ttl_s": 0}) as rig:
        rig.store("beside", b"")
        await put(rig, "a/b/c", NEW, tmp_path)

        assert await rig.names("") == ["a", "beside"]
        assert await rig.names("a/b") == ["c"]
        assert await rig.read("a/b/c") == NEW


async def test_a_put_replaces_and_keeps_mode_and_owner(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("file", OLD)

        found = await put(rig, "file", NEW, tmp_path)

        assert rig.objects() == {"file": NEW}
        assert (found.mode, found.uid, found.gid) == (0o640, 7, 8)
        assert await rig.names() == ["file"]


async def test_who_has_the_old_file_open_reads_it_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("file", OLD)
        await rig.flush()
        fh = await rig.open("file")

        await put(rig, "file", NEW, tmp_path)

        assert await rig.read_fh(fh) == OLD
        assert await rig.read("file") == NEW
        await rig.close(fh)
        assert await rig.read("file") == NEW


async def test_who_has_looked_the_old_file_up_can_open_it_for_a_moment(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await put(rig, "file", OLD, tmp_path)
        ino = await rig.ino("file")

        await put(rig, "file", NEW, tmp_path)

        fh = (await rig.fs.open(ino, os.O_RDONLY)).fh
        assert await rig.read_fh(fh) == OLD
        await rig.close(fh)
        await until(lambda: rig.service._disk.inodes.get(ino) is None)
        assert rig.service._disk.inodes.detached() == []
        rig.check()


async def test_an_old_file_of_which_nothing_is_here_is_fetched_for_who_has_it_open(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", fetch=FetchMode.DEMAND) as rig:
        rig.store("file", OLD)
        fh = await rig.open("file")

        await put(rig, "file", NEW, tmp_path)

        assert await rig.read_fh(fh) == OLD
        await rig.close(fh)


async def test_readers_see_one_version_or_the_other_while_files_are_put(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        contents = [bytes([each]) * (MIB + each) for each in range(12)]
        await put(rig, "file", contents[0], tmp_path)
        seen: list[bytes] = []
        is_over = False

        async def read() -> None:
            while not is_over:
                await trio.lowlevel.checkpoint()
                seen.append(await rig.read("file"))

        async def write() -> None:
            nonlocal is_over
            for content in contents:
                await put(rig, "file", content, tmp_path)
            is_over = True

        await together(read, write)

        assert set(seen) <= set(contents)
        assert await rig.read("file") == contents[-1]
        await rig.flush()
        assert rig.objects() == {"file": contents[-1]}
        rig.check()


async def test_what_is_there_stays_where_nothing_may_be_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("file", OLD)

        with pytest.raises(Exists):
            await put(rig, "file", NEW, tmp_path, may_replace=False)

        assert rig.objects() == {"file": OLD}
        assert await rig.read("file") == OLD


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("dir", IsDirectory),
        ("", IsDirectory),
        ("file/below", NotDirectory),
        ("x" * 256, NameTooLong),
        ("dir/" + "x" * 256 + "/y", NameTooLong),
    ],
)
async def test_a_place_that_no_file_can_have_is_refused(
    tmp_path: Path, path: str, error: type[Exception]
) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.store("file", OLD)
        rig.store("dir/inner", OLD)

        with pytest.raises(error):
            await put(rig, path, NEW, tmp_path)

        assert sorted(rig.objects()) == ["dir/inner", "file"]
        rig.check()


async def test_nothing_is_put_where_nothing_may_be_written(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", read_only=True) as rig:
        with pytest.raises(ReadOnly):
            await put(rig, "file", NEW, tmp_path)
        assert rig.objects() == {}


async def test_a_file_that_the_cache_can_never_hold_is_refused_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", cache_size=9 * MIB) as rig:
        rig.store("file", OLD)

        with trio.fail_after(1), pytest.raises(NoRoom):
            await put(rig, "file", bytes(12 * MIB), tmp_path)

        assert await rig.read("file") == OLD
        rig.check()


async def test_a_file_for_which_no_room_comes_is_refused_in_time_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", cache_size=4 * MIB, timeout_s=0.2, **LATER) as rig:
        rig.watched.fail("before", "put", Fault("down"), times=10**6)
        await put(rig, "first", bytes(3 * MIB), tmp_path)
        used = rig.cache.used

        with trio.fail_after(5), pytest.raises(NoRoom):
            await put(rig, "second", bytes(2 * MIB), tmp_path)

        assert rig.cache.used == used
        assert await rig.names() == ["first"]
        rig.check()


async def test_puts_in_a_small_cache_never_outgrow_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", cache_size=4 * MIB, **LATER) as rig:
        for each in range(10):
            await put(rig, f"file-{each}", bytes([each]) * MIB, tmp_path)
            rig.check()

        await rig.flush()
        assert rig.objects() == {f"file-{each}": bytes([each]) * MIB for each in range(10)}


async def test_a_source_that_is_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.store("file", OLD)
        path = tmp_path / "source"
        path.write_bytes(bytes(9 * MIB))
        os.utime(path, ns=(0, 0))
        source = os.open(path, os.O_RDONLY)

        async def change() -> None:
            await until(lambda: rig.cache.used > MIB)
            os.utime(path, ns=(1, 1))

        async def try_it() -> None:
            with pytest.raises(Stale):
                await rig.service.paths.put("file", source, may_replace=True)

        await together(try_it, change)
        os.close(source)

        assert rig.objects() == {"file": OLD}
        assert await rig.read("file") == OLD
        rig.check()


async def test_a_put_that_is_called_off_leaves_what_was_there(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        rig.store("file", OLD)
        used = rig.cache.used

        with opened(tmp_path, bytes(20 * MIB)) as source, trio.CancelScope() as scope:

            async def stop() -> None:
                await until(lambda: rig.cache.used > MIB)
                scope.cancel()

            await together(lambda: rig.service.paths.put("file", source, may_replace=True), stop)

        assert scope.cancelled_caught
        assert rig.cache.used == used
        assert await rig.read("file") == OLD
        assert not rig.service.dirty()


async def test_a_file_that_waits_for_upload_is_replaced_and_never_stored(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await put(rig, "file", OLD, tmp_path)
        await put(rig, "file", NEW, tmp_path)
        assert waiting(rig) == ["file"]

        await rig.flush()

        assert rig.objects() == {"file": NEW}
        assert rig.watched.count()["put"] == 1
        assert not rig.service.status()["conflicts"]


async def test_a_file_whose_upload_is_under_way_is_replaced_without_a_conflict(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **{**LATER, "upload_delay_s": 0}) as rig:
        for each in range(20):
            await put(rig, "file", b"%d" % each * 1000, tmp_path)
        await rig.flush()

        assert rig.objects() == {"file": b"19" * 1000}
        assert not rig.service.status()["conflicts"]


async def test_an_upload_whose_answer_was_lost_is_known_again_when_its_file_is_replaced(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await put(rig, "file", OLD, tmp_path)
        lose_answer(rig, "put")
        await rig.flush()
        assert rig.objects() == {"file": OLD}
        rig.watched.rules.clear()

        await put(rig, "file", NEW, tmp_path)
        await rig.flush()

        assert rig.objects() == {"file": NEW}
        assert not rig.service.status()["conflicts"]


async def test_what_another_has_stored_meanwhile_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", conflict=ConflictPolicy.KEEP_BOTH) as rig:
        rig.store("file", OLD)
        assert await rig.read("file") == OLD
        rig.store("file", b"theirs")

        await put(rig, "file", NEW, tmp_path)

        assert sorted(rig.objects().values()) == sorted([NEW, b"theirs"])


async def test_a_put_over_what_a_program_is_writing_leaves_it_without_a_name(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        fh = await rig.create("file")
        await rig.fs.write(fh, 0, OLD)

        await put(rig, "file", NEW, tmp_path)
        await rig.fs.write(fh, 0, b"late")
        await rig.close(fh)

        assert await rig.read("file") == NEW
        await rig.flush()
        assert rig.objects() == {"file": NEW}


async def test_after_a_put_the_file_can_be_written_like_any_other(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await put(rig, "file", NEW, tmp_path)
        fh = await rig.open("file", os.O_RDWR)
        await rig.fs.write(fh, 0, b"XX")
        await rig.close(fh)
        await rig.flush()

        assert rig.objects() == {"file": b"XX" + NEW[2:]}


# ---- crashes ---------------------------------------------------------------------------------


def watch_steps(rig: Rig, tmp_path: Path) -> list[Path]:
    """Keep an image of the cache directory before each step that a put takes on the disk."""
    images: list[Path] = []
    plain = rig.service._threads.disk

    async def disk(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        images.append(rig.crash_image(tmp_path / f"image-{len(images)}"))
        return await plain(work, *args, **kwargs)

    rig.service._threads.disk = disk  # type: ignore[method-assign]
    return images


@pytest.mark.parametrize("is_stored", [True, False])
async def test_whenever_it_is_killed_the_old_bytes_or_the_new_ones_are_there(
    tmp_path: Path, is_stored: bool
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await put(rig, "file", OLD, tmp_path)
        if is_stored:
            await rig.flush()
        stored = dict(rig.memory._objects)
        images = watch_steps(rig, tmp_path)
        await put(rig, "file", NEW, tmp_path)
        images.append(rig.crash_image(tmp_path / "acknowledged"))
    seen = []
    for image in images:
        memory = MemoryStore()
        memory._objects.update(stored)
        async with serving(image, memory, **LATER) as rig:
            seen.append(await rig.read("file"))
            assert waiting(rig) in (["file"], [])
            assert await rig.names() == ["file"]
            rig.check()

    assert len(images) > 5
    assert {*seen} == {OLD, NEW}
    assert seen == sorted(seen, key=lambda content: content == NEW)  # never back again
    assert seen[-1] == NEW


async def test_what_was_acknowledged_is_stored_after_a_kill(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        memory = rig.memory
        await put(rig, "a/b/file", NEW, tmp_path)
        image = rig.crash_image(tmp_path / "image")
    assert objects(memory) == {}

    async with serving(image, memory) as rig:
        await rig.flush()
        assert objects(memory) == {"a/b/file": NEW}


async def test_what_was_acknowledged_is_stored_although_the_database_is_lost(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        memory = rig.memory
        await put(rig, "a/file", OLD, tmp_path)
        await put(rig, "a/file", NEW, tmp_path)
        image = rig.crash_image(tmp_path / "image")
    for each in image.glob("cachefs.sqlite3*"):
        each.unlink()

    async with serving(image, memory) as rig:
        await rig.flush()
        assert objects(memory) == {"a/file": NEW}


async def test_what_was_acknowledged_outlives_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        memory = rig.memory
        await put(rig, "file", OLD, tmp_path)
        await put(rig, "file", NEW, tmp_path)
        image = rig.crash_image(tmp_path / "image")
    monkeypatch.setattr(recovery, "boot_id", lambda: "another")

    async with serving(image, memory) as rig:
        await rig.flush()
        assert objects(memory) == {"file": NEW}


# ---- the rest of what is done by paths --------------------------------------------------------


async def test_a_directory_is_listed_page_by_page(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        for each in range(25):
            rig.store(f"d/{each:02}", bytes(each))
        reader = await rig.service.paths.open_list("d")
        found: list[Found] = []
        while page := await rig.service.paths.list(reader, found[-1].ino if found else 0, 10):
            assert len(page) <= 10
            found += page

        assert {each.name: each.size for each in found} == {f"{n:02}": n for n in range(25)}
        assert all(each.etag for each in found)


async def test_what_is_done_by_paths_is_done_at_the_store(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        paths = rig.service.paths
        await paths.mkdir("d/e", parents=True)
        await put(rig, "d/e/f", NEW, tmp_path)
        await paths.rename("d/e/f", "g", may_replace=True)
        assert await rig.read("g") == NEW
        with pytest.raises(Exists):
            await paths.mkdir("d", parents=False)
        with pytest.raises(NoEntry):
            await paths.mkdir("x/y", parents=False)
        await paths.mkdir("d", parents=True)
        await paths.delete("d/e")
        await paths.delete("d")
        with pytest.raises(NoEntry):
            await paths.stat("d")
        assert rig.objects() == {"g": NEW}
        await paths.delete("g")
        assert rig.objects() == {}
