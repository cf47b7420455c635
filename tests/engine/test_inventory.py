"""What operators are told of the files in the cache, with and without a daemon."""

import json
from pathlib import Path

import pytest

from cachefs.core.cached import CachedFile
from cachefs.core.extents import ExtentMap
from cachefs.core.intent import State
from cachefs.core.types import EntryId, Ino
from cachefs.engine import inventory
from cachefs.engine.fetch import Stream
from cachefs.engine.recovery import open_cache
from cachefs.local.cache import Entry
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, serving, store


async def test_every_cached_file_is_told_of_with_and_without_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_PAGE", 1)
    memory = MemoryStore()
    store(memory, "d/clean", b"content")
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        fh = await rig.open("d/clean")
        await rig.read_fh(fh)
        await rig.write("dirty\n", b"changed")
        told: list[CachedFile] = []
        while page := rig.service.entries(told[-1].id if told else 0):
            told += [CachedFile.from_json(json.loads(json.dumps(row))) for row in page]
        await rig.close(fh)
        image = rig.crash_image(tmp_path / "image")
    clean, dirty = told
    assert (clean.path, clean.key, clean.state, clean.pins) == ("d/clean", "d/clean", None, 1)
    assert (clean.size, clean.cached, clean.is_whole) == (7, 7, True)
    assert (dirty.path, dirty.key, dirty.state) == ("dirty\n", "dirty\n", State.QUEUED)
    with open_cache(image) as stopped:
        found = {each.path: each.state for each in stopped.entries()}
    assert found == {"d/clean": None, "dirty\n": State.QUEUED}


async def test_opens_are_counted_and_what_fetching_took_is_kept_over_a_restart(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "fetched", b"content")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.read("fetched")
        await rig.read("fetched")
        await rig.write("written", b"ours")
    with open_cache(tmp_path / "c") as stopped:
        fetched, written = sorted(stopped.entries(), key=lambda each: each.path)
    assert (fetched.hits, written.hits) == (2, 1)
    assert fetched.fetch_ns > 0 == written.fetch_ns
    assert 0 < fetched.made_ns <= fetched.used_ns
    async with serving(tmp_path / "c", memory) as rig:
        await rig.write("fetched", b"other bytes, which nobody fetched")
    with open_cache(tmp_path / "c") as stopped:
        assert {each.path: each.fetch_ns for each in stopped.entries()}["fetched"] == 0


@pytest.mark.parametrize(
    ("requests", "took_ns"),
    [
        ([(0, 10)], 10),
        ([(0, 10), (20, 25)], 15),
        ([(0, 10), (5, 15)], 15),
        ([(0, 10), (2, 10), (3, 10)], 10),
        ([(5, 8), (0, 10)], 5),  # known too late to be told apart: rather too little than twice
    ],
)
def test_time_of_requests_side_by_side_is_counted_once(
    requests: list[tuple[int, int]], took_ns: int
) -> None:
    stream = Stream(Entry(EntryId(1), Ino(1), None, 0, ExtentMap(), 0, 0))
    for began_ns, ended_ns in requests:
        stream.count(began_ns, ended_ns)
    assert stream.entry.fetch_ns == took_ns


async def test_bytes_without_a_name_are_told_of_by_what_they_were_for(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", MemoryStore(), **LATER) as rig:
        fh = await rig.create("half")
        await rig.fs.write(fh, 0, b"half")
        image = rig.crash_image(tmp_path / "image")
        await rig.close(fh)
    with open_cache(image) as stopped:
        (aside,) = stopped.entries()
    assert (aside.path, aside.key, aside.state) == ("half", None, State.PARKED)
