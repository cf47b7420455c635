"""A running mount, from the first request to the last upload: the service, its two doors, and the signals."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cachefs import fuse
from cachefs.cli.notify import notify
from cachefs.cli.output import counted
from cachefs.cli.pool_door import answering
from cachefs.cli.redaction import Redactor
from cachefs.config import Environment, MountConfig
from cachefs.core.errors import UsageError
from cachefs.engine.service import Service, open_service
from cachefs.mounts import Mount, mount_at, mounts_of, serves_a_mount, unmount
from cachefs.pool import Pool
from cachefs.pool import remove_socket as remove_pool_socket
from cachefs.preparing import disk_size, settings_of
from cachefs.registry import Registration, Registry, process_start
from cachefs.remote.retry import Retrying
from cachefs.server import SOCKET_NAME, remove_socket, serve_control

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_END_S: Final = 10.0
"""So long what is under way may take to end when the uploads are over; then the process ends without it."""
_HURRIED_END_S: Final = 2.0
"""The same, for whoever has sent a second signal."""

_log = logging.getLogger(__name__)

Left = Sequence[Mapping[str, object]]
"""What still waits for upload."""


class Daemon:
    """One mount, from start to end.

    The first SIGTERM or SIGINT (or the unmount) takes no more writes and uploads what waits, until the store has
    taken nothing new for the mount's deadline; a second signal cuts that short. What is not uploaded then stays in
    the cache directory. A request that hangs does not hold up the end: :attr:`_leave` is called where the process
    should end without waiting for it, which is no worse than being killed. SIGHUP, which a terminal sends that goes
    away, changes nothing.
    """

    def __init__(
        self,
        config: MountConfig,
        mountpoint: Path,
        environment: Environment,
        store: Retrying,
        on_ready: Callable[[], None],
        leave: Callable[[Left | None], None],
    ) -> None:
        """*leave* ends the process, and says before what is left (None: it was interrupted while it started)."""
        self._config = config
        self._mountpoint = mountpoint
        self._is_root = environment.is_root
        self._store = store
        self._on_ready = on_ready
        self._leave = leave
        self._redact = Redactor(environment.secrets())
        self._manager = environment.get("NOTIFY_SOCKET")
        self._registry = Registry(environment.runtime_dir, environment.uid)
        self._stop = trio.Event()
        # The kernel's number of our file system; empty: it is not there yet.
        self._device = ""
        self._elsewhere: list[Mount] = []
        """Where our file system is besides, or under what covers it, when its serving ends."""
        # None: not opened yet; a signal then ends everything at once.
        self._service: Service | None = None
        # None: there is none, or it is not open yet.
        self._pool: Pool | None = None
        # None: no drain has begun.
        self._draining: trio.CancelScope | None = None
        # None: no drain has ended.
        self._left: Left | None = None
        self._drained = trio.Event()
        self._is_told = False
        """A signal has asked for the end."""
        self._interrupted = False
        self._is_ready = False
        self._last_resort: threading.Timer | None = None

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
        if self._last_resort is not None:
            self._last_resort.cancel()
            self._last_resort.join()  # for good, if it has begun to end the process
        if self._interrupted:
            raise KeyboardInterrupt
        return self._left or []

    async def _hold(self, service: Service) -> None:
        async with trio.open_nursery() as nursery:
            serve = partial(serve_control, redact=self._redact)
            await nursery.start(serve, service, self._config.cache_dir)
            async with self._answering_pool(service):
                try:
                    await self._serve_kernel(service)
                finally:
                    self._registry.remove(str(self._mountpoint), os.getpid())
                self._clear_elsewhere()
                if self._draining is None:
                    _log.info("unmounted by somebody else: uploading what waits")
                    await self._drain(service)
                await self._drained.wait()
            nursery.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def _answering_pool(self, service: Service) -> AsyncIterator[None]:
        config = self._config
        if config.pool is None:
            yield
            return
        async with answering(service, config.pool, config.source, config.cache_dir) as self._pool:
            _log.info("a pool of %s answers at %s", config.source, self._pool.master)
            yield

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
                is_ours=self._is_seen,
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
        found = mount_at(self._mountpoint)
        self._device = found.device if found else ""
        pid = os.getpid()
        registration = Registration(
            mountpoint=str(self._mountpoint),
            source=str(self._config.source),
            cache_dir=str(self._config.cache_dir),
            socket=str(self._config.cache_dir / SOCKET_NAME),
            pid=pid,
            started=process_start(pid) or 0,
            store=asdict(self._config.store),
        )
        try:
            self._registry.add(registration, self._device)
        except (OSError, UsageError) as error:  # no reason to have no mount
            _log.warning("cachefs status and umount will not find this mount: %s", error)
        _log.info("mounted %s at %s", self._config.source, self._mountpoint)
        notify(
            self._manager,
            READY="1",
            STATUS=f"{self._config.source} is mounted at {self._mountpoint}",
        )
        self._on_ready()

    # ---- the end ----------------------------------------------------------------------------

    async def _heed(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                _log.warning("%s: the mount stays; SIGTERM or cachefs umount ends it", name)
            elif self._service is None:
                self._interrupted = True
                nursery.cancel_scope.cancel()
                self._insist(None, _HURRIED_END_S)
            elif self._is_told:
                _log.warning("%s again: what waits for upload stays in the cache directory", name)
                self._hurry(self._service)
            else:
                self._is_told = True
                _log.info("%s: uploading what waits, then unmounting", name)
                nursery.start_soon(self._end, self._service)

    async def _end(self, service: Service) -> None:
        if self._draining is None:  # else it was unmounted already, and the same is under way
            await self._drain(service)
            self._stop.set()

    def _hurry(self, service: Service) -> None:
        if self._draining is not None:
            self._draining.cancel()  # which waits for a request that is under way
        self._insist(service.dirty() if self._left is None else self._left, _HURRIED_END_S)

    async def _drain(self, service: Service) -> None:
        """Upload what waits, for as long as the store takes it in, and note what is left."""
        waiting = counted(len(service.dirty()), "file")
        notify(self._manager, STOPPING="1", STATUS=f"uploading {waiting} before the end")
        left: Left | None = None
        with trio.CancelScope() as self._draining:
            async with trio.open_nursery() as nursery:
                if self._pool is not None:
                    nursery.start_soon(self._pool.wait_idle, self._config.timeout_s)
                left = await self._upload_all(service)
        for file in (left := service.dirty() if left is None else left):
            _log.warning("not stored: %s (%s)", ascii(file.get("path")), file.get("error"))
        self._left = left
        self._drained.set()
        self._insist(left, _HURRIED_END_S if self._draining.cancel_called else _END_S)

    async def _upload_all(self, service: Service) -> Left:
        patience_s = self._config.timeout_s
        began = time.monotonic()
        while True:
            before = len(service.dirty())
            since = max(began, service.advanced_at)
            # A manager that is waiting for the end is told that it is still coming.
            notify(self._manager, EXTEND_TIMEOUT_USEC=str(int((patience_s + _END_S + 5) * 1e6)))
            left_s = max(0.0, since + patience_s - time.monotonic())
            left = await service.drain(timeout_s=left_s, is_final=True)
            is_moving = len(left) < before or service.advanced_at > since
            if not left or not is_moving:
                return left

    def _insist(self, left: Left | None, within_s: float) -> None:
        """Let the process end *within_s*, whatever does not: a request to a store that is silent, say."""
        if self._last_resort is not None:
            self._last_resort.cancel()
        # A thread: the loop may be what stands still.
        self._last_resort = threading.Timer(within_s, self._give_up, (left,))
        self._last_resort.daemon = True
        self._last_resort.start()

    def _give_up(self, left: Left | None) -> None:
        try:
            _log.warning("requests to the store do not end: leaving without their answers")
            self._registry.remove(str(self._mountpoint), os.getpid())
            self._clear_away(self._ours())
            self._clear_elsewhere()
            remove_socket(self._config.cache_dir)
            if self._config.pool is not None:
                remove_pool_socket(self._config.pool.home)
        except Exception:  # noqa: BLE001 - whatever cannot be tidied up, this is the end
            _log.exception("not all could be tidied up")
        finally:
            self._leave(left)

    def _is_seen(self) -> bool:
        """Whether what is seen at the mountpoint is our file system, which is about to end."""
        found = mount_at(self._mountpoint)
        is_seen = not self._device or (found is not None and found.device == self._device)
        self._elsewhere = [each for each in self._ours() if not (is_seen and each == found)]
        return is_seen

    def _ours(self) -> list[Mount]:
        """Return where our file system is in the tree. Once it is nowhere, its number may be another's."""
        found = mounts_of(self._device) if self._device else []
        return found if serves_a_mount() else []  # asked last: then they were ours all along

    def _clear_elsewhere(self) -> None:
        """Take away what was ours when its serving ended: once, for its numbers are others' from then on."""
        mounts, self._elsewhere = self._elsewhere, []
        self._clear_away(mounts)

    def _clear_away(self, mounts: Sequence[Mount]) -> None:
        """Take our file system out of the tree, wherever it is by now, unless something else covers it."""
        for mount in mounts:
            above = mount_at(mount.mountpoint)
            if above is None or mount not in mounts_of(self._device):
                continue  # it has gone meanwhile
            if above.number != mount.number:
                _log.error(
                    "%s stays mounted, for %s is mounted over it — unmount that, then: cachefs umount %s",
                    *(mount.mountpoint, above.kind, mount.mountpoint),
                )
                continue
            reason = unmount(mount.mountpoint, as_root=self._is_root, lazily=True)
            if reason is not None and mount in mounts_of(self._device):
                _log.error("cannot unmount %s: %s", mount.mountpoint, reason)
