"""Evicting what an operator names: nothing that anybody needs goes, with a daemon and without one."""

from pathlib import Path

import pytest

from cachefs.core.cached import CachedFile
from cachefs.core.eviction import Policy
from cachefs.core.types import EntryId
from cachefs.engine.eviction import GONE, USED
from cachefs.engine.recovery import open_cache
from cachefs.local.cache import Entry
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, Rig, serving, store


def known(rig: Rig) -> dict[str, CachedFile]:
    return {each.path: each for each in map(CachedFile.from_json, rig.service.entries(0))}


async def evicted(rig: Rig, file: CachedFile) -> int | str:
    (outcome,) = await rig.service.evict([(file.id, file.used_ns)])
    return outcome


@pytest.fixture
def memory() -> MemoryStore:
    memory = MemoryStore()
    for name in ("clean", "open", "used", "pinned", "leased"):
        store(memory, name, name.encode() * 1000)
    return memory


class Lease:
    """Somebody else who needs one entry."""

    def __init__(self, entry_id: EntryId) -> None:
        self._entry_id = entry_id

    def reason(self, entry: Entry) -> str | None:
        return "is leased" if entry.id == self._entry_id else None


async def test_each_is_looked_at_again_in_the_moment_in_which_it_would_go(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        for name in ("clean", "open", "used", "pinned", "leased"):
            await rig.read(name)
        await rig.write("dirty", b"ours")
        listed = known(rig)
        fh = await rig.open("open")
        await rig.read("used")
        rig.service._disk.inodes.update(await rig.ino("pinned"), pinned=1)
        rig.service._evictions.keepers.append(Lease(listed["leased"].id))
        outcomes = {name: await evicted(rig, file) for name, file in listed.items()}
        assert outcomes == {
            "clean": listed["clean"].cost,
            "open": "is in use",
            "used": USED,
            "pinned": "is pinned",
            "leased": "is leased",
            "dirty": "waits for upload",
        }
        assert await evicted(rig, listed["clean"]) == GONE
        assert set(known(rig)) == {"open", "used", "pinned", "leased", "dirty"}
        assert await rig.read("clean") == b"clean" * 1000
        await rig.close(fh)
        rig.check()
        assert rig.cache.used == rig.disk_bytes()


async def test_without_a_daemon_the_same_is_kept_and_the_cache_knows_how_full_it_is(
    tmp_path: Path, memory: MemoryStore
) -> None:
    async with serving(
        tmp_path / "c", memory, policy=Policy.LFU, cache_size=2**24, **LATER
    ) as rig:
        for name in ("clean", "pinned"):
            await rig.read(name)
        await rig.write("dirty", b"ours")
        rig.service._disk.inodes.update(await rig.ino("pinned"), pinned=1)
        used = rig.cache.used
    with open_cache(tmp_path / "c") as stopped:
        usage = stopped.usage()
        assert (usage.used, usage.limit, usage.policy) == (used, 2**24, Policy.LFU)
        files = {each.path: each for each in stopped.entries()}
        named = [(files[name].id, files[name].used_ns) for name in ("dirty", "clean", "pinned")]
        outcomes = stopped.evict(named)
        assert outcomes == ["waits for upload", files["clean"].cost, "is pinned"]
        assert stopped.usage().used == used - files["clean"].cost
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        assert await rig.read("dirty") == b"ours"
        assert await rig.read("clean") == b"clean" * 1000
        rig.check()
