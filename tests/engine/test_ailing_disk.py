"""The cache's disk is full, or fails, at any call: what is in memory stays in line with what is on it."""

import errno
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from cachefs.core.errors import CachefsError, DiskFull, NoEntry, errno_of
from cachefs.core.types import FetchMode, Name, UploadMode
from cachefs.local.inodes import ROOT
from tests.engine.ailing import Ailment, ail
from tests.engine.rig import MIB, Rig, serving, store, until

NAMES: Final = [f"f{number}" for number in range(8)]
BACKGROUND: Final[dict[str, Any]] = {"upload": UploadMode.BACKGROUND, "upload_delay_s": 0.01}


@dataclass
class Workload:
    """Programs that do anything to a few files, and what each must read as; None: an operation on it failed."""

    rig: Rig
    ailment: Ailment
    chance: random.Random
    content: dict[str, bytes | None] = field(default_factory=dict)
    failed: int = 0
    done: int = 0

    async def step(self) -> None:
        """Do one thing, and see that everything is in line afterwards."""
        name, other = self.chance.sample(NAMES, 2)
        act: Callable[[], Awaitable[None]] = self.chance.choice(
            [
                lambda: self._write(name),
                lambda: self._write(name),
                lambda: self._put(name),
                lambda: self._change(name),
                lambda: self._read(name),
                lambda: self._cut(name),
                lambda: self._rename(name, other),
                lambda: self._unlink(name),
            ]
        )
        before = self.content.get(name)
        try:
            await act()
            self.done += 1
        except NoEntry:  # an operation that failed may have been the one that made or removed it
            if before is not None and not self.is_kept(name, before):
                raise
        except (CachefsError, OSError) as error:
            number = errno_of(error) if isinstance(error, CachefsError) else error.errno
            if number not in {errno.ENOSPC, errno.EIO, errno.ESTALE}:
                raise
            self.failed += 1
        self.check()

    def check(self) -> None:
        with self.ailment.paused():
            self.rig.check()

    def _piece(self) -> bytes:
        size = self.chance.choice([0, 1, 4096, 50_000, 130_000])
        return self.chance.randbytes(min(size, 64)) * (size // 64 + 1)

    async def _write(self, name: str) -> None:
        content = self._piece()
        self.content[name] = None
        await self.rig.write(name, content)
        self.content[name] = content

    async def _put(self, name: str) -> None:
        """Put a file in the place of another: where that fails it is the one or the other, whole."""
        old, content = self.content.get(name), self._piece()
        self.content[name] = None
        with self.ailment.paused():
            source = os.memfd_create("source")
            os.write(source, content)
        try:
            await self.rig.service.paths.put(name, source, may_replace=True)
        except (CachefsError, OSError):
            if old is not None:
                with self.ailment.paused():
                    found = await self.rig.read(name)
                assert found in (old, content) or self.is_kept(name, old)
                self.content[name] = found
            raise
        finally:
            os.close(source)
        self.content[name] = content

    async def _change(self, name: str) -> None:
        if name not in self.content:
            return
        old, piece = self.content[name], self._piece()
        offset = self.chance.choice([0, 5000, 100_000])
        self.content[name] = None
        fh = await self.rig.open(name, os.O_RDWR)
        try:
            await self.rig.fs.write(fh, offset, piece)
        finally:
            await self.rig.close(fh)
        if old is not None and piece:
            old = old.ljust(offset, b"\0")
            self.content[name] = old[:offset] + piece + old[offset + len(piece) :]
        else:
            self.content[name] = old

    async def _cut(self, name: str) -> None:
        if name not in self.content:
            return
        old, size = self.content[name], self.chance.choice([0, 4000, 200_000])
        self.content[name] = None
        fh = await self.rig.open(name, os.O_WRONLY)
        try:
            await self.rig.fs.files.of(fh).truncate(size)
        finally:
            await self.rig.close(fh)
        self.content[name] = None if old is None else old[:size].ljust(size, b"\0")

    async def _read(self, name: str) -> None:
        if name not in self.content:
            return
        known = self.content[name]
        found = await self.rig.read(name)
        assert known in (None, found) or self.is_kept(name, known), name

    def is_kept(self, name: str, content: bytes) -> bool:
        """Whether the store has *content* at *name*, or put beside: a rename that failed half way left another there."""
        return any(
            found == content
            for key, found in self.rig.objects().items()
            if key == name or ".conflict-" in key
        )

    async def _rename(self, name: str, other: str) -> None:
        if name not in self.content:
            return
        content = self.content[name]
        self.content[name] = self.content[other] = None
        await self.rig.rename(name, other)
        del self.content[name]
        self.content[other] = content

    async def _unlink(self, name: str) -> None:
        if name not in self.content:
            return
        self.content[name] = None
        await self.rig.unlink(name)
        del self.content[name]


@pytest.mark.parametrize("upload", ["close", "background"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    ("seeds", "steps"),
    [
        pytest.param(range(2), 50, id="some"),
        pytest.param(
            range(10, 40), 200, id="many", marks=[pytest.mark.soak, pytest.mark.timeout(900)]
        ),
    ],
)
async def test_whatever_call_fails_nothing_acknowledged_is_lost_and_everything_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    upload: str,
    number: int,
    seeds: range,
    steps: int,
) -> None:
    met: set[str] = set()
    for seed in seeds:
        print(f"seed {seed}")
        ailment = Ailment(random.Random(seed), number)
        with monkeypatch.context() as patch:
            await _try(tmp_path / f"c{seed}", patch, upload, ailment, random.Random(seed), steps)
        met.update(ailment.met)
    assert len(met) >= 4, met


async def _try(
    directory: Path,
    patch: pytest.MonkeyPatch,
    upload: str,
    ailment: Ailment,
    chance: random.Random,
    steps: int,
) -> None:
    settings = BACKGROUND if upload == "background" else {}
    async with serving(directory, cache_size=2 * MIB, timeout_s=2, **settings) as rig:
        work = Workload(rig, ailment, chance)
        for name in NAMES[:4]:
            work.content[name] = name.encode() * 9000
            store(rig.memory, name, name.encode() * 9000)
        ail(patch, rig.service._disk.db, ailment)
        for turn in range(steps):
            if turn % 10 == 0:
                ailment.each = chance.choice([0, 1, 2, 5, 17, 40])
            await work.step()
        ailment.each = 0
        await _all_is_well(work)
        assert work.done > steps // 8
        assert work.failed > 0
    assert not [name for name in os.listdir(directory / "data") if ".new-" in name]


async def _all_is_well(work: Workload) -> None:
    """See that everything goes on by itself now that the disk is well again."""
    rig = work.rig
    files = rig.fs.files

    def is_settled() -> bool:
        status = rig.service.status()
        cache = rig.cache
        is_closed = not rig.cache._usage.doomed and not (
            files._files or files._unburied or cache._live or cache._fileless
        )
        return is_closed and not status["dirty"] and not status["unfinished_renames"]

    # Rather than when they are due again.
    rig.service._unfinished._kicked.set()
    await rig.flush()
    await until(is_settled, within_s=30)
    rig.check()
    assert rig.cache.reserved == 0
    taken = {path.name: path.stat().st_blocks * 512 for path in rig.cache.data.iterdir()}
    rows = rig.cache._db.all("SELECT id, cost, size FROM entries")
    assert rig.cache.used == sum(taken.values()), (taken, rows, rig.cache._usage)
    # What an operation left at the store that failed half way, the mount sees when it next looks.
    rig.service._disk.inodes.stale_below(ROOT)
    for name in NAMES:
        rig.service._names.forget_absent(ROOT, Name(name.encode()))
    for name, content in work.content.items():
        if content is not None:
            assert work.is_kept(name, content), name
        if name in (objects := rig.objects()):
            assert await rig.read(name) == objects[name]
        await rig.write(name, b"written again")
    await rig.flush()
    assert all(work.is_kept(name, b"written again") for name in work.content)
    assert rig.service.status()["failed_tasks"] == 0


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_read_passes_a_full_disk_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    content = random.Random(1).randbytes(300_000)
    async with serving(tmp_path / "c", fetch=FetchMode.DEMAND) as rig:
        rig.store("file", content)
        await rig.ino("file")
        ailment = Ailment(random.Random(1))
        with monkeypatch.context() as patch:
            ail(patch, rig.service._disk.db, ailment)
            ailment.each = 0 if is_open else 1
            fh = await rig.open("file")
            ailment.each = 1
            assert await rig.read_fh(fh) == content
            assert ailment.met
            ailment.each = 0
            await rig.close(fh)
            rig.check()


async def test_what_a_failed_write_left_behind_the_end_is_not_in_the_file_when_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "c") as rig:
        ailment = Ailment(random.Random(1))
        with monkeypatch.context() as patch:
            ail(patch, rig.service._disk.db, ailment)
            fh = await rig.create("file")
            await rig.fs.write(fh, 0, b"begin")
            ailment.each = 1
            with pytest.raises(DiskFull):
                await rig.fs.write(fh, 5, b"x" * 100_000)
            ailment.each = 0
            await rig.fs.write(fh, 200_000, b"end")
            await rig.close(fh)
        assert rig.objects() == {"file": b"begin".ljust(200_000, b"\0") + b"end"}
