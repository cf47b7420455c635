"""The only retry loop: every passing fault is tried again here, and nowhere else."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from cachefs.core.errors import Fault, NotFound, StoreError, TimedOut, Unreachable
from cachefs.core.extents import Extent
from cachefs.core.fingerprint import Fingerprint
from cachefs.core.types import ETag, Key, Listing, ObjectInfo
from cachefs.remote import deadline
from cachefs.remote.pages import Pages
from cachefs.remote.store import Body, Capabilities, Ledger, ObjectStore, Sink

_T = TypeVar("_T")
_GLANCE_S = 0.25
"""How often a waiting upload looks whether it was called off."""


@dataclass(frozen=True, slots=True)
class Health:
    """How the far side answers, for ``status``. Times are seconds since the epoch."""

    last_ok: float | None = None
    """When the store last gave a definite answer (a refusal is one, too)."""
    last_error: str | None = None
    """The last fault, in words; None: there was none yet."""
    offline_since: float | None = None
    """When the unbroken run of faults began; None: the last request was answered."""
    is_offline: bool = False
    """A request was tried for a whole deadline, and nothing was answered since it began."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When to try again: full-jitter exponential backoff, and the clocks it goes by."""

    first_wait_s: float = 0.1
    """The longest first wait; each next one may be twice as long."""
    longest_wait_s: float = 5.0
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    uniform: Callable[[float, float], float] = random.uniform
    wait: Callable[[float], bool] | None = None
    """Wait so many seconds, and return whether to give up; None: for real, until :meth:`Retrying.close`."""


_PACE = Pace()


class _RetriedPages(Pages):
    """The pages of the listing that *begin* returns, each fetched by *run*, which is told whether to try but once."""

    def __init__(
        self,
        begin: Callable[[], Iterator[Listing]],
        run: Callable[[Callable[[], Listing | None], bool], Listing | None],
    ) -> None:
        self._begin = begin
        self._run = run
        self._pages: Iterator[Listing] | None = None
        self._is_over = False
        self._begun = False

    @property
    def done(self) -> bool:
        return self._is_over or (isinstance(self._pages, Pages) and self._pages.done)

    @property
    def knows_end(self) -> bool:
        return isinstance(self._pages, Pages) and self._pages.knows_end

    def __next__(self) -> Listing:
        if self.done:
            raise StopIteration
        page = self._run(self._turn, self._begun and not isinstance(self._pages, Pages))
        if page is None:
            self._is_over = True
            raise StopIteration
        self._begun = True
        return page

    def _turn(self) -> Listing | None:
        if self._pages is None:
            self._pages = self._begin()
        try:
            return next(self._pages, None)
        except Fault:
            # A generator is spent after it raised: it would pretend to be at the end.
            if not isinstance(self._pages, Pages):
                self._pages = None
            raise


