"""A database that is gone, garbled, older than it should be, or that lies: no acknowledged byte depends on it."""

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from cachefs.core.errors import CacheError, CachefsError, Refused
from cachefs.core.types import EntryId, Fh
from cachefs.local.db import NAME, Database
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import LATER, Rig, serving, store, until

Harm = Callable[[random.Random, Path, Path], None]
SIZES = (0, 1, 700, 5000, 70_000, 1_200_000)


# ---- harm -----------------------------------------------------------------------------------


def files_of(image: Path) -> list[Path]:
    return sorted(image.glob(f"{NAME}*"))


def leave_alone(chance: random.Random, image: Path, older: Path) -> None:
    """No harm at all: the test itself must hold then."""


def remove_all(chance: random.Random, image: Path, older: Path) -> None:
    for path in files_of(image):
        path.unlink()


def remove_main(chance: random.Random, image: Path, older: Path) -> None:
    (image / NAME).unlink()


def remove_log(chance: random.Random, image: Path, older: Path) -> None:
    (image / f"{NAME}-wal").unlink(missing_ok=True)


def truncate(chance: random.Random, image: Path, older: Path) -> None:
    path = chance.choice(files_of(image))
    os.truncate(path, chance.randrange(path.stat().st_size + 1))


def scatter_garbage(chance: random.Random, image: Path, older: Path) -> None:
    path = chance.choice(files_of(image))
    with path.open("r+b") as file:
        for _ in range(chance.choice((1, 3, 30))):
            file.seek(chance.randrange(max(1, path.stat().st_size)))
            file.write(chance.randbytes(chance.choice((1, 2, 100))))


def checkpoint_then_scatter(chance: random.Random, image: Path, older: Path) -> None:
    """Garbage among the rows themselves, which lie in the log until a checkpoint moves them."""
    sqlite3.connect(image / NAME).close()
    connection = sqlite3.connect(image / NAME)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    scatter_garbage(chance, image, older)


def fill_with_garbage(chance: random.Random, image: Path, older: Path) -> None:
    for path in files_of(image):
        path.write_bytes(chance.randbytes(path.stat().st_size))


def overwrite(chance: random.Random, path: Path) -> None:
    """Garbage in the same file, which whoever has it open sees at once."""
    with path.open("r+b") as file:
        file.write(chance.randbytes(path.stat().st_size))


def put_older_back(chance: random.Random, image: Path, older: Path) -> None:
    """An earlier copy, as a backup would have it, of this session or of the one before."""
    copies = sorted(older.iterdir())
    if not copies:
        return
    remove_all(chance, image, older)
    chosen = chance.choice(copies)
    for path in files_of(chosen):
        shutil.copy(path, image)


HARMS: list[Harm] = [
    leave_alone,
    remove_all,
    remove_main,
    remove_log,
    truncate,
    scatter_garbage,
    checkpoint_then_scatter,
    fill_with_garbage,
    put_older_back,
]


# ---- what programs do before ----------------------------------------------------------------


