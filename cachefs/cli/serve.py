"""A running mount, from the first request to the last upload: the service, its two doors, and the signals."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from cachefs import fuse
from cachefs.cli.notify import notify
from cachefs.cli.output import counted
from cachefs.cli.registry import Registration, Registry, process_start
from cachefs.config import Environment, MountConfig
from cachefs.core.errors import UsageError
from cachefs.engine.service import Service, ServiceSettings, open_service
from cachefs.remote.retry import Retrying
from cachefs.server import SOCKET_NAME, serve_control

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger(__name__)

Left = Sequence[Mapping[str, object]]
"""What still waits for upload."""


def settings_of(config: MountConfig, cache_disk_size: int) -> ServiceSettings:
    """Return what the service needs to know of *config*, on a disk of so many bytes."""
    return ServiceSettings(
        source=config.source,
        cache_dir=config.cache_dir,
        cache_size=config.cache_size,
        min_free_bytes=config.min_free.of(cache_disk_size),
        upload=config.upload,
        upload_delay_s=config.upload_delay_s,
        conflict=config.conflict,
        metadata_ttl_s=config.metadata_ttl_s,
        negative_ttl_s=config.negative_ttl_s,
        attributes=config.attributes,
        timeout_s=config.timeout_s,
        fetch=config.fetch,
        part_size=config.store.part_size,
        transfers=config.store.transfers,
        offline_reads=config.offline_reads,
        read_only=config.read_only,
        uid=config.uid,
        gid=config.gid,
        file_mode=config.file_mode,
        dir_mode=config.dir_mode,
    )


def disk_size(directory: Path) -> int:
    """Return how many bytes the disk below *directory* has."""
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize


class Daemon:
    """One mount, from start to end.

    The first signal (or the unmount) takes no more writes and uploads what waits, until nothing has moved for the
    mount's deadline; a second signal cuts that short. What is not uploaded then stays in the cache directory.
    """

    def __init__(
        self,
        config: MountConfig,
        mountpoint: Path,
        environment: Environment,
        store: Retrying,
        on_ready: Callable[[], None],
    ) -> None:
        self._config = config
        self._mountpoint = mountpoint
        self._store = store
        self._on_ready = on_ready
        self._manager = environment.get("NOTIFY_SOCKET")
        self._registry = Registry(environment.runtime_dir, environment.uid)
        self._stop = trio.Event()
        # None: not opened yet; a signal then ends everything at once.
        self._service: Service | None = None
        # None: no drain has begun.
        self._draining: trio.CancelScope | None = None
        # None: no drain has ended.
        self._left: Left | None = None
        self._interrupted = False
        self._is_ready = False

    async def run(self) -> Left:
        """Hold the mount until it ends. Return what still waits for upload."""
        settings = settings_of(self._config, disk_size(self._config.cache_dir))
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, signals, nursery)
                async with open_service(settings, self._store) as service:
                    self._service = service
                    await self._hold(service)
                nursery.cancel_scope.cancel()
        if self._interrupted:
            raise KeyboardInterrupt
        return self._left or []

    async def _hold(self, service: Service) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, service, self._config.cache_dir)
            try:
                await self._serve_kernel(service)
            finally:
                self._registry.remove(str(self._mountpoint), os.getpid())
            if self._left is None:
                self._left = await self._drain(service)
            nursery.cancel_scope.cancel()

    async def _serve_kernel(self, service: Service) -> None:
        try:
            await fuse.serve(
                service,
                self._mountpoint,
                fsname=str(self._config.source),
                allow_other=self._config.allow_other,
                read_only=self._config.read_only,
                kernel_options=self._config.kernel_options,
                on_ready=self._ready,
                stop=self._stop,
            )
        except RuntimeError as error:
            if self._is_ready:
                raise
            # libfuse tells the reason on standard error, and its caller only that there was one.
            raise UsageError(
                f"FUSE refused the mount ({error}) — the line before this in the log says why",
                exit_code=1,
            ) from error

    def _ready(self) -> None:
        self._is_ready = True
        pid = os.getpid()
        registration = Registration(
            mountpoint=str(self._mountpoint),
            source=str(self._config.source),
            cache_dir=str(self._config.cache_dir),
            socket=str(self._config.cache_dir / SOCKET_NAME),
            pid=pid,
            started=process_start(pid) or 0,
        )
        try:
            self._registry.add(registration)
        except (OSError, UsageError) as error:  # no reason to have no mount
            _log.warning("cachefs status and umount will not find this mount: %s", error)
        _log.info("mounted %s at %s", self._config.source, self._mountpoint)
        notify(
            self._manager,
            READY="1",
            STATUS=f"{self._config.source} is mounted at {self._mountpoint}",
        )
        self._on_ready()

    async def _heed(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if self._service is None:
                self._interrupted = True
                nursery.cancel_scope.cancel()
                return
            if self._draining is not None:
                _log.warning("%s again: what waits for upload stays in the cache directory", name)
                self._draining.cancel()
                continue
            _log.info("%s: uploading what waits, then unmounting", name)
            nursery.start_soon(self._end, self._service)

    async def _end(self, service: Service) -> None:
        self._left = await self._drain(service)
        self._stop.set()

    async def _drain(self, service: Service) -> Left:
        """Upload what waits, for as long as the store takes it in; return what is left."""
        waiting = counted(len(service.dirty()), "file")
        notify(self._manager, STOPPING="1", STATUS=f"uploading {waiting} before the end")
        with trio.CancelScope() as self._draining:
            while True:
                before = len(service.dirty())
                left = await service.drain(timeout_s=self._config.timeout_s)
                if not left or not _is_moving(service, before, left):
                    return left
        return service.dirty()


def _is_moving(service: Service, before: int, left: Left) -> bool:
    """Whether it is worth to go on: some were stored, or one is under way and the store answers."""
    if len(left) < before:
        return True
    remote = service.status()["remote"]
    answers = isinstance(remote, dict) and remote.get("offline_since") is None
    return answers and any(file.get("state") == "uploading" for file in left)
