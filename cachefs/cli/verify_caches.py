"""What ``cachefs verify`` asks of a cache: behind its daemon, or opened without one."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from cachefs.cli.caches import Held, Live, opened
from cachefs.client import ControlClient, ControlError, NoDaemon
from cachefs.core.cached import CachedFile, CachedPieces
from cachefs.core.errors import UsageError
from cachefs.core.heat import Heat, Heated
from cachefs.known import SOCKET_NAME
from cachefs.ops.verify_cache import Cached, Mends, Unanswered

_LONGEST_WAIT_S: Final = 7 * 86400.0

T = TypeVar("T")


@contextmanager
def looked_into(cache_dir: Path) -> Iterator[tuple[Cached, Mends | None]]:
    """Open a cache through its daemon, where one lives, or else alone, and then nothing can be done to it.

    Raise ``InUse`` if another process has it.
    """
    try:
        client = ControlClient(cache_dir / SOCKET_NAME)
    except NoDaemon:
        with _alone(cache_dir) as cached:
            yield cached, None
        return
    with client:
        served = _Served(client)
        yield served, served


def require_same_store(cache_dir: Path, store: str) -> None:
    """Raise ``UsageError`` unless the daemon behind a cache stores to *store*: what another lacks is not to be mended."""
    with ControlClient(cache_dir / SOCKET_NAME) as client:
        told = client.ask("status")
    its = told.get("store") if isinstance(told, dict) else None
    if its != store:
        raise UsageError(
            f"{cache_dir} is a cache of {its}, not of {store}: nothing can be mended by that — name the store that it is of"
        )


class _Served:
    """A cache behind a daemon."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._live = Live(client)

    def entries(self) -> Iterator[CachedFile]:
        with _answered():
            yield from self._live.entries()

    def entry(self, identity: int) -> CachedPieces | None:
        with _answered():
            return self._live.entry(identity)

    def dirty(self) -> Sequence[Mapping[str, object]]:
        with _answered():
            return self._live.dirty()

    def refetch(self, file: CachedFile) -> bool:
        with _answered():
            if not self._live.refetch(file.id, file.etag or ""):
                return False
            # What does not come now comes with the next read.
            with contextlib.suppress(NoDaemon, ControlError):
                self._fetch(file)
        return True

    def _fetch(self, file: CachedFile) -> None:
        """Have the daemon fetch the bytes that were here."""
        while True:
            told = self._client.ask(
                "preheat",
                path=file.path,
                used_ns=file.used_ns,
                evict=False,
                timeout_s=_LONGEST_WAIT_S,
            )
            heated = Heated.from_json(told)  # type: ignore[arg-type]
            is_as_before = heated.cached >= file.cached
            if heated.heat is not Heat.PARTIAL or not heated.fetched or is_as_before:
                return

    def store_anew(self, file: CachedFile) -> bool:
        with _answered():
            return self._live.store_anew(file.id, file.etag or "")

    def settle(self) -> None:
        with _answered():
            self._client.ask("flush", paths=[], wait=True, timeout_s=_LONGEST_WAIT_S)

    def end(self) -> None:
        self._client.wake()


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except NoDaemon as error:
        raise Unanswered(f"the mount ended while its cache was verified: {error}") from error


@contextmanager
def _alone(cache_dir: Path) -> Iterator[Cached]:
    """Open a cache that no daemon has. Its database may be used by one thread only, which is none of the job's."""
    with ThreadPoolExecutor(1, thread_name_prefix="cachefs-cache") as pool:
        holding = opened(cache_dir)
        held = pool.submit(holding.__enter__).result()
        try:
            yield _InThread(held, pool)
        finally:
            pool.submit(holding.__exit__, None, None, None).result()


class _InThread:
    """A cache whose every question is asked in one thread."""

    def __init__(self, held: Held, pool: ThreadPoolExecutor) -> None:
        self._held = held
        self._pool = pool

    def entries(self) -> Iterator[CachedFile]:
        found = self._held.entries()
        while (file := self._ask(lambda: next(found, None))) is not None:
            yield file

    def entry(self, identity: int) -> CachedPieces | None:
        return self._ask(lambda: self._held.entry(identity))

    def dirty(self) -> Sequence[Mapping[str, object]]:
        return self._ask(self._held.dirty)

    def _ask(self, question: Callable[[], T]) -> T:
        return self._pool.submit(question).result()
