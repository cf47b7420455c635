"""Files in a cache for programs on trio: what :mod:`cachefs.library` has, with each wait in a thread.

::

    async with await cachefs.connect_async("s3://photos") as photos:
        async with photos.open("2024/a.jpg", "rb") as file:
            data = await file.read()
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Final, Self

import trio

from cachefs.answers import Info, StrPath
from cachefs.engine.threads import Threads
from cachefs.library import Client, Lease
from cachefs.spool import SpooledText, SpooledWriter

__all__ = ["AsyncClient", "connect_async"]

_run = Threads.for_program
_PAGE: Final = 256
"""Names that are handed over at a time."""


async def connect_async(where: StrPath, **options: object) -> "AsyncClient":
    """Return a client of *where*; see :class:`cachefs.library.Client`."""
    return AsyncClient(await _run(Client, where, **options))


class AsyncClient:
    """What :class:`cachefs.library.Client` does, for trio. For any number of tasks.

    A call that is cancelled is left to itself: what it was to change may be changed nevertheless, whole or not at all.
    """

    def __init__(self, client: Client) -> None:
        """Use *client*, which is closed with this."""
        self.client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        with trio.CancelScope(shield=True):
            await self.close()

    async def close(self) -> None:
        """See :meth:`Client.close`."""
        await _run(self.client.close)

    async def stat(self, path: StrPath = "") -> Info:
        """See :meth:`Client.stat`."""
        return await _run(self.client.stat, path)

    async def exists(self, path: StrPath) -> bool:
        """See :meth:`Client.exists`."""
        return await _run(self.client.exists, path)

    async def list(self, path: StrPath = "", *, deep: bool = False) -> AsyncIterator[Info]:
        """See :meth:`Client.list`."""
        found = self.client.list(path, deep=deep)
        while page := await _run(lambda: list(islice(found, _PAGE))):
            for info in page:
                yield info

    async def lease(self, path: StrPath) -> Lease:
        """See :meth:`Client.lease`."""
        return await _run(self.client.lease, path)

    @asynccontextmanager
    async def open(
        self,
        path: StrPath,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        whole: bool = True,
    ) -> AsyncIterator[Any]:
        """Open a file for a block; see :meth:`Client.open`. It has the methods of one, to be awaited (``trio.wrap_file``)."""
        opened = await _run(
            self.client.open,
            path,
            mode,
            encoding=encoding,
            errors=errors,
            newline=newline,
            whole=whole,
        )
        file = trio.wrap_file(opened)
        try:
            yield file
        except BaseException:
            if isinstance(opened, SpooledWriter | SpooledText):
                opened.discard()
            raise
        finally:
            await file.aclose()

    async def read(self, path: StrPath) -> bytes:
        """See :meth:`Client.read`."""
        return await _run(self.client.read, path)

    async def get(self, path: StrPath, local: StrPath) -> None:
        """See :meth:`Client.get`."""
        await _run(self.client.get, path, local)

    async def put(self, local: StrPath, path: StrPath, *, replace: bool = True) -> Info:
        """See :meth:`Client.put`."""
        return await _run(self.client.put, local, path, replace=replace)

    async def write(self, path: StrPath, data: bytes | bytearray | memoryview | str) -> Info:
        """See :meth:`Client.write`."""
        return await _run(self.client.write, path, data)

    async def copy(self, path: StrPath, target: StrPath) -> Info:
        """See :meth:`Client.copy`."""
        return await _run(self.client.copy, path, target)

    async def mkdir(self, path: StrPath, *, parents: bool = False) -> None:
        """See :meth:`Client.mkdir`."""
        await _run(self.client.mkdir, path, parents=parents)

    async def delete(self, path: StrPath, *, recursive: bool = False) -> None:
        """See :meth:`Client.delete`."""
        await _run(self.client.delete, path, recursive=recursive)

    async def rename(self, path: StrPath, target: StrPath, *, replace: bool = True) -> None:
        """See :meth:`Client.rename`."""
        await _run(self.client.rename, path, target, replace=replace)

    async def pin(self, path: StrPath = "", *, wait: bool = True) -> None:
        """See :meth:`Client.pin`."""
        await _run(self.client.pin, path, wait=wait)

    async def unpin(self, path: StrPath = "") -> None:
        """See :meth:`Client.unpin`."""
        await _run(self.client.unpin, path)

    async def wait(self, *paths: StrPath) -> None:
        """See :meth:`Client.wait`."""
        await _run(self.client.wait, *paths)

    async def refresh(self, path: StrPath = "") -> None:
        """See :meth:`Client.refresh`."""
        await _run(self.client.refresh, path)
