"""The files that the pool's clients were shown: leased, and named after their keys, for some time."""

import json
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Final

import trio

from cachefs.core.errors import IsDirectory, NoEntry, NotDirectory
from cachefs.core.policy import SECOND_NS
from cachefs.engine.leases import LONGEST_S, Leased
from cachefs.engine.service import Service
from cachefs.local.views import Views
from cachefs.pool.naming import Buckets, no_key
from cachefs.pool.settings import PoolSettings
from cachefs.remote import deadline

_MOST_LEFT: Final = 20_000
"""Paths that stay beyond their leases: each takes memory, whether or not anybody will ask for it."""


@dataclass(slots=True, eq=False)
class View:
    """A file that clients were shown."""

    path: Path
    leased: Leased
    until: float
    turn: int
    """A file that was leased later is newer."""
    holds: int = 0
    """Answers in the making that name it: its time begins when they are sent."""
    is_left: bool = False
    """Its lease is over, and it is there until the cache needs the room."""


class Shown:
    """What is shown of each object. Belongs to the loop."""

    def __init__(
        self, service: Service, views: Views, buckets: Buckets, settings: PoolSettings
    ) -> None:
        self._service = service
        self._views = views
        self._buckets = buckets
        self._settings = settings
        self._shown: dict[tuple[str, str], View] = {}
        # Those of them that are left, the one that was left first in front.
        self._left: dict[tuple[str, str], None] = {}
        self._turns = 0
        self.hits = 0
        """How often nothing had to be fetched."""

    def __len__(self) -> int:
        return len(self._shown)

    def left_s(self, bucket: str, key: str) -> float:
        """Return for how long an object is leased from now; 0: it is not."""
        view = self._shown.get((bucket, key))
        if view is None or view.is_left:
            return 0.0
        return max(0.0, view.until - trio.current_time())

    def is_leased(self, bucket: str, key: str) -> bool:
        """Whether an object is leased, if only for an answer in the making."""
        view = self._shown.get((bucket, key))
        return view is not None and not view.is_left

    async def held(self, bucket: str, key: str) -> View:
        """Lease the object, and show it until :meth:`let_go` and for some time after."""
        with deadline.limited(self._service.timeout_s):
            tree_path, leased, was_here = await self._leased(bucket, key)
            self._turns += 1
            turn = self._turns
            self.hits += was_here
            view = self._shown.get((bucket, key))
            if view is not None and self._service.leases.is_left_to(view.path, leased.lease):
                self._service.leases.reclaim(self._views.names(view.path))
                view.leased, view.turn, view.is_left = leased, turn, False
                self._left.pop((bucket, key), None)
            try:
                if view is None or view.is_left or view.leased.path != leased.path:
                    meta = await self._meta(bucket, key, tree_path, leased)
                    view = self._place(bucket, key, leased, turn, meta)
            except BaseException:
                await self._release(leased)
                raise
        view.holds += 1
        spare = view.leased
        if spare.path == leased.path:
            view.leased = leased
        else:
            spare = leased  # something newer is shown by now
        if spare is not view.leased:
            await self._release(spare)
        return view

    def let_go(self, view: View, seconds: float) -> None:
        """Let a view be for so many seconds at least from now, unless somebody else holds it."""
        view.holds -= 1
        view.until = max(view.until, trio.current_time() + seconds)

    def _place(self, bucket: str, key: str, leased: Leased, turn: int, meta: bytes) -> View:
        """Show *leased*, unless what is shown by now is newer or the same."""
        view = self._shown.get((bucket, key))
        if view is not None and view.is_left:
            self._service.leases.reclaim(self._views.names(view.path))
        elif view is not None and (view.turn > turn or view.leased.path == leased.path):
            return view
        path = self._views.place(bucket, key, leased.path, meta)
        if view is not None and view.path != path:
            self._views.remove(view.path)
        if view is not None and not view.is_left:
            self._service.background.start("release", lambda: self._release(view.leased))
        self._left.pop((bucket, key), None)
        made = self._shown[bucket, key] = View(path, leased, 0.0, turn)
        return made

    async def _leased(self, bucket: str, key: str) -> tuple[str, Leased, bool]:
        """Return the path in the tree, the lease, and whether nothing had to be fetched for it."""
        path = self._buckets.tree_path(bucket, key)
        try:
            return await self._take(path)
        except IsDirectory:
            pass
        except (NoEntry, NotDirectory):
            raise no_key(key) from None
        try:
            return await self._take(self._buckets.tree_path(bucket, key, is_shadowed=True))
        except (NoEntry, NotDirectory, IsDirectory):
            raise no_key(key) from None

    async def _take(self, path: str) -> tuple[str, Leased, bool]:
        size, cached = self._service.presence([path])[0]
        leased = await self._service.leases.take(
            path, seconds=LONGEST_S, readers=self._settings.readers
        )
        return path, leased, size == cached == leased.size

    async def _release(self, leased: Leased) -> None:
        with trio.CancelScope(shield=True):
            await self._service.release(leased.lease)

    async def _meta(self, bucket: str, key: str, tree_path: str, leased: Leased) -> bytes:
        """Return what stands in ``KEY__meta__``."""
        info = await self._service.objects.describe(
            tree_path, self._buckets.key(bucket, key), leased.etag
        )
        modified_ns = leased.mtime_ns if info is None else info.mtime_ns
        meta = {} if info is None or info.meta is None else dict(info.meta)
        told = {
            "LastModified": formatdate(modified_ns / SECOND_NS, usegmt=True),
            "ETag": quoted(leased.etag),
            "ContentLength": leased.size,
            "ContentType": (info and info.content_type) or "binary/octet-stream",
            "Metadata": {name: value for name, value in meta.items() if name[:1] != ":"},
            "AcceptRanges": "bytes",
        }
        return json.dumps(told, indent=4).encode() + b"\n"

    async def expire(self) -> None:
        """Leave each view to the cache when its lease is over, and forget those that it has removed, for ever."""
        while True:
            await trio.sleep(min(1.0, self._settings.lease_s / 4))
            now = trio.current_time()
            for name, view in [each for each in self._shown.items() if each[1].until <= now]:
                if self._shown.get(name) is not view or view.holds or view.until > now:
                    continue
                if not view.is_left:
                    await self._leave(name, view)
                elif not self._service.leases.is_left(view.path):
                    self._forget(name, view)  # with directories that are empty now
            while len(self._left) > _MOST_LEFT:
                name = next(iter(self._left))
                self._service.leases.reclaim(self._views.names(self._shown[name].path))
                self._forget(name, self._shown[name])

    async def _leave(self, name: tuple[str, str], view: View) -> None:
        leased = view.leased
        view.is_left = self._service.leases.leave(leased.lease, self._views.names(view.path))
        if view.is_left:
            self._left[name] = None
        else:  # a copy that only the lease keeps
            self._forget(name, view)
        await self._release(leased)

    def _forget(self, name: tuple[str, str], view: View) -> None:
        del self._shown[name]
        self._left.pop(name, None)
        self._views.remove(view.path)


def quoted(etag: str | None) -> str:
    """Return a version as HTTP has it."""
    return f'"{(etag or "").strip(chr(34))}"'