@dataclass
class Programs:
    """Does at random what programs do, and knows what was acknowledged."""

    chance: random.Random
    rig: Rig
    known: dict[str, bytes] = field(default_factory=dict)
    """What must be in the store afterwards."""
    held: dict[str, Fh] = field(default_factory=dict)
    """What is being written and not closed."""
    count: int = 0

    def content(self) -> bytes:
        self.count += 1
        head = f"content {self.count} of {self.chance.random()} ".encode()
        size = self.chance.choice(SIZES)
        return (head * (size // len(head) + 1))[:size]

    def some(self) -> str | None:
        free = sorted(set(self.known) - set(self.held))
        return self.chance.choice(free) if free else None

    def fresh(self) -> str:
        self.count += 1
        directory = self.chance.choice(("", "", "d/", "e/", "d/deep/"))
        return f"{directory}f{self.count}"

    async def make_way(self, path: str) -> None:
        made = ""
        for part in path.split("/")[:-1]:
            made = f"{made}/{part}".lstrip("/")
            if not await self.rig.exists(made):
                await self.rig.mkdir(made)

    async def close_new(self) -> None:
        path, content = self.fresh(), self.content()
        await self.make_way(path)
        await self.rig.write(path, content)
        self.known[path] = content

    async def close_again(self) -> None:
        if path := self.some():
            content = self.content()
            await self.rig.write(path, content)
            self.known[path] = content

    async def change_a_part(self) -> None:
        if path := self.some():
            fh = await self.rig.open(path, os.O_RDWR)
            await self.rig.fs.write(fh, 3, b"changed")
            await self.rig.close(fh)
            old = self.known[path].ljust(3, b"\0")
            self.known[path] = old[:3] + b"changed" + old[10:]

    async def leave_half_written(self) -> None:
        path = self.some() if self.chance.random() < 0.7 else None
        if path is None:
            path = self.fresh()
            await self.make_way(path)
            fh = await self.rig.create(path)
        else:
            fh = await self.rig.open(path, os.O_RDWR)
        await self.rig.fs.write(fh, self.chance.choice((0, 100)), b"half" * 500)
        self.held[path] = fh

    async def store_some(self) -> None:
        if path := self.some():
            await self.rig.service.flush((path,), wait=True)

    async def park(self) -> None:
        """The store refuses it for good."""
        path, content = self.fresh(), self.content()
        await self.make_way(path)
        await self.rig.write(path, content)
        self.rig.watched.fail("before", "put", Refused("too odd"), times=1, key=path)
        await self.rig.service.flush((path,), wait=True)
        self.known[path] = content

    async def rename(self) -> None:
        if path := self.some():
            new = self.some() if self.chance.random() < 0.3 else None
            new = new or self.fresh()
            if new == path:
                return
            await self.make_way(new)
            await self.rig.rename(path, new)
            self.known[new] = self.known.pop(path)

    async def rename_directory(self) -> None:
        if self.held or not await self.rig.exists("d"):
            return
        self.count += 1
        await self.rig.rename("d", f"dir{self.count}")
        for path in [path for path in self.known if path.startswith("d/")]:
            self.known[f"dir{self.count}/{path[2:]}"] = self.known.pop(path)

    async def unlink(self) -> None:
        if path := self.some():
            await self.rig.unlink(path)
            del self.known[path]

    async def unlink_open(self) -> None:
        if path := self.some():
            fh = await self.rig.open(path, os.O_RDWR)
            await self.rig.fs.write(fh, 0, b"nobody is owed this")
            await self.rig.unlink(path)
            del self.known[path]
            self.held[f"unlinked {path}"] = fh

    async def read(self) -> None:
        if path := self.some():
            assert await self.rig.read(path) == self.known[path]

    async def work(self, turns: int, older: Path) -> None:
        """Do things at random, and copy the database now and then."""
        deeds = [
            *[self.close_new] * 4,
            *[self.close_again] * 3,
            *[self.change_a_part] * 2,
            *[self.store_some] * 3,
            *[self.rename] * 3,
            *[self.leave_half_written] * 2,
            *(self.park, self.rename_directory, self.unlink, self.unlink_open, self.read),
        ]
        for turn in range(turns):
            await self.chance.choice(deeds)()
            if turn % 5 == 2:
                self.copy_database(older)

    def copy_database(self, older: Path) -> None:
        target = older / f"{len(list(older.iterdir())):03}"
        target.mkdir()
        for path in files_of(self.rig.settings.cache_dir):
            if not path.name.endswith("-shm"):
                shutil.copy(path, target)

    async def let_go(self) -> None:
        for fh in self.held.values():
            await self.rig.fs.release(fh)
        self.held.clear()


async def live_and_crash(
    chance: random.Random, base: Path, memory: MemoryStore
) -> tuple[Path, dict[str, bytes]]:
    """Work in two sessions. Return what the second one leaves when it is killed, and what was acknowledged."""
    older = base / "older"
    older.mkdir()
    known: dict[str, bytes] = {}
    async with serving(base / "c", memory, **LATER) as rig:
        programs = Programs(chance, rig)
        await programs.work(chance.randrange(8), older)
        await programs.let_go()
        await rig.flush()
        known = {path: content for path, content in rig.objects().items() if path[-1] != "/"}
    async with serving(base / "c", memory, **LATER) as rig:
        programs = Programs(chance, rig, known, count=1000)
        await programs.work(20, older)
        image = rig.crash_image(base / "image")
        await programs.let_go()
    return image, programs.known


async def look(image: Path, memory: MemoryStore, known: dict[str, bytes], what: str) -> None:
    """Assert that exactly what was acknowledged is served, and then stored."""
    async with serving(image, memory, **LATER) as rig:
        for path, content in known.items():
            assert await rig.read(path) == content, f"{what}: {path} is read otherwise"
        await rig.flush()
        objects = rig.objects()
        stored = {path: content for path, content in objects.items() if not path.endswith("/")}
        assert sorted(stored) == sorted(known), f"{what}: {rig.service.dirty()}"
        wrong = [path for path in known if stored[path] != known[path]]
        assert not wrong, f"{what}: {wrong}"
        assert {each["state"] for each in rig.service.dirty()} <= {"parked"}, what
        assert not rig.service.status()["conflicts"], what
        rig.cache.check()
        assert rig.cache.used >= rig.disk_bytes(), what


@pytest.mark.parametrize(
    "seeds",
    [
        [*range(len(HARMS)), 26, 53],  # 26 and 53: older copies that once sent bytes elsewhere
        pytest.param(range(100, 280), marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(1800)
async def test_whatever_happens_to_the_database_what_was_acknowledged_is_stored_under_its_name(
    tmp_path: Path, seeds: Sequence[int]
) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        harm = HARMS[seed % len(HARMS)]
        base, memory = tmp_path / str(seed), MemoryStore()
        base.mkdir()
        image, known = await live_and_crash(chance, base, memory)
        harm(chance, image, base / "older")
        await look(image, memory, known, f"seed {seed}, {harm.__name__}")
        shutil.rmtree(base)


def hide_from(image: Path, index: str, ino: int) -> None:
    """Take an inode out of one of the indexes of its table, which does not know that it lacks one."""
    connection = sqlite3.connect(image / NAME, isolation_level=None)
    columns = index.rpartition("_")[2]
    unique = "UNIQUE " if columns == "name" else ""
    connection.execute(f"DROP INDEX {index}")
    connection.execute(
        f"CREATE {unique}INDEX {index} ON inodes (parent, {columns}) WHERE ino <> {ino}"
    )
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        f"UPDATE sqlite_schema SET sql = replace(sql, ' WHERE ino <> {ino}', '') WHERE name = '{index}'"
    )
    connection.close()


async def serve_unchecked(image: Path, memory: MemoryStore, known: dict[str, bytes]) -> None:
    """Use, without a check before, what may be damaged: a read is right or an error, and the check finds its end."""
    with contextlib.suppress(CacheError):  # Damaged, where even the end cannot be noted
        async with serving(image, memory, **LATER) as rig:
            for path, content in known.items():
                with contextlib.suppress(CachefsError):
                    assert await rig.read(path) == content, path
            with contextlib.suppress(CachefsError):
                await rig.flush()
            await until(lambda: rig.service.status()["database"] != {"state": "unchecked"})


@pytest.mark.parametrize(
    "seeds",
    [
        [*range(len(HARMS))],
        pytest.param(range(300, 390), marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(1800)
async def test_a_database_that_is_served_before_it_is_checked_loses_and_mixes_nothing(
    tmp_path: Path, seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        harm = HARMS[seed % len(HARMS)]
        base, memory = tmp_path / str(seed), MemoryStore()
        base.mkdir()
        image, known = await live_and_crash(chance, base, memory)
        harm(chance, image, base / "older")
        with monkeypatch.context() as patch:
            patch.setattr("cachefs.local.db._CHECKED_FIRST", 0)
            await serve_unchecked(image, memory, known)
        await look(image, memory, known, f"seed {seed}, {harm.__name__}")
        shutil.rmtree(base)


async def test_damage_that_is_found_while_it_is_served_is_said_and_mended_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("stored", b"x")
        await rig.flush()
        await rig.write("file", b"acknowledged")
        image = rig.crash_image(tmp_path / "image")
    hide_from(image, "inodes_by_component", 2)

    with monkeypatch.context() as patch:
        patch.setattr("cachefs.local.db._CHECKED_FIRST", 0)
        async with serving(image, memory, **LATER) as rig:
            await until(lambda: rig.service.status()["database"] != {"state": "unchecked"})
            told = rig.service.status()["database"]
            assert isinstance(told, dict)
            assert told["state"] == "damaged"
            assert "inodes_by_component" in told["reason"]
            assert await rig.read("file") == b"acknowledged"
    assert not list(image.glob("*.broken-*"))
    known = {"stored": b"x", "file": b"acknowledged"}
    await look(image, memory, known, "found while served")
    assert list(image.glob("*.broken-*"))


@pytest.mark.parametrize("index", ["inodes_by_name", "inodes_by_component"])
async def test_an_index_that_does_not_find_what_is_owed_is_found_out_before_anything_is_served(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", b"acknowledged")
        image = rig.crash_image(tmp_path / "image")
    hide_from(image, index, 2)
    monkeypatch.setattr("cachefs.local.db._CHECKED_FIRST", 0)
    await look(image, memory, {"file": b"acknowledged"}, index)
    assert list(image.glob("*.broken-*"))


# ---- harm under a running daemon ------------------------------------------------------------


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Another program changes the database, and does not end."""
    connection = sqlite3.connect(directory / NAME, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks of others are not waited for as long as otherwise."""
    monkeypatch.setattr("cachefs.local.db._BUSY_MS", 200)


@pytest.mark.usefixtures("impatient")
async def test_a_database_that_another_program_has_locked_is_left_alone_and_said(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", b"acknowledged")
        image = rig.crash_image(tmp_path / "image")
    with locked(image), pytest.raises(CacheError, match="locked by another program"):
        async with serving(image, memory, **LATER):
            pass
    assert not list(image.glob("*.broken-*"))
    await look(image, memory, {"file": b"acknowledged"}, "after the lock")


@pytest.mark.usefixtures("impatient")
async def test_while_another_program_has_the_database_locked_writing_is_an_error_and_reading_goes_on(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", b"acknowledged")
        fh = await rig.open("file")
        with locked(tmp_path / "c"):
            assert await rig.read_fh(fh) == b"acknowledged"
            for _ in range(3):
                with pytest.raises(CacheError, match="locked by another program"):
                    await rig.write("other", b"x")
            assert await rig.read_fh(fh) == b"acknowledged"
        await rig.close(fh)
        await rig.write("other", b"y")
        await rig.flush()
        assert rig.objects() == {"file": b"acknowledged", "other": b"y"}
        rig.check()


@pytest.mark.usefixtures("impatient")
async def test_an_upload_that_ends_while_the_database_is_locked_is_settled_afterwards(
    tmp_path: Path,
) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", b"acknowledged")
        gate = rig.watched.gate("after", "put")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.flush)
            await gate.reached.wait()
            with locked(tmp_path / "c"):
                gate.open()
                await until(lambda: not rig.service._uploader.is_uploading(EntryId(1)))
        await rig.flush()
        await until(lambda: not rig.service.dirty())
        assert rig.objects() == {"file": b"acknowledged"}
        assert not rig.service.status()["conflicts"]
        rig.check()


@pytest.mark.parametrize("seed", range(6))
async def test_garbage_in_the_database_of_a_running_daemon_is_an_error_and_loses_nothing(
    tmp_path: Path, seed: int
) -> None:
    chance, memory, base = random.Random(seed), MemoryStore(), tmp_path / "c"
    older = tmp_path / "older"
    older.mkdir()
    async with serving(base, memory, **LATER) as rig:
        programs = Programs(chance, rig)
        await programs.work(15, older)
        known = dict(programs.known)
        if chance.random() < 0.7:
            Database.checkpoint(base / NAME)
        for name in (NAME, f"{NAME}-wal"):
            if chance.random() < 0.7:
                overwrite(chance, base / name)
        rig.cache._db.execute(
            "PRAGMA shrink_memory"
        )  # or SQLite would go on with what it has read
        for turn in range(10):
            with contextlib.suppress(CachefsError):
                await rig.write(f"new{turn}", b"never acknowledged, or stored as it is")
                known[f"new{turn}"] = b"never acknowledged, or stored as it is"
        image = rig.crash_image(tmp_path / "image")
        with contextlib.suppress(CachefsError):
            await programs.let_go()
    await look(image, memory, known, f"seed {seed}")


async def test_bytes_that_the_database_suddenly_sends_elsewhere_are_parked(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        store(memory, "precious", b"of another")
        await rig.write("file", b"acknowledged")
        lie = "UPDATE inodes SET name = ?, component = ? WHERE name = ?"
        rig.cache._db.execute(lie, (b"elsewhere", b"elsewhere", b"file"))
        answer = await rig.flush()
        assert len(answer["failed"]) == 1  # type: ignore[arg-type]
        assert rig.objects() == {"precious": b"of another"}
        (dirty,) = rig.service.dirty()
        assert dirty["state"] == "parked"
        image = rig.crash_image(tmp_path / "image")
    await look(image, memory, {"precious": b"of another", "file": b"acknowledged"}, "a lie")


async def test_the_database_of_an_earlier_session_is_set_aside(tmp_path: Path) -> None:
    memory = MemoryStore()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("before", b"x")
        await rig.flush()
    earlier = (tmp_path / "c" / NAME).read_bytes()
    async with serving(tmp_path / "c", memory, **LATER) as rig:
        await rig.write("file", b"acknowledged")
    (tmp_path / "c" / NAME).write_bytes(earlier)
    await look(tmp_path / "c", memory, {"before": b"x", "file": b"acknowledged"}, "earlier")
    assert list((tmp_path / "c").glob("*.broken-*"))
