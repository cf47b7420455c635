"""Reads that pass the cache by, because it has no room: a few blocks in memory, shared by all who read."""

from cachetools import LRUCache

from cachefs.core.extents import Extent
from cachefs.core.types import ETag, Key
from cachefs.engine.fetch import Fetcher
from cachefs.engine.names import SingleFlight

_BLOCK = 2 * 2**20
_MEMORY = 64 * 2**20
"""Bytes held in memory at most, whatever the number of readers."""


class PassThrough:
    """Bytes straight from the store, a block at a time, so that a sequential reader does not ask for each read."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._flights = SingleFlight()
        self._blocks: LRUCache[tuple[Key, ETag, int], bytes] = LRUCache(_MEMORY, getsizeof=len)

    async def read(self, key: Key, etag: ETag, size: int, extent: Extent) -> bytes:
        """Return the bytes of *extent* of an object of *size* bytes."""
        pieces: list[bytes] = []
        for start in range(extent.start // _BLOCK * _BLOCK, extent.stop, _BLOCK):
            block = await self._block(key, etag, size, Extent(start, min(size, start + _BLOCK)))
            pieces.append(block[max(0, extent.start - start) : extent.stop - start])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _block(self, key: Key, etag: ETag, size: int, extent: Extent) -> bytes:
        name = (key, etag, extent.start)
        fetched: list[bytes] = []

        async def fetch() -> None:
            fetched.append(await self._fetcher.through(key, etag, size, extent))
            self._blocks[name] = fetched[0]

        while True:
            found = self._blocks.get(name)
            if found is not None:
                return found
            if await self._flights.run(name, fetch):
                return fetched[0]
