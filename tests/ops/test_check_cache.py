"""A cache that is broken in one way is told to be broken in that way, and a sound one to be sound."""

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from cachefs.core.errors import CacheError, Refused
from cachefs.local.db import NAME, SCHEMA_VERSION
from cachefs.local.tables import Stopped
from cachefs.ops.check_cache import CacheCheck, Checked, Flaw, Kind
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, serving, store

CLEAN: Final = os.fsencode("d/cl\u00e4n").decode()
"""A clean file of three pieces, number 1 in the cache."""
SIZE: Final = 2_500_000


async def a_cache(directory: Path) -> Path:
    """A cache directory that a daemon has left: one clean file, one in part, one that waits, one that is parked."""
    memory = MemoryStore()
    chance = random.Random(1)
    store(memory, CLEAN, chance.randbytes(SIZE))
    store(memory, "part", chance.randbytes(SIZE))
    cache_dir = directory / "c"
    async with serving(cache_dir, memory, **LATER) as rig:
        await rig.read(CLEAN)
        await rig.write("waits", b"dirty")
        await rig.write("parked", b"dirty too")
        rig.watched.fail("before", "put", Refused("too odd"), times=1, key="parked")
        await rig.service.flush(("parked",), wait=True)
    return cache_dir


def found(cache_dir: Path, *, is_served: bool = False) -> list[Flaw]:
    check = CacheCheck(cache_dir, is_served=is_served)
    return [event for event in check.run() if isinstance(event, Flaw)]


def sql(cache_dir: Path, *statements: str) -> None:
    connection = sqlite3.connect(cache_dir / NAME, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    for statement in statements:
        connection.execute(statement)
    connection.close()


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 16]))


async def test_a_sound_cache_is_sound_and_is_left_as_it_was(tmp_path: Path) -> None:
    cache_dir = await a_cache(tmp_path)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in cache_dir.rglob("*")
        if path.is_file()
    }
    events = list(CacheCheck(cache_dir, is_served=False).run())
    assert [event for event in events if isinstance(event, Flaw)] == []
    (looked,) = (event for event in events if isinstance(event, Checked))
    assert (looked.names, looked.files) == (6, 3)
    assert looked.bytes == SIZE + len(b"dirty" + b"dirty too")
    now = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in cache_dir.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }
    assert now == before


BREAKS: Final[dict[str, tuple[Callable[[Path], object], Kind, str, bool]]] = {
    "a file that is gone": (lambda data: (data / "1").unlink(), Kind.MISSING, CLEAN, False),
    "a directory in its place": (
        lambda data: replace_by_directory(data / "1"),
        Kind.MISSING,
        CLEAN,
        False,
    ),
    "a link in its place": (
        lambda data: replace_by_link(data / "1"),
        Kind.MISSING,
        CLEAN,
        False,
    ),
    "one that is cut": (lambda data: os.truncate(data / "1", SIZE - 1), Kind.SHORT, CLEAN, False),
    "a bit in its first piece": (lambda data: flip(data / "1", 0), Kind.ROTTED, CLEAN, False),
    "a bit in its last": (lambda data: flip(data / "1", SIZE - 1), Kind.ROTTED, CLEAN, False),
    "a bit in what waits": (lambda data: flip(data / "2", 0), Kind.ROTTED, "waits", True),
    "what waits is gone": (lambda data: (data / "2").unlink(), Kind.MISSING, "waits", True),
    "a promise that is gone": (
        lambda data: (data / "2.promise").unlink(),
        Kind.UNPROMISED,
        "waits",
        True,
    ),
    "a file of nobody": (lambda data: (data / "77").touch(), Kind.STRAY, "77", False),
    "a promise of nobody": (
        lambda data: (data / "77.promise").touch(),
        Kind.STRAY,
        "77.promise",
        True,
    ),
    "no file of ours": (lambda data: (data / "notes.txt").touch(), Kind.STRAY, "notes.txt", False),
}


