"""The credentials of boto3's own chain, which may expire or be replaced while they are in use."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import botocore.session
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

from cachefs.core.errors import Fault

T = TypeVar("T")

_log = logging.getLogger(__name__)

_FILES = ("credentials_file", "config_file")
_AGAIN_S = 1.0
"""The chain may ask programs and servers: not at each of a thousand denials."""
_PATIENCE_S = 15.0
_LEFT_ALONE = 4
"""After so many times that patience, what gives out keys is asked anew, although it has never answered."""
_UNREAD = object()


class Keys(NamedTuple):
    """What a request is signed with, as botocore's own kind has it."""

    access_key: str
    secret_key: str
    token: str | None
    account_id: str | None = None


class Chain(Credentials):  # type: ignore[misc]  # botocore has no types
    """Gives each request the keys that hold at that moment.

    botocore reads a file of keys once. What expires by itself (``credential_process``, an assumed role, a
    container's) it fetches anew in time, but not if it is revoked before. So when the store denies something,
    the whole chain is read anew, by one thread, and at most once a second, unless one of the files has changed.

    What the chain runs or asks answers in time, or ``Fault`` is raised. Nothing is read before keys are needed.
    """

    method = "cachefs"

    def __init__(
        self,
        profile: str | None,
        *,
        credentials_file: str | None = None,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._profile = profile
        self._clock = clock
        self._bounded = _Bounded(patience_s)
        self._lock = threading.Lock()
        self._fetching = threading.Lock()
        session = botocore.session.Session(profile=profile)
        if credentials_file is not None:
            session.set_config_variable("credentials_file", credentials_file)
        # As seen from here: the process may go to another directory.
        self._files = {
            name: os.path.abspath(os.path.expanduser(path))
            for name in _FILES
            if (path := session.get_config_variable(name))
        }
        self._stamps: list[object] = []
        self._read_s = -math.inf
        self._fetched_s = -math.inf
        self._failure: Exception | None = None
        self.generation = 0
        """Counts how often other keys were taken up."""
        self._found: Any = _UNREAD
        self._given: Keys | None = None

    def get_frozen_credentials(self) -> Keys | None:
        """Return the keys to sign with now; None: the chain has found none."""
        if self._found is _UNREAD:
            self._bounded.run(self._read_first)
        found = self._found
        if not isinstance(found, RefreshableCredentials) or not found.refresh_needed():
            self._given = keys = _keys(found)
            return keys
        self._fetch(found, is_needed=self._given is None or found.refresh_needed(0))
        if self._given is None or found.refresh_needed(0):
            raise self._failure or CredentialRetrievalError(
                provider=found.method, error_msg="what it gives out has expired"
            )
        return self._given

    def _fetch(self, found: RefreshableCredentials, *, is_needed: bool) -> None:
        """Have what expires soon fetched anew. If that fails, it is good until then.

        One thread does; who needs it now (*is_needed*) waits for that one.
        """
        if not self._fetching.acquire(blocking=is_needed):
            return
        try:
            if self._clock() < self._fetched_s + _AGAIN_S:
                return
            try:
                self._given, self._failure = self._bounded.run(lambda: _keys(found)), None
            except (BotoCoreError, ClientError, Fault) as error:
                _log.warning("the credentials expire, and there are no new ones: %s", error)
                self._failure = error
            self._fetched_s = self._clock()
        finally:
            self._fetching.release()

    def get_deferred_property(self, property_name: str) -> Callable[[], Any]:
        """Return how to look up, when it is needed, what the chain says beside the keys."""
        return lambda: getattr(self._found, property_name, None)

    def renewed(self, generation: int) -> bool:
        """Return whether there are other keys than those of *generation*, which the store has denied."""
        with self._lock:
            if generation != self.generation:
                return True
            is_early = self._clock() < self._read_s + _AGAIN_S
            if is_early and self._stamps == self._stamped():
                return False
            try:
                found = self._bounded.run(self._read)
                keys = self._bounded.run(lambda: _keys(found))
            except (BotoCoreError, ClientError, Fault) as error:
                _log.info("the credentials could not be read anew: %s", error)
                return False
            finally:
                # When it was over: waits of those who were denied meanwhile, one after the other, would add up.
                self._read_s = self._clock()
            if keys is None or keys == self._given:
                return False
            self._found, self._given = found, keys
            self.generation += 1
        _log.info("the store denied access, and there are other credentials now: they are used")
        return True

    def _read_first(self) -> None:
        """Read the chain unless somebody has while this waited for its turn."""
        if self._found is _UNREAD:
            self._found = self._read()

    def _read(self) -> Any:  # noqa: ANN401
        self._read_s = self._clock()
        session = botocore.session.Session(profile=self._profile)
        for name, path in self._files.items():
            session.set_config_variable(name, path)
        # Before they are read: a change that comes later shows.
        self._stamps = self._stamped()
        return _guarded(session.get_credentials)

    def _stamped(self) -> list[object]:
        return [_stamp(path) for path in self._files.values()]


def _keys(found: Any) -> Keys | None:  # noqa: ANN401
    frozen = None if found is None else _guarded(found.get_frozen_credentials)
    if frozen is None:
        return None
    return Keys(
        frozen.access_key, frozen.secret_key, frozen.token, getattr(frozen, "account_id", None)
    )


def _guarded(call: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return what *call* returns; whatever goes wrong where keys come from is botocore's error for that."""
    reason: object
    try:
        return call()
    except (BotoCoreError, ClientError):
        raise
    except (RuntimeError, OSError) as error:  # expired already; no such program
        reason = error
    except (ValueError, TypeError, AttributeError):  # what was answered may be secret
        reason = "what the program answered makes no sense"
    raise CredentialRetrievalError(provider="the chain", error_msg=reason)


def _stamp(path: str) -> object:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class _Bounded:
    """Runs one thing at a time, and waits for it only so long. What never ends holds up its successors for a while."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        self._free_s = 0.0
        """When the next one may begin, on the monotonic clock, although that one runs."""

    def run(self, work: Callable[[], T]) -> T:
        """Return what *work* returns. Raise ``Fault`` if it, or what runs before it, does not end in time."""
        deadline = time.monotonic() + self._patience_s
        mine: Future[T] = Future()
        while (before := self._begin(mine)) is not mine:
            self._wait(before, deadline)
        threading.Thread(
            target=_fulfil, args=(mine, work), name="cachefs-credentials", daemon=True
        ).start()
        self._wait(mine, deadline)
        return mine.result()

    def _begin(self, mine: "Future[Any]") -> "Future[Any]":
        """Return *mine* if it is its turn, else what runs."""
        with self._lock:
            now = time.monotonic()
            if self._running is None or self._running.done() or now > self._free_s:
                self._running = mine
                self._free_s = now + _LEFT_ALONE * self._patience_s
            return self._running

    def _wait(self, future: "Future[Any]", deadline: float) -> None:
        try:
            future.exception(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise Fault(
                f"what gives out the credentials has not answered for {self._patience_s:.0f} s"
            ) from None


def _fulfil(future: "Future[T]", work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
        future.set_exception(error)
