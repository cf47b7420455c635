"""Doing the same to many things at a time, in threads, without ever holding more than a few of them."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
T_in = TypeVar("T_in")
T_out = TypeVar("T_out")


def in_parallel(
    do: Callable[[T_in], T_out],
    items: Iterable[T_in],
    *,
    threads: int,
    stop: Callable[[], None] = lambda: None,
) -> Generator[T_out, None, None]:
    """Yield what *do* returns of each of *items*, as soon as it does: not in their order.

    *items* is read in the caller's thread, at most ``2 * threads`` ahead of what was yielded, so that memory does not
    grow with their number. What *do* or *items* raises ends all: it is raised here once those that were begun are over.
    Where the caller leaves early (an exception, Ctrl-C, ``close()``), *stop* is called so that they end soon.
    """
    source = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="cachefs-job") as pool:
        waiting: set[Future[T_out]] = set()
        try:
            waiting.update(pool.submit(do, item) for item in itertools.islice(source, 2 * threads))
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    waiting.update(pool.submit(do, item) for item in itertools.islice(source, 1))
        except BaseException:
            stop()
            for future in waiting:
                future.cancel()
            raise


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield *items*, each of which is asked for in a thread while the one before it is being used.

    Where the caller leaves early, what was asked for is waited for.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="cachefs-ahead") as pool:
        coming = pool.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, source, end)
            yield item  # type: ignore[misc]  # it is not the end
