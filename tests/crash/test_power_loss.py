"""A machine that loses its power at any moment: what was acknowledged is there when it comes back."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachefs.core.types import Key
from cachefs.engine import recovery
from cachefs.remote.memory import MemoryStore
from tests.contract.bodies import BytesBody
from tests.crash import plan
from tests.crash.disk import Disk
from tests.crash.session import md5_of
from tests.crash.trace import UNKNOWN, Call, record
from tests.engine.rig import LATER, serving

SOAK_SEEDS = [*range(12), *range(plan.PUTTING, plan.PUTTING + 6)]
_IGNORED = ("-shm", "/lock")


@dataclass
class World:
    """What there is outside the machine, and what it has acknowledged, up to one moment."""

    contents: dict[str, bytes]
    steps: list[plan.Step]
    begun: int = -1
    ended: int = -1
    stored: dict[str, dict[str, object]] = field(default_factory=dict)
    is_stopped: bool = False

    def hear(self, said: dict[str, object]) -> None:
        match said:
            case {"begun": int(number)}:
                self.begun = number
            case {"ended": int(number)}:
                self.ended = number
            case {"stored": str(key)}:
                self.stored[key] = said
            case {"deleted": str(key)}:
                self.stored.pop(key, None)
            case {"stopped": _}:
                self.is_stopped = True

    def store(self) -> MemoryStore:
        memory = MemoryStore()
        for key, said in self.stored.items():
            meta = {str(k): str(v) for k, v in dict(said["meta"]).items()}  # type: ignore[call-overload]
            body = BytesBody(self.contents[str(said["md5"])])
            memory.put(Key(key), body, meta=meta, if_match=None)
        return memory

    def trees(self) -> tuple[plan.Tree, plan.Tree]:
        """What was acknowledged, and that with the step under way done, too."""
        tree = plan.Tree()
        for step in self.steps[: self.ended + 1]:
            tree = plan.after(tree, step)
        under_way = self.begun > self.ended
        return tree, plan.after(tree, self.steps[self.begun]) if under_way else tree


def replay(calls: list[Call], disk: Disk, world: World, root: str, marks: str) -> Iterator[None]:
    """Do what the session did, and stop after each call: there the power may go."""
    positions: dict[str, int] = {}
    for call in calls:
        if call.paths()[:1] == [marks]:
            for line in call.texts()[0].decode().splitlines():
                world.hear(json.loads(line))
        elif call.opened != marks and not any(
            path.endswith(_IGNORED) for path in (*call.paths()[:1], call.opened)
        ):
            _do(call, disk, positions)
        yield


def _do(call: Call, disk: Disk, positions: dict[str, int]) -> None:
    assert call.name not in UNKNOWN, f"the session did something that is not played here: {call}"
    named = [os.fsdecode(text) for text in call.texts()]
    match call.name:
        case "openat" if call.opened and not os.path.isdir(call.opened):
            disk.create(call.opened)
            positions[call.opened] = 0
            if "O_TRUNC" in call.arguments:
                disk.truncate(call.opened, 0)
        case "mkdir":
            disk.mkdir(named[0])
        case "rename":
            disk.rename(named[0], named[1])
        case "unlink":
            disk.unlink(named[0])
        case "fsync" | "fdatasync":
            disk.sync(call.paths()[0])
        case "ftruncate":
            disk.truncate(call.paths()[0], call.numbers()[-1])
        case "fallocate":  # as posix_fallocate uses it: the file has zeros where it had no bytes
            path = call.paths()[0]
            disk.truncate(path, max(len(disk.content(path)), sum(call.numbers()[-2:])))
        case "write" | "pwrite64" | "sendfile":
            _write(call, disk, positions)


def _write(call: Call, disk: Disk, positions: dict[str, int]) -> None:
    path, *source = call.paths()
    at = call.numbers()[-1] if call.name == "pwrite64" else positions[path]
    data = disk.content(source[0])[at:] if source else call.texts()[0]
    disk.write(path, at, data[: call.result])
    positions[path] = at + call.result


async def judge(image: Path, world: World, *, is_kill: bool) -> None:
    """Start on what was found, and hold it against what was acknowledged."""
    acknowledged, ahead = world.trees()
    async with serving(image, world.store(), **LATER) as rig:
        await rig.flush()
        found = rig.objects()
        rig.check()
    if is_kill:
        assert found in (acknowledged, ahead)
        return
    before = _histories(world)
    for name, content in acknowledged.items():
        if found.get(name) in (content, ahead.get(name)):
            continue
        # A rename that nobody synced may be undone by the loss of power, its bytes may not be gone.
        assert content in found.values(), f"{name} has lost what was acknowledged"
    for name, content in found.items():
        # What an undone rename or removal brings back meets what the store has had since: both are kept.
        intended = name.partition(".conflict-")[0]
        assert content in before[intended], f"{name} holds what no program ever put there"


def _histories(world: World) -> dict[str, list[bytes]]:
    """Everything that each name ever held, as a whole."""
    tree, held = plan.Tree(), {name: list[bytes]() for name in plan.NAMES}
    for step in world.steps[: world.begun + 1]:
        tree = plan.after(tree, step)
        for name, content in tree.items():
            held[name].append(content)
    return held


async def try_all(tmp_path: Path, seed: int, *, length: int, strict: bool, every: int) -> int:
    """Cut the power after each *every*-th call of a session. Return how many images were judged."""
    if shutil.which("strace") is None:
        pytest.skip("not installed: strace")
    root, marks = tmp_path / "cache", tmp_path / "marks"
    root.mkdir(mode=0o700)
    calls = record(root, marks, seed, length)
    steps = plan.drawn(seed, length)
    contents, tree = {md5_of(b""): b""}, plan.Tree()
    for step in steps:
        tree = plan.after(tree, step)
        contents |= {md5_of(content): content for content in tree.values()}
    disk, world, tried = Disk(strict=strict), World(contents, steps), 0
    disk.mkdir(str(root))
    chance = random.Random(seed)
    for number, _ in enumerate(replay(calls, disk, world, str(root), str(marks))):
        if number % every or world.is_stopped:
            continue
        for keep in (0.0, 1.0, 0.5):
            image = tmp_path / f"image-{number}-{keep}"
            disk.image(image, str(root), chance if keep == 0.5 else None, keep=keep)
            try:
                await judge(image, world, is_kill=keep == 1)
            except BaseException as error:
                error.add_note(
                    f"seed {seed}, cut after call {number} of {len(calls)}, kept {keep}"
                )
                raise
            tried += 1
    assert world.is_stopped
    return tried


@pytest.mark.parametrize("strict", [False, True], ids=["journaled", "strict"])
async def test_what_was_acknowledged_outlives_a_loss_of_power_at_any_moment(
    tmp_path: Path, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "boot_id", lambda: "after the power came back")
    assert await try_all(tmp_path, 1, length=12, strict=strict, every=17) > 50


@pytest.mark.parametrize("strict", [False, True], ids=["journaled", "strict"])
async def test_a_file_that_was_put_whole_outlives_a_loss_of_power_at_any_moment(
    tmp_path: Path, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "boot_id", lambda: "after the power came back")
    assert await try_all(tmp_path, plan.PUTTING + 2, length=7, strict=strict, every=11) > 50


async def test_a_rename_that_the_loss_of_power_undoes_leaves_no_copy_of_an_older_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "boot_id", lambda: "after the power came back")
    assert await try_all(tmp_path, 4, length=8, strict=True, every=7) > 50


@pytest.mark.soak
@pytest.mark.parametrize("strict", [False, True], ids=["journaled", "strict"])
@pytest.mark.parametrize("seed", SOAK_SEEDS)
async def test_no_point_of_any_session_loses_what_was_acknowledged(
    tmp_path: Path, seed: int, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "boot_id", lambda: "after the power came back")
    tried = await try_all(tmp_path, seed, length=30, strict=strict, every=1)
    print(f"seed {seed}: {tried} images judged")