class Retrying:
    """*store*, asked again after each ``Fault`` until *timeout_s* has passed.

    The time counts from the start of the call; for the calls that carry bytes (``get_range``, ``put``) from
    the first fault, since a long transfer that moves is not late (sockets that stand still fail by
    themselves). A call that belongs to an operation has no longer than that has (:mod:`cachefs.remote.deadline`).
    No try is begun that, if it took as long as the one before, would end too late. At the deadline the last
    error is raised: as ``Unreachable`` if no connection could be made, else as ``TimedOut``.

    A repeated call may find that the one before did its work although the answer was lost. A repeated
    ``delete`` that finds nothing is therefore done. A repeated ``put`` may raise ``Changed`` because of
    itself: the caller tells by its token.
    """

    def __init__(self, store: ObjectStore, *, timeout_s: float, pace: Pace = _PACE) -> None:
        self._store = store
        self._timeout_s = timeout_s
        self._pace = pace
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._health = Health()
        self._answered_at = -math.inf

    @property
    def capabilities(self) -> Capabilities:
        """The store's own."""
        return self._store.capabilities

    @property
    def description(self) -> str:
        """The store's own."""
        return self._store.description

    @property
    def requests(self) -> Mapping[str, int]:
        """How often each operation was tried, repeats and each page of a listing included."""
        with self._lock:
            return dict(self._requests)

    @property
    def health(self) -> Health:
        """How the far side answers at present."""
        with self._lock:
            return self._health

    def check(self) -> None:
        """As the store's."""
        self._run("check", self._store.check)

    def ping(self) -> None:
        """As :meth:`check`, tried once: what matters is what :attr:`health` says afterwards."""
        self._observed("check", self._store.check)

    def check_key(self, key: Key) -> None:
        """As the store's."""
        self._store.check_key(key)

    def probe(self) -> Capabilities:
        """As the store's."""
        return self._run("probe", self._store.probe)

    def head(self, key: Key) -> ObjectInfo:
        """As the store's."""
        return self._run("head", lambda: self._store.head(key))

    def fingerprint(self, key: Key) -> Fingerprint:
        """As the store's."""
        return self._run("fingerprint", lambda: self._store.fingerprint(key))

    def list(self, prefix: Key, *, deep: bool = False) -> Pages:
        """As the store's, with a deadline for each page.

        A fault in the middle repeats that page where the store's listing is :class:`Pages`; elsewhere it is
        raised, unless no page was handed out yet.
        """
        return _RetriedPages(
            lambda: self._store.list(prefix, deep=deep),
            lambda turn, once: self._run("list", turn, once=once),
        )

    def overview(self, prefix: Key) -> Pages:
        """As the store's, like :meth:`list`."""
        return _RetriedPages(
            lambda: self._store.overview(prefix),
            lambda turn, once: self._run("list", turn, once=once),
        )

    def get_range(self, key: Key, extent: Extent, into: Sink, *, if_match: ETag) -> ObjectInfo:
        """As the store's; *into* is told to restart before each repeat."""
        begun = False

        def fetch() -> ObjectInfo:
            nonlocal begun
            if begun:
                into.restart()
            begun = True
            return self._store.get_range(key, extent, into, if_match=if_match)

        return self._run("get_range", fetch, patient=True)

    def put(
        self,
        key: Key,
        body: Body,
        *,
        meta: Mapping[str, str],
        content_type: str | None = None,
        if_match: ETag | None,
    ) -> ObjectInfo:
        """As the store's. Looks at *body* while it waits, so that ``UploadStopped`` ends the wait too."""

        def glance() -> None:
            body.reader(Extent(0, min(1, body.size))).read(1)

        return self._run(
            "put",
            lambda: self._store.put(
                key, body, meta=meta, content_type=content_type, if_match=if_match
            ),
            patient=True,
            glance=glance,
        )

    def copy(
        self,
        source: Key,
        target: Key,
        *,
        if_match: ETag,
        replaces: ETag | None,
        content_type: str | None = None,
    ) -> ObjectInfo:
        """As the store's."""
        return self._run(
            "copy",
            lambda: self._store.copy(
                source,
                target,
                if_match=if_match,
                replaces=replaces,
                content_type=content_type,
            ),
        )

    def set_meta(
        self, key: Key, meta: Mapping[str, str], *, content_type: str | None, if_match: ETag
    ) -> ObjectInfo:
        """As the store's."""
        return self._run(
            "set_meta",
            lambda: self._store.set_meta(key, meta, content_type=content_type, if_match=if_match),
        )

    def delete(self, key: Key, *, if_match: ETag | None = None) -> None:
        """As the store's; ``NotFound`` after a fault means that the lost answer was a yes."""
        faulted = False

        def remove() -> None:
            nonlocal faulted
            try:
                self._store.delete(key, if_match=if_match)
            except NotFound:
                if not faulted:
                    raise
            except Fault:
                faulted = True
                raise

        self._run("delete", remove)

    def keep_ledger(self, ledger: Ledger) -> None:
        """As the store's."""
        self._store.keep_ledger(ledger)

    def abandon(self, key: Key, work: str) -> None:
        """As the store's, tried but once: nobody waits for it, and it is asked for again."""
        self._run("abandon", lambda: self._store.abandon(key, work), once=True)

    def give_up(self) -> None:
        """End all waiting for a next try, now and from now on: whoever asked is about to end."""
        self._closed.set()

    def close(self) -> None:
        """End all waiting for a next try, and close the store."""
        self.give_up()
        self._store.close()

    def _run(
        self,
        operation: str,
        call: Callable[[], _T],
        *,
        patient: bool = False,
        once: bool = False,
        glance: Callable[[], None] | None = None,
    ) -> _T:
        clock, whole = self._pace.clock, deadline.current()
        began = failing_since = clock()
        late_at = None if patient else began + self._timeout_s
        tries = 0
        while True:
            tries += 1
            started = clock()
            if whole is not None and not whole.left_s:
                raise TimedOut(f"the operation has no time left for another request ({operation})")
            try:
                return self._observed(operation, call)
            except Fault as fault:
                now = clock()
                if late_at is None:
                    late_at, failing_since = now + self._timeout_s, started
                wait_s = self._wait_s(tries, fault)
                needed_s = wait_s + (now - started)
                if once:
                    raise
                is_late = now + needed_s > late_at
                if is_late:
                    self._gave_up(failing_since)
                if (
                    is_late
                    or (whole is not None and needed_s > whole.left_s)
                    or self._pause(wait_s, glance)
                ):
                    raise self._last(fault, tries, now - began) from fault

    def _observed(self, operation: str, call: Callable[[], _T]) -> _T:
        started = self._pace.clock()
        with self._lock:
            self._requests[operation] += 1
        try:
            result = call()
        except Fault as fault:
            now = self._pace.wall()
            with self._lock:
                since = self._health.offline_since
                self._health = replace(
                    self._health,
                    last_error=str(fault),
                    offline_since=now if since is None else since,
                )
            raise
        except StoreError:
            self._answered(started)
            raise
        self._answered(started)
        return result

    def _answered(self, started: float) -> None:
        now, now_s = self._pace.wall(), self._pace.clock()
        with self._lock:
            self._answered_at = now_s
            self._health = replace(self._health, last_ok=now, offline_since=None, is_offline=False)
        if (whole := deadline.current()) is not None:
            whole.answered(now_s - started)

    def _gave_up(self, since: float) -> None:
        """Note that a call that has failed from *since* on had all the time that any has."""
        with self._lock:
            if self._answered_at <= since:
                self._health = replace(self._health, is_offline=True)

    def _wait_s(self, tries: int, fault: Fault) -> float:
        pace = self._pace
        longest = min(pace.longest_wait_s, pace.first_wait_s * 2.0 ** min(tries - 1, 30))
        return max(pace.uniform(0, longest), fault.retry_after_s or 0.0)

    def _pause(self, wait_s: float, glance: Callable[[], None] | None) -> bool:
        """Wait, and return whether to give up."""
        wait = self._pace.wait or self._closed.wait
        if glance is None:
            return wait(wait_s)
        while wait_s > 0:
            glance()
            if wait(min(wait_s, _GLANCE_S)):
                return True
            wait_s -= _GLANCE_S
        glance()
        return False

    def _last(self, fault: Fault, tries: int, took_s: float) -> Fault:
        times = "once" if tries == 1 else f"{tries} times"
        reason = f"{fault} (tried {times} in {took_s:.0f} s)"
        kind = Unreachable if isinstance(fault, Unreachable) else TimedOut
        return kind(reason, retry_after_s=fault.retry_after_s)
