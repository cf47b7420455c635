"""The service in this process, where no daemon has the cache directory: it answers as a mount's does."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import trio

from cachefs.config import Environment, MountConfig
from cachefs.engine.service import ServiceSettings, open_service
from cachefs.preparing import disk_size, make_cache_dir, settings_of
from cachefs.remote.open import open_store
from cachefs.remote.retry import Retrying
from cachefs.server import serve_control

_log = logging.getLogger(__name__)


@contextmanager
def answering(config: MountConfig, environment: Environment) -> Iterator[None]:
    """Have the control socket of the cache directory of *config* answered while the block runs, as a mount would.

    See :meth:`Within.begin`.
    """
    service = Within.begin(config, environment)
    try:
        yield
    finally:
        service.stop()


class Within:
    """A service with its control socket, in a thread of its own."""

    def __init__(self, settings: ServiceSettings, store: Retrying) -> None:
        self._settings = settings
        self._store = store
        # A daemon's: a program that ends without a word is not to wait for it for ever.
        self._thread = threading.Thread(target=self._run, name="cachefs-service", daemon=True)
        self._began = threading.Event()
        self._error: BaseException | None = None
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._is_stopping = False
        self._pid = os.getpid()

    @classmethod
    def begin(cls, config: MountConfig, environment: Environment) -> Self:
        """Answer at the control socket of the cache directory of *config*, until :meth:`stop`.

        The directory is made if need be. Like a mount, it uploads what waits there. Raise why it cannot: ``InUse`` if
        another process has the directory, the store's own error if it cannot be used.
        """
        store = open_store(
            config.source,
            config.store,
            timeout_s=config.timeout_s,
            environ=environment.variables,
        )
        try:
            store.check()  # before anything is created
            make_cache_dir(config.cache_dir, environment)
        except BaseException:
            store.close()
            raise
        service = cls(settings_of(config, disk_size(config.cache_dir)), store)
        service._start()
        return service

    def _start(self) -> None:
        self._thread.start()
        try:
            self._began.wait()
        except BaseException:
            self.stop()
            raise
        if self._error is not None:
            self._thread.join()
            raise self._error

    @property
    def is_answering(self) -> bool:
        """Whether it goes on; not in a child that was forked."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def stop(self, *, within_s: float | None = None) -> None:
        """End it. What is not uploaded stays in the cache directory.

        *within_s*: after so long whatever hangs is left to itself, which is no worse than being killed.
        """
        if self._pid != os.getpid():
            return  # the thread is its parent's
        self._is_stopping = True
        token = self._token
        if token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._scope.cancel)
        self._thread.join(within_s)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
            if self._began.is_set():
                _log.error("the service on the cache directory ended", exc_info=error)
        finally:
            self._began.set()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._is_stopping:
            return
        with self._scope:
            async with (
                open_service(self._settings, self._store) as service,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(serve_control, service, self._settings.cache_dir)
                self._began.set()
