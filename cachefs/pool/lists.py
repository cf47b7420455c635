"""The lists of the pool's keys: made from the store's, kept fresh, and matched."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import trio

from cachefs.core.errors import CachefsError, IsDirectory, NoEntry, UsageError
from cachefs.core.keyglob import literal_start, matcher
from cachefs.engine.cause import because
from cachefs.engine.service import Service
from cachefs.local.views import Views
from cachefs.pool.naming import Buckets
from cachefs.pool.settings import PoolSettings
from cachefs.remote import deadline

_log = logging.getLogger(__name__)

_MINUTE_S: Final = 60.0
_LINES: Final = 20_000
"""Keys that are matched in one go, in a thread."""


@dataclass(slots=True, eq=False)
class _Keys:
    """What is known of the keys of one bucket."""

    listed_at: float = float("-inf")
    making: trio.Event | None = None
    error: CachefsError | None = None
    pushed: set[str] = field(default_factory=set)
    """What was stored since the list was begun."""


class KeyLists:
    """The list of each bucket that was asked for. Belongs to the loop."""

    def __init__(
        self, service: Service, views: Views, buckets: Buckets, settings: PoolSettings
    ) -> None:
        self._service = service
        self._views = views
        self._buckets = buckets
        self._settings = settings
        self._keys: dict[str, _Keys] = {}
        self.is_ending = False
        """No list is made any more."""

    def pushed(self, bucket: str, key: str) -> None:
        """Note what was stored since the list was made."""
        if bucket in self._keys and as_line(key):
            self._keys[bucket].pushed.add(key)

    async def tell(
        self, bucket: str, pattern: str, say: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Say the keys that match *pattern*, a line each, in pieces; the first of them is empty, once there is a list."""
        oldest = trio.current_time() - self._settings.refresh_interval * _MINUTE_S
        keys = self._keys.get(bucket)
        if keys is None or keys.listed_at < oldest:
            keys = await self.made(bucket, oldest)
        start = literal_start(pattern)
        if self._settings.is_prefix_glob:
            start = pattern.partition("*")[0].partition("?")[0]
        matches = _startswith(start) if self._settings.is_prefix_glob else matcher(pattern)
        new = {key for key in keys.pushed | self._waiting(bucket) if matches(key)}
        with await self._opened(bucket) as file:
            await say(b"")
            is_over = False
            while not is_over:
                chunk, seen, is_over = await self._service.aside(
                    _matching, file, start, matches, new
                )
                new -= seen
                await say(chunk)
            await say(b"".join(as_line(key) for key in sorted(new)))

    async def _opened(self, bucket: str) -> BinaryIO:
        try:
            return await self._service.aside(self._views.open_list, bucket)
        except CachefsError:  # somebody has taken it away
            await self.made(bucket, trio.current_time())
            return await self._service.aside(self._views.open_list, bucket)

    def _waiting(self, bucket: str) -> set[str]:
        """Return the keys of what other doors have taken in, and the store does not have yet."""
        head = self._buckets.below(bucket)
        return {
            self._buckets.told(key[len(head) :])
            for key in self._service.unstored()
            if key.startswith(head)
        }

    async def made(self, bucket: str, since: float) -> _Keys:
        """See that the list of *bucket* tells what the store had at *since* or later; others' work does as well."""
        keys = self._keys.get(bucket)
        if keys is None:
            await self._require_bucket(bucket)
            keys = self._keys.setdefault(bucket, _Keys())
        while keys.making is not None and keys.listed_at < since:
            await keys.making.wait()
            if keys.error is not None:
                raise keys.error
        if keys.listed_at < since:
            await self._list_now(bucket, keys)
        return keys

    async def _list_now(self, bucket: str, keys: _Keys) -> None:
        making = keys.making = trio.Event()
        keys.error = None
        pushed, keys.pushed = keys.pushed, set()
        began = trio.current_time()
        try:
            await self._write_list(bucket)
            keys.listed_at = began
        except CachefsError as error:
            keys.error = error
            raise
        finally:
            if keys.listed_at < began:
                keys.pushed |= pushed
            keys.making = None
            making.set()

    async def _require_bucket(self, bucket: str) -> None:
        if not self._buckets.is_one:
            try:
                await self._service.look_up(self._buckets.tree_path(bucket, None))
            except IsDirectory:
                return
            except NoEntry:
                pass
            raise NoEntry(f"no such bucket: {ascii(bucket)[1:-1][:200]}")

    async def _write_list(self, bucket: str) -> None:
        left_out = 0

        def lines(keys: Iterator[str]) -> Iterator[bytes]:
            nonlocal left_out
            for key in keys:
                if self.is_ending:
                    raise UsageError("the pool is ending")
                text = as_line(self._buckets.told(key))
                left_out += "\n" in key
                if text:
                    yield text

        prefix = self._buckets.below(bucket)
        with deadline.limited(self._service.timeout_s):
            await self._service.objects.keys(
                prefix, lambda keys: self._views.write_list(bucket, lines(keys))
            )
        if left_out:
            _log.warning(
                "keys of %a that hold a newline, and so are in no list: %d", bucket, left_out
            )

    async def monitor(self) -> None:
        """Make each list anew that is older than it should be, for ever."""
        while True:
            await trio.sleep(1.0)
            for bucket, keys in list(self._keys.items()):
                age = trio.current_time() - keys.listed_at
                if age < self._settings.refresh_interval * _MINUTE_S:
                    continue
                try:
                    with because("pool list monitor"):
                        await self.made(bucket, trio.current_time())
                except CachefsError as error:
                    _log.warning("the keys of %a cannot be listed: %s", bucket, error)
                    # The list that there is stays; it is tried again when it would be next.
                    keys.listed_at = trio.current_time()
                except OSError as error:
                    _log.error("the keys of %a: %s", bucket, error)


def _matching(
    file: Iterator[bytes], start: str, matches: Callable[[str], bool], new: set[str]
) -> tuple[bytes, set[str], bool]:
    """Return those of the next lines that match, which of *new* are among them, and whether that was the end."""
    head = start.encode("utf-8", "surrogateescape")
    found: list[bytes] = []
    seen: set[str] = set()
    for _ in range(_LINES):
        line = next(file, None)
        if line is None:
            return b"".join(found), seen, True
        if not line.startswith(head):
            continue
        key = line[:-1].decode("utf-8", "surrogateescape")
        if matches(key):
            found.append(line)
            if key in new:
                seen.add(key)
    return b"".join(found), seen, False


def _startswith(start: str) -> Callable[[str], bool]:
    return lambda key: key.startswith(start)


def as_line(key: str) -> bytes:
    """Return *key* as a line of a list; empty: it is in none."""
    if key.endswith("/") or "\n" in key or not key:
        return b""
    return key.encode("utf-8", "surrogateescape") + b"\n"
