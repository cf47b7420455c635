"""Where the store cannot hold two writers apart, who was overwritten unseen is told, and his bytes are kept."""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from cachefs.core import metadata
from cachefs.core.errors import Fault
from cachefs.core.types import Attrs, ConflictPolicy, Key, Kind, ObjectInfo
from cachefs.engine.filesystem import Changes
from cachefs.remote.memory import MemoryStore
from tests.contract.bodies import BytesBody
from tests.engine.rig import Rig, store, until
from tests.engine.weak import WeakStore, weakly_serving

OURS, THEIRS = b"ours, acknowledged", b"theirs"


@dataclass
class Pair:
    """A mount that is watched, and another client of the same store."""

    rig: Rig
    other: WeakStore

    async def race(self, key: str, write: Callable[[], Awaitable[object]]) -> None:
        """Let the other look at *key*, then let *write* (of the mount) happen, then let the other write."""
        there = self._head(key)

        def act() -> None:
            trio.from_thread.run(write)

        self.other.in_between = act
        await trio.to_thread.run_sync(lambda: self._put(key, there))

    def _head(self, key: str) -> ObjectInfo | None:
        objects = self.rig.objects()
        return self.rig.memory.head(Key(key)) if key in objects else None

    def _put(self, key: str, there: ObjectInfo | None, content: bytes = THEIRS) -> None:
        self.other.put(
            Key(key),
            BytesBody(content),
            meta=metadata.encode(_ATTRS, None, {}),
            if_match=there.etag if there else None,
        )

    async def write_on(self, key: str, content: bytes) -> None:
        """Let the other replace what it sees there now."""
        await trio.to_thread.run_sync(lambda: self._put(key, self._head(key), content))

    async def look(self) -> None:
        await self.rig.service._second.look_at_all()

    def conflicts(self) -> list[str]:
        return [each.outcome for each in self.rig.service._disk.journal.conflicts()]


_ATTRS = Attrs(Kind.FILE, 0, 0o644, 1, 1, 1, 1, 1)


@asynccontextmanager
async def pair(tmp_path: Path, **settings: object) -> AsyncIterator[Pair]:
    memory = MemoryStore()
    store(memory, "d/file", b"base")
    async with weakly_serving(tmp_path / "c", memory, **settings) as (rig, _):
        yield Pair(rig, WeakStore(memory))


def beside(pair: Pair, key: str = "d/file") -> dict[str, bytes]:
    return {k: v for k, v in pair.rig.objects().items() if k.startswith(f"{key}.conflict-")}


