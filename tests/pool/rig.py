"""A pool on a store in memory, asked over its real socket."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from cachefs.local.views import Views
from cachefs.pool import Pool, PoolSettings, listening
from cachefs.remote.memory import MemoryStore
from tests.engine.rig import Rig, serving, store


@dataclass
class PoolRig:
    """A pool, its service, and a client's side."""

    pool: Pool
    rig: Rig
    home: Path
    settings: PoolSettings

    async def raw(self, sent: bytes, *, eof: bool = False) -> bytes:
        """Send bytes as they are; return all that comes until the pool hangs up."""
        stream = await trio.open_unix_socket(self.home / "pool.sock")
        async with stream:
            await stream.send_all(sent)
            if eof:
                await stream.send_eof()
            return await read_all(stream)

    async def ask(self, *words: str) -> bytes:
        """Send a request; return the whole answer."""
        return await self.raw(json.dumps(words).encode() + b"\n")

    async def pull(self, bucket: str, *keys: str) -> list[Path]:
        answer = await self.ask("PULL", bucket, *keys)
        assert answer.startswith(b"OK\n"), answer
        return [Path(line.decode("utf-8", "surrogateescape")) for line in answer[3:].splitlines()]

    def data(self) -> list[str]:
        """What clients see below data/."""
        data = self.home / "data"
        return sorted(
            str(path.relative_to(data))
            for path in data.rglob("*")
            if path.is_file() and path.name != ".cachefs-pool"
        )

    def check(self) -> None:
        """Assert that all that the files below HOMEDIR take is counted, and within the limit."""
        cache = self.rig.cache
        cache.check()
        found = {}
        for directory in (cache.data, cache.lent, self.home / "data"):
            for path in directory.rglob("*"):
                if path.is_file() and not path.name.endswith(("__meta__", "__list__", "-pool")):
                    status = path.stat()
                    found[status.st_ino] = status.st_blocks * 512
        assert sum(found.values()) <= cache.used <= cache.limit


async def read_all(stream: trio.SocketStream) -> bytes:
    """Return what comes until the other side hangs up."""
    answer = b""
    with trio.fail_after(20):
        while data := await stream.receive_some():
            answer += data
    return answer


@asynccontextmanager
async def answering(
    tmp_path: Path,
    memory: MemoryStore | None = None,
    *,
    guarded: bool = False,
    pool: dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401 - of the service
) -> AsyncIterator[PoolRig]:
    """Run a pool in *tmp_path*/home; *pool* are its settings, *settings* the service's."""
    home = tmp_path / "home"
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    chosen = PoolSettings(
        **{"bucket": None, "master": "here", "readers": 0o444, "push_from": (home / "tmp",)}
        | (pool or {})
    )
    async with serving(home / "cache", memory, **settings) as rig:
        with closing(Views(home, umask=0o022)) as views:
            made = Pool(rig.service, views, chosen)
            async with trio.open_nursery() as nursery:
                await nursery.start(made.serve, [(listening(home), guarded)])
                yield PoolRig(made, rig, home, chosen)
                nursery.cancel_scope.cancel()


def filled(**objects: bytes) -> MemoryStore:
    """A store with the bucket ``b``, and in it *objects*."""
    memory = MemoryStore()
    for key, content in objects.items():
        store(memory, f"b/{key}", content)
    return memory
