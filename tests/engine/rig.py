"""One cache directory in front of a store in memory, used as a program would, without a kernel."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from cachefs.core.errors import Fault, NoEntry
from cachefs.core.eviction import Policy
from cachefs.core.extents import Extent
from cachefs.core.source import Source, StoreKind
from cachefs.core.types import (
    AttributeMode,
    ConflictPolicy,
    FetchMode,
    Fh,
    Ino,
    Key,
    Name,
    ObjectInfo,
    UploadMode,
)
from cachefs.engine.filesystem import FileSystem
from cachefs.engine.service import Service, ServiceSettings, open_service
from cachefs.engine.told import Unaware
from cachefs.local.cache import Cache
from cachefs.local.inodes import ROOT
from cachefs.remote.memory import MemoryStore
from cachefs.remote.retry import Pace, Retrying
from tests.contract.bodies import BytesBody, fetched
from tests.engine.watched import WatchedStore

MIB = 2**20


LATER: Final[dict[str, Any]] = {"upload": UploadMode.BACKGROUND, "upload_delay_s": 3600}
"""Nothing is uploaded until the test says so."""
FOREVER_ASKING: Final[dict[str, Any]] = {"metadata_ttl_s": 0, "negative_ttl_s": 0}
"""Nothing that the store said is believed the next time."""


SETTINGS = ServiceSettings(
    source=Source(StoreKind.MEMORY),
    cache_dir=Path("/nowhere"),
    cache_size=64 * MIB,
    min_free_bytes=0,
    policy=Policy.GDSF,
    upload=UploadMode.CLOSE,
    upload_delay_s=0,
    conflict=ConflictPolicy.KEEP_BOTH,
    metadata_ttl_s=3600,
    negative_ttl_s=3600,
    attributes=AttributeMode.AUTO,
    timeout_s=10,
    fetch=FetchMode.AHEAD,
    part_size=MIB,
    transfers=8,
    offline_reads=True,
    read_only=False,
    uid=1000,
    gid=1000,
    file_mode=0o644,
    dir_mode=0o755,
)


class HurriedTime:
    """A clock that only the waiting of the retry loop moves: faults are waited out at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def pace(self) -> Pace:
        return Pace(clock=lambda: self.now, wait=self._wait)

    def _wait(self, wait_s: float) -> bool:
        self.now += wait_s
        return False


