"""The pool as a door of a running service: its directory, its sockets, and its end."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from cachefs.config.pool import PoolConfig
from cachefs.core.errors import UsageError
from cachefs.core.source import Source, StoreKind
from cachefs.engine.service import Service
from cachefs.local.views import Views
from cachefs.pool import SOCKET_NAME, Pool, PoolSettings, listening, remove_socket

Listeners = list[tuple[trio.SocketListener, bool]]


@asynccontextmanager
async def answering(
    service: Service, config: PoolConfig, source: Source, cache_dir: Path
) -> AsyncIterator[Pool]:
    """Answer the clients of a pool from *service*, whose cache is in *cache_dir*, while the block runs.

    What clients see goes at the end; who wants requests answered until then calls :meth:`Pool.wait_idle` before.
    Raise ``UsageError`` where the pool's directory or port cannot be used, or is another's.
    """
    with _views(config, cache_dir) as views:
        listeners, master = await _listeners(config)
        try:
            async with trio.open_nursery() as nursery:
                pool = Pool(service, views, _settings(config, source, master))
                await nursery.start(pool.serve, listeners)
                service.doors["pool"] = lambda: {"home": str(config.home), **pool.status()}
                yield pool
                nursery.cancel_scope.cancel()
        finally:
            service.doors.pop("pool", None)
            remove_socket(config.home)


@contextmanager
def _views(config: PoolConfig, cache_dir: Path) -> Iterator[Views]:
    _make_home(config)
    views = Views(config.home, umask=config.umask)
    try:
        if views.data.stat().st_dev != cache_dir.stat().st_dev:
            raise UsageError(
                f"the cache directory {cache_dir} is on another file system than {views.data}, "
                "which shows its files — keep the two on one"
            )
        views.note_in(cache_dir)
        yield views
    finally:
        views.sweep()
        views.close()


def _make_home(config: PoolConfig) -> None:
    try:
        for directory in (config.home, config.home / "tmp"):
            if not directory.is_dir():
                directory.mkdir(parents=True)
                directory.chmod(0o777 & ~config.umask)  # whatever the daemon's own umask is
    except OSError as error:
        raise UsageError(
            f"cannot use {config.home}: {error.strerror} — name another directory"
        ) from error


async def _listeners(config: PoolConfig) -> tuple[Listeners, str]:
    """Listen; return at what, each with whether its clients must know the token, and the address for clients."""
    found = [(listening(config.home), False)]
    if config.port is None:
        return found, str(config.home / SOCKET_NAME)
    try:
        opened = await trio.open_tcp_listeners(config.port, host=config.listen, backlog=1024)
    except OSError as error:
        await found[0][0].aclose()
        remove_socket(config.home)
        raise UsageError(
            f"cannot listen at {config.listen}:{config.port}: {error.strerror} — name another port"
        ) from error
    found += [(listener, True) for listener in opened]
    port = opened[0].socket.getsockname()[1]
    return found, f"{config.listen}:{port}"


def _settings(config: PoolConfig, source: Source, master: str) -> PoolSettings:
    # The top directories of a directory are its buckets, as those of an account are.
    is_many = source.kind is StoreKind.FILE or not source.bucket
    return PoolSettings(
        bucket=None if is_many else source.bucket,
        prefix="" if is_many else source.prefix,
        master=master,
        lease_s=config.lease_s,
        push_from=tuple(each.resolve() for each in config.push_from),
        readers=0o444 & ~config.umask,
        token=config.token,
        is_prefix_glob=config.is_prefix_glob,
        pull_concurrency=config.concurrency,
        refresh_interval=config.refresh_interval,
    )
