"""The audit log: each fetch, upload, eviction, conflict and delete, with its cause."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachefs.core.errors import CachefsError, Denied
from cachefs.engine import linefile
from cachefs.engine.cause import because, current
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, MIB, serving, store, until


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linefile, "_EVERY_S", 0.01)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def events(log: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, log.read_text().splitlines())
    return [line for line in lines if line["event"] == event]


async def test_a_fetch_is_recorded_with_its_range_and_who_wanted_it(
    tmp_path: Path, log: Path
) -> None:
    memory = MemoryStore()
    info = store(memory, "d/a\n\udce9", bytes(3 * MIB))
    async with serving(tmp_path / "c", memory, audit=log) as rig:
        with because("read"):
            await rig.read("d/a\n\udce9")

    fetches = events(log, "fetch")
    assert {(one["key"], one["etag"], one["cause"]) for one in fetches} == {
        ("d/a\n\udce9", info.etag, "read")
    }
    assert sum(one["bytes"] for one in fetches) == 3 * MIB
    assert {one["start"] for one in fetches} >= {0}
    assert all(re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{3}Z", one["time"]) for one in fetches)
    assert all(one["seconds"] >= 0 for one in fetches)
    assert stat.S_IMODE(os.stat(log).st_mode) == 0o600


async def test_uploads_and_deletes_are_recorded_with_the_versions(
    tmp_path: Path, log: Path
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, audit=log) as rig:
        with because("flush"):
            await rig.write("a", b"one")
        with because("unlink"):
            await rig.unlink("a")

    (upload,), (delete,) = events(log, "upload"), events(log, "delete")
    assert (upload["key"], upload["bytes"], upload["replaces"]) == ("a", 3, None)
    assert (upload["cause"], delete["cause"]) == ("flush", "unlink")
    assert upload["etag"] == delete["etag"]


async def test_an_upload_that_waited_has_its_close_for_a_cause_and_one_left_by_a_daemon_is_due(
    tmp_path: Path, log: Path
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, audit=log, **LATER) as rig:
        for name in ("asked", "left"):
            with because("flush"):
                await rig.write(name, b"one")
        with because("cachefs flush"):
            await rig.service.flush(["asked"], wait=True)
        assert set(rig.objects()) == {"asked"}
    async with serving(tmp_path / "c", memory, audit=log, upload_delay_s=0) as rig:
        await until(lambda: set(rig.objects()) == {"asked", "left"})

    causes = {one["key"]: one["cause"] for one in events(log, "upload")}
    assert causes == {"asked": "cachefs flush", "left": "due"}


async def test_what_was_evicted_is_recorded(tmp_path: Path, log: Path) -> None:
    memory = MemoryStore()
    for name in "abcdef":
        store(memory, name, os.urandom(MIB))
    async with serving(tmp_path / "c", memory, audit=log, cache_size=4 * MIB) as rig:
        for name in "abcdef":
            with because("read"):
                await rig.read(name)
        await until(lambda: rig.service.status()["cache"]["evicted"] > 0)  # type: ignore[index]

    evicted = events(log, "eviction")
    assert {one["key"] for one in evicted} <= set("abcdef")
    assert all(one["bytes"] == MIB and one["etag"] for one in evicted)
    assert {one["cause"] for one in evicted} <= {"read", "eviction"}


async def test_a_conflict_is_recorded_with_what_came_of_it(tmp_path: Path, log: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"base")
    async with serving(tmp_path / "c", memory, audit=log) as rig:
        fh = await rig.open("a", os.O_WRONLY)
        await rig.fs.write(fh, 0, b"ours")
        rig.store("a", b"theirs")
        await rig.close(fh)

    (conflict,) = events(log, "conflict")
    assert conflict["key"] == "a"
    assert "conflict-" in conflict["outcome"]
    failed = [one for one in events(log, "upload") if "error" in one]
    assert [one["error"] for one in failed] == ["Changed"]


async def test_of_an_error_its_kind_is_recorded_and_not_what_the_store_said(
    tmp_path: Path, log: Path
) -> None:
    async with serving(tmp_path / "c", MemoryStore(), audit=log) as rig:
        rig.watched.fail("before", "put", Denied("the key hunter2 is wrong"), times=100)
        with pytest.raises(CachefsError):
            await rig.write("a", b"one")

    assert events(log, "upload")[0]["error"] == "Denied"
    assert "hunter2" not in json.dumps(events(log, "upload"))


async def test_a_rename_is_a_copy_and_a_delete(tmp_path: Path, log: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"one")
    async with serving(tmp_path / "c", memory, audit=log) as rig:
        with because("rename"):
            await rig.rename("a", "b")

    (copied,), (deleted,) = events(log, "copy"), events(log, "delete")
    assert (copied["source"], copied["key"], deleted["key"]) == ("a", "b", "a")
    assert copied["cause"] == deleted["cause"] == "rename"


async def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path, log: Path) -> None:
    async with serving(tmp_path / "c", MemoryStore(), audit=log) as rig:
        await rig.write("a", b"one")
        await until(log.exists)
        os.rename(log, tmp_path / "old")
        await rig.write("b", b"two")
        await until(log.exists)
        assert [one["key"] for one in events(log, "upload")] == ["b"]


@pytest.mark.parametrize("file", ["none/audit", "/dev/full"])
async def test_a_log_that_cannot_be_written_fails_nothing_and_is_counted(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path / "c", MemoryStore(), audit=tmp_path / file) as rig:
        for number in range(3):
            await rig.write(f"f{number}", b"one")
        await until(lambda: rig.service.status()["audit"]["lost"] == 3)  # type: ignore[index]
        assert len(rig.objects()) == 3

    said = [each.message for each in caplog.records if "audit log" in each.message]
    assert len(said) == 1


async def test_without_a_file_nothing_is_recorded(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", MemoryStore()) as rig:
        await rig.write("a", b"one")
        assert rig.service.status()["audit"] is None


def test_a_cause_holds_for_its_block_and_no_longer() -> None:
    def inner() -> Iterator[str]:
        with because("one"):
            yield current()
            with because("two", if_unknown=True):
                yield current()
            with because("three"):
                yield current()
        yield current()
        with because("four", if_unknown=True):
            yield current()

    assert list(inner()) == ["one", "one", "three", "", "four"]