@pytest.mark.parametrize("what", BREAKS)
async def test_what_is_broken_is_told_and_nothing_else(tmp_path: Path, what: str) -> None:
    harm, kind, path, is_owed = BREAKS[what]
    cache_dir = await a_cache(tmp_path)
    harm(cache_dir / "data")
    (flaw,) = found(cache_dir)
    assert (flaw.kind, flaw.path, flaw.is_owed) == (kind, path, is_owed)
    assert flaw.repair is None


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE inodes SET parent = 99 WHERE name = x'70617274'", "refers to a row"),
        ("UPDATE inodes SET name = NULL WHERE ino = 3", "a directory and no name"),
        ("UPDATE inodes SET name = x'612f62' WHERE ino = 3", "a name that is none"),
        ("UPDATE inodes SET size = -1 WHERE ino = 3", "below zero"),
        ("UPDATE inodes SET parent = ino WHERE kind = 'dir' AND ino > 1", "lies in itself"),
        ("UPDATE entries SET pinned = 1", "is pinned, or not"),
        ("DELETE FROM meta WHERE name = 'schema'", "version of its tables"),
        ("CREATE TABLE others (name TEXT)", "not made as cachefs makes them"),
        ("UPDATE inodes SET kind = 'dir' WHERE ino = (SELECT ino FROM entries)", "of a directory"),
        ("UPDATE inodes SET kind = 'file' WHERE kind = 'dir' AND ino > 1", "is no directory"),
        ("UPDATE entries SET extents = x'ff' WHERE id = 1", "cache file 1"),
        ("UPDATE entries SET sums = x'ff' WHERE id = 1", "cache file 1"),
        (
            "INSERT INTO moves (batch, state, source, target, etag) VALUES ('b', 'copying', x'61', x'62', 'e'),"
            " ('b', 'deleting', x'61', x'62', 'e')",
            "point of no return",
        ),
    ],
)
async def test_rows_that_no_daemon_has_written_are_damage(
    tmp_path: Path, statement: str, what: str
) -> None:
    cache_dir = await a_cache(tmp_path)
    sql(cache_dir, "PRAGMA foreign_keys = OFF", statement)
    flaws = found(cache_dir)
    assert {flaw.kind for flaw in flaws} == {Kind.DATABASE}
    assert any(what in flaw.what for flaw in flaws), flaws


async def test_a_database_that_is_garbage_or_gone_is_told(tmp_path: Path) -> None:
    cache_dir = await a_cache(tmp_path)
    (cache_dir / NAME).write_bytes(b"garbage" * 1000)
    (flaw,) = found(cache_dir)
    assert (flaw.kind, flaw.path) == (Kind.DATABASE, "")
    assert "not a database" in flaw.what
    (cache_dir / NAME).unlink()
    assert [flaw.what for flaw in found(cache_dir)] == ["the database is gone"]


async def test_garbage_at_any_place_of_the_database_is_told_or_harmless(tmp_path: Path) -> None:
    cache_dir = await a_cache(tmp_path)
    content = (cache_dir / NAME).read_bytes()
    chance = random.Random(7)
    told = 0
    for _ in range(60):
        damaged = bytearray(content)
        place = chance.randrange(len(content))
        damaged[place : place + 3000] = chance.randbytes(len(damaged[place : place + 3000]))
        (cache_dir / NAME).write_bytes(damaged)
        told += bool(found(cache_dir))
    assert told > 30


async def test_tables_of_another_version_are_said_to_be_and_not_damaged(tmp_path: Path) -> None:
    cache_dir = await a_cache(tmp_path)
    sql(cache_dir, f"UPDATE meta SET value = '{SCHEMA_VERSION + 1}' WHERE name = 'schema'")
    with pytest.raises(CacheError, match="upgrade cachefs"):
        found(cache_dir)
    sql(cache_dir, f"UPDATE meta SET value = '{SCHEMA_VERSION - 1}' WHERE name = 'schema'")
    with pytest.raises(CacheError, match="mount it once"):
        found(cache_dir)


async def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    cache_dir = await a_cache(tmp_path)
    with pytest.raises(Stopped):
        list(CacheCheck(cache_dir, is_served=False, stop=lambda: True).run())


async def test_beside_a_daemon_that_is_at_work_a_sound_cache_is_sound(tmp_path: Path) -> None:
    memory = MemoryStore()
    chance = random.Random(1)
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        for turn in range(6):
            await rig.write(f"file{turn}", chance.randbytes(20_000))
            fh = await rig.open(f"file{turn}", os.O_RDWR)
            await rig.fs.write(fh, 100, b"being written")
            assert found(tmp_path / "c", is_served=True) == []
            await rig.close(fh)
            if turn % 2:
                await rig.flush()
            await rig.rename(f"file{turn}", f"renamed{turn}")
            if turn == 3:
                await rig.unlink("renamed2")
            assert found(tmp_path / "c", is_served=True) == []
