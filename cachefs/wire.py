"""Connections to whoever has a cache directory: a mount's daemon, or a service in this process or another."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from cachefs.client import ControlClient, ControlError, NoDaemon
from cachefs.config import Environment
from cachefs.core.errors import InUse, UsageError
from cachefs.known import SOCKET_NAME
from cachefs.local.forks import in_child
from cachefs.meant import Meant
from cachefs.within import Within

T = TypeVar("T")

ANSWER_S: Final = 60.0
"""How long any one answer may take: whoever has the directory gives a sign sooner."""
_START_S: Final = 30.0
"""How long another process may have the directory before it answers there."""
_LOOK_S: Final = 0.02
_KEPT: Final = 8
"""Idle connections."""
_END_S: Final = 10.0
_LONGEST_LEASE_S: Final = 7 * 86400.0


class Wire:
    """Asks whoever has the cache directory; where nobody has it, this process does from then on. For any number of threads.

    A child that was forked has connections of its own.
    """

    def __init__(self, mean: Callable[[], Meant], environment: Environment) -> None:
        """*mean* tells which cache directory is meant, as things are when it is called. Raise why it cannot be used."""
        self._mean = mean
        self._meant = mean()
        self._environment = environment
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        self._idle: list[ControlClient] = []
        self._keeper: ControlClient | None = None
        self._within: Within | None = None
        self._is_closed = False
        self._pause = threading.Event()
        self._keeping = threading.Lock()
        self._ended: deque[str] = deque()
        in_child(self, Wire._begin_as_child)
        self._give_back(self._take())

    @property
    def base(self) -> str:
        """Where, in the tree of whoever has the directory, the directory is that is meant."""
        return self._meant.base

    @property
    def cache_dir(self) -> Path:
        """The cache directory."""
        return self._meant.cache_dir

    def ask(self, work: Callable[[ControlClient], T], *, may_repeat: bool = True) -> T:
        """Return what *work* makes of a connection.

        It is done again, once, if the daemon has gone meanwhile, another can be had, and it *may_repeat*.
        """
        try:
            with self._connection() as client:
                return work(client)
        except NoDaemon:
            if not may_repeat:
                raise
        with self._connection() as client:
            return work(client)

    def hold(self, lease: str) -> None:
        """Let a lease end with this process, and not before :meth:`let_go`."""
        with self._keeping:
            if self._keeper is not None and self._keeper.is_over:
                self._keeper.close()
                self._keeper = None
            if self._keeper is None:
                self._keeper = self._connected()
            self._keeper.renew(lease, seconds=_LONGEST_LEASE_S, hold=True)
        self._release_all()

    def let_go(self, lease: str) -> None:
        """End a lease, which may be over: now, or as soon as whoever asks for another one is done.

        A finalizer may call it, in whatever this thread is doing: it waits for no lock.
        """
        self._ended.append(lease)
        self._release_all()

    def _release_all(self) -> None:
        while self._ended and self._keeping.acquire(blocking=False):
            try:
                lease = self._ended.popleft()
                if self._keeper is not None:
                    with suppress(ControlError):
                        self._keeper.release(lease)
            finally:
                self._keeping.release()

    def close(self) -> None:
        """Hang up, and end the service if it is in this process. Safe to call twice."""
        self._is_closed = True
        self._pause.set()
        with self._lock:
            idle, self._idle = self._idle, []
            keeper, self._keeper = self._keeper, None
            within, self._within = self._within, None
        for client in (*idle, *([keeper] if keeper is not None else [])):
            client.close()
        if within is not None:
            within.stop(within_s=_END_S)

    @property
    def is_within(self) -> bool:
        """Whether the service is in this process, by this object."""
        return self._within is not None and self._within.is_answering

    # ---- connections ------------------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[ControlClient]:
        client = self._take()
        try:
            yield client
        except ControlError as error:
            if isinstance(error, NoDaemon) or client.is_over:
                client.close()
            else:
                self._give_back(client)
            raise
        except BaseException:
            client.close()  # an answer may be under way
            raise
        else:
            self._give_back(client)

    def _take(self) -> ControlClient:
        while True:
            with self._lock:
                client = self._idle.pop() if self._idle else None
            if client is None:
                return self._connected()
            if not client.is_over:
                return client
            client.close()

    def _give_back(self, client: ControlClient) -> None:
        with self._lock:
            if not self._is_closed and len(self._idle) < _KEPT:
                self._idle.append(client)
                return
        client.close()

    def _connected(self) -> ControlClient:
        """Return a new connection, beginning a service where nobody has the directory."""
        give_up_at = time.monotonic() + _START_S
        while True:
            if self._is_closed:
                raise UsageError("it is closed already")
            try:
                return ControlClient(self.cache_dir / SOCKET_NAME, timeout_s=ANSWER_S)
            except NoDaemon:
                if time.monotonic() >= give_up_at:
                    raise
                self._meant = self._mean()  # a mount may have gone, or another have come
                self._begin()

    def _begin(self) -> None:
        if self._meant.config is None:
            if (self.cache_dir / SOCKET_NAME).exists():
                self._pause.wait(_LOOK_S)  # it ends at this moment
                return
            raise UsageError(
                f"nobody has {self.cache_dir}, and nothing tells which store it caches — name the source"
            )
        with self._starting:
            if self.is_within:
                return  # another thread was faster
            try:
                self._within = Within.begin(self._meant.config, self._environment)
            except InUse:
                self._pause.wait(
                    _LOOK_S
                )  # by another process, which begins or ends at this moment

    def _begin_as_child(self) -> None:
        """Let go of what belongs to the parent; its connections go on there."""
        for client in (*self._idle, *([self._keeper] if self._keeper is not None else [])):
            client.close()
        self._idle, self._keeper, self._within = [], None, None
        self._ended.clear()
        self._lock, self._starting, self._keeping = (threading.Lock() for _ in range(3))
