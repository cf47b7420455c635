"""A running pool, from the first request to its end: the service, its sockets, and the signals."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cachefs.cli.command import Call
from cachefs.cli.daemon import Announcer, redirect_to
from cachefs.cli.failures import EXIT_DONE, EXIT_FAILURES, EXIT_WAITING, Failure, explain
from cachefs.cli.logs import log_of_daemon
from cachefs.cli.mount import take_descriptors, whereabouts
from cachefs.cli.notify import notify
from cachefs.cli.output import complain, counted, named
from cachefs.cli.pool import LOG_NAME, PoolPlan
from cachefs.cli.pool_door import answering
from cachefs.cli.serve import Left
from cachefs.core.errors import UsageError
from cachefs.engine.service import Service, open_service
from cachefs.pool import Pool, remove_socket
from cachefs.preparing import disk_size, make_cache_dir, settings_of
from cachefs.registry import Registration, pools_of, process_start
from cachefs.remote.open import open_store
from cachefs.remote.retry import Retrying
from cachefs.server import SOCKET_NAME as CONTROL_NAME
from cachefs.server import serve_control

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_END_S: Final = 15.0
"""So long what is under way may take to end beyond the deadline of an operation; then the process ends without it."""
_HURRIED_END_S: Final = 2.0

_log = logging.getLogger(__name__)


def stay(call: Call, plan: PoolPlan, announcer: Announcer | None) -> int:
    """Be the pool until its end; return the exit code."""
    source = plan.config.source
    answered = False
    at = ""

    def on_ready() -> None:
        nonlocal answered
        answered = True
        if announcer:
            announcer.ready()

    take_descriptors()
    try:
        _make_log_dir(plan)
        store = open_store(
            source,
            plan.config.store,
            timeout_s=plan.config.timeout_s,
            environ=call.environment.variables,
        )
        at = whereabouts(store.description)
        store.check()  # before anything else is created
        make_cache_dir(plan.config.cache_dir, call.environment)
        _start_log(call, plan, is_daemon=announcer is not None)
        with _pid_written(plan.pid_file):
            daemon = _Daemon(plan, store, call, on_ready)
            os.chdir(plan.pool.home)
            left = trio.run(daemon.run)
    except BaseException as error:  # noqa: BLE001 - said, and logged where it is our defect
        doing = "the pool of {} ended" if answered else "cannot start the pool of {}"
        failure = explain(error, doing=doing.format(source), source=source, at=at)
        if failure.unexpected:
            _log.error("%s", failure.line, exc_info=error)
        return _end(call, failure, announcer)
    if not left:
        return EXIT_DONE
    waiting = (
        f"{counted(len(left), 'file')} of an earlier mount still wait for upload: {named(left)}"
    )
    advice = f"cachefs recover list --cache-dir {plan.config.cache_dir}"
    return _end(call, Failure(f"the pool has ended, but {waiting} — {advice}", EXIT_WAITING), None)


def _end(call: Call, failure: Failure, announcer: Announcer | None) -> int:
    line = call.redactor(failure.line)
    if announcer:
        announcer.failed(Failure(line, failure.code))
    complain(line)
    return failure.code


def _make_log_dir(plan: PoolPlan) -> None:
    directory = (plan.pool.home / LOG_NAME).parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot use {plan.pool.home}: {error.strerror} — name another directory by -D"
        ) from error


def _start_log(call: Call, plan: PoolPlan, *, is_daemon: bool) -> None:
    own_file = plan.pool.home / LOG_NAME if is_daemon else None
    log_of_daemon(
        call.redactor,
        plan.config.log_format,
        file=plan.config.log_file,
        own_file=own_file,
        verbose=call.verbose,
    )
    if is_daemon and (file := plan.config.log_file or own_file):
        redirect_to(file)


@contextlib.contextmanager
def _pid_written(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    try:
        path.write_text(f"{os.getpid()}\n", "ascii")
    except OSError as error:
        raise UsageError(f"the pid file {path} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


class _Daemon:
    """One pool, from start to end.

    The first SIGTERM or SIGINT takes no more requests, waits for those that are worked on, and ends; a second one
    ends at once. A request that hangs does not hold the end up: :attr:`_last_resort` does not wait for it.
    """

    def __init__(
        self,
        plan: PoolPlan,
        store: Retrying,
        call: Call,
        on_ready: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._store = store
        self._redact = call.redactor
        self._manager = call.environment.get("NOTIFY_SOCKET")
        self._registry = pools_of(call.environment)
        self._on_ready = on_ready
        self._stop = trio.Event()
        self._hurry = trio.Event()
        self._is_serving = False
        self._was_interrupted = False
        self._last_resort: threading.Timer | None = None

    async def run(self) -> Left:
        """Serve until a signal ends it. Return what still waits for upload: what a mount has left in the cache."""
        left: Left = []
        config = self._plan.config
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, signals, nursery)
                settings = settings_of(config, disk_size(config.cache_dir))
                async with open_service(settings, self._store) as service:
                    left = await self._hold(service)
                nursery.cancel_scope.cancel()
        if self._last_resort is not None:
            self._last_resort.cancel()
            self._last_resort.join()  # for good, if it has begun to end the process
        if self._was_interrupted:
            raise KeyboardInterrupt
        return left

    async def _hold(self, service: Service) -> Left:
        config = self._plan.config
        async with trio.open_nursery() as nursery:
            serve = partial(serve_control, redact=self._redact)
            await nursery.start(serve, service, config.cache_dir)
            async with answering(
                service, self._plan.pool, config.source, config.cache_dir
            ) as pool:
                self._ready(pool.master)
                try:
                    await self._stop.wait()
                    notify(self._manager, STOPPING="1", STATUS="ending what is under way")
                    await self._wait_idle(pool)
                finally:
                    self._registry.remove(str(self._plan.pool.home), os.getpid())
            nursery.cancel_scope.cancel()
        return [] if self._hurry.is_set() else await service.drain(timeout_s=service.timeout_s)

    async def _wait_idle(self, pool: Pool) -> None:
        """Return when all that is under way was answered, or a second signal came."""
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await self._hurry.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            await pool.wait_idle(self._plan.config.timeout_s)
            nursery.cancel_scope.cancel()

    def _ready(self, master: str) -> None:
        self._is_serving = True
        self._register()
        status = f"a pool of {self._plan.config.source} answers at {master}"
        _log.info("%s", status)
        notify(self._manager, READY="1", STATUS=status)
        self._on_ready()

    def _register(self) -> None:
        config, pid = self._plan.config, os.getpid()
        registration = Registration(
            mountpoint=str(self._plan.pool.home),
            source=str(config.source),
            cache_dir=str(config.cache_dir),
            socket=str(config.cache_dir / CONTROL_NAME),
            pid=pid,
            started=process_start(pid) or 0,
            store=asdict(config.store),
        )
        try:
            self._registry.add(registration, "")
        except (OSError, UsageError) as error:  # no reason to have no pool
            _log.warning("cachefs status will not find this pool: %s", error)

    async def _heed(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                _log.warning("%s: the pool stays; SIGTERM ends it", name)
            elif not self._is_serving:
                self._was_interrupted = True
                nursery.cancel_scope.cancel()
                self._insist(_HURRIED_END_S)
            elif self._stop.is_set():
                _log.warning("%s again: what is under way is given up", name)
                self._hurry.set()
                self._insist(_HURRIED_END_S)
            else:
                _log.info("%s: ending what is under way", name)
                self._stop.set()
                self._insist(2 * self._plan.config.timeout_s + _END_S)

    def _insist(self, within_s: float) -> None:
        """Let the process end *within_s*, whatever does not: a request to a store that is silent, say."""
        if self._last_resort is not None:
            self._last_resort.cancel()
        # A thread: the loop may be what stands still.
        self._last_resort = threading.Timer(within_s, self._give_up)
        self._last_resort.daemon = True
        self._last_resort.start()

    def _give_up(self) -> None:
        try:
            _log.warning("requests to the store do not end: leaving without their answers")
            self._registry.remove(str(self._plan.pool.home), os.getpid())
            remove_socket(self._plan.pool.home)
            if self._plan.pid_file is not None:
                self._plan.pid_file.unlink(missing_ok=True)
            logging.shutdown()
        finally:
            os._exit(EXIT_FAILURES)
