"""What the next daemon finds after a crash: what was acknowledged is there, the rest is old or set aside."""

import os
from pathlib import Path

import pytest
import trio

from cachefs.core.errors import InUse, UsageError
from cachefs.core.source import Source, StoreKind
from cachefs.core.types import Name
from cachefs.engine.recovery import open_cache
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, serving, store, until


@pytest.fixture
def memory() -> MemoryStore:
    memory = MemoryStore()
    store(memory, "d/old", b"base")
    return memory


async def test_what_was_acknowledged_reaches_the_store(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("new", b"acknowledged")
        await rig.write("d/old", b"newer")
        image = rig.crash_image(tmp_path / "image")
    async with serving(image, memory, **LATER) as rig:
        assert await rig.read("new") == b"acknowledged"
        await rig.flush()
        assert rig.objects() == {"new": b"acknowledged", "d/old": b"newer"}
        assert rig.cache.used == rig.disk_bytes()
        rig.check()


async def test_what_was_being_uploaded_is_uploaded_by_itself(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", **LATER) as rig:
        await rig.write("new", b"acknowledged")
        gate = rig.watched.gate("before", "put")
        rig.service._uploader.hurry_all()
        await gate.reached.wait()
        image = rig.crash_image(tmp_path / "image")
        gate.open()
    async with serving(image, **LATER) as rig:  # in front of a store that never got it
        await until(lambda: rig.objects() == {"new": b"acknowledged"})


async def test_a_file_that_was_being_written_keeps_the_content_that_was_acknowledged(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("a", b"acknowledged")
        fh = await rig.open("a", os.O_RDWR)
        await rig.fs.write(fh, 0, b"XX")
        image = rig.crash_image(tmp_path / "image")
        await rig.close(fh)
    async with serving(image, memory, **LATER) as rig:
        assert await rig.read("a") == b"acknowledged"
        await rig.flush()
        assert rig.objects()["a"] == b"acknowledged"
        assert rig.cache.used == rig.disk_bytes()
        rig.check()


async def test_a_file_that_was_being_written_is_set_aside_and_the_name_is_the_stores(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        fh = await rig.open("d/old", os.O_RDWR)
        await rig.fs.write(fh, 0, b"XX")
        image = rig.crash_image(tmp_path / "image")
        await rig.close(fh)
    async with serving(image, memory) as rig:
        assert await rig.read("d/old") == b"base"
        (aside,) = rig.service.dirty()
        assert (aside["state"], aside["key"]) == ("parked", "d/old")
        await rig.service.export(int(str(aside["id"])), tmp_path / "exported")
        assert (tmp_path / "exported").read_bytes() == b"XXse"
        await rig.service.discard(int(str(aside["id"])))
        assert rig.service.dirty() == []
        assert rig.cache.used == rig.disk_bytes()
        rig.check()


async def test_bytes_that_were_set_aside_can_be_stored_beside_and_read(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        fh = await rig.create("d/half")
        await rig.fs.write(fh, 0, b"half written")
        image = rig.crash_image(tmp_path / "image")
        await rig.close(fh)
    async with serving(image, memory) as rig:
        assert not await rig.exists("d/half")
        (aside,) = rig.service.dirty()
        path = await rig.service.upload(int(str(aside["id"])))
        assert rig.objects()[path] == b"half written"
        assert await rig.read(path) == b"half written"


@pytest.mark.parametrize("damage", ["garbage", "gone", "empty"])
async def test_without_its_database_the_promised_bytes_are_found_beside_their_promises(
    tmp_path: Path, memory: MemoryStore, damage: str
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("a", b"acknowledged")
        await rig.write("d/old", b"newer")
        fh = await rig.create("half")
        await rig.fs.write(fh, 0, b"half")
        image = rig.crash_image(tmp_path / "image")
        await rig.close(fh)
    database = image / "cachefs.sqlite3"
    (image / "cachefs.sqlite3-wal").unlink()
    if damage == "gone":
        database.unlink()
    else:
        database.write_bytes(b"garbage" * 1000 if damage == "garbage" else b"")
    async with serving(image, memory, **LATER) as rig:
        assert await rig.read("a") == b"acknowledged"
        await rig.flush()
        assert rig.objects()["a"] == b"acknowledged"
        assert rig.objects()["d/old"] == b"newer"
        assert [each["key"] for each in rig.service.dirty()] == ["half"]
        rig.check()


async def test_cached_bytes_of_a_crashed_daemon_are_still_right(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("d/old")
        image = rig.crash_image(tmp_path / "image")
    async with serving(image, memory) as rig:
        assert await rig.read("d/old") == b"base"


async def test_a_cache_file_that_was_cut_is_not_believed(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("d/old")
    (file,) = (tmp_path / "c" / "data").iterdir()
    os.truncate(file, 2)
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("d/old") == b"base"


async def test_promised_bytes_that_are_gone_are_never_taken_for_clean(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("a", b"acknowledged")
        image = rig.crash_image(tmp_path / "image")
    for file in (image / "data").iterdir():
        if file.name.isdigit():
            file.unlink()
    async with serving(image, memory, **LATER) as rig:
        (lost,) = rig.service.dirty()
        assert (lost["path"], lost["state"]) == ("a", "parked")


@pytest.mark.parametrize("text", [b"", bytes(100)], ids=["empty", "zeros"])
async def test_a_promise_whose_text_was_not_safe_when_the_power_went_stands_for_its_debt(
    tmp_path: Path, memory: MemoryStore, text: bytes
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("d/old", b"acknowledged")
        image = rig.crash_image(tmp_path / "image")
    (promise,) = (image / "data").glob("*.promise")
    promise.write_bytes(text)
    async with serving(image, memory, **LATER) as rig:
        await rig.flush()
        assert not rig.service.dirty()
        assert rig.objects()["d/old"] == b"acknowledged"


async def test_a_directory_in_use_is_refused_and_one_that_is_stopped_can_be_recovered(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("a", b"x")
        with pytest.raises(InUse, match=str(os.getpid())), open_cache(tmp_path / "c"):
            pass
    with open_cache(tmp_path / "c") as stopped:
        (dirty,) = stopped.dirty()
        ident = int(str(dirty["id"]))
        stopped.export(ident, tmp_path / "exported")
        with pytest.raises(UsageError, match="exists"):
            stopped.export(ident, tmp_path / "exported")
        stopped.discard(ident)
        with pytest.raises(UsageError, match="no dirty file"):
            stopped.discard(ident)
        assert stopped.dirty() == []
    assert (tmp_path / "exported").read_bytes() == b"x"


async def test_another_store_is_refused(tmp_path: Path, memory: MemoryStore) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        rig.service._disk.db.set_meta("source", "s3://other")
    with pytest.raises(UsageError, match="s3://other"):
        async with serving(tmp_path / "c", memory, source=Source(StoreKind.MEMORY)):
            pass


async def test_what_was_only_being_made_does_not_exist_afterwards(
    tmp_path: Path, memory: MemoryStore
) -> None:
    elsewhere = MemoryStore()  # which never gets what the killed daemon was about to send
    store(elsewhere, "d/old", b"base")
    async with serving(tmp_path / "c", memory) as rig, trio.open_nursery() as nursery:
        assert await rig.names("d") == ["old"]
        gates = [rig.watched.gate("before", "put", key=key) for key in ("d/link", "d/made/")]
        parent, _ = await rig.spot("d/link")
        nursery.start_soon(lambda: rig.fs.symlink(parent, Name(b"link"), b"nowhere", uid=1, gid=1))
        nursery.start_soon(rig.mkdir, "d/made")
        for gate in gates:
            await gate.reached.wait()
        image = rig.crash_image(tmp_path / "image")
        for gate in gates:
            gate.open()
    async with serving(image, elsewhere) as rig:
        assert await rig.names("d") == ["old"]
        rig.check()


async def test_a_link_that_was_stored_while_it_was_being_made_is_there_afterwards(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig, trio.open_nursery() as nursery:
        assert await rig.names("d") == ["old"]
        gate = rig.watched.gate("after", "put", key="d/link")
        parent, _ = await rig.spot("d/link")
        nursery.start_soon(lambda: rig.fs.symlink(parent, Name(b"link"), b"nowhere", uid=1, gid=1))
        await gate.reached.wait()
        image = rig.crash_image(tmp_path / "image")
        gate.open()
    async with serving(image, memory) as rig:
        assert await rig.names("d") == ["link", "old"]
        rig.check()


async def test_what_the_store_did_unheard_is_asked_about_after_a_crash(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig, trio.open_nursery() as nursery:
        assert await rig.names("d") == ["old"]
        gate = rig.watched.gate("after", "delete", key="d/old")
        nursery.start_soon(rig.unlink, "d/old")
        await gate.reached.wait()
        image = rig.crash_image(tmp_path / "image")
        gate.open()
    async with serving(image, memory) as rig:
        assert await rig.names("d") == []
        assert not await rig.exists("d/old")


async def test_what_was_known_at_an_orderly_end_is_still_believed(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.names("d") == ["old"]
    async with serving(tmp_path / "c", memory) as rig:
        rig.watched.forget()
        assert await rig.names("d") == ["old"]
        assert rig.watched.count() == {}