@dataclass
class Rig:
    """A running service, and both of its ends."""

    service: Service
    memory: MemoryStore
    watched: WatchedStore
    settings: ServiceSettings

    @property
    def fs(self) -> FileSystem:
        return self.service.fs

    # ---- the store's side -------------------------------------------------------------------

    def store(self, key: str, content: bytes, meta: dict[str, str] | None = None) -> ObjectInfo:
        """Put an object behind the mount's back, whatever is there."""
        return store(self.memory, key, content, meta)

    def remove(self, key: str) -> None:
        """Delete an object behind the mount's back."""
        self.memory.delete(Key(key))

    def objects(self) -> dict[str, bytes]:
        """Return every object and its content."""
        return objects(self.memory)

    # ---- the program's side -----------------------------------------------------------------

    async def ino(self, path: str) -> Ino:
        """Walk to *path* as the kernel does."""
        ino = ROOT
        for part in filter(None, path.split("/")):
            ino = (await self.fs.lookup(ino, Name(os.fsencode(part)))).ino
        return ino

    async def spot(self, path: str) -> tuple[Ino, Name]:
        """Return the directory and the name of *path*."""
        directory, _, name = path.rpartition("/")
        return await self.ino(directory), Name(os.fsencode(name))

    async def exists(self, path: str) -> bool:
        try:
            await self.ino(path)
        except NoEntry:
            return False
        return True

    async def open(self, path: str, flags: int = os.O_RDONLY) -> Fh:
        """Open *path* as the kernel does, which looks the name up once more where it has to."""
        try:
            return (await self.fs.open(await self.ino(path), flags)).fh
        except Unaware as unaware:
            self.fs.told.asks_anew(unaware.ino)
            return (await self.fs.open(await self.ino(path), flags)).fh

    async def create(self, path: str, flags: int = os.O_RDWR) -> Fh:
        directory, name = await self.spot(path)
        opened, _ = await self.fs.create(directory, name, flags, mode=0o640, uid=7, gid=8)
        return opened.fh

    async def close(self, fh: Fh) -> None:
        """As close(2): the error of the flush is the program's, and the handle goes all the same."""
        try:
            await self.fs.flush(fh)
        finally:
            await self.fs.release(fh)

    async def write(self, path: str, content: bytes) -> None:
        """Replace or make a file."""
        fh = await self.create(path, os.O_WRONLY | os.O_TRUNC)
        try:
            for start in range(0, len(content), MIB // 4):
                await self.fs.write(fh, start, content[start : start + MIB // 4])
        finally:
            await self.close(fh)

    async def read_fh(self, fh: Fh, offset: int = 0, size: int = 2**40) -> bytes:
        chunks = []
        stop = offset + size
        while offset < stop:
            chunk = bytes(await self.fs.read(fh, offset, min(MIB // 4, stop - offset)))
            if not chunk:
                break
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)

    async def read(self, path: str) -> bytes:
        fh = await self.open(path)
        try:
            return await self.read_fh(fh)
        finally:
            await self.fs.release(fh)

    async def names(self, path: str = "") -> list[str]:
        """List a directory as readdir does."""
        reader = await self.fs.opendir(await self.ino(path))
        found: list[str] = []
        after = 0
        while page := await self.fs.readdir(reader, after, 500):
            for name, told in page:
                self.fs.shown(told)
                found.append(name.decode("utf-8", "surrogateescape"))
            after = page[-1][1].ino
        return sorted(found)

    async def mkdir(self, path: str) -> Ino:
        directory, name = await self.spot(path)
        return (await self.fs.mkdir(directory, name, mode=0o750, uid=7, gid=8)).ino

    async def unlink(self, path: str) -> None:
        await self.fs.unlink(*await self.spot(path))

    async def rmdir(self, path: str) -> None:
        await self.fs.rmdir(*await self.spot(path))

    async def rename(self, old: str, new: str, *, no_replace: bool = False) -> None:
        await self.fs.rename(*await self.spot(old), *await self.spot(new), no_replace=no_replace)

    async def flush(self) -> dict[str, object]:
        """Upload everything that is complete, now."""
        return await self.service.flush((), wait=True)

    # ---- the disk's side --------------------------------------------------------------------

    @property
    def health(self) -> dict[str, object]:
        """What ``status`` says of the store."""
        found = self.service.status()["remote"]
        assert isinstance(found, dict)
        return found

    @property
    def cache(self) -> Cache:
        return self.service._disk.cache

    def check(self) -> None:
        """Assert what holds at every moment."""
        self.cache.check()
        assert self.disk_bytes() <= self.cache.limit

    def disk_bytes(self) -> int:
        """Return what the files below data/ really take of the disk."""
        taken = 0
        for path in self.cache.data.iterdir():
            try:
                taken += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue  # deleted between the two
        return taken

    def crash_image(self, target: Path) -> Path:
        """Copy the cache directory as a killed daemon would leave it at this moment."""
        shutil.copytree(
            self.settings.cache_dir, target, ignore=shutil.ignore_patterns("lock", "*-shm")
        )
        target.chmod(0o700)
        return target


def store(
    memory: MemoryStore, key: str, content: bytes, meta: dict[str, str] | None = None
) -> ObjectInfo:
    """Put an object, whatever is there."""
    memory.delete(Key(key))
    return memory.put(Key(key), BytesBody(content), meta=meta or {}, if_match=None)


def objects(memory: MemoryStore) -> dict[str, bytes]:
    """Return every object and its content."""
    return {
        info.key: fetched(memory, info.key, Extent(0, info.size), info.etag)
        for page in memory.list(Key(""), deep=True)
        for info in page.objects
    }


@asynccontextmanager
async def serving(
    cache_dir: Path,
    memory: MemoryStore | None = None,
    *,
    store_timeout_s: float = 30,
    **settings: object,
) -> AsyncIterator[Rig]:
    """Run a service on *cache_dir*; *settings* replace those of ``SETTINGS``."""
    memory = memory or MemoryStore()
    watched = WatchedStore(memory)
    retrying = Retrying(watched, timeout_s=store_timeout_s, pace=HurriedTime().pace())
    chosen = replace(SETTINGS, cache_dir=cache_dir, **settings)  # type: ignore[arg-type]
    async with open_service(chosen, retrying) as service:
        watched.forget()
        yield Rig(service, memory, watched, chosen)


def lose_answer(rig: Rig, operation: str, key: str | None = None) -> None:
    """Let the store act once without the mount learning it: the answer is lost, and then the store is down."""

    def act() -> None:
        rig.watched.fail("before", operation, Fault("down"), times=10**6)
        raise Fault("lost")

    rig.watched.on("after", operation, act, key=key)


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    """Wait until *condition* holds, looking again and again."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.002)


async def together(*works: Callable[[], Awaitable[object]]) -> None:
    """Do all of *works* at the same time."""

    async def run(work: Callable[[], Awaitable[object]]) -> None:
        await work()

    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(run, work)