async def test_a_write_that_was_overwritten_unseen_is_stored_again_beside(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        assert two.rig.objects()["d/file"] == THEIRS
        assert two.conflicts() == []
        await two.look()
        assert list(beside(two).values()) == [OURS]
        assert len(two.conflicts()) == 1
        assert set(await two.rig.names("d")) == {k.removeprefix("d/") for k in two.rig.objects()}
        assert await two.rig.read("d/file") == THEIRS
        await two.look()
        assert len(beside(two)) == len(two.conflicts()) == 1, "it is told once"
        two.rig.check()


async def test_it_is_looked_at_by_itself_after_a_while(tmp_path: Path) -> None:
    async with pair(tmp_path, timeout_s=0.3) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        await until(lambda: bool(two.conflicts()))
        assert list(beside(two).values()) == [OURS]


async def test_two_that_create_one_name_at_one_instant_both_stay(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/new", lambda: two.rig.write("d/new", OURS))
        await two.look()
        assert two.rig.objects()["d/new"] == THEIRS
        assert list(beside(two, "d/new").values()) == [OURS]


async def test_a_rename_that_was_overwritten_unseen_is_stored_again_beside(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.rig.write("d/tmp", OURS)
        await two.race("d/file", lambda: two.rig.rename("d/tmp", "d/file"))
        await two.look()
        assert two.rig.objects()["d/file"] == THEIRS
        assert list(beside(two).values()) == [OURS]


async def test_a_rename_of_the_other_that_overwrote_ours_unseen_is_found(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        store(two.rig.memory, "d/tmp", THEIRS)
        base, tmp = (two.rig.memory.head(Key(k)).etag for k in ("d/file", "d/tmp"))
        two.other.in_between = lambda: trio.from_thread.run(two.rig.write, "d/file", OURS)
        await trio.to_thread.run_sync(
            lambda: two.other.copy(Key("d/tmp"), Key("d/file"), if_match=tmp, replaces=base)
        )
        await two.look()
        assert two.rig.objects()["d/file"] == THEIRS
        assert list(beside(two).values()) == [OURS]


async def test_what_grew_from_theirs_meanwhile_hides_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        await two.write_on("d/file", b"theirs, again")
        await two.look()
        assert two.rig.objects()["d/file"] == b"theirs, again"
        assert list(beside(two).values()) == [OURS]


async def test_a_version_whose_writer_saw_ours_is_no_conflict(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.rig.write("d/file", OURS)
        await two.rig.fs.setattr(await two.rig.ino("d/file"), Changes(mode=0o600))
        for turn in range(3):
            await two.write_on("d/file", b"after ours %d" % turn)
        await two.look()
        assert beside(two) == {}
        assert two.conflicts() == []


async def test_a_version_that_was_seen_first_by_a_lookup_does_not_take_our_bytes_along(
    tmp_path: Path,
) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        assert await two.rig.read("d/file") == THEIRS
        assert list(beside(two).values()) == [OURS]
        assert len(two.conflicts()) == 1


async def test_a_version_that_is_open_here_is_kept_when_it_was_overwritten(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        # Opened before anybody has looked: what is known is ours.
        ino = two.rig.service._disk.inodes.find(Key("d/file"))
        assert ino is not None
        file = await two.rig.fs.files.acquire(ino.ino)
        assert await two.rig.read("d/file") == THEIRS
        assert await file.read(0, 100) == OURS
        await two.rig.fs.files.give_back(file)
        assert list(beside(two).values()) == [OURS]
        two.rig.check()


async def test_bytes_that_the_cache_had_to_give_up_are_said_to_be_gone(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        cache = two.rig.cache
        entry = cache.load(cache.all_ids()[-1])
        assert entry is not None
        doomed = cache.drop(entry)
        await two.rig.service._room.delete(doomed)
        await two.look()
        assert beside(two) == {}
        (outcome,) = two.conflicts()
        assert "gone" in outcome


async def test_bytes_that_rotted_since_are_not_stored_as_ours(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        cache = two.rig.cache
        cache.path_of(cache.all_ids()[-1]).write_bytes(OURS[::-1])
        await two.look()
        assert beside(two) == {}
        (outcome,) = two.conflicts()
        assert "gone" in outcome


async def test_theirs_wins_where_the_policy_says_so_and_it_is_said(tmp_path: Path) -> None:
    async with pair(tmp_path, conflict=ConflictPolicy.THEIRS) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        await two.look()
        assert beside(two) == {}
        assert len(two.conflicts()) == 1


async def test_a_file_that_is_written_again_is_its_own_uploads_matter(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        ino = two.rig.service._disk.inodes.find(Key("d/file"))
        assert ino is not None
        file = await two.rig.fs.files.acquire(ino.ino)
        await file.write(0, b"OURS")
        await two.look()
        assert beside(two) == {}, "these bytes are on their way by themselves"
        assert two.conflicts() == []
        await two.rig.fs.files.complete(file)
        await two.rig.fs.files.give_back(file)
        assert list(beside(two).values()) == [b"OURS" + OURS[4:]]


async def test_what_this_mount_removed_or_renamed_itself_is_not_missed(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        for name in ("d/one", "d/two"):
            await two.rig.write(name, OURS)
        await two.rig.unlink("d/one")
        await two.rig.rename("d/two", "d/three")
        for name in ("d/one", "d/two"):
            await two.write_on(name, THEIRS)
        await two.rig.rename("d", "e")
        await two.write_on("d/three", THEIRS)
        await two.look()
        assert two.conflicts() == []


async def test_a_store_that_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    async with pair(tmp_path, timeout_s=0.2) as two:
        two.rig.watched.fail("before", "head", Fault("down"), key="d/file", times=3)
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        await until(lambda: bool(two.conflicts()))
        assert list(beside(two).values()) == [OURS]


async def test_a_loss_is_found_when_the_mount_ends(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.race("d/file", lambda: two.rig.write("d/file", OURS))
        assert await two.rig.service.drain(timeout_s=10) == []
        assert list(beside(two).values()) == [OURS]


# ---- no false alarm ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_two_mounts_that_see_each_others_changes_are_never_told_of_a_conflict(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    memory = MemoryStore()
    async with AsyncExitStack() as stack:
        rigs = [
            (await stack.enter_async_context(weakly_serving(tmp_path / name, memory)))[0]
            for name in "ab"
        ]
        tree: dict[str, bytes] = {}
        for rig in rigs:
            if not await rig.exists("d"):
                await rig.mkdir("d")
        for step in range(60):
            await _do_something(chance, chance.choice(rigs), tree, step)
            if chance.random() < 0.2:
                await chance.choice(rigs).service._second.look_at_all()
            found = {k: v for k, v in rigs[0].objects().items() if not k.endswith("/")}
            assert found == tree
        for rig in rigs:
            await rig.service._second.look_at_all()
            assert rig.service._disk.journal.conflicts() == []
        assert {k: v for k, v in rigs[0].objects().items() if not k.endswith("/")} == tree


async def _do_something(
    chance: random.Random, rig: Rig, tree: dict[str, bytes], step: int
) -> None:
    name = f"d/{chance.choice('xyz')}"
    target = f"d/{chance.choice('xyz')}"
    deed = chance.choice(("write", "write", "empty", "append", "unlink", "rename", "chmod"))
    if deed in {"write", "empty"} or name not in tree:
        content = b"" if deed == "empty" else b"%d" % chance.choice((step, 0))
        await rig.write(name, content)
        tree[name] = content
    elif deed == "append":
        fh = await rig.open(name, os.O_RDWR)
        await rig.fs.write(fh, len(tree[name]), b"+%d" % step)
        await rig.close(fh)
        tree[name] += b"+%d" % step
    elif deed == "unlink":
        await rig.unlink(name)
        del tree[name]
    elif deed == "rename" and name != target:
        await rig.rename(name, target)
        tree[target] = tree.pop(name)
    elif deed == "chmod":
        await rig.fs.setattr(await rig.ino(name), Changes(mode=0o600 + step % 8))
