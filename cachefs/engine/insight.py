"""What operators ask of one path: where its bytes are, and that what is known of it be forgotten."""

from typing import Final

from cachefs.core.errors import NoEntry, NotFound, StoreError
from cachefs.core.intent import Intent
from cachefs.core.types import Key, Name
from cachefs.engine.attributes import Attributes
from cachefs.engine.checksums import Checksums
from cachefs.engine.handles import OpenFiles
from cachefs.engine.names import Names
from cachefs.engine.rebuild import Disk
from cachefs.engine.threads import Threads
from cachefs.local.inodes import ROOT, Inode
from cachefs.remote import deadline
from cachefs.remote.store import ObjectStore

_SECOND_NS: Final = 10**9
_MOST_RANGES: Final = 1000
_PATIENCE_S: Final = 5.0
"""How long the store is asked: what is known here is told without it, too."""


class Insight:
    """Answers for one running service."""

    def __init__(
        self,
        store: ObjectStore,
        disk: Disk,
        names: Names,
        files: OpenFiles,
        attributes: Attributes,
        checksums: Checksums,
        threads: Threads,
    ) -> None:
        self._store = store
        self._disk = disk
        self._names = names
        self._files = files
        self._attributes = attributes
        self._checksums = checksums
        self._threads = threads

    # ---- explain ----------------------------------------------------------------------------

    async def explain(self, path: str) -> dict[str, object]:
        """Return all that is known of *path* (relative to the root), and what the store says of it now.

        Changes nothing: what is known here is told however old it is. Raise ``NoEntry`` if there is no such file, or
        the store's error where only the store could tell.
        """
        inode = await self._found(path)
        key = self._disk.inodes.key_of(inode.ino)
        told: dict[str, object] = {
            "path": path,
            "kind": inode.kind.value,
            "key": key,
            "size": inode.size,
            "etag": inode.etag,
            "checked_s_ago": self._age_s(inode.checked_ns),
            "believed_for_s": max(0.0, self._names.ttl_left_s(inode)),
        }
        if inode.is_dir:
            told["listed_s_ago"] = self._age_s(inode.listed_ns)
            return told
        told["at_store"] = await self._at_store(key)
        told["md5"] = self._attributes.known_md5(inode)
        return told | self._of_cache(inode)

    async def _found(self, path: str) -> Inode:
        ino, inode = ROOT, self._names.directory(ROOT)
        for part in filter(None, path.encode("utf-8", "surrogateescape").split(b"/")):
            known = self._disk.inodes.child(ino, Name(part))
            inode = await self._names.lookup(ino, Name(part)) if known is None else known
            ino = inode.ino
        return inode

    def _age_s(self, when_ns: int | None) -> float | None:
        """Return how long ago that was; None: never, or not to be told any more."""
        if not when_ns:
            return None
        return max(0.0, (self._names.now_ns() - when_ns) / _SECOND_NS)

    async def _at_store(self, key: Key | None) -> dict[str, object]:
        if key is None:
            return {"error": "the file has no name any more"}
        try:
            with deadline.limited(_PATIENCE_S):
                told = await self._threads.ask(self._store.fingerprint, key)
        except NotFound:
            return {"error": "the store has no such object"}
        except StoreError as error:
            return {"error": str(error)}
        md5 = self._checksums.told(key, told)
        return {"etag": told.info.etag, "size": told.info.size, "md5": md5}

    def _of_cache(self, inode: Inode) -> dict[str, object]:
        entry, file = self._disk.cache.find(inode.ino), self._files.find(inode.ino)
        told: dict[str, object] = {
            "state": self._attributes.state(inode.ino),
            "pinned": inode.is_pinned,
            "handles": 0 if file is None else file.handles,
            "writers": 0 if file is None else file.writers,
            "cached_bytes": 0,
            "ranges": [],
        }
        if entry is None:
            return told
        ranges = list(entry.here)
        told |= {
            "size": entry.size,
            "cached_bytes": entry.here.total,
            "cached_etag": entry.etag,
            "ranges": [[each.start, each.stop] for each in ranges[:_MOST_RANGES]],
            "more_ranges": max(0, len(ranges) - _MOST_RANGES),
            "disk_bytes": entry.cost,
            "file": str(self._disk.cache.data / str(entry.id)),
            "holds": entry.pins,
            "hits": entry.hits,
            "fetch_s": entry.fetch_ns / _SECOND_NS,
            "used_ns": entry.used_ns,
            "policy": self._disk.cache.order.policy.value,
            "score": entry.standing.score,
            "queue": entry.standing.queue,
            "chances": entry.standing.chances,
        }
        intent = self._disk.journal.of(entry.id)
        if intent is not None:
            told["upload"] = self._of_upload(intent)
        return told

    def _of_upload(self, intent: Intent) -> dict[str, object]:
        due_s = (intent.due_ns - self._names.now_ns()) / _SECOND_NS
        return {
            "state": intent.state.value,
            "tries": intent.tries,
            "due_in_s": max(0.0, due_s),
            "error": intent.error,
        }

    # ---- refresh ----------------------------------------------------------------------------

    async def refresh(self, path: str) -> int:
        """Forget, here and in the kernel, what is known of *path* and of all below it. Return of how many names.

        The store is asked anew when they are used next. Bytes stay, and are used if they are of the version that is there then;
        what waits for its upload is not forgotten. While the store cannot be asked, names are shown as they were known.
        """
        ino, parts = ROOT, path.encode("utf-8", "surrogateescape").split(b"/")
        for part in filter(None, parts):
            child = self._disk.inodes.child(ino, Name(part))
            if child is None:
                await self._names.forget_name(ino, Name(part))
                return 1
            ino = child.ino
        inode = self._disk.inodes.get(ino)
        if inode is None:
            raise NoEntry("no such file or directory")
        return await self._names.forget_below(inode)
