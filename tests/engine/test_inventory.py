"""What operators are told of the files in the cache, with and without a daemon."""

import json
from pathlib import Path

import pytest

from cachefs.core.cached import CachedFile
from cachefs.core.intent import State
from cachefs.engine import inventory
from cachefs.engine.recovery import open_cache
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


async def test_bytes_without_a_name_are_told_of_by_what_they_were_for(tmp_path: Path) -> None:
    async with serving(tmp_path / "c", MemoryStore(), **LATER) as rig:
        fh = await rig.create("half")
        await rig.fs.write(fh, 0, b"half")
        image = rig.crash_image(tmp_path / "image")
        await rig.close(fh)
    with open_cache(image) as stopped:
        (aside,) = stopped.entries()
    assert (aside.path, aside.key, aside.state) == ("half", None, State.PARKED)
