"""The trace of opens: what it says, and that nothing waits for it or fails by it."""

import csv
import logging
import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from cachefs.core.traceline import HEADER, TraceLine
from cachefs.engine import linefile
from cachefs.engine import trace as module
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import MIB, Rig, serving, store, until


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linefile, "_EVERY_S", 0.01)


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="ascii") as stream:
        return list(csv.DictReader(stream))


async def test_every_open_is_one_line_that_tells_whether_it_waited(tmp_path: Path) -> None:
    memory, path = MemoryStore(), tmp_path / "trace.csv"
    store(memory, 'd/a "b",\n\udc80é', bytes(MIB))
    async with serving(tmp_path / "c", memory, trace=path) as rig:
        await rig.read('d/a "b",\n\udc80é')
        await rig.read('d/a "b",\n\udc80é')
        await rig.write("new", b"12345")

    first, second, third = lines_of(path)
    assert path.read_text().splitlines()[0] == HEADER
    assert unquote(first["key"], errors="surrogateescape") == 'd/a "b",\n\udc80é'
    assert (first["size"], first["hit"], first["op"]) == (str(MIB), "0", "read")
    assert float(first["fetch_seconds"]) > 0
    assert (second["key"], second["hit"], second["op"]) == (first["key"], "1", "read")
    assert float(second["fetch_seconds"]) == 0
    assert (third["key"], third["size"], third["op"]) == ("new", "5", "write")
    times = [float(each["time"]) for each in (first, second, third)]
    assert times == sorted(times)


async def test_what_is_opened_is_written_while_the_mount_goes_on(tmp_path: Path) -> None:
    memory, path = MemoryStore(), tmp_path / "trace.csv"
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory, trace=path) as rig:
        await rig.read("a")
        await until(path.exists)
        path.rename(tmp_path / "old.csv")  # as logrotate does
        await rig.read("a")
        await until(path.exists)
        await until(lambda: len(lines_of(path)) == 1)
        await until(lambda: told(rig) == {"file": str(path), "lines": 2, "lost": 0})


def told(rig: Rig) -> object:
    return rig.service.status()["trace"]


@pytest.mark.parametrize("file", ["none/trace.csv", "/dev/full", "fifo"])
async def test_a_trace_that_cannot_be_written_is_said_once_and_fails_nothing(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory, path = MemoryStore(), tmp_path / file
    os.mkfifo(tmp_path / "fifo")
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory, trace=path) as rig:
        for number in range(1, 4):
            assert await rig.read("a") == b"content"
            await until(lambda number=number: told(rig)["lost"] == number)  # type: ignore[misc,index]

    said = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(said) == 1
    assert said[0].startswith(f"the trace {path} cannot be written: ")


async def test_how_many_are_missing_is_said_when_it_can_be_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory, path = MemoryStore(), tmp_path / "later" / "trace.csv"
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory, trace=path) as rig:
        for _ in range(3):
            await rig.read("a")
        await until(lambda: told(rig)["lost"] == 3)  # type: ignore[index]
        path.parent.mkdir()
        await rig.read("a")
        await until(path.exists)
        await until(lambda: told(rig)["lines"] == 1)  # type: ignore[index]

    assert [each.message for each in caplog.records if each.levelno >= logging.WARNING][1:] == [
        f"the trace {path} is written again; 3 opens are missing"
    ]


def test_memory_is_bounded_where_the_file_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linefile, "_MOST_LINES", 2)
    trace = module.Trace(Path("/nowhere"), None)  # type: ignore[arg-type]
    for number in range(5):
        trace.note(TraceLine(number, "a", 1, is_hit=True, fetch_ns=0, is_write=False))

    assert trace.status() == {"file": "/nowhere", "lines": 0, "lost": 3}


def test_the_file_is_the_users_alone_and_has_one_header(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    line = TraceLine(1_500_000, "a", 1, is_hit=True, fetch_ns=2_500_000, is_write=False)
    trace = module.Trace(path, None)  # type: ignore[arg-type]
    trace.note(line)
    trace.finish()
    trace.note(line)
    trace.finish()

    assert path.read_text() == f"{HEADER}\n" + "0.001500,a,1,1,0.002500,read\n" * 2
    assert path.stat().st_mode & 0o777 == 0o600
