"""What verifying finds is mended, and what has changed since is left alone."""

import hashlib
import os
from pathlib import Path

import pytest

from cachefs.core.cached import CachedPieces
from cachefs.core.errors import Fault, ReadOnly
from cachefs.core.extents import Extent
from cachefs.core.types import EntryId, FetchMode
from cachefs.engine.openfile import OpenFile
from cachefs.engine.recovery import open_cache
from tests.engine.rig import LATER, MIB, Rig, serving

CONTENT = os.urandom(3 * MIB // 2)


async def cached(rig: Rig, key: str = "file", content: bytes = CONTENT) -> CachedPieces:
    """Return the entry of an object that has just been read."""
    rig.store(key, content)
    assert await rig.read(key) == content
    return look(rig, key)


def look(rig: Rig, path: str) -> CachedPieces:
    for row in rig.service.entries(0):
        if row["path"] == path:
            told = rig.service.entry(int(str(row["id"])))
            assert told is not None
            return CachedPieces.from_json(told)
    raise AssertionError(f"{path} is not cached")


def flip(rig: Rig, entry: int, at: int = MIB + 5) -> None:
    with rig.cache.path_of(EntryId(entry)).open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


async def test_an_entry_is_told_with_the_sums_of_its_bytes(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        told = await cached(rig)
        assert rig.service.entry(10**6) is None
    with open_cache(tmp_path / "c") as stopped:
        alone = stopped.entry(told.file.id)

    assert told.file.etag == hashlib.md5(CONTENT).hexdigest()
    assert [piece for piece, _ in told.sums] == [Extent(0, MIB), Extent(MIB, len(CONTENT))]
    assert alone is not None
    assert (alone.file.etag, alone.sums) == (told.file.etag, told.sums)


async def test_bytes_that_rotted_come_anew_from_the_store(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        told = (await cached(rig)).file
        flip(rig, told.id)
        assert told.etag is not None

        assert await rig.service.refetch(told.id, told.etag)

        assert rig.service.entries(0) == []
        assert await rig.read("file") == CONTENT
        rig.check()


async def test_who_may_have_read_rotten_bytes_has_to_open_again(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        told = (await cached(rig)).file
        assert told.etag is not None
        fh = await rig.open("file")
        assert await rig.read_fh(fh) == CONTENT
        flip(rig, told.id)

        assert await rig.service.refetch(told.id, told.etag)

        with pytest.raises(Fault, match="open it again"):
            await rig.read_fh(fh)
        await rig.close(fh)
        again = await rig.fs.open(await rig.ino("file"), os.O_RDONLY)
        assert not again.keep_cache  # the kernel's pages may be rotten, too
        assert await rig.read_fh(again.fh) == CONTENT
        await rig.close(again.fh)
        rig.check()


async def test_what_the_store_has_lost_is_stored_anew_as_it_was(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("file", CONTENT)
        told, before = look(rig, "file").file, await rig.fs.getattr(await rig.ino("file"))
        assert told.etag is not None
        rig.remove("file")

        assert await rig.service.store_anew(told.id, told.etag)
        await rig.flush()

        assert rig.service.dirty() == []
        assert rig.objects() == {"file": CONTENT}
        after = await rig.fs.getattr(await rig.ino("file"))
        assert (after.attrs.mtime_ns, after.attrs.mode) == (
            before.attrs.mtime_ns,
            before.attrs.mode,
        )
        assert rig.service.status()["conflicts"] == []
        rig.check()


async def test_what_somebody_else_has_stored_there_meanwhile_is_not_overwritten(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "c") as rig:
        told = (await cached(rig)).file
        assert told.etag is not None
        rig.store("file", b"theirs")

        assert await rig.service.store_anew(told.id, told.etag)
        await rig.flush()

        objects = rig.objects()
        assert objects.pop("file") == b"theirs"
        ((name, kept),) = objects.items()
        assert (name.startswith("file.conflict-"), kept) == (True, CONTENT)


async def test_nothing_is_done_to_what_has_changed_since_it_was_looked_at(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        told = (await cached(rig)).file
        assert told.etag is not None
        assert not await rig.service.refetch(told.id, "another version")
        assert not await rig.service.store_anew(told.id, "another version")
        assert not await rig.service.refetch(10**6, told.etag)
        await rig.write("file", b"new")

        assert not await rig.service.refetch(told.id, told.etag)
        assert not await rig.service.store_anew(told.id, told.etag)

        assert await rig.read("file") == b"new"


async def test_rotten_and_partial_bytes_are_never_stored(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", fetch=FetchMode.DEMAND) as rig:
        rig.store("part", CONTENT)
        whole = (await cached(rig)).file
        flip(rig, whole.id)
        fh = await rig.open("part")
        await rig.read_fh(fh, 0, 10)
        await rig.close(fh)
        part = look(rig, "part").file
        assert not part.is_whole

        for told in (whole, part):
            assert told.etag is not None
            assert not await rig.service.store_anew(told.id, told.etag)

        assert rig.service.dirty() == []


async def test_a_read_only_mount_stores_nothing_anew(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", read_only=True) as rig:
        told = (await cached(rig)).file
        with pytest.raises(ReadOnly):
            await rig.service.store_anew(told.id, str(told.etag))


async def test_what_a_program_stores_meanwhile_is_no_conflict_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("file", CONTENT)
        told = look(rig, "file").file
        assert told.etag is not None
        rig.remove("file")
        begin = OpenFile.begin

        async def begin_late(file: OpenFile) -> None:
            monkeypatch.undo()
            await rig.write("file", b"newer")
            await begin(file)

        monkeypatch.setattr(OpenFile, "begin", begin_late)
        is_queued = await rig.service.store_anew(told.id, told.etag)
        await rig.flush()

        assert rig.objects() == {"file": b"newer"}
        assert not is_queued
        rig.check()
