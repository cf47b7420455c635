"""The pages of a listing, fetched ahead of whoever merges them."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio

from cachefs.core.errors import CachefsError, Fault
from cachefs.core.types import Listing
from cachefs.engine.threads import Threads
from cachefs.remote.pages import Pages

_Item = tuple[Listing, bool, int] | CachefsError | None
"""A page, whether it is the last, and when it was asked for; an error; or (None) that there was no more."""

_WAITING: Final = 1
"""Pages that wait to be merged while another one is being fetched."""


class Fetched:
    """Pages in order, as ``async for`` gives them. An error of the store is raised in its place among them."""

    def __init__(self, pages: trio.MemoryReceiveChannel[_Item]) -> None:
        self._pages = pages
        self._error: CachefsError | None = None
        self.is_over = False
        """The page that was given last is the last there is."""
        self.asked_ns = 0
        """When the page that was given last was asked for."""

    def __aiter__(self) -> AsyncIterator[Listing]:
        return self

    async def __anext__(self) -> Listing:
        if self.is_over:
            raise StopAsyncIteration
        try:
            found = await self._pages.receive()
        except trio.EndOfChannel:
            # Whoever fetched them has come to grief: that is no end, of which there is a word.
            raise Fault("the listing broke off") from None
        if isinstance(found, CachefsError):
            raise found
        if found is None:
            self.is_over = True
            raise StopAsyncIteration
        page, self.is_over, self.asked_ns = found
        return page

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Keep an error of the block for :meth:`check`, so that it comes alone and not in a group."""
        try:
            yield
        except CachefsError as error:
            self._error = error

    def check(self) -> None:
        """Raise what :meth:`catching` has kept."""
        if self._error is not None:
            raise self._error


@asynccontextmanager
async def fetched_ahead(
    threads: Threads,
    pages: Iterator[Listing],
    now_ns: Callable[[], int],
    *,
    most: int | None = None,
) -> AsyncIterator[Fetched]:
    """Fetch *pages* while the block runs, one or two ahead of it, *most* at most (None: all).

    Empty ones with more behind them are not counted. *now_ns* tells the time.
    """
    send, receive = trio.open_memory_channel[_Item](_WAITING)

    async def feed() -> None:
        count = 0
        with contextlib.suppress(trio.BrokenResourceError), send:
            try:
                asked_ns = now_ns()
                page = await threads.ask(next, pages, None)
                while page is not None:
                    # Nothing is told by an empty one with more behind it.
                    count += page != Listing()
                    is_over = isinstance(pages, Pages) and pages.done
                    if count == most and not is_over and not _knows_end(pages):
                        is_over = await threads.ask(next, pages, None) is None
                    await send.send((page, is_over, asked_ns))
                    if is_over or count == most:
                        return
                    asked_ns = now_ns()
                    page = await threads.ask(next, pages, None)
                await send.send(None)
            except CachefsError as error:
                await send.send(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        with receive:
            yield Fetched(receive)
        nursery.cancel_scope.cancel()


def _knows_end(pages: Iterator[Listing]) -> bool:
    return isinstance(pages, Pages) and pages.knows_end
