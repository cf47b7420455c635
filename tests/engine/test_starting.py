"""What a start costs: what the last daemon left in order is not looked through again."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from cachefs.local.db import NAME
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, serving, store
from tests.local.known import know

MANY: Final = 20_000
_STEPS: Final = 1000


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Tells how many thousand steps SQLite's virtual machine has taken since it was asked last."""
    taken = 0
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def tick() -> int:
        nonlocal taken
        taken += 1
        return 0

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:  # noqa: ANN401
        connection = connect(*arguments, **options)
        connection.set_progress_handler(tick, _STEPS)
        return connection

    def since() -> int:
        nonlocal taken
        found, taken = taken, 0
        return found

    monkeypatch.setattr(sqlite3, "connect", connected)
    return since


async def test_a_start_after_an_end_looks_at_no_name_however_many_are_known(
    tmp_path: Path, steps: Callable[[], int]
) -> None:
    memory = MemoryStore()
    know(tmp_path / "c", MANY, source=memory.description)
    steps()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        assert steps() <= 2
        assert rig.service.status()["known_inodes"] == MANY + 2
        image = rig.crash_image(tmp_path / "image")
    steps()
    async with serving(image, memory, **LATER):
        assert steps() > MANY // _STEPS  # after none, every one is


async def test_a_start_after_an_end_looks_at_no_file_that_is_clean_and_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryStore()
    for number in range(20):
        store(memory, f"file{number}", b"x" * 100)
    async with serving(tmp_path / "c", memory) as rig:
        for number in range(20):
            await rig.read(f"file{number}")
    looked: list[str] = []
    lstat = os.lstat

    def looking(path: str | Path) -> os.stat_result:
        looked.append(str(path))
        return lstat(path)

    monkeypatch.setattr(os, "lstat", looking)
    async with serving(tmp_path / "c", memory):
        assert not [each for each in looked if "/data/" in each]
        image = rig.crash_image(tmp_path / "image")
    looked.clear()
    async with serving(image, memory):
        assert len([each for each in looked if "/data/" in each]) == 20


async def test_a_file_that_is_gone_from_the_cache_counts_for_nothing_after_the_start(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    for name in ("kept", "gone"):
        store(memory, name, b"x" * 5000)
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("kept") == await rig.read("gone") == b"x" * 5000
    (tmp_path / "c" / "data" / "2").unlink()
    async with serving(tmp_path / "c", memory) as rig:
        assert rig.cache.statistics()["entries"] == 1
        rig.cache.check()
        assert await rig.read("gone") == b"x" * 5000


async def test_what_a_file_takes_of_the_disk_is_measured_anew_after_a_crash(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "file", b"x" * 50_000)
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("file") == b"x" * 50_000
        image = rig.crash_image(tmp_path / "image")
    connection = sqlite3.connect(image / NAME)
    connection.execute("UPDATE entries SET cost = 4096")
    connection.commit()
    connection.close()
    async with serving(image, memory) as rig:
        assert rig.cache.used >= rig.disk_bytes()
        rig.cache.check()


async def test_what_some_program_has_changed_in_the_database_is_asked_of_the_store_anew(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    store(memory, "file", b"x" * 5000)
    async with serving(tmp_path / "c", memory) as rig:
        assert await rig.read("file") == b"x" * 5000
    image = tmp_path / "image"
    shutil.copytree(tmp_path / "c", image, ignore=shutil.ignore_patterns("lock"))
    image.chmod(0o700)
    connection = sqlite3.connect(image / NAME)
    connection.execute("UPDATE inodes SET size = 5 WHERE kind = 'file'")
    connection.commit()
    connection.close()
    async with serving(image, memory) as rig:
        assert await rig.read("file") == b"x" * 5000
    async with serving(tmp_path / "c", memory) as rig:  # which nobody has changed
        assert await rig.read("file") == b"x" * 5000
        assert not rig.watched.count().get("head")
