"""Which files were opened is remembered, whatever becomes of their bytes and their names."""

import json
import os
from datetime import date
from pathlib import Path

from cachefs.core.eviction import Policy
from cachefs.core.history import Accessed
from cachefs.engine.recovery import open_cache
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import MIB, Rig, serving, store


def remembered(rig: Rig) -> dict[str, int]:
    answer = json.loads(json.dumps(rig.service.history(0)))
    return {each.path: each.opens for each in map(Accessed.from_json, answer["files"])}


async def test_opens_are_remembered_after_the_bytes_were_evicted_and_the_daemon_has_ended(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    for name in ("d/a\udc80", *"bcefgh"):
        store(memory, name, os.urandom(MIB))
    async with serving(tmp_path / "c", memory, cache_size=4 * MIB, policy=Policy.LRU) as rig:
        await rig.read("d/a\udc80")
        await rig.read("d/a\udc80")
        for name in "bcefgh":
            await rig.read(name)
        assert rig.service.presence(["d/a\udc80"]) == [(MIB, 0)]
        assert remembered(rig) == {"d/a\udc80": 2, **dict.fromkeys("bcefgh", 1)}

    with open_cache(tmp_path / "c") as stopped:
        found = {each.path: each for each in stopped.history()}
    first = found["d/a\udc80"]
    assert (first.opens, first.size, first.fetch_ns) == (2, MIB, 0)
    assert first.days == {date.today().toordinal(): 2}
    assert found["h"].fetch_ns > 0


async def test_a_history_follows_the_name_through_renames_and_replacements(tmp_path: Path) -> None:
    async with serving(tmp_path / "c") as rig:
        await rig.write("a", b"1")
        await rig.read("a")
        await rig.rename("a", "b")
        assert remembered(rig) == {"b": 2}

        await rig.write("b.new", b"2")
        await rig.rename("b.new", "b")
        assert remembered(rig) == {"b": 3}

        await rig.unlink("b")
        assert remembered(rig) == {}


async def test_a_new_version_at_the_store_keeps_the_history(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"old")
    async with serving(tmp_path / "c", memory, metadata_ttl_s=0) as rig:
        await rig.read("a")
        rig.store("a", b"newer")
        await rig.read("a")

        assert remembered(rig) == {"a": 2}


async def test_what_operators_do_is_no_open(tmp_path: Path) -> None:
    memory = MemoryStore()
    store(memory, "a", b"content")
    async with serving(tmp_path / "c", memory) as rig:
        await rig.service.preheat("a", used_ns=1, may_evict=False)
        await rig.names()

        assert remembered(rig) == {}
